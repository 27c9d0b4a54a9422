package gossip

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/replica"
)

const (
	// simEpoch is what the wall shows when a simulation begins, in unix
	// milliseconds.
	simEpoch = 1_800_000_000_000
	// flushWithin is how soon after stir a simulated member flushes.
	flushWithin = time.Millisecond
	// simDirect is up to how many members each simulated one keeps a record of every
	// other. Beyond it, only of its neighbours: thousands of cores are in one
	// process then, and their records of each other would fill it.
	simDirect = 512
)

// simConfig says what a simulated cluster is made of. Zero is the best of worlds.
type simConfig struct {
	seed    uint64
	nodes   int
	causal  bool
	maxSkew time.Duration // 0: 5 s

	// A frame takes delay/2, and an exponential time of that mean besides. Frames
	// from one member to another of one class arrive in the order they were sent,
	// as over TCP, but for those that loss takes, dup sends twice at different
	// times, and reorder lets be overtaken: shares of all frames.
	delay              time.Duration // 0: 1 ms
	loss, dup, reorder float64

	skew   time.Duration // wall clocks are off by up to this, either way
	drift  float64       // and go wrong by up to this share
	detect time.Duration // until others are told who came, went or is cut off; 0: 1 s

	log *zap.Logger // nil: nothing
}

// simNet is a cluster of cores, and nothing else of their engines, on a network and
// with clocks that are made up. Time passes in run only. Everything that happens
// follows from the seed, as long as a core sends the same frames to a peer in the
// same order whatever the order of its maps; the order among peers is free.
type simNet struct {
	simConfig
	rng    *rand.Rand // for whoever drives the simulation, and when a node is made
	now    time.Duration
	events simEvents
	serial uint64
	nodes  []*simNode // by slot: a slot is a controller, which may lose its memory
	byID   map[uint64]*simNode
	order  []uint64 // ids of all that are listed, sorted; never changed in place

	// cut reports whether the way from a slot to another is broken; nil for never.
	// Set it by partition.
	cut func(from, to int) bool
	// heard is called with a frame before its core is: true keeps it from it. A nil
	// func does nothing; so with all that follow.
	heard func(n *simNode, from uint64, kind byte, body []byte) bool
	// watch is called after anything that may have changed what n has.
	watch func(n *simNode)
	// stored is called when a version's bytes come into the store of n.
	stored func(n *simNode, v attune.Version)
	// down is called when n sees its connections to a peer end.
	down func(n *simNode, id uint64)
	// born is called with a core before it hears or sends anything, and synced when
	// one that is new serves.
	born, synced func(n *simNode)

	// trace sums up everything that was delivered, to compare runs by.
	trace uint64
}

// simTraffic counts frames and their bytes by kind, as sent: header and TCP left
// out, and those lost included.
type simTraffic struct {
	frames, bytes [framesEnd - frameUpdates]uint64
}

func (t *simTraffic) add(kind byte, n int) {
	t.frames[kind-frameUpdates]++
	t.bytes[kind-frameUpdates] += uint64(n)
}

// simNode is a member, and the world of its core.
type simNode struct {
	net  *simNet
	slot int
	name string
	skew time.Duration // how far its wall clock is ahead
	pace float64       // how fast its clock is

	// The rest is of one life.
	life     int
	id       uint64
	born     time.Duration
	core     *core // nil while down
	replica  *replica.Replica
	store    *simStore
	paused   bool
	gone     bool // left for good: nobody lists it
	stirred  bool
	looking  bool
	backlog  []simEvent // what happened while it was paused
	streams  map[simStream]*simSent
	draws    uint64
	out      simTraffic
	received uint64 // frames
}

var _ world = (*simNode)(nil)

type simStream struct {
	to    uint64
	class cluster.Class
}

// simSent is what went over one connection.
type simSent struct {
	n    uint64        // frames
	last time.Duration // when the newest arrives
}

