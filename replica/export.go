package replica

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// Records on their way to another replica, in little endian:
//
//	1   recordFormat
//	    records: 1 key length, 1 to maxKey; 8 stored; 4 value length;
//	             key; value; 4 CRC-32C of everything before but checksums
//	1   0: the end
//	8   count of all records
//	4   CRC-32C of everything before but checksums
//
// Every record has a checksum because it is put before the next is read; and as it
// covers all that came before, records that are lost, repeated or exchanged are noticed
// at the next one. The hash is not sent: it follows from the text, so it cannot be wrong.
//
// States on disk may have format 1, whose checksums are of everything before: such a
// one is that of its own record alone.
const (
	recordFormat    = 2
	recordFormatOwn = 1
	recordBuffer    = 64 << 10
)

// Export writes the bytes there are, for [Replica.Import], key by key while the
// replica is used: of every item that has its bytes here, though one that is
// written or evicted meanwhile may be missing. Expired items are among them, for
// when that takes effect is not for one replica to say. Memory does not grow with
// the number of items; no lock is held while w writes. Errors: [ErrNoScan], the
// backend's, w's.
func (r *Replica) Export(ctx context.Context, w io.Writer) error {
	return r.export(ctx, w, func(each func(text []byte) bool) error { return r.Keys(ctx, each) })
}

// Keys calls fn for the keys that have their bytes here, or others that the store did
// not forget, in no order, some twice, and those that come or go meanwhile perhaps,
// until it returns false. The text is valid during the call. Errors: [ErrNoScan], the backend's.
func (r *Replica) Keys(ctx context.Context, fn func(text []byte) bool) error {
	// What leaves the stage meanwhile the backend has when it is scanned.
	if !r.eachStaged(fn) {
		return nil
	}
	if l, ok := r.backend.(kvadapter.Lister); ok {
		return l.Keys(ctx, func(text []byte) bool {
			return r.Peek(attune.Key{Hash: r.Hash(text)}, false).Version == 0 || fn(text)
		})
	}
	return r.Scan(ctx, func(text []byte, _ attune.Item) bool { return fn(text) })
}

// ExportKeys is [Replica.Export] for the keys named, and needs no list of them. Those
// whose bytes are not here are passed over.
func (r *Replica) ExportKeys(ctx context.Context, w io.Writer, texts [][]byte) error {
	return r.export(ctx, w, func(each func(text []byte) bool) error {
		for _, text := range texts {
			if !each(text) {
				break
			}
		}
		return context.Cause(ctx)
	})
}

