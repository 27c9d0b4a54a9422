package gossip

import (
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/replica"
)

// The dead are remembered so that nothing they killed comes back from a member that
// has not heard of their end. When all have, they may be forgotten: all together
// agree on a version, the cut, and then
//
//   - drop what is dead and has a version of the cut or less, and
//   - refuse, from then on, what comes with such a version for a key they do not
//     have, as that was dropped (the floor, see replica.SetCollected).
//
// That is right if every member has every change up to the cut when the first one
// drops. The coordinator, who is the lowest id of those that are alive, sees to it:
//
//	PREPARE  Each raises its clock over the cut, so that it never again issues a
//	         version below, and fixes how many changes it had made: all of its that
//	         are below the cut are among these. While this vow holds it takes
//	         nothing from anybody who does not take part (bars).
//	gather   Who left the cluster may have told some members what others will never
//	         hear: its vector entry says nothing, as what came out of order, or in
//	         a reconciliation that was broken off, is here and not in the vector.
//	         So, unless all hold the same anyway, the coordinator takes over what
//	         each has, and each what the coordinator has then.
//	COVER    Each answers when it has all changes that the others fixed. The
//	         vectors must be equal for those that left.
//	COMMIT   Sent to all. Who misses it sees it by any neighbour's digest.
//
// Whatever is lost, nobody drops anything that one of the others lacks: a cut that
// one adopted was covered by all. A member that has no vow for the cut that others
// adopted, because it was away, or gave up waiting just then, may have missed what
// was dropped. It is behind: before it takes part again it reconciles with one that
// has the cut, and everything of its own below that cut which the other does not
// have is dead.
//
// A member that is away holds the cut up, until it is expelled. It comes back as one
// that is behind.
const (
	// cutEvery is the time from one agreement to the next, in a cluster of up to
	// cutMembers; larger ones take longer, as each costs bytes by the square of it.
	cutEvery   = 5 * time.Second
	cutMembers = 16
	// rareCuts: with few dead entries only one time in so many is taken.
	rareCuts  = 12
	fewDead   = 64 // one in so many entries
	lookEvery = time.Second
	// saidAgain is the time between two frames of one step.
	saidAgain = 500 * time.Millisecond
	// cutPatience is how long the coordinator waits without any progress, and
	// vowFor how long a member keeps its vow without a word.
	cutPatience = 5 * time.Second
	vowFor      = 10 * time.Second
	silentFor   = 3 * time.Second
	pullAgain   = 500 * time.Millisecond
	pullMost    = time.Minute // then it is believed to be lost
	commits     = 3           // how often it is told
	// warnEvery is how often the log says why there is no cut.
	warnEvery = 10 * time.Minute

	// maxAbsent is how long an absent member holds the cut up, and maxDead how many
	// dead entries are kept for one that was away for minAbsent at least.
	maxAbsent = 24 * time.Hour
	maxDead   = 1_000_000
	minAbsent = 30 * time.Second
	// minorityLag is how much older the cut of a minority is: should both parts of
	// a cluster have expelled each other, the newer cut wins.
	minorityLag = time.Minute
	// passTicks is in how many ticks a pass over the index is made, if less than
	// passDrops entries go in each, and passLeast how many are looked at at least.
	passTicks = 128
	passLeast = 4096
	passDrops = 2 * passLeast
	// resweepEvery is how often a difference is looked for among the dead.
	resweepEvery = 10 * time.Second
)

// cutter is a member's part in agreeing on the cut. It is guarded by core.mu.
type cutter struct {
	k       *core
	sync    func(*peer, func(error)) // that of the reconciler
	every   time.Duration            // see cutEvery
	maxAge  time.Duration            // see maxAbsent
	maxDead int64

	looked time.Duration
	known  uint64                   // a hash of all members
	absent map[uint64]time.Duration // since when, as far as this member saw
	// expelled members are listed and absent, and the cut does not wait for them.
	expelled map[uint64]bool
	// covered is how far all members had come with an origin that takes no part.
	covered map[uint64]uint64
	unsure  bool // members came or went since the last cut

	vow *vow     // nil: none
	run *cutting // what this member coordinates; nil: nothing
	due time.Duration
	// wished: somebody else has dead entries.
	wished bool

	cut     attune.Version // which the pass is about
	passing bool
	slice   int
	swept   time.Duration // when the last pass ended

	behind  bool // a member has a cut that this one has no part in
	pulling uint64
	pulls   uint64
	pulled  time.Duration // when that began, or is to be tried again

	cutCounters

	// Broken on purpose by tests, which then must fail.
	hasty   bool // nobody is waited for
	trusts  bool // who left is believed to have told everybody
	forgets bool // no floor, no reconciliation after being away
}

