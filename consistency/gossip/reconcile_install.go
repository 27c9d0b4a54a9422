package gossip

import (
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/consistency/gossip/sketch"
	"github.com/attunekv/attune/replica"
)

// take takes the records that were asked for.
func (r *reconciler) take(rd *reader, cut attune.Version) (ok bool) {
	p := r.pull
	var came []attune.Change
	n := 0
	for ; len(rd.b) > 0; n++ {
		if n == len(p.asked.keys) {
			return false
		}
		count := rd.u8()
		for range count {
			c, ok := rd.held()
			if !ok {
				return false
			}
			came = append(came, c)
		}
		if count == 0 {
			r.missing(p.asked.keys[n], cut)
		}
	}
	if !rd.end() || n == 0 && len(p.asked.keys) > 0 {
		return false
	}
	p.wants = p.wants[n:]
	p.ignorant = r.k.causal && p.asked.flags&tellVector == 0
	now := r.k.clock.mono()
	for i := range came {
		c := &came[i]
		if c.Key.Text != nil {
			c.Key.Hash = r.k.replica.Hash(c.Key.Text)
		}
		r.k.observe(c.Item.Version, now)
		if p.apart {
			p.keep(c)
		} else if r.merge(c, now) {
			p.applied++
		}
	}
	return true
}

// missing takes note that the source has nothing of a key any more.
func (r *reconciler) missing(key uint64, cut attune.Version) {
	r.buf = r.k.replica.Fetch(key, r.buf, func(h replica.Held) {
		if h.Item.Version <= cut {
			r.pull.doomed = append(r.pull.doomed, sketch.Item{Key: key, Mark: uint64(h.Mark)})
		}
	})
}

// keep puts a record aside.
func (p *pull) keep(c *attune.Change) {
	p.bytes += len(c.Item.Value)
	i, known := p.at[c.Key.Hash]
	switch {
	case !known:
		i = len(p.changes)
		p.at[c.Key.Hash] = i
		segment := c.Key.Hash[0] >> 56
		p.inSegment[segment] = append(p.inSegment[segment], i)
		p.changes = append(p.changes, *c)
	case markOf(c).Newer(markOf(&p.changes[i])):
		p.bytes -= len(p.changes[i].Item.Value)
		p.changes[i] = *c
	}
}

// merge has a record take effect.
func (r *reconciler) merge(c *attune.Change, now time.Duration) bool {
	k := r.k
	was, is, applied, _ := k.replica.Merge(c, false, now) // bytes that do not fit are fetched when asked for
	if applied {
		k.sketched(c.Key.Hash, was, is)
		k.noteHeld(c)
		k.remote(c)
	}
	return applied
}

// conclude ends a pull that has all the records, if it has all the updates, too.
func (r *reconciler) conclude(now time.Duration) {
	p := r.pull
	if !p.finished && p.apart {
		p.finished = r.install(now)
	} else if !p.finished {
		p.finished = true
		r.k.raiseFloor(p.floor)
		for _, c := range r.condemned() {
			r.merge(&c, now)
		}
		r.reached(nil, now)
	}
	// A newcomer to a causal cluster has installed records of many moments: it has
	// what belongs together when it is as far as the last of them.
	if p.finished && r.k.covers(p.need) {
		r.succeed(now)
		return
	}
	if p.waiting == 0 {
		p.waiting = now
	} else if now-p.waiting > roundAfter {
		r.nextRound(now)
	}
}

// condemned are the evictions of what is doomed, if it has not changed since.
func (r *reconciler) condemned() (cs []attune.Change) {
	for _, it := range r.pull.doomed {
		r.buf = r.k.replica.Fetch(it.Key, r.buf, func(h replica.Held) {
			if uint64(h.Mark) == it.Mark && !h.Item.Deleted {
				v := h.Item.Version
				cs = append(cs, attune.Change{Key: attune.Key{Hash: h.Key.Hash}, Item: attune.Item{Deleted: true, Version: v}, Prior: v})
			}
		})
	}
	if len(cs) > 0 {
		r.doomed += uint64(len(cs))
		r.k.log.Warn("dropped items that the other controllers deleted, or never saw, while this one was away longer than they remember", zap.Int("items", len(cs)))
	}
	return cs
}

