package gossip

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// TestLostBytesOfWhichAPeerIsNotSure: while the only other store that may have them
// cannot be reached, a read is a miss where the store here is a cache, which forgets, and
// else fails; what is decided on them fails, at its deadline and not later; nothing is
// evicted, and when that store is back, so are the bytes.
func TestLostBytesOfWhichAPeerIsNotSure(t *testing.T) {
	t.Parallel()
	for name, forgets := range map[string]bool{"cache": true, "memory": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lostBytesOfWhichAPeerIsNotSure(t, forgets)
		})
	}
}

func lostBytesOfWhichAPeerIsNotSure(t *testing.T, forgets bool) {
	timeout := errors.New("its time is up")
	first := true
	g := openSites(t, 2, func(s *site) {
		if !first || forgets {
			s.store = func() kvadapter.Backend { return newRemote() }
		}
		s.o.Timeout, first = timeout, false
	})
	a, b := g.list[0], g.list[1]
	a.must(attune.Stored, a.op(attune.Set, "k", "v"))
	b.keeps("k", "v")
	a.loses("k")
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
	if it, err := find(time.Now()); !errors.Is(err, timeout) {
		t.Errorf("found %+v, %v at the deadline", it, err)
	}
	if it, err := find(time.Time{}); it.Live(a.Now()) || forgets && err != nil || !forgets && !errors.Is(err, repair.ErrSilent) {
		t.Errorf("found %+v, %v where nobody is sure", it, err)
	}
	// The home of the key is either of them: who asks, or whose store does not answer.
	if res := a.do(a.op(attune.Append, "k", "w"))[0]; res.Status != attune.Failed {
		t.Errorf("appended: %+v", res)
	}
	fail(nil)
	if it, err := find(time.Time{}); err != nil || string(it.Value) != "v" {
		t.Errorf("found %+v, %v when the store was back", it, err)
	}
}

// TestLostBytesThatWereOverwritten: who is asked has them no more, because there is
// something newer, which is on its way. That is no miss, and no error of the store here.
func TestLostBytesThatWereOverwritten(t *testing.T) {
	t.Parallel()
	together(map[string]error{"lost": nil, "out of reach": kvadapter.ErrUnavailable}, func(how string, down error) {
		t.Run(how, func(t *testing.T) {
			g := openSites(t, 2, func(s *site) {
				s.store = func() kvadapter.Backend { return newRemote() }
			})
			a, b := g.list[0], g.list[1]
			a.must(attune.Stored, a.op(attune.Set, "k", "v"))
			b.keeps("k", "v")
			a.loses("k")
			lost, err := a.replica.Get(context.Background(), a.key("k"), nil, false)
			if !errors.Is(err, replica.ErrGone) {
				t.Fatalf("the bytes are not lost: %+v, %v", lost, err)
			}
			f := a.backend.(*remote)
			f.mu.Lock()
			f.err = down
			f.mu.Unlock()
			newer := attune.Change{Key: a.key("k"), Prior: attune.AnyVersion, Item: attune.Item{Value: []byte("w"), Size: 1}}
			newer.Stamp(lost.Version + 1)
			apply := func(s *site) {
				ch := newer
				if ok, err := s.replica.Apply(&ch); !ok || err != nil {
					t.Errorf("not applied: %v", err)
				}
			}
			apply(b)
			time.AfterFunc(50*time.Millisecond, func() { apply(a) })
			done := make(chan struct{})
			c := &attune.Call{Ctx: context.Background(), Res: make([]attune.Result, 1), Done: func() { close(done) }}
			if !a.Find(c, a.key("k"), lost) {
				<-done
			}
			if it := c.Res[0].Item; c.Err != nil || string(it.Value) != "w" {
				t.Errorf("found %q, %v", it.Value, c.Err)
			}
		})
	})
}

// missing reads what a site has lost: a miss, at once or not.
func (s *site) missing(keys ...string) {
	s.t.Helper()
	for _, key := range keys {
		lost, _ := s.replica.Get(context.Background(), s.key(key), nil, false)
		done := make(chan struct{})
		c := &attune.Call{Ctx: context.Background(), Res: make([]attune.Result, 1), Done: func() { close(done) }}
		if !s.Find(c, s.key(key), lost) {
			<-done
		}
		if it := c.Res[0].Item; c.Err != nil || it.Live(s.Now()) {
			s.t.Errorf("%s at %s reads %+v, %v, want a miss", key, s.o.Node, it, c.Err)
		}
	}
}

// TestWhoIsCutOffEvictsNothing: its store was emptied, and those who have the values are
// out of reach, or not known at all, as after a restart. It goes on without them, and when
// it reaches the others again all is there that was, but for what was written instead.
func TestWhoIsCutOffEvictsNothing(t *testing.T) {
	t.Parallel()
	bothSites(t, func(s *site) {
		r := newRemote()
		s.store = func() kvadapter.Backend { return r } // outlives the process
		durable(s)
	}, func(t *testing.T, g *sites) {
		a, b, c := g.list[0], g.list[1], g.list[2]
		for _, key := range []string{"k", "n", "l", "m"} {
			a.must(attune.Stored, a.op(attune.Set, key, "7"))
			c.keeps(key, "7")
		}
		c.cutOff("n1", "n2")
		c.loses("k", "n", "l")
		c.missing("k", "n", "l")
		if res := c.do(c.op(attune.Incr, "n", ""))[0]; res.Status != attune.NotFound {
			t.Errorf("incr of what is out of reach: %+v", res)
		}
		lease := c.op(attune.Get, "l", "")
		lease.Mode = attune.WantValue | attune.Vivify
		if res := c.do(lease)[0]; !res.Absent {
			t.Errorf("a get that creates the item: %+v", res)
		}

		// It comes back, and finds nobody.
		c.close()
		for _, s := range []*site{a, b} {
			soon(t, func() error {
				if n := len(s.others()); n != 1 {
					return fmt.Errorf("%s reaches %d others", s.o.Node, n)
				}
				return nil
			})
		}
		open := c.o.OpenCluster
		c.o.OpenCluster = func(id uint64) (*cluster.Cluster, error) {
			return cluster.Open(cluster.Options{
				Name: c.o.Node, ID: id, Kind: "gossip", Expect: 3, Peer: "127.0.0.1:0", Gossip: "127.0.0.1:0",
			})
		}
		g.start(c)
		c.loses("k", "n", "m")
		c.missing("k", "n", "m")
		c.close()
		c.o.OpenCluster = open
		g.start(c)

		for _, key := range []string{"k", "n", "m"} {
			g.all(key, "7")
		}
		g.all("l", "")
		g.equal()
	})
}

// TestWhoIsBehindIsNotSure: it is about to have the only bytes that there are, and says
// so, however long it takes.
func TestWhoIsBehindIsNotSure(t *testing.T) {
	t.Parallel()
	bothSites(t, func(s *site) { s.store = func() kvadapter.Backend { return newRemote() } }, func(t *testing.T, g *sites) {
		a, b, c := g.list[0], g.list[1], g.list[2]
		b.core.mu.Lock() // nothing comes to it
		unlock := sync.OnceFunc(b.core.mu.Unlock)
		defer unlock()
		a.must(attune.Stored, a.op(attune.Set, "k", "v"))
		for _, s := range []*site{a, c} {
			s.keeps("k", "v")
			s.loses("k")
		}
		time.Sleep(600 * time.Millisecond)
		a.missing("k")
		unlock()
		g.all("k", "v")
		g.equal()
	})
}
