package gossip

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/replica"
)

// levels runs a test at both levels.
func levels(t *testing.T, run func(t *testing.T, causal bool)) {
	for _, causal := range []bool{false, true} {
		t.Run(map[bool]string{false: "eventual", true: "causal"}[causal], func(t *testing.T) { run(t, causal) })
	}
}

// stock gives all nodes the same n items, without an update.
func stock(ns []*simNode, n int) {
	for i := range n {
		text := fmt.Appendf(nil, "stock%07d", i)
		c := attune.Change{Key: attune.Key{Text: text}, Item: attune.Item{Value: text[5:], Size: 7}, Prior: attune.AnyVersion}
		c.Stamp(versionAt(simEpoch-3600_000) + attune.Version(i)<<nodeBits)
		for _, node := range ns {
			c.Key.Hash = node.replica.Hash(text)
			was, is, _, _ := node.replica.Merge(&c, false, 0)
			node.core.sketched(c.Key.Hash, was, is)
		}
	}
}

// forget has nodes keep no updates to send again.
func forget(ns ...*simNode) {
	for _, n := range ns {
		for r := &n.core.ring; r.first < r.next(); {
			r.drop()
		}
	}
}

// compared is the bytes of all nodes for finding differences, and fetched those for
// the records.
func compared(s *simNet) (n uint64) { return sentOf(s, frameCells) + sentOf(s, frameCellsOf) }
func fetched(s *simNet) (n uint64)  { return sentOf(s, frameWant) + sentOf(s, frameRecords) }

func sentOf(s *simNet, kind byte) (n uint64) {
	for _, node := range s.nodes {
		n += node.out.bytes[kind-frameUpdates]
	}
	return n
}

// TestPullCostsWhatDiffers: the bytes grow with the difference, and not with what is
// the same.
func TestPullCostsWhatDiffers(t *testing.T) {
	stocked, differ := 100_000, []int{0, 1, 10, 1000, 50_000}
	if raceEnabled {
		stocked, differ = 10_000, differ[:4]
	}
	most := map[int]uint64{0: 0, 1: 2_000, 10: 8_000, 1000: 250_000, 50_000: 5_000_000}
	levels(t, func(t *testing.T, causal bool) {
		for _, d := range differ {
			s := newSimNet(simConfig{seed: 1, nodes: 2, causal: causal})
			stock(s.nodes, stocked)
			s.run(time.Second)
			a, b := s.nodes[0], s.nodes[1]
			s.partition(between(1))
			for i := range d {
				a.set(fmt.Sprintf("stock%07d", i*(stocked/max(d, 1))), fmt.Append(nil, "new", i))
			}
			s.run(5 * time.Second)
			forget(a)
			s.partition(nil)
			if !s.until(30*time.Second, 500*time.Millisecond, s.agreed) {
				t.Fatalf("%d differing keys: they do not agree; pulls %d, failed %d", d, b.core.reconciles, b.core.rec.failed)
			}
			t.Logf("d=%d: %d bytes to compare, %d to fetch, in %v, %d pulls", d, compared(s), fetched(s), b.core.rec.took, b.core.reconciles)
			if n := compared(s); n > most[d] || d > 0 && n < uint64(d)*cellBytes {
				t.Errorf("%d differing keys took %d bytes to compare, want at most %d", d, n, most[d])
			}
			if n := fetched(s); n > uint64(d)*80+200 {
				t.Errorf("%d differing keys took %d bytes to fetch", d, n)
			}
			if d == 0 {
				continue
			}
			if b.core.reconciles == 0 || b.core.differing < uint64(d)/2 || b.core.repaired < uint64(d)/2 {
				t.Errorf("pulls %d, differing %d, repaired %d, want %d", b.core.reconciles, b.core.differing, b.core.repaired, d)
			}
			if v, _ := b.get(fmt.Sprintf("stock%07d", 0)); string(v) != "new0" {
				t.Errorf("read %q", v)
			}
			s.run(20 * time.Second)
			if pulls := a.core.reconciles + b.core.reconciles; pulls > 4 {
				t.Errorf("%d pulls, though all is the same", pulls)
			}
		}
	})
}

