package gossip

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/gossip/sketch"
	"github.com/attunekv/attune/replica"
)

// A member that misses updates which nobody keeps any more, or finds that it has
// not what others have, pulls: it asks one peer in what they differ, then for the
// records it lacks. What only this member has is left to the peer's own pulls. Each
// answer is complete in itself, of the moment it was made, so the source keeps
// nothing, and what is lost is asked for again:
//
//	CELLS, CELLSOF    the first 32, 128, 512, 1024 cells of the sketch that is
//	                  maintained anyway, until they decode;
//	                  else part by part of the index, as cells or as lists
//	WANT, RECORDS     the records, after each answer that showed some to be missing
//
// When the first answer that led to the end was made, the source was as far as it
// told: its vector then. Whatever was found equal is at least as new here as it was
// there at that moment, and so is whatever was fetched. So now this member is as
// far, too.
//
// That is enough where newest wins is all. At the level causal what was fetched is
// of many moments. So it is kept aside until the last record is here, and the
// source has told how far it was by then; the updates between, which came
// meanwhile and were held back, are added, and everything takes effect in one step.
// Updates that may take effect in the meantime do: what this member has, and what
// the source had at the end, each has all its causes, and so has their union. If
// updates between are missing, the difference to what is kept aside is taken, which
// is smaller, and so on.
//
//	reconcile.go          when to pull, and from whom; what to ask next
//	reconcile_serve.go    the source's side
//	reconcile_compare.go  from cells and lists to what is wanted
//	reconcile_install.go  records, and the end of a pull
//	reconcile_wire.go     frames and records
const (
	firstCells = 32
	// wantKeys is how many records are asked for at once.
	wantKeys = 2048
	// askAgain is how long an answer may take, and askMost how often to ask.
	askAgain = time.Second
	askMost  = 12
	// mostRounds is how often a difference is taken before the pull is given up.
	mostRounds = 10
	// roundAfter is how long the updates between may take to come.
	roundAfter = time.Second

	// lagFor is how long this member must make no progress with an origin that a
	// peer is ahead with: it was sent again by then, if anybody could.
	lagFor = 2 * time.Second
	// jitter keeps members that notice the same from pulling at once.
	jitter = 300 * time.Millisecond
	// calmMost is the longest time between pulls that change nothing.
	calmMost = 16 * time.Second
)

// stagedBytes bounds the values kept aside. Beyond it entries are fetched without:
// those bytes are fetched when asked for.
var stagedBytes = 64 << 20

var (
	errPulling    = errors.New("this controller is taking over data already")
	errBarred     = errors.New("the controllers are agreeing on what to forget, and the other one takes no part in that")
	errPeerGone   = errors.New("the other controller went away")
	errPeerSilent = errors.New("the other controller does not answer")
	errPeerBusy   = errors.New("the other controller cannot pass its data on now: it serves others that are behind, or is behind itself")
	errPeerFrame  = errors.New("the other controller answers what this version cannot read")
	errPeerAhead  = errors.New("the other controller is written to faster than it can be followed")
)

// reconciler is a core's part in finding and mending differences. At any time it
// pulls from one peer, or none.
type reconciler struct {
	k      *core
	secret sketch.Secret
	random uint64

	pull *pull // nil if none is under way

	// When to pull.
	turn    int            // of k.near, who is looked at next
	lags    map[uint64]lag // origins that a peer is ahead with
	unequal map[uint64]int // peers that are as far and have something else: in how many digests
	source  uint64         // whom to pull from next, when it is due; 0 nobody
	due     time.Duration
	calm    time.Duration // not before
	backoff time.Duration

	serving map[uint64]time.Duration // sessions of others, and when they asked last

	in, out uint64        // bytes of frames
	doomed  uint64        // items dropped because all others had forgotten their key
	failed  uint64        // pulls
	took    time.Duration // the last pull that did not

	items []sketch.Item
	buf   []byte
}

// lag is how far this member was with an origin when a peer was found ahead.
type lag struct {
	seq   uint64
	since time.Duration
}

