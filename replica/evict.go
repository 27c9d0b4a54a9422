package replica

import (
	"math/rand/v2"

	"github.com/attunekv/attune"
)

const (
	// samples is how many entries Victim compares. On zipf reads the hit rate then
	// is up to half a point below exact LRU, without a list that every read must
	// relink. Comparing 16 wins back 0.1 of it and costs twice the cache misses.
	samples = 8
	// sweepChunk is how many entries Dead looks at per locking.
	sweepChunk = 512
)

// Over reports whether index and bytes together exceed the memory limit.
func (r *Replica) Over() bool { return r.limit > 0 && r.usage() > r.limit }

func (r *Replica) usage() int64 {
	n := r.index.Load()
	if r.memory != nil {
		n += r.memory.Used()
	}
	return n
}

// Fits reports whether an item of n bytes, key and value, could be kept if
// everything else were evicted. Engines ask before they evict everything else.
func (r *Replica) Fits(n int) bool {
	return r.limit == 0 || r.memory == nil || int64(n) <= r.limit
}

// Victim proposes the removal of one item: a dead one if it meets one, else the
// least recently used of a random few. ok is false when there is none. The
// change names the version it saw, so an item that was written meanwhile stays.
func (r *Replica) Victim() (c attune.Change, ok bool) {
	now := r.now()
	best := ^uint64(0)
	hand := r.hand.Add(1)
	for i, seen := uint32(0), uint32(0); i < segments && seen < samples; i++ {
		s := &r.segs[(hand+i)%segments]
		s.mu.Lock()
		take := min(samples-seen, s.n)
		seen += take
		// A small segment is looked at whole. In a large one the places are
		// random one by one: neighbours came together and are of one age.
		for j := range take {
			if s.n > samples {
				j = uint32(rand.Uint64N(uint64(s.n)))
			}
			e := s.at(j)
			used := e.usedAt()
			if r.dead(e, now) {
				used = 0
			}
			if used < best {
				best, c, ok = used, removal(e), true
			}
		}
		s.mu.Unlock()
	}
	return c, ok
}

// removal is the change that removes exactly e.
func removal(e *entry) attune.Change {
	return attune.Change{Key: attune.Key{Hash: e.hash}, Item: attune.Item{Deleted: true}, Prior: e.version}
}

// Dead appends to out the removal of those among the next n entries of an
// endless round over the index that are expired at now (unix milliseconds) or
// flushed. It ends early after one round, and never proposes an entry twice.
func (r *Replica) Dead(now int64, n int, out []attune.Change) []attune.Change {
	r.sweep.Lock()
	defer r.sweep.Unlock()
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
