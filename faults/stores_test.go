package faults

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// What memcached servers do to the cluster above them. As long as one of three
// has the bytes, clients notice nothing.

// eachStoreLevel runs a row at all levels, or those named if the matrix is short.
func eachStoreLevel(t *testing.T, f func(t *testing.T, level string), short ...string) {
	for _, level := range pick(short, []string{linearizable, sequential, causal, eventual}) {
		t.Run(level, func(t *testing.T) { f(t, level) })
	}
}

// failed checks that every command was answered, one way or another.
func (s *stage) failed(h history.History, from, to int64) {
	s.t.Helper()
	n := 0
	for _, e := range h {
		if e.Out.Status == history.Unknown && e.Call >= from && e.Return != history.Forever && e.Return <= to {
			if n++; n <= 5 {
				s.t.Errorf("at %s: %v failed: %v", s.rec.Time(e.Call).Format("15:04:05.000"), e, e.Out.Value)
			}
		}
	}
	if n > 5 {
		s.t.Errorf("%d commands failed", n)
	}
}

// TestStoresReplacedOneAfterTheOther: each memcached dies under load, is missed by
// nobody, comes back empty, and is filled before the next one dies. What nobody read
// in all that time is there at the end.
func TestStoresReplacedOneAfterTheOther(t *testing.T) {
	eachStoreLevel(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Memcached: true},
			workload:       history.Mixed,
			keeps:          300,
			unfailing:      true,
			faults: func(s *stage) {
				for _, n := range s.Nodes {
					s.holds(n.Memcached, s.values)
				}
				for _, n := range s.Nodes {
					n.Memcached.Kill()
					s.progress("with a memcached dead")
					time.Sleep(pick(500*time.Millisecond, 3*time.Second))
					n.Memcached.Start()
					s.holds(n.Memcached, s.values)
				}
			},
		})
	}, eventual)
}

// TestRow16StoreHangs: a memcached that takes connections and says nothing. Its
// controller answers, from its peers, and neither it nor the cluster slows down to
// the pace of timeouts.
func TestRow16StoreHangs(t *testing.T) {
	eachStoreLevel(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Memcached: true, Args: []string{"--hot-cache", "0", "--op-timeout", "3s"}},
			workload:       history.Mixed,
			keeps:          100,
			unfailing:      true,
			faults: func(s *stage) {
				for _, n := range s.Nodes[:pick(1, 3)] {
					n.Memcached.Pause()
					began := time.Now()
					s.reads(n, s.values)
					s.t.Logf("%d reads over a store that hangs took %v", len(s.values), time.Since(began))
					time.Sleep(pick(time.Second, 10*time.Second))
					n.Memcached.Resume()
					s.progress("after it went on")
				}
			},
		})
	}, sequential)
}

// TestRow17And19StoreWithOtherBytes: a memcached restored from an old image, and one
// that somebody else writes to. Neither is ever believed, and both are mended.
func TestRow17And19StoreWithOtherBytes(t *testing.T) {
	eachStoreLevel(t, func(t *testing.T, level string) {
		s := start(t, attunetest.ClusterOptions{Level: level, Memcached: true, Args: []string{"--hot-cache", "0"}})
		n := s.Nodes[1]
		old := s.fill(n, "k", 20)
		s.holds(n.Memcached, old)
		image := make(map[string][]byte)
		for key := range old {
			image[key] = record(t, n.Memcached, key)
		}
		values := make(map[string]string)
		for key := range old {
			values[key] = "new." + key
			if out := s.do(s.Nodes[0], set(key, values[key])); out.Status != history.Stored {
				t.Fatalf("set %s: %v", key, out)
			}
		}
		for _, m := range s.Nodes {
			s.spread(m, values)
			s.holds(m.Memcached, values)
		}
		i := 0
		for key := range old {
			switch i % 4 {
			case 0: // the whole old record
				store(t, n.Memcached, "set", key, image[key])
			case 1: // the new stamp before other bytes
				raw := record(t, n.Memcached, key)
				store(t, n.Memcached, "append", key, []byte("!"))
				if bytes.Equal(raw, record(t, n.Memcached, key)) {
					t.Fatal("nothing was appended")
				}
			case 2: // bytes of somebody else
				store(t, n.Memcached, "set", key, []byte("foreign"))
			case 3: // the old bytes under a stamp cut short
				store(t, n.Memcached, "set", key, image[key][:10])
			}
			i++
		}
		for _, m := range s.Nodes {
			s.reads(m, values)
		}
		attunetest.Eventually(t, "what was read is mended", func() bool {
			for key, value := range values {
				if !strings.HasSuffix(string(record(t, n.Memcached, key)), value) {
					return false
				}
			}
			return true
		})
	}, linearizable)
}

