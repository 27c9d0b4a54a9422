package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune"
)

func TestHomesAreSpread(t *testing.T) {
	var live []uint64
	for i := range 5 {
		live = append(live, mix(uint64(i), 99))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	count := map[uint64]int{}
	for range 10000 {
		key := attune.KeyHash{rng.Uint64(), rng.Uint64()}
		home := homeOf(live, 1, key, nil)
		count[home]++
		turned := slices.Clone(live)
		slices.Reverse(turned)
		if other := homeOf(turned, 2, key, nil); other != home {
			t.Fatal("members that list the same in another order disagree")
		}
		gone := rng.IntN(5)
		rest := slices.Delete(slices.Clone(live), gone, gone+1)
		next := homeOf(rest, 1, key, nil)
		if home != live[gone] && next != home {
			t.Fatal("a key lost its home because another member went")
		}
		if refused := homeOf(live, 1, key, []uint64{live[gone]}); refused != next {
			t.Fatal("who is refused goes elsewhere than who knows that the home is gone")
		}
	}
	for id, n := range count {
		if n < 1800 || n > 2200 {
			t.Errorf("%x is home of %d in 10000", id, n)
		}
	}
	if homeOf(nil, 7, attune.KeyHash{1, 2}, nil) != 7 || homeOf(live[:1], 7, attune.KeyHash{1, 2}, live) != 7 {
		t.Error("when nobody is there, the home is elsewhere")
	}
}

func TestWhatIsHomed(t *testing.T) {
	for _, c := range []struct {
		verb attune.Verb
		mode attune.Mode
		want bool
	}{
		{attune.Get, attune.WantValue, false},
		{attune.Get, attune.WantValue | attune.Retime, true},
		{attune.Get, attune.Lease, true},
		{attune.Get, attune.Vivify, true},
		{attune.Set, 0, false},
		{attune.Set, attune.ChooseCAS, false},
		{attune.Set, attune.IfCAS, true},
		{attune.Add, 0, true},
		{attune.Replace, 0, true},
		{attune.Append, attune.Vivify, true},
		{attune.Prepend, 0, true},
		{attune.Delete, 0, false},
		{attune.Delete, attune.IfCAS, true},
		{attune.Delete, attune.Invalidate, true},
		{attune.Delete, attune.Clear, true},
		{attune.Incr, 0, true},
		{attune.Decr, 0, true},
		{attune.Touch, 0, true},
		{attune.Flush, 0, false},
	} {
		if got := homed(&attune.Op{Verb: c.verb, Mode: c.mode}); got != c.want {
			t.Errorf("verb %d, mode %b: %v", c.verb, c.mode, got)
		}
	}
}

// While all agree on who is there, no increment is lost and no two get the same
// number, whatever the network does to frames short of losing them.
func TestIncrIsExactAmongMembers(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		s.ways(func(_, _ *homeNode, kind byte) []time.Duration {
			ways := []time.Duration{s.between(100*time.Microsecond, 10*time.Millisecond)}
			for s.chance(0.2) {
				// Not before those that were sent earlier: such are overtaken for good.
				ways = append(ways, s.between(30*time.Millisecond, 80*time.Millisecond))
			}
			if kind == frameUpdates && s.chance(0.05) {
				return nil // these are sent again
			}
			return ways
		})
		s.nodes[1].set("n", "0")
		time.Sleep(2 * time.Second)
		var numbers sync.Map
		var wg sync.WaitGroup
		const workers, each = 8, 25
		for _, x := range s.nodes {
			for range workers {
				wg.Go(func() {
					for i := 0; i < each; {
						ops := []attune.Op{x.incr("n", 1)}
						if i%5 == 0 {
							ops = []attune.Op{x.incr("n", 1), x.op(attune.Set, fmt.Sprint("k", i), "v"), x.incr("n", 1), x.incr("n", 1), x.incr("n", 1), x.incr("n", 1)}
						}
						for _, res := range x.submit(time.Minute, ops...) {
							if res.Status == attune.Stored {
								continue
							}
							if _, twice := numbers.LoadOrStore(res.Number, true); twice || res.Status != attune.Counted {
								t.Errorf("status %d (%v), number %d, known %v", res.Status, res.Err, res.Number, twice)
							}
							i++
						}
					}
				})
			}
		}
		wg.Wait()
		time.Sleep(5 * time.Second)
		for _, x := range s.nodes {
			x.want("n", strconv.Itoa(3*workers*each))
		}
	})
}

