package faults

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// Something was deleted, and one controller is away for so long that the others
// forget that. It comes back with what it had, and that is gone on it, too.
func TestRow21BackWithTheDeleted(t *testing.T) {
	onlyLong(t)
	eachReplica(t, func(t *testing.T, level string) {
		for _, killed := range []bool{false, true} {
			t.Run(map[bool]string{false: "paused", true: "killed"}[killed], func(t *testing.T) {
				s := start(t, attunetest.ClusterOptions{Level: level, Durable: killed, Args: []string{"--tombstone-max-age", "1m"}})
				away := s.Nodes[2]
				old, kept := s.fill(s.Nodes[0], "old", 100), s.fill(s.Nodes[1], "kept", 100)
				for _, n := range s.Nodes {
					s.spread(n, old)
					s.spread(n, kept)
				}
				if killed {
					away.Kill()
				} else {
					away.Pause()
				}
				for key := range old {
					s.do(s.Nodes[0], history.Op{Kind: history.Delete, Key: key})
				}
				s.spread(s.Nodes[1], gone(old))
				forgotten := time.Now().Add(4 * time.Minute)
				for s.number(s.Nodes[0], "tombstones") > 0 {
					if time.Now().After(forgotten) {
						t.Error("what was deleted is not forgotten within 4 minutes")
						s.describe()
						break
					}
					pause(t, time.Second)
				}
				first := s.surveyOf(s.Nodes[:2], append(keysOf(old), keysOf(kept)...))
				if killed {
					away.Start()
				} else {
					away.Resume()
				}
				if !s.WaitReady(away) {
					return
				}
				s.spread(away, gone(old))
				second := append(written(old), written(kept)...)
				for range 20 {
					sv := s.agree(append(keysOf(old), keysOf(kept)...))
					second = second.With(sv)
					pause(t, 100*time.Millisecond)
				}
				if err := history.Settled(second, first, history.Rules{}); err != nil {
					t.Error(err)
				}
				for _, n := range s.Nodes {
					s.reads(n, kept)
				}
			})
		}
	})
}

// written are the sets of values as events, before all others.
func written(values map[string]string) (h history.History) {
	for key, value := range values {
		h = append(h, history.Event{Op: set(key, value), Out: history.Outcome{Status: history.Stored}, Return: 1})
	}
	return h
}

func keysOf(values map[string]string) (keys []string) {
	for key := range values {
		keys = append(keys, key)
	}
	return keys
}

// surveyOf is what some controllers hold, who must agree.
func (s *stage) surveyOf(nodes []*attunetest.Controller, keys []string) (sv history.Survey) {
	s.t.Helper()
	var targets []history.Target
	for _, n := range nodes {
		targets = append(targets, target(n))
	}
	sv, err := s.settle(targets, keys, attunetest.Patience)
	if err != nil {
		s.t.Fatal(err)
	}
	return sv
}

// number is one of the stats of a controller.
func (s *stage) number(n *attunetest.Controller, name string) (value uint64) {
	s.t.Helper()
	stats, err := n.Stats("attune")
	if err == nil {
		value, err = strconv.ParseUint(stats[name], 10, 64)
	}
	if err != nil {
		s.t.Errorf("stats of %s: %s: %v", n.Name, name, err)
	}
	return value
}

// An item that expires soon takes the place of one that does not, where one
// controller does not hear of it. It expires everywhere before that one hears
// again: the old value is not shown by anybody who had missed it.
func TestRow22ExpiredOverMissed(t *testing.T) {
	eachReplicaToo(t, func(t *testing.T, level string) {
		s := start(t, attunetest.ClusterOptions{Level: level})
		values := s.fill(s.Nodes[0], "old", 30)
		for _, n := range s.Nodes {
			s.spread(n, values)
		}
		missed := s.Nodes[2]
		for _, broken := range []bool{false, true} {
			for _, n := range s.Others(missed) {
				s.Net.Part([]string{missed.Name}, []string{n.Name})
				if broken {
					s.Net.Break(missed.Name, n.Name)
					s.Net.Break(n.Name, missed.Name)
				}
			}
			for key := range values {
				if got := s.say(s.Nodes[0], "set "+key+" 0 1 3", "new"); got != "STORED" {
					t.Fatalf("set %s: %q", key, got)
				}
			}
			for _, n := range s.Others(missed) {
				s.spread(n, gone(values)) // they expired
			}
			s.reads(missed, values)
			first := s.surveyOf(s.Others(missed), keysOf(values))
			s.Net.HealAll()
			s.spread(missed, gone(values))
			after := written(values)
			for range 10 {
				after = after.With(s.agree(keysOf(values)))
				pause(t, 50*time.Millisecond)
			}
			if err := history.Settled(after, first, history.Rules{}); err != nil {
				t.Error(err)
			}
			values = s.fill(missed, "old", 30)
			for _, n := range s.Nodes {
				s.spread(n, values)
			}
		}
	})
}

// Many connections on all controllers increment one key. Its home does it, so that
// while nobody comes or goes none is lost.
func TestRow27OneHotCounterOfReplicas(t *testing.T) {
	const key = "hot"
	eachReplica(t, func(t *testing.T, level string) {
		counting(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       history.Increments(key),
			clients:        pick(64, 256),
			pause:          time.Nanosecond,
			rules:          history.Rules{Shared: true},
			faults: func(s *stage) {
				begin, from := s.rec.Answered(), s.rec.Now()
				pause(s.t, pick(time.Second, 10*time.Second))
				seconds := float64(s.rec.Now()-from) / 1e9
				t.Logf("%.0f increments a second, with the clients on this machine", float64(s.rec.Answered()-begin)/seconds)
			},
		}, key)
	})
}

