package gossip

import (
	"bytes"
	"fmt"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/replica"
)

func eachGossipLevel(t *testing.T, f func(t *testing.T, causal bool)) {
	for _, causal := range []bool{false, true} {
		t.Run(map[bool]string{false: "eventual", true: "causal"}[causal], func(t *testing.T) { f(t, causal) })
	}
}

func TestTheDeadAreForgottenByAll(t *testing.T) {
	eachGossipLevel(t, func(t *testing.T, causal bool) {
		for _, nodes := range []int{1, 2, 3, 7, 20} {
			n := newCutNet(t, simConfig{seed: 1, nodes: nodes, causal: causal, delay: 2 * time.Millisecond}, nil)
			n.set(0, "kept", "value")
			count := 500
			if nodes == 1 && !causal && !raceEnabled {
				count = 80_000
			}
			n.fill(count)
			full := n.nodes[0].replica.Stats().IndexBytes
			n.run(500 * time.Millisecond)
			if n.tombstones() == 0 {
				t.Fatal("nothing to forget")
			}
			n.eventually(20*time.Second, "nothing dead is left", n.forgotten)
			for _, m := range n.nodes {
				if st := m.replica.Stats(); st.Items != 1 || count > 500 && st.IndexBytes > full/2 {
					t.Errorf("%d items, %d bytes of index, and %d when it was full", st.Items, st.IndexBytes, full)
				}
				if m.core.cut.aborted > 0 {
					t.Errorf("%d cuts failed: %s", m.core.cut.aborted, m.core.cut.waits)
				}
			}
		}
	})
}

// Expiry, eviction and a flush leave dead entries, too.
func TestAllKindsOfDeadAreForgotten(t *testing.T) {
	n := newCutNet(t, simConfig{seed: 1, nodes: 3}, nil)
	for i := range 30 {
		key := fmt.Sprint("k", i)
		n.nodes[i%3].do(attune.Op{Verb: attune.Set, Key: attune.Key{Text: []byte(key)}, Value: []byte("v"), Exptime: int64(i % 2)})
	}
	n.run(time.Second)
	for i := range 10 {
		n.nodes[i%3].evict(fmt.Sprint("k", 2*i))
	}
	n.eventually(30*time.Second, "nothing dead is left", func() bool {
		for _, m := range n.nodes {
			m.replica.Free(m.core.clock.now(), 1000)
		}
		return n.forgotten() && n.nodes[0].replica.Len() == 5
	})
	// Evictions of what is older than the cut, at the moment that falls.
	for i := 20; i < 30; i += 2 {
		n.nodes[i%3].evict(fmt.Sprint("k", i))
		n.run(300 * time.Millisecond)
	}
	n.eventually(30*time.Second, "the evicted are forgotten", func() bool { return n.forgotten() && n.nodes[0].replica.Len() == 0 })
}

// TestAbsentMembersAreWaitedFor: what died meanwhile is kept until they are back, or
// will never be.
func TestAbsentMembersAreWaitedFor(t *testing.T) {
	eachGossipLevel(t, func(t *testing.T, causal bool) {
		for _, back := range []string{"healed", "restarted", "left"} {
			n := newCutNet(t, simConfig{seed: 2, nodes: 3, causal: causal}, nil)
			n.set(0, "k", "old")
			n.run(time.Second)
			if back == "healed" {
				n.partition(between(2))
			} else {
				n.crash(2)
			}
			n.run(3 * time.Second)
			n.nodes[0].delete("k")
			n.mustRun(time.Minute)
			if n.nodes[0].replica.Stats().Tombstones != 1 || n.nodes[1].replica.Stats().Tombstones != 1 {
				t.Fatalf("%s: the tombstone is gone while a member was away", back)
			}
			switch back {
			case "healed":
				n.partition(nil)
			case "restarted":
				n.restart(2)
			case "left":
				n.leave(2)
			}
			n.eventually(30*time.Second, "nothing dead is left", n.forgotten)
			for _, v := range n.shows("k") {
				if v != "" {
					t.Errorf("%s: it is back", back)
				}
			}
		}
	})
}

