package gossip

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/gossip/sketch"
	"github.com/attunekv/attune/replica"
)

// What a pull asks for, and what it is answered. All frames begin with
//
//	session u64, number uvarint, flags u8
//
// CELLS asks for cells of the whole index, with no parts, or else for parts of it;
// WANT for the records of keys, each named by its 64 bits:
//
//	CELLS    parts uvarint, first uvarint, count uvarint, cells of each uvarint
//	WANT     u64 each key
//
// Answers go on, unless they say busy, with
//
//	floor u64, cut u64, with hasVector: uvarint count; each: origin u64, seq uvarint
//
//	CELLSOF  each part: uvarint items, uvarint bytes*2 + 1 if a list
//	         cells, as sketch.AppendCells writes them; or a list: key u64, mark u64
//	RECORDS  each key, as far as there was room: u8 count, as many records
const (
	tellVector   = 1 << iota // tell how far you are, too
	withoutBytes             // entries will do
	requestFlags = 1<<iota - 1
)

const (
	isBusy = 1 << iota
	hasVector
	answerFlags = 1<<iota - 1
)

// maxParts is into how many parts an index may be cut.
const maxParts = 1 << 24

// maxCells is of how many cells of a part can be asked at all.
const maxCells = 1 << 24

// request is a CELLS frame, or a WANT frame.
type request struct {
	kind            byte
	session, number uint64
	flags           byte
	parts           int // that the index is cut into, a power of two; 0: all is one
	first, count    int // of these, what is asked for
	cells           int // how many of each
	keys            []uint64
}

func (q *request) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, q.session)
	b = binary.AppendUvarint(b, q.number)
	b = append(b, q.flags)
	if q.kind == frameWant {
		for _, key := range q.keys {
			b = binary.LittleEndian.AppendUint64(b, key)
		}
		return b
	}
	for _, n := range [...]int{q.parts, q.first, q.count, q.cells} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

func parseRequest(kind byte, b []byte) (q request, ok bool) {
	r := reader{b: b}
	q = request{kind: kind, session: r.u64(), number: r.uvarint(), flags: r.u8()}
	if kind == frameWant {
		for len(r.b) > 0 && !r.bad {
			q.keys = append(q.keys, r.u64())
		}
	} else {
		q.parts, q.first = r.limited(maxParts), r.limited(maxParts)
		q.count, q.cells = r.limited(maxParts), r.limited(maxCells)
	}
	return q, r.end() && q.flags&^requestFlags == 0 && bits.OnesCount(uint(q.parts)) <= 1
}

// limited reads a number that is not above most.
func (r *reader) limited(most uint64) int {
	n := r.uvarint()
	if n > most {
		r.bad = true
		return 0
	}
	return int(n)
}

// answer is what CELLSOF and RECORDS have in common.
type answer struct {
	session, number uint64
	flags           byte
	floor, cut      attune.Version
	vector          []dependency // with hasVector, by origin
}

func (a *answer) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, a.session)
	b = binary.AppendUvarint(b, a.number)
	b = append(b, a.flags)
	if a.flags&isBusy != 0 {
		return b
	}
	b = le.AppendUint64(b, uint64(a.floor))
	b = le.AppendUint64(b, uint64(a.cut))
	if a.flags&hasVector != 0 {
		b = binary.AppendUvarint(b, uint64(len(a.vector)))
		for _, e := range a.vector {
			b = le.AppendUint64(b, e.origin)
			b = binary.AppendUvarint(b, e.seq)
		}
	}
	return b
}

// parseAnswer leaves r at what follows.
func parseAnswer(r *reader) (a answer, ok bool) {
	a = answer{session: r.u64(), number: r.uvarint(), flags: r.u8()}
	if a.flags&isBusy != 0 {
		return a, r.end() && a.flags == isBusy
	}
	a.floor, a.cut = attune.Version(r.u64()), attune.Version(r.u64())
	if a.flags&hasVector != 0 {
		last := uint64(0)
		for range r.count(9) {
			e := dependency{r.u64(), r.uvarint()}
			if e.origin <= last || e.seq == 0 {
				r.bad = true
			}
			last = e.origin
			a.vector = append(a.vector, e)
		}
	}
	return a, !r.bad && a.flags&^answerFlags == 0
}

// partOf is what a source tells of one part: all it has there, or cells of that.
type partOf struct {
	items int64
	list  []sketch.Item
	cells []sketch.Cell // nil if it is a list
}

// appendList appends a part as a list.
func appendList(b []byte, items []sketch.Item) []byte {
	b = binary.AppendUvarint(b, uint64(len(items)))
	b = binary.AppendUvarint(b, uint64(len(items))*16<<1|1)
	for _, it := range items {
		b = binary.LittleEndian.AppendUint64(b, it.Key)
		b = binary.LittleEndian.AppendUint64(b, it.Mark)
	}
	return b
}

