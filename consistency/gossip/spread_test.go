package gossip

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/replica"
)

// bytesOf has a value of so many.
func bytesOf(n int) []byte { return []byte(strings.Repeat("v", n)) }

// arrives runs until nodes have version v of key, and returns how long that took.
func arrives(t *testing.T, s *simNet, key string, value []byte, from *simNode, to ...*simNode) time.Duration {
	t.Helper()
	began := s.now
	v := from.set(key, value)
	if !s.until(30*time.Second, time.Millisecond, func() bool {
		return !slices.ContainsFunc(to, func(n *simNode) bool { _, has := n.get(key); return has != v })
	}) {
		t.Fatalf("%s did not arrive", key)
	}
	return s.now - began
}

func TestRingIsBounded(t *testing.T) {
	r := newRing(1 << 10)
	for seq := uint64(1); seq <= 3000; seq++ {
		r.add(update{origin: 1 + seq%2, seq: seq, data: bytesOf(100)})
		if r.bytes > 1<<10 {
			t.Fatalf("%d bytes", r.bytes)
		}
		if u := r.at(r.next() - 1); u.seq != seq {
			t.Fatalf("the newest is %d, want %d", u.seq, seq)
		}
	}
	if n := r.next() - r.first; n != 7 { // of 140 each
		t.Errorf("%d are kept", n)
	}
	if r.dropped[1] != 2992 || r.dropped[2] != 2993 {
		t.Errorf("dropped: %v", r.dropped)
	}
	if len(r.entries) > 4096 {
		t.Errorf("%d places for 7", len(r.entries))
	}
	r.add(update{origin: 1, seq: 3002, data: bytesOf(5000)}) // the newest is always kept
	if r.next()-r.first != 1 {
		t.Error("others are kept beyond the limit")
	}
	// What is not in the journal yet is kept, whatever it takes.
	r.keep = r.next()
	for seq := uint64(3003); seq < 3103; seq++ {
		r.add(update{origin: 1, seq: seq, data: bytesOf(100)})
	}
	if r.next()-r.keep != 100 || r.first != r.keep {
		t.Errorf("kept %d to %d, want %d", r.first, r.next(), r.keep)
	}
	r.keep = r.next()
	if r.add(update{origin: 1, seq: 3103, data: bytesOf(100)}); r.bytes > 1<<10 {
		t.Errorf("%d bytes after they were written", r.bytes)
	}
}

// TestTheRingKeepsWhatItIsGiven: small updates and large ones, in any order; it changes
// none that it was given, and what is dropped takes no memory.
func TestTheRingKeepsWhatItIsGiven(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	sizes := []int{0, 1, 100, 3000, ringOwn - 1, ringOwn, chunkSize, 2 * chunkSize}
	for range 20 {
		const limit = 2 << 20
		r := newRing(limit)
		given := make(map[uint64][]byte) // by seq
		for seq := uint64(1); seq <= 2000; seq++ {
			n := sizes[rng.IntN(len(sizes))]
			if rng.IntN(3) > 0 {
				n = 100
			}
			data := bytes.Repeat([]byte{byte(seq)}, n)
			given[seq] = data
			r.add(update{origin: 1, seq: seq, data: data})
			for _, pos := range []uint64{r.first, r.first + rng.Uint64N(r.next()-r.first), r.next() - 1} {
				if u := r.at(pos); len(u.data) != len(given[u.seq]) || bytes.Count(u.data, []byte{byte(u.seq)}) != len(u.data) {
					t.Fatalf("at %d is update %d, of %d bytes that are not its own", pos, u.seq, len(u.data))
				}
			}
		}
		for seq, data := range given {
			if bytes.Count(data, []byte{byte(seq)}) != len(data) {
				t.Fatalf("update %d was written over", seq)
			}
		}
		takes := cap(r.spare)
		for _, c := range r.chunks {
			takes += cap(c.data)
		}
		if most := limit + 3*chunkSize; takes > most {
			t.Errorf("%d bytes are kept in %d chunks, at most %d should be", takes, len(r.chunks), most)
		}
	}
}

