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
	callTimeout = time.Second
	// helloLen is the length of the answer: cluster, generation, seed.
	helloLen = 16 + 4 + 8
	// streamBytes are all values of a member.
	streamBytes = framesEnd

	enterEvery = 300 * time.Millisecond
	// tellEvery is how often the log says what is waited for.
	tellEvery = 5 * time.Second
	// orphanedAfter is how long a newcomer looks for a member that has the data
	// before it concludes that there is none any more.
	orphanedAfter = 10 * time.Second
	// reunion is how long one that has data looks for others that serve.
	reunion = 2 * time.Second
	// lingering is how long changes are gathered while they come fast.
	lingering = time.Millisecond
	// few changes in a frame are no reason to wait for more.
	few = 4
	// reclaimRetry is how long after a failure the store is tidied up again.
	reclaimRetry = 10 * time.Second
	// leavePatience is how long Close waits until the others have everything.
	leavePatience = 2 * time.Second
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
	e.replica, err = e.o.OpenReplica(replica.Options{Gen: e.ident.Gen, Seed: e.ident.Seed, Tombstones: true})
	if err != nil {
		return err
	}
	e.clock = newClock(id, start.Add(e.o.skew).UnixMilli(), mono)
	k := newCore(id, e.o.Causal, e.replica, e.clock, e, e.log)
	k.maxSkew, k.synced = e.o.MaxSkew, founded
	k.acks.want.Store(int64(e.o.WriteAcks))
	k.cut.maxAge = e.o.TombstoneMaxAge
	e.stage = repair.NewStager(e.replica, e.log)
	e.fetcher = repair.NewFetcher(e.cluster, e.replica, e.stage, e.others, func() (applied, begun uint64) { return 0, 0 })
	e.filler = repair.NewFiller(e.cluster, e.replica, e.others, e.o.RepairRate, e.log)
	if !e.replica.Immediate() {
		k.remote = e.stage.Add
	}
	e.core = k
	if e.journal != nil {
		k.disk.journal = e.journal
		k.disk.stage, k.disk.drain = e.stage.Put, e.stage.Drain
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
	for kind := frameUpdates; kind < framesEnd; kind++ {
		e.cluster.Handle(kind, func(from uint64, body []byte) { e.homes.frame(from, kind, body) }, cluster.Limit(cluster.MaxFrame))
	}
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
func (e *Engine) others() []cluster.Member {
	var ready, rest []cluster.Member
	for _, m := range e.cluster.Members() {
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
			if e.core.flush() < few {
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
			e.cluster.SetReady(e.Health() == nil)
		case <-e.changed:
			e.core.setMembers(e.memberList())
			e.homes.refresh()
		case <-e.stop:
			return
		}
	}
}

// memberList are the others of this cluster, absent ones included.
func (e *Engine) memberList() []member {
	var ms []member
	hash := cluster.Hash(e.ident.Cluster)
	for _, m := range e.cluster.Members() {
		if !m.Self && m.Cluster == hash {
			ms = append(ms, member{id: m.ID, name: m.Name, alive: m.Alive})
		}
	}
	return ms
}

// settleIn makes a newcomer a full member: it takes everything from one that is.
func (e *Engine) settleIn() {
	k := e.core
	began, told := time.Now(), time.Now()
	for {
		k.mu.Lock()
		synced, serves, wrote := k.synced, k.serves(), k.own.seq > 0
		k.mu.Unlock()
		if serves {
			close(e.ready)
			e.log.Info("has what the others have", zap.Int("items", e.replica.Len()))
			return
		}
		if !synced {
			done := make(chan error, 1)
			if e.sync(done) {
				select {
				case err := <-done:
					if err == nil {
						e.fill()
						k.mu.Lock()
						k.join()
						k.mu.Unlock()
						continue
					}
					e.log.Warn("could not take over the data; trying another controller", zap.Error(err))
				case <-e.stop:
					return
				}
				began = time.Now()
			} else if wait := time.Since(began); wrote && wait > reunion && !e.unheard() || wait > orphanedAfter && e.eldest() {
				e.log.Warn("no controller of this cluster serves: going on with what is here", zap.Int("items", e.replica.Len()))
				k.mu.Lock()
				k.join()
				k.mu.Unlock()
				continue
			}
		}
		if time.Since(told) > tellEvery {
			told = time.Now()
			e.log.Warn("not serving yet", zap.Error(e.Health()))
		}
		select {
		case <-time.After(enterEvery):
		case <-e.stop:
			return
		}
	}
}

// sync begins to take everything from a member that serves, and reports false if
// there is none.
func (e *Engine) sync(done chan error) bool {
	k := e.core
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range k.order {
		if p := k.peers[id]; p != nil && p.alive && p.ready && p.heard != 0 {
			k.rec.sync(p, func(err error) { done <- err })
			return true
		}
	}
	return false
}

// unheard reports whether a live member has not told yet whether it serves.
func (e *Engine) unheard() bool {
	k := e.core
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.near {
		if p.alive && p.heard == 0 {
			return true
		}
	}
	return false
}

// eldest reports whether no live member has a lower id.
func (e *Engine) eldest() bool {
	k := e.core
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, p := range k.peers {
		if p.alive && id < k.id {
			return false
		}
	}
	return true
}

// Health says why this controller does not serve its level; nil if it does.
func (e *Engine) Health() error {
	if e.core == nil {
		return nil
	}
	e.core.mu.Lock()
	defer e.core.mu.Unlock()
	switch {
	case !e.core.synced:
		return errors.New("taking over the data of the cluster")
	case e.core.skewed.Load():
		return errSkewed
	case e.core.cut.lagging():
		return errors.New("was away, and others have forgotten what this controller has not heard of: catching up")
	}
	return nil
}

var errSkewed = errors.New("clock skew: this controller's clock is too far from the others'; set it (NTP), then restart, or raise max-skew")

// bye tells all that this member leaves.
func (k *core) bye() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, p := range k.peers {
		if p.alive {
			k.world.send(id, cluster.Control, frameBye, nil)
		}
	}
}

