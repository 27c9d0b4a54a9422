package gossip

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/gossip/journal"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

const (
	// callHello asks a member which cluster it belongs to.
	callHello   = framesEnd
	callHomes   = callHello + 1 // whom it takes for homes
	callTimeout = time.Second
	// helloLen is the length of the answer: cluster, generation, seed.
	helloLen = 16 + 4 + 8
	// streamBytes are all values of a member.
	streamBytes = framesEnd

	enterEvery = 300 * time.Millisecond
	// tellEvery is how often the log says what is waited for.
	tellEvery = 5 * time.Second
	// lingering is how long changes are gathered while they come fast.
	lingering = time.Millisecond
	// few changes within that time, or so, are no reason to wait for more.
	few = 4
	// reclaimRetry is how long after a failure the store is tidied up again.
	reclaimRetry = 10 * time.Second
	// leavePatience is how long Close waits until the others have everything, and
	// goodPatience if this member never comes back.
	leavePatience = 2 * time.Second
	goodPatience  = 30 * time.Second
)

var (
	errClosed = errors.New("this controller is shutting down")
	errHello  = errors.New("a member answers what this version cannot read: run the same release on all controllers")
)

// members is an Engine's part in its cluster.
type members struct {
	log     *zap.Logger
	ctx     context.Context // ends with Close
	cancel  context.CancelCauseFunc
	cluster *cluster.Cluster
	stage   *repair.Stager
	fetcher *repair.Fetcher
	filler  *repair.Filler
	homes   *homes
	journal *journal.Journal // nil without a data-dir
	ident   disk.Identity
	fatal   chan error
	died    atomic.Bool // what is written here is told nobody any more
	forGood atomic.Bool // this member never comes back once it is closed
	belongs atomic.Bool // ident is settled
	// returned says that this member was one before, and has what it had.
	returned bool
	changed  chan struct{} // has room for one: members came or went
	stirred  chan struct{} // has room for one: there is something to send
}

// enter finds the cluster, or founds it with others, and starts what a member does.
func (e *Engine) enter(ctx context.Context, start time.Time, mono func() time.Duration) (err error) {
	e.log = e.o.Log
	e.fatal = make(chan error, 1)
	e.changed, e.stirred = make(chan struct{}, 1), make(chan struct{}, 1)
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	defer func() {
		if err != nil {
			e.cancel(err)
			if e.cluster != nil {
				err = errors.Join(err, e.cluster.Close())
			}
			if e.journal != nil {
				err = errors.Join(err, e.journal.Close())
			}
		}
	}()
	known := false
	e.ident = disk.Identity{ID: randomID(), Name: e.o.Node}
	if e.o.DataDir != "" {
		if e.journal, err = journal.Open(disk.Options{Dir: e.o.DataDir, Sync: e.o.Sync, Log: e.log}); err != nil {
			return err
		}
		var was disk.Identity
		if was, known = e.journal.Identity(); known {
			e.ident = was
		}
		if e.ident.Name != e.o.Node {
			return fmt.Errorf("data-dir %s is that of controller %q, and this one is %q: give it its own", e.o.DataDir, e.ident.Name, e.o.Node)
		}
	}
	id := e.ident.ID
	if e.cluster, err = e.o.OpenCluster(id); err != nil {
		return err
	}
	e.cluster.HandleCall(callHello, func(context.Context, uint64, []byte) ([]byte, error) {
		if !e.belongs.Load() {
			return nil, errors.New("not a member yet")
		}
		b := binary.LittleEndian.AppendUint32(append([]byte(nil), e.ident.Cluster[:]...), e.ident.Gen)
		return binary.LittleEndian.AppendUint64(b, e.ident.Seed), nil
	})
	founded := false
	if !known {
		if founded, err = e.settle(ctx); err != nil {
			return err
		}
		if e.journal != nil {
			if err = e.journal.Start(e.ident); err != nil {
				return err
			}
		}
	}
	e.replica, err = e.o.OpenReplica(replica.Options{Gen: e.ident.Gen, Seed: e.ident.Seed, Tombstones: true, Start: start})
	if err != nil {
		return err
	}
	e.clock = newClock(id, start.UnixMilli(), mono)
	e.clock.wrong = e.cluster.ClockOffset
	k := newCore(id, e.o.Causal, e.replica, e.clock, e, e.log)
	k.maxSkew, k.synced = e.o.MaxSkew, founded
	k.acks.want.Store(int64(e.o.WriteAcks))
	k.cut.maxAge = e.o.TombstoneMaxAge
	e.stage = repair.NewStager(e.replica, e.log)
	e.fetcher = repair.NewFetcher(e.cluster, e.replica, e.stage, e.everybody, heardOfAll{e.replica})
	k.slow = e.stage.Slow
	e.filler = repair.NewFiller(e.cluster, e.replica, e.others, e.o.RepairRate, e.log)
	if !e.replica.Immediate() {
		k.remote = func(c *attune.Change) {
			e.stage.Wait()
			e.stage.Add(c)
		}
	}
	e.core = k
	if e.journal != nil {
		k.disk.journal = e.journal
		k.disk.drain = e.stage.Drain
		k.disk.stage = func(st repair.Staged) {
			e.stage.Wait()
			e.stage.Put(st)
		}
		if err = k.load(e.ctx); err == nil {
			err = k.renew()
		}
		if err != nil {
			e.stage.Close()
			return err
		}
		if k.logged() {
			k.remote = k.follow // what was read from the journal went there at once
		}
	}
	e.returned = known
	e.cluster.HandleStream(streamBytes, func(ctx context.Context, _ uint64, _ []byte, w io.Writer) error {
		return e.replica.Export(ctx, w)
	})
	e.homes = newHomes(k, randomID(), e.decide)
	e.homes.traceOf, e.homes.room = e.o.Trace, e.await
	for kind := frameUpdates; kind < framesEnd; kind++ {
		e.cluster.Handle(kind, func(from uint64, body []byte) { e.homes.frame(from, kind, body) }, cluster.Limit(cluster.MaxFrame))
	}
	e.cluster.HandleCall(callHomes, e.tellHomes)
	e.cluster.OnDown(e.homes.down)
	e.cluster.OnChange(func() { poke(e.changed) })
	e.belongs.Store(true)
	e.cluster.Belong(e.ident.Cluster)
	poke(e.changed)
	e.running.Go(e.tickle)
	e.running.Go(e.tell)
	e.running.Go(e.settleIn)
	if !e.replica.Immediate() {
		e.running.Go(func() { e.filler.Run(e.ctx) })
	}
	if e.journal != nil {
		e.running.Go(e.renew)
		e.running.Go(e.save)
	}
	if k.logged() {
		e.running.Go(e.reclaim)
	}
	return nil
}

