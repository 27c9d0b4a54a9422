package gossip

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/replica"
)

// cutNet is a simulated cluster that cuts every second, with a maxSkew of one: a cut
// is two seconds old. Every node's every entry is watched: see check.
type cutNet struct {
	*simNet
	t    testing.TB
	tune func(c *cutter)
	keys map[string]attune.KeyHash
	// floor is, by life and key, the newest version the node ever knew of.
	floor map[uint64]map[string]attune.Version
	wrong string // the first promise broken
}

func newCutNet(t testing.TB, c simConfig, tune func(c *cutter)) *cutNet {
	c.maxSkew = time.Second
	n := &cutNet{simNet: newSimNet(c), t: t, tune: tune, keys: make(map[string]attune.KeyHash), floor: make(map[uint64]map[string]attune.Version)}
	n.born = func(m *simNode) {
		m.core.cut.every = time.Second
		if n.tune != nil {
			n.tune(&m.core.cut)
		}
	}
	for _, m := range n.nodes {
		n.born(m)
	}
	n.simNet.watch = n.check
	n.run(2 * time.Second)
	return n
}

// check holds what a client of one node must be able to rely on: what it knew to be
// gone does not come back.
func (n *cutNet) check(m *simNode) {
	floor := n.floor[m.id]
	if floor == nil {
		floor = make(map[string]attune.Version)
		n.floor[m.id] = floor
	}
	for key, h := range n.keys {
		mark := m.replica.MarkOf(h)
		if v := mark.Version(); v > floor[key] {
			floor[key] = v
		} else if _, live := m.get(key); live != 0 && live < floor[key] && n.wrong == "" {
			n.wrong = fmt.Sprintf("at %v %s shows %s of version %d, and knew version %d of it before", n.now, m.name, key, live, floor[key])
		}
	}
}

func (n *cutNet) set(slot int, key, value string) attune.Version {
	n.keys[key] = n.nodes[slot].replica.Hash([]byte(key))
	return n.nodes[slot].set(key, []byte(value))
}

func (n *cutNet) mustRun(d time.Duration) {
	n.t.Helper()
	if n.run(d); n.wrong != "" {
		n.t.Fatal(n.wrong)
	}
}

// eventually runs until ok, for d at most.
func (n *cutNet) eventually(d time.Duration, what string, ok func() bool) {
	n.t.Helper()
	if done := n.until(d, 50*time.Millisecond, ok); n.wrong != "" {
		n.t.Fatal(n.wrong)
	} else if !done {
		n.dump()
		n.t.Fatalf("not within %v: %s", d, what)
	}
}

func (n *cutNet) dump() {
	for _, m := range n.live() {
		c := &m.core.cut
		n.t.Logf("%s (%d): synced %v, behind %v, vow %v, waits %q, collected %d, %+v, tombstones %d, items %d", m.name, m.id,
			m.core.synced, c.behind, c.vow, c.waits, m.replica.Collected(), c.cutCounters, m.replica.Stats().Tombstones, m.replica.Len())
	}
}

// sum tells what it took.
func (n *cutNet) sum() string {
	var cuts, aborted, expulsions, pulls uint64
	for _, m := range n.live() {
		c := &m.core.cut
		cuts, aborted, expulsions, pulls = cuts+c.cuts, aborted+c.aborted, expulsions+c.expulsions, pulls+c.pulls
	}
	return fmt.Sprintf("%d cuts, %d given up, %d expulsions, %d reconciliations for it", cuts, aborted, expulsions, pulls)
}

// tombstones are those of all live nodes.
func (n *cutNet) tombstones() (sum int64) {
	for _, m := range n.live() {
		sum += m.replica.Stats().Tombstones
	}
	return sum
}

// forgotten reports whether all live nodes hold the same, and nothing dead.
func (n *cutNet) forgotten() bool {
	for _, m := range n.live() {
		if c := m.core; c.sketch.Cells()[0] != n.live()[0].core.sketch.Cells()[0] || int(c.sketch.Cells()[0].Count) != m.replica.Len() {
			return false
		}
	}
	return n.tombstones() == 0 && n.agreed()
}

// shows returns what the live nodes have of a key: "" for nothing.
func (n *cutNet) shows(key string) (values []string) {
	for _, m := range n.live() {
		v, _ := m.get(key)
		values = append(values, string(v))
	}
	return values
}

func (n *cutNet) wantShown(key string, want ...string) {
	n.t.Helper()
	if got := n.shows(key); !reflect.DeepEqual(got, want) {
		n.t.Errorf("%s is %q, want %q", key, got, want)
	}
}

// fill writes and deletes n keys at random nodes.
func (n *cutNet) fill(count int) {
	for i := range count {
		n.nodes[i%len(n.nodes)].set(fmt.Sprint("fill", i), make([]byte, 50))
	}
	n.run(time.Second)
	for i := range count {
		m := n.nodes[(i+1)%len(n.nodes)]
		if m.delete(fmt.Sprint("fill", i)) == 0 {
			n.t.Fatal("it was not there")
		}
	}
}

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

// coordinator is the node with the lowest id.
func (n *cutNet) coordinator() *simNode {
	first := n.live()[0]
	for _, m := range n.live() {
		if m.id < first.id {
			first = m
		}
	}
	return first
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

// TestDeletedNeverComesBack does everything at random.
func TestDeletedNeverComesBack(t *testing.T) {
	seeds := 16
	if raceEnabled {
		seeds = 4 // a simulation has one goroutine
	}
	if s, err := strconv.Atoi(os.Getenv("ATTUNE_SIM_SEEDS")); err == nil {
		seeds = s
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			wrong, n := randomCuts(t, uint64(seed), nil)
			if wrong != "" {
				t.Error(wrong)
				n.dump()
			}
			t.Log(n.sum())
		})
	}
}