// madeBy is a change of an origin that is nobody here, encoded.
func madeBy(origin, seq uint64, key, value string, deps ...dependency) update {
	c := attune.Change{Key: attune.Key{Text: []byte(key)}, Item: attune.Item{Value: []byte(value), Size: len(value)}, Prior: attune.AnyVersion}
	c.Stamp(versionAt(simEpoch) + attune.Version(seq))
	var b codec.Builder
	b.BeginBare()
	b.Change(&c)
	return update{origin, seq, appendData(nil, deps, b.Raw())}
}

// frameOf is an UPDATES frame.
func frameOf(us ...update) []byte {
	b := []byte{0}
	for i := range us {
		b = appendUpdate(b, update{}, us[i])
	}
	return b
}

// TestTheRingKeepsNoFrames: a few new changes among many that are known do not keep
// all of them in memory.
func TestTheRingKeepsNoFrames(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		s := newSimNet(simConfig{seed: 1, nodes: 2, causal: causal})
		s.run(time.Second)
		k, from := s.nodes[1].core, s.nodes[0].id
		var us []update
		for seq := range uint64(100) {
			us = append(us, madeBy(77, seq+1, fmt.Sprint("k", seq+1), "v"))
		}
		k.frame(from, frameUpdates, frameOf(us...))
		frame := frameOf(append(us, madeBy(77, 101, "k101", "v"), madeBy(77, 103, "k103", "v"))...)
		k.frame(from, frameUpdates, frame)
		clear(frame) // were it kept, it would be destroyed
		if causal {
			if u := k.held.origin[77][103]; string(u.rec.Change.Key.Text) != "k103" {
				t.Errorf("held back, and a piece of a frame: %+v", u)
			}
		}
		k.frame(from, frameUpdates, frameOf(madeBy(77, 102, "k102", "v"), madeBy(77, 103, "k103", "v")))
		if k.seqOf(77) != 103 || k.held.count() != 0 {
			t.Fatalf("at %d, %d held back", k.seqOf(77), k.held.count())
		}
		seq := uint64(0)
		for pos := k.ring.first; pos < k.ring.next(); pos++ {
			u := k.ring.at(pos)
			seq++
			if rec, ok := u.record(); !ok || u.seq != seq || string(rec.Change.Key.Text) != fmt.Sprint("k", seq) {
				t.Errorf("the ring has %+v, want %d", rec, seq)
			}
		}
	})
}

// TestBehindTheRing: who lacks more than anybody keeps takes it over.
func TestBehindTheRing(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		s := newSimNet(simConfig{seed: 1, nodes: 3, causal: causal})
		s.run(time.Second)
		for _, n := range s.nodes {
			n.core.ring.limit = 4 << 10
		}
		s.partition(func(from, to int) bool { return from == 2 || to == 2 })
		for i := range 200 {
			s.nodes[i%2].set(fmt.Sprint("k", i), bytesOf(100))
			s.run(time.Millisecond)
		}
		s.partition(nil)
		healed := s.now
		if !s.until(15*time.Second, 50*time.Millisecond, s.agreed) {
			t.Fatal("they do not agree")
		}
		if took := s.now - healed; took > lagFor/2 {
			t.Errorf("%v until they agree: that nobody keeps what is missing can be told at once", took)
		}
		if s.nodes[2].core.reconciles == 0 {
			t.Error("and nothing was taken over: what did this test?")
		}
		if d := arrives(t, s, "after", nil, s.nodes[0], s.nodes[1:]...); d > 20*time.Millisecond {
			t.Errorf("the next change took %v", d)
		}
	})
}

