package gossip

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/kvadapter"
)

func TestThreeSpread(t *testing.T) {
	t.Parallel()
	bothSites(t, nil, func(t *testing.T, g *sites) {
		for i, s := range g.list {
			s.must(attune.Stored, s.op(attune.Set, "k", strconv.Itoa(i)))
			g.all("k", strconv.Itoa(i))
		}
		g.list[1].must(attune.Deleted, g.list[1].op(attune.Delete, "k", ""))
		g.all("k", "")
		// Through any; what one did the next one finds.
		g.list[0].must(attune.Stored, g.list[0].op(attune.Set, "n", "10"))
		for i, s := range []*site{g.list[0], g.list[1], g.list[2], g.list[0]} {
			soon(t, func() error { return s.has("n", strconv.Itoa(10+i)) })
			if res := s.do(s.op(attune.Incr, "n", ""))[0]; res.Status != attune.Counted || res.Number != uint64(11+i) {
				t.Errorf("incr %d: %+v", i, res)
			}
		}
		m := g.list[2]
		res := m.do(m.op(attune.Append, "n", "0"), m.op(attune.Add, "n", "x"), m.op(attune.Touch, "absent", ""), m.op(attune.Add, "new", "y"), m.op(attune.Delete, "n", ""))
		for i, want := range []attune.Status{attune.Stored, attune.NotStored, attune.NotFound, attune.Stored, attune.Deleted} {
			if res[i].Status != want {
				t.Errorf("op %d: %+v, want status %d", i, res[i], want)
			}
		}
		g.all("new", "y")
		g.all("n", "")
		big := strings.Repeat("v", 3<<20)
		m.must(attune.Stored, m.op(attune.Set, "big", big))
		g.all("big", big)

		// Flushes, of which a later one comes to all as well.
		m.must(attune.Flushed, attune.Op{Verb: attune.Flush})
		m.must(attune.Stored, m.op(attune.Set, "after", "1"))
		g.all("after", "1")
		g.all("new", "")
		m.must(attune.Flushed, attune.Op{Verb: attune.Flush, Exptime: 1})
		if err := m.has("after", "1"); err != nil {
			t.Error("flushed too early:", err)
		}
		g.all("after", "")

		// And expiry.
		op := m.op(attune.Set, "short", "v")
		op.Exptime = 1
		m.must(attune.Stored, op)
		g.all("short", "v")
		g.all("short", "")
		g.equal()
	})
}

// TestVolatileSiteReturns: it comes back empty, as somebody else, and is filled.
func TestVolatileSiteReturns(t *testing.T) {
	t.Parallel()
	bothSites(t, nil, func(t *testing.T, g *sites) {
		a := g.list[0]
		for i := range 500 {
			a.must(attune.Stored, a.op(attune.Set, fmt.Sprint("k", i), fmt.Sprint("v", i)))
		}
		g.equal()
		for i, s := range g.list[:2] {
			id := s.core.id
			if i == 1 {
				s.kill()
			} else {
				s.close()
			}
			other := g.list[(i+1)%3]
			other.must(attune.Stored, other.op(attune.Set, "while away", s.o.Node))
			g.start(s)
			if s.core.id == id {
				t.Error("it is the same origin, without its memory")
			}
			// It is ready: so what was written is there.
			for key, value := range map[string]string{"k77": "v77", "while away": s.o.Node} {
				if err := s.has(key, value); err != nil {
					t.Error(err)
				}
			}
			s.must(attune.Stored, s.op(attune.Set, "back", s.o.Node))
			g.all("back", s.o.Node)
		}
		g.equal()
	})
}