// What a client has set here it increments at the home, and what the home made of it
// it reads here, though changes travel slower than ops do.
func TestReadYourWritesByWayOfTheHome(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		key := s.keyOf(2)
		s.ways(func(_, _ *homeNode, kind byte) []time.Duration {
			if kind == frameUpdates {
				return []time.Duration{40 * time.Millisecond}
			}
			return []time.Duration{time.Millisecond}
		})
		for i, x := range s.nodes {
			x.set(key, strconv.Itoa(100*i))
			for j := range 3 {
				res := x.one(x.incr(key, 1))
				if want := uint64(100*i + j + 1); res.Status != attune.Counted || res.Number != want {
					t.Fatalf("status %d (%v), number %d, want %d", res.Status, res.Err, res.Number, want)
				}
				x.want(key, strconv.Itoa(100*i+j+1))
			}
			// A change that is a refusal elsewhere, and dead entries.
			x.wantStatus(x.one(x.op(attune.Delete, key, "")), attune.Deleted)
			x.wantStatus(x.one(x.op(attune.Add, key, "a")), attune.Stored)
			x.want(key, "a")
			x.wantStatus(x.submit(time.Second, attune.Op{Verb: attune.Flush})[0], attune.Flushed)
			x.wantStatus(x.one(x.op(attune.Add, key, "b")), attune.Stored)
			x.want(key, "b")
			x.wantStatus(x.one(x.op(attune.Add, key, "c")), attune.NotStored)
		}
	})
}

// What somebody else was told, and this client found here, it finds at the home.
func TestWhatWasSeenHereIsThereAtTheHome(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		a, b, home := s.nodes[0], s.nodes[1], s.nodes[2]
		key := s.keyOf(2)
		s.ways(func(from, to *homeNode, kind byte) []time.Duration {
			if from == b && to == home && kind == frameUpdates {
				return []time.Duration{60 * time.Millisecond}
			}
			return []time.Duration{time.Millisecond}
		})
		b.set(key, "5")
		time.Sleep(5 * time.Millisecond)
		a.want(key, "5")
		home.wantMiss(key)
		if res := a.one(a.incr(key, 1)); res.Number != 6 {
			t.Errorf("status %d (%v), number %d", res.Status, res.Err, res.Number)
		}
	})
}

// At the causal level nothing that a home answers is known before what it may come of,
// and nothing it decides is known elsewhere before what the asking client knew.
func TestHomesKeepCauses(t *testing.T) {
	homeCluster(t, 4, true, func(t *testing.T, s *homeNet) {
		a, b, c, home := s.nodes[0], s.nodes[1], s.nodes[2], s.nodes[3]
		key := s.keyOf(3)
		slow := func(to ...*homeNode) { // what c writes, to these
			s.ways(func(from, x *homeNode, kind byte) []time.Duration {
				if from == c && kind == frameUpdates && slices.Contains(to, x) {
					return []time.Duration{100 * time.Millisecond}
				}
				return []time.Duration{time.Millisecond}
			})
		}
		slow(a)
		home.set(key, "0")
		time.Sleep(time.Second)
		// The home knows x of c, and a does not. Even a refusal tells of it.
		c.set("x", "1")
		c.one(c.incr(key, 1))
		a.wantMiss("x")
		cas := a.op(attune.Set, key, "no")
		cas.Mode, cas.Compare = attune.IfCAS, 1
		a.wantStatus(a.one(cas), attune.Exists)
		a.want("x", "1")

		// The other way round: a knows y of c; b and the home do not.
		slow(b, home)
		c.set("y", "1")
		time.Sleep(10 * time.Millisecond)
		a.want("y", "1")
		home.wantMiss("y")
		if res := a.one(a.incr(key, 100)); res.Number != 101 {
			t.Errorf("status %d (%v), number %d", res.Status, res.Err, res.Number)
		}
		for range 300 {
			if string(b.get(key).Item.Value) == "101" {
				b.want("y", "1")
			}
			time.Sleep(time.Millisecond)
		}
		b.want(key, "101")
	})
}