// settle finds out which cluster to belong to, and reports true if this controller
// founds it.
func (e *Engine) settle(ctx context.Context) (founded bool, err error) {
	var told time.Time
	for {
		if founded, err = e.cluster.Settle(ctx); err != nil {
			return false, err
		}
		answer := make([]byte, helloLen)
		if founded {
			_, err = rand.Read(answer)
		} else {
			answer, err = e.hello(ctx)
		}
		if err == nil {
			copy(e.ident.Cluster[:], answer)
			e.ident.Gen = binary.LittleEndian.Uint32(answer[16:])
			e.ident.Seed = binary.LittleEndian.Uint64(answer[20:])
			if founded {
				e.log.Info("founded a new cluster", zap.String("cluster", fmt.Sprintf("%x", e.ident.Cluster[:4])))
			}
			return founded, nil
		}
		if time.Since(told) > tellEvery {
			told = time.Now()
			e.log.Warn("no member of the cluster answers yet", zap.Error(err))
		}
		select {
		case <-time.After(enterEvery):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// hello asks the members of a cluster which one that is.
func (e *Engine) hello(ctx context.Context) (answer []byte, err error) {
	err = errors.New("no member of a cluster can be reached")
	for _, m := range e.others() {
		once, cancel := context.WithTimeout(ctx, callTimeout)
		answer, err = e.cluster.Call(once, m.ID, callHello, nil)
		cancel()
		if err == nil && len(answer) != helloLen {
			err = errHello
		}
		if err == nil {
			return answer, nil
		}
	}
	return nil, err
}

// others are the live members besides this one, those that serve clients first.
func (e *Engine) others() []cluster.Member { return ranked(e.cluster.Members()) }

func ranked(all []cluster.Member) []cluster.Member {
	var ready, rest []cluster.Member
	for _, m := range all {
		switch {
		case m.Self || !m.Alive || m.Cluster == 0:
		case m.Ready:
			ready = append(ready, m)
		default:
			rest = append(rest, m)
		}
	}
	return append(ready, rest...)
}

// send implements world.
func (e *Engine) send(to uint64, class cluster.Class, kind byte, body []byte) bool {
	return e.cluster.Send(to, class, kind, body)
}

// stir implements world.
func (e *Engine) stir() { poke(e.stirred) }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// tell sends what is new, at once if that is the first for a while, else with what
// comes within lingering.
func (e *Engine) tell() {
	recent, at := 0, time.Now() // changes sent until then, those of a lingering before half
	for {
		wait := lingering
		select {
		case <-e.stirred:
			if e.journal != nil {
				if err := e.core.persist(); err != nil {
					e.die(err)
					return // nobody hears of what is not in the journal
				}
			}
			if age := time.Since(at) / lingering; age > 0 {
				recent, at = recent>>min(age, 16), time.Now()
			}
			if recent += e.core.flush(); recent < few {
				wait /= 8 // somebody may be waiting for just that
			}
		case <-e.stop:
			return
		}
		select {
		case <-time.After(wait):
		case <-e.stop:
			return
		}
	}
}

// die ends this controller: what a failed write left on disk is unknown.
func (e *Engine) die(err error) {
	e.died.Store(true)
	e.log.Error("the journal cannot be written; this controller stops", zap.Error(err))
	select {
	case e.fatal <- err:
	default:
	}
}

// Fatal gets an error when this controller must stop. It is never closed.
func (e *Engine) Fatal() <-chan error { return e.fatal }

// renew keeps the journal's bound of the clock ahead.
func (e *Engine) renew() {
	e.every(boundLeft/4, func() error {
		err := e.core.renew()
		if err != nil {
			e.die(err)
		}
		return err
	})
}

// save keeps the journal short.
func (e *Engine) save() {
	e.every(time.Second, func() error {
		if err := e.core.save(e.ctx); err != nil && e.ctx.Err() == nil {
			e.log.Warn("the state could not be written; trying again", zap.Error(err))
		}
		return nil
	})
}

// every calls fn until it fails or the engine closes.
func (e *Engine) every(d time.Duration, fn func() error) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if fn() != nil {
				return
			}
		case <-e.stop:
			return
		}
	}
}

