package gossip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// homeNet are engines with all their goroutines, and a network that a test decides
// about.
type homeNet struct {
	nodes []*homeNode
	wg    sync.WaitGroup
	ctx   context.Context
	stop  context.CancelFunc
	// way says what becomes of a frame: the copies that arrive, each after how long.
	// Those of one connection that take equally long keep their order.
	way way
	mu  sync.Mutex // guards way and rng
	rng *rand.Rand
}

type way = func(from, to *homeNode, kind byte) []time.Duration

func fast(*homeNode, *homeNode, byte) []time.Duration { return []time.Duration{200 * time.Microsecond} }

// ways sets the way, and returns what it was.
func (s *homeNet) ways(w way) way {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.way
	s.way = w
	return was
}

type homeNode struct {
	*node
	net   *homeNet
	at    int
	id    uint64
	homes *homes
	stirs chan struct{}
	dead  atomic.Bool
	mu    sync.Mutex
	links map[homeLink]chan homeFrame // guarded by mu
	down  map[int]bool                // guarded by mu: whom it knows to be dead
	got   [framesEnd]atomic.Int64     // frames, by kind
}

type homeLink struct {
	to    int
	class cluster.Class
}

type homeFrame struct {
	at   time.Time
	kind byte
	body []byte
}

// openHomes makes n members that know each other.
func openHomes(t testing.TB, n int, causal bool) *homeNet {
	t.Helper()
	s := &homeNet{rng: rand.New(rand.NewPCG(uint64(n), 7)), way: fast}
	s.ctx, s.stop = context.WithCancel(context.Background())
	start := time.Now()
	for i := range n {
		x := &homeNode{net: s, at: i, id: uint64(1000 + i), stirs: make(chan struct{}, 1), links: make(map[homeLink]chan homeFrame), down: make(map[int]bool)}
		r := replica.Open(replica.Options{Backend: embedded(t), Gen: 1, Seed: 1, Tombstones: true})
		e := &Engine{replica: r, stop: make(chan struct{})}
		e.stage = repair.NewStager(r, zap.NewNop())
		e.flush.changed = make(chan struct{}, 1)
		e.scratches.New = func() any { return &scratch{built: make([]byte, 0, builtSize)} }
		e.clock = newClock(x.id, start.UnixMilli(), func() time.Duration { return time.Since(start) })
		e.core = newCore(x.id, causal, r, e.clock, x, zap.NewNop())
		e.core.maxSkew, e.core.synced = 5*time.Second, true
		x.node = &node{t: t, Engine: e}
		x.homes = newHomes(e.core, uint64(i), e.decide)
		s.nodes = append(s.nodes, x)
	}
	for _, x := range s.nodes {
		x.look()
		s.wg.Go(x.tell)
		s.wg.Go(x.tick)
	}
	time.Sleep(1500 * time.Millisecond) // all have heard of all
	for _, x := range s.nodes {
		if live := *x.homes.live.Load(); len(live) != n {
			t.Fatalf("%d homes of %d members", len(live), n)
		}
	}
	return s
}

func (s *homeNet) close() {
	s.stop()
	for _, x := range s.nodes {
		x.homes.close()
	}
	s.wg.Wait()
}

// homeCluster runs test with n members, in a time of its own.
func homeCluster(t *testing.T, n int, causal bool, test func(t *testing.T, s *homeNet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := openHomes(t, n, causal)
		test(t, s)
		s.close()
	})
}

func bothLevels(t *testing.T, n int, test func(t *testing.T, s *homeNet)) {
	for _, causal := range []bool{false, true} {
		t.Run(map[bool]string{false: "eventual", true: "causal"}[causal], func(t *testing.T) { homeCluster(t, n, causal, test) })
	}
}

func (x *homeNode) look() {
	var ms []member
	x.mu.Lock()
	for _, o := range x.net.nodes {
		if o != x {
			ms = append(ms, member{id: o.id, name: strconv.Itoa(o.at), alive: !x.down[o.at]})
		}
	}
	x.mu.Unlock()
	x.core.setMembers(ms)
}

func (x *homeNode) tell() {
	for {
		select {
		case <-x.stirs:
			if !x.dead.Load() {
				x.core.flush()
			}
			time.Sleep(time.Millisecond)
		case <-x.net.ctx.Done():
			return
		}
	}
}

