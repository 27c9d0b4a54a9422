package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/attunekv/attune"
)

// SimOptions say what cluster Simulate runs, and what goes wrong in it.
type SimOptions struct {
	Nodes  int  // controllers
	Causal bool // else eventual

	Writes  int     // how many, each of a key of its own
	Rate    float64 // writes per second, of all controllers together
	Writers int     // controllers that are written to; 0: all, but at most 100
	Value   int     // bytes of a value

	// Delay is the mean time that a frame takes from one controller to another: half
	// of it, and an exponential time of that mean besides.
	Delay time.Duration
	// Loss, Duplicate and Reorder are shares of frames, 0 to 1. TCP knows none of it:
	// they stand for connections that break.
	Loss, Duplicate, Reorder float64
	// Churn is controllers per second that are killed while there are writes, those
	// written to among them, and come back 2 s later without memory.
	Churn float64
	// Partition is how long the two halves do not hear of each other, from the middle
	// of the writes on.
	Partition time.Duration
	// Skew is how far wall clocks are off at the start, either way.
	Skew time.Duration
	// Limit is how long after the last write the cluster has to agree.
	Limit time.Duration
	// Seed decides everything: runs of one seed are the same.
	Seed uint64
	// Progress is called now and then, with the simulated time; nil: never.
	Progress func(at time.Duration)
}

// SimReport is what a run of [Simulate] came to. Times are simulated.
type SimReport struct {
	Nodes    int
	Seed     uint64
	Level    string
	Writes   int           // made
	Complete int           // that reached every live controller
	Lost     int           // that no controller has, as theirs died before it told
	Agreed   bool          // all live controllers held the same at the end
	Took     time.Duration // from the last write until then

	// ToAll is the time from a write to when every live controller had it, ToEach to
	// when one had it.
	ToAll, ToEach SimQuantiles
	// Reach is the share of controllers that have a write, by the time since.
	Reach []SimPoint

	// Idle and Busy are what a controller sends per second before and during the
	// writes: bytes of frames, without those of TCP. What follows the last write on
	// account of them counts as sent during them, but for digests, which go on for
	// ever. Busiest is Busy of the one that sends most.
	Idle, Busy []SimTraffic
	Busiest    float64
	// PerWrite is what all send for a write, by controller: bytes. Copies is how
	// often a controller is sent it.
	PerWrite, Copies float64

	Resent, HeldBack, Overflowed, Reconciles uint64
}

// SimQuantiles are of times.
type SimQuantiles struct{ P50, P90, P99, Max time.Duration }

// SimPoint is one of a curve.
type SimPoint struct {
	After time.Duration
	Share float64
}

// SimTraffic is what a controller sends for one purpose.
type SimTraffic struct {
	Purpose       string
	Bytes, Frames float64 // per second
}

// simPurposes are those of the kinds of frames.
var simPurposes = []struct {
	name  string
	kinds []byte
}{
	{"updates", []byte{frameUpdates, frameMissing}},
	{"digests", []byte{frameDigest, frameFull}},
	{"reconcile", []byte{frameCells, frameCellsOf, frameWant, frameRecords}},
	{"cut", []byte{frameCut}},
}

const (
	simWarmup = 2 * time.Second
	simIdle   = 3 * time.Second
	simAway   = 2 * time.Second // how long one that was killed is away
	simStep   = 20 * time.Millisecond
)

func (o *SimOptions) check() error {
	o.Writers = cmp.Or(o.Writers, min(o.Nodes, 100))
	o.Limit = cmp.Or(o.Limit, 2*time.Minute)
	switch {
	case o.Nodes < 1 || o.Nodes > 20000:
		return fmt.Errorf("%d nodes: choose 1 to 20000", o.Nodes)
	case o.Writers < 1 || o.Writers > o.Nodes:
		return fmt.Errorf("%d writers of %d nodes", o.Writers, o.Nodes)
	case o.Writes < 1 || !(o.Rate > 0):
		return errors.New("nothing to simulate: writes and rate must be more than 0")
	case o.Value < 0 || o.Value > 1<<20:
		return fmt.Errorf("values of %d bytes: choose 0 to 1 MiB", o.Value)
	case !share(o.Loss) || !share(o.Duplicate) || !share(o.Reorder) || o.Loss == 1:
		return errors.New("loss, duplicates and reordering are shares of the frames: choose 0 to 1, and not all for loss")
	case o.Churn < 0 || o.Delay < 0 || o.Partition < 0 || o.Skew < 0:
		return errors.New("churn, delay, partition and skew must not be negative")
	case o.Churn > 0 && o.Nodes < 3:
		return errors.New("churn needs 3 nodes: with fewer there is nobody to come back to")
	}
	return nil
}

