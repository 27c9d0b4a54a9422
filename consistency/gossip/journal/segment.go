package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// segmentHead is the length of a segment's first record. A position is that much
// further in the file than behind the segment's.
const segmentHead = headLen + 16

// segment is a file of the journal: [start, end).
type segment struct{ start, end Position }

// durable syncs file if that is what Sync asks for.
func (j *Journal) durable(file *os.File) error {
	if j.syncs != Always {
		return nil
	}
	return j.sync(file)
}

// rollLocked begins the next segment, where the journal ends.
func (j *Journal) rollLocked() error {
	at := j.Mark()
	file, err := j.create(named(logPrefix, at))
	if err != nil {
		return err
	}
	b := make([]byte, headLen, segmentHead)
	b = le.AppendUint64(b, j.charter.nonce)
	b = le.AppendUint64(b, uint64(at))
	seed := seedOf(j.charter.nonce, 'l', at)
	seal(b, typeHead, seed, 0)
	if err = j.write(file, b); err == nil {
		err = j.durable(file)
	}
	if err == nil && j.syncs == Always {
		err = j.syncDir()
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	if j.active != nil {
		was := segment{j.start, at}
		if err := j.closeActiveLocked(); err != nil {
			return errors.Join(err, file.Close())
		}
		j.closed = append(j.closed, was)
	}
	j.active, j.start, j.seed = file, at, seed
	return nil
}

func (j *Journal) closeActiveLocked() error {
	if j.active == nil {
		return nil
	}
	err := j.active.Close()
	j.active = nil
	return err
}

// appendLocked appends a record: headLen bytes of room, then the payload. Its
// failure is remembered.
func (j *Journal) appendLocked(typ byte, rec []byte) error {
	if err := j.usableLocked(); err != nil {
		return err
	}
	if int64(j.Mark()-j.start) >= j.segBytes {
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
	seal(rec, typ, j.seed, segmentHead+int64(j.Mark()-j.start))
	if err := j.write(j.active, rec); err != nil {
		return err
	}
	if err := j.durable(j.active); err != nil {
		return err
	}
	j.end.Add(int64(len(rec)))
	return nil
}

// boundRecord is a record of a bound, with room for its head.
func boundRecord(ms int64) []byte {
	return le.AppendUint64(make([]byte, headLen, headLen+8), uint64(ms))
}

// syncAllLocked syncs what was written without.
func (j *Journal) syncAllLocked() error {
	names := []string{named(logPrefix, j.start)}
	for _, s := range j.closed {
		names = append(names, named(logPrefix, s.start))
	}
	for _, at := range j.states {
		names = append(names, named(statePrefix, at))
	}
	for _, name := range names {
		if err := j.syncNamed(name); err != nil {
			return err
		}
	}
	return j.syncDir()
}

// scan calls fn with the records of s behind its head, and their positions. Errors:
// fn's; errBad, with a [badRecord] if it is not fn's and a record is not one; those
// of reading. Behind the last record that is well fn is not called.
func (j *Journal) scan(nonce uint64, s segment, fn func(at Position, typ byte, payload []byte) error) error {
	file, err := os.Open(j.path(named(logPrefix, s.start)))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	r := newRecords(file, segmentHead+int64(s.end-s.start), seedOf(nonce, 'l', s.start), maxRecord)
	for {
		offset := r.at
		typ, payload, err := r.next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
		case offset > 0:
			err = fn(s.start+Position(offset-segmentHead), typ, payload)
		case typ != typeHead || len(payload) != 16 || le.Uint64(payload) != nonce || Position(le.Uint64(payload[8:])) != s.start:
			err = errBad
		}
		if err != nil {
			return fmt.Errorf("%s at offset %d: %w", named(logPrefix, s.start), offset, err)
		}
	}
}
