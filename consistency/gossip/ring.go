package gossip

import "math"

// chunkSize is what the ring allocates at a time for updates made here.
const chunkSize = 256 << 10

// ring keeps the newest updates that took effect here, in that order, whoever
// made them: what peers are sent, and sent again. Its bytes are bounded; who needs
// older ones must reconcile.
type ring struct {
	limit   int // bytes
	bytes   int
	first   uint64 // position of entries[head]
	entries []update
	head    int
	// keep is a position: from there on nothing is dropped, whatever the limit.
	keep uint64
	// dropped is the newest seq of each origin that is not kept any more.
	dropped map[uint64]uint64
	chunk   []byte // memory for what is copied
}

func newRing(limit int) ring {
	return ring{limit: limit, keep: math.MaxUint64, dropped: make(map[uint64]uint64)}
}

// next is the position after the newest update.
func (r *ring) next() uint64 { return r.first + uint64(len(r.entries)-r.head) }

// at is the update at a position between first and next.
func (r *ring) at(pos uint64) *update { return &r.entries[r.head+int(pos-r.first)] }

// cost is the bytes an update is counted for.
func cost(u *update) int { return len(u.data) + 40 }

// add keeps u, whose data nobody changes any more.
func (r *ring) add(u update) {
	r.entries = append(r.entries, u)
	r.bytes += cost(&u)
	for r.bytes > r.limit && len(r.entries)-r.head > 1 && r.first < r.keep {
		r.drop()
	}
}

func (r *ring) drop() {
	u := &r.entries[r.head]
	r.bytes -= cost(u)
	r.dropped[u.origin] = max(r.dropped[u.origin], u.seq)
	*u = update{}
	r.head++
	r.first++
	// Half of it is gone: move what is left, which then costs no more than what
	// was added since the last time.
	if r.head > 1024 && r.head > len(r.entries)/2 {
		n := copy(r.entries, r.entries[r.head:])
		clear(r.entries[n:])
		r.entries, r.head = r.entries[:n], 0
	}
}

// room returns an empty slice to append n bytes to, which are then the ring's.
func (r *ring) room(n int) []byte {
	if n > chunkSize/8 {
		return make([]byte, 0, n)
	}
	if cap(r.chunk)-len(r.chunk) < n {
		r.chunk = make([]byte, 0, chunkSize)
	}
	at := len(r.chunk)
	r.chunk = r.chunk[:at+n]
	return r.chunk[at : at : at+n]
}
