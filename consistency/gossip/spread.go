package gossip

import (
	"cmp"
	"math/bits"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/gossip/sketch"
)

const (
	// frameBytes is how much of updates goes into a frame, unless one is larger.
	frameBytes = 64 << 10
	// digestEvery is the time between digests while there is something new, and
	// idleEvery while there is not.
	digestEvery = 50 * time.Millisecond
	idleEvery   = time.Second
	// stuckAfter is how long a member may lack what others have before it is sent
	// again, and relayFor how long then everything of that origin is, or as long as
	// the member says that there are some who do not reach it.
	stuckAfter = 500 * time.Millisecond
	relayFor   = 5 * time.Second
	// offsetTurn: the most that clocks differed is of one to two such times.
	offsetTurn = 5 * time.Second
	// slewStep is how many milliseconds a clock is set each stuckAfter: a twentieth.
	slewStep = 25
	// fullMesh is up to how many members everybody tells everybody. In a larger
	// cluster each has neighbours, about twice the logarithm of the size.
	fullMesh = 16
)

// peer is another member.
type peer struct {
	id        uint64
	name      string
	alive     bool // as far as gossip knows
	neighbour bool

	heard  time.Duration // of the last digest; 0 never
	ready  bool
	deaf   bool  // some that are alive do not reach it
	slow   bool  // its store is
	offset int64 // of its clock to ours, in milliseconds
	// the most since turned, and the most in the offsetTurn before
	latest, earlier int64
	turned          time.Duration
	node            uint16 // the bits of its clock
	vv              map[uint64]heardOf
	hash            uint64 // of vv
	told            uint64 // the hash as it tells
	cell            sketch.Cell
	floor           attune.Version
	cut             attune.Version

	cursor uint64 // position in the ring of what it is sent next
	full   bool   // it wants a whole digest
	owed   bool   // it waits for a digest, which waits for the journal
	asked  time.Duration
	// resend are the origins it is stuck with: until then all of them that is not
	// known to be there is sent, and before resendTo only that.
	resend   map[uint64]time.Duration
	resendTo uint64
	tries    int // since it was first stuck, or made progress
}

// heardOf is how far a peer has come with an origin.
type heardOf struct {
	seq   uint64
	moved time.Duration
}

// member is one of the cluster, this one or another.
type member struct {
	id    uint64
	name  string
	alive bool
}

// setMembers tells who is in the cluster, this one left out. Who took its leave is no
// member any more: nobody need remember the dead for it. If it comes back it is behind;
// see cutter.
func (k *core) setMembers(ms []member) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.order = k.order[:0]
	for _, m := range ms {
		p := k.peers[m.id]
		if p == nil {
			p = &peer{id: m.id, vv: make(map[uint64]heardOf), resend: make(map[uint64]time.Duration), full: true}
			k.peers[m.id] = p
		}
		p.name = m.name
		if p.alive != m.alive {
			p.alive, p.full = m.alive, true
		}
		k.order = append(k.order, m.id)
	}
	k.order = append(k.order, k.id)
	slices.Sort(k.order)
	for id := range k.peers {
		if _, known := slices.BinarySearch(k.order, id); !known {
			delete(k.peers, id)
		}
	}
	k.near = k.near[:0]
	for _, m := range ms {
		p := k.peers[m.id]
		if p.neighbour = k.adjacent(k.id, p.id); p.neighbour {
			k.near = append(k.near, p)
		}
	}
	slices.SortFunc(k.near, func(a, b *peer) int { return cmp.Compare(a.id, b.id) })
}

// adjacent reports whether two members tell each other directly: in a large
// cluster those whose places, by id, are a power of two apart.
func (k *core) adjacent(a, b uint64) bool {
	n := len(k.order)
	if n <= fullMesh {
		return true
	}
	i, known := slices.BinarySearch(k.order, a)
	j, also := slices.BinarySearch(k.order, b)
	if !known || !also {
		return false
	}
	d := uint(i-j+n) % uint(n)
	return bits.OnesCount(d) == 1 || bits.OnesCount(uint(n)-d) == 1
}

// flush sends what is new to the neighbours, and returns how many changes were.
func (k *core) flush() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.sendable()
	fresh := int(now - k.flushed)
	k.flushed = now
	var last sentFrame
	for _, p := range k.near {
		if p.alive && p.heard != 0 {
			k.stream(p, &last)
		}
	}
	return fresh
}

