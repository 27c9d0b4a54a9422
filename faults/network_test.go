package faults

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// The leader, or a follower, is cut off from all others. The majority goes on. The
// minority answers no command at the linearizable level, and at the sequential
// level reads alone.
func TestRow08MinorityPartitioned(t *testing.T) {
	onlyLong(t)
	levels(t, func(t *testing.T, level string) {
		for name, nodes := range map[string]int{"2 of 3": 3, "3 of 5": 5} {
			t.Run(name, func(t *testing.T) {
				run(t, scenario{
					ClusterOptions: attunetest.ClusterOptions{Level: level, Nodes: nodes},
					workload:       history.Mixed,
					outage:         outage,
					faults: func(s *stage) {
						for range 3 {
							leader := s.WaitLeader()
							if leader == nil {
								return
							}
							minority := append([]*attunetest.Controller{leader}, s.Others(leader)[:(nodes-1)/2-1]...)
							part(s, level, minority)
							s.Net.HealAll()
							s.progress("when the cut is healed")
						}
					},
				})
			})
		}
	}, linearizable, sequential)
}

// part cuts minority off through the Network and checks how both sides behave.
func part(s *stage, level string, minority []*attunetest.Controller) {
	s.t.Helper()
	majority := s.Others(minority...)
	s.Net.Part(names(minority), names(majority))
	parted(s, level, minority, majority)
}

// parted checks how both sides of a cut behave once they noticed it.
func parted(s *stage, level string, minority, majority []*attunetest.Controller) {
	s.t.Helper()
	if s.WaitLeader(majority...) == nil {
		return
	}
	out := s.do(majority[0], set("parted", "parted.1;"))
	if out.Status != history.Stored {
		s.t.Errorf("the majority does not write: %v", out)
	}
	for _, n := range minority {
		if out := ask(n, set("other", "other.1;")); out.Status != history.Unknown {
			s.t.Errorf("%s writes, cut off from the majority: %v", n.Name, out)
		}
		out := ask(n, get("parted"))
		switch {
		case out.Status == history.Unknown:
			if level == sequential {
				s.t.Errorf("%s does not read what it has, cut off from the majority: %v", n.Name, out)
			}
		case level == linearizable:
			s.t.Errorf("%s reads, cut off from the majority: %v", n.Name, out)
		}
	}
}

func names(nodes []*attunetest.Controller) (s []string) {
	for _, n := range nodes {
		s = append(s, n.Name)
	}
	return s
}

// Frames between controllers are lost, late, come twice and out of order.
func TestRow11BadNetwork(t *testing.T) {
	for _, w := range []history.Workload{history.Counters, history.Mixed, history.CASRegisters, history.Locks, history.Appends}[:pick(1, 5)] {
		t.Run(w.Name, func(t *testing.T) {
			run(t, scenario{
				ClusterOptions: attunetest.ClusterOptions{Level: linearizable},
				workload:       w,
				clients:        6,
				faults: func(s *stage) {
					s.Net.All(s.Names(), attunetest.Rule{
						Drop: 0.3, Duplicate: 0.2, Reorder: 0.2, Delay: pick(20*time.Millisecond, 200*time.Millisecond), Jitter: 50 * time.Millisecond,
					})
					pause(s.t, pick(4*time.Second, 30*time.Second))
					var lost uint64
					for _, a := range s.Names() {
						for _, b := range s.Names(a) {
							lost += s.Net.Traffic(a, b).Dropped
						}
					}
					if lost == 0 {
						s.t.Error("the network lost nothing")
					}
				},
			})
		})
	}
}

// pause lets the fault last.
func pause(t *testing.T, d time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
}

// Cuts come and go at random while everything else goes on.
func TestRow11ChangingNetwork(t *testing.T) {
	onlyLong(t)
	run(t, scenario{
		ClusterOptions: attunetest.ClusterOptions{Level: linearizable, Durable: true},
		workload:       history.Mixed,
		faults: func(s *stage) {
			all := s.Names()
			for i := range 20 {
				from := all[i%len(all)]
				for j, to := range slices.Backward(all) {
					switch {
					case from == to:
					case i%4 == 0:
						s.Net.Break(from, to)
					case i%4 == 1:
						s.Net.Cut(to, from)
					case j%2 == 0:
						s.Net.Set(from, to, attunetest.Rule{Drop: 0.5, Duplicate: 0.5, Jitter: 300 * time.Millisecond})
					default:
						s.Net.Cut(from, to)
					}
				}
				pause(s.t, 1500*time.Millisecond)
				s.Net.HealAll()
				pause(s.t, 500*time.Millisecond)
			}
		},
	})
}
