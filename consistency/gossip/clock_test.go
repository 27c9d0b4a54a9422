package gossip

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attunekv/attune"
)

func testClock() *clock {
	start := time.Now()
	return newClock(1, start.UnixMilli(), func() time.Duration { return time.Since(start) })
}

// Versions grow whatever happens to the clock they are made from: it stands
// still, steps back, or the key met is ahead of it.
func TestVersionsOnlyGrow(t *testing.T) {
	c := testClock()
	now := time.Now().UnixMilli()
	var last attune.Version
	for i := range 100_000 {
		switch rand.N(1000) {
		case 0:
			now += rand.Int64N(1 << 20)
		case 1:
			now -= rand.Int64N(1 << 20)
		}
		prior := attune.Version(0)
		switch i % 1000 {
		case 1:
			prior = last + attune.Version(rand.Uint64N(1<<40))
		case 2:
			prior = attune.AnyVersion
		}
		v := c.next(now, prior)
		if v <= last || prior != attune.AnyVersion && v <= prior {
			t.Fatalf("%d after %d, over %d", v, last, prior)
		}
		if uint64(v)&(1<<nodeBits-1) != c.node {
			t.Fatalf("%d is not of node %d", v, c.node)
		}
		last = v
	}
}

func TestVersionsTellTheTime(t *testing.T) {
	c := testClock()
	const now = 1800000000123
	for i := range uint64(1<<counterBits + 5) {
		v := c.next(now, 0)
		ms, counter := int64(v>>(nodeBits+counterBits))+epoch, uint64(v)>>nodeBits&(1<<counterBits-1)
		wantMS, want := now+int64(i>>counterBits), i&(1<<counterBits-1)
		if ms != wantMS || counter != want {
			t.Fatalf("version %d: %d ms, counter %d, want %d, %d", i, ms, counter, wantMS, want)
		}
	}
	if v := testClock().next(0, 0); v == 0 || v == attune.AnyVersion {
		t.Errorf("a wall clock of 1970 gives version %d", v)
	}
}

func TestVersionsAreUnique(t *testing.T) {
	c := testClock()
	const workers, each = 4, 5000
	lists := make([][]attune.Version, workers)
	var wait sync.WaitGroup
	for w := range lists {
		wait.Go(func() {
			for range each {
				lists[w] = append(lists[w], c.next(c.now(), 0))
			}
		})
	}
	wait.Wait()
	seen := map[attune.Version]bool{}
	for _, list := range lists {
		for i, v := range list {
			if seen[v] || i > 0 && v <= list[i-1] {
				t.Fatalf("version %d again", v)
			}
			seen[v] = true
		}
	}
}

func TestNowIsMonotonic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testClock()
		start := c.now()
		time.Sleep(1500 * time.Millisecond)
		if d := c.now() - start; d != 1500 {
			t.Errorf("%d ms passed, want 1500", d)
		}
	})
}
