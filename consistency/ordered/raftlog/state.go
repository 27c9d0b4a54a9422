package raftlog

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/raft/v3/raftpb"
)

const (
	chunkLen = 256 << 10
	// syncEvery is how much of a state is written between syncs, with Always: all
	// of it at once at the end would make the log's own syncs wait for it.
	syncEvery = 16 << 20
)

// SaveState writes what write writes to disk, as the state of the state machine
// after meta.Index, which must have been saved, with meta.Term, and the members
// then. It returns when that is what a restart goes on from, and what it makes
// needless is deleted: older states, segments with nothing newer. On an error the
// last state stays what it was. In memory it does nothing, and does not call write.
//
// It may be called from any goroutine; of several, one goes on at a time. Errors:
// write's, those of the disk; that the state is older than the one there; that
// the log was closed, or started again, meanwhile.
func (l *Log) SaveState(meta *pb.SnapshotMetadata, write func(io.Writer) error) error {
	if l.disk == nil {
		return nil
	}
	l.disk.saving.Lock()
	defer l.disk.saving.Unlock()
	if err := l.disk.saveState(meta, write); err != nil {
		return fmt.Errorf("save the state at %d: %w", meta.GetIndex(), err)
	}
	return nil
}

func (d *disk) saveState(meta *pb.SnapshotMetadata, write func(io.Writer) error) error {
	index := meta.GetIndex()
	d.mu.Lock()
	err := d.maySaveLocked(d.charter.nonce, index)
	nonce := d.charter.nonce
	d.mu.Unlock()
	if err != nil {
		return err
	}
	// Of what is written from here on nothing may be in the state.
	mark := d.written.Load()
	tmp := fmt.Sprintf("%s-%08x%s", numbered(statePrefix, index), rand.Uint32(), tmpSuffix)
	file, err := d.create(tmp)
	if err != nil {
		return err
	}
	w := &stateWriter{disk: d, file: file, nonce: nonce, index: index, seed: seedOf(nonce, 's', index)}
	err = errors.Join(w.writeAll(meta, write), file.Close())
	if err == nil {
		err = d.publish(tmp, nonce, index, mark)
	}
	if err != nil {
		// A tmp that cannot be removed now is at the next Open.
		_ = d.remove(tmp)
	}
	return err
}

// maySaveLocked is why a state at index of the log with that nonce cannot be saved.
func (d *disk) maySaveLocked(nonce, index uint64) error {
	switch newest := d.newest.Load(); {
	case d.shut:
		return errClosed
	case d.charter.nonce != nonce:
		return errOther
	case !d.known:
		return errNotStarted
	case index > newest:
		return fmt.Errorf("the log ends at %d", newest)
	case len(d.states) > 0 && d.states[len(d.states)-1] > index:
		return fmt.Errorf("a newer one is there, at %d", d.states[len(d.states)-1])
	}
	return nil
}

// publish makes a written file the state.
func (d *disk) publish(tmp string, nonce, index uint64, mark int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.maySaveLocked(nonce, index); err != nil {
		return err
	}
	if err := d.rename(tmp, numbered(statePrefix, index)); err != nil {
		return err
	}
	if n := len(d.states); n == 0 || d.states[n-1] != index {
		d.states = append(d.states, index)
	}
	if d.sync == Always {
		if err := d.syncDir(); err != nil {
			return err
		}
	}
	d.covered.Store(mark)
	if err := d.dropLocked(index); err != nil {
		return fmt.Errorf("it is saved, but what it makes needless is not deleted: %w", err)
	}
	return nil
}

// stateWriter gathers chunks.
type stateWriter struct {
	*disk
	file     *os.File
	nonce    uint64
	index    uint64
	seed     uint32
	at       int64 // of the next record
	unsynced int64
	total    uint64 // of chunks
	buf      []byte // headLen of room, and the payload
}

func (w *stateWriter) writeAll(meta *pb.SnapshotMetadata, write func(io.Writer) error) error {
	w.buf = make([]byte, headLen, headLen+chunkLen)
	w.buf = le.AppendUint64(w.buf, w.nonce)
	head, err := proto.MarshalOptions{}.MarshalAppend(w.buf, meta)
	if err != nil {
		return err
	}
	if len(head) > headLen+chunkLen {
		return fmt.Errorf("metadata of %d bytes", len(head))
	}
	w.buf = head
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
	w.mu.Lock()
	err := w.maySaveLocked(w.nonce, w.index)
	w.mu.Unlock()
	if err != nil {
		return err
	}
	seal(w.buf, typ, w.seed, w.at)
	if err := w.write(w.file, w.buf); err != nil {
		return err
	}
	n := int64(len(w.buf))
	w.at, w.unsynced = w.at+n, w.unsynced+n
	w.buf = w.buf[:headLen]
	if w.unsynced >= syncEvery {
		w.unsynced = 0
		return w.durable(w.file)
	}
	return nil
}

// LoadState calls read with the newest state, and a reader of exactly what write
// wrote; not at all if there is none. If the file is damaged, r says so at the
// latest at its end, and LoadState does; what was read then is worth nothing, and
// the caller exits, or goes on as a new member. Errors: read's, those of the disk.
func (l *Log) LoadState(read func(meta *pb.SnapshotMetadata, r io.Reader) error) error {
	d := l.disk
	if d == nil {
		return nil
	}
	d.mu.Lock()
	if len(d.states) == 0 {
		d.mu.Unlock()
		return nil
	}
	index, nonce := d.states[len(d.states)-1], d.charter.nonce
	r, err := d.openState(index, nonce) // under the lock, as the file may be replaced
	d.mu.Unlock()
	if err == nil {
		err = read(r.meta, r)
		if r.err != nil && r.err != io.EOF {
			err = r.err
		}
		err = errors.Join(err, r.file.Close())
	}
	if err != nil {
		return fmt.Errorf("load the state at %d: %w", index, err)
	}
	return nil
}

// stateReader reads the chunks of a state file.
type stateReader struct {
	file  *os.File
	meta  *pb.SnapshotMetadata
	recs  *records
	rest  []byte // of the chunk
	total uint64 // of the chunks
	err   error  // for ever
}

// openState reads the head of a state file. Errors: errBad, those of reading.
func (f *files) openState(index, nonce uint64) (*stateReader, error) {
	file, err := os.Open(f.path(numbered(statePrefix, index)))
	if err != nil {
		return nil, err
	}
	r := &stateReader{file: file}
	if err := r.open(index, nonce); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return r, nil
}

func (r *stateReader) open(index, nonce uint64) error {
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	r.recs = newRecords(r.file, info.Size(), seedOf(nonce, 's', index), chunkLen)
	typ, payload, err := r.recs.next()
	if err == io.EOF {
		return errBad
	}
	if err != nil {
		return err
	}
	r.meta = new(pb.SnapshotMetadata)
	if typ != typeStateHead || len(payload) < 8 || le.Uint64(payload) != nonce ||
		proto.Unmarshal(payload[8:], r.meta) != nil || r.meta.GetIndex() != index {
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
func (f *files) verifyState(index, nonce uint64) (*pb.SnapshotMetadata, error) {
	r, err := f.openState(index, nonce)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, r)
	return r.meta, errors.Join(err, r.file.Close())
}