// export writes the bytes of the keys that list tells until each returns false.
func (r *Replica) export(ctx context.Context, w io.Writer, list func(each func(text []byte) bool) error) error {
	buffer := bufio.NewWriterSize(w, recordBuffer)
	out := sumWriter{w: buffer}
	if err := out.write([]byte{recordFormat}); err != nil {
		return err
	}
	var (
		n      uint64
		failed error
		head   = make([]byte, 0, 13+maxKey)
		value  []byte
	)
	err := list(func(text []byte) bool {
		var it attune.Item
		it, failed = r.Get(ctx, attune.Key{Text: text, Hash: r.Hash(text)}, value, false)
		if errors.Is(failed, ErrGone) || errors.Is(failed, ErrBusy) || failed == nil && it.Version == 0 {
			failed = nil // evicted or overwritten since it was listed
			return true
		}
		if failed != nil {
			return false
		}
		head = append(head[:0], uint8(len(text)))
		head = le.AppendUint64(head, uint64(it.Stored))
		head = le.AppendUint32(head, uint32(len(it.Value)))
		head = append(head, text...)
		if failed = out.write(head); failed == nil {
			failed = out.write(it.Value)
		}
		if failed == nil {
			failed = out.sum()
		}
		if len(it.Value) < kvadapter.Large {
			value = it.Value
		}
		n++
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	if err := errors.Join(out.write(le.AppendUint64(append(head[:0], 0), n)), out.sum()); err != nil {
		return err
	}
	return buffer.Flush()
}

// eachStaged calls fn for the keys that have bytes on their way to the backend,
// with no lock held, until it returns false, as it then does.
func (r *Replica) eachStaged(fn func(text []byte) bool) bool {
	for i := range r.segs {
		s := &r.segs[i]
		var texts [][]byte
		s.mu.Lock()
		for _, st := range s.stage {
			if !st.delete && st.key.Text != nil {
				texts = append(texts, st.key.Text) // it is never modified
			}
		}
		s.mu.Unlock()
		for _, text := range texts {
			if !fn(text) {
				return false
			}
		}
	}
	return true
}

// Import reads what [Replica.Export] wrote and keeps, as Restore does, those
// bytes that the index names by then and the backend does not have; n is their
// number. It may be called while the replica is used. A record that the backend
// refuses as too large is passed over: a read will find it missing. So is one for which
// a store outside this process has no room, which may have some for others; but a
// durable store is waited for until it has, as all of them are to be there. What was
// kept before an error stays, and is right.
//
// rd is read ahead, save for a [bufio.Reader] of at least 64 KiB, which is left
// at the end of the stream. Errors: [ErrCorrupt], rd's, the backend's, the cause
// of ctx, which does not interrupt a read of rd; [io.ErrUnexpectedEOF] if it
// ended early.
func (r *Replica) Import(ctx context.Context, rd io.Reader) (n int64, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("records from a peer: %w", err)
		}
	}()
	src := sumReader{r: bufio.NewReaderSize(rd, recordBuffer)}
	var head [13 + maxKey]byte
	small := make([]byte, kvadapter.Large)
	if err := src.read(head[:1]); err != nil {
		return 0, err
	}
	if head[0] != recordFormat && head[0] != recordFormatOwn {
		return 0, fmt.Errorf("%w: format %d, this version knows %d", ErrCorrupt, head[0], recordFormat)
	}
	src.own = head[0] == recordFormatOwn
	for read := uint64(0); ; read++ {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		if err := src.read(head[:1]); err != nil {
			return n, err
		}
		length := int(head[0])
		if length == 0 {
			if err := src.read(head[:8]); err != nil {
				return n, err
			}
			if want := le.Uint64(head[:]); read != want {
				return n, fmt.Errorf("%w: %d records, want %d", ErrCorrupt, read, want)
			}
			return n, src.check()
		}
		if length > maxKey {
			return n, fmt.Errorf("%w: key of %d bytes", ErrCorrupt, length)
		}
		if err := src.read(head[1 : 13+length]); err != nil {
			return n, err
		}
		text := head[13 : 13+length]
		key := attune.Key{Text: text, Hash: r.Hash(text)}
		stored, size := attune.Version(le.Uint64(head[1:])), le.Uint32(head[9:])
		if size > maxValue {
			return n, fmt.Errorf("%w: value of %d bytes", ErrCorrupt, size)
		}
		// Asked first, so that memory is only ever allocated for a value whose size
		// the index knows.
		wanted, err := r.lacks(ctx, key, stored, int(size), small)
		if err != nil {
			return n, err
		}
		value := small[:min(int(size), len(small))]
		if wanted && size >= kvadapter.Large { // it will be handed over
			value = make([]byte, size)
		}
		for left := int(size); left > 0; left -= len(value) {
			value = value[:min(left, len(value))]
			if err := src.read(value); err != nil {
				return n, err
			}
		}
		if err := src.check(); err != nil {
			return n, err
		}
		if !wanted {
			continue
		}
		kept, err := r.restore(ctx, key, stored, value)
		for errors.Is(err, kvadapter.ErrFull) && r.Durable() {
			select {
			case <-time.After(roomRetry):
				kept, err = r.restore(ctx, key, stored, value)
			case <-ctx.Done():
				return n, context.Cause(ctx)
			}
		}
		full := r.memory == nil && errors.Is(err, kvadapter.ErrFull)
		if err != nil && !full && !errors.Is(err, kvadapter.ErrTooLarge) {
			return n, err
		}
		if kept && err == nil {
			n++
		}
	}
}

