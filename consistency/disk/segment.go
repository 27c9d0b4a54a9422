package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"go.uber.org/zap"
)

// SegmentHead is the length of a segment's first record, without what its engine has
// in it.
const SegmentHead = HeadLen + 16

// Active is the segment that is appended to.
type Active struct {
	Number uint64
	Size   int64
	files  *Files
	file   *os.File
	seed   uint32
}

// NewSegment begins a segment, whose first record has own at its end.
func (f *Files) NewSegment(nonce, n uint64, own []byte) (*Active, error) {
	file, err := f.create(Segment(n))
	if err != nil {
		return nil, err
	}
	a := &Active{Number: n, files: f, file: file, seed: seedOf(nonce, 'l', n)}
	b := le.AppendUint64(make([]byte, HeadLen, SegmentHead+len(own)), nonce)
	b = append(le.AppendUint64(b, n), own...)
	if err = a.Append(TypeHead, b); err == nil {
		err = f.DurableNames()
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return a, nil
}

// Resume goes on with a segment that is good up to size. What is behind is cut off.
func (f *Files) Resume(nonce, n uint64, size int64) (*Active, error) {
	file, err := os.OpenFile(f.path(Segment(n)), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	a := &Active{Number: n, Size: size, files: f, file: file, seed: seedOf(nonce, 'l', n)}
	if err := a.cut(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return a, nil
}

func (a *Active) cut() error {
	was, err := a.file.Seek(0, io.SeekEnd)
	if err != nil || was == a.Size {
		return err
	}
	a.files.Log.Info("dropped what was being written when the process ended",
		zap.String("file", Segment(a.Number)), zap.Int64("bytes", was-a.Size))
	if err := a.files.truncate(a.file, a.Size); err != nil {
		return err
	}
	return a.files.durable(a.file)
}

// Append appends a record, as durable as Sync says: HeadLen bytes of room, then the
// payload, of at most [MaxRecord] bytes. It is one write, and with Always one sync.
// After an error nothing may be appended: what is on disk is not known.
func (a *Active) Append(typ byte, rec []byte) error {
	seal(rec, typ, a.seed, a.Size)
	if err := a.files.write(a.file, rec); err != nil {
		return err
	}
	if err := a.files.durable(a.file); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	a.Size += int64(len(rec))
	return nil
}

// Close lets go of the file. Nothing is written. A nil Active is closed.
func (a *Active) Close() error {
	if a == nil {
		return nil
	}
	return a.file.Close()
}

// ReadSegment calls fn with the records of a segment and their offsets; with what is
// the engine's own of the first, at offset 0. It returns how far it is good: a bad
// record at the end of the newest segment is where that ends, and if that is its head,
// it is 0. Errors: fn's; ErrBad; those of reading.
func (f *Files) ReadSegment(c *Charter, n uint64, newest bool, fn func(at int64, typ byte, payload []byte) error) (size int64, err error) {
	file, err := os.Open(f.path(Segment(n)))
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	r := newRecords(file, info.Size(), seedOf(c.Nonce, 'l', n), MaxRecord)
	for {
		at := r.at
		typ, payload, err := r.next()
		if bad, ok := errors.AsType[*badRecord](err); ok && newest {
			torn, err := bad.torn(c.Sync, file, r)
			if torn || err != nil {
				return at, err
			}
		}
		switch {
		case err == io.EOF && at == 0 && !newest:
			err = ErrBad
		case err == io.EOF:
			return at, nil
		case err != nil:
		case (at == 0) != (typ == TypeHead):
			err = ErrBad
		case at > 0:
			err = fn(at, typ, payload)
		case len(payload) < 16 || le.Uint64(payload) != c.Nonce || le.Uint64(payload[8:]) != n:
			err = ErrBad
		default:
			err = fn(at, typ, payload[16:])
		}
		if err != nil {
			return 0, fmt.Errorf("%s at offset %d: %w", Segment(n), at, err)
		}
	}
}

// torn reports whether the last write before the end of a process can have left the
// bad record, if that is in the newest file. While the machine runs a write can only
// be short. After a loss of power it may be anything, but there is nothing behind.
func (e *badRecord) torn(s Sync, file io.ReaderAt, r *records) (bool, error) {
	if e.short || s != Always {
		return e.short, nil
	}
	behind, err := headBehind(file, e.at+1, r.size, r.seed)
	return !behind, err
}