// sentFrame is what one peer was sent: where all are told directly, the next one
// mostly gets the same.
type sentFrame struct {
	from, to uint64 // positions
	body     []byte
	after    uint64 // changes made here are in it from this one on
	valid    bool
}

// stream sends p everything in the ring that it needs.
func (k *core) stream(p *peer, last *sentFrame) {
	p.cursor = max(p.cursor, k.ring.first)
	for p.cursor < k.sendable() {
		var body []byte
		var to uint64
		plain := len(k.order) <= fullMesh && len(p.resend) == 0 && p.resendTo <= p.cursor
		if plain && last.valid && last.from == p.cursor && p.vv[k.id].seq >= last.after {
			body, to = last.body, last.to
		} else {
			body, to = k.gather(p, p.cursor)
			*last = sentFrame{p.cursor, to, body, p.vv[k.id].seq, plain}
		}
		if body != nil {
			if !k.world.send(p.id, cluster.Log, frameUpdates, body) {
				return // later
			}
			k.sent += uint64(len(body))
		}
		p.cursor = to
	}
}

// gather collects what p needs from a position on, and the position behind it.
func (k *core) gather(p *peer, from uint64) (body []byte, to uint64) {
	var prev update
	flags := byte(0)
	if k.acks.waiting() {
		flags = wantDigest
	}
	for to = from; to < k.sendable() && len(body) < frameBytes; to++ {
		u := k.ring.at(to)
		if !k.needs(p, &u, to) {
			continue
		}
		if body == nil {
			body = append(make([]byte, 0, k.ring.room(to)), flags)
		}
		body = appendUpdate(body, prev, u)
		prev = u
	}
	return body, to
}

// needs reports whether p is to be sent u, which is at pos: what was made here,
// what its origin does not tell it directly, and what it is stuck with.
func (k *core) needs(p *peer, u *update, pos uint64) bool {
	if u.origin == p.id || u.seq <= p.vv[u.origin].seq {
		return false
	}
	if _, stuck := p.resend[u.origin]; stuck {
		return true
	}
	return pos >= p.resendTo && (u.origin == k.id || !k.adjacent(u.origin, p.id))
}

// digest takes a DIGEST frame.
func (k *core) digest(from uint64, body []byte) {
	d, ok := parseDigest(body)
	p := k.peers[from]
	if !ok || p == nil {
		return
	}
	now := k.clock.mono()
	first, helped := p.heard == 0, false
	p.heard, p.ready, p.deaf = max(now, 1), d.flags&digestReady != 0, d.flags&digestDeaf != 0
	p.slow = d.flags&digestSlow != 0
	k.listen(now)
	p.node = d.node
	p.compare(d.time-k.clock.now(), first, now)
	p.cell, p.floor, p.cut, p.told = d.cell, d.floor, d.collected, d.hash
	if k.synced && p.id < k.id && uint64(d.node) == k.clock.node {
		k.pickBits() // both came at once
	}
	if d.flags&digestFull != 0 {
		clear(p.vv)
		p.hash = 0
	}
	for _, e := range d.entries {
		was := p.vv[e.origin]
		if e.seq == was.seq {
			continue
		}
		p.hash ^= mix(e.origin, was.seq) ^ mix(e.origin, e.seq)
		p.vv[e.origin] = heardOf{e.seq, now}
		if _, stuck := p.resend[e.origin]; stuck && e.seq > was.seq {
			helped = true
		}
	}
	if helped {
		k.unstick(p)
	}
	if p.hash != p.told && now-p.asked > digestEvery {
		p.asked = now
		k.world.send(p.id, cluster.Control, frameFull, nil)
	}
	if first {
		p.cursor = k.ring.first
		p.full = true
		k.world.stir()
	}
	k.acks.heard(k)
	k.rec.heard(p, now)
	k.cut.heard(p, now)
}