// TestRelayWhileTheDirectWayIsCut: within about a second of the cut changes come by
// way of a third, and then as fast as ever, for as long as it lasts.
func TestRelayWhileTheDirectWayIsCut(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		for name, cut := range map[string]func(from, to int) bool{
			"both ways": func(from, to int) bool { return from+to == 2 && from != to },
			"one way":   func(from, to int) bool { return from == 0 && to == 2 },
		} {
			t.Run(name, func(t *testing.T) {
				s := newSimNet(simConfig{seed: 1, nodes: 3, causal: causal})
				s.run(time.Second)
				s.partition(cut)
				a, b, c := s.nodes[0], s.nodes[1], s.nodes[2]
				if d := arrives(t, s, "first", nil, a, c); d > 1300*time.Millisecond {
					t.Errorf("the first change took %v", d)
				}
				slow := 0
				for i := range 300 {
					if d := arrives(t, s, fmt.Sprint("k", i), nil, a, c); d > 30*time.Millisecond {
						slow++
						t.Logf("change %d took %v", i, d)
					}
					s.run(100 * time.Millisecond)
				}
				if slow > 0 {
					t.Errorf("%d of 300 changes were slow", slow)
				}
				s.partition(nil)
				s.run(3*time.Second + relayFor + time.Second)
				if len(b.core.peers[c.id].resend) > 0 {
					t.Error("still relayed, though all is healed")
				}
				sent := b.core.sent
				for i := range 20 {
					arrives(t, s, fmt.Sprint("l", i), nil, a, c)
				}
				if b.core.sent != sent {
					t.Error("relayed, though all is healed")
				}
			})
		}
	})
}

func TestHeldBackIsBounded(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: 2, causal: true})
	s.run(time.Second)
	k, missing := s.nodes[1].core, true
	s.heard = func(n *simNode, _ uint64, kind byte, body []byte) bool {
		return n == s.nodes[1] && kind == frameUpdates && missing && len(body) < 1000
	}
	s.nodes[0].set("first", nil) // is lost as long as missing
	s.run(10 * time.Millisecond)
	for i := range 80 {
		s.nodes[0].set(fmt.Sprint("k", i), bytesOf(300<<10))
		s.run(2 * time.Millisecond)
	}
	if k.held.bytes > heldBytes || k.held.bytes < heldBytes/2 || k.overflowed == 0 {
		t.Errorf("%d bytes held back, %d overflowed", k.held.bytes, k.overflowed)
	}
	missing = false
	if !s.until(20*time.Second, 10*time.Millisecond, s.agreed) {
		t.Fatal("they do not agree")
	}
	if k.held.bytes != 0 || k.held.count() != 0 {
		t.Errorf("%d bytes of %d changes are held back still", k.held.bytes, k.held.count())
	}
}

// TestDigestsAreLost: a peer that missed some asks for all of it.
func TestDigestsAreLost(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: 2})
	s.run(time.Second)
	a, b := s.nodes[0], s.nodes[1]
	lost, fulls := true, 0
	s.heard = func(n *simNode, _ uint64, kind byte, _ []byte) bool {
		if n == b && kind == frameFull {
			fulls++
		}
		return n == a && kind == frameDigest && lost
	}
	a.set("k", nil)
	s.run(200 * time.Millisecond) // b has told, once
	if a.core.peers[b.id].vv[a.id].seq != 0 {
		t.Fatal("a digest came through")
	}
	lost = false
	s.run(2 * idleEvery)
	if p := a.core.peers[b.id]; p.vv[a.id].seq != 1 || p.hash != p.told || p.hash != a.core.hash || fulls != 1 {
		t.Errorf("%+v after %d questions", p, fulls)
	}
	// Whatever came to be wrong.
	p := a.core.peers[b.id]
	p.vv[99], p.hash = heardOf{seq: 9}, p.hash^mix(99, 9)
	s.run(2 * idleEvery)
	if p.vv[a.id].seq != 1 || p.vv[99].seq != 0 || fulls != 2 {
		t.Errorf("%+v after %d questions", p, fulls)
	}
	before := s.nodes[1].out.bytes[frameDigest-frameUpdates]
	s.run(10 * time.Second)
	if n := s.nodes[1].out.frames[frameDigest-frameUpdates]; n > 40 {
		t.Errorf("%d digests, of them %d bytes at rest", n, s.nodes[1].out.bytes[frameDigest-frameUpdates]-before)
	}
}

