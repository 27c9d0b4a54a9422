package disk

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Types of records.
const (
	typeIdentity byte = iota + 1
	TypeHead          // of a segment
	TypeBatch         // of what is remembered
	TypeOwn           // in segments, as their engine uses it
	typeStateHead
	typeChunk
	typeEnd
)

const (
	// HeadLen is the length of a record's head.
	HeadLen = 13
	// MaxRecord bounds what is written at once: far above what a client may store, or
	// Raft hands out.
	MaxRecord = 1 << 30
	// readAhead is the buffer files are read through.
	readAhead = 256 << 10
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// seedOf begins the checksums of record heads in one file, so that a record of
// another file, or of another life of this one, is none.
func seedOf(nonce uint64, kind byte, number uint64) uint32 {
	b := le.AppendUint64(nil, nonce)
	b = append(b, kind)
	return crc32.Checksum(le.AppendUint64(b, number), castagnoli)
}

// check is the second checksum of a record's head at offset at.
func check(head []byte, seed uint32, at int64) uint32 {
	init := seed ^ uint32(at) ^ uint32(at>>32)*0x9e3779b1
	return crc32.Update(init, castagnoli, head[:9])
}

// seal fills in the head of a record: rec has HeadLen bytes of room, then the
// payload.
func seal(rec []byte, typ byte, seed uint32, at int64) {
	le.PutUint32(rec, uint32(len(rec)-HeadLen))
	le.PutUint32(rec[4:], crc32.Checksum(rec[HeadLen:], castagnoli))
	rec[8] = typ
	le.PutUint32(rec[9:], check(rec, seed, at))
}

// ErrBad is a record that is not what was written. It is never an I/O error.
var ErrBad = errors.New("bad record")

// badRecord is an ErrBad, and where.
type badRecord struct {
	at    int64
	short bool // the file ends within it
}

func (e *badRecord) Error() string { return fmt.Sprintf("bad record at offset %d", e.at) }
func (e *badRecord) Unwrap() error { return ErrBad }

// records reads a file of size bytes.
type records struct {
	r     *bufio.Reader
	size  int64
	at    int64 // of the next record
	seed  uint32
	limit int // of a payload
	head  [HeadLen]byte
	buf   []byte
	bad   *badRecord
}

func newRecords(r io.ReaderAt, size int64, seed uint32, limit int) *records {
	buffer := int(min(size, readAhead))
	return &records{r: bufio.NewReaderSize(io.NewSectionReader(r, 0, size), buffer), size: size, seed: seed, limit: limit}
}

// next returns a record's payload, valid until the next call. At the end the error
// is [io.EOF]; at something that is no record it is a [badRecord], for ever;
// others are those of reading.
func (r *records) next() (typ byte, payload []byte, err error) {
	left := r.size - r.at
	switch {
	case r.bad != nil:
		return 0, nil, r.bad
	case left == 0:
		return 0, nil, io.EOF
	case left < HeadLen:
		return 0, nil, r.stop(true)
	}
	if _, err := io.ReadFull(r.r, r.head[:]); err != nil {
		return 0, nil, noEOF(err)
	}
	n := int64(le.Uint32(r.head[:]))
	if n == 0 || n > int64(r.limit) || le.Uint32(r.head[9:]) != check(r.head[:], r.seed, r.at) {
		return 0, nil, r.stop(false)
	}
	if n > left-HeadLen {
		return 0, nil, r.stop(true)
	}
	if int64(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	r.buf = r.buf[:n]
	if _, err := io.ReadFull(r.r, r.buf); err != nil {
		return 0, nil, noEOF(err)
	}
	if crc32.Checksum(r.buf, castagnoli) != le.Uint32(r.head[4:]) {
		return 0, nil, r.stop(false)
	}
	r.at += HeadLen + n
	return r.head[8], r.buf, nil
}

// stop ends the reading: where the next record would be is not known.
func (r *records) stop(short bool) error {
	r.bad = &badRecord{r.at, short}
	return r.bad
}

// noEOF makes the end of a file that was longer a moment ago an I/O error.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// headBehind reports whether anywhere from offset from on a record begins. Its
// head is enough: that proves that there was one.
func headBehind(r io.ReaderAt, from, size int64, seed uint32) (bool, error) {
	b := make([]byte, max(0, min(size-from, readAhead)))
	for from+HeadLen <= size {
		n := int(min(int64(len(b)), size-from))
		if _, err := r.ReadAt(b[:n], from); err != nil {
			return false, noEOF(err)
		}
		for i := 0; i+HeadLen <= n; i++ {
			if size := le.Uint32(b[i:]); size == 0 || size > MaxRecord {
				continue
			}
			if le.Uint32(b[i+9:]) == check(b[i:], seed, from+int64(i)) {
				return true, nil
			}
		}
		from += int64(n - HeadLen + 1)
	}
	return false, nil
}
