package faults

import (
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// A controller without a disk is killed, and comes back empty, as somebody new. It
// answers when it has what the others have.
func TestRow02ReplicaKilled(t *testing.T) {
	eachReplicaToo(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       chainedOr(level, history.Removals),
			keeps:          200,
			faults: func(s *stage) {
				for i := range pick(3, 15) {
					n := s.Nodes[i%len(s.Nodes)]
					s.lose(n)
					pause(s.t, time.Duration(i%3)*300*time.Millisecond)
					n.Start()
					if !s.WaitReady(n) {
						return
					}
					s.reads(n, s.values)
				}
			},
		})
	})
}

// With write-acks, what is acknowledged is where one kill does not reach it.
func TestRow02ReplicaKilledAfterOthersHaveIt(t *testing.T) {
	eachReplica(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Args: []string{"--write-acks", "2"}},
			workload:       history.Removals,
			faults: func(s *stage) {
				for i := range pick(3, 15) {
					n := s.Nodes[i%len(s.Nodes)]
					s.kill(n)
					pause(s.t, pick(0, time.Duration(i%3)*300*time.Millisecond))
					n.Start()
					if !s.WaitReady(n) {
						return
					}
					pause(s.t, pick(200*time.Millisecond, time.Second)) // one at a time: it has all by then
				}
			},
		})
	})
}

// Two of three are killed, and had everything only in memory. The third goes on,
// and from it they get what it has.
func TestRow03OneReplicaSurvives(t *testing.T) {
	eachReplica(t, func(t *testing.T, level string) {
		s := start(t, attunetest.ClusterOptions{Level: level})
		survivor := s.Nodes[1]
		values := s.fill(s.Nodes[0], "kept", 50)
		s.spread(survivor, values)
		lost := s.Others(survivor)
		for _, n := range lost {
			n.Kill()
		}
		for key, value := range s.fill(survivor, "alone", 50) {
			values[key] = value
		}
		delete(values, "kept-7")
		if out := s.do(survivor, history.Op{Kind: history.Delete, Key: "kept-7"}); out.Status != history.Deleted {
			t.Errorf("delete kept-7: %v", out)
		}
		// What needs a home finds another, at once or when those are known to be dead.
		attunetest.Eventually(t, "the survivor decides what others were to", func() bool {
			return ask(survivor, history.Op{Kind: history.Add, Key: "kept-3", Value: "x"}).Status == history.NotStored
		})
		values["kept-7"] = ""
		for _, n := range lost {
			n.Start()
		}
		if !s.WaitReady(lost...) {
			return
		}
		for _, n := range s.Nodes {
			s.reads(n, values)
		}
		s.spread(survivor, s.fill(lost[0], "again", 50))
	})
}

// All are killed, and had everything only in memory: a new cluster, and an empty
// one, whatever the backends still hold of the old one.
func TestRow04AllReplicasKilled(t *testing.T) {
	onlyLong(t)
	eachReplica(t, func(t *testing.T, level string) {
		s := start(t, attunetest.ClusterOptions{Level: level, Memcached: true})
		values := s.fill(s.Nodes[0], "old", 200)
		s.spread(s.Nodes[1], values)
		s.restartAll()
		for _, n := range s.Nodes {
			s.reads(n, gone(values))
		}
		values = s.fill(s.Nodes[1], "old", 200) // the same keys again
		for _, n := range s.Nodes {
			s.spread(n, values)
		}
	})
}

// All are killed, and have their journals: nothing that was acknowledged is gone.
func TestRow05AllDurableReplicasKilled(t *testing.T) {
	eachReplica(t, func(t *testing.T, level string) {
		for _, memcached := range []bool{false, true}[:pick(1, 2)] {
			t.Run(map[bool]string{false: "embedded", true: "memcached"}[memcached], func(t *testing.T) {
				run(t, scenario{
					ClusterOptions: attunetest.ClusterOptions{Level: level, Durable: true, Memcached: memcached},
					workload:       history.Removals,
					faults: func(s *stage) {
						for range pick(1, 8) {
							for _, n := range s.Nodes {
								s.kill(n)
							}
							for _, n := range s.Nodes {
								n.Start()
							}
							if !s.WaitReady(s.Nodes...) {
								return
							}
							s.progress("by all who came back")
						}
					},
				})
			})
		}
	})
}

// One with a journal is killed while the others go on, and comes back as who it was.
func TestRow05OneDurableReplicaKilled(t *testing.T) {
	onlyLong(t)
	eachReplica(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Durable: true},
			workload:       history.Removals,
			faults: func(s *stage) {
				for i := range 12 {
					n := s.Nodes[i%len(s.Nodes)]
					s.kill(n)
					pause(s.t, time.Duration(i%4)*time.Second)
					n.Start()
					if !s.WaitReady(n) {
						return
					}
				}
			},
		})
	})
}

// One after the other is stopped in order and started, the next when the one
// before is ready. Nothing is lost, with a disk or without.
func TestRow07RollingReplicas(t *testing.T) {
	eachReplicaToo(t, func(t *testing.T, level string) {
		for _, durable := range []bool{false, true}[:pick(1, 2)] {
			t.Run(map[bool]string{false: "volatile", true: "durable"}[durable], func(t *testing.T) {
				run(t, scenario{
					ClusterOptions: attunetest.ClusterOptions{Level: level, Durable: durable},
					workload:       history.Removals,
					faults: func(s *stage) {
						for range pick(1, 5) {
							for _, n := range s.Nodes {
								if took := n.Stop(); took > 5*time.Second*slack {
									s.t.Errorf("%s took %v to stop", n.Name, took)
								}
								n.Start()
								if !s.WaitReady(n) {
									return
								}
							}
						}
					},
				})
			})
		}
	})
}

// The homes of a counter are killed, one after the other, while it is incremented.
// Increments may be lost with them; none is done twice.
func TestRow12HomesKilled(t *testing.T) {
	const key = "counter"
	eachReplicaToo(t, func(t *testing.T, level string) {
		counting(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       history.Increments(key),
			clients:        12,
			bounded:        true,
			faults: func(s *stage) {
				for i := range pick(3, 15) {
					n := s.Nodes[i%len(s.Nodes)]
					s.lose(n)
					s.progress("by those who are left")
					n.Start()
					if !s.WaitReady(n) {
						return
					}
				}
			},
		}, key)
	})
}