// TestResendingIsCautious: a peer that takes nothing is sent all of it again once, and
// then no more than the beginning; when it takes that, the rest follows at once.
func TestResendingIsCautious(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: 2})
	s.run(time.Second)
	deaf := true
	s.heard = func(n *simNode, _ uint64, kind byte, _ []byte) bool {
		return deaf && n == s.nodes[1] && (kind == frameUpdates || kind == frameCellsOf)
	}
	const many, size = 40, 30_000
	for i := range many {
		s.nodes[0].set(fmt.Sprint("k", i), bytesOf(size))
		s.run(time.Millisecond)
	}
	s.run(2 * time.Second)
	k := s.nodes[0].core
	if k.resent != 1 {
		t.Errorf("all of it was sent again %d times", k.resent)
	}
	sent := k.sent
	s.run(20 * time.Second)
	if again := k.sent - sent; again < 20*frameBytes || again > 50*(frameBytes+size) || k.resent != 1 {
		t.Errorf("%d bytes in 20 s, and all of it %d times", again, k.resent)
	}
	deaf = false
	began := s.now
	if !s.until(2*time.Second, time.Millisecond, s.agreed) {
		t.Fatal("they do not agree")
	}
	if took := s.now - began; took > stuckAfter+3*digestEvery {
		t.Errorf("it had all of it after %v", took)
	}
}

// TestResendingWhereMostIsLost: how long it was bad does not matter once it is not,
// though there always is something new, so that nobody reconciles.
func TestResendingWhereMostIsLost(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		var worst time.Duration
		for seed := range uint64(20) {
			s := newSimNet(simConfig{seed: seed, nodes: 3, causal: causal})
			s.run(time.Second)
			lossy, dice := true, rand.New(rand.NewPCG(seed, 1))
			s.heard = func(*simNode, uint64, byte, []byte) bool { return lossy && dice.IntN(100) < 60 }
			write := func(during time.Duration) {
				for end := s.now + during; s.now < end; s.run(5 * time.Millisecond) {
					s.nodes[int(s.now/(5*time.Millisecond))%3].set(fmt.Sprint("k", s.now), bytesOf(500))
				}
			}
			write(4 * time.Second)
			lossy = false
			began := s.now
			for _, from := range s.nodes {
				made := from.core.own.seq
				for _, to := range s.nodes {
					for to.core.seqOf(from.core.id) < made {
						if write(10 * time.Millisecond); s.now-began > 20*time.Second {
							t.Fatalf("seed %d: it does not come", seed)
						}
					}
				}
			}
			worst = max(worst, s.now-began)
		}
		t.Log("at most", worst)
		if worst > 2*stuckAfter {
			t.Errorf("what was written while most was lost came up to %v after", worst)
		}
	})
}

// full is a world whose queues are full.
type fullWorld struct {
	*simNode
	full bool
}

func (w *fullWorld) send(to uint64, class cluster.Class, kind byte, body []byte) bool {
	return !w.full && w.simNode.send(to, class, kind, body)
}

// TestQueuesAreFull: what could not be sent is sent later, though nothing is written
// any more.
func TestQueuesAreFull(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: 3})
	s.run(time.Second)
	w := &fullWorld{s.nodes[0], true}
	w.core.world = w
	for i := range 10 {
		w.set(fmt.Sprint("k", i), nil)
		s.run(time.Millisecond)
	}
	w.full = false
	if !s.until(2*time.Second, 10*time.Millisecond, s.agreed) {
		t.Error("they do not agree")
	}
}