func share(x float64) bool { return x >= 0 && x <= 1 }

// Simulate runs a cluster of controllers in this process: their code for spreading,
// repairing and reconciling changes, over a network, clocks and a membership that
// are made up. It ends early, with the cause of ctx, when ctx ends. Other errors:
// options that make no sense.
func Simulate(ctx context.Context, o SimOptions) (SimReport, error) {
	if err := o.check(); err != nil {
		return SimReport{}, err
	}
	m := newSimMeter(o)
	if err := m.run(ctx); err != nil {
		return SimReport{}, err
	}
	return m.report(), nil
}

// simMeter runs a simulation and measures it.
type simMeter struct {
	o   SimOptions
	s   *simNet
	rep SimReport

	keys      []string
	writes    []simWrite
	byVersion map[attune.Version]int
	has       map[*simNode][]uint64 // bits: the writes it has
	members   map[*simNode]bool     // live, and synced
	toAll     simTimes
	toEach    simTimes
	was       []simTraffic // of each slot, when counting began
	mid       []simTraffic // and when the last write was made
	dead      counters     // of cores that are no more
}

type simWrite struct {
	at   time.Duration
	lack int  // members that do not have it
	done bool // all had it once
}

func newSimMeter(o SimOptions) *simMeter {
	m := &simMeter{
		o: o, byVersion: make(map[attune.Version]int), has: make(map[*simNode][]uint64), members: make(map[*simNode]bool),
	}
	m.s = newSimNet(simConfig{
		seed: o.Seed, nodes: o.Nodes, causal: o.Causal, delay: o.Delay,
		loss: o.Loss, dup: o.Duplicate, reorder: o.Reorder, skew: o.Skew, drift: 1e-5,
	})
	m.s.stored, m.s.synced = m.stored, m.joined
	for _, n := range m.s.nodes {
		m.has[n] = make([]uint64, (o.Writes+63)/64)
		m.members[n] = true
	}
	m.keys = m.pickKeys()
	m.was, m.mid = make([]simTraffic, o.Nodes), make([]simTraffic, o.Nodes)
	return m
}

// pickKeys takes keys that fall into few segments of the index: each segment that
// has any takes a page, and there are thousands of indexes in this process.
func (m *simMeter) pickKeys() (keys []string) {
	segments := uint64(min(m.o.Writes/100+1, 256))
	for i := 0; len(keys) < m.o.Writes; i++ {
		key := fmt.Sprintf("key-%08d", i)
		if m.s.nodes[0].replica.Hash([]byte(key))[0]>>56 < segments {
			keys = append(keys, key)
		}
	}
	return keys
}

func (m *simMeter) run(ctx context.Context) error {
	if err := m.pass(ctx, simWarmup); err != nil {
		return err
	}
	m.count(m.was)
	if err := m.pass(ctx, simIdle); err != nil {
		return err
	}
	m.count(m.mid)
	m.rep.Idle, _, _ = m.counted(simIdle)
	m.count(m.was)
	began := m.s.now
	m.schedule()
	length := time.Duration(float64(m.o.Writes) / m.o.Rate * float64(time.Second))
	if err := m.pass(ctx, length); err != nil {
		return err
	}
	last := m.s.now
	m.count(m.mid)
	if m.o.Partition > 0 {
		if err := m.pass(ctx, max(began+length/2+m.o.Partition-m.s.now, 0)); err != nil {
			return err
		}
	}
	for !m.settled() && m.s.now < last+m.o.Limit {
		if err := m.pass(ctx, simStep); err != nil {
			return err
		}
	}
	m.rep.Took = m.s.now - last
	m.rep.Agreed = m.s.agreed()
	total := 0.0
	m.rep.Busy, m.rep.Busiest, total = m.counted(length)
	m.rep.PerWrite = total / float64(m.o.Nodes) / float64(max(len(m.writes), 1))
	return nil
}