// TestPullOverABadNetwork: both sides write while they pull from each other, and
// frames are lost, doubled and overtaken.
func TestPullOverABadNetwork(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		for seed := range uint64(4) {
			s := newSimNet(simConfig{seed: seed, nodes: 3, causal: causal, delay: 20 * time.Millisecond, loss: 0.3, dup: 0.2, reorder: 0.2})
			stock(s.nodes, 2000)
			s.run(time.Second)
			for _, n := range s.nodes {
				n.core.ring.limit = 8 << 10
			}
			write := func(node, i int) {
				n := s.nodes[node]
				switch key := fmt.Sprintf("stock%07d", s.rng.IntN(3000)); s.rng.IntN(10) {
				case 0:
					n.delete(key)
				case 1:
					n.evict(key)
				default:
					n.set(key, fmt.Append(nil, node, i))
				}
			}
			s.partition(between(1))
			for i := range 2000 {
				write(i%3, i)
			}
			s.run(5 * time.Second)
			s.partition(nil)
			for i := range 500 {
				write(s.rng.IntN(3), i)
				s.run(10 * time.Millisecond)
			}
			if !s.until(5*time.Minute, 100*time.Millisecond, s.agreed) {
				for _, n := range s.nodes {
					t.Logf("%s: %+v, failed %d", n.name, n.core.counters, n.core.rec.failed)
				}
				t.Fatalf("seed %d: they do not agree", seed)
			}
			t.Logf("seed %d: agreed at %v; pulls %d, failed %d", seed, s.now, s.nodes[0].core.reconciles, s.nodes[0].core.rec.failed)
			checkSketches(t, s)
		}
	})
}

// checkSketches compares what is maintained with what there is.
func checkSketches(t *testing.T, s *simNet) {
	t.Helper()
	for _, n := range s.live() {
		was := append([]byte(nil), appendCells(nil, 0, n.core.sketch.Cells())...)
		n.core.resketch()
		if is := appendCells(nil, 0, n.core.sketch.Cells()); string(is) != string(was) {
			t.Errorf("%s: the sketch is not that of the index", n.name)
		}
	}
}

// TestPullIsOneMoment: who reads y, written by one who had read x, also reads that
// x, while updates are lost for good, and a pull takes many answers, between which
// both change.
func TestPullIsOneMoment(t *testing.T) {
	const pairs = 20
	value := func(i int) []byte { return fmt.Appendf(nil, "%d %2000d", i, 0) }
	number := func(v []byte) (n int) { _, _ = fmt.Sscan(string(v[:min(len(v), 10)]), &n); return n }
	seeds := uint64(5)
	if raceEnabled {
		seeds = 1
	}
	for seed := range seeds {
		s := newSimNet(simConfig{seed: seed, nodes: 3, causal: true, delay: 10 * time.Millisecond, loss: 0.05})
		s.run(time.Second)
		for _, n := range s.nodes {
			n.core.ring.limit = 200 << 10
		}
		seen, shown := 0, make(map[[2]int]int)
		s.watch = func(n *simNode) {
			for p := range pairs {
				y, _ := n.get(fmt.Sprint("y", p))
				x, _ := n.get(fmt.Sprint("x", p))
				if number(x) < number(y) {
					t.Fatalf("seed %d: at %v %s shows y%d=%d and x%d=%d", seed, s.now, n.name, p, number(y), p, number(x))
				}
				at := [2]int{n.slot, p}
				if number(y) < shown[at] {
					t.Fatalf("seed %d: %s went back to y%d=%d", seed, n.name, p, number(y))
				}
				shown[at] = number(y)
				seen = max(seen, number(y))
			}
		}
		const last = 300
		for i := 1; i <= last; i++ {
			switch i {
			case 50:
				s.partition(between(2))
			case 150:
				s.partition(nil)
			}
			s.nodes[0].set(fmt.Sprint("x", i%pairs), value(i))
			for j := range 10 {
				s.nodes[0].set(fmt.Sprint("other", (i*10+j)%1000), value(i))
			}
			n := s.nodes[i%2]
			x, _ := n.get(fmt.Sprint("x", i%pairs))
			n.set(fmt.Sprint("y", i%pairs), x)
			s.run(20 * time.Millisecond)
		}
		if !s.until(3*time.Minute, 100*time.Millisecond, s.agreed) {
			t.Fatalf("seed %d: they do not agree: %+v", seed, s.nodes[2].core.counters)
		}
		rec := &s.nodes[2].core.rec
		if s.nodes[2].core.reconciles == 0 || seen < last-1 {
			t.Fatalf("seed %d: no pull took place: nothing is shown", seed)
		}
		t.Logf("seed %d: %d pulls, %d failed, the last took %v, in all %d bytes", seed, s.nodes[2].core.reconciles, rec.failed, rec.took, rec.in)
		checkSketches(t, s)
	}
}

