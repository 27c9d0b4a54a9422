package replica

import (
	"math/rand/v2"
	"sync"
	"unsafe"

	"github.com/attunekv/attune"
)

const (
	// samples is how many entries Victim compares. On zipf reads the hit rate then
	// is 0.1 points below exact LRU, without a list that every read must relink.
	samples = 8
	// sampleReach is how many entries Victim looks at, where some are of the dead,
	// until one is a sample.
	sampleReach = 32
	// sweepChunk is how many entries Dead looks at per locking.
	sweepChunk = 512
)

// pass is how far a round over the index has come.
type pass struct {
	sync.Mutex
	segment uint32
	pos     uint32 // entries at and above it were looked at in this round
}

// Resize sets Options.MemoryLimit and HotCache anew. Over a smaller limit, the engine
// evicts as ever; a smaller cache lets go at once. Calls must not overlap.
func (r *Replica) Resize(memoryLimit, hotCache int64) {
	r.limit.Store(memoryLimit)
	switch h := r.hot.Load(); {
	case r.memory != nil: // every value is at hand
	case h == nil || hotCache <= 0:
		r.hot.Store(newHot(hotCache))
	default:
		h.resize(hotCache)
	}
}

// Over reports whether index and bytes together exceed the memory limit. Entries of
// the dead do not count: no eviction would make room by adding one, and their number
// has a bound of its own.
func (r *Replica) Over() bool {
	limit := r.limit.Load()
	return limit > 0 && r.usage() > limit
}

// Excess is by how many bytes they exceed it, negative if they do not. Without a
// limit it means nothing.
func (r *Replica) Excess() int64 { return r.usage() - r.limit.Load() }

func (r *Replica) usage() int64 {
	n := r.index.Load() - r.bare.Load()*int64(unsafe.Sizeof(entry{}))
	if r.memory != nil {
		n += r.memory.Used()
	}
	return n
}

// Fits reports whether an item of n bytes, key and value, could be kept if
// everything else were evicted. Engines ask before they evict everything else.
func (r *Replica) Fits(n int) bool {
	limit := r.limit.Load()
	return limit == 0 || r.memory == nil || int64(n) <= limit
}

// Takes says whether the backend would take a value of size bytes, before it is
// decided that it will. Errors: those of [kvadapter.Bounded].
func (r *Replica) Takes(key attune.Key, size int) error {
	if r.bounded == nil {
		return nil
	}
	return r.bounded.Takes(key, size)
}

// Victim proposes the removal of one item: a dead one if it meets one, else the
// least recently used of a random few, or of all if there are few; but not that of
// the key spared, for which room is being made. ok is false when there is none.
// The change names the version it saw, so an item that was written meanwhile
// stays. With tombstones it is an eviction as [Replica.Merge] has it, not to be
// stamped, and the bytes of dead items that were met are freed besides.
func (r *Replica) Victim(spare attune.KeyHash) (c attune.Change, ok bool) {
	now := r.now()
	if r.tombs {
		return r.prey(spare, now)
	}
	best := ^uint64(0)
	look := func(e *entry) {
		if e.hash == spare {
			return
		}
		used := e.usedAt()
		if r.dead(e, now) {
			used = 0
		}
		if used < best {
			best, c, ok = used, removal(e), true
		}
	}
	// Each from a segment of its own: those of one segment are compared with each
	// other over and over, so where few old items came lately, used ones would go.
	sampled := r.Len() >= segments
	if sampled {
		for range samples {
			s := &r.segs[rand.Uint32N(segments)]
			s.mu.Lock()
			if s.n > 0 {
				look(s.at(rand.Uint32N(s.n)))
			}
			s.mu.Unlock()
		}
		sampled = ok
	}
	for i := 0; !sampled && i < segments; i++ {
		s := &r.segs[i]
		s.mu.Lock()
		for j := range s.n {
			look(s.at(j))
		}
		s.mu.Unlock()
	}
	return c, ok
}

// prey is Victim where most entries may be of the dead.
func (r *Replica) prey(spare attune.KeyHash, now uint64) (c attune.Change, ok bool) {
	best := ^uint64(0)
	look := func(s *segment, e *entry) (live bool) {
		if e.bare() || e.hash == spare {
			return false
		}
		if e.mark(r.Floor()) == 0 || e.expired(r.freed.Load()) {
			r.free(s, e) // nobody need be told
			return false
		}
		used := e.usedAt()
		if r.dead(e, now) {
			used = 0
		}
		if used < best {
			best, c, ok = used, eviction(e), true
		}
		return true
	}
	live := r.items.Load()
	few := live < segments && live+r.bare.Load() < segments*sampleReach
	if !few {
		for range samples {
			s := &r.segs[rand.Uint32N(segments)]
			s.mu.Lock()
			if s.n > 0 {
				for i, left := rand.Uint32N(s.n), min(s.n, sampleReach); left > 0 && !look(s, s.at(i)); left-- {
					i = (i + 1) % s.n
				}
			}
			s.mu.Unlock()
		}
	}
	if ok && !few {
		return c, ok
	}
	// Where the living are far between, on from where the last search ended, so
	// that to find all of them costs one round; where there are few, all of it.
	p := &r.hunt
	p.Lock()
	defer p.Unlock()
	for passed := 0; (few || !ok) && passed <= segments && r.items.Load() > 0; {
		r.walk(p, collectChunk, func(s *segment, e *entry, _ uint32) { look(s, e) })
		if p.pos == ^uint32(0) {
			p.segment %= segments
			passed++
		}
	}
	return c, ok
}

// removal is the change that removes exactly e.
func removal(e *entry) attune.Change {
	return attune.Change{Key: attune.Key{Hash: e.hash}, Item: attune.Item{Deleted: true}, Prior: e.version}
}

// Dead appends to out the removal of those among the next n entries of an
// endless round over the index that are expired at now (unix milliseconds) or
// flushed: with tombstones none, see Free. It ends early after one round, and never proposes an entry twice.
func (r *Replica) Dead(now int64, n int, out []attune.Change) []attune.Change {
	r.sweep.Lock()
	defer r.sweep.Unlock()
	if r.tombs {
		return out
	}
	at := since(now)
	for passed := 0; n > 0 && passed < segments; {
		s := &r.segs[r.sweep.segment]
		s.mu.Lock()
		// Downwards, because a removal fills the hole with the last entry: one
		// that this pass has looked at already.
		pos := min(r.sweep.pos, s.n)
		stop := pos - min(pos, sweepChunk, uint32(n))
		n -= int(pos - stop)
		floor := r.floor.Load()
		for ; pos > stop; pos-- {
			if e := s.at(pos - 1); e.expired(at) || uint64(e.version) <= floor {
				out = append(out, removal(e))
			}
		}
		s.mu.Unlock()
		r.sweep.pos = pos
		if pos == 0 {
			r.sweep.segment = (r.sweep.segment + 1) % segments
			r.sweep.pos = ^uint32(0)
			passed++
		}
	}
	return out
}