// TestDurableSitesReturn: with a data-dir each is who it was, whether it was stopped
// or killed, alone or all together.
func TestDurableSitesReturn(t *testing.T) {
	t.Parallel()
	bothSites(t, durable, func(t *testing.T, g *sites) {
		a, b, c := g.list[0], g.list[1], g.list[2]
		for i := range 100 {
			a.must(attune.Stored, a.op(attune.Set, fmt.Sprint("k", i), fmt.Sprint("v", i)))
		}
		g.all("k99", "v99")
		b.must(attune.Deleted, b.op(attune.Delete, "k0", ""))
		id := b.core.id
		b.kill()
		a.must(attune.Stored, a.op(attune.Set, "while away", "1"))
		g.start(b)
		if b.core.id != id {
			t.Error("it lost who it is")
		}
		if err := errors.Join(b.has("while away", "1"), b.has("k77", "v77"), b.has("k0", "")); err != nil {
			t.Error(err)
		}
		g.equal()
		c.must(attune.Stored, c.op(attune.Set, "last", "1"))
		var wait sync.WaitGroup
		for _, s := range g.list {
			if s.o.Causal { // something of each
				wait.Go(s.kill)
			} else {
				wait.Go(s.close)
			}
		}
		wait.Wait()
		g.start(g.list...)
		g.all("last", "1")
		g.all("k99", "v99")
		g.all("k0", "")
		g.equal()
	})
}

// TestWriteAcks: with enough members each write waits for them; with too few it fails
// at its deadline, and says why.
func TestWriteAcks(t *testing.T) {
	t.Parallel()
	together(map[string]int{"two": 2, "all": All}, func(name string, want int) {
		t.Run(name, func(t *testing.T) {
			g := openSites(t, 3, func(s *site) { s.o.WriteAcks = want })
			a := g.list[0]
			for i := range 20 {
				a.must(attune.Stored, a.op(attune.Set, "k", fmt.Sprint(i)))
				got := 0
				for _, s := range g.list {
					if s.has("k", fmt.Sprint(i)) == nil {
						got++
					}
				}
				if got < min(want, 3) {
					t.Errorf("acknowledged, and %d have it", got)
				}
			}
			g.list[1].kill()
			res := a.try(400*time.Millisecond, a.op(attune.Set, "l", "v"))[0]
			if want == 2 {
				if res.Status != attune.Stored {
					t.Errorf("with two of three: %+v", res)
				}
				g.list[2].kill()
				res = a.try(400*time.Millisecond, a.op(attune.Set, "l", "v"))[0]
			}
			if res.Status != attune.Failed || res.Err == nil || !strings.Contains(res.Err.Error(), "write-acks") {
				t.Errorf("with too few: %+v", res)
			}
			if err := a.has("l", "v"); err != nil {
				t.Error("it said it took effect:", err)
			}
			if st := a.Status(); st.Waiting != 0 {
				t.Errorf("%d wait still", st.Waiting)
			}
		})
	})
}

// TestAcksWhenClosed: who waits is answered when the engine closes, and so is who
// comes later.
func TestAcksWhenClosed(t *testing.T) {
	t.Parallel()
	g := openSites(t, 3, func(s *site) { s.o.WriteAcks = 3 })
	a := g.list[0]
	for _, s := range g.list[1:] {
		s.kill()
	}
	failed := make(chan attune.Result)
	go func() { failed <- a.try(time.Minute, a.op(attune.Set, "k", "v"))[0] }()
	soon(t, func() error {
		if a.Status().Waiting == 0 {
			return errors.New("nobody waits")
		}
		return nil
	})
	a.close()
	for range 2 {
		if res := <-failed; res.Status != attune.Failed {
			t.Errorf("%+v", res)
		}
		go func() { failed <- a.try(time.Minute, a.op(attune.Set, "k", "v"))[0] }()
	}
	<-failed
}

