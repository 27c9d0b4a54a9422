package gossip

import (
	"fmt"
	"testing"
	"time"
)

func TestSimulatedClusterConverges(t *testing.T) {
	for _, n := range []int{1, 3, 10, 40} {
		for _, causal := range []bool{false, true} {
			s := newSimNet(simConfig{seed: 1, nodes: n, causal: causal, delay: 5 * time.Millisecond, loss: 0.05, dup: 0.05, reorder: 0.05})
			s.run(time.Second)
			for i := range 200 {
				s.nodes[s.rng.IntN(n)].set(fmt.Sprint("k", s.rng.IntN(50)), fmt.Append(nil, i))
				s.run(time.Duration(s.rng.IntN(20)) * time.Millisecond)
			}
			if !s.until(20*time.Second, 10*time.Millisecond, s.agreed) {
				t.Errorf("%d nodes, causal %v: they do not agree", n, causal)
			}
		}
	}
}

// TestOneSeedOneRun is what makes a failure worth its seed.
func TestOneSeedOneRun(t *testing.T) {
	run := func() uint64 {
		s := newSimNet(simConfig{seed: 7, nodes: 20, delay: 5 * time.Millisecond, loss: 0.05, dup: 0.05, reorder: 0.05, causal: true})
		for i := range 300 {
			n := s.nodes[s.rng.IntN(len(s.nodes))]
			if n.core != nil {
				n.set(fmt.Sprint("k", s.rng.IntN(50)), fmt.Append(nil, i))
			}
			if i == 100 {
				s.crash(3)
			}
			if i == 200 {
				s.restart(3)
			}
			s.run(time.Duration(s.rng.IntN(20)) * time.Millisecond)
		}
		return s.trace
	}
	first := run()
	for range 3 {
		if again := run(); again != first {
			t.Fatalf("trace %x, then %x", first, again)
		}
	}
}
