package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"go.uber.org/zap"
)

const (
	chunkLen = 256 << 10
	// syncEvery is how much of a state is written between syncs, with Always: all
	// of it at once at the end would make the syncs of segments wait for it.
	syncEvery = 16 << 20
)

// WriteState writes what write writes to a file, which [Files.PublishState] makes a
// state. Its head is the engine's own. Before each record may is asked, and ends it by
// its error. Errors: these; write's; those of the disk. There is no file then.
func (f *Files) WriteState(nonce, n uint64, head []byte, may func() error, write func(io.Writer) error) error {
	if len(head) > chunkLen-8 {
		return fmt.Errorf("head of %d bytes", len(head))
	}
	if err := f.Remove(State(n) + tmpSuffix); err != nil { // of one that failed
		return err
	}
	file, err := f.create(State(n) + tmpSuffix)
	if err != nil {
		return err
	}
	w := &stateWriter{files: f, file: file, seed: seedOf(nonce, 's', n), may: may}
	w.buf = make([]byte, HeadLen, HeadLen+chunkLen)
	w.buf = append(le.AppendUint64(w.buf, nonce), head...)
	if err := errors.Join(w.writeAll(write), file.Close()); err != nil {
		f.DropState(n)
		return err
	}
	return nil
}

// PublishState makes a file that was written the state of its number.
func (f *Files) PublishState(n uint64) error {
	err := f.rename(State(n)+tmpSuffix, State(n))
	if err != nil {
		f.DropState(n)
	}
	return err
}

// DropState forgets a file that was written. One that cannot be removed now is the
// next time, or by the next Recover.
func (f *Files) DropState(n uint64) { _ = f.Remove(State(n) + tmpSuffix) }

// stateWriter gathers chunks.
type stateWriter struct {
	files    *Files
	file     *os.File
	seed     uint32
	may      func() error
	at       int64 // of the next record
	unsynced int64
	total    uint64 // of chunks
	buf      []byte // HeadLen of room, and the payload
}

func (w *stateWriter) writeAll(write func(io.Writer) error) error {
	if err := w.flush(typeStateHead); err != nil {
		return err
	}
	if err := write(w); err != nil {
		return err
	}
	if len(w.buf) > HeadLen {
		if err := w.flush(typeChunk); err != nil {
			return err
		}
	}
	w.buf = le.AppendUint64(w.buf, w.total)
	if err := w.flush(typeEnd); err != nil {
		return err
	}
	return w.files.durable(w.file)
}

// Write implements [io.Writer].
func (w *stateWriter) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		k := min(len(p)-n, HeadLen+chunkLen-len(w.buf))
		w.buf = append(w.buf, p[n:n+k]...)
		n += k
		w.total += uint64(k)
		if len(w.buf) == HeadLen+chunkLen {
			if err := w.flush(typeChunk); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// flush writes a record.
func (w *stateWriter) flush(typ byte) error {
	if err := w.may(); err != nil {
		return err
	}
	seal(w.buf, typ, w.seed, w.at)
	if err := w.files.write(w.file, w.buf); err != nil {
		return err
	}
	n := int64(len(w.buf))
	w.at, w.unsynced = w.at+n, w.unsynced+n
	w.buf = w.buf[:HeadLen]
	if w.unsynced >= syncEvery {
		w.unsynced = 0
		return w.files.durable(w.file)
	}
	return nil
}

// StateReader reads a state: exactly what write wrote. If the file is damaged, it
// says so at the latest at its end.
type StateReader struct {
	Head  []byte // the engine's own
	file  *os.File
	recs  *records
	rest  []byte // of the chunk
	total uint64 // of the chunks
	err   error  // for ever
}

// OpenState opens a state, for [StateReader.Use]. Errors: ErrBad, those of reading.
func (f *Files) OpenState(nonce, n uint64) (*StateReader, error) {
	file, err := os.Open(f.path(State(n)))
	if err != nil {
		return nil, err
	}
	r := &StateReader{file: file}
	if err := r.open(nonce, n); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

func (r *StateReader) open(nonce, n uint64) error {
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	r.recs = newRecords(r.file, info.Size(), seedOf(nonce, 's', n), chunkLen)
	typ, payload, err := r.recs.next()
	if err == io.EOF {
		return ErrBad
	}
	if err != nil {
		return err
	}
	if typ != typeStateHead || len(payload) < 8 || le.Uint64(payload) != nonce {
		return ErrBad
	}
	r.Head = slices.Clone(payload[8:])
	return nil
}

// Use calls read with r, and closes it. Errors: read's; ErrBad, also if read did not
// look at it; those of reading.
func (r *StateReader) Use(read func(io.Reader) error) error {
	err := read(r)
	if r.err != nil && r.err != io.EOF {
		err = r.err
	}
	return errors.Join(err, r.file.Close())
}

// Read implements [io.Reader].
func (r *StateReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err == nil {
			r.err = r.next()
		}
		if r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *StateReader) next() error {
	typ, payload, err := r.recs.next()
	if err == io.EOF {
		return fmt.Errorf("it has no end: %w", ErrBad)
	}
	if err != nil {
		return err
	}
	switch {
	case typ == typeChunk:
		r.rest = payload
		r.total += uint64(len(payload))
		return nil
	case typ == typeEnd && len(payload) == 8 && le.Uint64(payload) == r.total && r.recs.at == r.recs.size:
		return io.EOF
	}
	return &badRecord{at: r.recs.at}
}

// NewestState finds, of the states of these numbers, the newest that is whole, and
// whose head, the engine's own, is taken by read. Errors: those of reading.
func (f *Files) NewestState(nonce uint64, states []uint64, read func(n uint64, head []byte) error) (n uint64, found bool, err error) {
	for _, n := range slices.Backward(states) {
		r, err := f.OpenState(nonce, n)
		if err == nil {
			err = r.Use(func(r io.Reader) error {
				_, err := io.Copy(io.Discard, r)
				return err
			})
		}
		if err == nil {
			err = read(n, r.Head)
		}
		if err == nil {
			return n, true, nil
		}
		if !errors.Is(err, ErrBad) {
			return 0, false, err
		}
		f.Log.Error("a state file is damaged", zap.String("file", State(n)), zap.Error(err))
	}
	return 0, false, nil
}
