package ordered

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strconv"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
)

// The whole engine but its goroutines, on a network, clocks and disks made of
// paper. Everything that happens follows from the seed.

const (
	simNodes    = 3
	simClients  = 5
	simKeys     = 3
	simDuration = 20 * time.Second // of its own time
	opTimeout   = time.Second
)

// broken is what a simulation does wrong on purpose.
type broken struct {
	staleReads   bool // reads pass no barrier
	reuseID      bool // a member that lost its memory comes back under its old id
	retryUnknown bool // an op whose outcome is unknown is sent again
}

type sim struct {
	t      testing.TB
	rng    *rand.Rand
	now    time.Duration
	events eventHeap
	seq    int
	broken broken

	nodes   []*simNode // by name
	nextID  uint64
	drop    float64
	dup     float64
	delay   time.Duration
	cut     map[[2]int]bool // from, to
	history []porcupine.Operation
	clients int                   // identities given out
	acks    int                   // of the log, sent
	empty   int                   // appends without entries, sent
	answers map[cluster.Class]int // frames, sent
	stopped bool
}

type event struct {
	at  time.Duration
	seq int
	fn  func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

// after has fn happen d from now.
func (s *sim) after(d time.Duration, fn func()) {
	s.seq++
	heap.Push(&s.events, event{s.now + d, s.seq, fn})
}

// run lets time pass until end.
func (s *sim) run(end time.Duration) {
	for len(s.events) > 0 && s.events[0].at <= end {
		e := heap.Pop(&s.events).(event)
		s.now = e.at
		e.fn()
	}
	s.now = end
}

func newSim(t testing.TB, seed uint64, b broken) *sim {
	s := &sim{t: t, rng: rand.New(rand.NewPCG(seed, 1)), cut: make(map[[2]int]bool), answers: make(map[cluster.Class]int), broken: b, nextID: 1}
	for i := range simNodes {
		n := &simNode{s: s, slot: i, durable: s.rng.IntN(2) == 0 && !b.reuseID, skew: time.Duration(s.rng.IntN(7200)-3600) * time.Second}
		s.nodes = append(s.nodes, n)
	}
	s.nodes[0].boot(true)
	for _, n := range s.nodes[1:] {
		n.boot(false)
	}
	return s
}

// Faults.

// whole reports whether every node is up, complete and a voter: then one may
// lose its memory, and not otherwise.
func (s *sim) whole() bool {
	for _, n := range s.nodes {
		if n.core == nil || n.paused || !n.core.serving() || !n.core.voter(n.id) {
			return false
		}
		if len(n.core.conf.GetVoters()) != simNodes || len(n.core.conf.GetVotersOutgoing()) > 0 {
			return false
		}
	}
	return true
}

// fault does one, and has it end some time later.
func (s *sim) fault() {
	if s.stopped {
		return
	}
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	lasts := time.Duration(s.rng.IntN(3000)) * time.Millisecond
	switch s.rng.IntN(8) {
	case 0:
		if n.core != nil && !n.paused {
			n.paused = true
			life := n.life
			s.after(lasts, func() {
				if n.life == life {
					n.paused = false
					n.wake(0)
				}
			})
		}
	case 1:
		if n.core != nil && n.remembers() {
			n.crash(false)
			s.after(lasts, func() { n.restart() })
		}
	case 2:
		if s.whole() && !n.remembers() {
			n.crash(true)
			s.after(lasts, func() { n.boot(false) })
		}
	case 3: // isolate, both ways or one
		way := s.rng.IntN(3)
		for _, o := range s.nodes {
			if o != n {
				s.cut[[2]int{n.slot, o.slot}] = way != 1
				s.cut[[2]int{o.slot, n.slot}] = way != 2
			}
		}
		s.after(lasts, func() { clear(s.cut) })
	case 4: // a bridge
		o := s.nodes[(n.slot+1)%len(s.nodes)]
		s.cut[[2]int{n.slot, o.slot}], s.cut[[2]int{o.slot, n.slot}] = true, true
		s.after(lasts, func() { clear(s.cut) })
	case 5:
		s.drop, s.dup, s.delay = s.rng.Float64()*0.4, s.rng.Float64()*0.4, time.Duration(1+s.rng.IntN(200))*time.Millisecond
		s.after(lasts, func() { s.drop, s.dup, s.delay = 0, 0, 0 })
	case 6:
		n.skew += time.Duration(s.rng.IntN(7200)-3600) * time.Second
		if n.core != nil && n.core.soft.Lead == n.id {
			n.core.handOver()
		}
	case 7: // its store takes nothing
		n.full = true
		s.after(lasts, func() { n.full = false })
	}
	s.after(time.Duration(200+s.rng.IntN(1500))*time.Millisecond, s.fault)
}

// simulate runs one seed, and returns what is wrong.
func simulate(t testing.TB, seed uint64, b broken) error {
	s := newSim(t, seed, b)
	for end := s.now + 30*time.Second; !s.whole() || !s.nodes[0].core.st.formed; {
		if s.now > end {
			return errors.New("no cluster was formed")
		}
		s.run(s.now + 100*time.Millisecond)
	}
	for i := range simClients {
		s.clients++
		s.after(time.Duration(i)*time.Millisecond, func() { s.client(i + 1) })
	}
	s.after(time.Second, s.fault)
	s.run(s.now + simDuration)
	// Everything heals, and then everything must work.
	s.stopped = true
	clear(s.cut)
	s.drop, s.dup, s.delay = 0, 0, 0
	for _, n := range s.nodes {
		n.full = false
	}
	// A leader that heard nobody steps down when it next counts who has answered.
	s.run(s.now + electionTicks*tickEvery)
	for end := s.now + 60*time.Second; !s.whole() || !s.equal() || !s.led(); {
		if s.now > end {
			return errors.New("the cluster did not heal: " + s.describe())
		}
		s.run(s.now + 100*time.Millisecond)
	}
	for _, n := range s.nodes {
		if r := n.core.counts.refused.Load(); r != 0 {
			return fmt.Errorf("%s: %d changes did not hold when they were applied", n.name(), r)
		}
		var got *simOutput
		n.do(simInput{verb: attune.Set, key: "healed", value: "1"}, func(out simOutput) { got = &out })
		s.run(s.now + 2*time.Second)
		if got == nil || got.status != attune.Stored {
			return fmt.Errorf("%s: a write after healing came to %+v: %s", n.name(), got, s.describe())
		}
		for call := range n.calls {
			return fmt.Errorf("%s: a call was never answered: %+v", n.name(), call)
		}
		if left := len(n.core.forwarded) + len(n.core.timed) + n.core.pending; left != 0 {
			return fmt.Errorf("%s: %d requests are kept though all are answered: %d forwarded, %d timed, %d pending",
				n.name(), left, len(n.core.forwarded), len(n.core.timed), n.core.pending)
		}
	}
	res := porcupine.CheckOperationsTimeout(simModel, s.history, 20*time.Second)
	if res == porcupine.Illegal {
		return errors.New("the history is not linearizable:" + s.story())
	}
	if res == porcupine.Unknown {
		t.Logf("seed %d: %d operations were too many to check", seed, len(s.history))
	}
	return nil
}

// led reports whether all follow one leader, who decides.
func (s *sim) led() bool {
	leader := s.nodes[0].core.soft.Lead
	for _, n := range s.nodes {
		if n.core.soft.Lead != leader || n.id == leader && !n.core.leads() {
			return false
		}
	}
	return leader != 0
}

// story tells the end of the shortest beginning of a key's history that is not
// linearizable.
func (s *sim) story() string {
	for _, part := range simModel.Partition(s.history) {
		if porcupine.CheckOperationsTimeout(simModel, part, 20*time.Second) != porcupine.Illegal {
			continue
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
		n := sort.Search(len(part), func(n int) bool {
			begun := slices.Clone(part[:n+1])
			for _, op := range part[n+1:] {
				if op.Call < part[n].Return { // under way then
					out := op.Output.(simOutput)
					out.unknown = true
					op.Output, op.Return = out, math.MaxInt64
					if !op.Input.(simInput).read {
						begun = append(begun, op)
					}
				}
			}
			return porcupine.CheckOperationsTimeout(simModel, begun, 20*time.Second) == porcupine.Illegal
		})
		text := ""
		for i, op := range part {
			if i > n-12 && i <= n || i > n && op.Call < part[min(n, len(part)-1)].Return {
				text += fmt.Sprintf("\n  %v to %v client %d: %s", time.Duration(op.Call), time.Duration(op.Return), op.ClientId, simModel.DescribeOperation(op.Input, op.Output))
			}
		}
		return text
	}
	return " and yet it is, key by key"
}

// equal reports whether all replicas are the same.
func (s *sim) equal() bool {
	for _, n := range s.nodes[1:] {
		if n.core.st.applied != s.nodes[0].core.st.applied || n.rep.Digest() != s.nodes[0].rep.Digest() {
			return false
		}
	}
	return true
}

func (s *sim) describe() string {
	text := ""
	for _, n := range s.nodes {
		if n.core == nil {
			text += n.name() + " down; "
			continue
		}
		d := n.core.describe()
		text += fmt.Sprintf("%s (%d) %s of %q, term %d, applied %d of %d, voters %v learners %v, paused %v hydrated %v digest %x; ",
			n.name(), n.id, d.Role, d.Leader, d.Term, d.Applied, d.Last, n.core.conf.GetVoters(), n.core.conf.GetLearners(), n.paused, n.core.snaps.hydrated, n.rep.Digest())
	}
	return text
}

// simSeeds is how many seeds a test runs: ATTUNE_SIM_SEEDS, else few.
func simSeeds(t testing.TB, few int) (first, count uint64) {
	if v := os.Getenv("ATTUNE_TEST_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n, 1
	}
	if v := os.Getenv("ATTUNE_SIM_SEEDS"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return 1, n
	}
	return 1, uint64(few)
}

// Whatever the network, the clocks and the processes do, every history is
// linearizable, every replica ends up the same, and the cluster works when the
// faults end. ATTUNE_TEST_SEED repeats one run.
func TestSimulation(t *testing.T) {
	first, count := simSeeds(t, 30)
	for seed := first; seed < first+count; seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, seed) // Raft draws its election timeouts from it
			if err := simulate(t, seed, broken{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// The simulation finds what is wrong if something is.
func TestSimulationFindsWhatIsBroken(t *testing.T) {
	for name, b := range map[string]broken{
		"a read without a barrier":                           {staleReads: true},
		"a raft id used again after memory was lost":         {reuseID: true},
		"an op of unknown outcome that is carried out again": {retryUnknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= 40; seed++ {
				cryptotest.SetGlobalRandom(t, seed)
				if err := mayPanic(func() error { return simulate(t, seed, b) }); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Error("not found")
		})
	}
}

// mayPanic returns Raft's panics as errors.
func mayPanic(fn func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return fn()
}

// roles has a new cluster run until it is whole, and returns who leads, and another one.
func (s *sim) roles(t *testing.T) (leader, other *simNode) {
	t.Helper()
	s.run(10 * time.Second)
	for _, n := range s.nodes {
		if n.core.leads() {
			leader = n
		} else {
			other = n
		}
	}
	if !s.whole() || leader == nil {
		t.Fatal(s.describe())
	}
	return leader, other
}
