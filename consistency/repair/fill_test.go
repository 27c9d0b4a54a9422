package repair_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
)

// same gives all peers n items, and returns their keys.
func same(t testing.TB, all []*peer, n int) (keys []string) {
	t.Helper()
	for i := range n {
		key := fmt.Sprint("k", i)
		for _, p := range all {
			p.put(t, key, attune.Version(i+1), strings.Repeat("v", i))
		}
		keys = append(keys, key)
	}
	return keys
}

// TestAPassFetchesWhatTheStoreLacksAndNothingElse: not what it has, what another
// version took the place of, what is dead, or what this replica never heard of.
func TestAPassFetchesWhatTheStoreLacksAndNothingElse(t *testing.T) {
	all := peers(t, 2)
	a, b := all[0], all[1]
	keys := same(t, all, 600) // more than a batch
	lost := keys[:500]
	for _, key := range lost {
		a.store.forget(key)
	}
	a.put(t, "newer", 9, "nine")
	a.store.forget("newer")
	b.put(t, "newer", 8, "eight")
	a.put(t, "dead", 1, "x")
	a.applied(t, attune.Change{Key: a.key("dead"), Prior: 1, Item: attune.Item{Deleted: true}}, 2)
	a.store.forget("dead")
	b.put(t, "dead", 1, "x")
	b.put(t, "unheard", 1, "x")

	if err := a.filler.Once(within(t)); err != nil {
		t.Fatal(err)
	}
	for i, key := range lost {
		if got, err := a.get(t, key); err != nil || len(got) != i {
			t.Fatalf("%s: %d bytes, %v", key, len(got), err)
		}
	}
	for _, key := range []string{"newer", "dead", "unheard"} {
		if a.store.has(key) != 0 {
			t.Errorf("the store has %s now", key)
		}
	}
	for _, key := range keys[500:] {
		if n := len(a.store.puts[key]); n != 1 {
			t.Errorf("%s, which was there, was put %d times", key, n)
		}
	}
	st := a.filler.Status()
	if st.Fetched != int64(len(lost)) || st.Lacking != int64(len(lost))+1 || st.Passes != 1 || st.From != "" || st.Looked != 602 && st.Looked != 603 {
		t.Errorf("status %+v", st)
	}
}

// TestAPassGoesToWhoCanTell: a peer whose store is out of order cannot.
func TestAPassGoesToWhoCanTell(t *testing.T) {
	all := peers(t, 3, 2)
	a, b := all[0], all[1]
	same(t, all, 3)
	a.store.forget("k1")
	no := func(_ context.Context, verb, _ string) error {
		if verb == "scan" {
			return kvadapter.ErrUnavailable
		}
		return nil
	}
	b.store.before = no
	if err := a.filler.Once(within(t)); err == nil {
		t.Error("nobody could tell, and that was no error")
	}
	b.store.before = func(context.Context, string, string) error { return nil }
	if err := a.filler.Once(within(t)); err != nil {
		t.Error(err)
	}
	if a.store.has("k1") != 2 {
		t.Error("k1 was not fetched")
	}
	// The store here is asked what it lacks; while it does not say, nothing is fetched.
	a.store.forget("k1")
	a.store.before = func(_ context.Context, verb, _ string) error {
		if verb == "get" {
			return kvadapter.ErrUnavailable
		}
		return nil
	}
	if err := a.filler.Once(within(t)); !errors.Is(err, kvadapter.ErrUnavailable) {
		t.Errorf("with the store here out of order: %v", err)
	}
}

// TestAStoreThatLosesMuchIsFilledUnasked, one that counts, and again when it happens
// again.
func TestAStoreThatLosesMuchIsFilledUnasked(t *testing.T) {
	all := peers(t, 2)
	a := all[0]
	keys := same(t, all, 100)
	a.filler.Every(10 * time.Millisecond)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.filler.Run(ctx) })
	defer wg.Wait()
	defer stop()
	for range 2 {
		for _, key := range keys {
			a.store.forget(key)
		}
		attunetest.Eventually(t, "all is there again", func() bool {
			for _, key := range keys {
				if a.store.has(key) == 0 {
					return false
				}
			}
			return true
		})
	}
}

// TestADamagedStoreIsFilledUnasked, though it lost too little to be noticed otherwise,
// and from all of the others: what one lacks another may have.
func TestADamagedStoreIsFilledUnasked(t *testing.T) {
	all := peers(t, 3)
	a, b := all[0], all[1]
	keys := same(t, all, 100)
	a.filler.Every(10 * time.Millisecond)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.filler.Run(ctx) })
	defer wg.Wait()
	defer stop()
	for range 2 {
		for i, key := range keys[:10] {
			a.store.forget(key)
			if i%2 == 0 {
				b.store.forget(key)
			}
		}
		a.store.damages.Add(1)
		attunetest.Eventually(t, "all is there again", func() bool {
			for _, key := range keys {
				if a.store.has(key) == 0 {
					return false
				}
			}
			return true
		})
	}
	passes := a.filler.Status().Passes
	time.Sleep(200 * time.Millisecond)
	if n := a.filler.Status().Passes; n > passes+2 {
		t.Errorf("%d passes more, of a store that lacks nothing", n-passes)
	}
}

// TestPacedKeepsItsRate, and loses nothing.
func TestPacedKeepsItsRate(t *testing.T) {
	src := bytes.Repeat([]byte("0123456789"), 1000)
	began := time.Now()
	got, err := io.ReadAll(repair.Paced(t.Context(), bytes.NewReader(src), 100_000))
	if err != nil || !bytes.Equal(got, src) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	// The last piece is not waited for.
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Errorf("10 kB at 100 kB/s took %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := repair.Paced(ctx, bytes.NewReader(src), 1)
	if _, err := r.Read(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := r.Read(make([]byte, 1000)); !errors.Is(err, context.Canceled) {
		t.Errorf("read went on: %v", err)
	}
}