// expelled is row 21 of the test matrix: a member that was away for too long returns.
func expelled(t testing.TB, causal bool, tune func(c *cutter)) *cutNet {
	n := newCutNet(t, simConfig{seed: 3, nodes: 3, causal: causal}, func(c *cutter) {
		c.maxAge = 20 * time.Second
		if tune != nil {
			tune(c)
		}
	})
	n.set(0, "deleted", "old")
	n.set(0, "replaced", "old")
	n.set(0, "kept", "kept")
	n.set(0, "struck", "old")
	n.run(time.Second)
	n.partition(between(2))
	n.run(3 * time.Second)
	n.nodes[0].delete("deleted")
	n.set(1, "replaced", "new")
	n.set(2, "early", "of the one away")
	n.nodes[2].delete("struck")
	for _, m := range n.nodes {
		m.core.ring.limit = 1 // it would still be told
	}
	n.set(0, "other", "v")
	n.set(1, "other", "v")
	n.run(50 * time.Second)
	n.set(2, "late", "of the one away")
	n.run(500 * time.Millisecond)
	return n
}

func TestExpelledMemberBringsNothingBack(t *testing.T) {
	eachGossipLevel(t, func(t *testing.T, causal bool) {
		n := expelled(t, causal, nil)
		if n.nodes[0].replica.Stats().Tombstones != 0 {
			t.Fatal("it was not expelled")
		}
		if n.nodes[2].replica.Collected() >= n.nodes[0].replica.Collected() {
			t.Error("a minority has cut as well")
		}
		n.partition(nil)
		n.eventually(30*time.Second, "they agree, and forget", n.forgotten)
		n.mustRun(20 * time.Second)
		n.wantShown("deleted", "", "", "")
		n.wantShown("replaced", "new", "new", "new")
		n.wantShown("kept", "kept", "kept", "kept")
		n.wantShown("early", "", "", "")
		n.wantShown("late", "of the one away", "of the one away", "of the one away")
		n.wantShown("struck", "", "", "") // a delete of what all have is not lost
		if c := n.nodes[2].core; c.cut.lagging() || c.rec.doomed != 2 {
			t.Errorf("behind %v, %d items dropped, want those two that nobody else had", c.cut.lagging(), c.rec.doomed)
		}
	})
}

// The checks see what happens without the floor.
func TestWithoutTheFloorTheDeletedComeBack(t *testing.T) {
	eachGossipLevel(t, func(t *testing.T, causal bool) {
		n := expelled(t, causal, func(c *cutter) { c.forgets = true })
		n.partition(nil)
		n.run(30 * time.Second)
		if n.wrong == "" {
			t.Errorf("nothing was seen: %q", n.shows("deleted"))
		}
	})
}

// TestExpiredReplacementKeepsTheOldAway is row 22: a value with a ttl replaced one
// that a member still has; it expired, and is forgotten.
func TestExpiredReplacementKeepsTheOldAway(t *testing.T) {
	eachGossipLevel(t, func(t *testing.T, causal bool) {
		for _, away := range []time.Duration{5 * time.Second, time.Minute} { // the latter is expelled
			n := newCutNet(t, simConfig{seed: 4, nodes: 3, causal: causal}, func(c *cutter) { c.maxAge = 20 * time.Second })
			n.set(0, "k", "old")
			n.run(time.Second)
			n.partition(between(2))
			n.run(2 * time.Second)
			n.nodes[0].do(attune.Op{Verb: attune.Set, Key: attune.Key{Text: []byte("k")}, Value: []byte("new"), Exptime: 1})
			n.mustRun(away)
			n.partition(nil)
			n.eventually(40*time.Second, "they agree, and forget", func() bool {
				for _, m := range n.nodes {
					m.replica.Free(m.core.clock.now(), 100)
				}
				return n.forgotten() && n.nodes[0].replica.Len() == 0
			})
			n.mustRun(20 * time.Second)
			n.wantShown("k", "", "", "")
		}
	})
}

// starved is a member whose write the others have not got when the cut is to fall.
func starved(t testing.TB, causal bool, tune func(c *cutter)) *cutNet {
	n := newCutNet(t, simConfig{seed: 5, nodes: 3, causal: causal}, tune)
	n.fill(10)
	n.eventually(20*time.Second, "nothing dead is left", n.forgotten)
	n.set(0, "k", "old")
	n.run(time.Second)
	n.nodes[0].delete("k")
	n.run(100 * time.Millisecond)
	stop := n.now + 10*time.Second
	slow := n.nodes[2].id
	n.heard = func(m *simNode, from uint64, kind byte, _ []byte) bool {
		return from == slow && n.now < stop && (kind == frameUpdates || kind == frameCellsOf || kind == frameRecords)
	}
	n.set(2, "k", "new")
	n.run(9 * time.Second)
	return n
}