// TestNewcomerTakesEverything, also while others write, and what is dead, too.
func TestNewcomerTakesEverything(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		s := newSimNet(simConfig{seed: 1, nodes: 3, causal: causal, delay: 5 * time.Millisecond, loss: 0.02})
		stock(s.nodes, 20_000)
		s.run(time.Second)
		for i := range 100 {
			s.nodes[i%2].delete(fmt.Sprintf("stock%07d", i))
			s.nodes[i%2].evict(fmt.Sprintf("stock%07d", 100+i))
		}
		s.nodes[0].do(attune.Op{Verb: attune.Touch, Key: attune.Key{Text: []byte("stock0000300")}, Exptime: 1000})
		s.run(time.Second)
		forget(s.nodes...)
		s.restart(2)
		s.run(3 * time.Second)
		for i := range 300 {
			s.nodes[i%2].set(fmt.Sprintf("stock%07d", 1000+i), []byte("new"))
			s.run(10 * time.Millisecond)
		}
		n := s.nodes[2]
		if !s.until(time.Minute, 50*time.Millisecond, func() bool { return n.core.synced && s.agreed() }) {
			t.Fatalf("synced %v, counters %+v", n.core.synced, n.core.counters)
		}
		if v, _ := n.get("stock0000300"); string(v) != "0000300" {
			t.Errorf("a touched item came with %q", v)
		}
		if v, _ := n.get("stock0000001"); v != nil {
			t.Errorf("a deleted item came as %q", v)
		}
		if st := n.replica.Stats(); st.Tombstones != 200 {
			t.Errorf("%d dead entries came, want 200", st.Tombstones)
		}
		t.Logf("%d bytes to compare, %d to fetch, in %v", compared(s), fetched(s), n.core.rec.took)
		checkSketches(t, s)
	})
}

// TestPullFollowsAFlush and brings nothing that it killed.
func TestPullFollowsAFlush(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		s := newSimNet(simConfig{seed: 1, nodes: 2, causal: causal})
		stock(s.nodes, 1000)
		s.run(time.Second)
		a, b := s.nodes[0], s.nodes[1]
		s.partition(between(1))
		a.set("before", []byte("1"))
		a.core.flushAll(a.core.clock.now())
		a.set("after", []byte("2"))
		b.set("there", []byte("3"))
		s.run(5 * time.Second)
		forget(a, b)
		s.partition(nil)
		if !s.until(30*time.Second, 50*time.Millisecond, s.agreed) {
			t.Fatal("they do not agree")
		}
		for key, want := range map[string]string{"before": "", "after": "2", "stock0000001": ""} {
			if v, _ := b.get(key); string(v) != want {
				t.Errorf("%s is %q, want %q", key, v, want)
			}
		}
		checkSketches(t, s)
	})
}

// TestPullDropsWhatOthersForgot: a member comes back to others that have passed a
// cut without it. Its old items that they do not know are dead; what is newer
// stays, and so does what they have older.
func TestPullDropsWhatOthersForgot(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		s := newSimNet(simConfig{seed: 1, nodes: 3, causal: causal, maxSkew: 100 * time.Millisecond})
		stock(s.nodes, 1000)
		s.run(2 * time.Second)
		away := s.nodes[2]
		for _, n := range s.nodes {
			n.core.cut.every = time.Hour // it is this test that cuts
		}
		s.partition(between(2))
		for i := range 100 {
			s.nodes[0].delete(fmt.Sprintf("stock%07d", i))
		}
		away.set("unseen", []byte("old"))
		s.run(10 * time.Second)
		forget(s.nodes...)
		cut := versionAt(s.nodes[0].wall() - 3000)
		for _, n := range s.nodes[:2] {
			n.replica.SetCollected(cut)
		}
		s.run(5 * time.Second)
		away.set("unseen too", []byte("new"))
		s.run(3 * time.Second)
		s.partition(nil)
		if !s.until(time.Minute, 50*time.Millisecond, func() bool { return s.agreed() && away.replica.Collected() == cut }) {
			t.Fatalf("they do not agree: %+v", away.core.counters)
		}
		for _, n := range s.nodes {
			for key, want := range map[string]string{"stock0000050": "", "unseen": "", "unseen too": "new", "stock0000200": "0000200"} {
				if v, _ := n.get(key); string(v) != want {
					t.Errorf("%s: %s is %q, want %q", n.name, key, v, want)
				}
			}
		}
		if n := away.core.rec.doomed; n != 101 {
			t.Errorf("dropped %d items, want 101", n)
		}
		checkSketches(t, s)
	})
}