// pull is one reconciliation, from the side that asks.
type pull struct {
	from    uint64
	session uint64
	began   time.Duration
	done    func(error) // of who asked for it; or nil
	apart   bool        // what comes is kept aside and installed in one step

	// What was asked last. It is asked again until it is answered.
	asked    request
	waits    bool
	askedAt  time.Duration
	tries    int
	round    int
	waiting  time.Duration // since when, for updates between; 0 for nothing
	finished bool          // what does not need to wait for those was done

	// How far the round is.
	cells    int
	parts    int    // that the index is cut into; 0: all is one
	next     int    // part
	again    []redo // parts of which more cells are needed
	wants    []uint64
	ignorant bool // of how far the source was when it answered last

	// What the source told.
	floor, cut attune.Version
	vector     []dependency // at the moment the difference is to
	need       []dependency // at the latest moment anything is of; causal only

	// What came.
	changes   []attune.Change
	at        map[attune.KeyHash]int // place in changes
	inSegment [replica.Segments][]int
	bytes     int
	doomed    []sketch.Item // here, unknown there, and not above the cut there

	differing, applied int
	moved              bool
}

// redo is a part whose cells did not suffice.
type redo struct{ part, cells int }

func (r *reconciler) init(k *core) {
	*r = reconciler{
		k: k, secret: sketchSecret(k.replica), random: k.id,
		lags: make(map[uint64]lag), unequal: make(map[uint64]int), serving: make(map[uint64]time.Duration),
	}
}

// draw returns a random number, which in a simulation is always the same.
func (r *reconciler) draw() uint64 {
	r.random = mix(r.random, 1)
	return r.random
}

func (r *reconciler) upTo(d time.Duration) time.Duration {
	return time.Duration(r.draw() % uint64(d))
}

// sync pulls from p at once. done is called under k.mu when this member has
// everything p had, or with why not: at once, if a sync is under way already.
func (r *reconciler) sync(p *peer, done func(error)) {
	switch {
	case r.pull != nil && r.pull.done != nil:
		done(errPulling)
	case r.k.cut.bars(p.id):
		done(errBarred)
	default:
		r.begin(p.id, done, r.k.clock.mono())
	}
}

// heard takes note of a digest of p: two members that are equally far, and have not
// the same twice in a row, differ for good.
func (r *reconciler) heard(p *peer, now time.Duration) {
	k := r.k
	if !k.synced || p.told != k.hash || p.floor == k.replica.Floor() && p.cell == k.sketch.Total() || !k.cut.settled(p) {
		delete(r.unequal, p.id)
		return
	}
	if r.unequal[p.id]++; r.unequal[p.id] >= 2 {
		r.plan(p, now)
	}
}

// tick is what time asks for.
func (r *reconciler) tick(now time.Duration) {
	k := r.k
	if r.pull != nil {
		r.wait(now)
		return
	}
	if !k.synced || len(k.near) == 0 || k.swamped() {
		return
	}
	r.turn = (r.turn + 1) % len(k.near)
	if p := k.near[r.turn]; r.lagging(p, now) {
		r.plan(p, now)
	}
	if r.source == 0 || now < r.due {
		return
	}
	p := k.peers[r.source]
	r.source = 0
	// It may have mended itself.
	if p != nil && r.usable(p, now) && (p.hash != k.hash || p.cell != k.sketch.Total() || p.floor != k.replica.Floor()) {
		r.begin(p.id, nil, now)
	}
}

func (r *reconciler) usable(p *peer, now time.Duration) bool {
	return p.alive && p.neighbour && p.heard != 0 && now-p.heard <= 3*idleEvery && !r.k.cut.bars(p.id)
}

// lagging reports whether p is ahead with an origin that does not move here, or by more
// than p can send.
func (r *reconciler) lagging(p *peer, now time.Duration) (long bool) {
	if !r.usable(p, now) || p.hash == r.k.hash {
		return false
	}
	for o, h := range p.vv {
		own := r.k.seqOf(o)
		if o == r.k.id || h.seq <= own {
			continue
		}
		if h.seq-own > 2*r.k.ring.holds() {
			long = true // more than p keeps, most likely: it has a ring as well
		} else if l, ok := r.lags[o]; !ok || l.seq != own {
			r.lags[o] = lag{own, now}
		} else if now-l.since >= lagFor {
			long = true
		}
	}
	return long
}

func (r *reconciler) plan(p *peer, now time.Duration) {
	if r.source == 0 && r.pull == nil && now >= r.calm {
		r.source, r.due = p.id, now+r.upTo(jitter)
	}
}

func (r *reconciler) begin(from uint64, done func(error), now time.Duration) {
	clear(r.unequal)
	r.source = 0
	r.pull = &pull{
		from: from, session: r.draw(), began: now, done: done,
		apart: r.k.causal && r.k.synced, at: make(map[attune.KeyHash]int),
	}
	r.nextRound(now)
}

// nextRound takes the difference anew.
func (r *reconciler) nextRound(now time.Duration) {
	p := r.pull
	if p.round++; p.round > mostRounds {
		r.fail(errPeerAhead, now)
		return
	}
	p.cells, p.parts, p.next, p.waiting, p.finished = firstCells, 0, 0, 0, false
	p.again, p.wants, p.doomed = nil, nil, nil
	r.step(now)
}

