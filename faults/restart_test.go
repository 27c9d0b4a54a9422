package faults

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// A follower without a disk is killed and comes back, empty, as somebody new. It
// takes part again when it has everything: then the other follower is killed, and
// the majority needs it.
func TestRow02VolatileFollowerKilled(t *testing.T) {
	levels(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       history.Mixed,
			outage:         outage / 2, // the leader stays, so nothing stops
			faults: func(s *stage) {
				leader := s.WaitLeader()
				if leader == nil {
					return
				}
				followers := s.Others(leader)
				for i := range pick(2, 10) {
					if !followers[i%2].Restart() {
						return
					}
				}
				followers[0].Kill()
				s.progress("by a majority that needs who came back")
				followers[0].Start()
				s.WaitReady(followers...)
			},
		})
	}, linearizable, sequential)
}

// Two of three that had everything only in memory are gone. Nobody can know what
// was acknowledged, so nobody may act as if: not the survivor alone, and not the
// two with each other.
func TestRow03VolatileMajorityLost(t *testing.T) {
	onlyLong(t)
	levels(t, func(t *testing.T, level string) {
		s := start(t, attunetest.ClusterOptions{Level: level})
		leader := s.WaitLeader()
		if leader == nil {
			return
		}
		survivor := s.Others(leader)[0]
		values := s.fill(leader, "kept", 20)
		s.reads(survivor, values) // it has them all
		lost := s.Others(survivor)
		for _, n := range lost {
			n.Kill()
		}
		for _, n := range lost {
			n.Start()
		}
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			for _, n := range s.Nodes {
				if out := ask(n, set("new", "new.1;")); out.Status != history.Unknown {
					t.Fatalf("%s answers a write without a majority: %v", n.Name, out)
				}
				out := ask(n, get("kept-3"))
				switch {
				case out.Status == history.Unknown:
				case level == sequential && n == survivor && out.Value == values["kept-3"]:
				default:
					t.Fatalf("%s answers a read without a majority: %v", n.Name, out)
				}
			}
		}
		if level == sequential {
			s.reads(survivor, values) // it still may, alone
		}
		for _, n := range lost {
			if n.Ready() == nil {
				t.Errorf("%s is ready, though a majority has lost its memory", n.Name)
			}
		}
	}, linearizable, sequential)
}

// All are killed, and had everything only in memory: what starts is a new cluster,
// and it is empty, whatever the backends still hold of the old one.
func TestRow04AllVolatileKilled(t *testing.T) {
	onlyLong(t)
	s := start(t, attunetest.ClusterOptions{Level: linearizable, Memcached: true})
	values := s.fill(s.Nodes[0], "old", 200)
	s.reads(s.Nodes[1], values)
	s.restartAll()
	for _, n := range s.Nodes {
		s.reads(n, gone(values))
	}
	s.reads(s.Nodes[2], s.fill(s.Nodes[1], "old", 200)) // the same keys again
}

// restartAll kills all controllers at once and starts them again.
func (s *stage) restartAll() {
	s.t.Helper()
	for _, n := range s.Nodes {
		n.Kill()
	}
	for _, n := range s.Nodes {
		n.Start()
	}
	s.WaitReady(s.Nodes...)
}

// All are killed, and have their logs: they are who they were, and everything that
// was acknowledged is there.
func TestRow05AllDurableKilled(t *testing.T) {
	for _, memcached := range []bool{false, true}[:pick(1, 2)] {
		t.Run(map[bool]string{false: "embedded", true: "memcached"}[memcached], func(t *testing.T) {
			run(t, scenario{
				ClusterOptions: attunetest.ClusterOptions{Level: linearizable, Durable: true, Memcached: memcached},
				workload:       history.Mixed,
				faults: func(s *stage) {
					for range pick(1, 5) {
						s.restartAll()
						s.progress("by all who came back")
					}
				},
			})
		})
	}
}

// After a power failure the kernel has another boot id. What was not forced to the
// disk may be gone, so that it counts for nothing; what was, is there.
func TestRow06PowerFailure(t *testing.T) {
	onlyLong(t)
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		t.Skip("only root of a Linux can show a process another boot id")
	}
	for _, sync := range []string{"os", "always"} {
		t.Run(sync, func(t *testing.T) {
			s := start(t, attunetest.ClusterOptions{Level: linearizable, Durable: true, Sync: sync})
			values := s.fill(s.Nodes[0], "old", 100)
			bootID := filepath.Join(t.TempDir(), "boot_id")
			if err := os.WriteFile(bootID, []byte("01234567-89ab-cdef-0123-456789abcdef\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, n := range s.Nodes {
				n.Kill()
			}
			for _, n := range s.Nodes {
				// In a mount namespace of its own, that ends with it.
				n.Prefix = []string{"unshare", "-m", "sh", "-c",
					`mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`, bootID}
				n.Start()
			}
			s.WaitReady(s.Nodes...)
			if sync == "os" {
				values = gone(values)
			}
			for _, n := range s.Nodes {
				s.reads(n, values)
			}
		})
	}
}

// One after the other is stopped in order and started, the next when the one
// before is ready.
func TestRow07RollingRestart(t *testing.T) {
	for _, durable := range []bool{false, true}[:pick(1, 2)] {
		t.Run(map[bool]string{false: "volatile", true: "durable"}[durable], func(t *testing.T) {
			run(t, scenario{
				ClusterOptions: attunetest.ClusterOptions{Level: linearizable, Durable: durable},
				workload:       history.Registers,
				outage:         outage,
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
}