// leave waits until another member has everything that was written here.
func (e *Engine) leave() {
	e.homes.close()
	k := e.core
	for end := time.Now().Add(leavePatience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
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
	}
	k.bye()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = e.cluster.Leave(ctx) // that others are told late is no harm
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

// recover is Recover in a cluster.
func (e *Engine) recover(ctx context.Context, key attune.Key, lost attune.Item) (attune.Item, error) {
	for tries := 0; tries < recoverTries; {
		value, sure, err := e.fetcher.Fetch(ctx, key, lost)
		if err != nil {
			return attune.Item{}, err
		}
		if value != nil {
			lost.Value = value
			return lost, nil
		}
		it, err := e.replica.Get(ctx, key, nil, false)
		missing, gone := repair.Missing(err)
		switch {
		case !missing:
			return it, err
		case it.Stored != lost.Stored:
			tries++ // it was written meanwhile
		case e.clock.now()-millis(lost.Version) < young.Milliseconds():
			// Those who were asked may be about to get it.
			select {
			case <-time.After(young / 16):
			case <-ctx.Done():
				return attune.Item{}, context.Cause(ctx)
			}
		case sure && gone:
			e.core.evict(key.Hash, it.Version)
			tries++
		case sure:
			return attune.Item{}, err // it may be in the store here
		default:
			if tries++; tries == recoverTries {
				return attune.Item{}, repair.ErrSilent // gossip will tell whether it is alive
			}
		}
		lost = it
	}
	return attune.Item{}, replica.ErrBusy
}

// young is for how long a version may be on its way to those who are asked for its
// bytes.
const young = 500 * time.Millisecond

// recoverTries is how often a key may change while its bytes are looked for.
const recoverTries = 5

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
