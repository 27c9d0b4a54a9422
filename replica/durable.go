package replica

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

const (
	// roomRetry is how long after it had no room a durable store is tried again.
	roomRetry = 100 * time.Millisecond
	// reclaimChunk records are looked at, then there is a pause of reclaimPause, so
	// that a sweep of the store is no burden to it.
	reclaimChunk = 1024
	reclaimPause = 5 * time.Millisecond
	// reclaimQueue is how many keys may wait for their bytes to be deleted. More are
	// found by a sweep, sweepAgain after the last at the earliest.
	reclaimQueue = 4096
	sweepAgain   = time.Minute
)

// durable is what a replica does over a store whose bytes outlive this process: one
// that is a [kvadapter.Syncer]. Bytes that are given up there are lost for good if
// this controller is the only one, so [Replica.Persist] takes the place of Settle;
// and what is left behind in it would stay for ever, so Reclaim deletes it.
type durable struct {
	store     kvadapter.Syncer // nil if the backend is none
	loose     chan attune.KeyHash
	missed    atomic.Bool // loose was full
	reclaimed atomic.Int64
}

func (d *durable) init(b kvadapter.Backend) {
	if d.store, _ = b.(kvadapter.Syncer); d.store != nil {
		d.loose = make(chan attune.KeyHash, reclaimQueue)
		d.missed.Store(true) // from a life before
	}
}

// Durable reports whether the bytes outlive this process.
func (r *Replica) Durable() bool { return r.durable.store != nil }

// Forgets reports whether the backend may lose bytes though nothing is wrong with it: it
// is a cache outside this process. What another one lacks is damaged, or on its way here.
func (r *Replica) Forgets() bool { return r.memory == nil && !r.Durable() }

// Sync returns when the bytes that the backend has by now survive loss of power.
// It is for a Durable replica. Errors: the backend's, the cause of ctx.
func (r *Replica) Sync(ctx context.Context) error { return r.durable.store.Sync(ctx) }

// Persist is SettleVersion for one who does not give up. Once it returned nil the backend
// has the bytes. On an error, the backend's or the cause of ctx, they stay here to be
// read, and it is to be called again, as often as that takes: by whoever goes on bringing
// bytes there.
func (r *Replica) Persist(ctx context.Context, h attune.KeyHash, v attune.Version) error {
	s := r.segment(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stage[h]
	for st.settled < v {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case st.sending:
			s.wait(ctx, st)
		default:
			if r.send(context.Background(), s, st); st.settled < v {
				return st.err
			}
		}
	}
	r.disown(s, st)
	return nil
}

// loosen has the bytes of a key deleted that nothing names any more, if the store
// would keep them for ever.
func (r *Replica) loosen(h attune.KeyHash) {
	if r.durable.store == nil {
		return
	}
	select {
	case r.durable.loose <- h:
	default:
		r.durable.missed.Store(true)
	}
}

// Reclaim deletes from a durable store what the index does not name: of items that
// expired or were evicted, and what a crash or another generation left behind. It
// goes on until ctx ends. settled returns when what the index says by then is what
// it will say after a crash, too: until then, the bytes may be needed again.
func (r *Replica) Reclaim(ctx context.Context, settled func(context.Context) error) error {
	d := &r.durable
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case h := <-d.loose:
			hashes := append(make([]attune.KeyHash, 0, reclaimChunk), h)
			for len(d.loose) > 0 && len(hashes) < reclaimChunk {
				hashes = append(hashes, <-d.loose)
			}
			if err := r.reclaim(ctx, hashes, settled); err != nil {
				return err
			}
		case <-again.C:
			if d.missed.Swap(false) {
				if err := r.SweepStore(ctx, settled); err != nil {
					return err
				}
			}
			again.Reset(sweepAgain)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// SweepStore is one look of Reclaim at all that the store has.
func (r *Replica) SweepStore(ctx context.Context, settled func(context.Context) error) error {
	scanner, ok := r.backend.(kvadapter.Scanner)
	if !ok {
		return nil
	}
	var (
		hashes []attune.KeyHash
		seen   int
		failed error
	)
	err := scanner.Scan(ctx, func(text []byte, stamp kvadapter.Stamp, size int) bool {
		h := r.Hash(text)
		s := r.segment(h)
		s.mu.Lock()
		if stamp.Gen != r.gen || !r.names(s, attune.Key{Hash: h}, stamp.Version, size) {
			hashes = append(hashes, h)
		}
		s.mu.Unlock()
		if seen++; seen%reclaimChunk > 0 && len(hashes) < reclaimChunk {
			return true
		}
		failed = r.reclaim(ctx, hashes, settled)
		hashes = hashes[:0]
		select {
		case <-time.After(reclaimPause):
		case <-ctx.Done():
		}
		return failed == nil
	})
	return errors.Join(err, failed, r.reclaim(ctx, hashes, settled))
}

// reclaim deletes the bytes of those keys for which the index names none, or others
// than the store has.
func (r *Replica) reclaim(ctx context.Context, hashes []attune.KeyHash, settled func(context.Context) error) error {
	if len(hashes) == 0 {
		return nil
	}
	if err := settled(ctx); err != nil {
		return err
	}
	for _, h := range hashes {
		if err := r.reclaimOne(ctx, attune.Key{Hash: h}); err != nil {
			return err
		}
	}
	return nil
}

// reclaimOne holds off whoever wants to send bytes of the key meanwhile: see staged.
func (r *Replica) reclaimOne(ctx context.Context, key attune.Key) error {
	loader, ok := r.backend.(kvadapter.Loader)
	if !ok {
		return nil
	}
	s := r.segment(key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stage[key.Hash] != nil {
		return nil // newer bytes, or a deletion, are on their way
	}
	st := s.own(key)
	defer r.disown(s, st)
	st.delete, st.sending = true, true
	s.mu.Unlock()
	text, rec, there := loader.Load(key.Hash, nil)
	s.mu.Lock()
	var err error
	if there && (rec.Stamp.Gen != r.gen || !r.names(s, key, rec.Stamp.Version, len(rec.Value))) {
		if sv, it, wanted := s.owing(st); wanted {
			sv.rescued(s, attune.Key{Text: text, Hash: key.Hash}, it, rec)
		}
		s.mu.Unlock()
		if err = r.backend.Delete(ctx, key); err == nil {
			r.durable.reclaimed.Add(1)
		}
		s.mu.Lock()
	}
	st.sending = false
	if st.wake != nil {
		close(st.wake)
		st.wake = nil
	}
	return err
}
