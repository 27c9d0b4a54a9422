package gossip

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"
	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

const (
	// sweepEvery is how often dead items are looked for, a share of the index
	// each time such that a whole round takes sweepRound.
	sweepEvery = 100 * time.Millisecond
	sweepRound = 10 * time.Second
	// sweepMin entries are looked at even in a small index; sweepBatch bounds
	// the removals held at a time.
	sweepMin   = 64
	sweepBatch = 1024
	// sweepMax bounds the time spent per tick when much is dead.
	sweepMax = sweepEvery / 5
)

// Options say what an Engine works on.
type Options struct {
	// OpenReplica makes the shard's copy on this node, with what it is given and a
	// backend. The engine must be the only one to apply changes to it, and the caller
	// closes its backend after the engine.
	OpenReplica func(replica.Options) (*replica.Replica, error)
	// Node is this controller's name, unique in its cluster.
	Node string
	// MaxItem is the largest value that may come of an append, in bytes; 0 is no
	// limit.
	MaxItem int

	// OpenCluster opens the peer port, for a member that goes by id; nil for a
	// controller alone, to which the rest means nothing.
	OpenCluster func(id uint64) (*cluster.Cluster, error)
	// Causal has a change take effect nowhere before what it depends on.
	Causal bool
	// WriteAcks is how many members, this one included, must have a change before
	// it is acknowledged; All for every one that is alive.
	WriteAcks int
	// MaxSkew is how far this clock may be from the others'.
	MaxSkew time.Duration
	// TombstoneMaxAge is how long an absent member keeps the others from forgetting
	// what was deleted.
	TombstoneMaxAge time.Duration
	// RepairRate is how many bytes a second are fetched for a store that lacks them,
	// 0 for no limit.
	RepairRate int64
	// DataDir keeps the journal, as Sync says; empty for none: a controller that
	// restarts is a new member.
	DataDir string
	Sync    disk.Sync
	// Full is why the disks have no room for more, if they have not; nil: never.
	Full func() error
	// Timeout is why an op failed that waited for a backend until its deadline.
	Timeout error
	// Trace begins to trace what another member asks for, as part of its span, or
	// returns nil; nil: nothing is traced for others.
	Trace func(attune.SpanContext, []attune.Op) *attune.Trace
	Log   *zap.Logger
}

// All is a WriteAcks of every member that is alive.
const All = math.MaxInt

// Engine answers for one replica. Its methods may be called concurrently.
type Engine struct {
	o       Options
	replica *replica.Replica
	maxItem atomic.Int64
	clock   *clock
	core    *core         // nil alone
	ready   chan struct{} // closed when the level is first served
	stop    chan struct{} // closed by Close
	running sync.WaitGroup

	flush struct {
		sync.Mutex               // guards at; held while a flush takes effect
		at         int64         // unix milliseconds of the pending flush, 0 if none
		changed    chan struct{} // tells the sweeper, who waits for that moment
	}
	over      bool      // the sweeper found too much the last time
	scratches sync.Pool // of *scratch
	closing   sync.Once

	members // nothing of it is used alone
}

// Open starts an Engine. Alone, it is ready at once; else when Open has returned,
// this controller knows its cluster, and it is ready when it has what the others
// have. Ending ctx gives up.
func Open(ctx context.Context, o Options) (*Engine, error) {
	e := &Engine{
		o: o, ready: make(chan struct{}), stop: make(chan struct{}),
	}
	e.maxItem.Store(int64(o.MaxItem))
	e.flush.changed = make(chan struct{}, 1)
	e.scratches.New = func() any { return &scratch{built: make([]byte, 0, builtSize)} }
	start := time.Now()
	mono := func() time.Duration { return time.Since(start) }
	if o.OpenCluster != nil {
		if err := e.enter(ctx, start, mono); err != nil {
			return nil, err
		}
	} else {
		var err error
		if e.replica, err = o.OpenReplica(replica.Options{Gen: rand.Uint32(), Seed: rand.Uint64()}); err != nil {
			return nil, err
		}
		e.clock = newClock(xxh3.HashString(o.Node), start.UnixMilli(), mono)
		close(e.ready)
	}
	e.running.Go(e.sweep)
	return e, nil
}