func TestOneWinner(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		s.ways(func(*homeNode, *homeNode, byte) []time.Duration {
			return []time.Duration{s.between(100*time.Microsecond, 5*time.Millisecond)}
		})
		race := func(want attune.Status, op func(x *homeNode) attune.Op) (won int) {
			var wins atomic.Int32
			var wg sync.WaitGroup
			for _, x := range s.nodes {
				for range 4 {
					wg.Go(func() {
						if x.one(op(x)).Status == want {
							wins.Add(1)
						}
					})
				}
			}
			wg.Wait()
			return int(wins.Load())
		}
		for i := range 20 {
			key := fmt.Sprint("lock", i)
			if n := race(attune.Stored, func(x *homeNode) attune.Op { return x.op(attune.Add, key, "mine") }); n != 1 {
				t.Errorf("%d have added %s", n, key)
			}
			unique := s.nodes[i%3].get(key).Item.CAS
			if unique == 0 {
				time.Sleep(20 * time.Millisecond)
				unique = s.nodes[i%3].get(key).Item.CAS
			}
			n := race(attune.Stored, func(x *homeNode) attune.Op {
				op := x.op(attune.Set, key, "cas")
				op.Mode, op.Compare = attune.IfCAS, unique
				return op
			})
			if n != 1 {
				t.Errorf("%d cas of one unique of %s", n, key)
			}
		}
	})
}

// One client's pipelined ops come to the same as on one controller alone.
func TestPipelinedOpsKeepTheirOrder(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		s.ways(func(_, _ *homeNode, kind byte) []time.Duration {
			ways := []time.Duration{s.between(100*time.Microsecond, 3*time.Millisecond)}
			if s.chance(0.1) {
				ways = append(ways, s.between(20*time.Millisecond, 40*time.Millisecond))
			}
			return ways
		})
		alone := open(t, embedded(t), 0)
		rng := rand.New(rand.NewPCG(3, 4))
		verbs := []attune.Verb{attune.Get, attune.Set, attune.Add, attune.Replace, attune.Append, attune.Prepend, attune.Delete, attune.Incr, attune.Decr, attune.Touch, attune.Flush}
		for round := range 60 {
			x := s.nodes[rng.IntN(3)]
			ops := make([]attune.Op, 1+rng.IntN(40))
			theirs := make([]attune.Op, len(ops))
			for i := range ops {
				verb := verbs[rng.IntN(len(verbs))]
				if verb == attune.Flush && rng.IntN(10) > 0 {
					verb = attune.Incr
				}
				op := attune.Op{Verb: verb, Key: attune.Key{Text: fmt.Append(nil, "k", rng.IntN(4))}}
				switch verb {
				case attune.Get:
					op.Mode = attune.Retime | attune.WantValue
				case attune.Set, attune.Add, attune.Replace, attune.Append, attune.Prepend:
					op.Value = strconv.AppendInt(nil, rng.Int64N(50), 10)
				case attune.Incr, attune.Decr:
					op.Delta = rng.Uint64N(5)
				case attune.Flush:
					op.Key = attune.Key{}
				}
				ops[i], theirs[i] = op, op
				if verb != attune.Flush {
					ops[i].Key.Hash, theirs[i].Key.Hash = x.replica.Hash(op.Key.Text), alone.replica.Hash(op.Key.Text)
				}
			}
			want := make([]attune.Result, len(ops))
			alone.Write(t.Context(), theirs, want)
			for i, res := range x.submit(time.Minute, ops...) {
				if res.Status != want[i].Status || res.Number != want[i].Number || string(res.Item.Value) != string(want[i].Item.Value) {
					t.Fatalf("round %d, op %d of verb %d on %s: status %d (%v) number %d value %q, alone %d %d %q", round, i, ops[i].Verb, ops[i].Key.Text,
						res.Status, res.Err, res.Number, res.Item.Value, want[i].Status, want[i].Number, want[i].Item.Value)
				}
			}
			time.Sleep(50 * time.Millisecond) // the next client may be elsewhere
		}
	})
}

