package gossip

import (
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
)

// cutting is an agreement as its coordinator sees it.
type cutting struct {
	*vow
	step    byte
	answers map[uint64]cutFrame // to that step
	gathers bool                // the others must take over what is here
	todo    []uint64            // who is still to be taken over from
	moved   time.Duration       // when there was progress
	said    time.Duration
	told    int // commits
}

// begin starts an agreement, if there is something to gain by it and nothing
// against it.
func (c *cutter) begin(now time.Duration) {
	k := c.k
	c.look(now)
	first := c.coordinator()
	st := k.replica.Stats()
	worth := st.Tombstones > 0 && (st.Tombstones*fewDead >= st.Items || now-c.lastCut >= rareCuts*c.every)
	if first != k.id {
		if worth || len(c.expelled) > 0 {
			c.say(first, cutFrame{step: stepWish, expelled: slices.Sorted(maps.Keys(c.expelled))})
		}
		return
	}
	worth, c.wished = worth || c.wished, false
	if !worth || !k.synced || c.behind || c.collecting() || c.vow != nil || k.skewed.Load() {
		return
	}
	f, why := c.proposal(now, st.Tombstones)
	if why != "" {
		c.wait(why, now)
		return
	}
	reply := c.prepare(k.id, &f, now)
	if reply.step == stepRefuse {
		c.wait(reply.why.String(), now)
		return
	}
	c.run = &cutting{vow: c.vow, step: stepPrepare, answers: make(map[uint64]cutFrame), moved: now, said: now}
	c.toAll(f)
	c.answered(k.id, &reply, now)
}

// coordinator is the lowest id of those that are alive and serve, as far as this
// member knows.
func (c *cutter) coordinator() uint64 {
	for _, id := range c.k.order {
		if p := c.k.peers[id]; p != nil && p.alive && (p.heard == 0 || p.ready || !p.neighbour) {
			return id
		} else if id == c.k.id {
			break
		}
	}
	return c.k.id
}

// proposal is the cut to agree on, or why there cannot be one.
func (c *cutter) proposal(now time.Duration, dead int64) (f cutFrame, why string) {
	k := c.k
	party := c.known
	for _, id := range k.order {
		if p := k.peers[id]; id == k.id || p != nil && p.alive {
			if p != nil && p.heard != 0 && p.neighbour && now-p.heard > silentFor {
				return f, p.name + " is silent" // and newcomers would wait for nothing
			}
			continue
		}
		f.expelled = append(f.expelled, id)
		party ^= mix(id, 1)
	}
	n, here := len(k.order), len(k.order)-len(f.expelled)
	majority := 2*here > n || 2*here == n && !slices.Contains(f.expelled, k.order[0])
	for _, id := range f.expelled {
		p := k.peers[id]
		if p == nil {
			return f, "a member is not known here"
		}
		away := now - c.absent[id]
		switch {
		case c.expelled[id]:
		case majority && away >= c.maxAge:
		case dead > c.maxDead && away >= minAbsent:
			// Else memory fills with the dead.
		default:
			return f, p.name + " is away"
		}
	}
	age := 2 * k.maxSkew
	if !majority {
		age += minorityLag
	}
	f.step, f.base, f.party = stepPrepare, k.replica.Collected(), party
	// With the node in it, no two coordinators ever propose the same.
	f.cut = versionAt(k.clock.now()-age.Milliseconds()) | attune.Version(k.clock.node)
	if f.cut <= f.base {
		return f, "nothing is old enough"
	}
	return f, ""
}

// toAll sends f to all that take part.
func (c *cutter) toAll(f cutFrame) {
	body := f.append(nil)
	for _, id := range c.run.members {
		if id != c.k.id {
			c.k.world.send(id, cluster.Control, frameCut, body)
		}
	}
}

// answered takes a member's answer to the step under way, this one's included.
func (c *cutter) answered(from uint64, f *cutFrame, now time.Duration) {
	r := c.run
	if r == nil || r.cut != f.cut || !r.takesPart(from) || r.step == stepCommit {
		return
	}
	if f.step == stepRefuse {
		name := ""
		if p := c.k.peers[from]; p != nil {
			name = p.name
		}
		c.abort(name+": "+f.why.String(), now)
		return
	}
	if f.step != r.step+1 {
		return
	}
	if _, again := r.answers[from]; !again {
		r.moved = now
	}
	r.answers[from] = *f
	if len(r.answers) < len(r.members) {
		return
	}
	switch r.step {
	case stepPrepare:
		c.fixed(now)
	case stepCover:
		for _, a := range r.answers {
			if a.rest != c.rest(r.vow) {
				return // it is asked again, and comes, or not
			}
		}
		c.commit(now)
	}
}