// Tuning is what of the Options may change while the engine runs.
type Tuning struct {
	MaxItem                  int
	RepairRate               int64
	WriteAcks                int
	MaxSkew, TombstoneMaxAge time.Duration
}

// Tune goes over to t. Who waits for others already is answered by what holds now.
func (e *Engine) Tune(t Tuning) {
	e.maxItem.Store(int64(t.MaxItem))
	if e.core == nil {
		return
	}
	e.filler.SetRate(t.RepairRate)
	k := e.core
	k.mu.Lock()
	defer k.mu.Unlock()
	k.maxSkew, k.cut.maxAge = t.MaxSkew, t.TombstoneMaxAge
	k.acks.want.Store(int64(t.WriteAcks))
	k.acks.heard(k)
}

// Now is the clock that expiry goes by, in unix milliseconds: the wall clock at
// Open plus the monotonic time since, and in a cluster slowly brought nearer to
// the others'.
func (e *Engine) Now() int64 { return e.clock.now() }

// Ready is closed when clients may be answered.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Submit is Write for a Call: c.Res answers c.Ops. True: it has; false: c.Done will
// be called when it does.
func (e *Engine) Submit(c *attune.Call) bool {
	if !e.behind() && !e.waits(c.Ops) {
		return e.submit(c)
	}
	e.running.Go(func() {
		if !e.await(c) || e.submit(c) {
			c.Done()
		}
	})
	return false
}

// behind reports whether a write should wait for a store, here or at another
// controller: each gets all that is written, and who only writes to a fast one must not
// leave no room for those who write to a slow one.
func (e *Engine) behind() bool {
	return e.core != nil && (e.stage.Behind() || e.core.crowded.Load())
}

// await waits until the stores have taken enough of what was written before. It reports
// false if c is over with that.
func (e *Engine) await(c *attune.Call) bool {
	if !e.behind() {
		return true
	}
	ctx, cancel := e.bound(c)
	defer cancel()
	err := e.stage.Await(ctx, e.core.crowded.Load)
	if c.Trace != nil {
		c.Trace.Ended("store room", "waited for a store that is behind, here or at another controller")
	}
	if err != nil {
		c.Err = nil
		for i := range c.Ops {
			c.Res[i] = attune.Result{Status: attune.Failed, Err: err}
		}
	}
	return err == nil
}

func (e *Engine) submit(c *attune.Call) bool {
	if e.core != nil {
		return e.homes.write(c)
	}
	ctx, cancel := e.bound(c)
	e.Write(ctx, c.Ops, c.Res)
	cancel()
	if c.Trace != nil {
		c.Trace.Ended("decide", "decided and applied here")
	}
	return true
}

// waits reports whether ops wait for a backend outside this process: to be decided on
// bytes that it has; or alone, where nobody else will have what is acknowledged, to be
// sure of their own.
func (e *Engine) waits(ops []attune.Op) bool {
	if e.replica.Immediate() {
		return false
	}
	for i := range ops {
		if ops[i].NeedsValue() || e.core == nil && ops[i].Verb != attune.Flush {
			return true
		}
	}
	return false
}

// Barrier answers at once: any replica may answer any read.
func (e *Engine) Barrier(c *attune.Call) bool {
	c.Err = nil
	return true
}

// bound gives c's context c's deadline, if anything may last that long: a context
// of one's own costs more than an op on memory.
func (e *Engine) bound(c *attune.Call) (context.Context, context.CancelFunc) {
	if e.replica.Immediate() || c.Deadline.IsZero() {
		return c.Ctx, func() {}
	}
	return context.WithDeadlineCause(c.Ctx, c.Deadline, e.o.Timeout)
}

// Find answers in c.Res[0].Item and c.Err what Recover returns, for a read.
func (e *Engine) Find(c *attune.Call, key attune.Key, lost attune.Item) bool {
	if e.core == nil && e.replica.Immediate() {
		c.Res[0].Item, c.Err = e.Recover(c.Ctx, key, lost)
		return true
	}
	key.Text = append([]byte(nil), key.Text...)
	e.running.Go(func() { // others are asked, or the backend is once more
		ctx, cancel := context.WithCancelCause(c.Ctx)
		defer cancel(nil)
		if e.core != nil {
			defer context.AfterFunc(e.ctx, func() { cancel(errClosed) })()
		}
		if !c.Deadline.IsZero() {
			var end context.CancelFunc
			ctx, end = context.WithDeadlineCause(ctx, c.Deadline, e.o.Timeout)
			defer end()
		}
		c.Res[0].Item, c.Err = e.Recover(ctx, key, lost)
		if errors.Is(c.Err, repair.ErrSilent) && e.replica.Forgets() {
			c.Err = nil // to one who only looks it is a miss
		}
		c.Done()
	})
	return false
}