// TestNodeBitsAreDistinct: two members whose clocks could issue one version for two
// changes part, whoever came first, and also if they came together.
func TestNodeBitsAreDistinct(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: 5})
	for _, together := range []bool{false, true} {
		for i, n := range s.nodes {
			k := n.core
			k.mu.Lock()
			k.clock.node = 5
			if k.synced = together; !together && i == 0 {
				k.synced = true
			}
			k.mu.Unlock()
		}
		s.run(2 * time.Second)
		if !together {
			for _, n := range s.nodes[1:] {
				n.core.mu.Lock()
				n.core.join()
				n.core.mu.Unlock()
				s.run(2 * time.Second)
			}
		}
		s.run(5 * time.Second)
		seen := map[uint64]bool{}
		for _, n := range s.nodes {
			if bits := n.core.clock.node; seen[bits] || bits >= 1<<nodeBits {
				t.Errorf("together %v: %d again", together, bits)
			}
			seen[n.core.clock.node] = true
		}
	}
}

// TestAllNodeBits: as long as there are some left, one that joins finds them.
func TestAllNodeBits(t *testing.T) {
	k, _ := loneCore(t)
	for i := range uint64(1<<nodeBits - 1) {
		k.peers[i+1] = &peer{id: i + 1, heard: 1, node: uint16(i)}
	}
	if k.join(); k.clock.node != 1<<nodeBits-1 {
		t.Errorf("picked %d", k.clock.node)
	}
}

// TestSkewedMayNotWrite: who is far from the median finds out, and the others go on.
func TestSkewedMayNotWrite(t *testing.T) {
	const noticed = 2*offsetTurn + 2*time.Second
	for _, skew := range []time.Duration{time.Hour, -time.Hour} {
		for _, jumps := range []bool{false, true} {
			s := newSimNet(simConfig{seed: 1, nodes: 3})
			if jumps {
				s.run(noticed)
			}
			s.nodes[2].skew = skew
			s.run(noticed)
			for i, n := range s.nodes {
				if got, want := n.core.skewed.Load(), i == 2; got != want {
					t.Errorf("%v, jumps %v: %s skewed: %v", skew, jumps, n.name, got)
				}
				if n.core.clock.offset.Load() != 0 {
					t.Errorf("%v, jumps %v: %s was slewed", skew, jumps, n.name)
				}
			}
			s.nodes[2].skew = 0
			s.run(noticed)
			if s.nodes[2].core.skewed.Load() {
				t.Errorf("%v, jumps %v: skewed for ever", skew, jumps)
			}
		}
	}
}

// loneCore is one of which nobody hears.
func loneCore(t testing.TB) (*core, *replica.Replica) {
	b := embedded(t)
	t.Cleanup(func() { b.Close() })
	r := replica.Open(replica.Options{Backend: b, Seed: 1, Gen: 1, Tombstones: true})
	start := time.Now()
	return newCore(1, false, r, newClock(1, start.UnixMilli(), func() time.Duration { return time.Since(start) }), nowhere{}, zap.NewNop()), r
}

var fuzzNode = &simNode{net: &simNet{}}

// fuzzCore is a member that knows another, 2.
func fuzzCore(causal bool) *core {
	r := replica.Open(replica.Options{Backend: &simStore{node: fuzzNode, recs: map[attune.KeyHash]simRecord{}}, Seed: 1, Gen: 1, Tombstones: true})
	k := newCore(1, causal, r, newClock(1, simEpoch, func() time.Duration { return time.Minute }), nowhere{}, zap.NewNop())
	k.setMembers([]member{{2, "two", true}})
	return k
}

// checkCore checks what must hold whatever came.
func checkCore(t *testing.T, k *core) {
	t.Helper()
	if k.held.bytes > heldBytes || k.held.count() == 0 && k.held.bytes != 0 {
		t.Errorf("%d bytes of %d changes are held back", k.held.bytes, k.held.count())
	}
	if k.own.seq != 0 || k.ring.bytes > ringBytes+cluster.MaxFrame {
		t.Errorf("own seq %d, ring of %d bytes", k.own.seq, k.ring.bytes)
	}
	hash := uint64(0)
	for o, p := range k.vv {
		hash ^= mix(o, p.told)
	}
	if hash != k.hash {
		t.Error("the hash is not that of the vector")
	}
	cells := slices.Clone(k.sketch.Cells())
	if k.resketch(); !slices.Equal(cells, k.sketch.Cells()) {
		t.Error("the sketch is not that of the index")
	}
}