func TestCutWaitsForEverythingBelowIt(t *testing.T) {
	eachGossipLevel(t, func(t *testing.T, causal bool) {
		n := starved(t, causal, nil)
		if n.nodes[0].core.cut.cuts > 0 && n.nodes[0].replica.Stats().Tombstones == 0 {
			t.Error("the tombstone is gone, and not everything that is older is here")
		}
		n.eventually(20*time.Second, "they agree, and forget", n.forgotten)
		n.wantShown("k", "new", "new", "new")
	})
}

// The checks see what happens without waiting.
func TestWithoutWaitingWritesAreLost(t *testing.T) {
	n := starved(t, false, func(c *cutter) { c.hasty = true })
	n.run(20 * time.Second)
	if got := n.shows("k"); got[0] == "new" {
		t.Errorf("it is not lost: %q", got)
	}
}

// orphaned has a controller that told one other of a delete, and of nothing before,
// and then died: no vector shows that it did.
func orphaned(t testing.TB, tune func(c *cutter)) *cutNet {
	n := newCutNet(t, simConfig{seed: 6, nodes: 4}, tune)
	n.set(0, "k", "old")
	n.run(5 * time.Second)
	for _, m := range n.nodes {
		m.core.rec.calm = time.Hour // it would see to it, where nobody writes; here somebody always does
	}
	dying := n.nodes[3]
	drop := true
	n.heard = func(m *simNode, from uint64, kind byte, _ []byte) bool {
		return from == dying.id && kind == frameUpdates && (drop || m.slot != 1)
	}
	n.set(3, "lost", "v")
	n.run(20 * time.Millisecond)
	drop = false
	dying.delete("k")
	// What it tells is the newest only.
	for _, p := range dying.core.peers {
		p.cursor = dying.core.ring.next() - 1
	}
	n.run(50 * time.Millisecond)
	n.leave(3)
	for i := range 200 {
		n.set(i%3, "busy", strconv.Itoa(i))
		n.run(100 * time.Millisecond)
	}
	return n
}

func TestWhatTheDepartedToldOneIsTakenOver(t *testing.T) {
	n := orphaned(t, nil)
	n.wantShown("k", "", "", "")
	n.eventually(30*time.Second, "they agree, and forget", n.forgotten)
}

func TestWithoutGatheringTheDepartedAreForgotten(t *testing.T) {
	n := orphaned(t, func(c *cutter) { c.trusts = true })
	if got := n.shows("k"); got[0] == "" {
		t.Errorf("nothing is left over: %q", got)
	}
}

// TestCutsGoOnUnderLoad: with writes everywhere all the time no two members ever
// hold the same, and now and then one comes or goes.
func TestCutsGoOnUnderLoad(t *testing.T) {
	for nodes, within := range map[int]time.Duration{
		4:  10 * time.Second,
		20: 45 * time.Second, // to gather takes long: they come to one of them, who serves few at a time
	} {
		if raceEnabled && nodes > fullMesh {
			continue
		}
		n := newCutNet(t, simConfig{seed: 7, nodes: nodes, delay: 5 * time.Millisecond, loss: 0.01}, nil)
		dead := 0
		for step := range 12_000 {
			m := n.nodes[step%nodes]
			key := fmt.Sprint("k", step)
			if m.core != nil && m.core.synced {
				m.set(key, []byte("v"))
				m.delete(key)
				dead++
			}
			switch step {
			case 3000:
				n.leave(nodes - 1)
			case 6000:
				n.restart(nodes - 2)
			}
			n.run(5 * time.Millisecond)
		}
		first := n.coordinator()
		if c := &first.core.cut; c.lastCut < first.mono()-within {
			t.Errorf("%d nodes: the last cut was at %v of %v; waits for %q", nodes, c.lastCut, first.mono(), c.waits)
		}
		if left := first.replica.Stats().Tombstones; left > int64(within/(5*time.Millisecond)) {
			t.Errorf("%d nodes: %d of %d dead are kept", nodes, left, dead)
		}
		t.Logf("%d nodes: %s", nodes, n.sum())
		n.eventually(30*time.Second, "they agree, and forget", n.forgotten)
	}
}

