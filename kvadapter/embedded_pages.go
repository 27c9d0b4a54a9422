package kvadapter

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	// pageSize is small enough that one page left nearly empty in every class
	// stays inside the 2 MiB that Memory.Used allows, and large enough that
	// what the Go heap adds to a page is under 1 %.
	pageSize = 40 << 10
	// pageCost is a page with what the heap (its span, its share of the mark
	// bits) and the leaf keep beside it.
	pageCost = pageSize + 320

	minChunk = 40
	maxChunk = 2048

	// A handle names a chunk: its page's number, then its place in the page.
	// Zero names none: page 0 is never used.
	slotBits  = 10 // for pageSize/minChunk places
	leafBits  = 10
	leafPages = 1 << leafBits
	topLeaves = 1 << (32 - slotBits - leafBits)

	numBands = 16
)

// handle is where a chunk is; it changes when a record is moved to empty its
// page. 32 bits reach 2^22 pages: 160 GiB of records shorter than Large.
type handle uint32

// Every chunk starts alike, so that a page can be emptied without knowing who
// holds its chunks: the hash leads to the record.
const (
	offNext = 0  // handle: the next record of the bucket, or the next part
	offHash = 4  // 64 bits of the key's hash; fixed until the chunk is freed
	offKind = 12 // key length, kindPart or kindFree; fixed until freed

	kindFree = 0
	kindPart = 255 // continues the value of a record; longer than any key
)

// class is the chunks of one size. Sizes go by 8 bytes to 192, then by at most
// an eighth.
type class struct {
	size    int
	perPage int
	cost    int64 // of one chunk, with its share of the page

	mu sync.Mutex
	// bands lists the pages that have a free chunk by how full they are, fullest
	// last. New records go to the fullest page, so that sparse ones run dry; the
	// sparsest is the one to empty.
	bands    [numBands]uint32 // guarded by mu: first page, 0 is none
	nonEmpty uint16           // guarded by mu: bit i is set if bands[i] has a page

	// free counts the free chunks of those pages. Written under mu.
	free atomic.Int64
	// pages counts the pages of the class. Written under mu.
	pages atomic.Int64
}

// page is pageSize bytes cut into chunks of one class. Free chunks form a list
// through their first two bytes.
type page struct {
	// buf and class are set before a chunk of the page is handed out and stay
	// until the last is freed, so whoever holds a chunk reads them unlocked.
	buf   *[pageSize]byte
	class uint8

	// Guarded by the class's mu.
	draining   bool   // being emptied: in no band, and hands out nothing
	band       uint8  // valid if live < perPage and not draining
	live       uint16 // chunks in use
	carved     uint16 // chunks ever in use; the rest was never touched
	firstFree  uint16 // place+1 of the first free chunk below carved
	prev, next uint32 // in the band
}

// leaf is a stretch of the page directory. It comes and goes with its pages, so
// that a store which shrank keeps no directory of what it once was.
type leaf struct {
	pages [leafPages]page
	used  int                    // guarded by pool.mu
	free  [leafPages / 64]uint64 // guarded by pool.mu: bit set = number unused
}

// pool hands out pages to all classes: one pool and a lock per class rather
// than both per shard, since every (shard, class) pair would strand a page.
type pool struct {
	classes []class
	sizes   [maxChunk/8 + 1]uint8 // class by size in units of 8, rounded up

	top [topLeaves]atomic.Pointer[leaf]

	mu    sync.Mutex
	spare []*[pageSize]byte // guarded by mu: kept for the next page
	first int               // guarded by mu: no leaf before it has a free number

	pages atomic.Int64 // buffers held, spare ones included
	taken atomic.Int64 // bytes that cost, see embedded.Stats
	used  atomic.Int64 // bytes of them that live records cost
}

// maxSpare bounds the pages kept for the next taker. More go back to the
// garbage collector, which serves the rest of the process with them.
const maxSpare = 16

