package kvadapter

import (
	"encoding/binary"
	"math/bits"
	"sync"
)

// maxMoves bounds the chunks a Put or Delete moves before it stops to empty
// pages, the one at hand finished; a move takes some 300 ns. What is left to do
// is left to the calls that follow.
const maxMoves = 512

// drainer empties sparse pages so that other sizes, or others in the process,
// may have the memory.
type drainer struct {
	mu    sync.Mutex // held by the one call that drains
	found []resident // guarded by mu: scratch
	moved int64      // guarded by mu: chunks moved so far
}

// resident is a chunk in use on a page that is emptied.
type resident struct {
	h    handle
	hash uint64
}

// tidy brings the memory taken back within bounds, if it is not. Callers hold no
// lock of the store's.
func (s *embedded) tidy() {
	if s.slack() <= 0 || !s.drain.mu.TryLock() {
		return
	}
	defer s.drain.mu.Unlock()
	s.dropSpare()
	for moves := 0; moves < maxMoves && s.slack() > 0; {
		c, ok := s.sparsest()
		if !ok {
			return
		}
		n, ok := s.claim(c)
		if !ok {
			return // others took the free chunks since: then there is no slack either
		}
		moves += len(s.drain.found)
		s.empty(c, n)
	}
}

// sparsest is the class with the greatest part of its chunks free, among those
// that can do with a page less.
func (p *pool) sparsest() (best uint8, ok bool) {
	var most float64
	for c := range p.classes {
		cl := &p.classes[c]
		free, per := cl.free.Load(), int64(cl.perPage)
		if free < per {
			continue
		}
		if share := float64(free) / float64(cl.pages.Load()*per); share > most {
			best, most, ok = uint8(c), share, true
		}
	}
	return best, ok
}

// claim takes the sparsest page of a class out of use and lists what is on it.
func (s *embedded) claim(c uint8) (n uint32, ok bool) {
	cl := &s.classes[c]
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.free.Load() < int64(cl.perPage) {
		return 0, false
	}
	n = cl.bands[bits.TrailingZeros16(cl.nonEmpty)]
	pg := s.page(n)
	cl.unlink(&s.pool, pg)
	pg.draining = true
	cl.free.Add(int64(pg.live) - int64(cl.perPage))
	s.drain.found = s.drain.found[:0]
	for slot := range int(pg.carved) {
		if b := pg.buf[slot*cl.size:]; b[offKind] != kindFree {
			s.drain.found = append(s.drain.found, resident{handle(n<<slotBits | uint32(slot)), chunkHash(b)})
		}
	}
	return n, true
}

// empty moves what claim found, and gives the page back.
func (s *embedded) empty(c uint8, n uint32) {
	for _, r := range s.drain.found {
		s.move(c, r)
	}
	cl := &s.classes[c]
	cl.mu.Lock()
	defer cl.mu.Unlock()
	pg := s.page(n)
	if pg.live == 0 {
		cl.pages.Add(-1)
		s.freePage(n)
		return
	}
	// No handle was left to move to. The page goes on as it was; its list of
	// free chunks missed those freed meanwhile.
	pg.draining = false
	pg.firstFree = 0
	for slot := range int(pg.carved) {
		if b := pg.buf[slot*cl.size:]; b[offKind] == kindFree {
			binary.LittleEndian.PutUint16(b, pg.firstFree)
			pg.firstFree = uint16(slot) + 1
		}
	}
	if free := int64(cl.perPage) - int64(pg.live); free > 0 {
		cl.free.Add(free)
		cl.link(&s.pool, n, pg)
	}
}

// move gives a chunk another place, unless it was freed since it was found: a
// chunk is allotted and put where its hash leads to under one hold of the
// shard's lock, so one that is not there is not in use.
func (s *embedded) move(c uint8, r resident) {
	sh := s.shard(r.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var prev handle
	for h := *sh.head(sh.bucketLocked(r.hash)); h != 0; {
		b := s.chunk(h)
		if h == r.h {
			to := s.relocate(c, r, b[offKind])
			if to == 0 {
				return
			}
			s.relinkLocked(sh, r.hash, prev, to)
			if b[offFlags]&flagLarge != 0 {
				sh.larges[binary.LittleEndian.Uint32(body(b))].at = to
			}
			s.release(h)
			s.drain.moved++
			return
		}
		if b[offFlags]&flagParts != 0 && chunkHash(b) == r.hash {
			link := body(b)
			for part := handle(binary.LittleEndian.Uint32(link)); part != 0; {
				if part == r.h {
					if to := s.relocate(c, r, kindPart); to != 0 {
						binary.LittleEndian.PutUint32(link, uint32(to))
						s.release(part)
						s.drain.moved++
					}
					return
				}
				link = s.chunk(part)[offNext:]
				part = handle(binary.LittleEndian.Uint32(link))
			}
		}
		prev, h = h, next(b)
	}
}

// relocate copies a chunk to a new one; 0 if there is none.
func (s *embedded) relocate(c uint8, r resident, kind uint8) handle {
	to := s.alloc(c, r.hash, kind)
	if to == 0 {
		return 0
	}
	from, b := s.chunk(r.h), s.chunk(to)
	setNext(b, next(from))
	copy(b[offFlags:], from[offFlags:])
	return to
}
