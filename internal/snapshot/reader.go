package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// growth is by how much memory for a block grows: a length may be a lie.
const growth = 1 << 20

// Reader reads a snapshot. It reads no byte behind it, and all of a block at once.
type Reader struct {
	Header Header

	r       io.Reader
	at      int64 // bytes read
	crc     uint32
	block   []byte
	rest    []byte // of block: records not returned yet
	restAt  int64  // where block begins
	records int64
	summary Summary
	err     error // is the end, in whatever way
}

// NewReader reads a snapshot's beginning. Errors: [ErrNone], [ErrFormat], and those of
// Next.
func NewReader(r io.Reader) (*Reader, error) {
	in := &Reader{r: r}
	line := make([]byte, len(firstLine))
	if err := in.read(line); err != nil {
		line = line[:in.at]
		if !errors.Is(err, ErrCutOff) || len(line) > 0 && bytes.HasPrefix([]byte(firstLine), line) {
			return nil, err
		}
	}
	if string(line) != firstLine {
		if bytes.HasPrefix(line, []byte(magic)) {
			return nil, fmt.Errorf("%w: this version of attune reads format %d, the file begins %q", ErrFormat, format, line)
		}
		return nil, fmt.Errorf("%w: it begins %q, not %q", ErrNone, line, firstLine)
	}
	kind, err := in.next()
	if err != nil {
		return nil, err
	}
	if kind != kindHeader {
		return nil, in.corrupt("no header, but a block of kind %q", kind)
	}
	if err := json.Unmarshal(in.block, &in.Header); err != nil {
		return nil, in.corrupt("header: %v", err)
	}
	return in, nil
}

// Next reads an item into rec, whose slices are valid until the next call. [io.EOF] is
// the end of a whole snapshot. Errors: [ErrCorrupt], [ErrCutOff], [ErrFailed], r's.
func (r *Reader) Next(rec *Record) error {
	for len(r.rest) == 0 {
		if r.err != nil {
			return r.err
		}
		if r.err = r.advance(); r.err != nil {
			return r.err
		}
	}
	if err := r.decode(rec); err != nil {
		r.rest, r.err = nil, err
		return err
	}
	r.records++
	return nil
}

// Summary is what the snapshot says of itself at its end; Next has returned io.EOF.
func (r *Reader) Summary() Summary { return r.summary }

// Offset is how many bytes were read.
func (r *Reader) Offset() int64 { return r.at }

// advance reads the next block.
func (r *Reader) advance() error {
	kind, err := r.next()
	if err != nil {
		return err
	}
	switch kind {
	case kindRecords:
		r.rest = r.block
		if len(r.rest) == 0 {
			return r.corrupt("a block without records")
		}
		return nil
	case kindEnd:
		if err := json.Unmarshal(r.block, &r.summary); err != nil {
			return r.corrupt("summary: %v", err)
		}
		if r.summary.Records != r.records {
			return r.corrupt("it has %d records, and says %d", r.records, r.summary.Records)
		}
		return io.EOF
	case kindFailed:
		return fmt.Errorf("%w, at byte %d: %s", ErrFailed, r.restAt, r.block)
	default:
		return r.corrupt("a block of kind %q", kind)
	}
}

// next reads a block, and compares its checksum.
func (r *Reader) next() (kind byte, err error) {
	r.restAt = r.at
	var head [headLen]byte
	if err := r.read(head[:]); err != nil {
		return 0, err
	}
	kind, size := head[0], le.Uint32(head[1:])
	if size > maxBlock || kind != kindRecords && size > maxText {
		return 0, r.corrupt("a block of kind %q and %d bytes", kind, size)
	}
	r.block = r.block[:0]
	for left := int(size); left > 0; {
		n := min(left, growth)
		have := len(r.block)
		r.block = append(r.block, make([]byte, n)...)
		if err := r.read(r.block[have:]); err != nil {
			return 0, err
		}
		left -= n
	}
	want := r.crc
	var sum [sumLen]byte
	if err := r.read(sum[:]); err != nil {
		return 0, err
	}
	r.crc = want // see Writer.sum
	if got := le.Uint32(sum[:]); got != want {
		return 0, r.corrupt("checksum %08x, should be %08x", got, want)
	}
	return kind, nil
}

// decode takes a record from the block.
func (r *Reader) decode(rec *Record) error {
	b := r.rest
	if len(b) < fixedLen {
		return r.corrupt("a record of %d bytes", len(b))
	}
	keyLen, state, size := int(b[0]), b[1], le.Uint32(b[14:])
	if keyLen < 1 || keyLen > MaxKey || size > MaxValue || state&^(stateStale|stateLeased) != 0 {
		return r.corrupt("a record with a key of %d and a value of %d bytes, and state %#x", keyLen, size, state)
	}
	if len(b)-fixedLen < keyLen+int(size) {
		return r.corrupt("a record with a key of %d and a value of %d bytes, of which %d are there", keyLen, size, len(b)-fixedLen)
	}
	value := b[fixedLen+keyLen:]
	*rec = Record{
		Key: b[fixedLen:][:keyLen:keyLen], Value: value[:size:size],
		Flags: le.Uint32(b[2:]), Expires: int64(le.Uint64(b[6:])),
		Stale: state&stateStale != 0, Leased: state&stateLeased != 0,
	}
	r.rest = value[size:]
	return nil
}

// corrupt is an error of the block that was read last.
func (r *Reader) corrupt(why string, args ...any) error {
	return fmt.Errorf("%w, in the block at byte %d: %s", ErrCorrupt, r.restAt, fmt.Sprintf(why, args...))
}

// read fills b. An end of the file is never expected.
func (r *Reader) read(b []byte) error {
	n, err := io.ReadFull(r.r, b)
	r.at += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w after %d bytes", ErrCutOff, r.at)
	}
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", r.at, err)
	}
	r.crc = crc32.Update(r.crc, castagnoli, b)
	return nil
}
