package gossip

import "math"

const (
	// chunkSize is what the ring allocates at a time.
	chunkSize = 256 << 10
	// ringOwn is from what size on an update has memory of its own in the ring.
	ringOwn = chunkSize / 8
)

// ring keeps the newest updates that took effect here, in that order, whoever
// made them: what peers are sent, and sent again. Its bytes are bounded; who needs
// older ones must reconcile.
type ring struct {
	limit   int // bytes
	bytes   int
	first   uint64  // position of entries[head]
	entries []place // without pointers: there are 100,000, and the garbage collector would look at each
	head    int
	// keep is a position: from there on nothing is dropped, whatever the limit.
	keep uint64
	// dropped is the newest seq of each origin that is not kept any more.
	dropped map[uint64]uint64

	chunks  []chunk
	chunk0  uint32 // number of chunks[0]
	fill    uint32 // number of the one that is being filled,
	filling bool   // if there is one
	spare   []byte // for the next, of one that was let go; or nil
}

// place is where an update is.
type place struct {
	origin, seq uint64
	chunk       uint32 // its number
	from, n     uint32
}

// chunk is memory of one update that is large, or of many.
type chunk struct {
	data   []byte // nil if nothing of it is kept
	live   int    // updates in it that are kept
	shared bool   // of many, and the ring's own
}

func newRing(limit int) ring {
	return ring{limit: limit, keep: math.MaxUint64, dropped: make(map[uint64]uint64)}
}

// next is the position after the newest update.
func (r *ring) next() uint64 { return r.first + uint64(len(r.entries)-r.head) }

// at is the update at a position between first and next. Its data is the ring's, until
// something is added.
func (r *ring) at(pos uint64) update {
	e := &r.entries[r.head+int(pos-r.first)]
	return update{e.origin, e.seq, r.chunk(e.chunk).data[e.from : e.from+e.n : e.from+e.n]}
}

// room is about how many bytes the updates from a position on take in a frame, of which
// there may be one more than frameBytes.
func (r *ring) room(pos uint64) int {
	each := r.bytes / (len(r.entries) - r.head)
	return min(int(r.next()-pos)*each, frameBytes+each)
}

// holds is about how many updates there is room for.
func (r *ring) holds() uint64 {
	if n := len(r.entries) - r.head; n > 0 {
		return uint64(r.limit) / uint64(r.bytes/n)
	}
	return uint64(r.limit) / uint64(costOf(100)) // it has seen none: a guess
}

// cost is the bytes an update is counted for.
func cost(u *update) int { return costOf(len(u.data)) }

func costOf(n int) int { return n + 40 }

// add keeps u. Data of ringOwn bytes or more nobody may change any more.
func (r *ring) add(u update) {
	r.entries = append(r.entries, r.store(u))
	r.bytes += cost(&u)
	for r.bytes > r.limit && len(r.entries)-r.head > 1 && r.first < r.keep {
		r.drop()
	}
}

func (r *ring) store(u update) place {
	if len(u.data) >= ringOwn {
		return place{u.origin, u.seq, r.push(chunk{data: u.data, live: 1}), 0, uint32(len(u.data))}
	}
	if !r.filling || chunkSize-len(r.chunk(r.fill).data) < len(u.data) {
		data := r.spare
		if r.spare = nil; data == nil {
			data = make([]byte, 0, chunkSize)
		}
		full, was := r.fill, r.filling
		if r.fill, r.filling = r.push(chunk{data: data, shared: true}), true; was {
			r.release(full)
		}
	}
	c := r.chunk(r.fill)
	from := len(c.data)
	c.data = append(c.data, u.data...)
	c.live++
	return place{u.origin, u.seq, r.fill, uint32(from), uint32(len(u.data))}
}

// push adds a chunk and returns its number.
func (r *ring) push(c chunk) uint32 {
	r.chunks = append(r.chunks, c)
	return r.chunk0 + uint32(len(r.chunks)-1)
}

func (r *ring) chunk(number uint32) *chunk { return &r.chunks[number-r.chunk0] }

// release lets go of a chunk if nothing is in it, nor comes.
func (r *ring) release(number uint32) {
	c := r.chunk(number)
	if c.live > 0 || r.filling && number == r.fill {
		return
	}
	if c.shared {
		r.spare = c.data[:0]
	}
	for c.data = nil; len(r.chunks) > 0 && r.chunks[0].data == nil; r.chunk0++ {
		r.chunks = r.chunks[1:]
	}
}

func (r *ring) drop() {
	e := &r.entries[r.head]
	r.bytes -= costOf(int(e.n))
	r.dropped[e.origin] = max(r.dropped[e.origin], e.seq)
	r.chunk(e.chunk).live--
	r.release(e.chunk)
	r.head++
	r.first++
	// Half of it is gone: move what is left, which then costs no more than what
	// was added since the last time.
	if r.head > 1024 && r.head > len(r.entries)/2 {
		n := copy(r.entries, r.entries[r.head:])
		r.entries, r.head = r.entries[:n], 0
	}
}