// newSimNet makes a cluster of members that all know of each other, are synced, and
// have nothing.
func newSimNet(c simConfig) *simNet {
	c.delay = cmp.Or(c.delay, time.Millisecond)
	c.detect = cmp.Or(c.detect, time.Second)
	c.maxSkew = cmp.Or(c.maxSkew, 5*time.Second)
	if c.log == nil {
		c.log = zap.NewNop()
	}
	s := &simNet{simConfig: c, rng: rand.New(rand.NewPCG(c.seed, 1)), byID: make(map[uint64]*simNode)}
	for i := range c.nodes {
		n := &simNode{net: s, slot: i, name: fmt.Sprint("n", i+1), pace: 1}
		if c.skew > 0 {
			n.skew = time.Duration(s.rng.Int64N(int64(2*c.skew))) - c.skew
		}
		n.pace += c.drift * (2*s.rng.Float64() - 1)
		s.nodes = append(s.nodes, n)
	}
	for _, n := range s.nodes {
		n.boot(true)
	}
	s.list()
	for _, n := range s.nodes {
		n.look()
	}
	return s
}

// boot makes a core that has nothing. One that does not found the cluster must
// sync before it is.
func (n *simNode) boot(founds bool) {
	s := n.net
	n.life++
	n.id = s.newID()
	s.byID[n.id] = n
	n.born = s.now
	n.paused, n.stirred, n.looking, n.gone = false, false, false, false
	n.backlog, n.streams, n.draws = nil, make(map[simStream]*simSent), 0
	n.store = &simStore{node: n, recs: make(map[attune.KeyHash]simRecord)}
	n.replica = replica.Open(replica.Options{Backend: n.store, Gen: 1, Seed: 1, Tombstones: true})
	clock := newClock(n.id, simEpoch+s.now.Milliseconds(), n.mono)
	clock.wrong = func() time.Duration { return n.skew }
	n.core = newCore(n.id, s.causal, n.replica, clock, n, s.log.With(zap.String("node", n.name)))
	n.core.maxSkew = s.maxSkew
	if founds {
		n.core.join()
	}
	if s.born != nil {
		s.born(n)
	}
	n.later(time.Duration(s.rng.Int64N(int64(digestEvery))), n.tick)
}

// newID draws an id whose clock's ten bits no other node has, while there are as
// many: two nodes of the same bits may write one key under one version.
func (s *simNet) newID() uint64 {
	for {
		id := max(s.rng.Uint64(), 1)
		clash := false
		for other := range s.byID {
			clash = clash || (other^id)&(1<<nodeBits-1) == 0
		}
		if !clash || len(s.nodes) > 1<<nodeBits/2 {
			return id
		}
	}
}

// mono is the node's monotonic clock.
func (n *simNode) mono() time.Duration {
	return time.Duration(float64(n.net.now-n.born) * n.pace)
}

// wall is what the node's wall clock shows now, in unix milliseconds.
func (n *simNode) wall() int64 { return n.core.clock.now() }

func (n *simNode) tick() {
	n.core.tick()
	if !n.core.synced {
		n.sync()
	}
	n.watch()
	n.later(digestEvery, n.tick)
}

// sync has a newcomer fetch what there is from whoever serves.
func (n *simNode) sync() {
	k := n.core
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range k.order {
		if p := k.peers[id]; p != nil && p.neighbour && p.alive && p.ready && p.heard != 0 {
			k.rec.sync(p, func(err error) {
				if err == nil && !k.synced {
					k.join()
					n.later(0, func() { n.serves() })
				}
			})
			return
		}
	}
}

func (n *simNode) serves() {
	if n.net.synced != nil {
		n.net.synced(n)
	}
}

func (n *simNode) watch() {
	if n.net.watch != nil && n.core != nil {
		n.net.watch(n)
	}
}

// crash ends a process. Its memory is gone; whoever talked to it notices at once
// that the connection ended, and later that it is dead.
func (s *simNet) crash(slot int) {
	n := s.nodes[slot]
	if n.core == nil {
		return
	}
	n.life++
	n.core, n.replica, n.store, n.backlog, n.paused = nil, nil, nil, nil, false
	for _, o := range s.nodes {
		if o.core == nil || s.down == nil || s.broken(slot, o.slot) {
			continue
		}
		id := n.id
		o.later(time.Millisecond, func() { s.down(o, id) })
	}
	s.changed()
}