// TestPullKeepsLittleAside: beyond a bound, values stay where they are.
func TestPullKeepsLittleAside(t *testing.T) {
	defer func(n int) { stagedBytes = n }(stagedBytes)
	stagedBytes = 100 << 10
	s := newSimNet(simConfig{seed: 1, nodes: 2, causal: true})
	s.run(time.Second)
	s.partition(between(1))
	const n = 10_000
	value := []byte(strings.Repeat("v", 100))
	for i := range n {
		s.nodes[0].set(fmt.Sprintf("stock%07d", i), value)
	}
	s.run(5 * time.Second)
	forget(s.nodes...)
	s.partition(nil)
	if !s.until(30*time.Second, 50*time.Millisecond, s.agreed) {
		t.Fatal("they do not agree")
	}
	b := s.nodes[1]
	gone, there := 0, 0
	for i := range n {
		key := attune.Key{Text: fmt.Appendf(nil, "stock%07d", i)}
		key.Hash = b.replica.Hash(key.Text)
		it, err := b.replica.Get(t.Context(), key, nil, false)
		switch {
		case errors.Is(err, replica.ErrGone) && it.Size == 100:
			gone++
		case err == nil && len(it.Value) == 100:
			there++
		default:
			t.Fatalf("%s: %+v, %v", key.Text, it, err)
		}
	}
	if there*100 < stagedBytes || there*100 > stagedBytes+2*recordsBytes || gone+there != n {
		t.Errorf("%d values came and %d did not", there, gone)
	}
}

// TestPullFails says why, when the source goes away, or is busy, or never answers.
func TestPullFails(t *testing.T) {
	try := func(why error, spoil func(s *simNet)) {
		t.Helper()
		s := newSimNet(simConfig{seed: 1, nodes: 2})
		s.run(time.Second)
		stock(s.nodes[:1], 10_000)
		var got error
		called := 0
		k := s.nodes[1].core
		spoil(s)
		k.mu.Lock()
		k.rec.sync(k.peers[s.nodes[0].id], func(err error) { got, called = err, called+1 })
		k.mu.Unlock()
		s.run(time.Minute)
		if !errors.Is(got, why) || called != 1 {
			t.Errorf("got %v, %d times, want %v", got, called, why)
		}
	}
	says := func(body func(q *request) []byte) func(s *simNet) {
		return func(s *simNet) {
			s.heard = func(n *simNode, from uint64, kind byte, b []byte) bool {
				if kind != frameCells && kind != frameWant {
					return false
				}
				q, _ := parseRequest(kind, b)
				s.nodes[1].core.frame(n.id, frameCellsOf, body(&q))
				return true
			}
		}
	}
	head := func(q *request, flags byte) *answer { // as in the frame
		return &answer{session: q.session, number: q.number, flags: flags}
	}
	try(nil, func(*simNet) {})
	try(errPeerGone, func(s *simNet) { s.crash(0) })
	try(errPeerSilent, func(s *simNet) {
		s.heard = func(_ *simNode, _ uint64, kind byte, _ []byte) bool { return kind == frameWant }
	})
	try(errPeerBusy, func(s *simNet) {
		for i := range uint64(servedAtOnce) {
			s.nodes[0].core.rec.serving[i] = time.Hour
		}
	})
	try(errPeerBusy, says(func(q *request) []byte { return head(q, isBusy).append(nil) }))
	try(errPeerFrame, says(func(q *request) []byte { return head(q, 0).append(nil) }))
	try(errPeerFrame, says(func(q *request) []byte { return head(q, hasVector).append(nil) }))
	try(errPeerFrame, says(func(q *request) []byte { return append(head(q, hasVector).append(nil), 1, 2, 3) }))
	try(errPeerSilent, says(func(q *request) []byte { q.session++; return head(q, hasVector).append(nil) }))
}