// TestSitesUnderPressure: evictions converge, also on a controller that nobody writes
// to, or that has less memory than the others.
func TestSitesUnderPressure(t *testing.T) {
	t.Parallel()
	const limit = 6 << 20
	bothSites(t, func(s *site) {
		if s.limit = limit; s.o.Node == "n3" {
			s.limit = limit * 3 / 4
		}
	}, func(t *testing.T, g *sites) {
		value := strings.Repeat("v", 2000)
		var wait sync.WaitGroup
		for w, s := range g.list[:2] {
			wait.Go(func() {
				for i := range 150 {
					var ops []attune.Op
					for j := range 20 {
						ops = append(ops, s.op(attune.Set, fmt.Sprint("k", w, " ", i, " ", j), value))
					}
					s.must(attune.Stored, ops...)
				}
			})
		}
		wait.Wait()
		g.equal()
		for _, s := range g.list {
			soon(t, func() error {
				if used := s.replica.Stats().UsedBytes; used > s.limit {
					return fmt.Errorf("%s: %d bytes used of %d", s.o.Node, used, s.limit)
				}
				return nil
			})
			if n := s.replica.Len(); n < 500 {
				t.Errorf("%s: %d items are left", s.o.Node, n)
			}
		}
		g.equal()
	})
}

// TestSitesLoseBytes: those that one has lost it gets from another; those that all
// have lost are gone for all.
func TestSitesLoseBytes(t *testing.T) {
	t.Parallel()
	together(map[string]func() kvadapter.Backend{
		"embedded": nil,
		"remote":   func() kvadapter.Backend { r := newRemote(); r.delay = 100 * time.Microsecond; return r },
	}, func(name string, store func() kvadapter.Backend) {
		t.Run(name, func(t *testing.T) {
			bothSites(t, func(s *site) { s.store = store }, func(t *testing.T, g *sites) {
				lose := func(key string, list ...*site) {
					for _, s := range list {
						if err := s.backend.Delete(context.Background(), s.key(key)); err != nil {
							t.Fatal(err)
						}
					}
				}
				stored := func(key, value string) { // in the stores, too
					for _, s := range g.list {
						soon(t, func() error {
							rec, err := s.backend.Get(context.Background(), s.key(key), nil)
							if err != nil || string(rec.Value) != value {
								return fmt.Errorf("%s: %s=%q %v", s.o.Node, key, rec.Value, err)
							}
							return nil
						})
					}
				}
				for i, s := range g.list {
					s.must(attune.Stored, s.op(attune.Set, "k", "v"), s.op(attune.Set, "n", "7"))
					stored("k", "v")
					stored("n", "7")
					lose("k", s)
					if err := s.has("k", "v"); err != nil {
						t.Error(i, err)
					}
					stored("k", "v") // what was fetched is kept
					lose("n", s)
					if res := s.do(s.op(attune.Incr, "n", ""))[0]; res.Number != 8 {
						t.Errorf("incr of lost bytes: %+v", res)
					}
					stored("n", "8")
				}
				lose("k", g.list...)
				lose("n", g.list...)
				if err := g.list[1].has("k", ""); err != nil {
					t.Error(err)
				}
				if res := g.list[2].do(g.list[2].op(attune.Incr, "n", ""))[0]; res.Status != attune.NotFound {
					t.Errorf("incr of bytes that nobody has: %+v", res)
				}
				g.all("k", "")
				g.all("n", "")

				// Those that a clock wrote that was ahead look young for an hour.
				a := g.list[0]
				if _, err := a.cluster.Inject(cluster.Fault{Kind: cluster.FaultClock, Offset: time.Hour}, cluster.MaxFault); err != nil {
					t.Fatal(err)
				}
				a.must(attune.Stored, a.op(attune.Set, "f", "v"))
				a.cluster.ClearFaults()
				stored("f", "v")
				lose("f", g.list...)
				g.all("f", "")
				g.equal()
			})
		})
	})
}

