package replica

import (
	"context"
	"math"

	"github.com/attunekv/attune"
)

// collectChunk is how many entries Free and Collect look at under one hold of a
// segment's lock: each may cost a deletion of bytes.
const collectChunk = 128

// collectable reports whether a cut makes e superfluous. It goes by the cut
// alone, and never by a clock of this node: all replicas drop the same.
func (e *entry) collectable(cut attune.Version) bool {
	return e.version <= cut && (e.dead() || e.expired(uint64(cut)>>timeShift))
}

// SetCollected says that all replicas have what has a version of at most cut, so
// that an entry of the dead up to there need not be kept: whatever comes with
// such a version, for a key that has no entry, is dead and refused. The cut
// never sinks.
func (r *Replica) SetCollected(cut attune.Version) { raise(&r.collected, uint64(cut)) }

// Collected is the cut as it was last set; 0 if it never was.
func (r *Replica) Collected() attune.Version { return attune.Version(r.collected.Load()) }

// Collect goes on, for n entries, with a pass over the index that drops what is
// not above the cut c and deleted, evicted, or was expired at its millisecond;
// done says that it is over. Another c begins a new pass. fn is told of every
// drop, and must not call r; entries that a flush killed were none before, so
// they are dropped in silence.
func (r *Replica) Collect(c attune.Version, n int, fn func(h attune.KeyHash, was Mark)) (done bool) {
	p := &r.collect
	p.Lock()
	defer p.Unlock()
	if p.cut != c {
		p.cut, p.segment, p.pos = c, 0, math.MaxUint32
	}
	for n > 0 && p.segment < segments {
		n -= r.walk(&p.pass, n, func(s *segment, e *entry, i uint32) {
			m := e.mark(r.Floor())
			if m != 0 && !e.collectable(c) {
				return
			}
			h := e.hash
			r.discard(s, e, i)
			if m != 0 {
				fn(h, m)
			}
		})
	}
	return p.segment == segments
}

// Free goes on, for n entries, with an endless round over the index that frees
// the bytes of what is expired at now (unix milliseconds), and drops what a
// flush killed. An expired item's entry stays: nothing that is replicated
// changes. It returns how many items it met that still had bytes, and ends early
// after one round.
func (r *Replica) Free(now int64, n int) (met int) {
	p := &r.sweep
	p.Lock()
	defer p.Unlock()
	at := since(now)
	raise(&r.freed, at)
	for passed := 0; n > 0 && passed < segments; {
		n -= r.walk(p, n, func(s *segment, e *entry, i uint32) {
			flushed := e.mark(r.Floor()) == 0
			if !e.bare() && (flushed || e.expired(at)) {
				met++
				r.free(s, e)
			}
			if flushed {
				r.discard(s, e, i)
			}
		})
		if p.pos == math.MaxUint32 {
			p.segment %= segments
			passed++
		}
	}
	return met
}

// walk calls fn for at most n entries, all of one segment, and returns their
// number. It goes on to the next segment, which may be behind the last. fn may
// remove the entry it is given.
func (r *Replica) walk(p *pass, n int, fn func(s *segment, e *entry, i uint32)) int {
	s := &r.segs[p.segment]
	s.mu.Lock()
	defer s.mu.Unlock()
	// Downwards, because a removal fills the hole with the last entry: one that
	// this pass has looked at already.
	pos := min(p.pos, s.n)
	stop := pos - min(pos, collectChunk, uint32(n))
	for i := pos; i > stop; i-- {
		fn(s, s.at(i-1), i-1)
	}
	if p.pos = stop; stop == 0 {
		p.segment++
		p.pos = math.MaxUint32
	}
	return int(pos - stop)
}

// free gives the bytes of an expired or flushed item back, and keeps its entry.
// It changes nothing that is replicated, so no Cut needs to know.
func (r *Replica) free(s *segment, e *entry) {
	s.leaves(e)
	if ws := r.watches.Load(); ws != nil {
		r.tellRemoval(ws, e)
	}
	s.expire(e)
	r.count(s, e, -1)
	e.meta |= metaBare
	r.count(s, e, 1)
	if r.memory != nil {
		// As in drop, it cannot fail.
		_ = r.memory.Delete(context.Background(), attune.Key{Hash: e.hash})
		return
	}
	r.loosen(e.hash)
}

// discard forgets the entry at position i, and its bytes if there are any.
func (r *Replica) discard(s *segment, e *entry, i uint32) {
	if !e.bare() {
		r.free(s, e)
	}
	r.count(s, e, -1)
	s.remove(i)
	r.account(s)
}
