package faults

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// The leader is stopped. The others elect another and acknowledge a write. Then
// reads are sent to the old one, where they queue in its sockets. When it goes on,
// it still takes itself for the leader, and must not answer them by what it has.
func TestRow01LeaderPausedWithQueuedReads(t *testing.T) {
	levels(t, func(t *testing.T, level string) {
		rounds := 0
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       history.Registers,
			outage:         outage,
			faults: func(s *stage) {
				for range pick(2, 80) {
					if pausedLeader(s, fmt.Sprintf("paused-%d", rounds), level) {
						rounds++
					}
				}
			},
		})
		if want := pick(2, 80); rounds != want {
			t.Errorf("in %d of %d rounds the leader was paused and another elected", rounds, want)
		}
	}, linearizable, sequential)
}

// pausedLeader is one round. The reads it queues are part of the history; at the
// sequential level only those of one's own session have to be fresh.
func pausedLeader(s *stage, key, level string) bool {
	old := s.WaitLeader()
	if old == nil {
		return false
	}
	if out := s.rec.Ask(target(old), set(key, key+".1;")); out.Status != history.Stored {
		return false
	}
	old.Pause()
	defer old.Resume()
	fresh := s.WaitLeader(s.Others(old)...)
	if fresh == nil {
		return false
	}
	// Acknowledged before the reads are sent: none of them may be older.
	stored := false
	for range 20 {
		out := s.rec.Ask(target(fresh), set(key, key+".2;"))
		if stored = out.Status == history.Stored; stored {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			out := s.rec.Ask(target(old), get(key))
			if level == linearizable && out.Status == history.Hit && out.Value == key+".1;" {
				s.t.Errorf("a stale read of %s at %s, which was paused while another led", key, old.Name)
			}
		})
	}
	time.Sleep(50 * time.Millisecond) // they are in the sockets; nobody could tell
	old.Resume()
	wg.Wait()
	return stored
}

// The leader's words reach nobody, or nobody's words reach the leader. It must not
// go on for long believing that it leads, nor drive the others through terms.
func TestRow09OneWayPartition(t *testing.T) {
	cuts := []struct {
		name string
		cut  func(s *stage, leader, other string)
	}{
		{"leader is not heard", func(s *stage, leader, other string) { s.Net.Cut(leader, other) }},
		{"leader does not hear", func(s *stage, leader, other string) { s.Net.Cut(other, leader) }},
	}
	for _, c := range cuts[:pick(1, 2)] {
		t.Run(c.name, func(t *testing.T) {
			run(t, scenario{
				ClusterOptions: attunetest.ClusterOptions{Level: linearizable},
				workload:       history.Mixed,
				outage:         outage,
				faults: func(s *stage) {
					old := s.WaitLeader()
					if old == nil {
						return
					}
					before := s.term(old)
					for _, n := range s.Others(old) {
						c.cut(s, old.Name, n.Name)
					}
					fresh := s.WaitLeader(s.Others(old)...)
					if fresh == nil {
						return
					}
					time.Sleep(pick(time.Second, 10*time.Second)) // of storms there must be none in all that time
					s.Net.HealAll()
					fresh = s.WaitLeader()
					if fresh == nil {
						return
					}
					// One change; another may come of two who try at once.
					if after := s.term(fresh); after > before+3 {
						s.t.Errorf("the cut led from term %d to %d", before, after)
					}
				},
			})
		})
	}
}

// Two controllers do not hear each other, the third hears both.
func TestRow10BridgePartition(t *testing.T) {
	onlyLong(t)
	for _, bridge := range []bool{true, false} {
		t.Run(fmt.Sprintf("leader is the bridge %v", bridge), func(t *testing.T) {
			run(t, scenario{
				ClusterOptions: attunetest.ClusterOptions{Level: linearizable},
				workload:       history.CASRegisters,
				outage:         outage,
				faults: func(s *stage) {
					leader := s.WaitLeader()
					if leader == nil {
						return
					}
					others := s.Others(leader)
					a, c := leader, others[0]
					if bridge {
						a, c = others[0], others[1]
					}
					s.Net.Part([]string{a.Name}, []string{c.Name})
					time.Sleep(5 * time.Second)
					stable := s.WaitLeader()
					if stable == nil {
						return
					}
					term := s.term(stable)
					time.Sleep(5 * time.Second)
					if now := s.WaitLeader(); now != stable || s.term(stable) != term {
						s.t.Errorf("the leader is not stable: %s in term %d, then %v", stable.Name, term, now)
					}
				},
			})
		})
	}
}

// What was forwarded to a leader that is cut off arrives after another has led and
// written the key. Every increment counts once, or was never acknowledged.
func TestRow12ForwardArrivesAfterTheNextLeader(t *testing.T) {
	const key = "counter"
	cycles := 0
	s := counting(t, scenario{
		ClusterOptions: attunetest.ClusterOptions{Level: linearizable},
		workload:       history.Increments(key),
		clients:        16,
		faults: func(s *stage) {
			for range pick(2, 12) {
				old := s.WaitLeader()
				if old == nil {
					return
				}
				rest := s.Others(old)
				// First what one of them forwards is on its way, and held; then the leader
				// is alone.
				s.Net.Cut(rest[0].Name, old.Name)
				time.Sleep(200 * time.Millisecond)
				s.Net.Part([]string{old.Name}, []string{rest[0].Name, rest[1].Name})
				if s.WaitLeader(rest...) == nil {
					return
				}
				s.progress("by the next leader")
				s.Net.HealAll()
				s.progress("when all is delivered")
				cycles++
			}
		},
	}, key)
	if cycles == 0 {
		s.t.Error("no forward was held")
	}
}

// counting runs a scenario whose workload increments key, and checks the sum.
func counting(t *testing.T, sc scenario, key string) *stage {
	t.Helper()
	sc.sums = true
	sc.prepare = func(s *stage) {
		s.do(s.Nodes[0], set(key, fmt.Sprint(counterBegin)))
		for _, n := range s.Nodes {
			attunetest.Eventually(t, n.Name+" has the counter", func() bool { return ask(n, get(key)).Status == history.Hit })
		}
		if history.Leaderless(sc.Level) && !sc.bounded {
			pause(t, acquainted)
		}
	}
	s, h := run(t, sc)
	t.Logf("%d increments acknowledged, of %d", h.Answered(), len(h))
	return s
}

// Large values fill the connections between the controllers. The leader must not
// lose its place by that, and when it is killed the next one comes as fast as ever.
func TestRow23LargeValuesDuringElection(t *testing.T) {
	onlyLong(t)
	run(t, scenario{
		ClusterOptions: attunetest.ClusterOptions{Level: linearizable, MemoryLimit: "1GiB"},
		workload:       history.Large,
		outage:         2 * outage,
		size:           1 << 20,
		pause:          time.Millisecond,
		faults: func(s *stage) {
			leader := s.WaitLeader()
			if leader == nil {
				return
			}
			term := s.term(leader)
			time.Sleep(10 * time.Second)
			if now := s.WaitLeader(); now != leader || s.term(leader) != term {
				s.t.Errorf("%s lost its place in term %d, without a fault", leader.Name, term)
				return
			}
			leader.Kill()
			fresh := s.WaitLeader(s.Others(leader)...)
			if fresh == nil {
				return
			}
			term = s.term(fresh)
			time.Sleep(10 * time.Second)
			if now := s.WaitLeader(s.Others(leader)...); now != fresh || s.term(fresh) != term {
				s.t.Errorf("%s lost its place in term %d, without a fault", fresh.Name, term)
			}
			leader.Start()
			s.WaitReady(leader)
		},
	})
}
