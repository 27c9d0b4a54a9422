package kvadapter

import (
	"encoding/binary"
	"slices"

	"github.com/attunekv/attune"
)

// A record is a chunk that begins with the key and holds as much of the value as
// fits; the rest follows in parts, all but the last of the greatest size. A
// Large value is outside, in its shard's larges.
//
//	record: next hash kind flags len version | key [gen] [first part or index] value
//	part:   next hash kind           3 spare | value
const (
	offFlags   = 13
	offLen     = 14 // uint16: of the value; 0 if it is Large
	offVersion = 16
	offKey     = 24

	offPart = 16
	partLen = maxChunk - offPart

	flagGen   = 1 << 0 // the generation is not the shard's, and stands after the key
	flagLarge = 1 << 1 // a uint32 follows: the index in shard.larges
	flagParts = 1 << 2 // a handle follows: the first part
)

// shape is what chunks a record takes. Records of one shape can overwrite each
// other in place.
type shape struct {
	flags uint8
	head  uint8 // class of the record's own chunk
	last  uint8 // class of the last part
	parts int
}

func (p *pool) shape(key, value int, foreign bool) (sp shape) {
	n := offKey + key
	if foreign {
		sp.flags |= flagGen
		n += 4
	}
	switch {
	case value >= Large:
		sp.flags |= flagLarge
		sp.head = p.classFor(n + 4)
	case n+value <= maxChunk:
		sp.head = p.classFor(n + value)
	default:
		sp.flags |= flagParts
		sp.head = p.classFor(maxChunk)
		rest := value - (maxChunk - n - 4)
		sp.parts = (rest + partLen - 1) / partLen
		sp.last = p.classFor(offPart + rest - (sp.parts-1)*partLen)
	}
	return sp
}

// shapeOf is the shape of a record that exists.
func (p *pool) shapeOf(b []byte) shape {
	value := int(binary.LittleEndian.Uint16(b[offLen:]))
	if b[offFlags]&flagLarge != 0 {
		value = Large
	}
	return p.shape(int(b[offKind]), value, b[offFlags]&flagGen != 0)
}

// body is what follows the key and the generation.
func body(b []byte) []byte {
	n := offKey + int(b[offKind])
	if b[offFlags]&flagGen != 0 {
		n += 4
	}
	return b[n:]
}

// newRecordLocked allots the chunks of a record and writes all but what
// writeLocked does. It returns 0 if handles ran out.
func (s *embedded) newRecordLocked(sh *shard, sp shape, hash uint64, text []byte) handle {
	h := s.alloc(sp.head, hash, uint8(len(text)))
	if h == 0 {
		return 0
	}
	b := s.chunk(h)
	b[offFlags] = sp.flags
	copy(b[offKey:], text)
	if sp.flags&flagLarge != 0 {
		binary.LittleEndian.PutUint32(body(b), uint32(len(sh.larges)))
		sh.larges = append(sh.larges, large{at: h})
	}
	if sp.flags&flagParts == 0 {
		return h
	}
	link := body(b)
	binary.LittleEndian.PutUint32(link, 0)
	for i := range sp.parts {
		c := sp.last
		if i < sp.parts-1 {
			c = s.classFor(maxChunk)
		}
		part := s.alloc(c, hash, kindPart)
		if part == 0 {
			s.freeRecordLocked(sh, h)
			return 0
		}
		binary.LittleEndian.PutUint32(link, uint32(part))
		link = s.chunk(part)[offNext:]
		binary.LittleEndian.PutUint32(link, 0)
	}
	return h
}