// pass lets time pass, and looks at ctx meanwhile.
func (m *simMeter) pass(ctx context.Context, d time.Duration) error {
	for end := m.s.now + d; m.s.now < end; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if m.o.Progress != nil {
			m.o.Progress(m.s.now)
		}
		m.s.run(min(simStep, end-m.s.now))
	}
	return nil
}

// schedule plans the writes and what goes wrong.
func (m *simMeter) schedule() {
	writers := m.s.rng.Perm(m.o.Nodes)[:m.o.Writers]
	for i := range m.o.Writes {
		at := time.Duration(float64(i) / m.o.Rate * float64(time.Second))
		m.s.after(at, func() { m.write(m.keys[i], writers[m.s.rng.IntN(len(writers))]) })
	}
	length := time.Duration(float64(m.o.Writes) / m.o.Rate * float64(time.Second))
	if m.o.Churn > 0 {
		for at := 0.5 / m.o.Churn; at < length.Seconds(); at += 1 / m.o.Churn {
			m.s.after(time.Duration(at*float64(time.Second)), func() { m.kill(m.s.rng.IntN(m.o.Nodes)) })
		}
	}
	if m.o.Partition > 0 {
		m.s.after(length/2, func() { m.s.partition(between(m.o.Nodes / 2)) })
		m.s.after(length/2+m.o.Partition, func() { m.s.partition(nil) })
	}
}

func (m *simMeter) write(key string, slot int) {
	n := m.s.nodes[slot]
	for i := 1; !m.members[n]; i++ { // its clients go to another
		n = m.s.nodes[(slot+i)%len(m.s.nodes)]
	}
	// Who holds it is counted as the store is told, before its version is known here.
	m.writes = append(m.writes, simWrite{at: m.s.now, lack: len(m.members)})
	v := n.set(key, make([]byte, m.o.Value))
	m.byVersion[v] = len(m.writes) - 1
	m.stored(n, v)
}

// stored notes that n has a write.
func (m *simMeter) stored(n *simNode, v attune.Version) {
	i, known := m.byVersion[v]
	if !known {
		return // just being written
	}
	bits := m.has[n]
	if bits[i/64]&(1<<(i%64)) != 0 {
		return
	}
	bits[i/64] |= 1 << (i % 64)
	w := &m.writes[i]
	if !m.members[n] {
		return
	}
	after := m.s.now - w.at
	m.toEach.add(after)
	if w.lack--; w.lack == 0 && !w.done {
		w.done = true
		m.rep.Complete++
		m.toAll.add(after)
	}
}

func (m *simMeter) lacks(n *simNode, i int) bool { return m.has[n][i/64]&(1<<(i%64)) == 0 }

// kill ends a controller, which comes back without memory.
func (m *simMeter) kill(slot int) {
	n := m.s.nodes[slot]
	if !m.members[n] || len(m.members) <= 2 {
		return
	}
	m.dead.add(&n.core.counters)
	m.s.crash(slot)
	delete(m.members, n)
	for i := range m.writes {
		w := &m.writes[i]
		switch {
		case w.done, !m.lacks(n, i):
		default:
			if w.lack--; w.lack == 0 {
				w.done = true
				m.rep.Complete++
				m.toAll.add(m.s.now - w.at)
			}
		}
	}
	clear(m.has[n])
	m.s.after(simAway, func() { m.s.restart(slot) })
}

// joined counts a newcomer in, who has what its source had.
func (m *simMeter) joined(n *simNode) {
	m.members[n] = true
	for i := range m.writes {
		if m.lacks(n, i) {
			m.writes[i].lack++
		}
	}
}

// settled reports whether there is nothing to wait for any more: what not all have
// nobody has.
func (m *simMeter) settled() bool {
	if len(m.members) < m.o.Nodes {
		return false
	}
	for i := range m.writes {
		if w := &m.writes[i]; !w.done && w.lack < len(m.members) {
			return false
		}
	}
	return m.s.agreed()
}

