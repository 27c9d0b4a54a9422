package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// All are killed at once in mid-write, with their bytes in files: what was
// acknowledged is there, and what was deleted is not, at every level, for one
// controller as for three.
func TestRow05AllKilledOverPebble(t *testing.T) {
	for i, level := range []string{linearizable, sequential, causal, eventual} {
		for j, nodes := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s %d", level, nodes), func(t *testing.T) {
				if i%2 == j {
					onlyLong(t)
				}
				workload := history.Mixed
				if i >= 2 {
					workload = history.Removals
				}
				run(t, scenario{
					ClusterOptions: attunetest.ClusterOptions{Level: level, Nodes: nodes, Pebble: true},
					workload:       workload,
					faults: func(s *stage) {
						for range pick(2, 8) {
							for _, n := range s.Nodes {
								if i >= 2 {
									s.kill(n)
								} else {
									n.Kill()
								}
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
	}
}

// One after the other is killed in mid-write, with its bytes in files, and comes back
// with them.
func TestRow05OneKilledOverPebble(t *testing.T) {
	eachStoreLevel(t, func(t *testing.T, level string) {
		workload := history.Mixed
		if history.Leaderless(level) {
			workload = history.Removals
		}
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Pebble: true},
			workload:       workload,
			keeps:          100,
			faults: func(s *stage) {
				for i := range pick(1, 6) {
					n := s.Nodes[i%len(s.Nodes)]
					if history.Leaderless(level) {
						s.kill(n)
					} else {
						n.Kill()
					}
					s.progress("by those who are left")
					n.Start()
					if !s.WaitReady(n) {
						return
					}
					s.reads(n, s.values)
				}
			},
		})
	}, causal)
}

const bigSize = 500_000

// forget writes as much as has a state written, so that the log before it counts for
// nothing.
func (s *stage) forget(n *attunetest.Controller) {
	s.t.Helper()
	states := func() string {
		names, _ := filepath.Glob(filepath.Join(s.Dir(), n.Name, "state", "state-*"))
		return strings.Join(names, " ")
	}
	was := states()
	big := strings.Repeat("x", bigSize)
	for i := range 180 {
		key := fmt.Sprintf("big%d", i%50)
		attunetest.Eventually(s.t, "the disk has taken "+key, func() bool {
			got := s.say(n, fmt.Sprintf("set %s 0 0 %d", key, bigSize), big)
			if got != "STORED" && !strings.HasPrefix(got, "SERVER_ERROR") { // which a slow disk may cost
				s.t.Fatalf("set %s: %q", key, got)
			}
			return got == "STORED"
		})
	}
	attunetest.Eventually(s.t, "a state is written", func() bool { now := states(); return now != "" && now != was })
}

// What the store took over from the log, which forgot it, outlives all of them, too.
func TestRow05PebbleHasWhatTheLogForgot(t *testing.T) {
	for i, level := range []string{linearizable, causal} {
		t.Run(level, func(t *testing.T) {
			if i == 0 {
				onlyLong(t)
			}
			s := start(t, attunetest.ClusterOptions{Level: level, Nodes: 1, Pebble: true})
			n := s.Nodes[0]
			values := s.fill(n, "old", 300)
			if out := s.do(n, history.Op{Kind: history.Delete, Key: "old-7"}); out.Status != history.Deleted {
				t.Fatal(out)
			}
			delete(values, "old-7")
			s.say(n, "set short 0 3 1", "x")
			s.say(n, "set long 0 1000 4", "stay")
			s.forget(n)
			for key, value := range s.fill(n, "new", 300) {
				values[key] = value
			}
			s.restartAll()
			s.reads(n, values)
			if got := s.say(n, "get old-7"); strings.Contains(got, "VALUE") {
				t.Errorf("what was deleted is back: %q", got)
			}
			if got := s.say(n, "get long"); !strings.HasPrefix(got, "VALUE long 0 4") {
				t.Errorf("an item that has not expired: %q", got)
			}
			for i := range 50 {
				if got := s.say(n, fmt.Sprintf("get big%d", i)); got != fmt.Sprintf("VALUE big%d 0 %d", i, bigSize) {
					t.Errorf("get big%d: %q", i, got)
				}
			}
			attunetest.Eventually(t, "what expires does", func() bool { return !strings.Contains(s.say(n, "get short"), "VALUE") })
		})
	}
}

// A disk that fills up costs writes, and only as long as it is full.
func TestRow20DiskWithoutRoom(t *testing.T) {
	for _, level := range []string{eventual, sequential} {
		t.Run(level, func(t *testing.T) {
			if level == sequential {
				onlyLong(t)
			}
			disk := attunetest.SmallDisk(t, 256<<20)
			s := start(t, attunetest.ClusterOptions{Level: level, Nodes: 1, Args: []string{"--backend", "pebble://" + disk + "/attune"}})
			n := s.Nodes[0]
			values := s.fill(n, "kept", 100)
			filler := filepath.Join(disk, "filler")
			if err := os.WriteFile(filler, make([]byte, 200<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			attunetest.Eventually(t, "writes are refused", func() bool {
				answer := s.say(n, "set more 0 0 1", "x")
				return strings.HasPrefix(answer, "SERVER_ERROR") && strings.Contains(answer, "disk is full")
			})
			s.reads(n, values)
			if out := s.do(n, history.Op{Kind: history.Delete, Key: "kept-3"}); out.Status != history.Deleted {
				t.Errorf("delete, which makes room: %v", out)
			}
			delete(values, "kept-3")
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			attunetest.Eventually(t, "writes are accepted", func() bool { return s.say(n, "set more 0 0 1", "x") == "STORED" })
			s.restartAll()
			s.reads(n, values)
		})
	}
}

// Files of a stopped controller are damaged: what was in them it has from the others,
// and alone it answers misses. If it is the list of the files, it begins empty and has all
// of it again before anybody asks.
func TestRow17DamagedFiles(t *testing.T) {
	for _, test := range []struct {
		level string
		nodes int
		files string
	}{{causal, 3, "*.sst"}, {causal, 3, "MANIFEST-*"}, {linearizable, 1, "*.sst"}, {linearizable, 3, "*.sst"}, {linearizable, 3, "MANIFEST-*"}, {eventual, 1, "*.sst"}} {
		t.Run(fmt.Sprintf("%s %d %s", test.level, test.nodes, test.files), func(t *testing.T) {
			if test.level != causal {
				onlyLong(t)
			}
			s := start(t, attunetest.ClusterOptions{Level: test.level, Nodes: test.nodes, Pebble: true})
			n := s.Nodes[0]
			values := s.fill(n, "kept", 200)
			for _, other := range s.Others(n) {
				if test.level == causal {
					s.spread(other, values)
				}
			}
			s.forget(n)
			n.Stop()
			files, _ := filepath.Glob(filepath.Join(s.Dir(), n.Name, "bytes", test.files))
			if len(files) == 0 {
				t.Fatal("the values are in no file")
			}
			for _, file := range files {
				raw, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				for i := range len(raw) / 2 {
					raw[i] ^= 0x5a
				}
				if err := os.WriteFile(file, raw, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n.Start()
			s.WaitReady(n)
			if test.files == "MANIFEST-*" {
				attunetest.Eventually(t, "it is filled unasked", func() bool {
					stats, err := n.Stats("attune")
					if err != nil {
						t.Fatal(err)
					}
					fetched, err := strconv.Atoi(stats["fill_fetched"])
					return err == nil && fetched >= len(values)
				})
			}
			if test.nodes == 3 {
				s.reads(n, values)
				return
			}
			missing := 0
			for key, value := range values {
				switch out := s.do(n, get(key)); {
				case out.Status == history.Miss:
					missing++
				case out.Value != value:
					t.Errorf("%s: %v, want %q or a miss", key, out, value)
				}
			}
			if missing == 0 {
				t.Error("nothing was damaged")
			}
			s.reads(n, s.fill(n, "kept", 200))
		})
	}
}