// cutCounters are for the operator.
type cutCounters struct {
	cuts, aborted, expulsions uint64
	collected                 uint64 // dead entries that were dropped
	lastCut                   time.Duration
	waits                     string // why there was no cut the last time; "": there was
	warned                    time.Duration
}

// vow is what a member promised to a coordinator.
type vow struct {
	coordinator uint64
	cut         attune.Version
	members     []uint64 // who takes part, ascending
	expelled    []uint64
	seq         uint64 // of this origin's changes when it was given
	unsure      bool
	heard       time.Duration
	asked       bool // to cover seqs
	seqs        []dependency
	gather      bool // first take over what the coordinator has
	answered    bool
}

func (c *cutter) init(k *core) {
	*c = cutter{
		k: k, sync: k.rec.sync, every: cutEvery, maxAge: maxAbsent, maxDead: maxDead,
		absent: make(map[uint64]time.Duration), expelled: make(map[uint64]bool), covered: make(map[uint64]uint64),
	}
}

// settled reports whether p and this member have dropped the same, so that a
// difference between them is one.
func (c *cutter) settled(p *peer) bool {
	return !c.passing && !c.behind && p.cut == c.k.replica.Collected()
}

// collecting reports whether dead entries are vanishing: who took this member's
// entries for all there is would keep what they killed.
func (c *cutter) collecting() bool { return c.passing || c.cut != c.k.replica.Collected() }

// lagging reports whether others have forgotten what this member must hear of
// first. Until then it may show what is dead everywhere else.
func (c *cutter) lagging() bool { return c.behind }

// bars reports whether nothing is to be taken from a member now.
func (c *cutter) bars(id uint64) bool { return c.vow != nil && !c.vow.takesPart(id) }

// drops reports whether a frame of a member is not for now: one that takes no part
// may ask, and not tell.
func (c *cutter) drops(from uint64, kind byte) bool {
	asks := kind == frameCells || kind == frameWant || kind == frameFull
	// A digest changes nothing here, and who is not heard of is sent nothing.
	asks = asks || kind == frameDigest
	return !asks && c.bars(from)
}

func (v *vow) takesPart(id uint64) bool {
	_, ok := slices.BinarySearch(v.members, id)
	return ok
}

// tick is called about every digestEvery.
func (c *cutter) tick(now time.Duration) {
	if now-c.looked >= lookEvery {
		c.look(now)
	}
	c.pass(now)
	if c.behind {
		c.catchUp(now)
	}
	if v := c.vow; v != nil && (now-v.heard > vowFor || c.gone(v.coordinator)) {
		c.release()
	}
	c.answer(now)
	switch {
	case c.run != nil:
		c.drive(now)
	case now >= c.due:
		c.due = now + c.interval()
		c.begin(now)
	}
}

// gone reports whether nobody will go on with what a member coordinates.
func (c *cutter) gone(id uint64) bool {
	p := c.k.peers[id]
	return id != c.k.id && (p == nil || !p.alive)
}

func (c *cutter) interval() time.Duration {
	return c.every * time.Duration(max(len(c.k.order)/cutMembers, 1))
}

// look notes who came, went, is away and is back.
func (c *cutter) look(now time.Duration) {
	c.looked = now
	known := uint64(0)
	for _, id := range c.k.order {
		known ^= mix(id, 1)
		p := c.k.peers[id]
		switch {
		case p == nil: // this one
		case p.alive:
			delete(c.absent, id)
			if c.expelled[id] {
				delete(c.expelled, id)
				c.unsure = true
				c.k.log.Info("a controller that was expelled is back: what it has and the others have forgotten is dropped", zap.String("name", p.name))
			}
		default:
			if _, ok := c.absent[id]; !ok {
				c.absent[id] = now
			}
		}
	}
	if known == c.known {
		return
	}
	c.known, c.unsure = known, true
	maps.DeleteFunc(c.absent, func(id uint64, _ time.Duration) bool { return c.k.peers[id] == nil })
	maps.DeleteFunc(c.expelled, func(id uint64, _ bool) bool { return c.k.peers[id] == nil })
}

