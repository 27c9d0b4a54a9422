package gossip

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/attunekv/attune"
)

// TestDeletedNeverComesBack does everything at random.
func TestDeletedNeverComesBack(t *testing.T) {
	seeds := 16
	if raceEnabled {
		seeds = 4 // a simulation has one goroutine
	}
	if s, err := strconv.Atoi(os.Getenv("ATTUNE_SIM_SEEDS")); err == nil {
		seeds = s
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			wrong, n := randomCuts(t, uint64(seed), nil)
			if wrong != "" {
				t.Error(wrong)
				n.dump()
			}
			t.Log(n.sum())
		})
	}
}

// What is broken on purpose shows in some random run soon, too.
func TestRandomRunsShowWhatIsBroken(t *testing.T) {
	if raceEnabled {
		t.Skip("it is about the checks, and slow")
	}
	for name, tune := range map[string]func(c *cutter){
		"no floor":   func(c *cutter) { c.forgets = true },
		"no waiting": func(c *cutter) { c.hasty, c.trusts = true, true },
	} {
		seen, runs := "", uint64(0)
		for ; runs < 40 && seen == ""; runs++ {
			seed := runs
			if name == "no floor" {
				seed = runs + runs&^3 + 4 // those in which nodes are expelled
			}
			seen, _ = randomCuts(t, seed, tune)
		}
		t.Logf("%s, after %d runs: %s", name, runs, seen)
		if seen == "" {
			t.Errorf("%s: nothing wrong was seen", name)
		}
	}
}

// randomCuts runs one seed. In half of them nodes lose their memory, in half they are
// expelled, and in a quarter there is neither, and no acknowledged write is lost.
// It returns the first promise that was broken, or "".
func randomCuts(t *testing.T, seed uint64, tune func(c *cutter)) (wrong string, n *cutNet) {
	crashes, expels := seed&2 != 0, seed&4 != 0
	n = newCutNet(t, simConfig{
		seed: seed, nodes: 3 + int(seed%3), causal: seed&1 != 0, delay: 5 * time.Millisecond,
		loss: 0.05 * float64(seed%5), dup: 0.05, reorder: 0.05 * float64(seed%3), skew: 200 * time.Millisecond,
	}, func(c *cutter) {
		if expels {
			c.maxAge = 15 * time.Second
		}
		if tune != nil {
			tune(c)
		}
	})
	type ack struct {
		version attune.Version
		value   string // "" for a delete
	}
	newest := make(map[string]ack)
	deleted := make(map[string]attune.Version)
	for step := range 600 {
		m := n.nodes[n.rng.IntN(len(n.nodes))]
		key := fmt.Sprint("k", n.rng.IntN(12))
		if m.core != nil && m.core.synced && !m.paused {
			switch n.rng.IntN(10) {
			case 0, 1, 2, 3:
				if a := (ack{n.set(m.slot, key, fmt.Sprint(step)), fmt.Sprint(step)}); a.version > newest[key].version {
					newest[key] = a
				}
			case 4, 5, 6:
				if v := m.delete(key); v != 0 {
					deleted[key] = max(deleted[key], v)
					if v > newest[key].version {
						newest[key] = ack{version: v}
					}
				}
			case 7:
				if crashes || expels {
					m.evict(key)
				}
			case 8:
				n.keys[key] = m.replica.Hash([]byte(key))
				c, _ := m.do(attune.Op{Verb: attune.Set, Key: attune.Key{Text: []byte(key)}, Value: []byte("ttl"), Exptime: 1})
				if v := c.Item.Version; v > newest[key].version {
					newest[key] = ack{version: v}
				}
			}
		}
		switch n.rng.IntN(60) {
		case 0:
			cut := n.rng.IntN(len(n.nodes))
			n.partition(func(from, to int) bool { return (from == cut) != (to == cut) })
		case 1, 2:
			n.partition(nil)
		case 3:
			if crashes && !slices.ContainsFunc(n.nodes, func(o *simNode) bool { return o.core == nil || !o.core.synced }) {
				n.crash(m.slot) // the others have everything
			}
		case 4:
			for _, o := range n.nodes {
				if o.core == nil {
					n.restart(o.slot)
				}
			}
		case 5:
			n.pause(m.slot)
		case 6:
			for _, o := range n.nodes {
				if o.paused {
					n.resume(o.slot)
				}
			}
		case 7:
			n.run(20 * time.Second)
		case 8:
			for _, o := range n.live() {
				o.core.ring.limit = 1 + n.rng.IntN(4000) // so that not everything comes by itself
			}
		}
		n.run(time.Duration(n.rng.IntN(400)) * time.Millisecond)
	}
	n.partition(nil)
	for _, o := range n.nodes {
		if o.paused {
			n.resume(o.slot)
		}
		if o.core == nil {
			n.restart(o.slot)
		}
	}
	n.run(3 * time.Second) // what was to expire has
	equal := n.until(3*time.Minute, 50*time.Millisecond, func() bool {
		for _, m := range n.live() {
			m.replica.Free(m.core.clock.now(), 100)
		}
		return n.forgotten()
	})
	if n.wrong != "" {
		return n.wrong, n
	} else if !equal {
		return "they do not agree, or do not forget", n
	}
	for key, v := range deleted {
		if _, live := n.nodes[0].get(key); live != 0 && live < v && !crashes {
			return fmt.Sprintf("%s is there in version %d, and was deleted in version %d", key, live, v), n
		}
	}
	for key, a := range newest {
		if got, live := n.nodes[0].get(key); !crashes && !expels && string(got) != a.value {
			return fmt.Sprintf("%s is %q of version %d, and the newest write %q of version %d", key, got, live, a.value, a.version), n
		}
	}
	return "", n
}
