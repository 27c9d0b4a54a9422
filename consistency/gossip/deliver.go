package gossip

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/kvadapter"
)

// heldBytes bounds what waits for its dependencies. More is dropped: it is sent
// again by whoever has it.
const heldBytes = 16 << 20

// held are updates that came before what they depend on, or before their turn.
type held struct {
	bytes  int
	origin map[uint64]map[uint64]heldUpdate
	// passed says that there may be some that took effect otherwise.
	passed bool
}

type heldUpdate struct {
	update
	deps []dependency
	rec  codec.Record
	// frame is the bytes of the frame that data is a piece of, 0 if of none: who
	// keeps the one keeps the other.
	frame int
}

// own has u keep its own bytes alone in memory, unless they are most of a frame. It
// reports whether they were copied.
func (u *heldUpdate) own() (copied bool) {
	if copied = len(u.data) < u.frame/2; copied {
		u.data = bytes.Clone(u.data)
	}
	u.frame = 0
	return copied
}

func (h *held) init() { h.origin = make(map[uint64]map[uint64]heldUpdate) }

func (h *held) add(u heldUpdate) bool {
	waiting := h.origin[u.origin]
	if _, ok := waiting[u.seq]; ok {
		return true
	}
	if h.bytes+cost(&u.update) > heldBytes {
		return false
	}
	if waiting == nil {
		waiting = make(map[uint64]heldUpdate)
		h.origin[u.origin] = waiting
	}
	if u.own() {
		u.rec, _ = u.record()
	}
	u.deps = append([]dependency(nil), u.deps...)
	waiting[u.seq] = u
	h.bytes += cost(&u.update)
	return true
}

func (h *held) has(origin, seq uint64) bool {
	_, ok := h.origin[origin][seq]
	return ok
}

func (h *held) remove(origin, seq uint64) {
	waiting := h.origin[origin]
	u, ok := waiting[seq]
	if !ok {
		return
	}
	h.bytes -= cost(&u.update)
	if delete(waiting, seq); len(waiting) == 0 {
		delete(h.origin, origin)
	}
}

// count is how many there are.
func (h *held) count() (n int) {
	for _, w := range h.origin {
		n += len(w)
	}
	return n
}

// lookahead is how many changes are read before they take effect.
const lookahead = 32

// updates takes an UPDATES frame.
func (k *core) updates(from uint64, body []byte) {
	if k.peers[from] == nil {
		return
	}
	if k.swamped() {
		k.overflowed++
		return
	}
	r := reader{b: body}
	flags := r.u8()
	now := k.clock.mono()
	var prev update
	progress, used := false, 0
	for !r.bad && len(r.b) > 0 {
		batch, deps := k.batch[:0], k.deps[:0]
		for len(batch) < lookahead && !r.bad && len(r.b) > 0 {
			batch = batch[:len(batch)+1]
			used = max(used, len(batch))
			u, n := &batch[len(batch)-1], len(deps)
			if u.deps = deps[n:]; !r.next(&prev, u) {
				r.bad = true
				batch = batch[:len(batch)-1]
				break
			}
			if n+len(u.deps) <= cap(deps) {
				deps = deps[:n+len(u.deps)]
			}
			prev, u.frame = u.update, len(body)
			k.received++
			c := &u.rec.Change
			if n := len(c.Item.Value); n >= kvadapter.Large && n < len(body)/2 {
				c.Item.Value = bytes.Clone(c.Item.Value) // the store keeps it, and would keep the frame
			}
			if c.Key.Text != nil {
				// Most of the time that a change takes goes to waiting for memory.
				c.Key.Hash = k.replica.Hash(c.Key.Text)
				k.replica.Prefetch(c.Key)
			}
		}
		for i := range batch {
			progress = k.deliver(&batch[i], now) || progress
		}
	}
	clear(k.batch[:used])
	if r.bad {
		k.log.Warn("a peer sent updates that cannot be read: are all controllers of one version?")
	}
	if progress {
		k.release(now)
		k.world.stir()
	}
	switch {
	case flags&wantDigest == 0:
	case k.durable() && progress:
		k.peers[from].owed = true // it is told when all of it is in the journal
	default:
		k.digestTo(from, now)
	}
}

// deliver has an update take effect if it may, and reports whether its origin's
// vector entry grew.
func (k *core) deliver(u *heldUpdate, now time.Duration) bool {
	p := k.reach(u.origin)
	switch {
	case u.seq <= p.seq || u.origin == k.id:
		k.duplicates++
		return false
	case u.seq == p.seq+1 && k.covers(u.deps):
		k.accept(u, p, now)
		return true
	case !k.causal:
		// Newest wins, so it may take effect before its turn. Its turn comes when the
		// gap is filled; if there is no room to remember it, it is sent again then.
		k.apply(&u.rec, now)
		k.held.add(*u)
		return false
	}
	if k.held.add(*u) {
		k.heldBack++
	} else {
		k.overflowed++
	}
	return false
}

func (k *core) accept(u *heldUpdate, p *progress, now time.Duration) {
	k.apply(&u.rec, now)
	k.held.remove(u.origin, u.seq)
	k.advance(p, u.seq, now)
	if len(u.data) >= ringOwn {
		u.own()
	}
	k.ring.add(u.update)
}

// covers reports whether everything that an update depends on took effect.
func (k *core) covers(deps []dependency) bool {
	if !k.causal {
		return true
	}
	for _, d := range deps {
		if k.seqOf(d.origin) < d.seq {
			return false
		}
	}
	return true
}

// release has what was held back take effect, as far as it may by now.
func (k *core) release(now time.Duration) {
	for again := true; again; {
		again = false
		// In an order that all runs of a simulation share.
		for _, origin := range slices.Sorted(maps.Keys(k.held.origin)) {
			p, waiting := k.reach(origin), k.held.origin[origin]
			for {
				u, ok := waiting[p.seq+1]
				if !ok || !k.covers(u.deps) {
					break
				}
				k.accept(&u, p, now)
				again = true
			}
		}
	}
	if !k.held.passed {
		return
	}
	k.held.passed = false
	for origin, waiting := range k.held.origin {
		for seq := range waiting {
			if seq <= k.seqOf(origin) {
				k.held.remove(origin, seq)
			}
		}
	}
}
