package gossip

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

// A home that is killed costs what was under way, which is not tried again, and
// nothing else.
func TestTheHomeIsKilled(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		a, b := s.nodes[0], s.nodes[1]
		key := s.keyOf(2)
		a.set(key, "0")
		time.Sleep(time.Second)
		mute := atomic.Bool{}
		s.ways(func(_, _ *homeNode, kind byte) []time.Duration {
			if mute.Load() && kind == frameAnswer {
				return nil
			}
			return []time.Duration{time.Millisecond}
		})
		mute.Store(true)
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			res := a.submit(10*time.Second, a.incr(key, 1), a.op(attune.Set, "after", "1"))
			if res[0].Status != attune.Failed || !errors.Is(res[0].Err, errUnknown) || res[1].Status != attune.Stored {
				t.Errorf("%+v", res)
			}
			if took := time.Since(began); took > 200*time.Millisecond {
				t.Errorf("it took %v to find out", took)
			}
		})
		time.Sleep(20 * time.Millisecond)
		s.kill(2)
		wg.Wait()
		mute.Store(false)
		a.want(key, "1") // it was carried out, once
		time.Sleep(2 * time.Second)
		if live := *a.homes.live.Load(); len(live) != 2 {
			t.Fatalf("%d homes", len(live))
		}
		for i := range uint64(20) {
			x := []*homeNode{a, b}[i%2]
			if res := x.one(x.incr(key, 1)); res.Number != i+2 {
				t.Fatalf("status %d (%v), number %d, want %d", res.Status, res.Err, res.Number, i+2)
			}
		}
	})
}

// A connection that cannot be made is no reason to wait: the next home decides.
func TestTheHomeCannotBeReached(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		a := s.nodes[0]
		key := s.keyOf(2)
		a.set(key, "0")
		time.Sleep(100 * time.Millisecond)
		a.mu.Lock()
		a.down[2] = true
		a.mu.Unlock()
		if res := a.one(a.incr(key, 1)); res.Number != 1 {
			t.Errorf("status %d (%v), number %d", res.Status, res.Err, res.Number)
		}
		a.mu.Lock()
		a.down[1] = true
		a.mu.Unlock()
		began := time.Now()
		if res := a.one(a.incr(key, 1)); res.Number != 2 {
			t.Errorf("status %d (%v), number %d", res.Status, res.Err, res.Number)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v to decide here", took)
		}
	})
}

// A home that does not answer costs its clients the deadline, and no more; one that
// does not serve, nothing.
func TestTheHomeIsSilent(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		a, home := s.nodes[0], s.nodes[2]
		key := s.keyOf(2)
		a.set(key, "0")
		time.Sleep(time.Second)
		way := s.silence(home, frameAnswer)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				began := time.Now()
				res := a.submit(300*time.Millisecond, a.incr(key, 1), a.incr(key, 1), a.op(attune.Set, "x", "1"), a.incr(key, 1))
				if took := time.Since(began); took < 300*time.Millisecond || took > 300*time.Millisecond+2*digestEvery {
					t.Errorf("it took %v", took)
				}
				for _, r := range res {
					if r.Status != attune.Failed || r.Err == nil {
						t.Errorf("%+v", r)
					}
				}
			})
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		time.Sleep(100 * time.Millisecond)
		h := a.homes
		h.mu.Lock()
		if n := len(h.routes[home.id].flights); n != 0 || len(h.trips) != 0 {
			t.Errorf("%d frames under way that nobody waits for, %d calls", n, len(h.trips))
		}
		h.mu.Unlock()

		s.ways(way)
		home.core.skewed.Store(true)
		defer home.core.skewed.Store(false)
		began := time.Now()
		if res := a.one(a.incr(key, 1)); res.Status != attune.Counted {
			t.Errorf("%+v", res)
		}
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("it took %v to be refused", took)
		}
	})
}

// A home that cannot get what the client has written says so, and the client's own
// controller decides: nothing that was acknowledged is taken back.
func TestTheHomeIsBehind(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		a, b := s.nodes[0], s.nodes[1]
		key := s.keyOf(2)
		b.set(key, "7")
		time.Sleep(time.Second)
		way := s.silence(a, frameUpdates)
		a.set(key, "100")
		res := a.submit(2*time.Second, a.incr(key, 1), a.incr(key, 1))
		if res[0].Number != 101 || res[1].Number != 102 {
			t.Errorf("%+v", res)
		}
		s.ways(way)
		time.Sleep(5 * time.Second)
		for _, x := range s.nodes {
			x.want(key, "102")
		}
	})
}

