package replica

import (
	"context"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// Mark sums up what is replicated of a key in one word: the version of its
// entry, and in the highest bit, which versions do not reach before 2089,
// whether exactly that version was evicted. Zero is no entry. Of two marks of a
// key the one that is Newer wins on every replica.
type Mark uint64

const markEvicted Mark = 1 << 63

// MarkOf is the mark of an entry.
func MarkOf(v attune.Version, evicted bool) Mark {
	if evicted {
		return Mark(v) | markEvicted
	}
	return Mark(v)
}

// Version is the version of the entry, or of what was evicted.
func (m Mark) Version() attune.Version { return attune.Version(m &^ markEvicted) }

// Evicted reports whether it is the mark of a version that was evicted.
func (m Mark) Evicted() bool { return m&markEvicted != 0 }

// Newer reports whether m wins over o: by version, and of one version what says
// that it is gone.
func (m Mark) Newer(o Mark) bool {
	return bits.RotateLeft64(uint64(m), 1) > bits.RotateLeft64(uint64(o), 1)
}

// mark is that of e, zero if there is no such entry or a flush killed it.
func (e *entry) mark(floor attune.Version) Mark {
	if e == nil || e.version <= floor {
		return 0
	}
	return MarkOf(e.version, e.dead() && e.flags == evicted)
}

// key64 is what a peer calls a key by: the byte that picks its segment here, and
// as much of the word that picks the bucket.
func key64(h attune.KeyHash) uint64 { return h[0]&(0xff<<56) | h[1]&(1<<56-1) }

// evicts reports whether c is the eviction of exactly one version: no write of
// its own, so wherever that version is the newest, and there alone, it is gone.
func evicts(c *attune.Change) bool { return c.Item.Deleted && c.Item.Version == c.Prior }

// eviction is the change that evicts exactly e's version.
func eviction(e *entry) attune.Change {
	return attune.Change{
		Key:   attune.Key{Hash: e.hash},
		Item:  attune.Item{Deleted: true, Version: e.version},
		Prior: e.version,
	}
}

// Merge is Apply for an engine whose replicas see changes in different orders,
// and needs [Options.Tombstones]. Of two changes of a key the one with the newer
// mark wins; once all have all of them, however often, all are equal. A removed
// item leaves an entry with the version of its removal; c.Item.Deleted with
// c.Item.Version == c.Prior is the eviction of that version, and leaves it
// marked as dead. Nothing that a flush or the cut of [Replica.SetCollected]
// killed comes back.
//
// With guard, for changes decided here, also c.Prior must hold, as for Apply: a
// dead entry counts as none, an expired one by its version, and an eviction is
// for a live version only. A change that keeps bytes which were freed since is
// refused too: by now, it would be decided differently. Without guard, for
// changes from elsewhere, Prior says no more than whether it is an eviction.
//
// at is how long after [Options.Start] that is, for recency and statistics: who has
// many changes looks at the clock once.
//
// was and is are the entry's mark before and after, equal if nothing was
// applied; an entry that a flush killed is none.
//
// An item without a Value whose bytes are not here either (see [Held.Change])
// is taken in all the same: reading it is [ErrGone], and [Replica.Restore] brings
// the bytes. As to bytes, err and Settle all is as with Apply.
func (r *Replica) Merge(c *attune.Change, guard bool, at time.Duration) (was, is Mark, applied bool, err error) {
	s := r.segment(c.Key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.merge(s, c, guard, r.after(at))
}

// MergeAll merges changes from elsewhere at one moment: no reader ever sees some
// of them and not others. out is told of each what Merge returns, in order, while
// everything stands still: it must not call r.
func (r *Replica) MergeAll(cs []attune.Change, out func(i int, was, is Mark, applied bool, err error)) {
	now := r.now()
	r.lockAll()
	defer r.unlockAll()
	for i := range cs {
		was, is, applied, err := r.merge(r.segment(cs[i].Key.Hash), &cs[i], false, now)
		out(i, was, is, applied, err)
	}
}

func (r *Replica) merge(s *segment, c *attune.Change, guard bool, now uint64) (was, is Mark, applied bool, err error) {
	e, i := s.find(c.Key.Hash)
	was = e.mark(r.Floor())
	is = MarkOf(c.Item.Version, evicts(c))
	if !r.wins(c, is, e, was, guard) || e == nil && s.overtaken(c) {
		return was, was, false, nil
	}
	if ws := r.watches.Load(); ws != nil {
		r.tellChange(ws, c, e)
	}

	carries := !c.Item.Deleted && r.carries(&c.Item)
	had := e != nil && !e.bare() // bytes
	keeps := had && !c.Item.Deleted && !carries && e.stored == c.Item.Stored && int(e.size) == c.Item.Size
	keyLen := len(c.Key.Text)
	added, bare := e == nil, false
	switch {
	case added:
		e = s.insert(c.Key.Hash)
		r.account(s)
	default:
		s.save(i)
		bare = e.bare()
		r.weigh(s, e, -1)
		if had && !keeps {
			s.end(e, r.dead(e, now), is.Evicted())
		}
		if c.Key.Text == nil {
			keyLen = e.keyLen()
		}
	}

	if c.Item.Deleted {
		e.bury(is)
	} else {
		if !keeps {
			e.meta &^= metaFetched
		}
		e.set(&c.Item, keyLen)
		e.use(now)
	}
	r.weigh(s, e, 1)
	switch is := e.bare(); {
	case added:
		r.number(is).Add(1)
	case is != bare: // an overwritten item leaves alone what all cores count in
		r.number(bare).Add(-1)
		r.number(is).Add(1)
	}

	switch {
	case carries:
		s.stored++
		if r.memory == nil {
			s.put(c, r.gen)
			break
		}
		err = r.memory.Put(context.Background(), c.Key, kvadapter.Record{Stamp: r.stamp(&c.Item), Value: c.Item.Value})
	case r.memory == nil:
		if r.stages(c) {
			s.put(c, r.gen)
		} else if had && !keeps {
			r.loosen(c.Key.Hash)
		}
	case had && !keeps:
		// As in drop, it cannot fail.
		_ = r.memory.Delete(context.Background(), c.Key)
	}
	return was, is, true, err
}

// wins reports whether c, whose mark is to, may be merged over e, whose mark is
// was: 0 for one that counts as none.
func (r *Replica) wins(c *attune.Change, to Mark, e *entry, was Mark, guard bool) bool {
	v, cut := c.Item.Version, attune.Version(r.collected.Load())
	switch {
	case v <= r.Floor():
		return false
	case v <= cut && (was == 0 || e.collectable(cut)):
		return false // whether or not the entry was dropped already
	case was == 0:
		return !guard || c.Prior == 0 || c.Prior == attune.AnyVersion
	case !to.Newer(was):
		return false
	case !guard:
		return true
	}
	switch c.Prior {
	case attune.AnyVersion:
		return true
	case 0:
		return e.dead()
	case e.version:
		return !e.dead() && (!e.bare() || c.Item.Deleted || r.carries(&c.Item))
	default:
		return false
	}
}

// count counts an entry in or out, by.
func (r *Replica) count(s *segment, e *entry, by int64) {
	r.weigh(s, e, by)
	r.number(e.bare()).Add(by)
}

// weigh is count without how many there are.
func (r *Replica) weigh(s *segment, e *entry, by int64) {
	s.bytes += by * e.bytes()
	r.mortal(e, by)
}

// number is how many entries there are, with or without bytes.
func (r *Replica) number(bare bool) *atomic.Int64 {
	if bare {
		return &r.bare
	}
	return &r.items
}

// end counts, for statistics, an item whose bytes go.
func (c *counters) end(e *entry, dead, evicted bool) {
	switch {
	case dead:
		c.expire(e)
	case evicted:
		c.evicted++
		if e.meta&metaFetched == 0 {
			c.evictedUnfetched++
		}
	}
}

// MarkOf is the mark of a key's entry, dead or not; 0 if there is none.
func (r *Replica) MarkOf(h attune.KeyHash) Mark {
	s := r.segment(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, _ := s.find(h)
	return e.mark(r.Floor())
}

// Each calls fn for every entry of one of the [Segments] parts of the index,
// dead ones included, while that part stands still: fn must not call r. Entries
// that a flush killed are none.
func (r *Replica) Each(segment int, fn func(h attune.KeyHash, m Mark)) {
	s := &r.segs[segment]
	s.mu.Lock()
	defer s.mu.Unlock()
	floor := r.Floor()
	for i := range s.n {
		e := s.at(i)
		if m := e.mark(floor); m != 0 {
			fn(e.hash, m)
		}
	}
}

// Held is an entry as it goes to a peer.
type Held struct {
	Key  attune.Key  // without a Text if the backend does not tell, or has no bytes
	Item attune.Item // Deleted if it is dead; without a Value if that is not at hand
	Mark Mark
}

// Change is what makes a peer that merges it have the entry, too.
func (h Held) Change() attune.Change {
	c := attune.Change{Key: h.Key, Item: h.Item, Prior: attune.AnyVersion}
	if h.Mark.Evicted() {
		c.Prior = h.Item.Version
	}
	return c
}

// Fetch calls fn for each entry whose hash goes by key: nearly always one, or
// none. Text and Value come with it only from a [kvadapter.Loader]. They are put
// in buf, growing it if they must, and valid until fn returns; a Value of
// [kvadapter.Large] or more is shared and must not be modified. fn must not call
// r. Fetch returns buf, for the next call.
//
// key is of h[0] the highest byte, and of h[1] all others.
func (r *Replica) Fetch(key uint64, buf []byte, fn func(h Held)) []byte {
	s := &r.segs[key>>56]
	loader, _ := r.memory.(kvadapter.Loader)
	s.mu.Lock()
	defer s.mu.Unlock()
	floor := r.Floor()
	for link := s.heads[s.bucket(attune.KeyHash{0, key})]; link != 0; {
		e := s.at(link - 1)
		link = e.next
		m := e.mark(floor)
		if m == 0 || key64(e.hash) != key {
			continue
		}
		held := Held{Key: attune.Key{Hash: e.hash}, Mark: m}
		if e.dead() {
			held.Item = attune.Item{Deleted: true, Version: e.version}
			fn(held)
			continue
		}
		held.Item = e.full()
		held.Item.Fetched, held.Item.Accessed = false, 0
		if loader != nil && !e.bare() {
			text, rec, ok := loader.Load(e.hash, buf)
			buf = text[:0]
			if ok && r.wrote(&held.Item, &rec) {
				held.Key.Text, held.Item.Value = text, notNil(rec.Value)
			}
		}
		fn(held)
	}
	return buf
}
