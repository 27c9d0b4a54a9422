package controller

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

const (
	// fetchLanes is how many queues there are, so that a server that is slow holds
	// up reads from others only if their numbers differ by a multiple of it.
	fetchLanes = 16
	// fetchKeys and fetchBytes are what one round trip is for; more would make those
	// that came first wait. A larger value goes alone.
	fetchKeys  = 64
	fetchBytes = 1 << 20
	// fetchTrips is how many round trips of a lane are under way at most. Beyond the
	// first there is one for each fetchKeys that wait.
	fetchTrips = 4
)

// ahead are the values that a session fetches together: those of the read it is at
// and of others behind it in the batch. While they are on their way they belong to
// the fetcher.
type ahead struct {
	slot     [batchSize]uint8 // batch[i] has got[slot[i]-1], if not 0
	keys     []attune.Key
	got      []replica.Got
	rounds   int // for the current read
	left     atomic.Int32
	deadline time.Time // zero is never
	done     func()
}

// forget drops what was fetched, and the memory that it holds.
func (a *ahead) forget() {
	clear(a.slot[:])
	clear(a.got)
	a.keys, a.got, a.rounds, a.done = a.keys[:0], a.got[:0], 0, nil
}

// fetcher gets values from a backend outside this process for sessions, which must
// not wait in place. What sessions ask for while a round trip is under way shares
// the next one, so that under load a read costs a share of it.
type fetcher struct {
	ctx     context.Context
	replica *replica.Replica
	spread  kvadapter.Spread // nil if there is but one server
	lanes   [fetchLanes]lane
	running sync.WaitGroup
}

// lane is what waits for one server.
type lane struct {
	mu      sync.Mutex // guards the rest
	waiting []wanted
	trips   int
}

// wanted is one value that a session waits for.
type wanted struct {
	of *ahead
	i  int
}

func newFetcher(ctx context.Context, r *replica.Replica, b kvadapter.Backend) *fetcher {
	f := &fetcher{ctx: ctx, replica: r}
	f.spread, _ = b.(kvadapter.Spread)
	return f
}

// add has all of a fetched; a.done is called when they are.
func (f *fetcher) add(a *ahead) {
	n := len(a.keys)
	a.left.Store(int32(n))
	for i := range n { // a is not ours any more once the last is added
		at := 0
		if f.spread != nil {
			at = f.spread.Server(a.keys[i]) % fetchLanes
		}
		l := &f.lanes[at]
		l.mu.Lock()
		l.waiting = append(l.waiting, wanted{a, i})
		start := l.trips == 0 || l.trips < fetchTrips && len(l.waiting) >= l.trips*fetchKeys
		if start {
			l.trips++
		}
		l.mu.Unlock()
		if start {
			f.running.Go(func() { f.run(l) })
		}
	}
}

// trip is the memory of one round trip.
type trip struct {
	all  []wanted
	keys []attune.Key
	got  []*replica.Got
}

var trips = sync.Pool{New: func() any { return new(trip) }}

// run makes round trips for a lane until nothing waits there.
func (f *fetcher) run(l *lane) {
	t := trips.Get().(*trip)
	for l.take(t) {
		f.fetch(t)
		for i, w := range t.all {
			t.all[i], t.keys[i], t.got[i] = wanted{}, attune.Key{}, nil
			if w.of.left.Add(-1) == 0 {
				w.of.done()
			}
		}
	}
	trips.Put(t)
}

// take moves what the next round trip is for to t. False: there is none, and the
// caller is not one of the lane's trips any more.
func (l *lane) take(t *trip) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		l.trips--
		return false
	}
	t.all, t.keys, t.got = t.all[:0], t.keys[:0], t.got[:0]
	size := 0
	for _, w := range l.waiting {
		size += w.of.got[w.i].Size()
		if n := len(t.all); n == fetchKeys || n > 0 && size > fetchBytes {
			break
		}
		t.all, t.keys, t.got = append(t.all, w), append(t.keys, w.of.keys[w.i]), append(t.got, &w.of.got[w.i])
	}
	rest := copy(l.waiting, l.waiting[len(t.all):])
	clear(l.waiting[rest:])
	l.waiting = l.waiting[:rest]
	return true
}

// fetch makes one round trip, for those whose time is not up. It has the time that
// the last of them has.
func (f *fetcher) fetch(t *trip) {
	var last time.Time
	now, n, endless := time.Now(), 0, false
	for i, w := range t.all {
		d := w.of.deadline
		if !d.IsZero() && !now.Before(d) {
			t.got[i].Fail(consistency.ErrTimeout)
			continue
		}
		if d.IsZero() {
			endless = true
		} else if d.After(last) {
			last = d
		}
		t.keys[n], t.got[n] = t.keys[i], t.got[i]
		n++
	}
	if n == 0 {
		return
	}
	ctx := f.ctx
	if !endless {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, last, consistency.ErrTimeout)
		defer cancel()
	}
	f.replica.Bring(ctx, t.keys[:n], t.got[:n])
}
