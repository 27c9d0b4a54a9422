package repair

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// shelf is a durable store that takes nothing until it is opened.
type shelf struct {
	kvadapter.Backend
	open atomic.Bool
	mu   sync.Mutex
	has  map[string]attune.Version
}

func (s *shelf) Put(_ context.Context, key attune.Key, rec kvadapter.Record) error {
	if !s.open.Load() {
		return kvadapter.ErrFull
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.has[string(key.Text)] = rec.Stamp.Version
	return nil
}

func (s *shelf) Get(context.Context, attune.Key, []byte) (kvadapter.Record, error) {
	return kvadapter.Record{}, kvadapter.ErrNotFound
}

func (s *shelf) Delete(_ context.Context, key attune.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.has, string(key.Text))
	return nil
}

func (s *shelf) Sync(context.Context) error { return nil }

// TestDurableStoreGetsEverything: who has added more than may be on its way can wait, and
// nothing is given up but by the end.
func TestDurableStoreGetsEverything(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	store := &shelf{has: map[string]attune.Version{}}
	r := replica.Open(replica.Options{Backend: store, Gen: 1})
	s := NewStager(r, zap.NewNop())
	const size, n = 4 << 20, 2 * stageBytes / (4 << 20)
	value := make([]byte, size)
	add := func(i int) attune.Key {
		c := attune.Change{Key: attune.Key{Text: []byte(fmt.Sprint("k", i))}, Item: attune.Item{Value: value, Size: size}, Prior: attune.AnyVersion}
		c.Key.Hash = r.Hash(c.Key.Text)
		c.Stamp(attune.Version(i + 1))
		if applied, err := r.Apply(&c); !applied || err != nil {
			t.Error(applied, err)
		}
		s.Wait()
		s.Add(&c)
		return c.Key
	}
	var added atomic.Int64
	var adding sync.WaitGroup
	adding.Go(func() {
		for i := range n {
			add(i)
			added.Add(1)
		}
	})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Drain(ended); err == nil {
		t.Error("drained into a store that takes nothing")
	}
	if added.Load() == n {
		t.Errorf("all %d are on their way at once", n)
	}
	attunetest.Eventually(t, "it says what is in the way", func() bool { return errors.Is(s.Stuck(), kvadapter.ErrFull) })
	if !s.Full() || s.Slow() {
		t.Errorf("stuck; full: %t, slow: %t", s.Full(), s.Slow())
	}
	store.open.Store(true)
	adding.Wait()
	if err := s.Drain(t.Context()); err != nil || len(store.has) != n {
		t.Errorf("drained: the store has %d of %d, %v", len(store.has), n, err)
	}
	if err := s.Stuck(); err != nil {
		t.Errorf("stuck with nothing on its way: %v", err)
	}
	// The end waits for nobody, and what is on its way can be read.
	store.open.Store(false)
	var last attune.Key
	for i := range n {
		if i == 3 {
			s.GiveUp()
		}
		last = add(n + i)
	}
	if it, err := r.Get(t.Context(), last, nil, false); err != nil || len(it.Value) != size {
		t.Errorf("not there to be read: %v", err)
	}
	s.Close()
}

// TestAddNeverWaits: a core that applies what others decided has no time, and much of it
// may be small. What it must not add it is told by Full.
func TestAddNeverWaits(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	store := &shelf{has: map[string]attune.Version{}}
	r := replica.Open(replica.Options{Backend: store, Gen: 1})
	s := NewStager(r, zap.NewNop())
	defer s.Close()
	const n = stageBound + 100
	added := make(chan struct{})
	go func() {
		defer close(added)
		for i, has := 0, 0; has < n; i++ {
			c := attune.Change{Key: attune.Key{Text: fmt.Append(nil, "k", i)}, Item: attune.Item{Value: []byte{}}, Prior: attune.AnyVersion}
			if c.Key.Hash = r.Hash(c.Key.Text); c.Key.Hash[1]%stageLanes != 0 {
				continue // those of one lane are enough
			}
			has++
			c.Stamp(attune.Version(i + 1))
			if applied, err := r.Apply(&c); !applied || err != nil {
				t.Error(applied, err)
			}
			s.Add(&c)
		}
	}()
	select {
	case <-added:
	case <-time.After(time.Minute):
		t.Fatal("it waits")
	}
	if !s.Full() || s.Slow() {
		t.Errorf("it refuses; full: %t, slow: %t", s.Full(), s.Slow())
	}
	store.open.Store(true)
	if err := s.Drain(t.Context()); err != nil || len(store.has) != n || s.Full() {
		t.Errorf("drained: the store has %d of %d, %v", len(store.has), n, err)
	}
}

// TestDeletionsPassWhatTheStoreRefuses: they may be what makes room. Order is kept for
// each key, and for who waits until all of it is there.
func TestDeletionsPassWhatTheStoreRefuses(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	store := &shelf{has: map[string]attune.Version{}}
	r := replica.Open(replica.Options{Backend: store, Gen: 1})
	s := NewStager(r, zap.NewNop())
	defer s.Close()
	write := func(key string, v attune.Version, it attune.Item) {
		c := attune.Change{Key: attune.Key{Text: []byte(key)}, Item: it, Prior: attune.AnyVersion}
		c.Key.Hash = r.Hash(c.Key.Text)
		c.Stamp(v)
		if applied, err := r.Apply(&c); !applied || err != nil {
			t.Error(applied, err)
		}
		s.Add(&c)
	}
	value := attune.Item{Value: []byte("v"), Size: 1}
	const n = 20 * stageLanes
	store.open.Store(true)
	for i := range n {
		write(fmt.Sprint("old", i), 1, value)
	}
	if err := s.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	store.open.Store(false)
	for i := range n {
		write(fmt.Sprint("new", i), 2, value)
	}
	for i := range n {
		write(fmt.Sprint("old", i), 3, attune.Item{Deleted: true})
		write(fmt.Sprint("new", i), 4, value)
	}
	attunetest.Eventually(t, "the store is empty", func() bool {
		store.mu.Lock()
		defer store.mu.Unlock()
		return len(store.has) == 0
	})
	short, cancel := context.WithTimeout(t.Context(), 3*retryAfter)
	defer cancel()
	if err := s.Drain(short); err == nil {
		t.Error("drained past what the store does not take")
	}
	store.open.Store(true)
	if err := s.Drain(t.Context()); err != nil || len(store.has) != n || s.bytes.Load() != 0 {
		t.Errorf("drained: the store has %d of %d, %d bytes are on their way: %v", len(store.has), n, s.bytes.Load(), err)
	}
	for key, v := range store.has {
		if v != 4 {
			t.Errorf("%s is of version %d, want 4", key, v)
		}
	}
}
