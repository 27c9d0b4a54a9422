package gossip

import (
	"context"
	"errors"
	"sync"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// lanes is how many ops of one Write wait for a backend at a time.
const lanes = 8

// builtSize is how long a built value may be without an allocation of its own.
const builtSize = 4 << 10

// scratch is memory for one op at a time.
type scratch struct {
	read  []byte // the value that a decision is made on
	built []byte // the value that a decision made
}

// Write decides ops and makes them take effect; res[i] answers ops[i]. Ops on
// one key are decided in the order given. Those on different keys are too if
// the backend is in this process; else up to eight of them wait for it together,
// and other clients may see them take effect in any order. A flush is ordered
// against everything.
//
// A Value of [kvadapter.Large] bytes or more that takes effect is handed over:
// the caller must never modify it again. Write returns after the last op; an op
// that ctx ends first has Status Failed and the cause of ctx.
func (e *Engine) Write(ctx context.Context, ops []attune.Op, res []attune.Result) {
	for start := 0; start < len(ops); {
		if ops[start].Verb == attune.Flush {
			if e.core != nil && e.core.skewed.Load() {
				// With a clock that is ahead it would kill what is written later, too.
				res[start] = attune.Result{Status: attune.Failed, Err: errSkewed}
				start++
				continue
			}
			e.flushAll(ops[start].Exptime)
			res[start] = attune.Result{Status: attune.Flushed}
			start++
			continue
		}
		end := start + 1
		for end < len(ops) && ops[end].Verb != attune.Flush {
			end++
		}
		e.run(ctx, ops[start:end], res[start:end])
		start = end
	}
}

// run does ops none of which is a flush.
func (e *Engine) run(ctx context.Context, ops []attune.Op, res []attune.Result) {
	if !e.waits(ops) || len(ops) == 1 {
		e.lane(ctx, ops, res, 0, 1)
		return
	}
	// A key is always in the same lane, so its ops keep their order.
	var wait sync.WaitGroup
	for n := range uint64(lanes) {
		wait.Go(func() { e.lane(ctx, ops, res, n, lanes) })
	}
	wait.Wait()
}

// lane does those of ops whose keys belong to lane n of m.
func (e *Engine) lane(ctx context.Context, ops []attune.Op, res []attune.Result, n, m uint64) {
	var s *scratch
	var now int64
	for i := range ops {
		if ops[i].Key.Hash[1]%m != n {
			continue
		}
		if s == nil {
			s = e.scratches.Get().(*scratch)
		}
		if now == 0 || m > 1 { // those in one lane of one wait for nothing
			now = e.Now()
		}
		e.do(ctx, &ops[i], &res[i], s, now)
	}
	if s != nil {
		e.scratches.Put(s)
	}
}

// do decides one op until the decision holds when it is applied. Every failure
// to apply means that another op on the key succeeded, so this ends.
func (e *Engine) do(ctx context.Context, op *attune.Op, res *attune.Result, s *scratch, now int64) {
	bump := op.Verb == attune.Touch || op.Verb == attune.Get && !op.Mode.Has(attune.NoBump)
	if e.core != nil && e.core.skewed.Load() {
		*res = attune.Result{Status: attune.Failed, Err: errSkewed}
		return
	}
	if e.o.Full != nil && op.Verb != attune.Delete {
		if err := e.o.Full(); err != nil {
			*res = attune.Result{Status: attune.Failed, Err: err}
			return
		}
	}
	for ; ; now = e.Now() {
		if ctx.Err() != nil {
			// Not begun is better than begun and given up: that costs the item.
			*res = attune.Result{Status: attune.Failed, Err: context.Cause(ctx)}
			return
		}
		var cur attune.Item
		if !op.Blind() {
			var err error
			if cur, err = e.read(ctx, op, bump, s); err != nil {
				*res = attune.Result{Status: attune.Failed, Err: err}
				return
			}
			bump = false // decided again, it is still one use
		}
		built := s.built
		if op.Mode.Has(attune.WantValue) {
			built = nil // the result may show it, long after s is used again
		}
		var c attune.Change
		c, *res = op.Decide(&cur, now, built)
		if c.None() {
			return
		}
		if most := e.maxItem.Load(); most > 0 && int64(c.Item.Size) > most {
			// Only an append can grow past what a client may send; memcached says
			// no more than this, either.
			*res = attune.Result{Status: attune.NotStored}
			return
		}
		if e.apply(ctx, op, &c, res, now) {
			if op.Verb == attune.Get && res.Absent && !op.Mode.Has(attune.NoBump) {
				e.replica.Peek(op.Key, true) // what a read creates has been read
			}
			return
		}
	}
}

// read gets what op is decided on.
func (e *Engine) read(ctx context.Context, op *attune.Op, bump bool, s *scratch) (attune.Item, error) {
	if !op.NeedsValue() {
		return e.replica.Peek(op.Key, bump), nil
	}
	keep := op.Mode.Has(attune.WantValue) // the value outlives the op, so s will not do
	buf := s.read
	if keep {
		buf = nil
	}
	it, err := e.replica.Get(ctx, op.Key, buf, bump)
	if missing, gone := repair.Missing(err); gone || missing && e.core != nil {
		key := attune.Key{Text: append([]byte(nil), op.Key.Text...), Hash: op.Key.Hash}
		return e.Recover(ctx, key, it)
	}
	if c := cap(it.Value); !keep && c > cap(s.read) && c < kvadapter.Large {
		s.read = it.Value
	}
	return it, err
}

// Recover returns the bytes of an item that the backend has lost, as a peer has
// them; or the item that replaced it; or the zero Item, after exactly that version
// was removed, as nobody has its bytes; or, while a member is away that may have them,
// an Item that has expired, and nothing was removed. [repair.ErrSilent]: one that is
// there does not say, and the Item is such a one.
func (e *Engine) Recover(ctx context.Context, key attune.Key, lost attune.Item) (attune.Item, error) {
	if e.core != nil {
		return e.recover(ctx, key, lost)
	}
	for {
		e.evict(key.Hash, lost.Version, e.Now())
		it, err := e.replica.Get(ctx, key, nil, false)
		if !errors.Is(err, replica.ErrGone) {
			return it, err
		}
		lost = it
	}
}

// commit gives a change its version and applies it.
func (e *Engine) commit(c *attune.Change, now int64) (applied bool, err error) {
	if e.core != nil {
		applied, err = e.core.commit(c, now)
		if !applied && err == errBound {
			if err = e.core.renew(); err == nil {
				applied, err = e.core.commit(c, now)
			}
		}
		return applied, err
	}
	c.Stamp(e.clock.next(now, c.Prior))
	return e.replica.Apply(c)
}

// apply makes a change take effect and finishes its result. It reports
// false if the change must be decided again.
func (e *Engine) apply(ctx context.Context, op *attune.Op, c *attune.Change, res *attune.Result, now int64) bool {
	h := c.Key.Hash
	stores := !c.Item.Deleted && c.Item.Stored == 0 // new bytes, not stamped yet
	if stores && !e.replica.Fits(len(c.Key.Text)+c.Item.Size) {
		if op.Verb == attune.Set {
			// What it was to replace must not be read any more, as in memcached.
			e.evict(h, attune.AnyVersion, now)
		}
		*res = attune.Result{Status: attune.OutOfMemory}
		return true
	}
	if stores && e.core != nil {
		// Alone, Settle tells.
		if err := e.replica.Takes(c.Key, c.Item.Size); err != nil {
			if op.Verb == attune.Set && errors.Is(err, kvadapter.ErrTooLarge) {
				e.evict(h, attune.AnyVersion, now)
			}
			*res = failure(err)
			return true
		}
	}
	if stores && e.core != nil && e.stage.Full() {
		*res = attune.Result{Status: attune.Failed, Err: repair.ErrBehind}
		return true
	}
	applied, err := e.commit(c, now)
	if !applied && err != nil {
		*res = failure(err)
		return true
	}
	if !applied {
		// It was decided on what is no more. A blind change has only lost to a
		// newer version, but did not just precede it: that one may come of an add
		// or a cas, which a set before it would have refused. So it goes again,
		// after it.
		return false
	}
	switch {
	case err != nil:
	case e.core == nil:
		err = e.replica.Settle(ctx, c)
	case !e.core.logged():
		// The others have it soon, so it need not wait for the store here, and does not
		// fail with it.
		e.stage.Add(c)
	}
	switch {
	case c.Item.Deleted:
		// Gone from the index is gone, whatever the backend keeps.
	case err != nil:
		e.evict(h, c.Item.Version, now)
		*res = failure(err)
		return true
	case stores && !e.makeRoom(h, now):
		e.evict(h, c.Item.Version, now)
		*res = attune.Result{Status: attune.OutOfMemory}
		return true
	}
	res.Stamped(c)
	return true
}

// failure is the result of a write whose bytes the backend does not have.
func failure(err error) attune.Result {
	switch {
	case errors.Is(err, kvadapter.ErrTooLarge):
		return attune.Result{Status: attune.TooLarge}
	case errors.Is(err, kvadapter.ErrFull):
		return attune.Result{Status: attune.OutOfMemory}
	default:
		return attune.Result{Status: attune.Failed, Err: err}
	}
}