// step asks for what is needed next.
func (r *reconciler) step(now time.Duration) {
	p := r.pull
	q := request{kind: frameWant}
	switch {
	case len(p.wants) > 0:
		q.keys = p.wants[:min(len(p.wants), wantKeys)]
		if p.bytes > stagedBytes {
			q.flags |= withoutBytes
		}
		if r.k.causal && p.compared() && len(q.keys) == len(p.wants) {
			q.flags |= tellVector // it may be the last
		}
	case len(p.again) > 0:
		q = request{kind: frameCells, parts: p.parts, first: p.again[0].part, count: 1, cells: max(p.again[0].cells, p.cells)}
	case p.parts == 0 && p.next == 0:
		q = request{kind: frameCells, cells: p.cells, flags: tellVector}
	case !p.compared():
		q = request{kind: frameCells, parts: p.parts, first: p.next, count: p.parts - p.next, cells: p.cells}
		if p.next == 0 {
			q.flags |= tellVector
		}
	case p.ignorant:
		q.flags |= tellVector
	default:
		r.conclude(now)
		return
	}
	q.session, q.number = p.session, p.asked.number+1
	p.asked, p.waits, p.tries = q, true, 0
	r.ask(now)
}

// compared reports whether the whole difference was found.
func (p *pull) compared() bool {
	return len(p.again) == 0 && p.next == max(p.parts, 1)
}

func (r *reconciler) ask(now time.Duration) {
	p := r.pull
	p.tries++
	p.askedAt = now
	r.send(p.from, p.asked.kind, p.asked.append(nil))
}

// wait goes on with a pull that nothing came for.
func (r *reconciler) wait(now time.Duration) {
	p := r.pull
	source := r.k.peers[p.from]
	switch {
	case source == nil || !source.alive:
		r.fail(errPeerGone, now)
	case !p.waits:
		r.conclude(now)
	case now-p.askedAt < askAgain:
	case p.tries >= askMost:
		r.fail(errPeerSilent, now)
	default:
		r.ask(now)
	}
}

func (r *reconciler) fail(err error, now time.Duration) {
	p := r.pull
	r.pull = nil
	r.failed++
	r.calm = now + jitter + r.upTo(time.Second)
	r.k.log.Info("could not take over what another controller has", zap.Uint64("peer", p.from), zap.Error(err))
	if p.done != nil {
		p.done(err)
	}
}

// frame takes a frame of a pull, of this member's or of a peer's.
func (r *reconciler) frame(from uint64, kind byte, body []byte) {
	now := r.k.clock.mono()
	if r.k.peers[from] == nil {
		return
	}
	r.in += uint64(len(body))
	if kind == frameCells || kind == frameWant {
		r.serve(from, kind, body, now)
		return
	}
	rd := reader{b: body}
	a, ok := parseAnswer(&rd)
	p := r.pull
	if p == nil || from != p.from || a.session != p.session || a.number != p.asked.number || !p.waits ||
		(kind == frameRecords) != (p.asked.kind == frameWant) {
		return // late, or twice
	}
	p.waits = false
	switch {
	case !ok:
		r.fail(errPeerFrame, now)
		return
	case r.k.cut.bars(from):
		r.fail(errBarred, now)
		return
	case a.flags&isBusy != 0:
		r.fail(errPeerBusy, now)
		return
	case a.flags&hasVector == 0 && p.asked.flags&tellVector != 0:
		r.fail(errPeerFrame, now)
		return
	}
	p.floor = max(p.floor, a.floor)
	if a.flags&hasVector != 0 {
		p.need, p.ignorant = a.vector, false
		if kind == frameCellsOf {
			p.vector, p.cut = a.vector, a.cut
			r.forget(p.vector)
		}
	}
	if kind == frameCellsOf {
		ok = r.difference(&rd, a.cut)
	} else {
		ok = r.take(&rd, a.cut)
	}
	if !ok {
		r.fail(errPeerFrame, now)
		return
	}
	r.step(now)
}

// forget makes room among the updates held back for those after the moment of v:
// what was before comes by the pull.
func (r *reconciler) forget(v []dependency) {
	h := &r.k.held
	if !r.pull.apart || h.bytes < heldBytes/2 {
		return
	}
	for _, d := range v {
		for seq := range h.origin[d.origin] {
			if seq <= d.seq {
				h.remove(d.origin, seq)
			}
		}
	}
}