// compare takes note of how much later a peer's clock showed than this one does now.
// What the digest waited on its way makes that less, and a busy machine lets it wait
// for seconds: so it is the most of a while that tells of the clocks.
func (p *peer) compare(offset int64, first bool, now time.Duration) {
	switch {
	case first:
		p.latest, p.earlier, p.turned = offset, offset, now
	case now-p.turned >= offsetTurn:
		p.latest, p.earlier, p.turned = offset, p.latest, now
	}
	p.latest = max(p.latest, offset)
	p.offset = max(p.latest, p.earlier)
}

// wantsFull takes a FULL frame.
func (k *core) wantsFull(from uint64) {
	if p := k.peers[from]; p != nil {
		p.full = true
		k.digestTo(from, k.clock.mono())
	}
}

func (k *core) ownDigest() digest {
	return digest{
		flags: k.flags(), time: k.clock.now(), node: uint16(k.clock.node), hash: k.hash, cell: k.sketch.Total(),
		floor: k.replica.Floor(), collected: k.replica.Collected(),
	}
}

// flags are those of a digest now, but for digestFull.
func (k *core) flags() (f byte) {
	if k.serves() {
		f |= digestReady
	}
	if k.deaf() {
		f |= digestDeaf
	}
	if k.slow() {
		f |= digestSlow
	}
	return f
}

// listen notes whether a neighbour that lives has a slow store.
func (k *core) listen(now time.Duration) {
	k.crowded.Store(slices.ContainsFunc(k.near, func(p *peer) bool {
		return p.slow && p.alive && now-p.heard < silence
	}))
}

// deaf reports whether some do not reach this member who, as far as it knows, live.
func (k *core) deaf() bool {
	now := k.clock.mono()
	return slices.ContainsFunc(k.near, func(p *peer) bool {
		if now-p.heard < silence {
			return false
		}
		own := k.vv[p.id]
		return p.alive || own != nil && own.moved != 0 && now-own.moved < relayFor
	})
}

// digestTo tells one peer everything, if it wants that, or what is new.
func (k *core) digestTo(to uint64, now time.Duration) {
	p := k.peers[to]
	if p == nil {
		return
	}
	d := k.ownDigest()
	all := p.full
	if all {
		d.flags |= digestFull
	}
	for _, e := range k.vv {
		if (all || e.dirty) && e.told != 0 {
			d.entries = append(d.entries, dependency{e.origin, e.told})
		}
	}
	if k.world.send(to, cluster.Control, frameDigest, d.append(nil)) {
		p.full = false
	}
}

// digests tells all neighbours.
func (k *core) digests(now time.Duration) {
	d := k.ownDigest()
	k.digested, k.toldFlags = now, d.flags
	for _, e := range k.vv {
		if e.dirty {
			d.entries = append(d.entries, dependency{e.origin, e.told})
		}
	}
	body := d.append(nil)
	for _, p := range k.near {
		switch {
		case !p.alive:
		case p.full:
			k.digestTo(p.id, now)
		default:
			k.world.send(p.id, cluster.Control, frameDigest, body)
		}
	}
	for _, e := range k.vv {
		e.dirty = false
	}
}

// tick does what time alone asks for. It is called every digestEvery, or so.
func (k *core) tick() {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock.mono()
	if wait := now - k.digested; wait >= idleEvery || wait >= digestEvery && k.news() {
		k.digests(now)
	}
	if now-k.pastAt >= stuckAfter {
		k.stuck(now)
		k.past, k.pastAt = make(map[uint64]uint64, len(k.vv)), now
		for o, p := range k.vv {
			k.past[o] = p.seq
		}
		k.slew()
	}
	k.listen(now)
	k.askFar()
	k.askMissing(now)
	k.acks.expire(time.Now())
	k.rec.tick(now)
	k.cut.tick(now)
}

// askFar has those tell how far they are who tell it to their neighbours alone, if a
// client waits for more acknowledgements than the neighbours here can give.
func (k *core) askFar() {
	if !k.acks.waiting() || int(k.acks.want.Load()) <= len(k.near)+1 {
		return
	}
	for _, p := range k.peers {
		if p.alive && !p.neighbour && p.vv[k.id].seq < k.own.seq {
			k.world.send(p.id, cluster.Control, frameFull, nil)
		}
	}
}

// news reports whether there is something to tell in a digest.
func (k *core) news() bool {
	if k.flags() != k.toldFlags {
		return true
	}
	for _, p := range k.vv {
		if p.dirty {
			return true
		}
	}
	for _, p := range k.near {
		if p.full && p.alive {
			return true
		}
	}
	return false
}