// fixed goes on when all have given their vow.
func (c *cutter) fixed(now time.Duration) {
	r := c.run
	own := r.answers[c.k.id]
	unsure, equal := false, true
	for _, id := range r.members {
		a := r.answers[id]
		if a.seq != 0 {
			r.seqs = append(r.seqs, dependency{id, a.seq})
		}
		unsure = unsure || a.unsure
		equal = equal && a.cell == own.cell && a.floor == own.floor
	}
	if unsure && !equal && !c.trusts {
		r.gathers = true
		for _, id := range r.members {
			if id != c.k.id {
				r.todo = append(r.todo, id)
			}
		}
	}
	r.step = 0
	c.gather(now)
}

// gather takes over what the members have, one after the other, before it asks
// them to cover.
func (c *cutter) gather(now time.Duration) {
	r := c.run
	if len(r.todo) > 0 {
		if p := c.k.peers[r.todo[0]]; p != nil {
			c.pull(p, now, func(err error) {
				if c.run == r && err == nil {
					r.todo, r.moved = r.todo[1:], c.k.clock.mono()
				}
			})
		}
		if len(r.todo) > 0 {
			return
		}
	}
	r.step, r.said = stepCover, now
	clear(r.answers)
	c.toAll(c.cover())
	r.asked = true
	c.answer(now)
}

func (c *cutter) cover() cutFrame {
	return cutFrame{step: stepCover, cut: c.run.cut, gather: c.run.gathers, seqs: c.run.seqs}
}

func (c *cutter) commit(now time.Duration) {
	r := c.run
	if c.vow != r.vow {
		return // drive aborts
	}
	c.adopt(now)
	r.step, r.told, r.said = stepCommit, 1, now
	c.toAll(cutFrame{step: stepCommit, cut: r.cut})
}

// abort gives up what this member coordinates.
func (c *cutter) abort(why string, now time.Duration) {
	c.toAll(cutFrame{step: stepAbort, cut: c.run.cut})
	if c.vow == c.run.vow {
		c.release()
	}
	c.run, c.due = nil, now+c.interval()
	c.aborted++
	c.wished = true
	c.wait(why, now)
}

// wait notes why there is no cut, and tells if that goes on.
func (c *cutter) wait(why string, now time.Duration) {
	c.waits = why
	if now-max(c.lastCut, c.warned) >= warnEvery {
		c.warned = now
		c.k.log.Warn("deleted and expired items are remembered until all controllers know of them: they take memory, and one of the others holds that up",
			zap.String("why", why), zap.Int64("remembered", c.k.replica.Stats().Tombstones))
	}
}

// drive says again what may have been lost, and gives up when nothing moves.
func (c *cutter) drive(now time.Duration) {
	r := c.run
	patience := cutPatience
	if r.gathers {
		patience = pullMost
	}
	switch {
	case r.step == stepCommit:
		if now-r.said < saidAgain {
			return
		}
		if r.told++; r.told > commits {
			c.run, c.due = nil, now+c.interval()
			return
		}
		r.said = now
		c.toAll(cutFrame{step: stepCommit, cut: r.cut})
		return
	case c.vow != r.vow:
		c.abort("another cut came between", now)
		return
	case now-r.moved > patience:
		c.abort("no answer", now)
		return
	}
	r.heard = now
	if r.step == 0 {
		c.gather(now)
	}
	if now-r.said < saidAgain {
		return
	}
	r.said = now
	switch r.step {
	case stepCover:
		r.answered = false
		c.toAll(c.cover())
	default:
		// To those who wait meanwhile it says that their vow still counts.
		f := cutFrame{step: stepPrepare, cut: r.cut, base: c.k.replica.Collected(), party: c.party(r.vow), expelled: r.expelled}
		c.toAll(f)
	}
}

func (c *cutter) party(v *vow) (hash uint64) {
	for _, id := range v.members {
		hash ^= mix(id, 1)
	}
	return hash
}
