package replica

import (
	"context"
	"sync/atomic"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// Apply makes a stamped change take effect, if what it was decided on still
// holds and its version is newer than the key's: then applied is true. Applying
// a change again does nothing, and an older version never replaces a newer one.
//
// It decides nothing and waits for nothing. A [kvadapter.Memory] has the bytes
// when Apply returns, or err says why it would not take them; then the entry
// names bytes that do not exist, and the engine evicts that version. For any
// other backend the bytes are staged, and the caller must call [Replica.Settle]
// once for every change that was applied.
func (r *Replica) Apply(c *attune.Change) (applied bool, err error) {
	s := r.segment(c.Key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, i := s.find(c.Key.Hash)
	if !holds(c, e, attune.Version(r.floor.Load())) || e == nil && s.overtaken(c) {
		return false, nil
	}
	if ws := r.watches.Load(); ws != nil {
		r.tellChange(ws, c, e)
	}
	if c.Item.Deleted {
		if e != nil {
			r.drop(s, c, e, i)
		}
		if r.memory == nil && c.Key.Text != nil {
			s.put(c, r.gen)
		}
		return true, nil
	}

	moves := r.carries(&c.Item)
	now := r.now()
	keyLen := len(c.Key.Text)
	if e != nil {
		s.save(i)
		r.mortal(e, -1)
	}
	switch {
	case e == nil:
		e = s.insert(c.Key.Hash)
		r.items.Add(1)
		r.account(s)
	case moves:
		if r.dead(e, now) {
			s.expire(e)
		}
		s.bytes -= e.bytes()
		e.meta &^= metaFetched
	default:
		s.bytes -= e.bytes()
		keyLen = e.keyLen()
	}
	e.set(&c.Item, keyLen)
	e.use(now)
	r.mortal(e, 1)
	s.bytes += e.bytes()
	if !moves {
		return true, nil
	}
	s.stored++
	if r.memory == nil {
		s.put(c, r.gen)
		return true, nil
	}
	return true, r.memory.Put(context.Background(), c.Key, kvadapter.Record{Stamp: r.stamp(&c.Item), Value: c.Item.Value})
}

// holds reports whether c may be applied over e, which may be nil. A flushed
// entry is an absent one, except to a change that removes exactly its version.
func holds(c *attune.Change, e *entry, floor attune.Version) bool {
	if c.Item.Version <= floor {
		return false
	}
	if e == nil {
		return c.Prior == 0 || c.Prior == attune.AnyVersion
	}
	if c.Item.Version <= e.version {
		return false
	}
	switch c.Prior {
	case attune.AnyVersion:
		return true
	case e.version:
		return c.Item.Deleted || e.version > floor
	default:
		return c.Prior == 0 && e.version <= floor
	}
}

// drop removes an entry and, from memory in this process, its bytes.
func (r *Replica) drop(s *segment, c *attune.Change, e *entry, i uint32) {
	switch {
	case r.dead(e, r.now()):
		s.expire(e)
	case c.Key.Text == nil: // only the index's own doing lacks the text
		s.evicted++
		if e.meta&metaFetched == 0 {
			s.evictedUnfetched++
		}
	}
	s.bytes -= e.bytes()
	r.mortal(e, -1)
	s.remove(i)
	r.items.Add(-1)
	r.account(s)
	switch {
	case r.memory != nil:
		// Its Delete cannot fail: there is no server, and ctx never ends.
		_ = r.memory.Delete(context.Background(), c.Key)
	case c.Key.Text == nil: // no deletion is staged
		r.loosen(c.Key.Hash)
	}
}

// mortal counts an entry in or out, by, if it has an expiry.
func (r *Replica) mortal(e *entry, by int64) {
	if e.expires() != 0 {
		r.expiring.Add(by)
	}
}

// account brings the size of the index up to date after s grew or shrank.
func (r *Replica) account(s *segment) {
	if m := s.memory(); m != s.counted {
		r.index.Add(m - s.counted)
		s.counted = m
	}
}

// dead reports whether e is expired or flushed, for statistics and for choosing
// what goes first.
func (r *Replica) dead(e *entry, now uint64) bool {
	return r.expired(e, now) || uint64(e.version) <= r.floor.Load()
}

// Flush kills every item whose version is floor or older. Entries of the dead
// stay until [Replica.Dead] or a write meets them. The floor never sinks.
func (r *Replica) Flush(floor attune.Version) {
	raise(&r.floor, uint64(floor))
	if ws := r.watches.Load(); ws != nil {
		tell(ws, Event{Verb: VerbFlush, Version: floor, Time: int64(r.now()) + epoch})
	}
}

// raise makes a at least v.
func raise(a *atomic.Uint64, v uint64) {
	for {
		old := a.Load()
		if v <= old || a.CompareAndSwap(old, v) {
			return
		}
	}
}

// Floor is the version up to which items are dead, as Flush or Install left it.
func (r *Replica) Floor() attune.Version { return attune.Version(r.floor.Load()) }