// appendCells appends a part of so many items as cells.
func appendCells(b []byte, items int64, cells []sketch.Cell) []byte {
	body := sketch.AppendCells(nil, 0, items, cells)
	b = binary.AppendUvarint(b, uint64(items))
	b = binary.AppendUvarint(b, uint64(len(body))<<1)
	return append(b, body...)
}

// part reads one part of a CELLSOF frame.
func (r *reader) part() (p partOf, ok bool) {
	items, size := r.uvarint(), r.uvarint()
	body := reader{b: r.take(size >> 1)}
	switch {
	case r.bad || items > math.MaxInt64:
		r.bad = true
	case size&1 == 0:
		var err error
		if p.cells, err = sketch.ParseCells(body.b, 0, int64(items)); err != nil || len(p.cells) == 0 {
			r.bad = true
		}
	case uint64(len(body.b)) != items*16:
		r.bad = true
	default:
		p.list = make([]sketch.Item, items)
		for i := range p.list {
			p.list[i] = sketch.Item{Key: body.u64(), Mark: body.u64()}
		}
	}
	p.items = int64(items)
	return p, !r.bad
}

// A record is an entry as its holder has it:
//
//	head u8
//	key: uvarint length and text, with heldText; else the hash, 2 u64
//	version u64
//	if it is not dead: uvarint version - stored, uvarint cas XOR stored,
//	uvarint flags, uvarint expires, uvarint size, with heldValue as many bytes
//
// Unlike an update's, the bytes may be missing, or be those of an older version
// than the entry's, which was touched since.
const (
	heldText = 1 << iota
	heldValue
	heldDead
	heldEvicted // dead, and its version is that of what was evicted
	heldStale
	heldLeased
	heldBits = 1<<iota - 1
)

// maxText is the length of the longest key there is, in bytes.
const maxText = 250

func appendHeld(b []byte, h *replica.Held, bare bool) []byte {
	it := &h.Item
	head := byte(0)
	set := func(is bool, bit byte) {
		if is {
			head |= bit
		}
	}
	// Without its bytes nobody needs the text of a key, which may be longer.
	set(h.Key.Text != nil && !bare, heldText)
	set(it.Value != nil && !bare && h.Key.Text != nil, heldValue)
	set(it.Deleted, heldDead)
	set(h.Mark.Evicted(), heldEvicted)
	set(it.Stale, heldStale)
	set(it.Leased, heldLeased)
	b = append(b, head)
	if head&heldText != 0 {
		b = binary.AppendUvarint(b, uint64(len(h.Key.Text)))
		b = append(b, h.Key.Text...)
	} else {
		b = binary.LittleEndian.AppendUint64(b, h.Key.Hash[0])
		b = binary.LittleEndian.AppendUint64(b, h.Key.Hash[1])
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(it.Version))
	if it.Deleted {
		return b
	}
	b = binary.AppendUvarint(b, uint64(it.Version-it.Stored))
	b = binary.AppendUvarint(b, it.CAS^uint64(it.Stored))
	b = binary.AppendUvarint(b, uint64(it.Flags))
	b = binary.AppendUvarint(b, uint64(it.Expires))
	b = binary.AppendUvarint(b, uint64(it.Size))
	if head&heldValue != 0 {
		b = append(b, it.Value...)
	}
	return b
}

// held reads a record, as the change that makes its reader have the same. A key
// that came as a text has no hash yet. Text and value alias the frame.
func (r *reader) held() (c attune.Change, ok bool) {
	head := r.u8()
	it := &c.Item
	if head&heldText != 0 {
		c.Key.Text = r.take(uint64(r.limited(maxText)))
	} else {
		c.Key.Hash = attune.KeyHash{r.u64(), r.u64()}
	}
	it.Version = attune.Version(r.u64())
	c.Prior = attune.AnyVersion
	if head&heldDead != 0 {
		it.Deleted = true
		if head&heldEvicted != 0 {
			c.Prior = it.Version
		}
		head &^= heldDead | heldEvicted | heldText
		return c, !r.bad && head == 0 && valid(it.Version)
	}
	it.Stored = it.Version - attune.Version(r.uvarint())
	it.CAS = r.uvarint() ^ uint64(it.Stored)
	it.Flags = uint32(r.limited(math.MaxUint32))
	it.Expires = int64(r.uvarint())
	it.Size = r.limited(math.MaxInt32)
	it.Stale, it.Leased = head&heldStale != 0, head&heldLeased != 0
	if head&heldValue != 0 {
		if it.Value = r.take(uint64(it.Size)); it.Value == nil {
			it.Value = []byte{}
		}
		r.bad = r.bad || head&heldText == 0
	}
	return c, !r.bad && head&heldEvicted == 0 && head&^heldBits == 0 && it.Expires >= 0 &&
		valid(it.Version) && valid(it.Stored) && it.Stored <= it.Version && (c.Key.Text == nil || len(c.Key.Text) > 0)
}

// valid reports whether v can be the version of an entry: its highest bit is not
// one of a time before 2089, and Mark needs it.
func valid(v attune.Version) bool { return v != 0 && v>>63 == 0 }
