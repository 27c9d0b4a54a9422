package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
)

const (
	chunkLen = 256 << 10
	// syncEvery is how much of a state is written between syncs, with Always: all
	// of it at once at the end would make the syncs of appends wait for it.
	syncEvery = 16 << 20
)

// Checkpoint writes what write writes to disk, as a state that has all that was
// appended before at, which Mark gave. It returns when that is what a restart goes on
// from, and what it makes needless is deleted: older states, segments with nothing
// later. Appends go on meanwhile, and all of them are replayed behind it. On an error
// the last state stays what it was, and the caller may try again later; except that
// if the directory could not be synced, nothing can be written any more. Errors:
// write's, those of the disk; that a newer state is there; what Append fails with.
func (j *Journal) Checkpoint(at Position, write func(io.Writer) error) error {
	j.one.Lock()
	defer j.one.Unlock()
	if err := j.checkpoint(at, write); err != nil {
		return fmt.Errorf("write a state of position %d: %w", at, err)
	}
	return nil
}

func (j *Journal) checkpoint(at Position, write func(io.Writer) error) error {
	// The bound of now is that of at, or higher: one that is before at is set when
	// mu is free.
	j.mu.Lock()
	err, nonce, bound := j.usableLocked(), j.charter.nonce, j.bound.Load()
	j.mu.Unlock()
	switch {
	case err != nil:
		return err
	case at > j.Mark():
		return fmt.Errorf("the journal ends at %d", j.Mark())
	case int64(at) < j.covered.Load():
		return fmt.Errorf("a newer one is there, of %d", j.covered.Load())
	}
	name := named(statePrefix, at)
	tmp := name + tmpSuffix
	if err := j.remove(tmp); err != nil { // of one that failed
		return err
	}
	file, err := j.create(tmp)
	if err != nil {
		return err
	}
	w := &stateWriter{Journal: j, file: file, seed: seedOf(nonce, 's', at)}
	err = errors.Join(w.writeAll(stateHead{nonce, at, bound}, write), file.Close())
	if err == nil {
		err = j.rename(tmp, name)
	}
	if err != nil {
		// A tmp that cannot be removed now is the next time.
		_ = j.remove(tmp)
		return err
	}
	if n := len(j.states); n == 0 || j.states[n-1] != at {
		j.states = append(j.states, at)
	}
	if j.syncs == Always {
		if err := j.syncDir(); err != nil {
			// If it succeeded the next time, that would prove nothing.
			j.mu.Lock()
			j.failed = fmt.Errorf("sync the directory: %w", err)
			j.mu.Unlock()
			return err
		}
	}
	j.covered.Store(int64(at))
	if err := j.drop(at); err != nil {
		return fmt.Errorf("it is there, but what it makes needless is not deleted: %w", err)
	}
	return nil
}

// drop removes what the state at makes needless. The older states go first, or one
// could be left without the records that belong behind it.
func (j *Journal) drop(at Position) error {
	for len(j.states) > 0 && j.states[0] < at {
		if err := j.remove(named(statePrefix, j.states[0])); err != nil {
			return err
		}
		j.states = j.states[1:]
	}
	for {
		j.mu.Lock()
		if len(j.closed) == 0 || j.closed[0].end > at {
			j.mu.Unlock()
			return nil
		}
		oldest := j.closed[0].start
		j.closed = j.closed[1:]
		j.mu.Unlock()
		// Not under mu: to remove a large file takes a while. One that stays is
		// removed by the next Open.
		if err := j.remove(named(logPrefix, oldest)); err != nil {
			return err
		}
	}
}

// stateHead is the payload of a state's first record.
type stateHead struct {
	nonce uint64
	at    Position
	bound int64
}

func (h stateHead) append(b []byte) []byte {
	b = le.AppendUint64(b, h.nonce)
	b = le.AppendUint64(b, uint64(h.at))
	return le.AppendUint64(b, uint64(h.bound))
}

// stateWriter gathers chunks.
type stateWriter struct {
	*Journal
	file     *os.File
	seed     uint32
	offset   int64 // of the next record
	unsynced int64
	total    uint64 // of chunks
	buf      []byte // headLen of room, and the payload
}

