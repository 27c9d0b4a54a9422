package journal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/attunekv/attune/consistency/disk"
)

// typeBound is a record of our own.
const typeBound = disk.TypeOwn

var le = binary.LittleEndian

// segment is a file of the journal: [start, end).
type segment struct{ start, end Position }

// rollLocked begins the next segment, where the journal ends.
func (j *Journal) rollLocked() error {
	at := j.Mark()
	next, err := j.dir.NewSegment(j.charter.Nonce, uint64(at), nil)
	if err != nil {
		return err
	}
	if j.active != nil {
		j.closed = append(j.closed, segment{j.start(), at})
		if err := j.active.Close(); err != nil {
			return errors.Join(err, next.Close())
		}
	}
	j.active = next
	return nil
}

// start is where the active segment begins.
func (j *Journal) start() Position { return Position(j.active.Number) }

// positionIn is the place in the journal of an offset in the segment that begins at
// start: a segment's head is not counted.
func positionIn(start Position, offset int64) Position {
	return start + Position(offset-disk.SegmentHead)
}

func (j *Journal) closeActiveLocked() error {
	err := j.active.Close()
	j.active = nil
	return err
}

// appendLocked appends a record: disk.HeadLen bytes of room, then the payload. Its
// failure is remembered.
func (j *Journal) appendLocked(typ byte, rec []byte) error {
	if err := j.usableLocked(); err != nil {
		return err
	}
	if int64(j.Mark()-j.start()) >= j.dir.SegmentBytes {
		if err := j.rollLocked(); err != nil {
			j.failed = fmt.Errorf("begin another segment: %w", err)
			return j.failed
		}
	}
	j.failed = j.writeLocked(typ, rec)
	return j.failed
}

// writeLocked writes a record to the active segment.
func (j *Journal) writeLocked(typ byte, rec []byte) error {
	if err := j.active.Append(typ, rec); err != nil {
		return err
	}
	j.end.Add(int64(len(rec)))
	return nil
}

// boundRecord is a record of a bound, with room for its head.
func boundRecord(ms int64) []byte {
	return le.AppendUint64(make([]byte, disk.HeadLen, disk.HeadLen+8), uint64(ms))
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
// Errors: fn's; disk.ErrBad, behind the records that are well.
func eachRecord(b []byte, fn func(record []byte) error) error {
	for len(b) > 0 {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			return disk.ErrBad
		}
		end := used + int(n)
		if err := fn(b[used:end:end]); err != nil {
			return err
		}
		b = b[end:]
	}
	return nil
}