// TestWritersWaitForTheStoresOfOthers: what one store is slow to take slows down all
// who write, so that there is room left for those who write where it is.
func TestWritersWaitForTheStoresOfOthers(t *testing.T) {
	t.Parallel()
	store := func() kvadapter.Backend { return newRemote() }
	bothSites(t, func(s *site) { s.store = store }, func(t *testing.T, g *sites) {
		a, b, c := g.list[0], g.list[1], g.list[2]
		crowded := func(want bool) {
			t.Helper()
			soon(t, func() error {
				for _, s := range g.list {
					if s != b && s.open && s.core.crowded.Load() != want {
						return fmt.Errorf("%s: somebody is behind: %t", s.o.Node, !want)
					}
				}
				return nil
			})
		}
		r := b.backend.(*remote)
		r.mu.Lock() // it takes nothing
		takes := sync.OnceFunc(r.mu.Unlock)
		defer takes()
		value := string(make([]byte, 64<<10))
		for i := range 300 { // 16 MiB are 256 of them
			a.must(attune.Stored, a.op(attune.Set, fmt.Sprint("k", i), value))
		}
		crowded(true)
		began, trace, done := time.Now(), attune.NewTrace("set", nil), make(chan struct{})
		call := &attune.Call{Ctx: t.Context(), Ops: []attune.Op{c.op(attune.Set, "c", "v")}, Res: make([]attune.Result, 1), Trace: trace}
		call.Done = func() { close(done) }
		if !c.Submit(call) {
			<-done
		}
		if took := time.Since(began); took < 20*time.Millisecond || call.Res[0].Status != attune.Stored {
			t.Errorf("a write took %v while a store was behind: %+v", took, call.Res[0])
		}
		if !slices.ContainsFunc(trace.Steps(), func(s attune.Step) bool { return s.Phase == "store room" }) {
			t.Errorf("the trace of a write that waited: %+v", trace.Steps())
		}
		b.must(attune.Stored, b.op(attune.Set, "b", "v"))
		takes()
		crowded(false)
		g.all("b", "v")
		g.equal()
	})
}

// A store that comes back with old bytes, of an image or of the other side of a
// partition, is not believed: their stamp is another one. What is current comes from a
// peer, and is in that store again.
func TestRow17OldBytes(t *testing.T) {
	t.Parallel()
	store := func() kvadapter.Backend { return newRemote() }
	bothSites(t, func(s *site) { s.store = store }, func(t *testing.T, g *sites) {
		a, b := g.list[0], g.list[1]
		stored := func(value string) (rec kvadapter.Record) {
			soon(t, func() (err error) {
				if rec, err = b.backend.Get(context.Background(), b.key("k"), nil); err == nil && string(rec.Value) != value {
					err = fmt.Errorf("%q in the store, want %q", rec.Value, value)
				}
				return err
			})
			return rec
		}
		a.must(attune.Stored, a.op(attune.Set, "k", "old"))
		old := stored("old")
		a.must(attune.Stored, a.op(attune.Set, "k", "new"))
		stored("new")
		if err := b.backend.Put(context.Background(), b.key("k"), old); err != nil {
			t.Fatal(err)
		}
		if err := b.has("k", "new"); err != nil {
			t.Error(err)
		}
		stored("new")
		g.equal()
	})
}

// TestRow13SkewedClock: its clock is an hour off. It says so, serves nobody, and changes
// nothing; the others go on.
func TestRow13SkewedClock(t *testing.T) {
	t.Parallel()
	together(map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour}, func(name string, skew time.Duration) {
		t.Run(name, func(t *testing.T) {
			g := openSites(t, 3, func(s *site) {
				if s.o.Node == "n3" { // n1 founds
					s.skew = skew
				}
			})
			a, off := g.list[0], g.list[2]
			soon(t, func() error {
				if err := off.Health(); !errors.Is(err, errSkewed) {
					return fmt.Errorf("health: %v", err)
				}
				return nil
			})
			a.must(attune.Stored, a.op(attune.Set, "k", "v"))
			for _, op := range []attune.Op{off.op(attune.Set, "k", "w"), off.op(attune.Incr, "n", ""), {Verb: attune.Flush}} {
				var res [1]attune.Result
				off.Write(context.Background(), []attune.Op{op}, res[:])
				if res[0].Status != attune.Failed || !errors.Is(res[0].Err, errSkewed) {
					t.Errorf("%v: %+v", op.Verb, res[0])
				}
			}
			for _, s := range g.list[:2] {
				soon(t, func() error { return s.has("k", "v") })
				if err := s.Health(); err != nil {
					t.Error(s.o.Node, err)
				}
				s.must(attune.Stored, s.op(attune.Set, "k", "v"))
			}
		})
	})
}
