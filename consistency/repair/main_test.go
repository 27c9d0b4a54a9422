package repair_test

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// TestMain passes over memberlist's probes: its Shutdown does not wait for one that is
// under way, which may take a second more for an answer that never comes.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// store is a backend outside this process, as far as a replica can tell. What a
// test wants to go wrong it does in before, which sees every call first and may
// wait, or fail it.
type store struct {
	before func(ctx context.Context, verb, key string) error

	mu      sync.Mutex
	records map[string]kvadapter.Record
	puts    map[string][]attune.Version // by key, as they came

	damages atomic.Int64
}

var (
	_ kvadapter.Backend = (*store)(nil)
	_ kvadapter.Scanner = (*store)(nil)
	_ kvadapter.Counter = (*store)(nil)
	_ kvadapter.Mender  = (*store)(nil)
)

func newStore() *store {
	return &store{
		before:  func(context.Context, string, string) error { return nil },
		records: make(map[string]kvadapter.Record), puts: make(map[string][]attune.Version),
	}
}

func (s *store) Get(ctx context.Context, key attune.Key, _ []byte) (kvadapter.Record, error) {
	if err := s.before(ctx, "get", string(key.Text)); err != nil {
		return kvadapter.Record{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.records[string(key.Text)]
	if !ok {
		return rec, kvadapter.ErrNotFound
	}
	return rec, nil
}

func (s *store) Put(ctx context.Context, key attune.Key, rec kvadapter.Record) error {
	if err := s.before(ctx, "put", string(key.Text)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[string(key.Text)] = rec
	s.puts[string(key.Text)] = append(s.puts[string(key.Text)], rec.Stamp.Version)
	return nil
}

func (s *store) Delete(ctx context.Context, key attune.Key) error {
	if err := s.before(ctx, "delete", string(key.Text)); err != nil {
		return err
	}
	s.forget(string(key.Text))
	return nil
}

func (s *store) Close() error { return nil }

func (s *store) Scan(ctx context.Context, fn func(key []byte, stamp kvadapter.Stamp, size int) bool) error {
	if err := s.before(ctx, "scan", ""); err != nil {
		return err
	}
	s.mu.Lock()
	all := maps.Clone(s.records)
	s.mu.Unlock()
	for key, rec := range all {
		if !fn([]byte(key), rec.Stamp, len(rec.Value)) {
			break
		}
	}
	return nil
}

func (s *store) Items(ctx context.Context) (int64, error) {
	if err := s.before(ctx, "items", ""); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.records)), nil
}

func (s *store) Damages() int64 { return s.damages.Load() }

// forget loses a key's bytes behind the replica's back.
func (s *store) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, key)
}

// has is the version of a key whose bytes are there, 0 for none.
func (s *store) has(key string) attune.Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[key].Stamp.Version
}

// node is a replica over a store.
type node struct {
	*replica.Replica
	store *store
}

func newNode() node {
	s := newStore()
	return node{replica.Open(replica.Options{Backend: s}), s}
}

// batching is a store that takes many writes at a time.
type batching struct{ *store }

var _ kvadapter.BatchWriter = batching{}

func (b batching) WriteMulti(ctx context.Context, writes []kvadapter.Write, errs []error) {
	for i := range writes {
		errs[i] = writes[i].To(ctx, b)
	}
}

func newBatchingNode() node {
	s := newStore()
	return node{replica.Open(replica.Options{Backend: batching{s}}), s}
}

// eachNode runs a test with either kind of store.
func eachNode(t *testing.T, fn func(*testing.T, node)) {
	t.Run("one by one", func(t *testing.T) { fn(t, newNode()) })
	t.Run("together", func(t *testing.T) { fn(t, newBatchingNode()) })
}

func (n node) key(text string) attune.Key {
	return attune.Key{Text: []byte(text), Hash: n.Hash([]byte(text))}
}

// apply puts a version of a key into the index; its bytes are on their way.
func (n node) apply(t testing.TB, text string, v attune.Version, value string) *attune.Change {
	t.Helper()
	ch := attune.Change{
		Key: n.key(text), Prior: attune.AnyVersion,
		Item: attune.Item{Value: []byte(value), Size: len(value)},
	}
	return n.applied(t, ch, v)
}

func (n node) applied(t testing.TB, ch attune.Change, v attune.Version) *attune.Change {
	t.Helper()
	ch.Stamp(v)
	if ok, err := n.Apply(&ch); !ok || err != nil {
		t.Fatalf("version %d of %s was not applied: %v", v, ch.Key.Text, err)
	}
	return &ch
}

// put is apply and the bytes in the store.
func (n node) put(t testing.TB, text string, v attune.Version, value string) {
	t.Helper()
	ch := n.apply(t, text, v, value)
	if err := n.Settle(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
}

// get is what the replica reads, or its error.
func (n node) get(t testing.TB, text string) (string, error) {
	t.Helper()
	it, err := n.Get(within(t), n.key(text), nil, false)
	return string(it.Value), err
}

// within is a context that a test which works never sees the end of.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), attunetest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// returns fails the test if fn does not.
func returns(t testing.TB, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(attunetest.Patience):
		t.Fatalf("not within %v: %s", attunetest.Patience, what)
	}
}