// succeed ends the pull.
func (r *reconciler) succeed(now time.Duration) {
	k, p := r.k, r.pull
	r.pull = nil
	r.took = now - p.began
	k.reconciles++
	k.differing = uint64(p.differing)
	k.repaired += uint64(p.applied)
	if r.backoff = min(max(2*r.backoff, idleEvery), calmMost); p.moved || p.applied > 0 {
		r.backoff = 0
		k.log.Info("took over what another controller has", zap.Uint64("peer", p.from), zap.Int("differing", p.differing),
			zap.Int("records", p.applied), zap.Duration("in", r.took))
	}
	r.calm = now + r.backoff
	if p.done != nil {
		p.done(nil)
	}
}

// reached notes that this member is as far as the source was, and after that took in
// the updates between. What was before these it never had, and cannot send.
func (r *reconciler) reached(between []heldUpdate, now time.Duration) {
	k, p := r.k, r.pull
	for _, d := range p.vector {
		if own := k.reach(d.origin); d.seq > own.seq && d.origin != k.id {
			k.advance(own, d.seq, now)
			k.ring.dropped[d.origin] = max(k.ring.dropped[d.origin], d.seq)
			p.moved = true
		}
	}
	k.noteVector(p.vector)
	for i := range between {
		u := &between[i]
		k.advance(k.reach(u.origin), u.seq, now)
		k.ring.add(u.update)
	}
	if p.cut > k.replica.Collected() {
		k.collected(p.cut)
	}
	k.release(now)
	k.world.stir()
}

// between are the updates held back that lead from how far the source was first to
// how far it was at last; ok if these are all.
func (r *reconciler) between() (us []heldUpdate, ok bool) {
	k, p := r.k, r.pull
	first := make(map[uint64]uint64, len(p.vector))
	for _, d := range p.vector {
		first[d.origin] = d.seq
	}
	for _, d := range p.need {
		if d.origin == k.id {
			continue
		}
		for seq := max(k.seqOf(d.origin), first[d.origin]) + 1; seq <= d.seq; seq++ {
			u, ok := k.held.origin[d.origin][seq]
			if !ok {
				return nil, false
			}
			us = append(us, u)
		}
	}
	return us, true
}

// install has everything that was kept aside take effect in one step, with the
// updates up to the moment of the last record. It reports false, and does nothing,
// if one of these is missing.
func (r *reconciler) install(now time.Duration) bool {
	k, p := r.k, r.pull
	between, ok := r.between()
	if !ok {
		return false
	}
	floor := p.floor
	changes := append(p.changes, r.condemned()...)
	for i := range between {
		rec := &between[i].rec
		k.observe(rec.Version, now)
		if rec.Kind == codec.KindFlush {
			floor = max(floor, rec.Version)
			continue
		}
		c := rec.Change
		if c.Key.Text != nil {
			c.Key.Hash = k.replica.Hash(c.Key.Text)
		}
		changes = append(changes, c)
	}
	// A flush first: it kills what is older, wherever that comes from, and nothing
	// can be written here in between.
	k.raiseFloor(floor)
	applied := make([]bool, len(changes))
	k.replica.MergeAll(changes, func(i int, was, is replica.Mark, ok bool, _ error) {
		if applied[i] = ok; ok {
			p.applied++
			k.sketched(changes[i].Key.Hash, was, is)
		}
	})
	for i := range changes {
		if applied[i] {
			k.noteHeld(&changes[i])
			k.remote(&changes[i])
		}
	}
	r.reached(between, now)
	return true
}