func FuzzUpdates(f *testing.F) {
	f.Add(frameOf(madeBy(77, 1, "k", "v"), madeBy(77, 2, "k", "w")))
	f.Add(frameOf(madeBy(77, 3, "k", "x", dependency{78, 1}), madeBy(78, 1, "l", ""), madeBy(1, 9, "m", "")))
	f.Add([]byte{wantDigest})
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, causal := range []bool{false, true} {
			k := fuzzCore(causal)
			k.frame(2, frameUpdates, slices.Clone(body))
			k.frame(2, frameUpdates, slices.Clone(body))
			k.flush()
			checkCore(t, k)
		}
	})
}

func FuzzDigest(f *testing.F) {
	d := digest{flags: digestFull | digestReady, time: simEpoch, node: 1, hash: 5, floor: 1, entries: []dependency{{1, 1}, {77, 5}}}
	f.Add(d.append(nil))
	d = digest{flags: digestDeaf, node: 0xffff, time: -1, collected: 1 << 60, entries: []dependency{{0, 0}, {1, 1 << 63}}}
	f.Add(d.append(nil))
	f.Fuzz(func(t *testing.T, body []byte) {
		k := fuzzCore(true)
		k.frame(2, frameUpdates, frameOf(madeBy(77, 1, "k", "v")))
		k.frame(2, frameDigest, slices.Clone(body))
		k.tick()
		k.flush()
		p, hash := k.peers[2], uint64(0)
		for o, h := range p.vv {
			hash ^= mix(o, h.seq)
		}
		if hash != p.hash {
			t.Error("the hash is not that of the peer's vector")
		}
		checkCore(t, k)
		if d, ok := parseDigest(body); ok {
			if again := d.append(nil); !slices.Equal(again, body) {
				t.Errorf("%x was read as %x", body, again)
			}
		}
	})
}

// TestLateDigestsAreNoSkew: on a busy machine they wait for seconds, and it is not the
// clocks that are off.
func TestLateDigestsAreNoSkew(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: 3})
	s.run(2 * time.Second)
	busy := s.nodes[0]
	s.heard = func(n *simNode, from uint64, kind byte, body []byte) bool {
		if n != busy || kind != frameDigest || s.now/time.Second%4 == 0 {
			return false
		}
		n.later(7*time.Second, func() { n.core.frame(from, kind, body) })
		return true
	}
	for range 600 {
		if s.run(100 * time.Millisecond); busy.core.skewed.Load() {
			t.Fatal("taken for skewed")
		}
	}
	if by := busy.core.clock.offset.Load(); by != 0 {
		t.Errorf("slewed by %d ms", by)
	}
}

// TestAcknowledgedByAllOfMany: also by those that are no neighbours, who mostly tell this
// member nothing.
func TestAcknowledgedByAllOfMany(t *testing.T) {
	s := newSimNet(simConfig{seed: 1, nodes: fullMesh + 8})
	a := s.nodes[0]
	a.core.acks.want.Store(All)
	s.run(time.Second)
	for i := range 3 {
		v := a.set("k", bytesOf(i+1))
		acked := false
		if !a.core.await(&attune.Call{Done: func() { acked = true }}) {
			t.Fatal("nobody is waited for")
		}
		if !s.until(time.Second, time.Millisecond, func() bool { return acked }) {
			t.Fatalf("change %d is not acknowledged: %d", i, a.core.confirmed())
		}
		for _, n := range s.nodes {
			if _, has := n.get("k"); has != v {
				t.Errorf("%s does not have change %d, which was acknowledged by all", n.name, i)
			}
		}
	}
}
