package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	typeIdentity byte = iota + 1
	typeHead
	typeBatch
	typeBound
	typeStateHead
	typeChunk
	typeEnd
)

const (
	headLen = 13 // of a record
	// maxRecord bounds one Append: far above what a client may store.
	maxRecord = 1 << 30
	// readAhead is the buffer files are read through.
	readAhead = 256 << 10
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// seedOf begins the checksums of record heads in one file, so that a record of
// another file, or of another life of this one, is none.
func seedOf(nonce uint64, kind byte, at Position) uint32 {
	b := le.AppendUint64(nil, nonce)
	b = append(b, kind)
	return crc32.Checksum(le.AppendUint64(b, uint64(at)), castagnoli)
}

// check is the second checksum of a record's head at offset at.
func check(head []byte, seed uint32, at int64) uint32 {
	init := seed ^ uint32(at) ^ uint32(at>>32)*0x9e3779b1
	return crc32.Update(init, castagnoli, head[:9])
}

// seal fills in the head of a record: rec has headLen bytes of room, then the
// payload.
func seal(rec []byte, typ byte, seed uint32, at int64) {
	le.PutUint32(rec, uint32(len(rec)-headLen))
	le.PutUint32(rec[4:], crc32.Checksum(rec[headLen:], castagnoli))
	rec[8] = typ
	le.PutUint32(rec[9:], check(rec, seed, at))
}

// errBad is a record that is not what was written. It is never an I/O error.
var errBad = errors.New("bad record")

// badRecord is an errBad, and where.
type badRecord struct {
	at    int64
	short bool // the file ends within it
}

func (e *badRecord) Error() string { return fmt.Sprintf("bad record at offset %d", e.at) }
func (e *badRecord) Unwrap() error { return errBad }

// records reads a file of size bytes.
type records struct {
	r     *bufio.Reader
	size  int64
	at    int64 // of the next record
	seed  uint32
	limit int // of a payload
	head  [headLen]byte
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
	case left < headLen:
		return 0, nil, r.stop(true)
	}
	if _, err := io.ReadFull(r.r, r.head[:]); err != nil {
		return 0, nil, noEOF(err)
	}
	n := int64(le.Uint32(r.head[:]))
	if n == 0 || n > int64(r.limit) || le.Uint32(r.head[9:]) != check(r.head[:], r.seed, r.at) {
		return 0, nil, r.stop(false)
	}
	if n > left-headLen {
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
	r.at += headLen + n
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
	for from+headLen <= size {
		n := int(min(int64(len(b)), size-from))
		if _, err := r.ReadAt(b[:n], from); err != nil {
			return false, noEOF(err)
		}
		for i := 0; i+headLen <= n; i++ {
			if size := le.Uint32(b[i:]); size == 0 || size > maxRecord {
				continue
			}
			if le.Uint32(b[i+9:]) == check(b[i:], seed, from+int64(i)) {
				return true, nil
			}
		}
		from += int64(n - headLen + 1)
	}
	return false, nil
}

// appendBatch appends the payload of a batch.
func appendBatch(b []byte, records [][]byte) []byte {
	for _, r := range records {
		b = binary.AppendUvarint(b, uint64(len(r)))
		b = append(b, r...)
	}
	return b
}

// eachRecord calls fn with the records of a batch, parts of b, until it fails.
// Errors: fn's; errBad, behind the records that are well.
func eachRecord(b []byte, fn func(record []byte) error) error {
	for len(b) > 0 {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			return errBad
		}
		end := used + int(n)
		if err := fn(b[used:end:end]); err != nil {
			return err
		}
		b = b[end:]
	}
	return nil
}
