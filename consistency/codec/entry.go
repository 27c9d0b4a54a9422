package codec

import (
	"encoding/binary"
	"fmt"

	"github.com/attunekv/attune"
)

// entryFormat is the version of log entries.
const entryFormat = 1

// keepBuffer is how much memory a Builder keeps from one entry to the next, in
// bytes: that of a rare large value is given back.
const keepBuffer = 1 << 20

// Header is what all records of an entry share.
type Header struct {
	// Batch names the proposal to who made it.
	Batch uint64
	// Time is the log clock, in unix milliseconds.
	Time int64
	// Base is a version not newer than that of any record; the nearer, the
	// shorter the entry.
	Base attune.Version
}

// issued is the version that a clock showing time, in unix milliseconds, would
// issue, so the distance of a Base from it is small. For numbers that are no
// times it wraps around, both ways.
func issued(time int64) attune.Version {
	const epoch = 1577836800000 // see attune.Version
	return attune.Version(time-epoch) << 22
}

// Kind says what a Record is.
type Kind uint8

const (
	// KindChange: Record.Change, which is stamped.
	KindChange Kind = iota
	// KindFlush kills every item whose version is not newer than Record.Version.
	KindFlush
	// KindFlushAt has that happen when the log clock reaches Record.At; 0 cancels.
	KindFlushAt
	// KindFormed: the cluster has its first size.
	KindFormed
)

// Record is one thing an entry does.
type Record struct {
	Kind Kind
	// Version is also that of Change.Item.
	Version attune.Version
	// Change is set with KindChange. Its key has a text, without the hash, which
	// every reader computes; or the hash, without a text.
	Change attune.Change
	At     int64 // with KindFlushAt, in unix milliseconds
}

// The first byte of a record: its kind in two bits, and of a change what it has.
const (
	kindBits   = 3
	hasText    = 1 << 2 // the key's text; else its hash
	hasBytes   = 1 << 3 // a value that is new with this change; else Stored and Size
	isDeleted  = 1 << 4 // neither, and no details
	hasDetails = 1 << 5 // a second byte, see below
	priorBlind = 1 << 6 // Prior is AnyVersion
	priorGiven = 1 << 7 // Prior follows; neither bit: 0
)

// The second byte of a change.
const (
	hasExpires = 1 << iota
	hasFlags
	hasCAS // not that of Stored: a touch keeps both
	isStale
	isLeased
	details = 1<<5 - 1
)

// Builder makes entries. The zero value is ready for Begin.
type Builder struct {
	buf    []byte
	header Header
	count  int
}

// Begin starts an entry.
func (b *Builder) Begin(h Header) {
	if cap(b.buf) > keepBuffer {
		b.buf = nil
	}
	b.buf = append(b.buf[:0], entryFormat)
	b.buf = binary.AppendUvarint(b.buf, h.Batch)
	b.buf = binary.AppendUvarint(b.buf, zigzag(h.Time))
	b.buf = binary.AppendUvarint(b.buf, zigzag(int64(h.Base-issued(h.Time))))
	b.header, b.count = h, 0
}

// BeginBare starts a run of records that nothing is written before, and that
// share nothing: [Bare] reads it.
func (b *Builder) BeginBare() {
	if cap(b.buf) > keepBuffer {
		b.buf = nil
	}
	b.buf, b.header, b.count = b.buf[:0], Header{}, 0
}

// Raw returns what was built, in the Builder's memory.
func (b *Builder) Raw() []byte { return b.buf }

// Len is the bytes of the entry so far.
func (b *Builder) Len() int { return len(b.buf) }

// Count is the records of the entry so far.
func (b *Builder) Count() int { return b.count }

// Bytes returns the entry, in memory of its own: Raft keeps it, while the
// Builder begins the next.
func (b *Builder) Bytes() []byte { return append(make([]byte, 0, len(b.buf)), b.buf...) }

// start appends what all records begin with.
func (b *Builder) start(head byte, v attune.Version) {
	b.buf = append(b.buf, head)
	b.buf = binary.AppendUvarint(b.buf, uint64(v-b.header.Base))
	b.count++
}

// Mark adds a record that is no change; at matters to KindFlushAt only.
func (b *Builder) Mark(kind Kind, v attune.Version, at int64) {
	b.start(byte(kind), v)
	if kind == KindFlushAt {
		b.buf = binary.AppendUvarint(b.buf, zigzag(at))
	}
}