// restart brings a slot back with nothing and as somebody new: nobody lists whom it
// was before.
func (s *simNet) restart(slot int) {
	s.crash(slot)
	delete(s.byID, s.nodes[slot].id)
	s.nodes[slot].boot(false)
	s.list()
	s.changed()
}

// leave is crash, and nobody lists it any more.
func (s *simNet) leave(slot int) {
	s.crash(slot)
	s.nodes[slot].gone = true
	delete(s.byID, s.nodes[slot].id)
	s.list()
	s.changed()
}

// pause stops a process; what reaches it waits.
func (s *simNet) pause(slot int) { s.nodes[slot].paused = s.nodes[slot].core != nil }

func (s *simNet) resume(slot int) {
	n := s.nodes[slot]
	n.paused = false
	backlog := n.backlog
	n.backlog = nil
	for _, e := range backlog {
		e.at = s.now
		s.push(e)
	}
}

// partition breaks what cut reports broken, and only that; nil heals all.
func (s *simNet) partition(cut func(from, to int) bool) {
	s.cut = cut
	s.changed()
}

// between is a cut between the slots below n and the others.
func between(n int) func(from, to int) bool {
	return func(from, to int) bool { return (from < n) != (to < n) }
}

func (s *simNet) broken(from, to int) bool { return s.cut != nil && s.cut(from, to) }

// list lists the members anew.
func (s *simNet) list() {
	s.order = make([]uint64, 0, len(s.nodes))
	for _, n := range s.nodes {
		if !n.gone {
			s.order = append(s.order, n.id)
		}
	}
	slices.Sort(s.order)
}

// changed has every node learn who is there, some time later each.
func (s *simNet) changed() {
	for _, n := range s.nodes {
		if n.core != nil && !n.looking {
			n.looking = true
			n.later(s.detect/2+time.Duration(n.draw()*float64(s.detect)), func() {
				n.looking = false
				n.look()
				n.watch()
			})
		}
	}
}

// look tells the core who is there.
func (n *simNode) look() {
	s, k := n.net, n.core
	if len(s.order) <= simDirect {
		k.setMembers(s.members(n))
		return
	}
	k.order = nil // is that of all: not to be overwritten
	k.setMembers(s.members(n))
	k.order, k.near = s.order, k.near[:0]
	for _, id := range slices.Sorted(maps.Keys(k.peers)) {
		k.peers[id].neighbour = true
		k.near = append(k.near, k.peers[id])
	}
}

// members are those n keeps a record of.
func (s *simNet) members(n *simNode) []member {
	var ms []member
	add := func(id uint64) {
		if o := s.byID[id]; o != n {
			ms = append(ms, member{id, o.name, o.core != nil && !s.broken(o.slot, n.slot) && !s.broken(n.slot, o.slot)})
		}
	}
	if len(s.order) <= simDirect {
		for _, id := range s.order {
			add(id)
		}
		return ms
	}
	at, _ := slices.BinarySearch(s.order, n.id)
	seen := make(map[int]bool)
	for d := 1; d < len(s.order); d *= 2 {
		for _, i := range []int{(at + d) % len(s.order), (at - d + len(s.order)) % len(s.order)} {
			if !seen[i] {
				seen[i] = true
				add(s.order[i])
			}
		}
	}
	return ms
}

