package replica

import (
	"math/bits"
	"sync"
	"unsafe"

	"github.com/attunekv/attune"
)

// Segments is how many parts the index has, each under a lock of its own.
const Segments = 256

const (
	segments = Segments
	// pageLen is small so that a segment's slack is: 256 segments waste at most
	// 2.5 MiB on pages they have just begun, or are about to give back.
	pageLen  = 128
	minHeads = 8
)

// entry is what the index keeps of a key: one cache line and no pointer, so the
// garbage collector never looks inside a page.
type entry struct {
	hash    attune.KeyHash
	version attune.Version
	stored  attune.Version
	cas     uint64
	// meta is, from the top: expires (42 bits), the low 10 bits of used,
	// the key's length (8), state (4).
	meta  uint64
	flags uint32
	size  uint32
	used  uint32 // the high 32 of 42 bits
	next  uint32 // in the bucket's chain: position + 1, 0 ends it
}

// The times in an entry are milliseconds since 2020-01-01 UTC in 42 bits, which
// end in 2159. Expiry 0 is never.
const (
	epoch   = 1577836800000
	maxTime = 1<<42 - 1

	metaFetched = 1 << 0
	metaStale   = 1 << 1
	metaLeased  = 1 << 2
	// metaBare marks an entry without bytes, where entries outlive them. With a
	// stored version it is an expired item whose bytes were freed here, and here
	// only; else it is dead, and flags say of what.
	metaBare  = 1 << 3
	metaState = 1<<4 - 1
	keyShift  = 4
	usedShift = 12
	usedBits  = 10
	usedMask  = 1<<usedBits - 1
	timeShift = 22
)

// since converts unix milliseconds to an entry's time, which is at least 1.
func since(unix int64) uint64 {
	return uint64(min(max(unix-epoch, 1), maxTime))
}

func (e *entry) expires() uint64 { return e.meta >> timeShift }

func (e *entry) usedAt() uint64 {
	return uint64(e.used)<<usedBits | e.meta>>usedShift&usedMask
}

func (e *entry) use(at uint64) {
	e.used = uint32(at >> usedBits)
	e.meta = e.meta&^(usedMask<<usedShift) | at&usedMask<<usedShift
}

func (e *entry) keyLen() int { return int(e.meta >> keyShift & 0xff) }

// expired reports whether the entry is dead of age at a time as of since.
func (e *entry) expired(at uint64) bool {
	return e.expires() != 0 && e.expires() <= at
}

// bytes is what the item counts for its user: key and value.
func (e *entry) bytes() int64 {
	if e.bare() {
		return 0
	}
	return int64(e.keyLen()) + int64(e.size)
}

func (e *entry) bare() bool { return e.meta&metaBare != 0 }

// dead reports whether the item was deleted or evicted.
func (e *entry) dead() bool { return e.meta&metaBare != 0 && e.stored == 0 }

// What flags say of a dead entry.
const (
	deleted = 0
	evicted = 1
)

// bury makes e a dead entry. All that is replicated of it is set.
func (e *entry) bury(m Mark) {
	*e = entry{hash: e.hash, version: m.Version(), meta: metaBare, used: e.used, next: e.next, flags: deleted}
	if m.Evicted() {
		e.flags = evicted
	}
}

// item is what readers are shown of an entry that is not dead. One whose bytes
// were freed expired before time began: whoever freed them may have looked at
// the clock after the reader did.
func (e *entry) item() attune.Item {
	it := e.full()
	if e.bare() {
		it.Expires, it.Size = 1, 0
	}
	return it
}

func (e *entry) full() attune.Item {
	it := attune.Item{
		Size:     int(e.size),
		Flags:    e.flags,
		Version:  e.version,
		Stored:   e.stored,
		CAS:      e.cas,
		Stale:    e.meta&metaStale != 0,
		Leased:   e.meta&metaLeased != 0,
		Fetched:  e.meta&metaFetched != 0,
		Accessed: (int64(e.usedAt()) + epoch) / 1000,
	}
	if x := e.expires(); x != 0 {
		it.Expires = int64(x) + epoch
	}
	return it
}

// set takes over everything a Change decides. Recency, Fetched and the place in
// the chain stay.
func (e *entry) set(it *attune.Item, keyLen int) {
	e.version, e.stored, e.cas = it.Version, it.Stored, it.CAS
	e.flags, e.size = it.Flags, uint32(it.Size)
	e.meta = e.meta&(usedMask<<usedShift|metaFetched) | uint64(keyLen&0xff)<<keyShift
	if it.Expires != 0 {
		e.meta |= since(it.Expires) << timeShift
	}
	if it.Stale {
		e.meta |= metaStale
	}
	if it.Leased {
		e.meta |= metaLeased
	}
}

