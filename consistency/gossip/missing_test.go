package gossip

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// first has the nodes of slots hear nothing of the first frame of updates that a sends.
func first(s *simNet, a *simNode, slots ...int) {
	lost := make(map[int]bool)
	s.heard = func(n *simNode, from uint64, kind byte, _ []byte) bool {
		if from != a.id || kind != frameUpdates || !slices.Contains(slots, n.slot) || lost[n.slot] {
			return false
		}
		lost[n.slot] = true
		return true
	}
}

// What was lost on the way comes as soon as later updates show it, and alone.
func TestMissingIsAskedFor(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		s := newSimNet(simConfig{seed: 1, nodes: 3, causal: causal})
		s.run(time.Second)
		a, b := s.nodes[0], s.nodes[1]
		first(s, a, b.slot)
		a.set("lost", bytesOf(1000))
		s.run(5 * time.Millisecond)
		for i := range 50 {
			a.set(fmt.Sprint("k", i), bytesOf(1000))
			s.run(time.Millisecond)
		}
		if n := b.core.held.count(); n < 40 {
			t.Fatalf("%d updates wait", n)
		}
		began := s.now
		if !s.until(time.Second, time.Millisecond, func() bool { return b.core.seqOf(a.id) == a.core.own.seq }) {
			t.Fatal("it does not come")
		}
		if took := s.now - began; took > missingAfter+2*digestEvery {
			t.Errorf("it took %v", took)
		}
		if b.core.held.count() != 0 || b.core.held.bytes != 0 {
			t.Errorf("%d updates wait still", b.core.held.count())
		}
		s.run(2 * time.Second)
		if a.core.resent != 0 || b.core.received > 52 {
			t.Errorf("all was sent again %d times, and %d updates came", a.core.resent, b.core.received)
		}
	})
}

// An origin that is gone is not asked: another one has what it made.
func TestMissingOfTheDead(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: 3, causal: true})
	s.run(time.Second)
	a, b, c := s.nodes[0], s.nodes[1], s.nodes[2]
	first(s, a, c.slot)
	a.set("lost", nil)
	s.run(5 * time.Millisecond)
	a.set("k", nil)
	s.run(5 * time.Millisecond)
	if b.core.seqOf(a.id) != 2 || c.core.seqOf(a.id) != 0 || c.core.held.count() != 1 {
		t.Fatal("nothing was lost")
	}
	id := a.id
	s.leave(a.slot)
	if !s.until(time.Second, time.Millisecond, func() bool { return c.core.seqOf(id) == 2 }) {
		t.Error("it does not come")
	}
}

// What waits for updates that nobody has any more is forgotten, and what others make is
// not held up by it.
func TestMissingForGood(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: 3, causal: true})
	s.run(time.Second)
	a, b, c := s.nodes[0], s.nodes[1], s.nodes[2]
	first(s, a, b.slot, c.slot)
	a.set("lost", nil)
	s.run(5 * time.Millisecond)
	a.set("k", nil)
	s.run(5 * time.Millisecond)
	s.leave(a.slot)
	if b.core.held.count() != 1 || c.core.held.count() != 1 {
		t.Fatal("nothing waits")
	}
	s.run(lostAfter / 2)
	if b.core.held.count() != 1 {
		t.Error("given up too early")
	}
	b.set("other", nil)
	s.run(lostAfter)
	for _, n := range []*simNode{b, c} {
		if n.core.held.count() != 0 || n.core.held.bytes != 0 {
			t.Errorf("%d updates, of %d bytes, wait still", n.core.held.count(), n.core.held.bytes)
		}
	}
	if !s.agreed() || c.core.seqOf(b.id) != 1 {
		t.Error("they do not agree")
	}
}

func FuzzMissing(f *testing.F) {
	f.Add(appendSpans(nil, []span{{1, 1, 1}, {1, 3, 1 << 40}, {77, 2, 9}}))
	f.Add(appendSpans(nil, []span{{77, 9, 9}, {77, 1, 2}, {77, 1, 1}}))
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		if spans, ok := parseSpans(body); ok {
			if again := appendSpans(nil, spans); !slices.Equal(again, body) {
				t.Errorf("%x was read as %x", body, again)
			}
		}
		k := fuzzCore(true)
		k.frame(2, frameUpdates, frameOf(madeBy(77, 1, "k", "v"), madeBy(77, 2, "k", "w"), madeBy(77, 4, "k", "x")))
		k.frame(2, frameMissing, slices.Clone(body))
		k.tick()
		k.flush()
		checkCore(t, k)
	})
}
