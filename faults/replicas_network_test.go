package faults

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// Two halves do not hear each other. Both go on, reading and writing.
func TestRow08HalvesApart(t *testing.T) {
	eachReplica(t, func(t *testing.T, level string) {
		for name, nodes := range map[string]int{"1 of 3": 3, "2 of 5": 5} {
			if !long && nodes != 3 {
				continue
			}
			t.Run(name, func(t *testing.T) {
				run(t, scenario{
					ClusterOptions: attunetest.ClusterOptions{Level: level, Nodes: nodes},
					workload:       history.Removals,
					going:          true,
					rules:          history.Rules{Shared: true},
					faults: func(s *stage) {
						all := s.Names()
						for i := range pick(2, 10) {
							// All together count as cut off from some others, by turns.
							few := append(slices.Clone(all[i%nodes:]), all[:i%nodes]...)[:(nodes-1)/2]
							s.Net.Part(few, s.Names(few...))
							pause(s.t, pick(time.Second, time.Duration(1+i%3*5)*time.Second))
							s.Net.HealAll()
							pause(s.t, pick(500*time.Millisecond, time.Second))
						}
					},
				})
			})
		}
	})
}

// As long as it lasts, what one side writes is more than its controllers keep to
// be sent again: the two have to find out what they differ in.
func TestRow08ApartForMoreThanIsKept(t *testing.T) {
	eachReplicaToo(t, func(t *testing.T, level string) {
		w := chainedOr(level, history.Large)
		s, _ := run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, MemoryLimit: "512MiB"},
			workload:       w,
			size:           200 << 10,
			pause:          10 * time.Millisecond,
			rules:          history.Rules{Shared: true},
			faults: func(s *stage) {
				for range pick(1, 5) {
					for i, a := range s.Names() {
						for _, b := range s.Names()[i+1:] {
							s.Net.Break(a, b)
							s.Net.Break(b, a)
						}
					}
					values := s.fill(s.Nodes[0], "apart", 100)
					pause(s.t, pick(2*time.Second, 10*time.Second))
					s.Net.HealAll()
					for _, n := range s.Nodes {
						s.spread(n, values)
					}
				}
			},
		})
		reconciles := 0
		for _, n := range s.Nodes {
			if stats, err := n.Stats("attune"); err != nil {
				t.Error(err)
			} else if stats["reconciles"] != "0" {
				reconciles++
			}
		}
		if reconciles == 0 {
			t.Error("nobody had to find out what was different: the row does not test what it should")
		}
	})
}

// What one says is not heard by the others, or what the others say is not heard by
// one. All go on; what is heard is shown.
func TestRow09OneIsDeafOrMute(t *testing.T) {
	eachReplica(t, func(t *testing.T, level string) {
		for _, deaf := range []bool{true, false}[:pick(1, 2)] {
			t.Run(map[bool]string{true: "deaf", false: "mute"}[deaf], func(t *testing.T) {
				run(t, scenario{
					ClusterOptions: attunetest.ClusterOptions{Level: level},
					workload:       history.Removals,
					going:          true,
					rules:          history.Rules{Shared: true},
					faults: func(s *stage) {
						one := s.Nodes[0]
						for _, n := range s.Others(one) {
							if deaf {
								s.Net.Cut(n.Name, one.Name)
							} else {
								s.Net.Cut(one.Name, n.Name)
							}
						}
						speaks, hears := one, s.Nodes[1]
						if !deaf {
							speaks, hears = s.Nodes[1], one
						}
						for i := range pick(1, 10) {
							s.spread(hears, s.fill(speaks, fmt.Sprint("heard-", i), 20))
							pause(s.t, pick(2*time.Second, 3*time.Second))
						}
					},
				})
			})
		}
	})
}

// Two controllers do not hear each other, the third hears both: it tells each what
// the other said.
func TestRow10ThirdRelays(t *testing.T) {
	eachReplica(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       history.Chained,
			going:          true,
			rules:          history.Rules{Shared: true},
			faults: func(s *stage) {
				a, c := s.Nodes[0], s.Nodes[2]
				s.Net.Part([]string{a.Name}, []string{c.Name})
				for i := range pick(3, 10) {
					began := time.Now()
					s.spread(c, s.fill(a, fmt.Sprint("relayed-", i), 20))
					took := time.Since(began)
					s.t.Logf("relayed within %v", took.Round(time.Millisecond))
					if took > settling {
						s.t.Errorf("that is more than %v", settling)
					}
					pause(s.t, pick(500*time.Millisecond, 2*time.Second))
				}
			},
		})
	})
}

// Cuts come and go, and connections are broken.
func TestRow10FlappingCuts(t *testing.T) {
	eachReplicaToo(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Nodes: pick(3, 5)},
			workload:       history.Removals,
			going:          true,
			rules:          history.Rules{Shared: true},
			faults: func(s *stage) {
				all := s.Names()
				for i := range pick(8, 100) {
					a, b := all[i%len(all)], all[(i+1)%len(all)]
					switch i % 4 {
					case 0:
						s.Net.Part([]string{a}, s.Names(a))
					case 1:
						s.Net.Break(a, b)
						s.Net.Break(b, a)
					case 2:
						s.Net.Cut(a, b)
					case 3:
						s.Net.Set(a, b, attunetest.Rule{Drop: 0.5, Duplicate: 0.5, Jitter: 300 * time.Millisecond})
					}
					pause(s.t, time.Duration(100+i%5*150)*time.Millisecond)
					if i%3 == 0 {
						s.Net.HealAll()
						pause(s.t, time.Duration(i%7*50)*time.Millisecond)
					}
				}
			},
		})
	})
}

// Frames between controllers are lost, late, come twice and out of order.
func TestRow11BadNetworkOfReplicas(t *testing.T) {
	workloads := map[string][]history.Workload{
		// What others decide need not be here in time at the eventual level, so there a
		// connection may go back; sets and deletes it may not.
		causal:   {history.Chained, history.Removals, history.Mixed, history.CASRegisters, history.Locks, history.Appends},
		eventual: {history.Removals, history.Registers},
	}
	eachReplica(t, func(t *testing.T, level string) {
		for _, w := range workloads[level][:pick(1, len(workloads[level]))] {
			t.Run(w.Name, func(t *testing.T) {
				run(t, scenario{
					ClusterOptions: attunetest.ClusterOptions{Level: level},
					workload:       w,
					rules:          history.Rules{Shared: true},
					faults: func(s *stage) {
						s.Net.All(s.Names(), attunetest.Rule{
							Drop: 0.3, Duplicate: 0.2, Reorder: 0.2, Delay: pick(20*time.Millisecond, 200*time.Millisecond), Jitter: 50 * time.Millisecond,
						})
						pause(s.t, pick(3*time.Second, 30*time.Second))
					},
				})
			})
		}
	})
}

// The same for a counter: what came twice is not done twice.
func TestRow11CounterInABadNetwork(t *testing.T) {
	const key = "counter"
	onlyLong(t)
	eachReplica(t, func(t *testing.T, level string) {
		counting(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       history.Increments(key),
			clients:        12,
			bounded:        true,
			faults: func(s *stage) {
				s.Net.All(s.Names(), attunetest.Rule{Drop: 0.2, Duplicate: 0.3, Reorder: 0.2, Delay: 20 * time.Millisecond, Jitter: 50 * time.Millisecond})
				pause(s.t, 20*time.Second)
			},
		}, key)
	})
}