// writeLocked writes rec into a record of its shape.
func (s *embedded) writeLocked(sh *shard, h handle, rec Record) {
	b := s.chunk(h)
	binary.LittleEndian.PutUint64(b[offVersion:], uint64(rec.Stamp.Version))
	if b[offFlags]&flagGen != 0 {
		binary.LittleEndian.PutUint32(b[offKey+int(b[offKind]):], rec.Stamp.Gen)
	}
	rest := body(b)
	if b[offFlags]&flagLarge != 0 {
		binary.LittleEndian.PutUint16(b[offLen:], 0)
		s.setLargeLocked(sh, binary.LittleEndian.Uint32(rest), rec.Value)
		return
	}
	binary.LittleEndian.PutUint16(b[offLen:], uint16(len(rec.Value)))
	if b[offFlags]&flagParts == 0 {
		copy(rest, rec.Value)
		return
	}
	value := rec.Value[copy(rest[4:], rec.Value):]
	for part := handle(binary.LittleEndian.Uint32(rest)); part != 0; {
		b := s.chunk(part)
		value = value[copy(b[offPart:], value):]
		part = next(b)
	}
}

// readLocked returns a record, its value appended to buf[:0] unless it is Large.
func (s *embedded) readLocked(sh *shard, b, buf []byte) Record {
	rec := Record{Stamp: sh.stampLocked(b)}
	rest := body(b)
	if b[offFlags]&flagLarge != 0 {
		rec.Value = sh.larges[binary.LittleEndian.Uint32(rest)].value
		return rec
	}
	left := int(binary.LittleEndian.Uint16(b[offLen:]))
	buf = slices.Grow(buf[:0], left)
	if buf == nil {
		buf = []byte{} // an empty value is a value
	}
	if b[offFlags]&flagParts == 0 {
		rec.Value = append(buf, rest[:left]...)
		return rec
	}
	buf = append(buf, rest[4:]...)
	left -= len(rest) - 4
	for part := handle(binary.LittleEndian.Uint32(rest)); part != 0; {
		b := s.chunk(part)
		n := min(left, len(b)-offPart)
		buf = append(buf, b[offPart:offPart+n]...)
		left -= n
		part = next(b)
	}
	rec.Value = buf
	return rec
}

func (sh *shard) stampLocked(b []byte) Stamp {
	st := Stamp{Gen: sh.gen, Version: attune.Version(binary.LittleEndian.Uint64(b[offVersion:]))}
	if b[offFlags]&flagGen != 0 {
		st.Gen = binary.LittleEndian.Uint32(b[offKey+int(b[offKind]):])
	}
	return st
}

// sizeLocked is the length of a record's value.
func (sh *shard) sizeLocked(b []byte) int {
	if b[offFlags]&flagLarge != 0 {
		return len(sh.larges[binary.LittleEndian.Uint32(body(b))].value)
	}
	return int(binary.LittleEndian.Uint16(b[offLen:]))
}

// freeRecordLocked frees the chunks of a record that is in no bucket.
func (s *embedded) freeRecordLocked(sh *shard, h handle) {
	b := s.chunk(h)
	switch {
	case b[offFlags]&flagParts != 0:
		for part := handle(binary.LittleEndian.Uint32(body(b))); part != 0; {
			following := next(s.chunk(part))
			s.release(part)
			part = following
		}
	case b[offFlags]&flagLarge != 0:
		s.dropLargeLocked(sh, binary.LittleEndian.Uint32(body(b)))
	}
	s.release(h)
}

// largeCost is what a value kept by reference costs: what the heap made of it,
// in its pages of 8 KiB, and the reference.
func largeCost(value []byte) int64 {
	if value == nil {
		return 0
	}
	return int64(cap(value)+8191)&^8191 + 320
}

func (s *embedded) setLargeLocked(sh *shard, i uint32, value []byte) {
	delta := largeCost(value) - largeCost(sh.larges[i].value)
	sh.larges[i].value = value
	s.used.Add(delta)
	s.taken.Add(delta)
}

// dropLargeLocked forgets a value; the last of the list takes its place.
func (s *embedded) dropLargeLocked(sh *shard, i uint32) {
	s.setLargeLocked(sh, i, nil)
	end := len(sh.larges) - 1
	if moved := sh.larges[end]; int(i) != end {
		sh.larges[i] = moved
		binary.LittleEndian.PutUint32(body(s.chunk(moved.at)), i)
	}
	sh.larges[end] = large{}
	sh.larges = sh.larges[:end]
	if 4*end < cap(sh.larges) {
		sh.larges = append(make([]large, 0, 2*end), sh.larges...)
	}
}
