package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// filed is a store in files, as far as a crash is concerned: what was put and deleted
// after the last Sync may be lost, from some moment on.
type filed struct {
	ops    []filedOp
	synced int // so many of ops
}

type filedOp struct {
	hash attune.KeyHash
	text string
	rec  kvadapter.Record // a Value of nil is a deletion
}

var (
	_ kvadapter.Syncer  = (*filed)(nil)
	_ kvadapter.Loader  = (*filed)(nil)
	_ kvadapter.Scanner = (*filed)(nil)
)

// crashed is what may be found after a crash.
func (f *filed) crashed(rng *rand.Rand) *filed {
	n := f.synced + rng.IntN(len(f.ops)-f.synced+1)
	return &filed{append([]filedOp(nil), f.ops[:n]...), n}
}

func (f *filed) Load(h attune.KeyHash, buf []byte) (text []byte, rec kvadapter.Record, ok bool) {
	for i := len(f.ops) - 1; i >= 0; i-- {
		if o := f.ops[i]; o.hash == h {
			return append(buf[:0], o.text...), o.rec, o.rec.Value != nil
		}
	}
	return buf[:0], rec, false
}

func (f *filed) Get(_ context.Context, key attune.Key, buf []byte) (kvadapter.Record, error) {
	if _, rec, ok := f.Load(key.Hash, buf); ok {
		return rec, nil
	}
	return kvadapter.Record{}, kvadapter.ErrNotFound
}

func (f *filed) Put(_ context.Context, key attune.Key, rec kvadapter.Record) error {
	rec.Value = append([]byte{}, rec.Value...)
	f.ops = append(f.ops, filedOp{key.Hash, string(key.Text), rec})
	return nil
}

func (f *filed) Delete(_ context.Context, key attune.Key) error {
	f.ops = append(f.ops, filedOp{hash: key.Hash})
	return nil
}

func (f *filed) Scan(_ context.Context, fn func(key []byte, stamp kvadapter.Stamp, size int) bool) error {
	seen := map[attune.KeyHash]bool{}
	for i := len(f.ops) - 1; i >= 0; i-- {
		o := f.ops[i]
		if !seen[o.hash] && o.rec.Value != nil && !fn([]byte(o.text), o.rec.Stamp, len(o.rec.Value)) {
			break
		}
		seen[o.hash] = true
	}
	return nil
}

func (f *filed) Sync(context.Context) error { f.synced = len(f.ops); return nil }
func (f *filed) Close() error               { return nil }

// TestStoreFollowsTheJournal: whenever the process dies, over a store that outlives
// it, each key is what the journal had last, with its bytes.
func TestStoreFollowsTheJournal(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 5))
			dir, store := t.TempDir(), &filed{}
			said := map[string]string{} // by the journal
			for life := range 4 {
				l, queue := liveOverFiles(t, dir, store)
				for key, want := range said {
					if got := l.get(key); got != want {
						t.Fatalf("life %d: %s is %q, want %q", life, key, got, want)
					}
				}
				is := map[string]string{}
				write := func() {
					key, value := fmt.Sprint("k", rng.IntN(4)), fmt.Sprint(life, " ", rng.Uint32())
					if rng.IntN(4) == 0 {
						value = ""
						l.evict(l.replica.Hash([]byte(key)), attune.AnyVersion)
					} else {
						l.set(key, value)
					}
					is[key] = value
				}
				persist := func() {
					l.persists()
					for key, value := range is {
						said[key] = value
					}
				}
				l.disk.drain = func(context.Context) error {
					queue.send(len(queue.changes))
					if rng.IntN(2) == 0 { // what comes while the state is written
						write()
						persist()
						queue.send(rng.IntN(len(queue.changes) + 1))
					}
					return nil
				}
				for range rng.IntN(40) {
					switch rng.IntN(6) {
					case 0:
						persist()
					case 1:
						queue.send(rng.IntN(len(queue.changes) + 1))
					case 2:
						persist()
						if err := l.saveNow(t.Context()); err != nil {
							t.Fatal(err)
						}
					case 3:
						err := l.replica.SweepStore(t.Context(), func(context.Context) error { persist(); return nil })
						if err != nil {
							t.Fatal(err)
						}
					default:
						write()
					}
				}
				if rng.IntN(2) == 0 { // what the log forgot is overwritten, and nobody knows yet
					persist()
					if err := l.saveNow(t.Context()); err != nil {
						t.Fatal(err)
					}
					for range 4 {
						write()
					}
					queue.send(rng.IntN(len(queue.changes) + 1))
				}
				dir, store = l.crash(dir), store.crashed(rng)
				l.end()
			}
		})
	}
}

// sending are changes on their way to a store.
type sending struct {
	replica *replica.Replica
	changes []repair.Staged
}

func (q *sending) send(n int) {
	for i := range n {
		_ = q.replica.Persist(context.Background(), q.changes[i].Hash, q.changes[i].Version) // its store refuses nothing
	}
	q.changes = q.changes[n:]
}

func liveOverFiles(t *testing.T, dir string, store *filed) (*life, *sending) {
	queue := &sending{}
	l := liveOver(t, dir, true, simEpoch, store, func(l *life) {
		queue.replica = l.replica
		l.disk.stage = func(st repair.Staged) { queue.changes = append(queue.changes, st) }
		l.remote = func(c *attune.Change) {
			if l.replica.Stages(c) {
				l.disk.stage(repair.StagedOf(c))
			}
		}
	})
	l.remote = l.follow
	return l, queue
}