// tickle is the core's sense of time and of who is there.
func (e *Engine) tickle() {
	tick := time.NewTicker(digestEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			e.core.tick()
			e.homes.tick()
			e.cluster.SetReady(e.unfit() == nil)
		case <-e.changed:
			e.core.setMembers(e.memberList())
			e.homes.refresh()
		case <-e.stop:
			return
		}
	}
}

// memberList are the others of this cluster, absent ones included, but not who left.
func (e *Engine) memberList() []member {
	var ms []member
	hash := cluster.Hash(e.ident.Cluster)
	for _, m := range e.cluster.Members() {
		if !m.Self && !m.Left && m.Cluster == hash {
			ms = append(ms, member{id: m.ID, name: m.Name, alive: m.Alive})
		}
	}
	return ms
}

// leave waits until another member has everything that was written here.
func (e *Engine) leave() {
	e.homes.close()
	k := e.core
	patience := leavePatience
	if e.forGood.Load() {
		patience = goodPatience
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		k.mu.Lock()
		has, alive := false, false
		for _, p := range k.peers {
			alive = alive || p.alive && p.heard != 0
			has = has || p.alive && p.vv[k.id].seq >= k.own.seq
		}
		k.mu.Unlock()
		if has || !alive || e.died.Load() {
			break
		}
		if time.Now().After(end) {
			e.log.Warn("stopping although no other controller has confirmed that it has all changes made here: some may be lost", zap.Duration("waited", patience))
			break
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = e.cluster.Leave(ctx) // who does not hear of it takes this one for absent
}

// left ends what enter started, after the goroutines have.
func (e *Engine) left() error {
	err := e.cluster.Close()
	e.stage.Close()
	if e.journal != nil {
		err = errors.Join(err, e.core.persist(), e.journal.Close())
	}
	e.core.acks.close(e.core)
	return err
}

// randomID is an origin that was never used and never will be.
func randomID() uint64 {
	var b [8]byte
	for {
		if _, err := rand.Read(b[:]); err != nil {
			panic(err) // it never returns one
		}
		if id := binary.LittleEndian.Uint64(b[:]); id != 0 {
			return id
		}
	}
}
