package gossip

import (
	"encoding/binary"
	"math/bits"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/consistency/gossip/sketch"
)

// Kinds of frames between members.
const (
	frameUpdates byte = 4*cluster.MinKind + iota
	frameDigest
	frameCells   // reconcile: asks for cells, and answers
	frameCellsOf //
	frameWant    // asks for records
	frameRecords // and answers
	frameCut     // a step of the agreement on a cut
	frameForward // ops for the home of their keys
	frameAnswer  // and what became of them
	frameFull    // asks for a whole digest
	_            // was that a member leaves: package cluster tells that now
	frameTrace   // the next FORWARD frame has ops that are traced
	frameMissing // asks for updates that others overtook
	framesEnd
)

// An UPDATES frame is a byte of flags and updates. An update is
//
//	0, or 1 origin u64, seq uvarint      0: the same origin as before, the next seq
//	uvarint count of dependencies; each: origin u64, seq uvarint
//	uvarint length; record               of codec, bare
//
// What comes after the seq is what the ring keeps.
const wantDigest = 1 // tell at once how far you are: a client waits for it

// update is one change on its way, as it was encoded where it was made.
type update struct {
	origin, seq uint64
	data        []byte // dependencies and record
}

// dependency: everything up to seq of origin.
type dependency struct{ origin, seq uint64 }

// appendUpdate appends u to a frame whose last update was prev, the zero update if none.
func appendUpdate(b []byte, prev, u update) []byte {
	if prev.origin == u.origin && prev.seq+1 == u.seq && prev.seq != 0 {
		b = append(b, 0)
	} else {
		b = append(b, 1)
		b = binary.LittleEndian.AppendUint64(b, u.origin)
		b = binary.AppendUvarint(b, u.seq)
	}
	return append(b, u.data...)
}

// appendData appends what the ring keeps of an update.
func appendData(b []byte, deps []dependency, record []byte) []byte {
	b = appendDeps(b, deps)
	b = binary.AppendUvarint(b, uint64(len(record)))
	return append(b, record...)
}

func appendDeps(b []byte, deps []dependency) []byte {
	b = binary.AppendUvarint(b, uint64(len(deps)))
	for _, d := range deps {
		b = binary.LittleEndian.AppendUint64(b, d.origin)
		b = binary.AppendUvarint(b, d.seq)
	}
	return b
}

// reader takes a frame apart. After a mistake it is bad, and everything is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() byte {
	if b := r.take(1); !r.bad {
		return b[0]
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); !r.bad {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if r.bad || n <= 0 || n != (bits.Len64(v|1)+6)/7 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads the length of a list whose elements take at least so many bytes.
func (r *reader) count(least int) int {
	n := r.uvarint()
	if n > uint64(len(r.b)/least) {
		r.bad = true
		return 0
	}
	return int(n)
}

// end reports whether everything was read, and right.
func (r *reader) end() bool { return !r.bad && len(r.b) == 0 }

// next reads the update behind prev to u. Its dependencies are appended to u.deps[:0].
func (r *reader) next(prev *update, u *heldUpdate) bool {
	switch r.u8() {
	case 0:
		u.origin, u.seq = prev.origin, prev.seq+1
	case 1:
		u.origin, u.seq = r.u64(), r.uvarint()
	default:
		r.bad = true
	}
	from := r.b
	u.deps = u.deps[:0]
	for range r.count(9) {
		u.deps = append(u.deps, dependency{r.u64(), r.uvarint()})
	}
	body := r.take(r.uvarint())
	if r.bad || u.origin == 0 || u.seq == 0 {
		return false
	}
	u.data = from[: len(from)-len(r.b) : len(from)-len(r.b)]
	return parseRecord(body, &u.rec)
}

// record reads what u carries.
func (u *update) record() (rec codec.Record, ok bool) {
	r := reader{b: u.data}
	for range r.count(9) {
		r.u64()
		r.uvarint()
	}
	ok = parseRecord(r.take(r.uvarint()), &rec)
	return rec, ok
}

// parseRecord reads exactly one record.
func parseRecord(b []byte, rec *codec.Record) bool {
	r := codec.Bare(b)
	return r.Next(rec) && len(r.Rest()) == 0 && rec.Version != 0 && (rec.Kind == codec.KindChange || rec.Kind == codec.KindFlush)
}

// A MISSING frame is spans: uvarint count; each: origin u64, first uvarint, uvarint how
// many more.
func appendSpans(b []byte, spans []span) []byte {
	b = binary.AppendUvarint(b, uint64(len(spans)))
	for _, s := range spans {
		b = binary.LittleEndian.AppendUint64(b, s.origin)
		b = binary.AppendUvarint(b, s.first)
		b = binary.AppendUvarint(b, s.last-s.first)
	}
	return b
}

func parseSpans(b []byte) (spans []span, ok bool) {
	r := reader{b: b}
	for range r.count(10) {
		s := span{r.u64(), r.uvarint(), 0}
		s.last = s.first + r.uvarint()
		r.bad = r.bad || s.last < s.first
		spans = append(spans, s)
	}
	return spans, r.end()
}

// digest is what a member tells of how far it is.
type digest struct {
	flags     byte
	time      int64  // its clock, unix milliseconds
	node      uint16 // that clock's bits in its versions
	hash      uint64 // of its whole vector
	cell      sketch.Cell
	floor     attune.Version // of its newest flush
	collected attune.Version // its cut
	entries   []dependency   // what has changed in its vector, or all of it
}

const (
	digestFull  = 1 << iota // entries is the whole vector
	digestReady             // it serves clients
	digestDeaf              // it hears of some only by way of others
	digestSlow              // its store takes less than is written: write less
	digestFlags = 1<<iota - 1
)

func (d *digest) append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, d.flags)
	b = le.AppendUint64(b, uint64(d.time))
	b = le.AppendUint16(b, d.node)
	b = le.AppendUint64(b, d.hash)
	b = le.AppendUint64(b, d.cell.Key)
	b = le.AppendUint64(b, d.cell.Mark)
	b = le.AppendUint64(b, d.cell.Sum)
	b = le.AppendUint64(b, uint64(d.cell.Count))
	b = le.AppendUint64(b, uint64(d.floor))
	b = le.AppendUint64(b, uint64(d.collected))
	return appendDeps(b, d.entries)
}

func parseDigest(b []byte) (d digest, ok bool) {
	r := reader{b: b}
	d.flags = r.u8()
	d.time = int64(r.u64())
	d.node = uint16(r.u8()) | uint16(r.u8())<<8
	d.hash = r.u64()
	d.cell = sketch.Cell{Key: r.u64(), Mark: r.u64(), Sum: r.u64(), Count: int64(r.u64())}
	d.floor, d.collected = attune.Version(r.u64()), attune.Version(r.u64())
	for range r.count(9) {
		d.entries = append(d.entries, dependency{r.u64(), r.uvarint()})
	}
	return d, r.end() && d.flags&^digestFlags == 0
}
