package replica

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// store is the least a backend can be.
type store struct {
	mu    sync.Mutex
	recs  map[attune.KeyHash]kvadapter.Record
	texts map[attune.KeyHash]string
	used  int64
}

func newStore() *store {
	return &store{recs: map[attune.KeyHash]kvadapter.Record{}, texts: map[attune.KeyHash]string{}}
}

const overhead = 32

func (s *store) Get(_ context.Context, key attune.Key, buf []byte) (kvadapter.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.recs[key.Hash]
	if !ok {
		return kvadapter.Record{}, kvadapter.ErrNotFound
	}
	if len(rec.Value) < kvadapter.Large {
		rec.Value = append(buf[:0], rec.Value...)
	}
	return rec, nil
}

func (s *store) Put(_ context.Context, key attune.Key, rec kvadapter.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.recs[key.Hash]
	if ok {
		s.used -= int64(len(old.Value))
	} else {
		s.texts[key.Hash] = string(key.Text)
		s.used += int64(len(key.Text)) + overhead
	}
	s.used += int64(len(rec.Value))
	if len(rec.Value) < kvadapter.Large {
		if len(old.Value) >= kvadapter.Large {
			old.Value = nil // readers may have it
		}
		rec.Value = append(old.Value[:0:cap(old.Value)], rec.Value...)
	}
	s.recs[key.Hash] = rec
	return nil
}

func (s *store) Delete(_ context.Context, key attune.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rec, ok := s.recs[key.Hash]; ok {
		s.used -= int64(len(rec.Value)) + int64(len(s.texts[key.Hash])) + overhead
		delete(s.recs, key.Hash)
		delete(s.texts, key.Hash)
	}
	return nil
}

func (s *store) Close() error { return nil }

// forget loses a key's bytes behind the replica's back.
func (s *store) forget(h attune.KeyHash) { _ = s.Delete(context.Background(), attune.Key{Hash: h}) }

// getMulti reads many keys as a session does: what is not here is brought in one
// round trip, and read again.
func (r *Replica) getMulti(ctx context.Context, keys []attune.Key, items []attune.Item, errs []error, bump bool) {
	if r.memory != nil {
		for i, key := range keys {
			items[i], errs[i] = r.Get(ctx, key, nil, bump)
		}
		return
	}
	got := make([]Got, len(keys))
	var missing []attune.Key
	var ask []*Got
	for i, key := range keys {
		if r.Lacks(key, &got[i]) {
			missing, ask = append(missing, key), append(ask, &got[i])
		}
	}
	r.Bring(ctx, missing, ask)
	for i, key := range keys {
		var ok bool
		if items[i], ok, errs[i] = r.Here(key, &got[i], bump); !ok { // written meanwhile
			items[i], errs[i] = r.Get(ctx, key, nil, bump)
		}
	}
}

// memory is a store in this process.
type memory struct {
	*store
	refuse error // of Put
}

var (
	_ kvadapter.Memory = (*memory)(nil)
	_ kvadapter.Loader = (*memory)(nil)
)

func newMemory() *memory { return &memory{store: newStore()} }

func (m *memory) Put(ctx context.Context, key attune.Key, rec kvadapter.Record) error {
	if m.refuse != nil {
		return m.refuse
	}
	return m.store.Put(ctx, key, rec)
}

func (m *memory) Load(h attune.KeyHash, buf []byte) (text []byte, rec kvadapter.Record, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rec, ok = m.recs[h]; !ok {
		return buf[:0], rec, false
	}
	text = append(buf[:0], m.texts[h]...)
	if len(rec.Value) < kvadapter.Large {
		rec.Value = append([]byte{}, rec.Value...)
	}
	return text, rec, true
}

func (m *memory) Prefetch(attune.Key) {}

func (m *memory) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

func (m *memory) Scan(_ context.Context, fn func(key []byte, stamp kvadapter.Stamp, size int) bool) error {
	m.mu.Lock()
	recs, texts := map[attune.KeyHash]kvadapter.Record{}, map[attune.KeyHash]string{}
	for h, rec := range m.recs {
		recs[h], texts[h] = rec, m.texts[h]
	}
	m.mu.Unlock()
	for h, rec := range recs {
		if !fn([]byte(texts[h]), rec.Stamp, len(rec.Value)) {
			break
		}
	}
	return nil
}

// remote is a store that takes its time and sometimes fails, after the fact or
// before it.
type remote struct {
	*store
	delay    time.Duration // at most, per call
	failOnce float64       // probability
	refuse   error         // of Put

	gets, multis atomic.Int64 // calls
}

var (
	_ kvadapter.Batcher     = (*remote)(nil)
	_ kvadapter.BatchWriter = (*remote)(nil)
)

func (f *remote) call() (err error, happens bool) {
	if f.delay > 0 {
		time.Sleep(rand.N(f.delay))
	}
	if rand.Float64() < f.failOnce {
		return kvadapter.ErrUnavailable, rand.IntN(2) == 0
	}
	return nil, true
}

func (f *remote) Get(ctx context.Context, key attune.Key, buf []byte) (kvadapter.Record, error) {
	f.gets.Add(1)
	if err, _ := f.call(); err != nil {
		return kvadapter.Record{}, err
	}
	return f.store.Get(ctx, key, buf)
}

func (f *remote) Put(ctx context.Context, key attune.Key, rec kvadapter.Record) error {
	if f.refuse != nil {
		return f.refuse
	}
	err, happens := f.call()
	if happens {
		_ = f.store.Put(ctx, key, rec)
	}
	return err
}

func (f *remote) Delete(ctx context.Context, key attune.Key) error {
	err, happens := f.call()
	if happens {
		_ = f.store.Delete(ctx, key)
	}
	return err
}

func (f *remote) GetMulti(ctx context.Context, keys []attune.Key, recs []kvadapter.Record, errs []error) {
	f.multis.Add(1)
	err, _ := f.call()
	for i, key := range keys {
		if errs[i] = err; err == nil {
			recs[i], errs[i] = f.store.Get(ctx, key, nil)
		}
	}
}

func (f *remote) WriteMulti(ctx context.Context, writes []kvadapter.Write, errs []error) {
	for i := range writes {
		errs[i] = writes[i].To(ctx, f)
	}
}
