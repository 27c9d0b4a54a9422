package gossip

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// TestLostBytesOfWhichAPeerIsNotSure: while the only other store that may have them
// cannot be reached, a read fails, at its deadline and not later; nothing is evicted,
// and when that store is back, so are the bytes.
func TestLostBytesOfWhichAPeerIsNotSure(t *testing.T) {
	t.Parallel()
	timeout := errors.New("its time is up")
	g := openSites(t, 2, func(s *site) {
		s.store = func() kvadapter.Backend { return newRemote() }
		s.o.Timeout = timeout
	})
	a, b := g.list[0], g.list[1]
	a.must(attune.Stored, a.op(attune.Set, "k", "v"))
	soon(t, func() error {
		if rec, err := b.backend.Get(context.Background(), b.key("k"), nil); err != nil || string(rec.Value) != "v" {
			return fmt.Errorf("%q, %v", rec.Value, err)
		}
		return nil
	})
	if err := a.backend.Delete(context.Background(), a.key("k")); err != nil {
		t.Fatal(err)
	}
	fail := func(err error) {
		f := b.backend.(*remote)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.err = err
	}
	fail(kvadapter.ErrUnavailable)
	find := func(deadline time.Time) (attune.Item, error) {
		t.Helper()
		lost, err := a.replica.Get(context.Background(), a.key("k"), nil, false)
		if !errors.Is(err, replica.ErrGone) {
			t.Fatalf("the bytes are not lost: %+v, %v", lost, err)
		}
		done := make(chan struct{})
		c := &attune.Call{Ctx: context.Background(), Deadline: deadline, Res: make([]attune.Result, 1), Done: func() { close(done) }}
		if !a.Find(c, a.key("k"), lost) {
			<-done
		}
		return c.Res[0].Item, c.Err
	}
	if it, err := find(time.Now().Add(time.Millisecond)); !errors.Is(err, timeout) {
		t.Errorf("found %+v, %v at the deadline", it, err)
	}
	if it, err := find(time.Time{}); !errors.Is(err, repair.ErrSilent) {
		t.Errorf("found %+v, %v where nobody is sure", it, err)
	}
	fail(nil)
	if it, err := find(time.Time{}); err != nil || string(it.Value) != "v" {
		t.Errorf("found %+v, %v when the store was back", it, err)
	}
}