// stuck looks for peers that make no progress with what this member had a while
// ago, whoever made it, and sends that again.
func (k *core) stuck(now time.Duration) {
	for _, p := range k.near {
		if !p.alive || p.heard == 0 || now-p.heard > 2*idleEvery {
			continue
		}
		for o, until := range p.resend {
			if now > until && !p.deaf {
				delete(p.resend, o)
			}
		}
		again := false
		for o, seq := range k.past {
			h := p.vv[o]
			if o == p.id || h.seq >= seq || now-h.moved < stuckAfter || h.seq < k.ring.dropped[o] {
				continue
			}
			p.resend[o] = now + relayFor
			again = true
		}
		switch {
		case !again:
			p.tries = 0
		case p.tries == 0:
			k.rewind(p)
		default:
			// That did not help. It may be busy rather than deaf, or the network lose
			// much: no more than the beginning, until that has come. To wait for longer
			// each time would be to wait when the network is well again.
			if body, _ := k.gather(p, k.ring.first); body != nil && k.world.send(p.id, cluster.Log, frameUpdates, body) {
				k.sent += uint64(len(body))
				p.tries++
			}
		}
	}
}

// rewind has p sent again all that it is stuck with.
func (k *core) rewind(p *peer) {
	p.tries = 1
	p.resendTo = max(p.resendTo, p.cursor)
	p.cursor = k.ring.first
	k.resent++
	k.world.stir()
}

// unstick takes note that p makes progress with what it was stuck with. If it was only
// sent the beginning again, the rest follows.
func (k *core) unstick(p *peer) {
	if p.tries > 1 {
		k.rewind(p)
	} else {
		p.tries = 0
	}
}

// slew brings the clock nearer to the median of all, slowly. One that is off by more
// than maxSkew may not write.
func (k *core) slew() {
	offsets := []int64{0}
	for _, p := range k.peers {
		if p.alive && p.ready && p.heard != 0 && k.clock.mono()-p.heard < 5*idleEvery {
			offsets = append(offsets, p.offset)
		}
	}
	slices.SortFunc(offsets, cmp.Compare)
	// Of two in the middle the one nearer to ours.
	low, high := offsets[(len(offsets)-1)/2], offsets[len(offsets)/2]
	median := low
	if max(high, -high) < max(low, -low) {
		median = high
	}
	k.skew = time.Duration(median) * time.Millisecond
	skewed := time.Duration(max(median, -median))*time.Millisecond > k.maxSkew
	if k.skewed.Swap(skewed) != skewed {
		k.log.Warn("clock against the median of all controllers", zap.Int64("ms", -median), zap.Duration("max-skew", k.maxSkew), zap.Bool("refusing writes", skewed))
	}
	// What a digest took to get here looks like a clock that is behind. Were that
	// followed, all clocks would go slow; so there is a band in which none is.
	band := k.maxSkew.Milliseconds() / 10
	switch {
	case skewed:
	case median > band:
		k.set(min(median-band, slewStep))
	case median < -band:
		k.set(max(median+band, -slewStep))
	}
}

// set sets the clock by so many milliseconds.
func (k *core) set(by int64) {
	k.clock.offset.Add(by)
	for _, p := range k.peers {
		p.offset, p.latest, p.earlier = p.offset-by, p.latest-by, p.earlier-by
	}
}

// join makes this one a full member, from now on free to write.
func (k *core) join() {
	k.pickBits()
	k.synced = true
}

// pickBits gives the clock bits that no other has, if there are any left: of two
// changes with one version neither wins.
func (k *core) pickBits() {
	const nodes = 1 << nodeBits
	var taken [nodes]bool
	for _, p := range k.peers {
		if p.heard != 0 {
			taken[p.node%nodes] = true
		}
	}
	// Two that begin alike go on in different steps; odd ones, which lead to all.
	step := k.id>>nodeBits | 1
	for i := range uint64(nodes) {
		if n := (k.id + i*step) % nodes; !taken[n] {
			k.clock.node = n
			return
		}
	}
}

// serves reports whether clients may be answered.
func (k *core) serves() bool { return k.synced && !k.skewed.Load() && !k.cut.lagging() }
