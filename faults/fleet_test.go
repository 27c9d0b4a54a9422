package faults

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// fleets starts memcacheds, so many for each controller, with these arguments, and has
// the controllers use them: one after the other is started again, as all of a cluster
// have the same command line.
func (s *stage) fleets(each int, args ...string) (fleets [][]*attunetest.Memcached) {
	s.t.Helper()
	for _, n := range s.Nodes {
		var fleet []*attunetest.Memcached
		var addrs []string
		for range each {
			m := attunetest.StartMemcached(s.t, args...)
			fleet, addrs = append(fleet, m), append(addrs, m.Addr)
		}
		n.Stop()
		// Of a flag that is given twice the last one counts.
		n.Prefix = []string{"sh", "-c", `exec "$@" --backend memcached://` + strings.Join(addrs, ","), "sh"}
		n.Start()
		if !s.WaitReady(n) {
			s.t.FailNow()
		}
		fleets = append(fleets, fleet)
	}
	return fleets
}

// One of two memcacheds of a controller dies, hangs, or is another at once: what it
// had comes from the other controllers, and the other one is not slowed down.
func TestStoreOneOfTwo(t *testing.T) {
	eachStoreLevel(t, func(t *testing.T, level string) {
		var fleets [][]*attunetest.Memcached
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Args: []string{"--op-timeout", "3s"}},
			workload:       history.Mixed,
			prepare:        func(s *stage) { fleets = s.fleets(2) },
			keeps:          100,
			unfailing:      true,
			faults: func(s *stage) {
				n, m := s.Nodes[1], fleets[1][1]
				m.Pause()
				s.reads(n, s.values)
				s.progress("with a memcached that hangs")
				m.Resume()
				m.Kill()
				s.reads(n, s.values)
				s.progress("with a memcached dead")
				m.Start()
				s.reads(n, s.values)
				m.Kill() // it is another the next moment
				m.Start()
				s.reads(n, s.values)
				s.progress("with another memcached")
			},
		})
	}, causal)
}

// The memcacheds have room for a small part of the data. What is read is right, or a
// miss, and what is missing is not fetched over and over.
func TestStoreSmallerThanTheData(t *testing.T) {
	onlyLong(t)
	eachStoreLevel(t, func(t *testing.T, level string) {
		s := start(t, attunetest.ClusterOptions{Level: level, Args: []string{"--op-timeout", "3s", "--hot-cache", "0"}})
		s.fleets(1, "-m", "2")
		const keys, size = 3000, 8000
		value := func(i int) string { return strings.Repeat(fmt.Sprintf("%08d", i), size/8) }
		c, err := history.Dial(s.Nodes[0].Listen, false, attunetest.Patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for i := range keys {
			if out := c.Do(set(fmt.Sprint("k", i), value(i)), 0); out.Status != history.Stored {
				t.Fatalf("set k%d: %.100v", i, out)
			}
		}
		// Long enough for a pass every time that the store is looked at.
		const looks = 10
		hits, missed := 0, make(map[int]bool)
		for end := time.Now().Add(looks * 2 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			i := rand.IntN(keys)
			n := s.Nodes[rand.IntN(len(s.Nodes))]
			switch out := s.do(n, get(fmt.Sprint("k", i))); {
			case out.Status == history.Miss:
				missed[i] = true
			case level == linearizable && missed[i]:
				t.Errorf("k%d was gone, and is there at %s", i, n.Name)
			case out.Status != history.Hit || out.Value != value(i):
				t.Errorf("k%d at %s: %.100v", i, n.Name, out)
			default:
				hits++
			}
		}
		t.Logf("%d hits, %d keys missed", hits, len(missed))
		if len(missed) == 0 {
			t.Error("all had room")
		}
		for _, n := range s.Nodes {
			stats, err := n.Stats("attune")
			if err != nil {
				t.Fatal(err)
			}
			passes, err := strconv.Atoi(stats["fill_passes"])
			t.Logf("%s: %s passes, %s values fetched by them", n.Name, stats["fill_passes"], stats["fill_fetched"])
			if err != nil || passes > looks/2 {
				t.Errorf("%s made %q passes in %d looks", n.Name, stats["fill_passes"], looks)
			}
		}
	})
}
