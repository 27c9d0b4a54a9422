package repair_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// peer is a node among others.
type peer struct {
	node
	id      uint64
	cluster *cluster.Cluster
	fetcher *repair.Fetcher // nil: it answers nobody
	filler  *repair.Filler

	all      bool          // those it asks are all there are
	position atomic.Uint64 // in the order of all changes
	asked    chan struct{} // for which there is one whenever it is told
}

var _ repair.Progress = (*peer)(nil)

func (p *peer) Begun() uint64 { return p.position.Load() }

func (p *peer) Behind(position uint64, _ attune.Key, _ attune.Version) bool {
	select {
	case p.asked <- struct{}{}:
	default:
	}
	return p.position.Load() < position
}

// peers are n nodes that know each other. The first asks the others in order, and
// all but those that are mute answer.
func peers(t testing.TB, n int, mute ...int) []*peer {
	t.Helper()
	var all []*peer
	var seeds []string
	for i := range n {
		id := rand.Uint64() | 1
		c, err := cluster.Open(cluster.Options{
			Name: fmt.Sprint("n", i), ID: id, Kind: "test", Expect: n,
			Peer: "127.0.0.1:0", Gossip: "127.0.0.1:0", Join: seeds,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.Belong([16]byte{1})
		seeds = []string{c.GossipAddr()}
		all = append(all, &peer{node: newNode(), id: id, cluster: c, all: true, asked: make(chan struct{}, 1)})
	}
	others := func() (ms []cluster.Member) {
		for _, p := range all[1:] {
			ms = append(ms, cluster.Member{ID: p.id})
		}
		return ms
	}
	for i, p := range all {
		silent := false
		for _, m := range mute {
			silent = silent || m == i
		}
		if !silent {
			p.fetcher = repair.NewFetcher(p.cluster, p.Replica, stager(t, p.node), func() ([]cluster.Member, bool) { return others(), p.all }, p)
			p.filler = repair.NewFiller(p.cluster, p.Replica, others, 0, zap.NewNop())
		}
		for _, o := range all {
			attunetest.Eventually(t, "all know all", func() bool {
				m, ok := p.cluster.Member(o.id)
				return ok && m.Alive
			})
		}
	}
	return all
}

// lost is a key whose bytes the node's store has lost.
func (p *peer) lost(t testing.TB, text string, v attune.Version, value string) attune.Item {
	t.Helper()
	p.put(t, text, v, value)
	p.store.forget(text)
	it, err := p.Get(t.Context(), p.key(text), nil, false)
	if !errors.Is(err, replica.ErrGone) {
		t.Fatalf("the bytes of %s are not lost: %v", text, err)
	}
	return it
}

// fetch asks the others for the bytes of an item.
func (p *peer) fetch(t testing.TB, text string, it attune.Item) (value string, found, sure bool) {
	t.Helper()
	a, err := p.fetcher.Fetch(within(t), p.key(text), it)
	if err != nil {
		t.Fatal(err)
	}
	return string(a.Value), a.Value != nil, a.Sure
}

// TestLostBytesComeFromAPeerAndAreKept: of exactly the version that is asked for,
// from whoever has it, and only once.
func TestLostBytesComeFromAPeerAndAreKept(t *testing.T) {
	all := peers(t, 3)
	a, b, c := all[0], all[1], all[2]
	it := a.lost(t, "k", 7, "seven")
	b.put(t, "k", 6, "six")
	c.put(t, "k", 7, "seven")
	if value, found, sure := a.fetch(t, "k", it); value != "seven" || !found || !sure {
		t.Errorf("fetched %q, found %v, sure %v", value, found, sure)
	}
	attunetest.Eventually(t, "what was fetched is kept", func() bool { return a.store.has("k") == 7 })
	if got, err := a.get(t, "k"); got != "seven" || err != nil {
		t.Errorf("what was fetched reads %q, %v", got, err)
	}

	// A touch makes a version and no bytes: those of the version before it count.
	touch := attune.Change{Key: c.key("k"), Prior: 7, Item: it}
	touch.Item.Expires = 1 << 42
	c.applied(t, touch, 9)
	a.store.forget("k")
	if value, found, _ := a.fetch(t, "k", it); value != "seven" || !found {
		t.Errorf("a touch hid the bytes: %q, %v", value, found)
	}

	// The key may change while its bytes are looked for: they are good for who
	// asked, and are not put over newer ones.
	a.put(t, "k", 10, "ten")
	if value, _, _ := a.fetch(t, "k", it); value != "seven" {
		t.Errorf("fetched %q", value)
	}
	if got, err := a.get(t, "k"); got != "ten" || err != nil {
		t.Errorf("old bytes replaced newer ones: %q, %v", got, err)
	}
}

// TestALargeValueMayTakeItsTime: a peer that would be given up for a small one is not for
// what takes long to be read, and sent.
func TestALargeValueMayTakeItsTime(t *testing.T) {
	all := peers(t, 2)
	a, b := all[0], all[1]
	value := strings.Repeat("v", 8<<20)
	large, small := a.lost(t, "large", 1, value), a.lost(t, "small", 1, "v")
	b.put(t, "large", 1, value)
	b.put(t, "small", 1, "v")
	b.store.before = func(ctx context.Context, verb, _ string) error {
		if verb == "get" {
			select {
			case <-time.After(400 * time.Millisecond):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	}
	if got, found, _ := a.fetch(t, "large", large); !found || got != value {
		t.Errorf("%d bytes of %d (%v)", len(got), len(value), found)
	}
	if _, found, sure := a.fetch(t, "small", small); found || sure {
		t.Errorf("a small one is waited for (%v), or said to be lost (%v)", found, sure)
	}
}

// TestSureIfAllSaidNo: who never had the key, has another version of it, or has
// lost the bytes itself has said no.
func TestSureIfAllSaidNo(t *testing.T) {
	all := peers(t, 3)
	a, b, c := all[0], all[1], all[2]
	for key, has := range map[string]func(*peer){
		"absent": func(*peer) {},
		"older":  func(p *peer) { p.put(t, "older", 6, "six") },
		"newer":  func(p *peer) { p.put(t, "newer", 8, "eight") },
		"forgot": func(p *peer) { p.lost(t, "forgot", 7, "seven") },
		"freed": func(p *peer) {
			p.put(t, "freed", 7, "seven")
			p.applied(t, attune.Change{Key: p.key("freed"), Prior: 7, Item: attune.Item{Size: 5, Stored: 7, Expires: 1000}}, 8)
			p.Free(time.Now().UnixMilli(), 1<<20)
			if l := p.Look(t.Context(), p.key("freed")); l.State != replica.Freed || l.Item.Stored != 7 {
				t.Fatalf("not freed: %+v", l)
			}
		},
		"deleted": func(p *peer) {
			p.put(t, "deleted", 7, "seven")
			p.applied(t, attune.Change{Key: p.key("deleted"), Prior: 7, Item: attune.Item{Deleted: true}}, 8)
		},
	} {
		it := a.lost(t, key, 7, "seven")
		has(b)
		has(c)
		if value, found, sure := a.fetch(t, key, it); found || !sure {
			t.Errorf("%s: fetched %q, found %v, sure %v", key, value, found, sure)
		}
	}
}

// TestNotSureIfSomebodyDidNotSay: who cannot answer may have the bytes, whoever
// else says no.
func TestNotSureIfSomebodyDidNotSay(t *testing.T) {
	broken := func(err error) func(context.Context, string, string) error {
		return func(context.Context, string, string) error { return err }
	}
	for _, row := range []struct {
		name   string
		mute   []int
		before func(context.Context, string, string) error
	}{
		{"no such handler", []int{1}, nil},
		{"too late", nil, func(ctx context.Context, _, _ string) error { <-ctx.Done(); return context.Cause(ctx) }},
		{"a store that cannot be reached", nil, broken(kvadapter.ErrUnavailable)},
	} {
		t.Run(row.name, func(t *testing.T) {
			all := peers(t, 3, row.mute...)
			a, b, c := all[0], all[1], all[2]
			it := a.lost(t, "k", 7, "seven")
			b.put(t, "k", 7, "seven")
			if row.before != nil {
				b.store.before = row.before
			}
			if value, found, sure := a.fetch(t, "k", it); found || sure {
				t.Errorf("fetched %q, found %v, sure %v", value, found, sure)
			}
			// The next has them: that settles it.
			c.put(t, "k", 7, "seven")
			if value, found, sure := a.fetch(t, "k", it); value != "seven" || !found || !sure {
				t.Errorf("then fetched %q, found %v, sure %v", value, found, sure)
			}
		})
	}
}

// TestWhoIsBehindDoesNotSayNo: what it is about to have it gives when it has it.
func TestWhoIsBehindDoesNotSayNo(t *testing.T) {
	all := peers(t, 2)
	a, b := all[0], all[1]
	for i, row := range []struct {
		name       string
		meanwhile  func(key string) // at b, before it has caught up
		value      string
		sure, late bool
	}{
		{name: "it catches up", meanwhile: func(key string) { b.put(t, key, 7, "seven") }, value: "seven", sure: true},
		{name: "and has it no more", meanwhile: func(key string) { b.put(t, key, 8, "eight") }, sure: true},
		{name: "it does not", meanwhile: func(string) {}, late: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			key := fmt.Sprint("k", i)
			it := a.lost(t, key, 7, "seven")
			a.position.Store(uint64(10 + i))
			b.put(t, key, 5, "five")
			for len(b.asked) > 0 {
				<-b.asked
			}
			var changing sync.WaitGroup
			changing.Go(func() {
				<-b.asked
				row.meanwhile(key)
				if !row.late {
					b.position.Store(uint64(10 + i))
				}
			})
			if value, found, sure := a.fetch(t, key, it); value != row.value || found != (row.value != "") || sure != row.sure {
				t.Errorf("fetched %q, found %v, sure %v", value, found, sure)
			}
			changing.Wait()
		})
	}
}

// TestFetchEndsWithItsContext, and says why.
func TestFetchEndsWithItsContext(t *testing.T) {
	all := peers(t, 2)
	a, b := all[0], all[1]
	it := a.lost(t, "k", 7, "seven")
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	b.put(t, "k", 7, "seven")
	b.store.before = func(ctx context.Context, _, _ string) error {
		cancel(why)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if got, err := a.fetcher.Fetch(ctx, a.key("k"), it); got.Value != nil || got.Sure || !errors.Is(err, why) {
		t.Errorf("fetched %+v, %v", got, err)
	}
}

// TestARequestThatCannotBeReadIsAnError, and not a no.
func TestARequestThatCannotBeReadIsAnError(t *testing.T) {
	all := peers(t, 2)
	a, b := all[0], all[1]
	const kind = 3*cluster.MinKind + 3
	for _, body := range [][]byte{nil, make([]byte, 7), make([]byte, 16)} {
		answer, err := a.cluster.Call(within(t), b.id, kind, body)
		if remote := (*cluster.RemoteError)(nil); !errors.As(err, &remote) {
			t.Errorf("%d bytes: answered %q, %v", len(body), answer, err)
		}
	}
}