// TestCoordinatorDiesHalfway: at any step, and for good or with all its memory.
func TestCoordinatorDiesHalfway(t *testing.T) {
	eachGossipLevel(t, func(t *testing.T, causal bool) {
		for step := stepPrepare; step <= stepCommit; step++ {
			for _, heals := range []bool{false, true} {
				n := newCutNet(t, simConfig{seed: uint64(step), nodes: 4, causal: causal}, func(c *cutter) { c.maxAge = 10 * time.Second })
				n.set(0, "k", "old")
				n.run(5 * time.Second)
				first := n.coordinator()
				died := false
				n.heard = func(m *simNode, from uint64, kind byte, body []byte) bool {
					if died && from == first.id && !heals {
						return true
					}
					if kind != frameCut || body[0] != step || died || from != first.id && m != first {
						return false
					}
					died = true // the others' frames of this step get nowhere
					if heals {
						n.partition(func(from, to int) bool { return (from == first.slot) != (to == first.slot) })
					} else {
						n.after(0, func() { n.leave(first.slot) })
					}
					return step != stepCommit // which one gets
				}
				n.nodes[1].delete("k")
				n.eventually(20*time.Second, "the coordinator died", func() bool { return died })
				n.mustRun(25 * time.Second) // the others go on without it
				for _, m := range n.live() {
					if m != first && m.replica.Stats().Tombstones != 0 {
						t.Errorf("step %d, heals %v: %s still has a tombstone; waits for %q", step, heals, m.name, m.core.cut.waits)
					}
				}
				n.partition(nil)
				n.eventually(30*time.Second, "they agree, and forget", n.forgotten)
			}
		}
	})
}

// A commit that is lost is learnt from a digest.
func TestLostCommitIsLearntFromDigests(t *testing.T) {
	n := newCutNet(t, simConfig{seed: 8, nodes: 3}, nil)
	n.heard = func(m *simNode, from uint64, kind byte, body []byte) bool {
		return kind == frameCut && body[0] == stepCommit
	}
	n.fill(100)
	n.eventually(20*time.Second, "nothing dead is left", n.forgotten)
	for _, m := range n.nodes {
		if m.core.reconciles > 0 {
			t.Error("it took a reconciliation")
		}
	}
}

func TestNoVersionIsIssuedBelowACut(t *testing.T) {
	n := newCutNet(t, simConfig{seed: 9, nodes: 3}, nil)
	n.heard = func(m *simNode, from uint64, kind byte, body []byte) bool {
		return kind == frameCut && body[0] == stepCover // the vow is all there is
	}
	n.fill(10)
	n.eventually(20*time.Second, "a vow is given", func() bool { return n.nodes[0].core.cut.vow != nil })
	for _, m := range n.nodes {
		cut := m.core.cut.vow.cut
		m.core.clock.offset.Add(-3_600_000)
		if v := n.set(m.slot, fmt.Sprint("slow", m.slot), "v"); v <= cut {
			t.Errorf("version %d, and promised none up to %d", v, cut)
		}
	}
}

func TestCutIsRefused(t *testing.T) {
	n := newCutNet(t, simConfig{seed: 10, nodes: 3}, func(c *cutter) { c.every = time.Hour })
	m, from := n.nodes[0], n.nodes[1].id
	c := &m.core.cut
	now := m.mono()
	good := cutFrame{step: stepPrepare, cut: versionAt(m.core.clock.now() - 5000), party: c.known}
	for _, bad := range []struct {
		name  string
		why   refusal
		frame func(f *cutFrame)
		undo  func()
	}{
		{"other members", refuseMembers, func(f *cutFrame) { f.party++ }, nil},
		{"other cut before", refuseBehind, func(f *cutFrame) { f.base = 5 }, nil},
		{"too new a cut", refuseClock, func(f *cutFrame) { f.cut = versionAt(m.core.clock.now() - 500) }, nil},
		{"one expelled is here", refuseAlive, func(f *cutFrame) {
			f.expelled = []uint64{n.nodes[2].id}
			f.party ^= mix(n.nodes[2].id, 1)
		}, nil},
		{"expels me", refuseAlive, func(f *cutFrame) { f.expelled = []uint64{m.id} }, nil},
		{"newcomer", refuseUnsynced, func(*cutFrame) { m.core.synced = false }, func() { m.core.synced = true }},
		{"vow of another", refuseBusy, func(*cutFrame) { c.vow = &vow{coordinator: n.nodes[2].id} }, func() { c.vow = nil }},
	} {
		f := good
		bad.frame(&f)
		if a := c.prepare(from, &f, now); a.step != stepRefuse || a.why != bad.why {
			t.Errorf("%s: step %d, %q", bad.name, a.step, a.why)
		}
		if bad.undo != nil {
			bad.undo()
		}
	}
	if a := c.prepare(from, &good, now); a.step != stepFixed {
		t.Errorf("it refuses what is right: %q", a.why)
	}
	if !c.bars(99) || c.bars(from) || !c.drops(99, frameUpdates) || c.drops(99, frameWant) || c.drops(from, frameUpdates) {
		t.Error("it takes what it must not, or the other way round")
	}
}