// count notes what each has sent so far.
func (m *simMeter) count(in []simTraffic) {
	for i, n := range m.s.nodes {
		in[i] = n.out
	}
}

// counted is what a controller sent per second, what the busiest did, and how many
// bytes all sent together: since was, and of digests until mid.
func (m *simMeter) counted(d time.Duration) (per []SimTraffic, busiest, total float64) {
	seconds := d.Seconds()
	of := make([]float64, len(m.s.nodes))
	for _, p := range simPurposes {
		t := SimTraffic{Purpose: p.name}
		for i, n := range m.s.nodes {
			until := &n.out
			if p.name == "digests" {
				until = &m.mid[i]
			}
			for _, kind := range p.kinds {
				k := kind - frameUpdates
				of[i] += float64(until.bytes[k] - m.was[i].bytes[k])
				t.Bytes += float64(until.bytes[k] - m.was[i].bytes[k])
				t.Frames += float64(until.frames[k] - m.was[i].frames[k])
			}
		}
		total += t.Bytes
		t.Bytes /= seconds * float64(len(of))
		t.Frames /= seconds * float64(len(of))
		per = append(per, t)
	}
	return per, slices.Max(of) / seconds, total
}

func (m *simMeter) report() SimReport {
	r := &m.rep
	r.Nodes, r.Seed, r.Writes = m.o.Nodes, m.o.Seed, len(m.writes)
	if r.Level = "eventual"; m.o.Causal {
		r.Level = "causal"
	}
	for i := range m.writes {
		if w := &m.writes[i]; !w.done && w.lack == len(m.members) {
			r.Lost++
		}
	}
	r.ToAll, r.ToEach = m.toAll.quantiles(), m.toEach.quantiles()
	r.Reach = m.toEach.curve(len(m.writes) * m.o.Nodes)
	sum := m.dead
	for _, n := range m.s.live() {
		sum.add(&n.core.counters)
	}
	r.Resent, r.HeldBack, r.Overflowed, r.Reconciles = sum.resent, sum.heldBack, sum.overflowed, sum.reconciles
	if others := float64(len(m.writes)) * float64(m.o.Nodes-1); others > 0 {
		r.Copies = float64(sum.received) / others
	}
	return *r
}

func (c *counters) add(o *counters) {
	c.received += o.received
	c.resent += o.resent
	c.heldBack += o.heldBack
	c.overflowed += o.overflowed
	c.reconciles += o.reconciles
}

// simTimes counts times in buckets that are 1/32 of an octave wide.
type simTimes struct {
	buckets []uint64
	n       uint64
	longest time.Duration
}

const perOctave = 32

func (t *simTimes) add(d time.Duration) {
	i := 0
	if d > time.Microsecond {
		i = int(math.Log2(float64(d)/1e3) * perOctave)
	}
	if i >= len(t.buckets) {
		t.buckets = append(t.buckets, make([]uint64, i+1-len(t.buckets))...)
	}
	t.buckets[i]++
	t.n++
	t.longest = max(t.longest, d)
}

// upTo is the longest time that bucket i counts.
func upTo(i int) time.Duration { return time.Duration(math.Exp2(float64(i+1)/perOctave) * 1e3) }

func (t *simTimes) quantiles() SimQuantiles {
	at := func(q float64) time.Duration {
		need, sum := uint64(math.Ceil(q*float64(t.n))), uint64(0)
		for i, n := range t.buckets {
			if sum += n; sum >= need && n > 0 {
				return min(upTo(i), t.longest)
			}
		}
		return t.longest
	}
	return SimQuantiles{at(0.5), at(0.9), at(0.99), t.longest}
}

// curve is the share of all that came, by the time it took.
func (t *simTimes) curve(all int) (points []SimPoint) {
	sum := uint64(0)
	for i, n := range t.buckets {
		if sum += n; n > 0 {
			points = append(points, SimPoint{min(upTo(i), t.longest), min(float64(sum)/float64(all), 1)})
		}
	}
	return slices.Clip(points)
}