// Close leaves the cluster, stops what Open started and waits for it. Calls of
// Write may still be under way, and finish or fail; a flush that is pending never
// comes.
func (e *Engine) Close() error {
	e.closing.Do(func() {
		if e.core != nil {
			e.leave()
			e.cancel(errClosed)
			e.stage.GiveUp()
		}
		close(e.stop)
	})
	e.running.Wait()
	if e.core != nil {
		return e.left()
	}
	return nil
}

// sweep frees what expired or was flushed, and carries out delayed flushes.
func (e *Engine) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	var dead []attune.Change
	for {
		select {
		case <-e.stop:
			return
		case <-tick.C:
			dead = e.sweepTick(dead)
		case <-e.flush.changed:
		case <-alarm.C:
		}
		if wait := e.flushDue(); wait > 0 {
			alarm.Reset(wait)
		}
	}
}

// sweepTick looks at this tick's share of the index, and goes on while more
// than a tenth of what it meets is dead and time allows. buf is kept for the
// next tick.
func (e *Engine) sweepTick(buf []attune.Change) []attune.Change {
	if e.core != nil {
		e.trim()
	}
	share := max(e.replica.Len()/int(sweepRound/sweepEvery), sweepMin)
	began := time.Now()
	for share > 0 && time.Since(began) < sweepMax {
		n := min(share, sweepBatch)
		share -= n
		now := e.Now()
		met := 0
		if e.core != nil {
			// Its entry stays: to the others it is one that everybody knows is dead.
			met = e.replica.Free(now, n)
		} else {
			buf = e.replica.Dead(now, n, buf[:0])
			met = len(buf)
			for i := range buf {
				e.remove(&buf[i], now)
			}
		}
		if share == 0 && met > n/10 {
			share = sweepBatch
		}
	}
	return buf
}

// remove applies the removal of an item that the replica proposed.
func (e *Engine) remove(c *attune.Change, now int64) {
	if e.core != nil {
		e.core.evict(c.Key.Hash, c.Prior)
		return
	}
	c.Stamp(e.clock.next(now, c.Prior))
	// It carries no bytes, so there is no error; an item that was written
	// meanwhile is not removed, and that is right.
	_, _ = e.replica.Apply(c)
}

// flushAll kills every item written before exptime comes, at once if that is
// not in the future. It replaces a flush that is still pending.
func (e *Engine) flushAll(exptime int64) {
	now := e.Now()
	at := attune.Deadline(exptime, now)
	e.flush.Lock()
	defer e.flush.Unlock()
	if at > now {
		e.flush.at = at
		select {
		case e.flush.changed <- struct{}{}:
		default:
		}
		return
	}
	e.flush.at = 0
	e.flushNowLocked(now)
}

// flushDue carries out the pending flush if its moment has come, else returns
// how long that is off: 0 if none is pending.
func (e *Engine) flushDue() time.Duration {
	e.flush.Lock()
	defer e.flush.Unlock()
	if e.flush.at == 0 {
		return 0
	}
	now := e.Now()
	if wait := e.flush.at - now; wait > 0 {
		return time.Duration(wait) * time.Millisecond
	}
	e.flush.at = 0
	e.flushNowLocked(now)
	return 0
}

// flushNowLocked raises the replica's floor to now, twice. After the first time
// a change decided on an item below that floor is refused. A touch, though, may
// have been stamped above it and applied just before it was raised, and so have
// carried a dead item over; the second floor, stamped later, kills it. What it
// kills besides was written while the flush was under way.
func (e *Engine) flushNowLocked(now int64) {
	if e.core != nil {
		// Its changes have one order: once is enough.
		if err := e.core.flushAll(now); err == errBound {
			if err = e.core.renew(); err == nil {
				err = e.core.flushAll(now)
			}
			if err != nil {
				e.die(err)
			}
		}
		return
	}
	for range 2 {
		e.replica.Flush(e.clock.next(now, 0))
	}
}