func (p *pool) init() {
	for size := minChunk; ; {
		per := pageSize / size
		p.classes = append(p.classes, class{size: size, perPage: per, cost: int64((pageCost + per - 1) / per)})
		if size == maxChunk {
			break
		}
		if size < 192 {
			size += 8
			continue
		}
		// The size that cuts a page with nothing left over, at most an eighth up.
		up := size + size/8
		size = max(pageSize/((pageSize+up-1)/up)&^7, size+8)
	}
	c := 0
	for i := range p.sizes {
		if i*8 > p.classes[c].size {
			c++
		}
		p.sizes[i] = uint8(c)
	}
}

// classFor is the class of a chunk of n bytes, n at most maxChunk.
func (p *pool) classFor(n int) uint8 { return p.sizes[(n+7)/8] }

func (p *pool) page(n uint32) *page {
	return &p.top[n>>leafBits].Load().pages[n&(leafPages-1)]
}

// chunk is the bytes of h.
func (p *pool) chunk(h handle) []byte {
	pg := p.page(uint32(h >> slotBits))
	size := p.classes[pg.class].size
	off := int(h&(1<<slotBits-1)) * size
	return pg.buf[off : off+size : off+size]
}

// alloc hands out a chunk of class c for a record, or a part of one, whose key
// hashes to hash. It returns 0 when no handle is left.
func (p *pool) alloc(c uint8, hash uint64, kind uint8) handle {
	cl := &p.classes[c]
	cl.mu.Lock()
	defer cl.mu.Unlock()
	var n uint32
	if cl.nonEmpty != 0 {
		n = cl.bands[bits.Len16(cl.nonEmpty)-1]
	} else if n = p.newPage(c); n == 0 {
		return 0
	}
	pg := p.page(n)
	var slot int
	if pg.firstFree != 0 {
		slot = int(pg.firstFree) - 1
		pg.firstFree = binary.LittleEndian.Uint16(pg.buf[slot*cl.size:])
	} else {
		slot = int(pg.carved)
		pg.carved++
	}
	pg.live++
	cl.free.Add(-1)
	cl.rank(p, n, pg)
	b := pg.buf[slot*cl.size:]
	binary.LittleEndian.PutUint64(b[offHash:], hash)
	b[offKind] = kind
	p.used.Add(cl.cost)
	return handle(n<<slotBits | uint32(slot))
}

// release takes a chunk back.
func (p *pool) release(h handle) {
	n, slot := uint32(h>>slotBits), int(h&(1<<slotBits-1))
	pg := p.page(n)
	cl := &p.classes[pg.class]
	cl.mu.Lock()
	defer cl.mu.Unlock()
	b := pg.buf[slot*cl.size:]
	b[offKind] = kindFree
	pg.live--
	p.used.Add(-cl.cost)
	if pg.draining {
		return // the drainer gives the page back
	}
	binary.LittleEndian.PutUint16(b, pg.firstFree)
	pg.firstFree = uint16(slot) + 1
	cl.free.Add(1)
	if pg.live == 0 {
		cl.unlink(p, pg)
		cl.free.Add(-int64(cl.perPage))
		cl.pages.Add(-1)
		p.freePage(n)
		return
	}
	if int(pg.live) == cl.perPage-1 {
		cl.link(p, n, pg)
		return
	}
	cl.rank(p, n, pg)
}

// bandOf is the band of a page with live of its chunks in use.
func (cl *class) bandOf(live uint16) uint8 { return uint8(int(live) * numBands / cl.perPage) }

// rank puts a page that is in a band into the one its fill asks for: none if it
// is full. Callers hold mu.
func (cl *class) rank(p *pool, n uint32, pg *page) {
	if int(pg.live) == cl.perPage {
		cl.unlink(p, pg)
	} else if pg.band != cl.bandOf(pg.live) {
		cl.unlink(p, pg)
		cl.link(p, n, pg)
	}
}