// TestOnePullAtATime: a second sync is refused, and one that is asked for ends what
// the member began for itself.
func TestOnePullAtATime(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: 2})
	stock(s.nodes[:1], 10_000)
	s.run(time.Second)
	k := s.nodes[1].core
	var errs []error
	k.mu.Lock()
	p := k.peers[s.nodes[0].id]
	k.rec.begin(p.id, nil, k.clock.mono())
	k.rec.sync(p, func(err error) { errs = append(errs, err) })
	k.rec.sync(p, func(err error) { errs = append(errs, err) })
	k.mu.Unlock()
	s.run(10 * time.Second)
	if len(errs) != 2 || !errors.Is(errs[0], errPulling) || errs[1] != nil || k.replica.Len() != 10_000 {
		t.Errorf("errors %v, %d items", errs, k.replica.Len())
	}
}

// FuzzReconcileFrames: whatever comes, a member neither panics nor does what it was
// not asked.
func FuzzReconcileFrames(f *testing.F) {
	cells := &request{kind: frameCells, session: 1, number: 1, cells: 32, flags: tellVector}
	f.Add(byte(0), cells.append(nil))
	f.Add(byte(0), (&request{kind: frameCells, session: 1, number: 2, parts: 16, first: 3, count: 9, cells: 5}).append(nil))
	f.Add(byte(2), (&request{kind: frameWant, session: 1, number: 3, keys: []uint64{1, 2}}).append(nil))
	a := (&answer{session: 7, number: 1, flags: hasVector, floor: 3, cut: 2, vector: []dependency{{1, 2}, {3, 4}}}).append(nil)
	a = a[:len(a):len(a)] // each gets memory of its own
	s := newSimNet(simConfig{seed: 1, nodes: 2})
	stock(s.nodes[:1], 300)
	s.run(time.Second)
	f.Add(byte(1), appendCells(a, 300, s.nodes[0].core.sketch.Cells()[:40]))
	f.Add(byte(1), appendList(a, nil))
	var key uint64
	for i := range replica.Segments {
		s.nodes[0].replica.Each(i, func(h attune.KeyHash, _ replica.Mark) { key = sketchKey(h) })
	}
	record := append(a, 1)
	s.nodes[0].replica.Fetch(key, nil, func(h replica.Held) { record = appendHeld(record, &h, false) })
	f.Add(byte(3), record)
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		s := newSimNet(simConfig{seed: 1, nodes: 2})
		s.run(time.Second)
		a, b := s.nodes[0], s.nodes[1]
		a.core.mu.Lock()
		a.core.rec.begin(b.id, nil, a.core.clock.mono())
		p := a.core.rec.pull
		p.session, p.asked.number = 7, 1
		if kind%4 == 3 {
			p.asked.kind, p.asked.keys, p.next = frameWant, []uint64{key}, 1
			p.wants = p.asked.keys
		} else if len(body)%2 == 0 {
			p.asked.parts, p.parts, p.asked.count = 8, 8, 8
		}
		a.core.mu.Unlock()
		a.core.frame(b.id, frameCells+kind%4, body)
		s.run(time.Second)
	})
}

// TestRecordsComeAsTheyAre, every kind of entry, and nothing but them is accepted.
func TestRecordsComeAsTheyAre(t *testing.T) {
	const v = 5 << timeShift
	text := []byte("key")
	for name, h := range map[string]replica.Held{
		"item":    {Key: attune.Key{Text: text}, Item: attune.Item{Version: v, Stored: v, CAS: v, Value: []byte("value"), Size: 5}, Mark: v},
		"empty":   {Key: attune.Key{Text: text}, Item: attune.Item{Version: v, Stored: v, CAS: v, Value: []byte{}}, Mark: v},
		"touched": {Key: attune.Key{Text: text}, Item: attune.Item{Version: v, Stored: v - 1, CAS: 7, Flags: 1<<32 - 1, Expires: 9, Stale: true, Leased: true, Value: []byte("value"), Size: 5}, Mark: v},
		"bare":    {Key: attune.Key{Hash: attune.KeyHash{1, 2}}, Item: attune.Item{Version: v, Stored: v, CAS: v, Size: 1 << 30, Expires: 1}, Mark: v},
		"deleted": {Key: attune.Key{Hash: attune.KeyHash{1, 2}}, Item: attune.Item{Version: v, Deleted: true}, Mark: v},
		"evicted": {Key: attune.Key{Hash: attune.KeyHash{1, 2}}, Item: attune.Item{Version: v, Deleted: true}, Mark: replica.MarkOf(v, true)},
	} {
		b := appendHeld(nil, &h, false)
		r := reader{b: b}
		c, ok := r.held()
		if want := h.Change(); !ok || !r.end() || fmt.Sprintf("%+v", c) != fmt.Sprintf("%+v", want) {
			t.Errorf("%s: got %+v, want %+v", name, c, want)
		}
		for n := range b {
			r := reader{b: b[:n]}
			if _, ok := r.held(); ok && r.end() {
				t.Errorf("%s: the first %d of %d bytes are a record, too", name, n, len(b))
			}
		}
		if b[0] |= heldEvicted; !h.Item.Deleted {
			if _, ok := (&reader{b: b}).held(); ok {
				t.Errorf("%s: accepted as evicted, too", name)
			}
		}
	}
}