// send implements world.
func (n *simNode) send(to uint64, class cluster.Class, kind byte, body []byte) bool {
	s := n.net
	o := s.byID[to]
	if o == nil || o == n || o.core == nil {
		return false
	}
	n.out.add(kind, len(body))
	st := n.streams[simStream{to, class}]
	if st == nil {
		st = new(simSent)
		n.streams[simStream{to, class}] = st
	}
	st.n++
	// What happens to a frame follows from who sends it to whom and the how many-th
	// it is, not from what is sent elsewhere.
	luck := lot{mix(mix(n.id, s.seed+1)^to, st.n<<2|uint64(class))}
	if s.broken(n.slot, o.slot) || luck.draw() < s.loss {
		return true
	}
	copies := 1
	if luck.draw() < s.dup {
		copies = 2
	}
	for range copies {
		at := s.now + s.delay/2 + time.Duration(luck.exp()*float64(s.delay)/2)
		if luck.draw() >= s.reorder {
			at = max(at, st.last)
			st.last = at
		}
		s.push(simEvent{at: at, node: o, life: o.life, from: n.id, kind: kind, body: body})
	}
	return true
}

// stir implements world.
func (n *simNode) stir() {
	if n.stirred {
		return
	}
	n.stirred = true
	n.later(time.Duration(n.draw()*float64(flushWithin)), func() {
		n.stirred = false
		n.core.flush()
	})
}

// draw is a number from 0 to 1 that follows from the seed and how many the node
// drew before.
func (n *simNode) draw() float64 {
	n.draws++
	l := lot{mix(n.id^n.net.seed, n.draws<<2|3)}
	return l.draw()
}

// lot is a short run of random numbers.
type lot struct{ state uint64 }

func (l *lot) draw() float64 {
	l.state = mix(l.state, 1)
	return float64(l.state>>11) / (1 << 53)
}

// exp is exponential, of mean 1.
func (l *lot) exp() float64 { return -math.Log(1 - l.draw()) }

// What clients do. Ops are decided here as the engine does, but for those of other
// controllers' keys.

// do has op take effect and returns the change, which is none if it had no effect.
func (n *simNode) do(op attune.Op) (attune.Change, attune.Result) {
	op.Key.Hash = n.replica.Hash(op.Key.Text)
	for {
		var cur attune.Item
		if !op.Blind() {
			cur, _ = n.replica.Get(context.Background(), op.Key, nil, false)
		}
		now := n.core.clock.now()
		c, res := op.Decide(&cur, now, nil)
		if c.None() {
			return c, res
		}
		if applied, _ := n.core.commit(&c, now); applied {
			n.watch()
			return c, res
		}
	}
}

// set writes a value, of which nobody changes a byte any more, and returns its
// version.
func (n *simNode) set(key string, value []byte) attune.Version {
	c, _ := n.do(attune.Op{Verb: attune.Set, Key: attune.Key{Text: []byte(key)}, Value: value})
	return c.Item.Version
}

// delete returns the tombstone's version, or 0 if there was nothing to delete.
func (n *simNode) delete(key string) attune.Version {
	c, _ := n.do(attune.Op{Verb: attune.Delete, Key: attune.Key{Text: []byte(key)}})
	return c.Item.Version
}

// evict kills whatever version of key is here.
func (n *simNode) evict(key string) bool {
	defer n.watch()
	return n.core.evict(n.replica.Hash([]byte(key)), attune.AnyVersion)
}

// get returns a key's value and version, 0 if it has none.
func (n *simNode) get(key string) (value []byte, v attune.Version) {
	k := attune.Key{Text: []byte(key)}
	k.Hash = n.replica.Hash(k.Text)
	it, err := n.replica.Get(context.Background(), k, nil, false)
	if err != nil || it.Expires != 0 && it.Expires <= n.core.clock.now() {
		return nil, 0
	}
	return it.Value, it.Version
}

// live are the nodes that are up.
func (s *simNet) live() (ns []*simNode) {
	for _, n := range s.nodes {
		if n.core != nil {
			ns = append(ns, n)
		}
	}
	return ns
}

// agreed reports whether all live nodes hold the same.
func (s *simNet) agreed() bool {
	live := s.live()
	for _, n := range live { // this first, as it is cheap
		if n.core.hash != live[0].core.hash || n.replica.Floor() != live[0].replica.Floor() {
			return false
		}
	}
	for i, digest := 0, uint64(0); i < len(live); i++ {
		d := live[i].replica.Digest()
		if i > 0 && d != digest {
			return false
		}
		digest = d
	}
	return true
}