// names reports whether the index names stored, of size bytes, for key.
func (r *Replica) names(s *segment, key attune.Key, stored attune.Version, size int) bool {
	e := r.lookup(s, key.Hash)
	return e != nil && !e.bare() && e.stored == stored && int(e.size) == size
}

// lacks reports whether the index names such bytes and the backend does not have
// them.
func (r *Replica) lacks(ctx context.Context, key attune.Key, stored attune.Version, size int, buf []byte) (bool, error) {
	it := attune.Item{Stored: stored, Size: size}
	s := r.segment(key.Hash)
	s.mu.Lock()
	named := r.names(s, key, stored, size)
	staged := named && r.memory == nil && s.value(&it, key.Hash) != nil
	s.mu.Unlock()
	if !named || staged {
		return false, nil
	}
	rec, err := r.backend.Get(ctx, key, buf)
	if errors.Is(err, kvadapter.ErrNotFound) {
		return true, nil
	}
	return !r.wrote(&it, &rec), err
}

// Lacking returns those of keys that the index names bytes of which the backend does
// not have. Nothing counts as read. Errors: the backend's, the cause of ctx.
func (r *Replica) Lacking(ctx context.Context, keys []attune.Key) (lacking []attune.Key, err error) {
	var named []attune.Key
	var items []attune.Item
	for _, key := range keys {
		s := r.segment(key.Hash)
		s.mu.Lock()
		if e := r.lookup(s, key.Hash); e != nil && !e.bare() && s.stage[key.Hash] == nil {
			named, items = append(named, key), append(items, e.item())
		}
		s.mu.Unlock()
	}
	recs, errs := make([]kvadapter.Record, len(named)), make([]error, len(named))
	r.fetch(ctx, named, recs, errs)
	for i, key := range named {
		switch {
		case errs[i] == nil && r.wrote(&items[i], &recs[i]):
		case errs[i] == nil, errors.Is(errs[i], kvadapter.ErrNotFound):
			lacking = append(lacking, key)
		default:
			return lacking, errs[i]
		}
	}
	return lacking, nil
}

// Restore keeps it.Value, the bytes of it.Stored, which a peer had and the
// backend here did not, if the index still names them. It returns when the
// backend has them. A Value of [kvadapter.Large] or more is handed over. Errors:
// the backend's, the cause of ctx.
func (r *Replica) Restore(ctx context.Context, key attune.Key, it attune.Item) error {
	_, err := r.restore(ctx, key, it.Stored, it.Value)
	return err
}

// restore goes through the stage if the backend is elsewhere: put there behind
// the replica's back, old bytes could replace newer ones.
func (r *Replica) restore(ctx context.Context, key attune.Key, stored attune.Version, value []byte) (kept bool, err error) {
	s := r.segment(key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.names(s, key, stored, len(value)) {
		return false, nil
	}
	e, i := s.find(key.Hash)
	if e.keyLen() == 0 { // until now it was known by its hash only
		s.save(i)
		r.count(s, e, -1)
		e.meta |= uint64(len(key.Text)&0xff) << keyShift
		r.count(s, e, 1)
	}
	stamp := kvadapter.Stamp{Gen: r.gen, Version: stored}
	if r.memory != nil {
		return true, r.memory.Put(context.Background(), key, kvadapter.Record{Stamp: stamp, Value: value})
	}
	// In the stage they are as new as the change that names them now, or bytes of
	// a version between, which that change replaced, would count as newer.
	st, until := s.own(key), stored
	switch {
	case st.rec.Stamp.Version == stored && !st.delete:
		until = st.version
	case st.version < e.version:
		st.delete = false
		st.hold(e.version, stamp, value)
		until = st.version
	}
	return true, r.settle(ctx, s, st, until)
}