func (x *homeNode) tick() {
	for {
		select {
		case <-time.After(digestEvery):
			if !x.dead.Load() {
				x.core.tick()
				x.homes.tick()
			}
		case <-x.net.ctx.Done():
			return
		}
	}
}

func (x *homeNode) stir() {
	select {
	case x.stirs <- struct{}{}:
	default:
	}
}

func (x *homeNode) send(to uint64, class cluster.Class, kind byte, body []byte) bool {
	o := x.net.nodes[to-1000]
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.down[o.at] {
		return false
	}
	x.net.mu.Lock()
	w := x.net.way
	x.net.mu.Unlock()
	for i, d := range w(x, o, kind) {
		if i > 0 || d > time.Second {
			x.net.wg.Go(func() {
				select {
				case <-time.After(d):
					o.receive(x, kind, body)
				case <-x.net.ctx.Done():
				}
			})
			continue
		}
		l := homeLink{o.at, class}
		q := x.links[l]
		if q == nil {
			q = make(chan homeFrame, 1<<16)
			x.links[l] = q
			x.net.wg.Go(func() {
				for {
					select {
					case f := <-q:
						time.Sleep(time.Until(f.at))
						o.receive(x, f.kind, f.body)
					case <-x.net.ctx.Done():
						return
					}
				}
			})
		}
		q <- homeFrame{time.Now().Add(d), kind, body}
	}
	return true
}

func (x *homeNode) receive(from *homeNode, kind byte, body []byte) {
	if !x.dead.Load() && x.net.ctx.Err() == nil {
		x.got[kind].Add(1)
		x.homes.frame(from.id, kind, body)
	}
}

// kill ends a member: its connections break at once, and all know a second later.
func (s *homeNet) kill(at int) {
	s.nodes[at].dead.Store(true)
	for _, x := range s.nodes {
		if x.at == at {
			continue
		}
		s.wg.Go(func() {
			time.Sleep(time.Millisecond)
			x.homes.down(s.nodes[at].id, cluster.Calls)
			time.Sleep(time.Second)
			x.mu.Lock()
			x.down[at] = true
			x.mu.Unlock()
			x.look()
		})
	}
}

// submit has a Call carried out and waits for its end.
func (x *homeNode) submit(patience time.Duration, ops ...attune.Op) []attune.Result {
	c := &attune.Call{Ctx: context.Background(), Ops: ops, Res: make([]attune.Result, len(ops))}
	if patience > 0 {
		c.Deadline = time.Now().Add(patience)
	}
	done := make(chan struct{})
	c.Done = func() { close(done) }
	if !x.homes.write(c) {
		<-done
	}
	return c.Res
}

func (x *homeNode) one(op attune.Op) attune.Result { return x.submit(time.Second, op)[0] }

func (x *homeNode) incr(text string, by uint64) attune.Op {
	op := x.op(attune.Incr, text, "")
	op.Value, op.Delta = nil, by
	return op
}

// keyOf finds a key whose home is a member.
func (s *homeNet) keyOf(home int) string {
	x := s.nodes[0]
	for i := 0; ; i++ {
		text := fmt.Sprint("key", i)
		if homeOf(*x.homes.live.Load(), 0, x.key(text).Hash, nil) == s.nodes[home].id {
			return text
		}
	}
}

func (s *homeNet) between(low, high time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return low + time.Duration(s.rng.Int64N(int64(high-low)))
}

func (s *homeNet) chance(p float64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.Float64() < p
}

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
		way := s.ways(fast)
		s.ways(func(from, to *homeNode, kind byte) []time.Duration {
			if from == home && kind == frameAnswer {
				return nil
			}
			return way(from, to, kind)
		})
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
		way := s.ways(fast)
		s.ways(func(from, to *homeNode, kind byte) []time.Duration {
			if from == a && kind == frameUpdates {
				return nil
			}
			return way(from, to, kind)
		})
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
			x.core.acks.want = All
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

func mustEmbedded(t testing.TB) kvadapter.Backend {
	b := embedded(t)
	t.Cleanup(func() { b.Close() })
	return b
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