// heard is called after every digest of p.
func (c *cutter) heard(p *peer, now time.Duration) {
	k := c.k
	c.unsure = c.unsure || c.expelled[p.id]
	switch own := k.replica.Collected(); {
	case p.cut > own:
		c.committed(p.cut, now)
	case own != 0 && c.settled(p) && p.told == k.hash && p.floor == k.replica.Floor() && p.cell != k.sketch.Total():
		// Perhaps it is an entry that died after the pass had been there.
		if now-c.swept >= resweepEvery {
			c.resweep()
		}
	}
}

// committed is called when others adopted a cut that this member has not.
func (c *cutter) committed(cut attune.Version, now time.Duration) {
	// Whatever else: who issues a version below it may lose what it wrote.
	c.k.clock.observe(cut)
	switch {
	case c.vow != nil && c.vow.cut == cut && c.vow.answered:
		c.adopt(now)
	case !c.forgets:
		c.behind = true
	}
}

// pass drops, a share each tick, what the cut made superfluous.
func (c *cutter) pass(now time.Duration) {
	k := c.k
	if cut := k.replica.Collected(); cut != c.cut {
		// Adopted, or come with a reconciliation.
		c.cut, c.passing = cut, true
		if c.vow != nil && c.vow.cut <= cut {
			c.release()
		}
		st := k.replica.Stats()
		c.slice = max(int(st.Items+st.Tombstones)/passTicks, passLeast)
	}
	if !c.passing {
		return
	}
	for n, enough := 0, c.collected+passDrops; c.passing && n < c.slice && c.collected < enough; n += passLeast {
		c.passing = !k.replica.Collect(c.cut, passLeast, func(h attune.KeyHash, was replica.Mark) {
			k.sketched(h, was, 0)
			c.collected++
		})
	}
	if !c.passing {
		c.swept = now
	}
}

// resweep begins another pass with the same cut.
func (c *cutter) resweep() {
	if c.cut != 0 && !c.passing {
		c.k.replica.Collect(0, 0, nil) // a pass about another cut, which is not even begun
		c.passing = true
	}
}

// catchUp reconciles with a member that has a newer cut.
func (c *cutter) catchUp(now time.Duration) {
	k := c.k
	var best *peer
	for _, p := range k.near {
		if p.alive && p.heard != 0 && p.cut > k.replica.Collected() && (best == nil || p.cut > best.cut) {
			best = p
		}
	}
	if best == nil {
		c.behind = false
		return
	}
	if k.synced { // else that is what it is doing
		c.pull(best, now, func(error) {})
	}
}

// pull has everything that p has merged here, then calls done; it does nothing if
// one is under way, or was not long ago.
func (c *cutter) pull(p *peer, now time.Duration, done func(error)) {
	if now < c.pulled || c.pulling != 0 && now < c.pulled+pullMost {
		return
	}
	c.pulls++
	n := c.pulls // one that was given up may end later all the same
	c.pulling, c.pulled = n, now
	c.sync(p, func(err error) {
		if c.pulling != n {
			return
		}
		c.pulling, c.pulled = 0, c.k.clock.mono()
		if err != nil {
			c.pulled += pullAgain
		}
		done(err)
	})
}

// What a member does for a coordinator.

// frame takes a CUT frame.
func (c *cutter) frame(from uint64, body []byte) {
	f, ok := parseCut(body)
	if !ok || c.k.peers[from] == nil {
		return
	}
	now := c.k.clock.mono()
	switch f.step {
	case stepWish:
		c.wished = true
		for _, id := range f.expelled {
			// Of what was agreed before this one was there.
			if p := c.k.peers[id]; p != nil && !p.alive {
				c.expelled[id] = true
			}
		}
	case stepPrepare:
		c.say(from, c.prepare(from, &f, now))
	case stepCover:
		if v := c.vow; v != nil && v.coordinator == from && v.cut == f.cut {
			if !v.asked {
				v.asked, v.seqs, v.gather = true, f.seqs, f.gather
			}
			v.heard, v.answered = now, false
			c.answer(now)
		}
	case stepCommit:
		if f.cut > c.k.replica.Collected() {
			c.committed(f.cut, now)
		}
	case stepAbort:
		if v := c.vow; v != nil && v.coordinator == from && v.cut == f.cut {
			c.release()
		}
	case stepFixed, stepCovered, stepRefuse:
		c.answered(from, &f, now)
	}
}

func (c *cutter) say(to uint64, f cutFrame) {
	c.k.world.send(to, cluster.Control, frameCut, f.append(nil)) // lost: it is said again
}

