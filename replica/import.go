package replica

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

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
	in := importer{r: r, ctx: ctx, src: sumReader{r: bufio.NewReaderSize(rd, recordBuffer)}, skip: make([]byte, kvadapter.Large)}
	err = in.read()
	if kept := in.flush(); err == nil {
		err = kept // else what came before is kept all the same
	}
	if err != nil {
		err = fmt.Errorf("records from a peer: %w", err)
	}
	return in.n.Load(), err
}

// importer keeps records many at a time, as a round trip to a backend outside this
// process for each would take far longer than they took to come.
type importer struct {
	r   *Replica
	ctx context.Context
	src sumReader
	n   atomic.Int64 // records kept

	recs   []content
	memory []byte // that keys of recs are in, and values that are not large
	size   int    // of values of recs
	skip   []byte // that is read into what nobody needs
}

// content is the bytes of a version, or what is known of them.
type content struct {
	key    attune.Key
	stored attune.Version
	size   int
	value  []byte
}

// read reads the records, and keeps all but the last.
func (in *importer) read() error {
	var head [13 + maxKey]byte
	src := &in.src
	if err := src.read(head[:1]); err != nil {
		return err
	}
	if head[0] != recordFormat && head[0] != recordFormatOwn {
		return fmt.Errorf("%w: format %d, this version knows %d", ErrCorrupt, head[0], recordFormat)
	}
	src.own = head[0] == recordFormatOwn
	for n := uint64(0); ; n++ {
		if in.ctx.Err() != nil {
			return context.Cause(in.ctx)
		}
		if err := src.read(head[:1]); err != nil {
			return err
		}
		length := int(head[0])
		if length == 0 {
			if err := src.read(head[:8]); err != nil {
				return err
			}
			if want := le.Uint64(head[:]); n != want {
				return fmt.Errorf("%w: %d records, want %d", ErrCorrupt, n, want)
			}
			return src.check()
		}
		if length > maxKey {
			return fmt.Errorf("%w: key of %d bytes", ErrCorrupt, length)
		}
		if err := src.read(head[1 : 13+length]); err != nil {
			return err
		}
		size := le.Uint32(head[9:])
		if size > maxValue {
			return fmt.Errorf("%w: value of %d bytes", ErrCorrupt, size)
		}
		if err := in.take(head[13:13+length], attune.Version(le.Uint64(head[1:])), int(size)); err != nil {
			return err
		}
		if len(in.recs) == recordBatch || in.size >= recordBytes {
			if err := in.flush(); err != nil {
				return err
			}
		}
	}
}

// take reads a value, and takes it if the index names it. Only then is memory made for it.
func (in *importer) take(text []byte, stored attune.Version, size int) error {
	rec := content{key: attune.Key{Text: text, Hash: in.r.Hash(text)}, stored: stored, size: size}
	s := in.r.segment(rec.key.Hash)
	s.mu.Lock()
	named := in.r.names(s, rec.key, stored, size)
	staged := named && in.r.memory == nil && s.value(&attune.Item{Stored: stored}, rec.key.Hash) != nil
	s.mu.Unlock()
	if !named || staged {
		for ; size > 0; size -= len(in.skip) {
			if err := in.src.read(in.skip[:min(size, len(in.skip))]); err != nil {
				return err
			}
		}
		return in.src.check()
	}
	in.memory = append(in.memory, text...)
	rec.key.Text = in.memory[len(in.memory)-len(text):]
	if size < kvadapter.Large {
		in.memory = slices.Grow(in.memory, size)[:len(in.memory)+size]
		rec.value = in.memory[len(in.memory)-size:]
	} else { // it will be handed over
		rec.value = make([]byte, size)
	}
	if err := in.src.read(rec.value); err != nil {
		return err
	}
	if err := in.src.check(); err != nil {
		return err
	}
	in.recs, in.size = append(in.recs, rec), in.size+size
	return nil
}

// flush keeps what was taken.
func (in *importer) flush() error {
	var err error
	if in.r.memory != nil {
		for i := 0; i < len(in.recs) && err == nil; i++ {
			err = in.keepHere(&in.recs[i])
		}
	} else {
		var lacking []content
		lacking, err = in.r.lacking(in.ctx, in.recs)
		var all sync.WaitGroup
		errs := make([]error, len(lacking))
		for i := range lacking {
			all.Go(func() { errs[i] = in.keep(&lacking[i]) })
		}
		all.Wait()
		err = cmp.Or(err, cmp.Or(errs...))
	}
	clear(in.recs) // or it keeps large values
	in.recs, in.memory, in.size = in.recs[:0], in.memory[:0], 0
	return err
}

