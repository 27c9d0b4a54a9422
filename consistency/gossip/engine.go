package gossip

import (
	"sync"
	"time"

	"github.com/attunekv/attune"
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
	// Replica is the shard's copy on this node. The engine must be the only one
	// to apply changes to it, and the caller closes its backend after the engine.
	Replica *replica.Replica
	// Node is this controller's name, unique in its cluster: ten bits of its
	// hash are in every version.
	Node string
	// MaxItem is the largest value that may come of an append, in bytes; 0 is no
	// limit.
	MaxItem int
}

// Engine answers for one replica. Its methods may be called concurrently.
type Engine struct {
	replica *replica.Replica
	maxItem int
	clock   *clock
	ready   chan struct{} // closed by Open
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed when the sweeper has returned

	flush struct {
		sync.Mutex               // guards at; held while a flush takes effect
		at         int64         // unix milliseconds of the pending flush, 0 if none
		changed    chan struct{} // tells the sweeper, who waits for that moment
	}
	scratches sync.Pool // of *scratch
	closing   sync.Once
}

// Open starts an Engine, which is ready at once.
func Open(o Options) *Engine {
	e := &Engine{
		replica: o.Replica,
		maxItem: o.MaxItem,
		clock:   newClock(o.Node),
		ready:   make(chan struct{}),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	e.flush.changed = make(chan struct{}, 1)
	e.scratches.New = func() any { return &scratch{built: make([]byte, 0, builtSize)} }
	close(e.ready)
	go e.sweep()
	return e
}

// Now is the clock that expiry goes by, in unix milliseconds: the wall clock at
// Open plus the monotonic time since.
func (e *Engine) Now() int64 { return e.clock.now() }

// Ready is closed: a node alone has nobody to wait for.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Close stops the sweeper and waits for it. Calls of Write may still be under
// way, and finish; a flush that is pending never comes.
func (e *Engine) Close() error {
	e.closing.Do(func() { close(e.stop) })
	<-e.done
	return nil
}

// sweep frees what expired or was flushed, and carries out delayed flushes.
func (e *Engine) sweep() {
	defer close(e.done)
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
	share := max(e.replica.Len()/int(sweepRound/sweepEvery), sweepMin)
	began := time.Now()
	for share > 0 && time.Since(began) < sweepMax {
		n := min(share, sweepBatch)
		share -= n
		now := e.Now()
		buf = e.replica.Dead(now, n, buf[:0])
		for i := range buf {
			e.remove(&buf[i], now)
		}
		if share == 0 && len(buf) > n/10 {
			share = sweepBatch
		}
	}
	return buf
}

// remove stamps and applies the removal of an item that the replica proposed.
func (e *Engine) remove(c *attune.Change, now int64) {
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
	for range 2 {
		e.replica.Flush(e.clock.next(now, 0))
	}
}