// What is broken on purpose shows in some random run soon, too.
func TestRandomRunsShowWhatIsBroken(t *testing.T) {
	if raceEnabled {
		t.Skip("it is about the checks, and slow")
	}
	for name, tune := range map[string]func(c *cutter){
		"no floor":   func(c *cutter) { c.forgets = true },
		"no waiting": func(c *cutter) { c.hasty, c.trusts = true, true },
	} {
		seen, runs := "", uint64(0)
		for ; runs < 40 && seen == ""; runs++ {
			seed := runs
			if name == "no floor" {
				seed = runs + runs&^3 + 4 // those in which nodes are expelled
			}
			seen, _ = randomCuts(t, seed, tune)
		}
		t.Logf("%s, after %d runs: %s", name, runs, seen)
		if seen == "" {
			t.Errorf("%s: nothing wrong was seen", name)
		}
	}
}

// randomCuts runs one seed. In half of them nodes lose their memory, in half they are
// expelled, and in a quarter there is neither, and no acknowledged write is lost.
// It returns the first promise that was broken, or "".
func randomCuts(t *testing.T, seed uint64, tune func(c *cutter)) (wrong string, n *cutNet) {
	crashes, expels := seed&2 != 0, seed&4 != 0
	n = newCutNet(t, simConfig{
		seed: seed, nodes: 3 + int(seed%3), causal: seed&1 != 0, delay: 5 * time.Millisecond,
		loss: 0.05 * float64(seed%5), dup: 0.05, reorder: 0.05 * float64(seed%3), skew: 200 * time.Millisecond,
	}, func(c *cutter) {
		if expels {
			c.maxAge = 15 * time.Second
		}
		if tune != nil {
			tune(c)
		}
	})
	type ack struct {
		version attune.Version
		value   string // "" for a delete
	}
	newest := make(map[string]ack)
	deleted := make(map[string]attune.Version)
	for step := range 600 {
		m := n.nodes[n.rng.IntN(len(n.nodes))]
		key := fmt.Sprint("k", n.rng.IntN(12))
		if m.core != nil && m.core.synced && !m.paused {
			switch n.rng.IntN(10) {
			case 0, 1, 2, 3:
				if a := (ack{n.set(m.slot, key, fmt.Sprint(step)), fmt.Sprint(step)}); a.version > newest[key].version {
					newest[key] = a
				}
			case 4, 5, 6:
				if v := m.delete(key); v != 0 {
					deleted[key] = max(deleted[key], v)
					if v > newest[key].version {
						newest[key] = ack{version: v}
					}
				}
			case 7:
				if crashes || expels {
					m.evict(key)
				}
			case 8:
				n.keys[key] = m.replica.Hash([]byte(key))
				c, _ := m.do(attune.Op{Verb: attune.Set, Key: attune.Key{Text: []byte(key)}, Value: []byte("ttl"), Exptime: 1})
				if v := c.Item.Version; v > newest[key].version {
					newest[key] = ack{version: v}
				}
			}
		}
		switch n.rng.IntN(60) {
		case 0:
			cut := n.rng.IntN(len(n.nodes))
			n.partition(func(from, to int) bool { return (from == cut) != (to == cut) })
		case 1, 2:
			n.partition(nil)
		case 3:
			if crashes && !slices.ContainsFunc(n.nodes, func(o *simNode) bool { return o.core == nil || !o.core.synced }) {
				n.crash(m.slot) // the others have everything
			}
		case 4:
			for _, o := range n.nodes {
				if o.core == nil {
					n.restart(o.slot)
				}
			}
		case 5:
			n.pause(m.slot)
		case 6:
			for _, o := range n.nodes {
				if o.paused {
					n.resume(o.slot)
				}
			}
		case 7:
			n.run(20 * time.Second)
		case 8:
			for _, o := range n.live() {
				o.core.ring.limit = 1 + n.rng.IntN(4000) // so that not everything comes by itself
			}
		}
		n.run(time.Duration(n.rng.IntN(400)) * time.Millisecond)
	}
	n.partition(nil)
	for _, o := range n.nodes {
		if o.paused {
			n.resume(o.slot)
		}
		if o.core == nil {
			n.restart(o.slot)
		}
	}
	n.run(3 * time.Second) // what was to expire has
	equal := n.until(3*time.Minute, 50*time.Millisecond, func() bool {
		for _, m := range n.live() {
			m.replica.Free(m.core.clock.now(), 100)
		}
		return n.forgotten()
	})
	if n.wrong != "" {
		return n.wrong, n
	} else if !equal {
		return "they do not agree, or do not forget", n
	}
	for key, v := range deleted {
		if _, live := n.nodes[0].get(key); live != 0 && live < v && !crashes {
			return fmt.Sprintf("%s is there in version %d, and was deleted in version %d", key, live, v), n
		}
	}
	for key, a := range newest {
		if got, live := n.nodes[0].get(key); !crashes && !expels && string(got) != a.value {
			return fmt.Sprintf("%s is %q of version %d, and the newest write %q of version %d", key, got, live, a.value, a.version), n
		}
	}
	return "", n
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