// TestPullTakesAnotherRound, when updates between are lost: for what changed since,
// and not for what is kept aside.
func TestPullTakesAnotherRound(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: 2, causal: true})
	stock(s.nodes, 5000)
	s.run(time.Second)
	a, b := s.nodes[0], s.nodes[1]
	s.partition(between(1))
	for i := range 20_000 {
		a.set(fmt.Sprintf("stock%07d", i), fmt.Append(nil, "new", i))
	}
	s.run(5 * time.Second)
	forget(a)
	s.partition(nil)
	rounds, later := 0, uint64(0)
	s.heard = func(n *simNode, _ uint64, kind byte, body []byte) bool {
		p := b.core.rec.pull
		if p == nil || n != b {
			return false
		}
		if rounds = max(rounds, p.round); p.round > 1 && kind == frameRecords {
			later += uint64(len(body))
		}
		if kind == frameRecords && p.round == 1 {
			s.after(0, func() { a.set(fmt.Sprint("between", later, p.asked.number), []byte("new")) })
		}
		return kind == frameUpdates && p.round == 1
	}
	a.set("stock0000001", []byte("last"))
	if !s.until(time.Minute, 50*time.Millisecond, s.agreed) {
		t.Fatalf("they do not agree: %+v", b.core.counters)
	}
	if rounds != 2 || later == 0 || later > 10_000 || b.core.reconciles != 1 {
		t.Errorf("%d rounds, %d bytes of records in the second, %d pulls", rounds, later, b.core.reconciles)
	}
	checkSketches(t, s)
}

// BenchmarkReconcile is what it takes to find d differing items among n, in bytes,
// next to a list of all and to a Merkle tree of fanout 16 and 8-byte hashes.
func BenchmarkReconcile(b *testing.B) {
	const n = 1_000_000
	s := newSimNet(simConfig{seed: 1, nodes: 2})
	stock(s.nodes, n)
	s.run(time.Second)
	from, to := s.nodes[0], s.nodes[1]
	next := 0
	for _, d := range []int{1, 10, 100, 1000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("d=%d", d), func(b *testing.B) {
			var bytes uint64
			for range b.N {
				b.StopTimer()
				s.partition(between(1))
				for range d {
					next++
					from.set(fmt.Sprint("new", next), []byte("new"))
				}
				forget(from)
				s.run(3 * time.Second)
				s.partition(nil)
				s.run(1100 * time.Millisecond)
				was := compared(s)
				b.StartTimer()
				to.core.mu.Lock()
				done := false
				to.core.rec.sync(to.core.peers[from.id], func(err error) { done = err == nil })
				to.core.mu.Unlock()
				if !s.until(time.Minute, time.Millisecond, func() bool { return done }) {
					b.Fatal("the pull failed")
				}
				bytes += compared(s) - was
			}
			levels := math.Log(float64(n)/float64(d))/math.Log(16) + 1
			b.ReportMetric(float64(bytes)/float64(b.N), "wire-B")
			b.ReportMetric(float64(bytes)/float64(b.N*d), "wire-B/d")
			b.ReportMetric(float64(n*itemBytes), "list-B")
			b.ReportMetric(float64(d)*levels*16*8+float64(d*itemBytes), "merkle-B")
		})
	}
}
