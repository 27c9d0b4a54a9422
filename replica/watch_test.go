package replica

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune"
)

// told is what a Watch has to tell now, a line each.
func told(w *Watch) (lines []string) {
	for {
		select {
		case ev := <-w.Events():
			line := fmt.Sprintf("%s %s %d", ev.Verb, ev.Key, ev.Version)
			if ev.Lost > 0 {
				line = fmt.Sprintf("(%d lost) %s", ev.Lost, line)
			}
			lines = append(lines, line)
		default:
			return lines
		}
	}
}

func wantTold(t *testing.T, w *Watch, want ...string) {
	t.Helper()
	if got := told(w); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestWatchTellsWhatTakesEffect(t *testing.T) {
	r := Open(Options{Backend: newMemory(), Gen: 1})
	all, some := NewWatch("", 100, r), NewWatch("user:", 100, r)
	k, other := keyOf(r, "user:1"), keyOf(r, "page")
	mustApply(t, r, put(k, 10, "v"))
	mustApply(t, r, put(other, 11, "w"))
	touch := attune.Change{Key: k, Item: r.Peek(k, false), Prior: 10}
	touch.Item.Version, touch.Item.Expires = 12, time.Now().Add(time.Hour).UnixMilli()
	mustApply(t, r, &touch)
	if applied, _ := r.Apply(put(k, 9, "old")); applied {
		t.Fatal("an old change was applied")
	}
	mustApply(t, r, &attune.Change{Key: k, Item: attune.Item{Deleted: true, Version: 13}, Prior: 12})
	mustApply(t, r, &attune.Change{Key: attune.Key{Hash: other.Hash}, Item: attune.Item{Deleted: true, Version: 14}, Prior: 11})
	dead := put(k, 15, "x")
	dead.Item.Expires = epoch + 1
	mustApply(t, r, dead)
	mustApply(t, r, &attune.Change{Key: attune.Key{Hash: k.Hash}, Item: attune.Item{Deleted: true, Version: 16}, Prior: 15})
	mustApply(t, r, put(other, 17, "y"))
	r.Flush(20)
	mustApply(t, r, &attune.Change{Key: attune.Key{Hash: other.Hash}, Item: attune.Item{Deleted: true, Version: 21}, Prior: 17})
	wantTold(t, all, "set user:1 10", "set page 11", "touch user:1 12", "delete user:1 13", "evict page 11",
		"set user:1 15", "expire user:1 15", "set page 17", "flush  20")
	wantTold(t, some, "set user:1 10", "touch user:1 12", "delete user:1 13", "set user:1 15", "expire user:1 15", "flush  20")
	some.Close()
	mustApply(t, r, put(k, 30, "v"))
	wantTold(t, some)
	wantTold(t, all, "set user:1 30")
	all.Close()
	if r.watches.Load() != nil {
		t.Error("somebody is told still")
	}
}

func TestWatchTellsOfTombstones(t *testing.T) {
	r := Open(Options{Backend: newMemory(), Gen: 1, Tombstones: true})
	w := NewWatch("", 100, r)
	defer w.Close()
	mustMerge(t, r, whole(r, "a", 10, 10))
	mustMerge(t, r, deletion(r, "a", 20))
	mustMerge(t, r, whole(r, "b", 30, 30))
	mustMerge(t, r, lost(r, "b", 30))
	mustMerge(t, r, deletion(r, "never here", 40))
	c := whole(r, "c", 50, 50)
	c.Item.Expires = epoch + 1
	mustMerge(t, r, c)
	for range 2 * segments {
		r.Free(time.Now().UnixMilli(), 1000)
	}
	wantTold(t, w, "set a 10", "delete a 20", "set b 30", "evict b 30", "delete never here 40", "set c 50", "expire c 50")
}

// Where the store does not tell keys, evictions have none.
func TestWatchBeforeAStoreElsewhere(t *testing.T) {
	r := Open(Options{Backend: &remote{store: newStore()}, Gen: 1})
	all, some := NewWatch("", 10, r), NewWatch("k", 10, r)
	defer all.Close()
	defer some.Close()
	k := keyOf(r, "k")
	mustApply(t, r, put(k, 10, "v"))
	mustApply(t, r, &attune.Change{Key: attune.Key{Hash: k.Hash}, Item: attune.Item{Deleted: true, Version: 11}, Prior: 10})
	wantTold(t, all, "set k 10", "evict  10")
	wantTold(t, some, "set k 10")
}

func TestSlowWatchIsToldWhatItLost(t *testing.T) {
	r := Open(Options{Backend: newMemory(), Gen: 1})
	w := NewWatch("", 2, r)
	defer w.Close()
	k := keyOf(r, "k")
	for v := range 7 {
		mustApply(t, r, put(k, attune.Version(v+1), "v"))
	}
	wantTold(t, w, "set k 1", "set k 2")
	mustApply(t, r, put(k, 8, "v"))
	wantTold(t, w, "(5 lost) set k 8")
	for v := range 3 {
		mustApply(t, r, put(k, attune.Version(v+9), "v"))
	}
	if lost := w.Lost(); lost != 1 || w.Lost() != 0 {
		t.Errorf("%d lost, want 1, and told once", lost)
	}
}

// Nothing is told twice or neither told nor counted, with many writers and watches
// that come and go.
func TestWatchCountsEverything(t *testing.T) {
	const writers, each = 4, 2000
	r := Open(Options{Backend: newMemory(), Gen: 1})
	w := NewWatch("", 64, r)
	defer w.Close()
	var wait sync.WaitGroup
	for n := range writers {
		wait.Go(func() {
			k := keyOf(r, fmt.Sprint(n))
			for v := range each {
				if _, err := r.Apply(put(k, attune.Version(v+1), "v")); err != nil {
					t.Error(err)
				}
				if v%100 == 0 {
					NewWatch("x", 1, r).Close()
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wait.Wait(); close(done) }()
	var got, lost uint64
	for ended := false; !ended || len(w.Events()) > 0; {
		select {
		case ev := <-w.Events():
			got++
			lost += ev.Lost
		case <-done:
			ended, done = true, nil
		}
	}
	if lost += w.Lost(); got+lost != writers*each {
		t.Errorf("%d told and %d lost, want %d together", got, lost, writers*each)
	}
}

func TestLook(t *testing.T) {
	for name, b := range backends() {
		t.Run(name, func(t *testing.T) {
			r := choosy(Open(Options{Backend: b, Gen: 1, HotCache: 1 << 20}))
			k := keyOf(r, "k")
			look := func(state State, bytes Where, v attune.Version) Look {
				t.Helper()
				l := r.Look(t.Context(), k)
				if l.State != state || l.Bytes != bytes || l.Item.Version != v || l.Item.Fetched {
					t.Errorf("%+v, want %s, %q and version %d", l, state, bytes, v)
				}
				return l
			}
			look(Absent, Nowhere, 0)
			c := put(k, 10, "value")
			c.Item.Flags, c.Item.Expires = 7, epoch+1
			if _, err := r.Apply(c); err != nil {
				t.Fatal(err)
			}
			stored := InMemory
			if name == "remote" {
				stored = InStore
				look(Present, Staged, 10)
			}
			if err := r.Settle(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if l := look(Present, stored, 10); l.Item.Flags != 7 || l.Item.Size != 5 || l.Item.Expires != epoch+1 || l.Item.Stored != 10 {
				t.Errorf("%+v", l.Item)
			}
			if f, ok := b.(*remote); ok {
				for range 3 {
					if _, err := r.Get(t.Context(), k, nil, true); err != nil {
						t.Fatal(err)
					}
				}
				if l := r.Look(t.Context(), k); l.Bytes != InHot {
					t.Errorf("%+v, want it hot", l)
				}
				r.hot.Load().drop(k.Hash)
				f.store.forget(k.Hash)
				if l := r.Look(t.Context(), k); l.Bytes != Lost {
					t.Errorf("%+v, want its bytes missing", l)
				}
				f.failOnce = 1
				if l := r.Look(t.Context(), k); l.Bytes != Unknown || l.Err == nil {
					t.Errorf("%+v, want no reply", l)
				}
			}
			r.Flush(10)
			look(Flushed, Nowhere, 10)
		})
	}
	r := Open(Options{Backend: newMemory(), Gen: 1, Tombstones: true})
	mustMerge(t, r, whole(r, "a", 10, 10))
	mustMerge(t, r, deletion(r, "a", 20))
	mustMerge(t, r, whole(r, "b", 30, 30))
	mustMerge(t, r, lost(r, "b", 30))
	for key, want := range map[string]State{"a": Deleted, "b": Evicted} {
		if l := r.Look(t.Context(), keyOf(r, key)); l.State != want || l.Item.Version == 0 {
			t.Errorf("%s: %+v, want %s", key, l, want)
		}
	}
}