// Change adds a stamped change. If Stored is its Version it has new bytes, and
// Size is taken from Value; if not, Value is left out. Of a deletion there is
// nothing but key, Prior and Version. What one replica alone remembers does not
// travel. A key of more than 255 bytes is a panic.
func (b *Builder) Change(c *attune.Change) {
	it := &c.Item
	head, more := byte(KindChange), byte(0)
	if c.Key.Text != nil {
		head |= hasText
	}
	switch c.Prior {
	case 0:
	case attune.AnyVersion:
		head |= priorBlind
	default:
		head |= priorGiven
	}
	if it.Deleted {
		head |= isDeleted
	} else {
		if it.Stored == it.Version {
			head |= hasBytes
		}
		more = byte(when(it.Expires != 0, hasExpires) | when(it.Flags != 0, hasFlags) |
			when(it.CAS != uint64(it.Stored), hasCAS) | when(it.Stale, isStale) | when(it.Leased, isLeased))
		if more != 0 {
			head |= hasDetails
		}
	}
	b.start(head, it.Version)
	buf := b.buf
	if head&hasText != 0 {
		buf = appendKey(buf, c.Key.Text)
	} else {
		buf = binary.LittleEndian.AppendUint64(buf, c.Key.Hash[0])
		buf = binary.LittleEndian.AppendUint64(buf, c.Key.Hash[1])
	}
	if head&priorGiven != 0 {
		buf = binary.AppendUvarint(buf, uint64(it.Version-c.Prior))
	}
	if more != 0 {
		buf = append(buf, more)
		if more&hasExpires != 0 {
			buf = binary.AppendUvarint(buf, zigzag(it.Expires-b.header.Time))
		}
		buf = appendNonzero(buf, uint64(it.Flags))
		if more&hasCAS != 0 {
			buf = binary.AppendUvarint(buf, it.CAS)
		}
	}
	switch {
	case it.Deleted:
	case head&hasBytes != 0:
		buf = appendBytes(buf, it.Value)
	default:
		buf = binary.AppendUvarint(buf, uint64(it.Version-it.Stored))
		buf = binary.AppendUvarint(buf, uint64(it.Size))
	}
	b.buf = buf
}

// Reader reads an entry.
type Reader struct {
	Header Header
	d      decoder
}

// Open begins to read an entry. Errors: [ErrFormat], [ErrCorrupt].
func Open(data []byte) (Reader, error) {
	if len(data) > 0 && data[0] != entryFormat {
		return Reader{}, fmt.Errorf("log entry of format %d: %w", data[0], ErrFormat)
	}
	r := Reader{d: decoder{data: data}}
	r.d.byte()
	r.Header.Batch = r.d.uvarint()
	r.Header.Time = unzigzag(r.d.uvarint())
	r.Header.Base = issued(r.Header.Time) + attune.Version(unzigzag(r.d.uvarint()))
	if r.d.bad {
		return Reader{}, fmt.Errorf("log entry of %d bytes: %w", len(data), ErrCorrupt)
	}
	return r, nil
}

// Bare begins to read what was built after BeginBare, or some whole records of it.
func Bare(data []byte) Reader { return Reader{d: decoder{data: data}} }

// Rest is what follows the record that was read last.
func (r *Reader) Rest() []byte { return r.d.data }

// Err is [ErrCorrupt] if Next stopped early, or nil. An entry that was cut off
// between two records is not noticed here: storage and network must tell.
func (r *Reader) Err() error { return r.d.err() }

// Next reads the next record. Its key and value alias the entry. It returns false
// at the end, or at what cannot be read, see Err; then rec means nothing.
func (r *Reader) Next(rec *Record) bool {
	d := &r.d
	if len(d.data) == 0 || d.bad {
		return false
	}
	head := d.byte()
	*rec = Record{Kind: Kind(head & kindBits), Version: r.Header.Base + attune.Version(d.uvarint())}
	if rec.Kind == KindChange {
		r.change(head, rec)
		return !d.bad
	}
	d.check(head&^kindBits == 0)
	if rec.Kind == KindFlushAt {
		rec.At = unzigzag(d.uvarint())
	}
	return !d.bad
}

// change reads what follows a change's version.
func (r *Reader) change(head byte, rec *Record) {
	d, c, it := &r.d, &rec.Change, &rec.Change.Item
	it.Version = rec.Version
	if head&hasText != 0 {
		c.Key.Text = d.take(uint64(d.byte()))
	} else {
		c.Key.Hash = attune.KeyHash{d.u64(), d.u64()}
	}
	switch head & (priorBlind | priorGiven) {
	case priorBlind:
		c.Prior = attune.AnyVersion
	case priorGiven:
		c.Prior = it.Version - attune.Version(d.uvarint())
		d.check(c.Prior != 0 && c.Prior != attune.AnyVersion)
	case priorBlind | priorGiven:
		d.bad = true
	}
	if head&isDeleted != 0 {
		it.Deleted = true
		d.check(head&(hasBytes|hasDetails) == 0)
		return
	}
	var more byte
	var cas uint64
	if head&hasDetails != 0 {
		more = d.byte()
		d.check(more != 0 && more&^details == 0)
		if more&hasExpires != 0 {
			it.Expires = r.Header.Time + unzigzag(d.uvarint())
			d.check(it.Expires != 0)
		}
		it.Flags = d.u32(d.nonzero(more&hasFlags != 0))
		if more&hasCAS != 0 {
			cas = d.uvarint()
		}
		it.Stale, it.Leased = more&isStale != 0, more&isLeased != 0
	}
	if head&hasBytes != 0 {
		it.Stored = it.Version
		it.Value = d.take(d.uvarint())
		it.Size = len(it.Value)
	} else {
		it.Stored = it.Version - attune.Version(d.uvarint())
		it.Size = d.size(d.uvarint())
		d.check(it.Stored != it.Version)
	}
	it.CAS = uint64(it.Stored)
	if more&hasCAS != 0 {
		d.check(cas != it.CAS)
		it.CAS = cas
	}
}
