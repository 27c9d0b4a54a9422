package verify

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attunekv/attune/internal/history"
	"github.com/attunekv/attune/internal/testbed"
)

// Fault is something that was broken, and mended.
type Fault struct {
	// Kind is of [Faults].
	Kind string `json:"kind"`
	// At and Until are when, since clients began. While it lasts, Until is 0.
	At    time.Duration `json:"at_ns"`
	Until time.Duration `json:"until_ns"`
	What  string        `json:"what"`
}

// LocalOptions say what cluster to start.
type LocalOptions struct {
	Binary string // the path of attune
	Nodes  int
	Level  string
	// Store is embedded, memcached (each controller has one of its own), pebble, or a
	// backend's URL in which {dir} is a directory of the controller's own.
	Store   string
	Durable bool // controllers keep what they have on disk
	// Faults are what is broken, by the names of [Faults]; "all" is all that this
	// cluster has, and none is none.
	Faults []string
	Seed   uint64 // of the dice of the network
}

// Local is a cluster of processes on this machine, which only exists to be tested.
type Local struct {
	*testbed.Cluster
	o      LocalOptions
	kinds  []kind
	losses []history.Loss
}

// kind is a way to break something. It breaks, waits and mends.
type kind struct {
	name string
	can  func(o *LocalOptions) string // why it cannot be done; empty: it can
	do   func(b *breaker, ctx context.Context) error
}

func always(*LocalOptions) string { return "" }

// kinds are in the order of their names' list.
var kinds = []kind{
	{"kill", always, (*breaker).kill},
	{"restart", always, (*breaker).restart},
	{"pause", always, (*breaker).pause},
	{"partition", always, (*breaker).partition},
	{"slow", always, (*breaker).slow},
	{"lossy", always, (*breaker).lossy},
	{"clock", always, (*breaker).clock},
	{"backend", func(o *LocalOptions) string {
		if o.Store != "memcached" {
			return "only --store memcached has backends that can be lost"
		}
		return ""
	}, (*breaker).backend},
}