// A home whose store is behind has what it is asked wait, and says so if that is in vain:
// nothing was done.
func TestTheHomeHasNoRoom(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		a, home := s.nodes[0], s.nodes[2]
		var full atomic.Bool
		home.homes.room = func(c *attune.Call) bool {
			time.Sleep(100 * time.Millisecond)
			if full.Load() {
				c.Res[0] = attune.Result{Status: attune.Failed, Err: repair.ErrBehind}
				return false
			}
			return true
		}
		key := s.keyOf(2)
		a.set(key, "7")
		full.Store(true)
		if res := a.one(a.incr(key, 1)); res.Status != attune.Failed {
			t.Errorf("%+v", res)
		}
		full.Store(false)
		began := time.Now()
		if res := a.one(a.incr(key, 1)); res.Number != 8 {
			t.Errorf("%+v", res)
		}
		if took := time.Since(began); took < 100*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// Nothing is lost or counted twice without the client being told that nobody knows.
func TestLostFrames(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		s.ways(func(_, _ *homeNode, kind byte) []time.Duration {
			if s.chance(0.05) {
				return nil
			}
			ways := []time.Duration{s.between(100*time.Microsecond, 2*time.Millisecond)}
			if s.chance(0.05) {
				ways = append(ways, s.between(0, 2*time.Second))
			}
			return ways
		})
		s.nodes[0].set("n", "0")
		time.Sleep(5 * time.Second)
		var done, unknown atomic.Int64
		var wg sync.WaitGroup
		for _, x := range s.nodes {
			for range 4 {
				wg.Go(func() {
					for range 30 {
						// Longer than changes are lost for, so no home refuses.
						switch res := x.submit(5*time.Second, x.incr("n", 1))[0]; {
						case res.Status == attune.Counted:
							done.Add(1)
						case errors.Is(res.Err, errUnknown), errors.Is(res.Err, errUnseen):
							unknown.Add(1)
						case !errors.Is(res.Err, errNotDone):
							t.Errorf("%+v", res)
						}
					}
				})
			}
		}
		wg.Wait()
		time.Sleep(10 * time.Second)
		refused := uint64(0)
		for _, x := range s.nodes {
			refused += x.homes.counters().refused
		}
		n, _ := strconv.ParseInt(string(s.nodes[0].get("n").Item.Value), 10, 64)
		t.Log(done.Load(), "done,", unknown.Load(), "unknown,", refused, "refused, total", n)
		if refused == 0 && (n < done.Load() || n > done.Load()+unknown.Load()) {
			t.Error("the sum is wrong")
		}
	})
}

// One frame, however often it comes.
func TestAFrameIsCarriedOutOnce(t *testing.T) {
	homeCluster(t, 2, false, func(t *testing.T, s *homeNet) {
		a, home := s.nodes[0], s.nodes[1]
		key := s.keyOf(1)
		a.set(key, "0")
		sent := [][]byte{forwardFrame(a, home, key), forwardFrame(a, home, key)}
		for _, i := range []int{1, 0, 1, 1, 0} {
			home.homes.forward(a.id, slices.Clone(sent[i]))
			time.Sleep(10 * time.Millisecond)
		}
		home.want(key, "1") // the older one was overtaken
		for n := range len(sent[0]) {
			home.homes.forward(a.id, sent[0][:n])
		}
		time.Sleep(10 * time.Millisecond)
		home.want(key, "1")
	})
}

// Whoever closes is not held up by what is under way.
func TestCloseWithCallsUnderWay(t *testing.T) {
	homeCluster(t, 3, true, func(t *testing.T, s *homeNet) {
		a := s.nodes[0]
		s.ways(func(*homeNode, *homeNode, byte) []time.Duration { return nil })
		for i := range 10 {
			c := &attune.Call{Ctx: context.Background(), Ops: []attune.Op{a.incr(s.keyOf(1+i%2), 1)}, Res: make([]attune.Result, 1), Done: func() {}}
			a.homes.write(c)
		}
		// And a home that waits for what never comes.
		a.set("never sent", "1")
		s.nodes[1].homes.forward(a.id, forwardFrame(a, s.nodes[1], s.keyOf(1)))
		time.Sleep(time.Millisecond)
	})
}

// forwardFrame is a frame with an incr of a's.
func forwardFrame(a, to *homeNode, key string) []byte {
	h := a.homes
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	c := &attune.Call{Ops: []attune.Op{a.incr(key, 1)}}
	return h.encode(&flight{number: h.last, hops: []*hop{{trip: &trip{call: c}, ops: []int{0}}}}, to.id, 0)
}

func FuzzForward(f *testing.F) {
	r := replica.Open(replica.Options{Backend: mustEmbedded(f), Gen: 1, Seed: 1, Tombstones: true})
	start := time.Now()
	k := newCore(1, false, r, newClock(1, start.UnixMilli(), func() time.Duration { return time.Since(start) }), nowhere{}, zap.NewNop())
	h := newHomes(k, 1, func(*attune.Call, int, int) {})
	h.cancel(errClosed) // nobody waits
	op := attune.Op{Verb: attune.Incr, Key: attune.Key{Text: []byte("k")}, Delta: 1}
	good := h.encode(&flight{number: 5, hops: []*hop{{trip: &trip{call: &attune.Call{Ops: []attune.Op{op, op}}}, ops: []int{0, 1}}}}, 2, 100)
	f.Add(good)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		if in, ok := parseForward(body); ok {
			n := 0
			for _, hop := range in.hops {
				n += hop
			}
			if n != len(in.ops) || len(in.needs.marks) != 0 && len(in.needs.marks) != n {
				t.Errorf("%+v", in)
			}
		}
		c := &attune.Call{Ops: []attune.Op{op, op}, Res: make([]attune.Result, 2), Done: func() {}}
		tr := &trip{call: c, next: 2, open: 1}
		rt := &route{id: 2}
		if len(body) >= 8 {
			rt.flights = []*flight{{number: 5, hops: []*hop{{trip: tr, ops: []int{0, 1}}}}}
		}
		h.mu.Lock()
		h.routes[2] = rt
		h.mu.Unlock()
		h.answered(2, body)
		h.running.Wait()
	})
}

// nowhere is a world without others.
type nowhere struct{}

func (nowhere) send(uint64, cluster.Class, byte, []byte) bool { return false }
func (nowhere) stir()                                         {}

// A member that goes on purpose refuses, so that nobody is left in doubt.
func TestAHomeThatCloses(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		key := s.keyOf(2)
		s.nodes[2].set(key, "0")
		time.Sleep(time.Second)
		var wg sync.WaitGroup
		for _, x := range s.nodes[:2] {
			for range 20 {
				wg.Go(func() {
					for range 10 {
						x.wantStatus(x.one(x.incr(key, 1)), attune.Counted)
					}
				})
			}
		}
		time.Sleep(3 * time.Millisecond)
		s.nodes[2].homes.close()
		wg.Wait()
	})
}
