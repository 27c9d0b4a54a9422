package gossip

import (
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/consistency/gossip/sketch"
	"github.com/attunekv/attune/replica"
)

// world is what a core needs of the outside. A core has no goroutine, network and
// clock of its own, so that clusters of thousands can be simulated.
type world interface {
	// send queues a frame for a member and never blocks. False: certainly not sent.
	send(to uint64, class cluster.Class, kind byte, body []byte) bool
	// stir has flush called soon: there is something to tell.
	stir()
}

const (
	// ringBytes is what is kept of the newest updates, to send and send again.
	ringBytes = 16 << 20
	// sketchCells is how many cells are maintained: enough for a difference of two
	// thirds of that, without a pass over the index.
	sketchCells = 1024
)

// core is one member of a gossip cluster: what it has, what the others have as far
// as they told, and what to tell them. Everything but reading the replica goes
// through its mutex, which is held for no longer than one batch takes.
type core struct {
	id      uint64 // the origin of what is written here: names this memory, never reused
	causal  bool
	replica *replica.Replica
	clock   *clock
	world   world
	log     *zap.Logger
	// remote takes over changes whose bytes must be brought to a store outside
	// this process.
	remote func(*attune.Change)
	// slow reports whether that store takes changes, and not as fast as they come.
	slow func() bool

	skewed  atomic.Bool // its clock is off: it must not write
	crowded atomic.Bool // the store of a neighbour is slow

	mu      sync.Mutex // guards the rest
	maxSkew time.Duration
	vv      map[uint64]*progress
	own     *progress // vv[id]
	hash    uint64    // of vv, as digests tell it
	ring    ring
	sketch  *sketch.Live
	peers   map[uint64]*peer
	near    []*peer // the neighbours among them, by id
	// order are all members but this one, absent ones included, by id.
	order []uint64
	build codec.Builder
	held  held
	batch []heldUpdate // memory of updates, with deps
	deps  []dependency
	data  []byte // memory of tell
	rec   reconciler
	cut   cutter
	acks  acks
	disk  persisted

	past      map[uint64]uint64 // vv a while ago, and when that was
	pastAt    time.Duration
	flushed   uint64         // the ring's end then
	toldFlags byte           // of the last digests
	digested  time.Duration  // when the last digest went out
	synced    bool           // it has what another member had, or founded the cluster
	newest    attune.Version // ever applied here, of others
	skew      time.Duration  // the median of all clocks, seen from this one
	counters
}

// counters are for the operator.
type counters struct {
	sent, received, applied, duplicates, repaired uint64
	resent, heldBack, overflowed                  uint64
	reconciles, differing                         uint64
	tooFar                                        uint64
}

// progress is how far the updates of one origin have come.
type progress struct {
	origin uint64
	seq    uint64        // all up to it took effect
	told   uint64        // and this is what digests tell
	moved  time.Duration // when seq last grew
	dirty  bool          // told grew since the last digest
	fresh  bool          // it grew since the last update made here
	// overtaken is since when later updates are here than those that come next, 0 if none
	// are; asked when these were last asked for, and asks how often.
	overtaken, asked time.Duration
	asks             int
}

func newCore(id uint64, causal bool, r *replica.Replica, c *clock, w world, log *zap.Logger) *core {
	k := &core{
		id: id, causal: causal, replica: r, clock: c, world: w, log: log,
		vv: make(map[uint64]*progress), ring: newRing(ringBytes), peers: make(map[uint64]*peer),
		sketch: newSketch(r), remote: func(*attune.Change) {}, slow: func() bool { return false },
	}
	k.own = k.reach(id)
	k.batch, k.deps = make([]heldUpdate, 0, lookahead), make([]dependency, 0, 8*lookahead)
	k.held.init()
	k.rec.init(k)
	k.cut.init(k)
	return k
}

// reach returns how far the updates of an origin have come.
func (k *core) reach(origin uint64) *progress {
	p := k.vv[origin]
	if p == nil {
		p = &progress{origin: origin}
		k.vv[origin] = p
	}
	return p
}

// seqOf is 0 for an origin never heard of.
func (k *core) seqOf(origin uint64) uint64 {
	if p := k.vv[origin]; p != nil {
		return p.seq
	}
	return 0
}

// mix is one entry's part in the hash of a vector: the parts are added up by xor.
func mix(origin, seq uint64) uint64 {
	if seq == 0 {
		return 0
	}
	x := origin + seq*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// advance notes that everything of p's origin up to seq took effect here.
func (k *core) advance(p *progress, seq uint64, now time.Duration) {
	if k.held.bytes > 0 && (seq != p.seq+1 || k.held.has(p.origin, seq)) {
		k.held.passed = true
	}
	p.seq, p.moved = seq, now
	p.fresh = p.origin != k.id
	if !k.durable() {
		k.tellOf(p, seq)
	}
}

// tellOf has the next digest tell how far p is.
func (k *core) tellOf(p *progress, seq uint64) {
	k.hash ^= mix(p.origin, p.told) ^ mix(p.origin, seq)
	p.told, p.dirty = seq, true
}

// commit gives a change decided here its version and its place in this origin's
// order, and applies it, all in one step: whoever reads it and writes something
// else comes after it, on every member. applied is false if what it was decided on
// is no more: it must be decided again.
func (k *core) commit(c *attune.Change, now int64) (applied bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	// A floor may be ahead of this clock, and nothing below it ever takes effect.
	newest := max(k.replica.MarkOf(c.Key.Hash).Version(), k.replica.Floor(), k.replica.Collected())
	v := k.clock.next(now, newest)
	if k.beyond(v) {
		return false, errBound
	}
	c.Stamp(v)
	return k.take(c, true, k.clock.mono())
}

// evict kills exactly version v of a key, AnyVersion for whatever there is. That
// it is dead gets no version of its own, so it can never beat a write, and members
// that do the same agree.
func (k *core) evict(h attune.KeyHash, v attune.Version) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v == attune.AnyVersion {
		m := k.replica.MarkOf(h)
		if v = m.Version(); m == 0 || m.Evicted() {
			return false
		}
	}
	applied, _ := k.take(&attune.Change{Key: attune.Key{Hash: h}, Item: attune.Item{Version: v, Deleted: true}, Prior: v}, true, k.clock.mono())
	return applied
}