// prepare gives a vow and returns what to answer.
func (c *cutter) prepare(from uint64, f *cutFrame, now time.Duration) cutFrame {
	k := c.k
	c.look(now)
	v := c.vow
	if v == nil || v.coordinator != from || v.cut != f.cut {
		if why := c.refuses(from, f, now); why != refuseNothing {
			return cutFrame{step: stepRefuse, cut: f.cut, why: why}
		}
		if v != nil {
			c.release()
		}
		v = &vow{coordinator: from, cut: f.cut, expelled: f.expelled, seq: k.own.seq, unsure: c.unsure}
		for _, id := range k.order {
			if _, ok := slices.BinarySearch(f.expelled, id); !ok {
				v.members = append(v.members, id)
			}
		}
		k.clock.observe(f.cut)
		c.vow, c.unsure = v, false
	}
	v.heard = now
	return cutFrame{
		step: stepFixed, cut: v.cut, seq: v.seq, unsure: v.unsure || c.strays(v),
		cell: k.sketch.Total(), floor: k.replica.Floor(),
	}
}

func (c *cutter) refuses(from uint64, f *cutFrame, now time.Duration) refusal {
	k := c.k
	party := c.known
	for _, id := range f.expelled {
		party ^= mix(id, 1)
		if p := k.peers[id]; p == nil || p.alive {
			return refuseAlive
		}
	}
	switch v := c.vow; {
	case !k.synced:
		return refuseUnsynced
	case c.behind || f.base != k.replica.Collected() || f.cut <= f.base:
		return refuseBehind
	case c.collecting() || v != nil && (v.coordinator != from || f.cut < v.cut):
		return refuseBusy
	case party != f.party:
		return refuseMembers
	case millis(f.cut) > k.clock.now()-k.maxSkew.Milliseconds():
		// Items would end before their time here.
		return refuseClock
	}
	return refuseNothing
}

// strays reports whether there are changes of members that left, not known to be
// everywhere.
func (c *cutter) strays(v *vow) bool {
	for o, p := range c.k.vv {
		if p.seq != 0 && p.seq != c.covered[o] && !v.takesPart(o) {
			return true
		}
	}
	return false
}

// answer tells the coordinator that everything is here, when it is.
func (c *cutter) answer(now time.Duration) {
	v := c.vow
	if v == nil || !v.asked || v.answered {
		return
	}
	if v.gather {
		if p := c.k.peers[v.coordinator]; p != nil {
			c.pull(p, now, func(err error) {
				if c.vow == v && err == nil {
					v.gather = false
				}
			})
		}
		if v.gather {
			return
		}
	}
	for _, d := range v.seqs {
		if c.k.seqOf(d.origin) < d.seq && !c.hasty {
			return
		}
	}
	v.answered = true
	f := cutFrame{step: stepCovered, cut: v.cut, rest: c.rest(v)}
	if v.coordinator == c.k.id {
		c.answered(c.k.id, &f, now)
	} else {
		c.say(v.coordinator, f)
	}
}

// rest is a hash of how far the changes of those who take no part have come.
func (c *cutter) rest(v *vow) (hash uint64) {
	for o, p := range c.k.vv {
		if !v.takesPart(o) {
			hash ^= mix(o, p.seq)
		}
	}
	return hash
}

// release gives a vow up. Should the others adopt its cut, this member is behind.
func (c *cutter) release() {
	c.unsure = c.unsure || c.vow.unsure
	c.vow = nil
}

// adopt makes the cut of the vow take effect.
func (c *cutter) adopt(now time.Duration) {
	k, v := c.k, c.vow
	c.vow = nil
	for o, p := range k.vv {
		if !v.takesPart(o) {
			c.covered[o] = p.seq
		}
	}
	was := c.expelled
	c.expelled = make(map[uint64]bool)
	for _, id := range v.expelled {
		c.expelled[id] = true
		if p := k.peers[id]; p != nil && !was[id] {
			c.expulsions++
			k.log.Warn("expelled a controller that was away too long: should it come back, it loses what it has and the others have not, as far as that was written before the cut",
				zap.String("name", p.name), zap.Uint64("id", id), zap.Time("cut", time.UnixMilli(millis(v.cut))))
		}
	}
	c.cuts++
	c.lastCut, c.waits = now, ""
	if c.forgets {
		for !k.replica.Collect(v.cut, passLeast, func(h attune.KeyHash, was replica.Mark) { k.sketched(h, was, 0) }) {
		}
		return
	}
	k.collected(v.cut)
	c.pass(now)
}