// link puts a page into the band of its fill. Callers hold mu.
func (cl *class) link(p *pool, n uint32, pg *page) {
	pg.band = cl.bandOf(pg.live)
	pg.prev, pg.next = 0, cl.bands[pg.band]
	if pg.next != 0 {
		p.page(pg.next).prev = n
	}
	cl.bands[pg.band] = n
	cl.nonEmpty |= 1 << pg.band
}

// unlink takes a page out of its band. Callers hold mu.
func (cl *class) unlink(p *pool, pg *page) {
	if pg.next != 0 {
		p.page(pg.next).prev = pg.prev
	}
	if pg.prev != 0 {
		p.page(pg.prev).next = pg.next
	} else if cl.bands[pg.band] = pg.next; pg.next == 0 {
		cl.nonEmpty &^= 1 << pg.band
	}
}

// newPage makes an empty page of class c and links it; 0 when all numbers are
// in use. Callers hold the class's mu.
func (p *pool) newPage(c uint8) uint32 {
	p.mu.Lock()
	n := p.takeNumberLocked()
	var buf *[pageSize]byte
	if last := len(p.spare) - 1; n != 0 && last >= 0 {
		buf = p.spare[last]
		p.spare[last] = nil
		p.spare = p.spare[:last]
	}
	p.mu.Unlock()
	if n == 0 {
		return 0
	}
	if buf == nil {
		buf = new([pageSize]byte)
		p.pages.Add(1)
		p.taken.Add(pageCost)
	}
	cl := &p.classes[c]
	pg := p.page(n)
	*pg = page{buf: buf, class: c}
	cl.link(p, n, pg)
	cl.free.Add(int64(cl.perPage))
	cl.pages.Add(1)
	return n
}

// takeNumberLocked finds a page number not in use, the lowest leaf first, so
// that the others may empty.
func (p *pool) takeNumberLocked() uint32 {
	for ; p.first < topLeaves; p.first++ {
		lf := p.top[p.first].Load()
		if lf == nil {
			lf = new(leaf)
			for i := range lf.free {
				lf.free[i] = ^uint64(0)
			}
			if p.first == 0 {
				lf.free[0] &^= 1 // page 0 is nowhere
			}
			p.top[p.first].Store(lf)
		}
		for i, word := range lf.free {
			if word != 0 {
				bit := bits.TrailingZeros64(word)
				lf.free[i] &^= 1 << bit
				lf.used++
				return uint32(p.first<<leafBits | i*64 + bit)
			}
		}
	}
	return 0
}

// freePage takes back a page that is in no band and has no chunk in use.
func (p *pool) freePage(n uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := int(n >> leafBits)
	lf := p.top[i].Load()
	slot := n & (leafPages - 1)
	buf := lf.pages[slot].buf
	lf.pages[slot] = page{}
	lf.free[slot/64] |= 1 << (slot % 64)
	if lf.used--; lf.used == 0 && i != 0 {
		p.top[i].Store(nil)
	}
	p.first = min(p.first, i)
	if len(p.spare) < maxSpare && p.slack() <= 0 {
		p.spare = append(p.spare, buf)
		return
	}
	p.pages.Add(-1)
	p.taken.Add(-pageCost)
}

// dropSpare gives the spare pages to the garbage collector.
func (p *pool) dropSpare() {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := int64(len(p.spare))
	clear(p.spare)
	p.spare = p.spare[:0]
	p.pages.Add(-n)
	p.taken.Add(-n * pageCost)
}

// slack is by how much the memory taken exceeds what may be taken for the
// records there are: a sixteenth more, and less than a page in each class. That
// is inside what Memory.Used promises, and can always be reached: while it is
// exceeded, either a page is spare or some class has a page's worth of free
// chunks, which is to say a page that can be emptied into the others.
func (p *pool) slack() int64 {
	used := p.used.Load()
	return p.taken.Load() - used - used/16 - int64(len(p.classes))*pageCost
}