// take applies a change of this origin and tells the others.
func (k *core) take(c *attune.Change, guard bool, now time.Duration) (bool, error) {
	was, is, applied, err := k.replica.Merge(c, guard, now)
	if !applied {
		return false, err
	}
	k.sketched(c.Key.Hash, was, is)
	k.build.BeginBare()
	k.build.Change(c)
	k.tell(k.build.Raw(), now)
	if k.logged() {
		k.follow(c)
	}
	return true, err
}

// flushAll kills everything that is here, and what others wrote before now.
func (k *core) flushAll(now int64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	v := k.clock.next(now, k.newest) // nothing that is here survives, of whatever clock
	if k.beyond(v) {
		return errBound
	}
	k.raiseFloor(v)
	k.build.BeginBare()
	k.build.Mark(codec.KindFlush, v, 0)
	k.tell(k.build.Raw(), k.clock.mono())
	return nil
}

// raiseFloor kills everything up to v. What it kills the index counts as gone at
// once, and so must the sketch.
func (k *core) raiseFloor(v attune.Version) {
	if v > k.replica.Floor() {
		k.replica.Flush(v)
		k.noteVersion(recordFloor, v)
		k.resketch()
	}
}

// tell makes a record the next update of this origin.
func (k *core) tell(record []byte, now time.Duration) {
	var buf [8]dependency
	deps := buf[:0]
	if k.causal {
		// What came since the last update made here; that one has the rest.
		for _, p := range k.vv {
			if p.fresh {
				deps = append(deps, dependency{p.origin, p.seq})
				p.fresh = false
			}
		}
	}
	data := appendData(k.data[:0], deps, record)
	k.advance(k.own, k.own.seq+1, now)
	k.ring.add(update{origin: k.id, seq: k.own.seq, data: data})
	if k.data = data; len(data) >= ringOwn {
		k.data = nil // it is the ring's
	}
	k.world.stir()
}

// sketched brings the sketch up to date with an entry of the index.
func (k *core) sketched(h attune.KeyHash, was, is replica.Mark) {
	k.sketch.Replace(sketchKey(h), uint64(was), uint64(is))
}

// sketchKey are those bits of a hash by which the index finds it.
func sketchKey(h attune.KeyHash) uint64 { return h[0]&(0xff<<56) | h[1]&(1<<56-1) }

// newSketch makes an empty one.
func newSketch(r *replica.Replica) *sketch.Live {
	return sketch.NewLive(sketchSecret(r), sketchCells)
}

// sketchSecret is as secret as the hash's, and as equal on all members.
func sketchSecret(r *replica.Replica) sketch.Secret {
	return sketch.Secret(r.Hash([]byte("sketch"))[0])
}

// resketch makes the sketch anew from the index.
func (k *core) resketch() {
	k.sketch = newSketch(k.replica)
	for i := range replica.Segments {
		k.replica.Each(i, func(h attune.KeyHash, m replica.Mark) {
			k.sketched(h, 0, m)
		})
	}
}

// apply makes a change from elsewhere take effect. A key comes as its text, and is
// hashed here; or, of what was evicted, as its hash alone.
func (k *core) apply(rec *codec.Record, now time.Duration) {
	if rec.Kind == codec.KindFlush {
		k.observe(rec.Version, now)
		k.raiseFloor(rec.Version)
		return
	}
	c := &rec.Change
	if c.Key.Hash == (attune.KeyHash{}) {
		c.Key.Hash = k.replica.Hash(c.Key.Text)
	}
	k.observe(rec.Version, now)
	was, is, applied, _ := k.replica.Merge(c, false, now) // bytes that did not fit are fetched when asked for
	if !applied {
		k.duplicates++
		return
	}
	k.applied++
	k.sketched(c.Key.Hash, was, is)
	k.remote(c)
}

// observe has the clock keep up with a version from elsewhere, unless that is so
// far ahead that it would take this clock along. Such a change is taken all the
// same: who drops it diverges.
func (k *core) observe(v attune.Version, now time.Duration) {
	k.newest = max(k.newest, v)
	if k.clock.reached(v) {
		return
	}
	if millis(v) > k.clock.at(now)+k.maxSkew.Milliseconds() {
		k.tooFar++
		return
	}
	k.clock.observe(v)
}