// Frames come late, twice, and out of order, and yet while nobody comes or goes no
// increment is lost.
func TestRow27CounterInASlowNetwork(t *testing.T) {
	const key = "slow"
	onlyLong(t)
	eachReplica(t, func(t *testing.T, level string) {
		counting(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       history.Increments(key),
			clients:        24,
			faults: func(s *stage) {
				s.Net.All(s.Names(), attunetest.Rule{Duplicate: 0.3, Delay: 20 * time.Millisecond, Jitter: 30 * time.Millisecond})
				pause(s.t, 15*time.Second)
			},
		}, key)
	})
}

// flush_all races with sets on all controllers, one of which is cut off now and
// then.
func TestRow28FlushAmongReplicas(t *testing.T) {
	eachReplicaToo(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       history.Flushes,
			lossy:          true,
			faults: func(s *stage) {
				for i := range pick(2, 10) {
					one := s.Names()[i%3]
					s.Net.Part([]string{one}, s.Names(one))
					pause(s.t, time.Second)
					s.Net.HealAll()
					pause(s.t, 500*time.Millisecond)
				}
			},
		})
	})
}

// One controller's backend restarts empty: the bytes are at its peers.
func TestRow14OneReplicasBackendEmpty(t *testing.T) {
	onlyLong(t)
	eachReplica(t, func(t *testing.T, level string) {
		oneBackend(t, level, func(m *attunetest.Memcached) {
			m.Kill()
			m.Start()
		})
	})
}

// All backends restart empty. What nobody has any more is a miss for all, and
// stays one until it is written again.
func TestRow15AllReplicasBackendsEmpty(t *testing.T) {
	onlyLong(t)
	eachReplica(t, func(t *testing.T, level string) {
		s := start(t, attunetest.ClusterOptions{Level: level, Memcached: true})
		values := s.fill(s.Nodes[0], "before", 100)
		for _, n := range s.Nodes {
			s.spread(n, values)
		}
		for _, n := range s.Nodes {
			n.Memcached.Kill()
			n.Memcached.Start()
		}
		first := s.agree(keysOf(values))
		for _, n := range s.Nodes {
			s.spread(n, gone(values))
		}
		if err := history.Settled(written(values).With(s.agree(keysOf(values))), first, history.Rules{Lossy: true}); err != nil {
			t.Error(err)
		}
		values = s.fill(s.Nodes[1], "before", 100)
		for _, n := range s.Nodes {
			s.spread(n, values)
		}
	})
}

// More is written than fits, to all controllers, and overwritten, deleted and read
// in between. They stay within their limit and agree on what is left.
func TestMemoryLimitOfReplicas(t *testing.T) {
	eachReplica(t, func(t *testing.T, level string) {
		const limit = 16 << 20
		s := start(t, attunetest.ClusterOptions{Level: level, MemoryLimit: strconv.Itoa(limit)})
		var wg sync.WaitGroup
		end := time.Now().Add(pick(3*time.Second, 60*time.Second))
		for i := range 6 {
			wg.Go(func() { churn(s.t, s.Nodes[i%3], uint64(i), end) })
		}
		most := uint64(0)
		for time.Now().Before(end) {
			pause(t, 100*time.Millisecond)
			for _, n := range s.Nodes {
				most = max(most, s.bytes(n))
			}
		}
		wg.Wait()
		t.Logf("%d of %d bytes at most", most, limit)
		if most > limit+limit/8 {
			t.Errorf("%d bytes are in use where %d are allowed", most, limit)
		}
		var keys []string
		for i := range churnKeys {
			keys = append(keys, churnKey(i))
		}
		sv := s.agree(keys)
		hits := 0
		for _, out := range sv.Nodes[s.Nodes[0].Name] {
			if out.Status == history.Hit {
				hits++
			}
		}
		t.Logf("%d of %d keys are left", hits, churnKeys)
		if hits == 0 {
			t.Error("nothing is left")
		}
	})
}

func (s *stage) bytes(n *attunetest.Controller) uint64 {
	s.t.Helper()
	stats, err := n.Stats("")
	value, _ := strconv.ParseUint(stats["bytes"], 10, 64)
	if err != nil || value == 0 {
		s.t.Errorf("stats of %s: bytes %q, %v", n.Name, stats["bytes"], err)
	}
	return value
}

const churnKeys = 10000

func churnKey(i int) string { return fmt.Sprintf("churn-%d", i) }

// churn sets keys to 4 KiB, deletes and reads them, many at a time, until end.
func churn(t *testing.T, n *attunetest.Controller, seed uint64, end time.Time) {
	c, err := history.Dial(n.Listen, false, attunetest.Patience)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	r := rand.New(rand.NewPCG(seed, 0))
	for i := 0; time.Now().Before(end); i++ {
		op := history.Op{Key: churnKey(r.IntN(churnKeys))}
		switch r.IntN(8) {
		case 0:
			op.Kind = history.Delete
		case 1:
			op.Kind = history.Get
		default:
			op.Kind, op.Value = history.Set, fmt.Sprintf("%d.%d;", seed, i)
		}
		if out := c.Do(op, 4<<10); out.Status == history.Unknown || out.Status == history.Broken {
			t.Errorf("%s: %v: %v", n.Name, op, out)
			return
		}
	}
}
