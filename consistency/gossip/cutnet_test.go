package gossip

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/attunekv/attune"
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
		if c := m.core; c.sketch.Total() != n.live()[0].core.sketch.Total() || int(c.sketch.Total().Count) != m.replica.Len() {
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
