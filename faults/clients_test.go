package faults

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// Every command of a client goes to another controller, over a new connection. It
// never goes back in what it sees, as long as there is a majority.
func TestRow26ClientsHop(t *testing.T) {
	levels(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       history.Mixed,
			hop:            true,
			pause:          5 * time.Millisecond,
			faults: func(s *stage) {
				// Replicas that lag are where a client may go back.
				for _, n := range s.Names() {
					for _, other := range s.Names(n) {
						s.Net.Set(n, other, attunetest.Rule{Jitter: 20 * time.Millisecond})
					}
				}
				pause(s.t, pick(2*time.Second, 20*time.Second))
			},
		})
	}, sequential, linearizable)
}

// Many connections on all controllers increment one key.
func TestRow27OneHotCounter(t *testing.T) {
	const key = "hot"
	levels(t, func(t *testing.T, level string) {
		lasts := pick(time.Second, 10*time.Second)
		counting(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level},
			workload:       history.Increments(key),
			clients:        256,
			pause:          time.Nanosecond,
			faults: func(s *stage) {
				begin, from := s.rec.Answered(), s.rec.Now()
				pause(s.t, lasts)
				seconds := float64(s.rec.Now()-from) / 1e9
				t.Logf("%.0f increments a second, with the clients on this machine", float64(s.rec.Answered()-begin)/seconds)
			},
		}, key)
	}, linearizable, sequential)
}

// flush_all races with sets on all controllers.
func TestRow28FlushRacingSets(t *testing.T) {
	levels(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Durable: true},
			workload:       history.Flushes,
			lossy:          true,
			faults: func(s *stage) {
				for range pick(1, 5) {
					if leader := s.WaitLeader(); leader == nil || !leader.Restart() {
						return
					}
				}
			},
		})
	}, linearizable, sequential)
}

// A flush that is to come two seconds later comes, though the leader is killed
// meanwhile, and takes what was set before it and not what is set after it.
func TestRow28DelayedFlushAndRestart(t *testing.T) {
	onlyLong(t)
	s := start(t, attunetest.ClusterOptions{Level: linearizable, Durable: true})
	before := s.fill(s.Nodes[0], "before", 50)
	c, err := net.Dial("tcp", s.Nodes[1].Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(attunetest.Patience))
	if _, err := io.WriteString(c, "flush_all 2\r\n"); err != nil {
		t.Fatal(err)
	}
	ok := make([]byte, 4)
	if _, err := io.ReadFull(c, ok); err != nil || string(ok) != "OK\r\n" {
		t.Fatalf("%q, %v", ok, err)
	}
	if leader := s.WaitLeader(); leader == nil || !leader.Restart() {
		return
	}
	attunetest.Eventually(t, "the flush comes", func() bool { return ask(s.Nodes[0], get("before-0")).Status == history.Miss })
	for _, n := range s.Nodes {
		s.reads(n, gone(before))
	}
	after := s.fill(s.Nodes[2], "after", 50)
	pause(t, 3*time.Second) // nothing may come of it any more
	for _, n := range s.Nodes {
		s.reads(n, after)
	}
}
