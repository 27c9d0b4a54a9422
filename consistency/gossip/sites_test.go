package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
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
	ready   func()                   // called as soon as it is
	won     []int                    // by ready
	open    bool
	skew    time.Duration // how far its clock is ahead
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
			c, err := cluster.Open(cluster.Options{
				Name: s.o.Node, ID: id, Kind: "gossip", Expect: n, Peer: attunetest.FreeAddr(t),
				Gossip: s.gossip, Join: join, Log: s.o.Log,
			})
			if err == nil && s.skew != 0 {
				_, err = c.Inject(cluster.Fault{Kind: cluster.FaultClock, Offset: s.skew}, cluster.MaxFault)
			}
			return c, err
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
			if s.skew != 0 {
				return // never ready
			}
			select {
			case <-e.Ready():
				if s.ready != nil {
					s.ready()
				}
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

// keeps waits until a site's store has a value.
func (s *site) keeps(key, value string) {
	s.t.Helper()
	soon(s.t, func() error {
		rec, err := s.backend.Get(context.Background(), s.key(key), nil)
		if err != nil || string(rec.Value) != value {
			return fmt.Errorf("the store of %s: %s=%q %v", s.o.Node, key, rec.Value, err)
		}
		return nil
	})
}

// loses has a site's store forget values, also those that are on their way there.
func (s *site) loses(keys ...string) {
	s.t.Helper()
	for _, key := range keys {
		soon(s.t, func() error {
			err := s.backend.Delete(context.Background(), s.key(key))
			if it, gone := s.replica.Get(context.Background(), s.key(key), nil, false); !errors.Is(gone, replica.ErrGone) {
				err = fmt.Errorf("%s of %s is not lost: %+v, %w", key, s.o.Node, it, cmp.Or(gone, err))
			}
			return err
		})
	}
}

// cutOff cuts a site off from the others, and returns when it takes them for dead.
func (s *site) cutOff(others ...string) {
	s.t.Helper()
	if _, err := s.cluster.Inject(cluster.Fault{Kind: cluster.FaultPartition, Peers: others}, cluster.MaxFault); err != nil {
		s.t.Fatal(err)
	}
	soon(s.t, func() error {
		if n := len(s.others()); n > 0 {
			return fmt.Errorf("%s reaches %d others", s.o.Node, n)
		}
		return nil
	})
}