type page [pageLen]entry

// segment is one of 256 parts of the index. Its entries are dense, at positions
// 0 to n-1: removing one moves the last into the hole. So there is no free
// list, a random position is always an entry, and pages that are not needed any
// more are given back. The buckets grow and shrink one at a time (linear
// hashing): no insert ever pays for all.
type segment struct {
	mu    sync.Mutex // guards everything below; no call that waits is made under it
	heads []uint32   // per bucket: position + 1 of its first entry, or 0
	pages []*page
	n     uint32

	// shadow is what an open Cut still needs of this segment, or nil.
	shadow *shadow
	// part is what an open Save still wants of this segment, or nil.
	part *part

	// stage holds bytes on their way to a backend outside this process.
	stage map[attune.KeyHash]*staged

	counters
	_ [64]byte // the next segment's mutex is on another cache line
}

func (s *segment) at(i uint32) *entry { return &s.pages[i/pageLen][i%pageLen] }

// memory is the bytes the segment's part of the index takes.
func (s *segment) memory() int64 {
	return int64(len(s.pages))*int64(unsafe.Sizeof(page{})) + int64(cap(s.pages))*8 + int64(cap(s.heads))*4
}

// bucket is where a hash belongs: the low bits of its second word, one bit
// fewer for those buckets that are not split yet.
func (s *segment) bucket(h attune.KeyHash) uint32 {
	n := uint32(len(s.heads))
	mask := uint32(1)<<bits.Len32(n-1) - 1
	b := uint32(h[1]) & mask
	if b >= n {
		b &= mask >> 1
	}
	return b
}

// find returns the hash's entry and position, or nil.
func (s *segment) find(h attune.KeyHash) (*entry, uint32) {
	for link := s.heads[s.bucket(h)]; link != 0; {
		e := s.at(link - 1)
		if e.hash == h {
			return e, link - 1
		}
		link = e.next
	}
	return nil, 0
}

// insert adds an entry for a hash that has none.
func (s *segment) insert(h attune.KeyHash) *entry {
	if int(s.n) == len(s.pages)*pageLen {
		s.pages = append(s.pages, new(page))
	}
	s.save(s.n)
	s.n++
	if int(s.n) > len(s.heads) {
		s.split()
	}
	b := s.bucket(h)
	e := s.at(s.n - 1)
	*e = entry{hash: h, next: s.heads[b]}
	s.heads[b] = s.n
	s.enters(h)
	return e
}

// remove forgets the entry at position i.
func (s *segment) remove(i uint32) {
	s.moves(i)
	*s.linkTo(i) = s.at(i).next
	last := s.n - 1
	if i != last {
		s.save(i)
		*s.linkTo(last) = i + 1
		*s.at(i) = *s.at(last)
	}
	s.n--
	// A quarter of slack in buckets, and of a page in entries, keep a size that
	// goes up and down from allocating.
	for len(s.heads) > minHeads && len(s.heads) > int(s.n)+int(s.n)/4 {
		s.merge()
	}
	if p := len(s.pages) - 1; p*pageLen >= int(s.n)+pageLen/4 {
		if s.shadow != nil {
			s.shadow.keep(p, s.pages[p])
		}
		s.pages[p] = nil
		s.pages = s.pages[:p]
	}
}

// linkTo returns the link that leads to position i.
func (s *segment) linkTo(i uint32) *uint32 {
	link := &s.heads[s.bucket(s.at(i).hash)]
	for *link != i+1 {
		link = &s.at(*link - 1).next
	}
	return link
}

// split adds a bucket and moves to it what belongs there from the one whose
// number lacks the new one's highest bit.
func (s *segment) split() {
	added := uint32(len(s.heads))
	parent := added &^ (1 << (bits.Len32(added) - 1))
	s.heads = append(s.heads, 0)
	link := s.heads[parent]
	s.heads[parent] = 0
	for link != 0 {
		e := s.at(link - 1)
		b := s.bucket(e.hash)
		link, e.next, s.heads[b] = e.next, s.heads[b], link
	}
}

// merge is split undone.
func (s *segment) merge() {
	last := uint32(len(s.heads) - 1)
	parent := last &^ (1 << (bits.Len32(last) - 1))
	end := &s.heads[parent]
	for *end != 0 {
		end = &s.at(*end - 1).next
	}
	*end = s.heads[last]
	s.heads = s.heads[:last]
	if c := cap(s.heads); c > 4*len(s.heads) && c > 8*minHeads {
		s.heads = append(make([]uint32, 0, 2*len(s.heads)), s.heads...)
	}
}
