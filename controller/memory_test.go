package controller

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/attunekv/attune/internal/attunetest"
)

// TestMemoryLimitHolds writes almost five times the limit in values of all sizes,
// while a few keys stay in use.
func TestMemoryLimitHolds(t *testing.T) {
	const hot = 200
	limit, written := 64<<20, 300<<20
	if raceEnabled { // a quarter of it is enough to look for races
		limit, written = limit/4, written/4
	}
	cfg := testConfig()
	cfg.MemoryLimit = int64(limit)
	n := start(t, cfg)
	c := dial(t, n)
	hotValue := pattern(1000, 1)
	var readHot strings.Builder
	for i := range hot {
		c.set(fmt.Sprint("hot", i), hotValue)
		fmt.Fprintf(&readHot, " hot%d", i)
	}
	before := heapInUse()
	big := string(pattern(200<<10, 2))
	rnd := rand.New(rand.NewPCG(1, 2))
	var ask strings.Builder
	lost := 0
	for sent, i := 0, 0; sent < written; {
		ask.Reset()
		for ask.Len() < 1<<20 {
			size := 1 << rnd.IntN(18)
			size += rnd.IntN(size)
			if size > len(big) {
				size = len(big)
			}
			fmt.Fprintf(&ask, "set cold%d 0 0 %d noreply\r\n%s\r\n", i, size, big[:size])
			i++
		}
		sent += ask.Len()
		c.ask(ask.String()+"mn\r\n", "MN\r\n")
		c.send("get" + readHot.String() + "\r\n")
		found := 0
		for line := c.line(); line != "END"; line = c.line() {
			found++
			c.line()
		}
		lost = hot - found
		if used := n.replicaStats().UsedBytes; used > int64(limit) {
			t.Fatalf("%d bytes used, the limit is %d", used, limit)
		}
	}
	st := c.stats("")
	if used, _ := strconv.Atoi(st["bytes"]); used > limit || used < limit*3/4 {
		t.Errorf("bytes %d after writing far more than the limit of %d", used, limit)
	}
	if st["evictions"] == "0" || st["store_no_memory"] != "0" {
		t.Errorf("evictions %s, store_no_memory %s", st["evictions"], st["store_no_memory"])
	}
	// Chosen among a random few each time, so a hot one may go by bad luck.
	if lost > hot/20 {
		t.Errorf("%d of %d keys in use were evicted", lost, hot)
	}
	grown := heapInUse() - before
	t.Logf("heap grew by %.1f MiB under a limit of %d; %s evictions, %d of %d hot keys lost", float64(grown)/(1<<20), limit>>20, st["evictions"], lost, hot)
	if bound := int64(limit+limit/10) + 4<<20; grown > bound {
		t.Errorf("heap grew by %d MiB, more than %d", grown>>20, bound>>20)
	}

	c.ask("flush_all\r\nget hot0\r\n", "OK\r\nEND\r\n")
	attunetest.Eventually(t, "the flushed memory is taken back", func() bool {
		st := n.replicaStats()
		return st.Items == 0 && st.UsedBytes < int64(limit)/4
	})
}

// heapInUse is the live heap, as the collector finds it.
func heapInUse() int64 {
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
