package history_test

import (
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/attunekv/attune/internal/history"
	"github.com/attunekv/attune/internal/history/broken"
)

// gossiping are workloads for stores whose replicas answer each for itself.
var gossiping = []history.Workload{history.Registers, history.Removals, history.Chained, history.CASRegisters, history.Counters, history.Appends, history.Locks, history.Mixed, history.Flushes}

// A right store passes all checks, with every workload; and one that is eventual
// passes those for it.
func TestRightGossipPasses(t *testing.T) {
	for _, f := range []broken.GossipFault{broken.Causal, broken.AnyOrder, broken.ItemByItem} {
		for _, w := range gossiping {
			for seed := range uint64(5) {
				h, s, _ := broken.Gossiped(w, f, seed, 9, 1200)
				checks := map[string]error{
					"eventual":         history.Eventual(h, history.Rules{}),
					"eventual, shared": history.Eventual(h, history.Rules{Shared: true}),
					"converged":        history.Converged(h, s, history.Rules{}),
					"settled":          history.Settled(h.With(everywhereOf(s)), s, history.Rules{}),
				}
				if f == broken.Causal {
					checks["causal"] = history.Causal(h, history.Rules{})
					checks["causal, shared"] = history.Causal(h, history.Rules{Shared: true})
					checks["chains"] = history.Chains(h)
				}
				for name, err := range checks {
					if err != nil {
						t.Fatalf("flaw %d, %s, seed %d: not %s: %v", f, w.Name, seed, name, err)
					}
				}
			}
		}
	}
}

// everywhereOf is a later survey that finds the same.
func everywhereOf(s history.Survey) history.Survey {
	s.Begin += 1000
	s.End += 1000
	return s
}

// Every flaw is found in most histories by those who are to find it.
func TestBrokenGossipIsFound(t *testing.T) {
	for _, c := range []struct {
		flaw  broken.GossipFault
		w     history.Workload
		name  string
		check func(h history.History, s history.Survey, c *broken.Gossip) error
	}{
		{broken.AnyOrder, history.Registers, "causal", byCausal},
		{broken.AnyOrder, history.Chained, "causal", byCausal},
		{broken.AnyOrder, history.Chained, "chains", byChains},
		{broken.ItemByItem, history.Registers, "causal", byCausal},
		{broken.ItemByItem, history.Chained, "causal", byCausal},
		{broken.ItemByItem, history.Chained, "chains", byChains},
		{broken.NoTombs, history.Removals, "converged", byConverged},
		{broken.Dropping, history.Registers, "converged", byConverged},
		{broken.Dropping, history.Removals, "converged", byConverged},
		{broken.Amnesiac, history.Registers, "converged", byConverged},
		{broken.Amnesiac, history.Registers, "eventual", byEventual},
		{broken.Amnesiac, history.Removals, "converged", byConverged},
		{broken.LastArrival, history.Registers, "eventual", byEventual},
		{broken.LastArrival, history.Registers, "causal", byCausal},
		{broken.LastArrival, history.Registers, "converged", byConverged},
		{broken.Wandering, history.Registers, "eventual", byEventual},
		{broken.Wandering, history.Registers, "causal", byCausal},
		{broken.CarelessCAS, history.CASRegisters, "one winner", func(h history.History, _ history.Survey, _ *broken.Gossip) error { return history.OneWinner(h) }},
	} {
		found := 0
		const seeds = 8
		for seed := range uint64(seeds) {
			h, s, store := broken.Gossiped(c.w, c.flaw, seed, 9, 3000)
			if c.check(h, s, store) != nil {
				found++
			}
		}
		if found < seeds*3/4 {
			t.Errorf("flaw %d in %s: %s finds it in %d of %d histories", c.flaw, c.w.Name, c.name, found, seeds)
		}
	}
}

func byCausal(h history.History, _ history.Survey, _ *broken.Gossip) error {
	return history.Causal(h, history.Rules{})
}
func byEventual(h history.History, _ history.Survey, _ *broken.Gossip) error {
	return history.Eventual(h, history.Rules{})
}
func byChains(h history.History, _ history.Survey, _ *broken.Gossip) error { return history.Chains(h) }
func byConverged(h history.History, s history.Survey, _ *broken.Gossip) error {
	return history.Converged(h, s, history.Rules{})
}

// A deleted value that returns when all had seen it gone: an update that was kept
// somewhere arrives again.
func TestResurrectionIsFound(t *testing.T) {
	for _, f := range []broken.GossipFault{broken.Causal, broken.NoTombs} {
		found := 0
		for seed := range uint64(8) {
			h, _, c := broken.Gossiped(history.Removals, f, seed, 9, 800)
			if f == broken.NoTombs { // else its replicas disagree already
				c.Empty()
			}
			first := c.Survey(h.Keys(), 1e6)
			for i := range h {
				e := &h[i]
				if e.Op.Kind == history.Set && e.Out.Version != 0 {
					c.Again(e.Op.Key, e.Op.Value, e.Out.Version)
				}
			}
			if history.Settled(h.With(c.Survey(h.Keys(), 2e6)), first, history.Rules{}) != nil {
				found++
			}
		}
		if f == broken.Causal && found > 0 || f != broken.Causal && found < 8 {
			t.Errorf("flaw %d: found in %d of 8 histories", f, found)
		}
	}
}

// Increments at one home are exact; one done twice is more than the bound allows,
// unless others are not known to have happened.
func TestGossipedCounters(t *testing.T) {
	for _, f := range []broken.GossipFault{broken.Causal, broken.Twofold} {
		wrong := [2]int{}
		for seed := range uint64(8) {
			r := rand.New(rand.NewPCG(seed, 9))
			c := broken.NewGossip(broken.Causal, r)
			c.Do(0, history.Op{Kind: history.Set, Key: "n", Value: "10"})
			c.Fault = f
			var h history.History
			for i := range int64(300) {
				at := r.IntN(3)
				op := history.Op{Kind: history.Incr, Key: "n", Delta: 1}
				e := history.Event{Client: at, Session: at, Op: op, Out: c.Do(at, op), Call: 2 * i, Return: 2*i + 1}
				h = append(h, e)
			}
			c.Quiet()
			final, _ := strconv.ParseUint(c.Survey([]string{"n"}, 0).Nodes["n1"]["n"].Value, 10, 64)
			if _, err := history.ExactCounter(h, "n", 10, final); err != nil {
				wrong[0]++
			}
			if n, err := history.BoundedCounter(h, "n", 10, final); err != nil {
				wrong[1]++
			} else if n != (history.Counts{Acknowledged: 300}) {
				t.Errorf("%+v", n)
			}
			if _, err := history.BoundedCounter(h[:len(h)-1], "n", 10, 100); f == broken.Causal && err != nil {
				t.Errorf("lost increments are allowed: %v", err)
			}
		}
		if f == broken.Causal && wrong != [2]int{} || f != broken.Causal && min(wrong[0], wrong[1]) < 6 {
			t.Errorf("flaw %d: found in %v of 8 histories", f, wrong)
		}
	}
}