// Many Calls share frames.
func TestCallsShareFrames(t *testing.T) {
	homeCluster(t, 2, false, func(t *testing.T, s *homeNet) {
		a, home := s.nodes[0], s.nodes[1]
		s.ways(func(*homeNode, *homeNode, byte) []time.Duration { return []time.Duration{5 * time.Millisecond} })
		key := s.keyOf(1)
		a.set(key, "0")
		time.Sleep(time.Second)
		before := home.got[frameForward].Load()
		var wg sync.WaitGroup
		for range 300 {
			wg.Go(func() { a.wantStatus(a.one(a.incr(key, 1)), attune.Counted) })
		}
		wg.Wait()
		if n := home.got[frameForward].Load() - before; n > 6 {
			t.Errorf("%d frames for 300 ops at a time", n)
		}
		// Values larger than a frame may be.
		big := a.op(attune.Append, key, string(make([]byte, 3*maxForward)))
		big.Mode = attune.Vivify
		for _, res := range a.submit(time.Second, big, big, a.incr(key, 1), big) {
			if res.Status == attune.Failed {
				t.Errorf("%+v", res)
			}
		}
	})
}

// An op is acknowledged by its home when enough members have it.
func TestHomesWaitForAcknowledgements(t *testing.T) {
	bothLevels(t, 3, func(t *testing.T, s *homeNet) {
		for _, x := range s.nodes {
			x.core.mu.Lock()
			x.core.acks.want.Store(All)
			x.core.mu.Unlock()
		}
		key := s.keyOf(2)
		for _, x := range s.nodes {
			key := key + strconv.Itoa(x.at)
			x.wantStatus(x.one(x.op(attune.Add, key, "v")), attune.Stored)
			for _, o := range s.nodes {
				o.want(key, "v")
			}
		}
	})
}

// What is decided here costs what it did.
func TestLocalOpsAllocateNothing(t *testing.T) {
	homeCluster(t, 3, false, func(t *testing.T, s *homeNet) {
		x := s.nodes[0]
		key := s.keyOf(0)
		x.set(key, "0")
		c := &attune.Call{Ctx: context.Background(), Ops: []attune.Op{x.op(attune.Set, key, "7"), x.incr(key, 1)}, Res: make([]attune.Result, 2)}
		alone := testing.AllocsPerRun(200, func() { x.Write(c.Ctx, c.Ops, c.Res) })
		homes := testing.AllocsPerRun(200, func() {
			if !x.homes.write(c) {
				t.Error("it is not answered at once")
			}
		})
		if homes > alone {
			t.Errorf("%v allocations, %v without homes", homes, alone)
		}
	})
}

// Many clients on one counter whose home is elsewhere. A connection costs what it
// does in memory: nothing.
func BenchmarkForwardedIncr(b *testing.B) {
	for _, clients := range []int{1, 256} {
		b.Run(fmt.Sprint(clients, "clients"), func(b *testing.B) {
			s := openHomes(b, 2, false)
			defer s.close()
			s.ways(func(*homeNode, *homeNode, byte) []time.Duration { return []time.Duration{0} })
			x, key := s.nodes[0], s.keyOf(1)
			x.set(key, "0")
			b.ReportAllocs()
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					done := make(chan struct{}, 1)
					c := &attune.Call{Ctx: context.Background(), Ops: []attune.Op{x.incr(key, 1)}, Res: make([]attune.Result, 1), Done: func() { done <- struct{}{} }}
					for left.Add(-1) >= 0 {
						if !x.homes.write(c) {
							<-done
						}
						if c.Res[0].Status != attune.Counted {
							b.Error(c.Res[0])
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