// Faults returns the names of what can be broken.
func Faults() (names []string) {
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// Start starts a cluster and waits until it serves; Close it.
func Start(ctx context.Context, o LocalOptions) (*Local, error) {
	l := &Local{o: o}
	for _, name := range o.Faults {
		if i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name }); i < 0 && name != "all" {
			return nil, fmt.Errorf("no fault is called %q; there are all, %s", name, strings.Join(Faults(), ", "))
		}
	}
	for _, k := range kinds {
		why := k.can(&o)
		switch {
		case slices.Contains(o.Faults, k.name) && why != "":
			return nil, fmt.Errorf("%s: %s", k.name, why)
		case slices.Contains(o.Faults, k.name), slices.Contains(o.Faults, "all") && why == "":
			l.kinds = append(l.kinds, k)
		}
	}
	if len(l.kinds) > 0 && o.Nodes < 3 {
		return nil, fmt.Errorf("faults need three controllers, which survive the loss of one; there are to be %d", o.Nodes)
	}
	store := o.Store
	if store == "pebble" {
		store = "pebble://{dir}"
	}
	var err error
	l.Cluster, err = testbed.Start(ctx, testbed.Options{
		Binary: o.Binary, Nodes: o.Nodes, Level: o.Level, Durable: o.Durable, Backend: store, MemoryLimit: "256MiB", Seed: o.Seed,
		Args: []string{"--enable-faults"},
	})
	if err != nil {
		return nil, err
	}
	if err := l.waitWhole(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Targets are where clients ask.
func (l *Local) Targets() (targets []history.Target) {
	for _, n := range l.Nodes {
		targets = append(targets, history.Target{Name: n.Name, Addr: n.Listen})
	}
	return targets
}

// Close ends the cluster and returns what its processes did that they should not have.
// If all was well, nothing is left of it; else its data and logs are.
func (l *Local) Close() error {
	err := l.Cluster.Close()
	if err == nil {
		err = os.RemoveAll(l.Dir())
	}
	return err
}

// planned is a fault that is to come.
type planned struct {
	kind, node  int
	rest, lasts time.Duration // until it begins, and how long it lasts
	dice        uint64        // for what else it decides
}

// plan is the faults of a seed, without end: each kind in turn, in an order that
// changes from turn to turn.
func plan(seed uint64, kinds, nodes int, span time.Duration) iter.Seq[planned] {
	return func(yield func(planned) bool) {
		r := rand.New(rand.NewPCG(seed, 3))
		random := func(least, most time.Duration) time.Duration {
			return least + time.Duration(r.Int64N(int64(most-least)+1))
		}
		for kinds > 0 {
			for _, kind := range r.Perm(kinds) {
				p := planned{kind: kind, node: r.IntN(nodes), rest: random(span/4, span*3/4), lasts: random(span/3, span), dice: r.Uint64()}
				if !yield(p) {
					return
				}
			}
		}
	}
}

// breaker breaks things one after the other.
type breaker struct {
	*Local
	planned // what is under way
	one     *testbed.Controller
	jobs    []*job
	note    func(Fault)
	done    []Fault
}

// mistreat breaks one thing after the other until ctx ends, mends the last, and
// returns what it did. The error is that something could not be mended, or ended by
// itself.
func (l *Local) mistreat(ctx context.Context, seed uint64, jobs []*job, note func(Fault)) ([]Fault, error) {
	b := &breaker{Local: l, jobs: jobs, note: note}
	span := 3 * time.Second
	if end, ok := ctx.Deadline(); ok { // a short run is to see more than one
		span = min(span, time.Until(end)/6)
	}
	for b.planned = range plan(seed, len(l.kinds), len(l.Nodes), span) {
		if wait(ctx, b.rest); ctx.Err() != nil {
			break
		}
		k := l.kinds[b.kind]
		b.one = l.Nodes[b.node]
		if err := errors.Join(k.do(b, ctx), b.mend(context.WithoutCancel(ctx))); err != nil {
			return b.done, fmt.Errorf("%s: %w", k.name, err)
		}
	}
	return b.done, nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (b *breaker) now() int64 { return b.jobs[0].rec.Now() }

// begin notes a fault.
func (b *breaker) begin(format string, args ...any) {
	b.done = append(b.done, Fault{Kind: b.kinds[b.kind].name, At: time.Duration(b.now()), What: fmt.Sprintf(format, args...)})
	if b.note != nil {
		b.note(b.done[len(b.done)-1])
	}
}

// mend waits until the cluster is whole again, and notes that.
func (b *breaker) mend(ctx context.Context) error {
	b.Net.HealAll()
	err := b.WaitReady(ctx, b.Nodes...)
	if err == nil {
		err = b.waitWhole(ctx)
	}
	last := &b.done[len(b.done)-1]
	last.Until = time.Duration(b.now())
	if b.note != nil {
		b.note(*last)
	}
	return err
}

// waitWhole waits until all controllers, which are ready, know that of each other, as
// only then they agree on who decides what; have a leader if they need one; and have
// in their stores what they should.
func (l *Local) waitWhole(ctx context.Context) (err error) {
	filled := make(map[string]bool)
	for end := time.Now().Add(testbed.Patience); ; time.Sleep(20 * time.Millisecond) {
		if err = l.whole(filled); err == nil || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
	}
}

// onTheWay is how many bytes may be on their way to a store that has what it should:
// clients go on writing, and each value takes some milliseconds.
const onTheWay = 64 << 10

// whole returns what the cluster lacks. A store that is in filled once was: that there
// was such a moment for each is enough, and for all at once there may be none.
func (l *Local) whole(filled map[string]bool) error {
	if !history.Leaderless(l.o.Level) && l.Leader() == nil {
		return errors.New("all controllers are ready, and do not agree on a leader")
	}
	for _, n := range l.Nodes {
		stats, err := n.Stats("attune")
		if err != nil {
			return err
		}
		if from := stats["fill_from"]; from != "" && !filled[n.Name] {
			waiting, err := strconv.Atoi(stats["store_waiting_bytes"])
			if err != nil || from != "-" || waiting > onTheWay {
				return fmt.Errorf("the store of %s is not filled yet: from %s, %s bytes are on their way to it", n.Name, from, stats["store_waiting_bytes"])
			}
			filled[n.Name] = true
		}
		for _, other := range l.Nodes {
			if state := stats["member_"+other.Name]; l.o.Nodes > 1 && !strings.HasPrefix(state, "ready ") {
				return fmt.Errorf("%s is ready, and %s takes it to be: %s", other.Name, n.Name, state)
			}
		}
	}
	return nil
}

// kill kills a controller and starts it again.
func (b *breaker) kill(ctx context.Context) error {
	b.begin("kill %s", b.one.Name)
	err := b.one.Kill()
	b.losses = append(b.losses, history.Loss{Node: b.one.Name, At: b.now(), Kept: b.o.Durable || !history.Leaderless(b.o.Level)})
	wait(ctx, b.lasts)
	return errors.Join(err, b.one.Start())
}

// restart stops a controller in order and starts it again.
func (b *breaker) restart(ctx context.Context) error {
	b.begin("restart %s", b.one.Name)
	_, err := b.one.Stop()
	return errors.Join(err, b.one.Start())
}

// pause stops a process where it is and lets it go on.
func (b *breaker) pause(ctx context.Context) error {
	b.begin("pause %s", b.one.Name)
	if err := b.one.Pause(); err != nil {
		return err
	}
	wait(ctx, b.lasts)
	return b.one.Resume()
}

// partition cuts a controller off from all others: both ways, one way, or so that
// connections break.
func (b *breaker) partition(ctx context.Context) error {
	one, others := b.one.Name, b.Names(b.one.Name)
	switch b.dice % 4 {
	case 0:
		b.begin("cut off %s", one)
		b.Net.Part([]string{one}, others)
	case 1:
		b.begin("break the connections of %s", one)
		for _, other := range others {
			b.Net.Break(one, other)
			b.Net.Break(other, one)
		}
	case 2:
		b.begin("nobody hears %s", one)
		for _, other := range others {
			b.Net.Cut(one, other)
		}
	default:
		b.begin("%s hears nobody", one)
		for _, other := range others {
			b.Net.Cut(other, one)
		}
	}
	wait(ctx, b.lasts)
	return nil
}

// slow delays everything between controllers.
func (b *breaker) slow(ctx context.Context) error {
	delay := time.Duration(5+b.dice%50) * time.Millisecond
	b.begin("delay by %v, give or take", delay)
	b.Net.All(b.Names(), testbed.Rule{Delay: delay / 2, Jitter: delay})
	wait(ctx, b.lasts)
	return nil
}

// lossy has the network lose frames, bring them twice and out of order.
func (b *breaker) lossy(ctx context.Context) error {
	share := 0.05 + float64(b.dice%20)/100
	b.begin("lose %.0f %% of what controllers say, repeat and reorder as much", share*100)
	b.Net.All(b.Names(), testbed.Rule{Drop: share, Duplicate: share, Reorder: share, Jitter: 10 * time.Millisecond})
	wait(ctx, b.lasts)
	return nil
}

// clock has a controller believe a clock that is off: so far that it must not write,
// should it notice, or by less than what others would have to care for.
func (b *breaker) clock(ctx context.Context) error {
	off, way := time.Hour, "ahead"
	if b.dice%2 == 0 {
		off = time.Duration(100+b.dice/4%300) * time.Millisecond
	}
	sign := time.Duration(1)
	if b.dice/2%2 == 0 {
		sign, way = -1, "behind"
	}
	b.begin("the clock of %s is %v %s", b.one.Name, off, way)
	err := b.one.Fault(url.Values{"kind": {"clock"}, "offset": {(sign * off).String()}, "for": {"1h"}})
	wait(ctx, b.lasts)
	return errors.Join(err, b.one.Fault(nil))
}

// backend takes a controller's memcached away: it hangs, or dies and comes back empty.
func (b *breaker) backend(ctx context.Context) error {
	m, from := b.one.Memcached, b.now()
	var err error
	if b.dice%2 == 0 {
		b.begin("the memcached of %s hangs", b.one.Name)
		if err = m.Pause(); err == nil {
			wait(ctx, b.lasts)
			err = m.Resume()
		}
	} else {
		b.begin("the memcached of %s dies, and comes back empty", b.one.Name)
		err = m.Kill()
		wait(ctx, b.lasts)
		err = errors.Join(err, m.Start())
	}
	if !history.Leaderless(b.o.Level) {
		return err
	}
	// A set that this backend failed has been seen, and is withdrawn.
	for _, j := range b.jobs {
		j.rec.Removed(from)
	}
	return err
}
