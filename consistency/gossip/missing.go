package gossip

import (
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune/cluster"
)

const (
	// missingAfter is how long updates that others overtook may still be on their way
	// before they are asked for, and asked for again.
	missingAfter = 2 * digestEvery
	// missingBytes is about the most that one who asks is sent at a time.
	missingBytes = 1 << 20
	// maxSpans is how many gaps of an origin are asked for at a time.
	maxSpans = 256
	// lostAfter is how long updates are kept behind some that nobody has any more.
	lostAfter = 10 * time.Second
)

// span is updates of one origin.
type span struct{ origin, first, last uint64 }

// gaps are the updates of p's origin that did not come, though later ones did; none if the
// next one is here, and waits for another origin.
func (k *core) gaps(p *progress) (spans []span) {
	next := p.seq + 1
	for _, seq := range slices.Sorted(maps.Keys(k.held.origin[p.origin])) {
		switch {
		case seq == p.seq+1:
			return nil
		case seq > next && len(spans) < maxSpans:
			spans = append(spans, span{p.origin, next, seq - 1})
		}
		next = max(next, seq+1)
	}
	return spans
}

// askMissing has updates sent again that others overtook. The network lost them, or a
// connection broke: a peer that hears nothing for a while would be sent everything again,
// but that takes longer, and is more.
func (k *core) askMissing(now time.Duration) {
	asks := make(map[uint64][]span)
	// In an order that all runs of a simulation share.
	for _, origin := range slices.Sorted(maps.Keys(k.held.origin)) {
		p := k.reach(origin)
		switch {
		case k.held.has(origin, p.seq+1): // it waits for another origin
			p.overtaken, p.asked = 0, 0
			continue
		case p.overtaken == 0 || p.moved >= p.overtaken:
			p.overtaken, p.asked = max(now, 1), 0
			continue
		case now-max(p.overtaken, p.asked) < missingAfter:
			continue
		}
		spans := k.gaps(p)
		if len(spans) == 0 {
			continue
		}
		from := k.whoHas(&spans[0], p.asks, now)
		if from == nil {
			if now-p.overtaken > lostAfter {
				k.giveUp(p)
			}
			continue
		}
		p.asked = now
		p.asks++
		asks[from.id] = append(asks[from.id], spans...)
	}
	for _, id := range slices.Sorted(maps.Keys(asks)) {
		k.world.send(id, cluster.Control, frameMissing, appendSpans(nil, asks[id]))
	}
}

// whoHas is whom to ask for updates: their origin and other neighbours that have them,
// in turn, as one of them may not hear this member. Nil: none has.
func (k *core) whoHas(s *span, turn int, now time.Duration) *peer {
	var have []*peer
	for _, p := range k.near {
		switch {
		case !p.alive || p.heard == 0 || now-p.heard > 2*idleEvery:
		case p.id == s.origin:
			have = slices.Insert(have, 0, p)
		case p.vv[s.origin].seq >= s.first:
			have = append(have, p)
		}
	}
	if len(have) == 0 {
		return nil
	}
	return have[turn%len(have)]
}

// giveUp forgets what waits for updates that are lost with their origin: it cannot take
// effect without them, and would be in the way of others for good. If the origin was only
// out of reach, it sends them all again.
func (k *core) giveUp(p *progress) {
	waiting := k.held.origin[p.origin]
	k.log.Warn("updates are given up that wait for earlier ones, which no controller in reach has: if the one that made them is gone, they are lost with it", zap.Int("updates", len(waiting)))
	for seq := range waiting {
		k.held.remove(p.origin, seq)
	}
}

// missing takes a MISSING frame: who asks is sent what the ring has of it, in the order
// in which it took effect here.
func (k *core) missing(from uint64, body []byte) {
	p := k.peers[from]
	spans, ok := parseSpans(body)
	if !ok || p == nil {
		return
	}
	wanted := make(map[uint64][]span)
	for _, s := range spans {
		wanted[s.origin] = append(wanted[s.origin], s)
	}
	// The updates of an origin are in the ring in their order, and the spans in theirs.
	left, pos := len(wanted), k.sendable()
	for ; left > 0 && pos > k.ring.first; pos-- {
		u := k.ring.at(pos - 1)
		if of := wanted[u.origin]; len(of) > 0 && u.seq == of[0].first {
			left--
		}
	}
	for sent := 0; pos < k.sendable() && sent < missingBytes; {
		var frame []byte
		var prev update
		for ; pos < k.sendable() && len(frame) < frameBytes; pos++ {
			u := k.ring.at(pos)
			of, asked := wanted[u.origin]
			if !asked {
				continue
			}
			for len(of) > 0 && of[0].last < u.seq {
				of = of[1:]
			}
			if wanted[u.origin] = of; len(of) == 0 || u.seq < of[0].first {
				continue
			}
			if frame == nil {
				frame = append(make([]byte, 0, 1<<10), 0)
			}
			frame = appendUpdate(frame, prev, u)
			prev = u
		}
		if frame != nil && !k.world.send(p.id, cluster.Log, frameUpdates, frame) {
			return // it asks again
		}
		sent += len(frame)
		k.sent += uint64(len(frame))
	}
}
