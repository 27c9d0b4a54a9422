package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// servers is a backend of many servers, by the last letter of a key, each of which
// answers when it is let to.
type servers struct {
	mu    sync.Mutex
	recs  map[string]kvadapter.Record
	trips [][]string            // the keys of each
	hold  map[int]chan struct{} // closed when that server goes on
	asked chan struct{}         // has room
}

func newServers() *servers {
	return &servers{recs: make(map[string]kvadapter.Record), hold: make(map[int]chan struct{}), asked: make(chan struct{}, 1000)}
}

func (b *servers) Server(key attune.Key) int { return int(key.Text[len(key.Text)-1]) }

func (b *servers) GetMulti(_ context.Context, keys []attune.Key, recs []kvadapter.Record, errs []error) {
	b.mu.Lock()
	var names []string
	for _, key := range keys {
		names = append(names, string(key.Text))
	}
	b.trips = append(b.trips, names)
	hold := b.hold[b.Server(keys[0])]
	b.mu.Unlock()
	b.asked <- struct{}{}
	if hold != nil {
		<-hold
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, key := range keys {
		var ok bool
		if recs[i], ok = b.recs[string(key.Text)]; !ok {
			errs[i] = kvadapter.ErrNotFound
		}
	}
}

func (b *servers) Get(ctx context.Context, key attune.Key, _ []byte) (kvadapter.Record, error) {
	var rec [1]kvadapter.Record
	var err [1]error
	b.GetMulti(ctx, []attune.Key{key}, rec[:], err[:])
	return rec[0], err[0]
}

func (b *servers) Put(_ context.Context, key attune.Key, rec kvadapter.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recs[string(key.Text)] = rec
	return nil
}

func (b *servers) Delete(context.Context, attune.Key) error { return nil }
func (b *servers) Close() error                             { return nil }

// fetching is a fetcher over servers.
type fetching struct {
	*fetcher
	b *servers
	r *replica.Replica
	t testing.TB
	v attune.Version
}

func newFetching(t testing.TB) *fetching {
	b := newServers()
	r := replica.Open(replica.Options{Backend: b})
	f := &fetching{newFetcher(t.Context(), r, b), b, r, t, 0}
	t.Cleanup(f.running.Wait)
	return f
}

// want has keys fetched, after they were written, and returns what is closed then.
func (f *fetching) want(deadline time.Time, value string, names ...string) (*ahead, chan struct{}) {
	done := make(chan struct{})
	a := &ahead{deadline: deadline, done: func() { close(done) }}
	for _, name := range names {
		f.v++
		key := attune.Key{Text: []byte(name), Hash: f.r.Hash([]byte(name))}
		c := &attune.Change{Key: key, Item: attune.Item{Value: []byte(value), Size: len(value)}, Prior: attune.AnyVersion}
		c.Stamp(f.v)
		if applied, err := f.r.Apply(c); !applied || err != nil {
			f.t.Fatal(applied, err)
		}
		if err := f.r.Settle(context.Background(), c); err != nil {
			f.t.Fatal(err)
		}
		var got replica.Got
		if !f.r.Lacks(key, &got) {
			f.t.Fatalf("%s need not be fetched", name)
		}
		a.keys, a.got = append(a.keys, key), append(a.got, got)
	}
	f.add(a)
	return a, done
}

func (f *fetching) await(done chan struct{}) {
	f.t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		f.t.Fatal("not fetched")
	}
}

// has wants the fetched values to be the answer.
func (f *fetching) has(a *ahead, value string) {
	f.t.Helper()
	for i, key := range a.keys {
		if it, ok, err := f.r.Here(key, &a.got[i], true); !ok || err != nil || string(it.Value) != value {
			f.t.Errorf("%s = %.20q, %v, %v, want %.20q", key.Text, it.Value, ok, err, value)
		}
	}
}

// While a round trip is under way the reads of all connections gather for the next.
func TestFetchesShareRoundTrips(t *testing.T) {
	f := newFetching(t)
	hold := make(chan struct{})
	f.b.hold['x'] = hold
	first, firstDone := f.want(time.Time{}, "first", "1x")
	<-f.b.asked
	var all []*ahead
	var dones []chan struct{}
	for i := range fetchKeys / 2 {
		a, done := f.want(time.Time{}, fmt.Sprint("value", i), fmt.Sprint("a", i, "x"), fmt.Sprint("b", i, "x"))
		all, dones = append(all, a), append(dones, done)
	}
	close(hold)
	f.await(firstDone)
	f.has(first, "first")
	for i, a := range all {
		f.await(dones[i])
		f.has(a, fmt.Sprint("value", i))
	}
	f.running.Wait()
	if n := len(f.b.trips); n > 3 {
		t.Errorf("%d round trips: %v", n, f.b.trips)
	}
	if l := &f.lanes['x'%fetchLanes]; l.trips != 0 || len(l.waiting) != 0 {
		t.Errorf("left over: %+v", l)
	}
}

// A server that hangs holds up those who wait for it, also if they want values of
// others besides, and nobody else.
func TestHungServerHoldsUpItsOwn(t *testing.T) {
	f := newFetching(t)
	hold := make(chan struct{})
	f.b.hold['a'] = hold
	_, hung := f.want(time.Time{}, "v", "1a")
	both, bothDone := f.want(time.Time{}, "v", "both-a", "both-b")
	for i := range 20 {
		well, done := f.want(time.Time{}, "v", fmt.Sprint(i, "b"), fmt.Sprint(i, "c"))
		f.await(done)
		f.has(well, "v")
	}
	select {
	case <-hung:
		t.Error("a server that hangs has answered")
	case <-bothDone:
		t.Error("half of the values count as all")
	default:
	}
	close(hold)
	f.await(hung)
	f.await(bothDone)
	f.has(both, "v")
}

// Round trips are bounded, in keys and in bytes, and so is their number.
func TestRoundTripsAreBounded(t *testing.T) {
	f := newFetching(t)
	hold := make(chan struct{})
	f.b.hold['x'] = hold
	var dones []chan struct{}
	large := strings.Repeat("L", fetchBytes/2+1)
	for i := range 3 {
		_, done := f.want(time.Time{}, large, fmt.Sprint("large", i, "x"))
		dones = append(dones, done)
	}
	for i := range 10 * fetchKeys {
		_, done := f.want(time.Time{}, "v", fmt.Sprint(i, "x"))
		dones = append(dones, done)
	}
	if n := f.lanes['x'%fetchLanes].trips; n != fetchTrips {
		t.Errorf("%d round trips under way, want %d", n, fetchTrips)
	}
	close(hold)
	for _, done := range dones {
		f.await(done)
	}
	f.running.Wait()
	for _, trip := range f.b.trips {
		if n := strings.Count(strings.Join(trip, " "), "large"); len(trip) > fetchKeys || n > 1 {
			t.Errorf("a round trip for %d keys, %d of them large", len(trip), n)
		}
	}
}

func TestFetchWhoseTimeIsUpAsksNobody(t *testing.T) {
	f := newFetching(t)
	late, done := f.want(time.Now().Add(-time.Second), "v", "1x")
	f.await(done)
	if len(f.b.trips) != 0 {
		t.Errorf("asked: %v", f.b.trips)
	}
	if _, ok, err := f.r.Here(late.keys[0], &late.got[0], true); !ok || !errors.Is(err, consistency.ErrTimeout) {
		t.Errorf("%v, %v", ok, err)
	}
	a, done := f.want(time.Now().Add(patience), "v", "2x")
	f.await(done)
	f.has(a, "v")
}
