package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
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

// silence loses what one says of a kind, and returns what the way was.
func (s *homeNet) silence(one *homeNode, lost byte) way {
	was := s.ways(fast)
	s.ways(func(from, to *homeNode, kind byte) []time.Duration {
		if from == one && kind == lost {
			return nil
		}
		return was(from, to, kind)
	})
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

func mustEmbedded(t testing.TB) kvadapter.Backend {
	b := embedded(t)
	t.Cleanup(func() { b.Close() })
	return b
}
