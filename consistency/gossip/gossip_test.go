package gossip

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// TestMain passes over memberlist's probes: its Shutdown does not wait for one that is
// under way, which may take a second more for an answer that never comes.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// remote is a backend outside this process, in this process.
type remote struct {
	mu    sync.Mutex
	recs  map[attune.KeyHash]kvadapter.Record
	delay time.Duration // at most, per call
	err   error         // of every call but Close
	put   error         // of Put
	puts  int
	under int // calls under way, and the most there were
	most  int
}

func newRemote() *remote { return &remote{recs: map[attune.KeyHash]kvadapter.Record{}} }

func (f *remote) call() (leave func()) {
	f.mu.Lock()
	f.under++
	f.most = max(f.most, f.under)
	delay := f.delay
	f.mu.Unlock()
	if delay > 0 {
		time.Sleep(rand.N(delay))
	}
	f.mu.Lock()
	return func() {
		f.under--
		f.mu.Unlock()
	}
}

func (f *remote) Get(_ context.Context, key attune.Key, buf []byte) (kvadapter.Record, error) {
	defer f.call()()
	if f.err != nil {
		return kvadapter.Record{}, f.err
	}
	rec, ok := f.recs[key.Hash]
	if !ok {
		return kvadapter.Record{}, kvadapter.ErrNotFound
	}
	rec.Value = append(buf[:0], rec.Value...)
	return rec, nil
}

func (f *remote) Put(_ context.Context, key attune.Key, rec kvadapter.Record) error {
	defer f.call()()
	if f.err != nil {
		return f.err
	}
	if f.put != nil {
		return f.put
	}
	f.puts++
	rec.Value = append([]byte(nil), rec.Value...)
	f.recs[key.Hash] = rec
	return nil
}

func (f *remote) Delete(_ context.Context, key attune.Key) error {
	defer f.call()()
	if f.err != nil {
		return f.err
	}
	delete(f.recs, key.Hash)
	return nil
}

func (f *remote) Close() error { return nil }

// node is an engine and what is under it.
type node struct {
	*Engine
	t testing.TB
}

func open(t testing.TB, backend kvadapter.Backend, limit int64) *node {
	t.Helper()
	e, err := Open(t.Context(), Options{
		OpenReplica: func(o replica.Options) (*replica.Replica, error) {
			o.Backend, o.MemoryLimit = backend, limit
			return replica.Open(o), nil
		},
		Node: t.Name(),
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, Engine: e}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func embedded(t testing.TB) kvadapter.Backend {
	t.Helper()
	b, err := kvadapter.Open("embedded")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (n *node) key(text string) attune.Key {
	return attune.Key{Text: []byte(text), Hash: n.replica.Hash([]byte(text))}
}

func (n *node) op(verb attune.Verb, text, value string) attune.Op {
	return attune.Op{Verb: verb, Key: n.key(text), Value: []byte(value)}
}

func (n *node) do(op attune.Op) attune.Result {
	res := make([]attune.Result, 1)
	n.Write(context.Background(), []attune.Op{op}, res)
	return res[0]
}

func (n *node) set(text, value string) attune.Result { return n.do(n.op(attune.Set, text, value)) }

func (n *node) get(text string) attune.Result {
	op := n.op(attune.Get, text, "")
	op.Mode = attune.WantValue
	return n.do(op)
}

func (n *node) want(text, value string) {
	n.t.Helper()
	if res := n.get(text); res.Status != attune.Hit || string(res.Item.Value) != value {
		n.t.Errorf("get %s = %d %.40q %v, want %.40q", text, res.Status, res.Item.Value, res.Err, value)
	}
}

func (n *node) wantMiss(text string) {
	n.t.Helper()
	if res := n.get(text); res.Status != attune.Miss {
		n.t.Errorf("get %s = %d %.40q %v, want a miss", text, res.Status, res.Item.Value, res.Err)
	}
}

func (n *node) wantStatus(res attune.Result, want attune.Status) {
	n.t.Helper()
	if res.Status != want {
		n.t.Errorf("status %d (%v), want %d", res.Status, res.Err, want)
	}
}

func backends(t *testing.T, test func(t *testing.T, backend kvadapter.Backend)) {
	t.Run("embedded", func(t *testing.T) { test(t, embedded(t)) })
	t.Run("remote", func(t *testing.T) { test(t, &remote{recs: newRemote().recs, delay: 50 * time.Microsecond}) })
}
