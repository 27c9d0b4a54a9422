package controller

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

func trace(t *testing.T, n *Node, command, reply string) (steps string) {
	t.Helper()
	code, body := httpDo(t, n, "POST", "/trace", command)
	var x traced
	if err := json.Unmarshal([]byte(body), &x); code != 200 || err != nil {
		t.Fatalf("%q: %d %s: %v", command, code, body, err)
	}
	if x.Reply != reply || x.Controller != n.cfg.Name || len(x.Steps) == 0 {
		t.Errorf("%q: %+v, want the reply %q", command, x, reply)
	}
	last := int64(0)
	var texts []string
	for _, step := range x.Steps {
		if step.At < last {
			t.Errorf("%q: the steps are out of order: %+v", command, x.Steps)
		}
		last = step.At
		texts = append(texts, step.Text)
	}
	return strings.Join(texts, "; ")
}

// wantSteps wants these in steps, in this order.
func wantSteps(t *testing.T, steps string, want ...string) {
	t.Helper()
	rest := steps
	for _, w := range want {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Errorf("no %q, or too early, in: %s", w, steps)
			return
		}
		rest = after
	}
}

// roles returns who leads, and one that follows.
func roles(t *testing.T, nodes []*Node) (leader, follower *Node) {
	t.Helper()
	attunetest.Eventually(t, "all know who leads", func() bool {
		leader, follower = nil, nil
		for _, n := range nodes {
			if g, _ := n.group(); g.Status().Role == "leader" {
				leader = n
			} else if g.Status().Leader != "" {
				follower = n
			}
		}
		return leader != nil && follower != nil
	})
	return leader, follower
}

func TestTraceWhereALeaderDecides(t *testing.T) {
	leader, follower := roles(t, startThree(t, consistency.Linearizable))
	steps := trace(t, leader, "set k 0 0 1\r\nv\r\n", "STORED\r\n")
	wantSteps(t, steps, "turn began", "decided here, by the leader", "in the log here: entry", "in the log of n", "committed", "applied here", "answered")
	steps = trace(t, follower, "incr k 1\r\n", "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n")
	wantSteps(t, steps, "sent to "+leader.cfg.Name+", which leads", "answered by "+leader.cfg.Name, "answered")
	wantSteps(t, steps, "a read here sees it")
	steps = trace(t, follower, "get k\r\n", "VALUE k 0 1\r\nv\r\nEND\r\n")
	wantSteps(t, steps, "turn began", "asked "+leader.cfg.Name, "a quorum has confirmed", "applied here as far", "answered")
	if code, body := httpDo(t, leader, "POST", "/trace", "set k 0 0 9\r\nv\r\n"); code != 400 || !strings.Contains(body, "not whole") {
		t.Errorf("half a command: %d %s", code, body)
	}
	if code, _ := httpGet(t, leader, "/trace"); code != 405 {
		t.Errorf("GET: %d", code)
	}
	if code, _ := httpDo(t, leader, "POST", "/trace", strings.Repeat("x", inSize+1)); code != 413 {
		t.Errorf("too long: %d", code)
	}
	if code, _ := httpDo(t, leader, "POST", "/trace", "quit\r\n"); code != 400 {
		t.Errorf("quit: %d", code)
	}
}

func TestTraceWhereEachDecides(t *testing.T) {
	nodes := startThree(t, consistency.Causal, func(_ int, cfg *Config) { cfg.WriteAcks = consistency.AllAcks })
	steps := trace(t, nodes[0], "set k 0 0 1\r\n1\r\n", "STORED\r\n")
	wantSteps(t, steps, "decided, stamped and applied here", " has it", "answered")
	away := nodes[0]
	attunetest.Eventually(t, "all have it, and know each other as homes", func() bool {
		home := explain(t, nodes[0], "k").Home
		for _, n := range nodes {
			if explain(t, n, "k").Home != home || explain(t, n, "k").Get != "hit" {
				return false
			}
			if n.cfg.Name != home {
				away = n
			}
		}
		return true
	})
	home := explain(t, away, "k").Home
	wantSteps(t, trace(t, away, "incr k 1\r\n", "2\r\n"), "sent to the home of its key, "+home, "answered by "+home, "all that the answer depends on", "answered")
}

func TestTraceOfOneAlone(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	cfg.Level = consistency.Eventual
	n := start(t, cfg)
	wantSteps(t, trace(t, n, "set k 0 0 1\r\n1\r\n", "STORED\r\n"), "decided and applied here", "answered")
	wantSteps(t, trace(t, n, "get k\r\n", "VALUE k 0 1\r\n1\r\nEND\r\n"), "answered")
}

// Whatever is posted, a trace ends, with an answer or a reason, and the next one works.
func FuzzTrace(f *testing.F) {
	cfg := testConfig()
	cfg.Level = consistency.Eventual
	n := start(f, cfg)
	for _, seed := range []string{
		"get k\r\n", "set k 0 0 1\r\nv\r\nget k\r\n", "set k 0 0 9\r\nv\r\n", "mg k v t N30\r\nmn\r\n", "quit\r\n", "stats sizes\r\n",
		"set k 0 0 40000\r\n", "gat 1 k k2\r\n", "incr k 1 noreply\r\n", "\x80\x00", "flush_all 10\r\n", "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, command []byte) {
		if len(command) > inSize {
			return
		}
		if x, err := n.runTraced(command); err == nil && len(x.Steps) == 0 {
			t.Errorf("%q: no steps", command)
		}
		if x, err := n.runTraced([]byte("mn\r\n")); err != nil || x.Reply != "MN\r\n" {
			t.Errorf("after %q: %+v, %v", command, x, err)
		}
	})
}
