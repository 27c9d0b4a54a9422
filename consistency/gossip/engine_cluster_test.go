package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// site is one controller's engine, on loopback.
type site struct {
	*Engine
	t       testing.TB
	o       Options
	gossip  string
	backend kvadapter.Backend
	limit   int64
	store   func() kvadapter.Backend // nil: embedded
	open    bool
}

// sites are several of them.
type sites struct {
	t    testing.TB
	list []*site
}

// openSites opens n, after tune has changed their options.
func openSites(t testing.TB, n int, tune func(s *site)) *sites {
	g := &sites{t: t}
	var join []string
	for range n {
		join = append(join, attunetest.FreeAddr(t))
	}
	for i := range n {
		s := &site{t: t, gossip: join[i]}
		s.o = Options{Node: "n" + strconv.Itoa(i+1), MaxSkew: 5 * time.Second, Log: zap.NewNop()}
		if testing.Verbose() {
			s.o.Log = zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel)).Named(s.o.Node)
		}
		s.o.OpenCluster = func(id uint64) (*cluster.Cluster, error) {
			return cluster.Open(cluster.Options{
				Name: s.o.Node, ID: id, Kind: "gossip", Expect: n, Peer: attunetest.FreeAddr(t),
				Gossip: s.gossip, Join: join, Log: s.o.Log,
			})
		}
		s.o.OpenReplica = func(o replica.Options) (*replica.Replica, error) {
			if s.store != nil {
				s.backend = s.store()
			} else {
				s.backend = embedded(t)
			}
			o.Backend, o.MemoryLimit = s.backend, s.limit
			return replica.Open(o), nil
		}
		if tune != nil {
			tune(s)
		}
		g.list = append(g.list, s)
	}
	g.start(g.list...)
	t.Cleanup(func() { g.stop(g.list...) })
	return g
}

// durable has a site keep a journal.
func durable(s *site) { s.o.DataDir, s.o.Sync = s.t.TempDir(), disk.OS }

// bothSites runs a test on three, at both levels.
func bothSites(t *testing.T, tune func(s *site), test func(t *testing.T, g *sites)) {
	together(map[string]bool{"eventual": false, "causal": true}, func(level string, causal bool) {
		t.Run(level, func(t *testing.T) {
			test(t, openSites(t, 3, func(s *site) {
				s.o.Causal = causal
				if tune != nil {
					tune(s)
				}
			}))
		})
	})
}

// together calls fn for all at the same time: they wait, mostly, and Parallel allows
// no more at a time than there are processors.
func together[K comparable, V any](all map[K]V, fn func(K, V)) {
	var wait sync.WaitGroup
	for k, v := range all {
		wait.Go(func() { fn(k, v) })
	}
	wait.Wait()
}

// start opens sites, and returns when they are ready.
func (g *sites) start(list ...*site) {
	g.t.Helper()
	var wait sync.WaitGroup
	for _, s := range list {
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), attunetest.Patience)
			defer cancel()
			e, err := Open(ctx, s.o)
			if err != nil {
				g.t.Error(s.o.Node, err)
				return
			}
			s.Engine, s.open = e, true
			if s.o.skew != 0 {
				return // never ready
			}
			select {
			case <-e.Ready():
			case <-ctx.Done():
				g.t.Errorf("%s is not ready: %v; %+v", s.o.Node, e.Health(), e.Status())
			}
		})
	}
	wait.Wait()
	if g.t.Failed() {
		g.t.FailNow()
	}
}

// stop closes those that are open.
func (g *sites) stop(list ...*site) {
	var wait sync.WaitGroup
	for _, s := range list {
		if s.open {
			wait.Go(s.close)
		}
	}
	wait.Wait()
}

func (s *site) close() {
	s.open = false
	if err := errors.Join(s.Engine.Close(), s.backend.Close()); err != nil {
		s.t.Error(err)
	}
}

// kill ends a site without a word to the others, and without sealing its journal:
// what it finds when it comes back is what a process that was killed would.
func (s *site) kill() {
	s.t.Helper()
	if s.o.DataDir != "" {
		left := s.o.DataDir
		s.o.DataDir = s.t.TempDir()
		copyJournal(s.t, left, s.o.DataDir)
	}
	s.open = false
	s.Engine.closing.Do(func() {
		s.homes.close()
		s.cancel(errClosed)
		close(s.stop)
	})
	s.running.Wait()
	if err := errors.Join(s.left(), s.backend.Close()); err != nil {
		s.t.Error(err)
	}
}

// copyJournal copies a directory that is being written to as a crash would leave it:
// the journal must not have been shortened meanwhile, which it never is under the
// 64 MiB of stateAfter.
func copyJournal(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func (s *site) key(text string) attune.Key {
	return attune.Key{Text: []byte(text), Hash: s.replica.Hash([]byte(text))}
}

func (s *site) op(verb attune.Verb, key, value string) attune.Op {
	return attune.Op{Verb: verb, Key: s.key(key), Value: []byte(value), Delta: 1}
}

// try has ops executed within d.
func (s *site) try(d time.Duration, ops ...attune.Op) []attune.Result {
	c := &attune.Call{Ctx: context.Background(), Deadline: time.Now().Add(d), Ops: ops, Res: make([]attune.Result, len(ops))}
	done := make(chan struct{})
	c.Done = func() { close(done) }
	if !s.Submit(c) {
		select {
		case <-done:
		case <-time.After(d + attunetest.Patience):
			s.t.Error(s.o.Node, "never answers")
		}
	}
	return c.Res
}

func (s *site) do(ops ...attune.Op) []attune.Result { return s.try(5*time.Second, ops...) }

// must has ops executed, each with a result like this.
func (s *site) must(want attune.Status, ops ...attune.Op) {
	s.t.Helper()
	for i, res := range s.do(ops...) {
		if res.Status != want {
			s.t.Errorf("%s: op %d of %s: status %d %v, want %d", s.o.Node, i, ops[i].Key.Text, res.Status, res.Err, want)
		}
	}
}

// get reads as a controller does.
func (s *site) get(key string) (attune.Item, error) {
	it, err := s.replica.Get(context.Background(), s.key(key), nil, true)
	if errors.Is(err, replica.ErrGone) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		it, err = s.Recover(ctx, s.key(key), it)
	}
	if err == nil && !it.Live(s.Now()) {
		it = attune.Item{}
	}
	return it, err
}

// has says what is wrong with the value of a key.
func (s *site) has(key, value string) error {
	if it, err := s.get(key); err != nil || string(it.Value) != value {
		return fmt.Errorf("%s: %s = %.20q %w, want %.20q", s.o.Node, key, it.Value, cmp.Or(err, errors.New("and no error")), value)
	}
	return nil
}

// all waits until all have a value, "" for none.
func (g *sites) all(key, value string) {
	g.t.Helper()
	for _, s := range g.list {
		soon(g.t, func() error { return s.has(key, value) })
	}
}

// equal waits until all that are open are the same.
func (g *sites) equal() {
	g.t.Helper()
	soon(g.t, func() error {
		var first *site
		for _, s := range g.list {
			if first == nil && s.open {
				first = s
			}
			if s.open && s.replica.Digest() != first.replica.Digest() {
				return fmt.Errorf("%s and %s differ: %+v, %+v", first.o.Node, s.o.Node, first.Status(), s.Status())
			}
		}
		return nil
	})
}

// soon waits until cond has no objection.
func soon(t testing.TB, cond func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(attunetest.Patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

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
				g.equal()
			})
		})
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
					s.o.skew = skew
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
