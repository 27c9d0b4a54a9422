package ordered

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/ordered/raftlog"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

// Kinds of calls and streams between members.
const (
	callJoin   byte = 2*cluster.MinKind + iota // a newcomer wants to become a member
	streamCut                                  // the index of an announced snapshot
	streamData                                 // all values
)

const (
	joinEvery   = 300 * time.Millisecond
	callTimeout = time.Second
	// lostAfter is how long a member knows of no leader before it asks whether it
	// still is a member.
	lostAfter = 5 * time.Second
	// tellEvery is how often the log says what is waited for.
	tellEvery = 5 * time.Second
	// admissionLen is the length of a leader's answer to callJoin: cluster,
	// generation, seed.
	admissionLen = 16 + 4 + 8
)

// Open becomes a member of the cluster: of the one that the data directory
// remembers, or of the one that others belong to already, or of a new one as soon
// as Expect controllers have found each other. It returns when that is settled;
// the level is served later, when Ready is closed. Ending ctx gives up.
func Open(ctx context.Context, o Options) (*Engine, error) {
	e := &Engine{
		o: o, log: o.Log, start: time.Now(),
		ready: make(chan struct{}), fatal: make(chan error, 1),
		wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	e.room = sync.NewCond(&e.mu)
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	if err := e.open(ctx); err != nil {
		e.cancel(err)
		return nil, errors.Join(err, e.abandon())
	}
	return e, nil
}

// abandon closes what open got to.
func (e *Engine) abandon() error {
	var errs []error
	if e.cluster != nil {
		errs = append(errs, e.cluster.Close())
	}
	if e.stage != nil {
		e.stage.Close()
	}
	if e.store != nil {
		errs = append(errs, e.store.Close())
	}
	return errors.Join(errs...)
}

func (e *Engine) open(ctx context.Context) (err error) {
	e.store, err = raftlog.Open(disk.Options{Dir: e.o.DataDir, Sync: e.o.Sync, Log: e.log})
	if err != nil {
		return err
	}
	var known bool
	e.ident, known = e.store.Identity()
	if known && e.ident.Name != e.o.Name {
		return fmt.Errorf("data-dir %s is that of controller %q, and this one is %q: give it its own", e.o.DataDir, e.ident.Name, e.o.Name)
	}
	if !known {
		e.ident = disk.Identity{ID: randomID(), Name: e.o.Name}
	}
	if e.cluster, err = e.o.OpenCluster(e.ident.ID); err != nil {
		return err
	}
	e.core = &core{
		id: e.ident.ID, name: e.o.Name, expect: max(e.o.Expect, 1), maxItem: e.o.MaxItem, log: e.log,
		store: e.store, world: e, ctx: e.ctx, durable: e.o.DataDir != "",
		syncs: e.o.Sync == disk.Always, full: e.o.Full, logBudget: defaultLogBudget, traceOf: e.o.Trace,
	}
	e.handle()
	founded := false
	if !known {
		if founded, err = e.enter(ctx); err != nil {
			return err
		}
		if err := e.store.Start(e.ident); err != nil {
			return err
		}
	}
	if e.replica, err = e.o.OpenReplica(replica.Options{Gen: e.ident.Gen, Seed: e.ident.Seed}); err != nil {
		return err
	}
	e.core.replica = e.replica
	e.stage = repair.NewStager(e.replica, e.log)
	// An absent member is not waited for: it is a quorum that evicts.
	e.fetcher = repair.NewFetcher(e.cluster, e.replica, e.stage, func() ([]cluster.Member, bool) { return e.peers(), true }, place{e.core})
	e.filler = repair.NewFiller(e.cluster, e.replica, e.peers, e.o.RepairRate, e.log)
	if known {
		err = e.load()
	} else if founded {
		err = e.found()
	}
	if err != nil {
		return err
	}
	e.serve()
	if err := e.core.start(); err != nil {
		return err
	}
	if founded {
		if err := e.core.raft.Campaign(); err != nil { // nobody else will
			return err
		}
	}
	e.cluster.Belong(e.ident.Cluster)
	e.loops.Add(1)
	go e.run()
	e.tasks.Go(e.join)
	if !e.replica.Immediate() {
		e.tasks.Go(func() { e.filler.Run(e.ctx) })
	}
	if e.replica.Durable() {
		e.tasks.Go(e.reclaim)
	}
	return nil
}

// found makes this controller the first and only member of a new cluster. Others
// enter it one by one; it is not served before they are Expect.
func (e *Engine) found() error {
	conf := &pb.ConfState{Voters: []uint64{e.ident.ID}}
	if err := e.store.Install(1, 1, conf); err != nil {
		return err
	}
	c := e.core
	c.st = state{applied: 1, term: 1, time: max(e.wall(), epoch), members: map[uint64]string{e.ident.ID: e.o.Name}}
	c.snaps.hydrated = true
	if c.durable {
		// From now on this disk is the log: it must be a whole before anything is
		// acknowledged on its word.
		meta := &pb.SnapshotMetadata{Index: new(c.st.applied), Term: new(c.st.term), ConfState: conf}
		cut, err := e.replica.Cut()
		if err != nil {
			return err
		}
		defer cut.Close()
		if _, err := e.writeState(meta, c.st.encode(nil), cut); err != nil {
			return err
		}
	}
	e.log.Info("founded a new cluster", zap.String("cluster", fmt.Sprintf("%x", e.ident.Cluster[:4])))
	return nil
}

// load takes the state from disk. The log behind it is applied again as far as it
// is known to be committed.
func (e *Engine) load() error {
	c := e.core
	err := e.store.LoadState(func(meta *pb.SnapshotMetadata, r io.Reader) error {
		header, err := disk.ReadHead(r, 1<<20)
		if err != nil {
			return err
		}
		if _, err := c.st.decode(header); err != nil {
			return err
		}
		c.st.applied, c.st.term = meta.GetIndex(), meta.GetTerm()
		e.store.SetConfState(meta.GetConfState())
		if err := e.replica.Install(r); err != nil || !e.replica.Immediate() {
			return err
		}
		_, err = e.replica.Import(e.ctx, r)
		return err
	})
	if err != nil {
		return fmt.Errorf("data-dir %s: %w", e.o.DataDir, err)
	}
	c.snaps.hydrated = true
	c.begun.Store(c.st.applied)
	e.log.Info("took the state from disk", zap.Uint64("index", c.st.applied), zap.Int("items", e.replica.Len()))
	return nil
}

// enter finds out which cluster to belong to. It reports true if that is a new
// one, which this controller is to found.
func (e *Engine) enter(ctx context.Context) (found bool, err error) {
	var told time.Time
	for {
		if found, err = e.cluster.Settle(ctx); err != nil {
			return false, err
		}
		var answer []byte
		if found {
			answer = make([]byte, admissionLen)
			if _, err = rand.Read(answer); err != nil {
				return false, err
			}
		} else {
			answer, err = e.ask(ctx)
		}
		if err == nil {
			copy(e.ident.Cluster[:], answer)
			e.ident.Gen = binary.LittleEndian.Uint32(answer[16:])
			e.ident.Seed = binary.LittleEndian.Uint64(answer[20:])
			return found, nil
		}
		if time.Since(told) > tellEvery {
			told = time.Now()
			e.log.Warn("the cluster does not let this controller in yet; if too many of its members are lost for good, see attune recover", zap.Error(err))
		}
		select {
		case <-time.After(joinEvery):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// ask asks the members of a cluster to let this controller in. The leader's answer
// says which cluster that is.
func (e *Engine) ask(ctx context.Context) (answer []byte, err error) {
	err = errors.New("no member of a cluster can be reached")
	for _, m := range e.cluster.Members() {
		if m.Self || !m.Alive || m.Cluster == 0 {
			continue
		}
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		answer, err = e.cluster.Call(callCtx, m.ID, callJoin, appendMember(nil, e.core.id, e.o.Name))
		cancel()
		if err == nil && len(answer) == admissionLen {
			return answer, nil
		}
	}
	return nil, err
}

// join asks for admission whenever this controller is not a member, as far as it
// knows, and when it knows of no leader for long: then it may be one that was
// removed while it was away. Its log is whole, so its id is still good.
func (e *Engine) join() {
	for {
		wanted := make(chan bool, 1)
		e.post(func() {
			c := e.core
			wanted <- !c.memb.removed && !c.memb.leaving && (!c.member(c.id) || c.soft.Lead == 0 && c.now-c.since > lostAfter)
		})
		select {
		case now := <-wanted:
			if now {
				_, _ = e.ask(e.ctx) // the next time, perhaps
			}
		case <-e.ctx.Done():
			return
		}
		select {
		case <-time.After(joinEvery):
		case <-e.ctx.Done():
			return
		}
	}
}

var errNoLeaderHere = errors.New("not the leader")

// handle takes what other members say and ask, from the beginning: it waits for the core.
func (e *Engine) handle() {
	for _, kind := range []byte{frameRaft, frameForward, frameAnswer, frameFull, frameLeave, frameLeft, frameSnapFailed} {
		e.cluster.Handle(kind, func(from uint64, body []byte) { e.frame(from, kind, body) }, cluster.Limit(cluster.MaxFrame))
	}
	e.cluster.OnDown(func(id uint64, class cluster.Class) {
		e.post(func() { e.core.peerDown(id, class) })
	})
	e.cluster.HandleCall(callJoin, func(ctx context.Context, from uint64, body []byte) ([]byte, error) {
		id, name, rest, err := cutMember(body)
		if err != nil || len(rest) > 0 || id != from {
			return nil, errState
		}
		admitted := make(chan []byte, 1)
		e.post(func() {
			if !e.core.leads() {
				admitted <- nil
				return
			}
			if !e.core.member(id) {
				e.core.memb.joins[id] = name
			}
			answer := append([]byte(nil), e.ident.Cluster[:]...)
			answer = binary.LittleEndian.AppendUint32(answer, e.ident.Gen)
			admitted <- binary.LittleEndian.AppendUint64(answer, e.ident.Seed)
		})
		select {
		case answer := <-admitted:
			if answer == nil {
				return nil, errNoLeaderHere
			}
			return answer, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-e.ctx.Done():
			return nil, errClosed
		}
	})
}

// serve gives others what this replica has, when it has what it will begin with: before,
// they would take a part of it for the whole.
func (e *Engine) serve() {
	e.cluster.HandleStream(streamCut, func(_ context.Context, _ uint64, request []byte, w io.Writer) error {
		if len(request) != 8 {
			return errState
		}
		number := binary.LittleEndian.Uint64(request)
		cut, err := e.core.takeCut(number)
		if err != nil {
			return err
		}
		defer e.core.closeCut(number)
		_, err = cut.WriteTo(w)
		return err
	})
	e.cluster.HandleStream(streamData, func(ctx context.Context, _ uint64, _ []byte, w io.Writer) error {
		return e.replica.Export(ctx, w)
	})
}

// randomID is a Raft id that was never used and never will be.
func randomID() uint64 {
	var b [8]byte
	for {
		if _, err := rand.Read(b[:]); err != nil {
			panic(err) // it never returns one
		}
		// Raft reserves the largest.
		if id := binary.LittleEndian.Uint64(b[:]) >> 1; id != 0 {
			return id
		}
	}
}
