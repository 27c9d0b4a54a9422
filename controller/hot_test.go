package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// At every level: what is read often asks no server, and what changed is not
// served from there.
func TestHotReadsAskNoServer(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Sequential, consistency.Causal, consistency.Eventual} {
		t.Run(level.String(), func(t *testing.T) {
			cfg := clusterConfig(t, level)
			cfg.Backend = "memcached://" + attunetest.StartMemcached(t).Addr
			c := dial(t, start(t, cfg))
			stats := func() map[string]string {
				c.send("stats attune\r\n")
				got := make(map[string]string)
				for line := c.line(); line != "END"; line = c.line() {
					if f := strings.Fields(line); len(f) == 3 {
						got[f[1]] = f[2]
					}
				}
				return got
			}
			// Until the server has it, a value needs no cache.
			for _, value := range []string{"first", "other"} {
				c.set("k", []byte(value))
				for end, was := time.Now().Add(patience), stats()["hot_hits"]; stats()["hot_hits"] == was && time.Now().Before(end); {
					c.ask("get k\r\n", "VALUE k 0 5\r\n"+value+"\r\nEND\r\n")
				}
			}
			before := stats()
			c.ask("get k k\r\nget k\r\n", "VALUE k 0 5\r\nother\r\nVALUE k 0 5\r\nother\r\nEND\r\nVALUE k 0 5\r\nother\r\nEND\r\n")
			after := stats()
			if gets := "backend_server_0_gets"; after[gets] != before[gets] || before[gets] == "" {
				t.Errorf("the server was asked: gets %s, then %s", before[gets], after[gets])
			}
			if before["hot_hits"] == "0" || before["hot_hits"] == after["hot_hits"] || after["hot_bytes"] == "0" || after["hot_evictions"] != "0" {
				t.Errorf("before %v\nafter %v", before, after)
			}
			c.ask("delete k\r\nget k\r\n", "DELETED\r\nEND\r\n")
			c.ask("set k 0 0 4\r\nlast\r\nflush_all\r\nget k\r\n", "STORED\r\nOK\r\nEND\r\n")
		})
	}
}

// A read of a hot value allocates nothing, from parsing to the reply; and one in a
// pipeline with values that must be fetched waits for these alone.
func TestHotReadDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools drop things")
	}
	cfg := testConfig()
	cfg.Backend, cfg.HotCache = "memcached://"+attunetest.StartMemcached(t).Addr, 1<<20
	cold := strings.Repeat("2", 30_000) // too large to be hot
	b := newBench(t, cfg)
	done := make(chan struct{}, 1)
	b.s.call.Done = func() { done <- struct{}{} }
	fetched := 0
	b.answer = func() { fetched++; <-done }
	b.feed(fmt.Sprintf("set k 0 0 1\r\n1\r\nset cold 0 0 %d\r\n%s\r\n", len(cold), cold))
	for range 3 {
		b.feed("get k\r\n")
	}
	fetched = 0
	if n := testing.AllocsPerRun(2000, func() { b.feed("get k\r\n") }); n >= 0.5 || fetched > 0 {
		t.Errorf("%v allocations per read, %d times something was fetched", n, fetched)
	}
	b.feed("get k cold nothing k\r\n")
	want := fmt.Sprintf("VALUE k 0 1\r\n1\r\nVALUE cold 0 %d\r\n%s\r\nVALUE k 0 1\r\n1\r\nEND\r\n", len(cold), cold)
	if string(b.out) != want || fetched != 1 {
		t.Errorf("%.60q... after %d fetches, want %.60q... after 1", b.out, fetched, want)
	}
}