// TestTooManyDeadExpelSooner: memory must not fill with them. Both parts of a cluster
// may go on without the other then; the larger one's cut wins.
func TestTooManyDeadExpelSooner(t *testing.T) {
	n := newCutNet(t, simConfig{seed: 11, nodes: 3}, func(c *cutter) { c.maxDead = 1000 })
	n.set(0, "k", "old")
	n.fill(100)
	n.run(5 * time.Second)
	n.partition(between(2))
	n.nodes[0].delete("k")
	for i := range 3000 {
		slot := 2 * (i % 2)
		key := fmt.Sprint("k", i)
		n.nodes[slot].set(key, []byte("v"))
		n.nodes[slot].delete(key)
	}
	n.mustRun(20 * time.Second)
	for _, slot := range []int{0, 2} {
		if n.nodes[slot].replica.Stats().Tombstones < 1000 {
			t.Fatal("expelled too early")
		}
	}
	n.eventually(3*time.Minute, "both sides forget", func() bool { return n.tombstones() == 0 })
	n.set(0, "of the majority", "v")
	n.set(2, "of the minority", "v")
	n.set(0, "last", "v")
	n.nodes[0].delete("last") // there is something to cut for
	n.mustRun(3 * time.Second)
	n.set(2, "newest", "v")
	n.partition(nil)
	n.eventually(time.Minute, "they agree, and forget", n.forgotten)
	n.wantShown("k", "", "", "")
	n.wantShown("of the majority", "v", "v", "v")
	n.wantShown("of the minority", "", "", "")
	n.wantShown("newest", "v", "v", "v")
}

func TestCutFrames(t *testing.T) {
	for _, f := range []cutFrame{
		{step: stepWish},
		{step: stepWish, expelled: []uint64{1, 7}},
		{step: stepPrepare, cut: 9, base: 4, party: 77, expelled: []uint64{3}},
		{step: stepFixed, cut: 9, seq: 300, unsure: true, floor: 2},
		{step: stepCover, cut: 9, gather: true, seqs: []dependency{{1, 5}, {2, 1 << 40}}},
		{step: stepCovered, cut: 9, rest: 8},
		{step: stepCommit, cut: 9},
		{step: stepRefuse, cut: 9, why: refuseClock},
		{step: stepAbort, cut: 9},
	} {
		b := f.append(nil)
		got, ok := parseCut(b)
		if !ok || !reflect.DeepEqual(got, f) {
			t.Errorf("step %d: %+v, %v, want %+v", f.step, got, ok, f)
		}
		for i := range b {
			if _, ok := parseCut(b[:i]); ok {
				t.Errorf("step %d: %d of %d bytes are taken for a frame", f.step, i, len(b))
			}
		}
		if _, ok := parseCut(append(b, 0)); ok {
			t.Errorf("step %d: a byte too many is not noticed", f.step)
		}
	}
}

func FuzzCutFrame(f *testing.F) {
	f.Add((&cutFrame{step: stepWish, expelled: []uint64{1, 7}}).append(nil))
	f.Add((&cutFrame{step: stepPrepare, cut: 9, base: 4, party: 77, expelled: []uint64{3}}).append(nil))
	f.Add((&cutFrame{step: stepFixed, cut: 9, seq: 300, unsure: true}).append(nil))
	f.Add((&cutFrame{step: stepCover, cut: 9, gather: true, seqs: []dependency{{1, 5}}}).append(nil))
	f.Add((&cutFrame{step: stepRefuse, cut: 9, why: refuseClock}).append(nil))
	s := newSimNet(simConfig{seed: 1, nodes: 2})
	s.run(time.Second)
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, ok := parseCut(b); ok && !bytes.Equal(got.append(nil), b) {
			t.Errorf("%x is read as %+v, which is %x", b, got, got.append(nil))
		}
		s.nodes[0].core.frame(s.nodes[1].id, frameCut, b) // whatever it says
	})
}

// BenchmarkPass is what a tick costs while there is a pass: writes wait.
func BenchmarkPass(b *testing.B) {
	s := newSimNet(simConfig{seed: 1, nodes: 1})
	m := s.nodes[0]
	for _, dead := range []bool{false, true} {
		b.Run(map[bool]string{false: "none-dead", true: "all-dead"}[dead], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				for i := range passLeast {
					key := fmt.Sprint("k", i)
					if m.set(key, nil); dead {
						m.delete(key)
					}
				}
				all := m.core.clock.next(m.core.clock.now(), 0)
				b.StartTimer()
				for !m.replica.Collect(all, passLeast, func(h attune.KeyHash, was replica.Mark) { m.core.sketched(h, was, 0) }) {
				}
			}
		})
	}
}