// keepHere keeps a record in this process, unless it is there.
func (in *importer) keepHere(rec *content) error {
	found, err := in.r.memory.Get(in.ctx, rec.key, in.skip)
	has, err := in.r.has(rec, &found, err)
	if has || err != nil {
		return err
	}
	return in.keep(rec)
}

// keep brings a record to the backend, if that takes it.
func (in *importer) keep(rec *content) error {
	kept, err := in.r.restore(in.ctx, rec)
	for errors.Is(err, kvadapter.ErrFull) && in.r.Durable() {
		select {
		case <-time.After(roomRetry):
			kept, err = in.r.restore(in.ctx, rec)
		case <-in.ctx.Done():
			return context.Cause(in.ctx)
		}
	}
	if kept && err == nil {
		in.n.Add(1)
	}
	if errors.Is(err, kvadapter.ErrTooLarge) || in.r.memory == nil && errors.Is(err, kvadapter.ErrFull) {
		return nil
	}
	return err
}

// names reports whether the index names stored, of size bytes, for key.
func (r *Replica) names(s *segment, key attune.Key, stored attune.Version, size int) bool {
	e := r.lookup(s, key.Hash)
	return e != nil && !e.bare() && e.stored == stored && int(e.size) == size
}

// Lacking returns those of keys that the index names bytes of which the backend does
// not have. Nothing counts as read. Errors: the backend's, the cause of ctx.
func (r *Replica) Lacking(ctx context.Context, keys []attune.Key) (lacking []attune.Key, err error) {
	var named []content
	for _, key := range keys {
		s := r.segment(key.Hash)
		s.mu.Lock()
		if e := r.lookup(s, key.Hash); e != nil && !e.bare() && s.stage[key.Hash] == nil {
			named = append(named, content{key: key, stored: e.stored, size: int(e.size)})
		}
		s.mu.Unlock()
	}
	missing, err := r.lacking(ctx, named)
	for _, rec := range missing {
		lacking = append(lacking, rec.key)
	}
	return lacking, err
}

// lacking returns those of recs whose bytes the backend does not have, up to the first
// error.
func (r *Replica) lacking(ctx context.Context, recs []content) (lacking []content, err error) {
	keys := make([]attune.Key, len(recs))
	for i := range recs {
		keys[i] = recs[i].key
	}
	found, errs := make([]kvadapter.Record, len(recs)), make([]error, len(recs))
	r.fetch(ctx, keys, found, errs)
	for i := range recs {
		has, err := r.has(&recs[i], &found[i], errs[i])
		if err != nil {
			return lacking, err
		}
		if !has {
			lacking = append(lacking, recs[i])
		}
	}
	return lacking, nil
}

// has reports whether what the backend answered for rec is it.
func (r *Replica) has(rec *content, found *kvadapter.Record, err error) (bool, error) {
	if err != nil {
		if errors.Is(err, kvadapter.ErrNotFound) {
			err = nil
		}
		return false, err
	}
	return r.wrote(&attune.Item{Stored: rec.stored, Size: rec.size}, found), nil
}

// Restore keeps it.Value, the bytes of it.Stored, which a peer had and the
// backend here did not, if the index still names them. It returns when the
// backend has them. A Value of [kvadapter.Large] or more is handed over. Errors:
// the backend's, the cause of ctx.
func (r *Replica) Restore(ctx context.Context, key attune.Key, it attune.Item) error {
	_, err := r.restore(ctx, &content{key, it.Stored, len(it.Value), it.Value})
	return err
}

// restore goes through the stage if the backend is elsewhere: put there behind
// the replica's back, old bytes could replace newer ones.
func (r *Replica) restore(ctx context.Context, rec *content) (kept bool, err error) {
	key := rec.key
	s := r.segment(key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.names(s, key, rec.stored, rec.size) {
		return false, nil
	}
	e, i := s.find(key.Hash)
	if e.keyLen() == 0 { // until now it was known by its hash only
		s.save(i)
		r.count(s, e, -1)
		e.meta |= uint64(len(key.Text)&0xff) << keyShift
		r.count(s, e, 1)
	}
	stamp := kvadapter.Stamp{Gen: r.gen, Version: rec.stored}
	if r.memory != nil {
		return true, r.memory.Put(context.Background(), key, kvadapter.Record{Stamp: stamp, Value: rec.value})
	}
	// In the stage they are as new as the change that names them now, or bytes of
	// a version between, which that change replaced, would count as newer.
	st, until := s.own(key), rec.stored
	switch {
	case st.rec.Stamp.Version == rec.stored && !st.delete:
		until = st.version
	case st.version < e.version:
		st.delete = false
		st.hold(e.version, stamp, rec.value)
		until = st.version
	}
	return true, r.settle(ctx, s, st, until)
}