func (w *stateWriter) writeAll(h stateHead, write func(io.Writer) error) error {
	w.buf = h.append(make([]byte, headLen, headLen+chunkLen))
	if err := w.flush(typeStateHead); err != nil {
		return err
	}
	if err := write(w); err != nil {
		return err
	}
	if len(w.buf) > headLen {
		if err := w.flush(typeChunk); err != nil {
			return err
		}
	}
	w.buf = le.AppendUint64(w.buf, w.total)
	if err := w.flush(typeEnd); err != nil {
		return err
	}
	return w.durable(w.file)
}

// Write implements [io.Writer].
func (w *stateWriter) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		k := min(len(p)-n, headLen+chunkLen-len(w.buf))
		w.buf = append(w.buf, p[n:n+k]...)
		n += k
		w.total += uint64(k)
		if len(w.buf) == headLen+chunkLen {
			if err := w.flush(typeChunk); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// flush writes a record.
func (w *stateWriter) flush(typ byte) error {
	if w.closing.Load() {
		return errClosed
	}
	seal(w.buf, typ, w.seed, w.offset)
	if err := w.write(w.file, w.buf); err != nil {
		return err
	}
	n := int64(len(w.buf))
	w.offset, w.unsynced = w.offset+n, w.unsynced+n
	w.buf = w.buf[:headLen]
	if w.unsynced >= syncEvery {
		w.unsynced = 0
		return w.durable(w.file)
	}
	return nil
}

// LoadState calls read with a reader of exactly what write wrote for the newest
// state; not at all if there is none. If the file is damaged, the reader says so at the
// latest at its end, and LoadState does; what was read then is worth nothing, and the
// caller exits, or calls Start. Errors: read's, those of the disk.
func (j *Journal) LoadState(read func(io.Reader) error) error {
	j.one.Lock()
	defer j.one.Unlock()
	if len(j.states) == 0 {
		return nil
	}
	at := j.states[len(j.states)-1]
	r, err := j.openState(at, j.charter.nonce)
	if err == nil {
		err = read(r)
		if r.err != nil && r.err != io.EOF {
			err = r.err
		}
		err = errors.Join(err, r.file.Close())
	}
	if err != nil {
		return fmt.Errorf("load the state of position %d: %w", at, err)
	}
	return nil
}

// stateReader reads the chunks of a state file.
type stateReader struct {
	stateHead
	file  *os.File
	recs  *records
	rest  []byte // of the chunk
	total uint64 // of the chunks
	err   error  // for ever
}

// openState reads the head of a state file. Errors: errBad, those of reading.
func (f *files) openState(at Position, nonce uint64) (*stateReader, error) {
	file, err := os.Open(f.path(named(statePrefix, at)))
	if err != nil {
		return nil, err
	}
	r := &stateReader{file: file}
	if err := r.open(at, nonce); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

func (r *stateReader) open(at Position, nonce uint64) error {
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	r.recs = newRecords(r.file, info.Size(), seedOf(nonce, 's', at), chunkLen)
	typ, payload, err := r.recs.next()
	if err == io.EOF {
		return errBad
	}
	if err != nil {
		return err
	}
	if typ != typeStateHead || len(payload) != 24 {
		return errBad
	}
	r.stateHead = stateHead{le.Uint64(payload), Position(le.Uint64(payload[8:])), int64(le.Uint64(payload[16:]))}
	if r.nonce != nonce || r.at != at {
		return errBad
	}
	return nil
}

// Read implements [io.Reader].
func (r *stateReader) Read(p []byte) (int, error) {
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

func (r *stateReader) next() error {
	typ, payload, err := r.recs.next()
	if err == io.EOF {
		return fmt.Errorf("it has no end: %w", errBad)
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

// verifyState reads a state file to its end. Errors: errBad, those of reading.
func (f *files) verifyState(at Position, nonce uint64) (stateHead, error) {
	r, err := f.openState(at, nonce)
	if err != nil {
		return stateHead{}, err
	}
	_, err = io.Copy(io.Discard, r)
	return r.stateHead, errors.Join(err, r.file.Close())
}
