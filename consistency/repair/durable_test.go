package repair

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/attunekv/attune"
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

func (s *shelf) Sync(context.Context) error { return nil }

// TestDurableStoreGetsEverything: who adds more than may be on its way waits, and
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
	store.open.Store(true)
	adding.Wait()
	if err := s.Drain(t.Context()); err != nil || len(store.has) != n {
		t.Errorf("drained: the store has %d of %d, %v", len(store.has), n, err)
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