// TestStoreStutters: a memcached that is behind for a while, as it is stopped again and
// again. What waits for it stays within its bound, and all of it is right afterwards.
func TestStoreStutters(t *testing.T) {
	onlyLong(t)
	eachStoreLevel(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Memcached: true, Args: []string{"--op-timeout", "3s"}},
			workload:       history.Mixed,
			unfailing:      true,
			faults: func(s *stage) {
				for range 10 {
					for _, n := range s.Nodes {
						n.Memcached.Pause()
						time.Sleep(300 * time.Millisecond)
						n.Memcached.Resume()
					}
				}
			},
		})
	})
}

// holds waits until a memcached has keys.
func (s *stage) holds(m *attunetest.Memcached, values map[string]string) {
	s.t.Helper()
	attunetest.Eventually(s.t, "memcached has what it should", func() bool {
		for key := range values {
			if record(s.t, m, key) == nil {
				return false
			}
		}
		return true
	})
}

// record is what a memcached has for a key, as the controller stored it; nil if
// nothing.
func record(t testing.TB, m *attunetest.Memcached, key string) []byte {
	t.Helper()
	c := m.Dial()
	defer c.Close()
	if _, err := fmt.Fprintf(c, "get %s\r\n", key); err != nil {
		t.Error(err)
		return nil
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	f := strings.Fields(line)
	if err != nil || len(f) != 4 {
		return nil
	}
	n, err := strconv.Atoi(f[3])
	if err != nil {
		t.Errorf("memcached answers %q", line)
		return nil
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r, raw); err != nil {
		t.Error(err)
		return nil
	}
	return raw
}

// store puts bytes into a memcached behind its controller's back.
func store(t testing.TB, m *attunetest.Memcached, verb, key string, raw []byte) {
	t.Helper()
	c := m.Dial()
	defer c.Close()
	if _, err := fmt.Fprintf(c, "%s %s 0 0 %d\r\n%s\r\n", verb, key, len(raw), raw); err != nil {
		t.Error(err)
		return
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "STORED\r\n" {
		t.Errorf("%s %s: %q %v", verb, key, line, err)
	}
}

// TestStoreRestartsWithItsController: a controller and its memcached die together, and
// the controller is back first. It is of use without, and fills it when it comes.
func TestStoreRestartsWithItsController(t *testing.T) {
	eachStoreLevel(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Memcached: true},
			workload:       history.Mixed,
			keeps:          100,
			faults: func(s *stage) {
				n := s.Nodes[2]
				for range pick(1, 3) {
					if history.Leaderless(level) {
						s.lose(n)
					} else {
						n.Kill()
					}
					n.Memcached.Kill()
					n.Start()
					if !s.WaitReady(n) {
						return
					}
					s.reads(n, s.values)
					s.progress("without a memcached")
					n.Memcached.Start()
					s.holds(n.Memcached, s.values)
				}
			},
		})
	}, sequential)
}

// TestStoreDoesNotTakeIt: a value that is larger than a memcached takes is refused, and
// what it was to replace is gone, as with memcached itself. One that is as large as
// may be is there for all.
func TestStoreDoesNotTakeIt(t *testing.T) {
	eachStoreLevel(t, func(t *testing.T, level string) {
		s := start(t, attunetest.ClusterOptions{Level: level, Memcached: true, Args: []string{"--op-timeout", "5s", "--max-item-size", "4MiB"}})
		for i, n := range s.Nodes {
			key := fmt.Sprint("big", i)
			try := func(size int) string {
				return s.say(n, fmt.Sprintf("set %s 0 0 %d", key, size), strings.Repeat("x", size))
			}
			large := 1<<20 - 200
			if got := try(large); got != "STORED" {
				t.Errorf("a large value: %q", got)
			}
			for _, m := range s.Nodes {
				attunetest.Eventually(t, m.Name+" has it", func() bool {
					return s.say(m, "get "+key) == fmt.Sprintf("VALUE %s 0 %d", key, large)
				})
			}
			attunetest.Eventually(t, "one that is too large is refused", func() bool {
				got := try(1 << 20)
				if got == "STORED" {
					t.Error("what no memcached takes is acknowledged")
				}
				return got == "SERVER_ERROR object too large for cache"
			})
			for _, m := range s.Nodes {
				attunetest.Eventually(t, "what it was to replace is gone", func() bool { return s.say(m, "get "+key) == "END" })
			}
		}
	}, linearizable, causal)
}
