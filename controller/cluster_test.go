package controller

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// startThree opens a cluster of three.
func startThree(t *testing.T, level consistency.Level, change ...func(i int, cfg *Config)) []*Node {
	t.Helper()
	var join []string
	for range 3 {
		join = append(join, attunetest.FreeAddr(t))
	}
	nodes := make([]*Node, 3)
	var wait sync.WaitGroup
	for i := range nodes {
		cfg := testConfig()
		cfg.Name = "n" + strconv.Itoa(i+1)
		cfg.Level, cfg.Join, cfg.Gossip, cfg.Peer, cfg.Expect = level, join, join[i], attunetest.FreeAddr(t), 3
		cfg.Admin = "127.0.0.1:0"
		cfg.OpTimeout = patience
		for _, fn := range change {
			fn(i, &cfg)
		}
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			n, err := Open(ctx, cfg)
			if err != nil {
				t.Error(err)
				return
			}
			nodes[i] = n
		})
	}
	wait.Wait()
	t.Cleanup(func() { closeAll(nodes...) })
	if t.Failed() {
		t.FailNow()
	}
	return nodes
}

// closeAll closes nodes at the same time.
func closeAll(nodes ...*Node) {
	var wait sync.WaitGroup
	for _, n := range nodes {
		if n != nil {
			wait.Go(func() { n.Close(context.Background()) })
		}
	}
	wait.Wait()
}

// Who is stopped has left, at every level, and is no reason for an alarm; but for one that
// keeps its data and votes again when it is back: quorums need it.
func TestWhoIsStoppedHasLeft(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Sequential, consistency.Causal, consistency.Eventual} {
		for _, kept := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, its data kept %v", level, kept), func(t *testing.T) {
				t.Parallel()
				nodes := startThree(t, level, func(_ int, cfg *Config) {
					if kept {
						cfg.DataDir = t.TempDir()
					}
				})
				closeAll(nodes[2])
				left, want := 1., "left"
				if kept && level <= consistency.Sequential {
					left, want = 0, "failed"
				}
				for _, n := range nodes[:2] {
					c := dial(t, n)
					attunetest.Eventually(t, "it is missed", func() bool { return strings.HasPrefix(c.stats("attune")["member_n3"], want+" ") })
					m := metrics(t, n)
					for state, want := range map[string]float64{"ready": 2, "alive": 0, "left": left, "failed": 1 - left} {
						if got := sample(t, m, "attune_members", state).GetGauge().GetValue(); got != want {
							t.Errorf("%v members are %s, want %v", got, state, want)
						}
					}
					up := 0
					for _, s := range m["attune_member_up"].GetMetric() {
						up++
						if name := s.GetLabel()[0].GetValue(); s.GetGauge().GetValue() != 1 && (name != "n3" || left == 1) {
							t.Errorf("%s is not up", name)
						}
					}
					if up != 3-int(left) {
						t.Errorf("%d members are up or not, want %v", up, 3-left)
					}
				}
			})
		}
	}
}

// Every verb, in every dialect that has it, said to one controller and looked at
// from another.
func TestVerbsAcrossTheCluster(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Sequential, consistency.Causal, consistency.Eventual} {
		t.Run(level.String(), func(t *testing.T) {
			nodes := startThree(t, level, func(_ int, cfg *Config) { cfg.WriteAcks = consistency.AllAcks })
			for i := range nodes {
				// A connection that begins after an answer sees what was answered, at
				// the sequential level too: its first read asks the quorum. At the
				// others all were told before the answer.
				a := dial(t, nodes[i])
				other := func() *client { return dial(t, nodes[(i+1)%3]) }
				k := "k" + strconv.Itoa(i)
				a.ask("set "+k+" 5 0 1\r\n1\r\n", "STORED\r\n")
				other().ask("get "+k+"\r\n", "VALUE "+k+" 5 1\r\n1\r\nEND\r\n")
				a.ask("add "+k+" 0 0 1\r\n2\r\n", "NOT_STORED\r\n")
				other().ask("incr "+k+" 41\r\n", "42\r\n")
				a.ask("append "+k+" 0 0 2\r\n00\r\n", "STORED\r\n")
				other().ask("decr "+k+" 4199\r\n", "1\r\n")
				// The unique of one controller is good at another.
				c := other()
				c.send("gets " + k + "\r\n")
				fields := strings.Fields(c.line())
				c.line()
				c.line()
				a.ask("cas "+k+" 0 0 1 "+fields[4]+"\r\n7\r\n", "STORED\r\n")
				c.ask("cas "+k+" 0 0 1 "+fields[4]+"\r\n8\r\n", "EXISTS\r\n")
				a.ask("touch "+k+" 100\r\n", "TOUCHED\r\n")
				d := other()
				d.send("mg " + k + " t v\r\n")
				// Where each goes by its own clock, that of who touched it may be ahead.
				if line := d.line(); line != "VA 1 t100" && line != "VA 1 t99" && (level < consistency.Causal || line != "VA 1 t101") {
					t.Errorf("after a touch: %q", line)
				}
				d.line()
				a.ask("gat 50 "+k+"\r\n", "VALUE "+k+" 0 1\r\n7\r\nEND\r\n")
				d.ask("me nothing\r\n", "EN\r\n")
				// One winner in the cluster.
				a.ask("mg lease"+k+" N30 v\r\n", "VA 0 W\r\n\r\n")
				other().ask("mg lease"+k+" N30 v\r\n", "VA 0 Z\r\n\r\n")
				a.ask("md "+k+" I T30\r\n", "HD\r\n")
				other().ask("mg "+k+" v\r\n", "VA 1 X W\r\n7\r\n")
				a.ask("mg "+k+" v\r\n", "VA 1 Z X\r\n7\r\n")
				a.ask("delete "+k+"\r\n", "DELETED\r\n")
				other().ask("get "+k+"\r\n", "END\r\n")
				big := string(pattern(200_000, i))
				a.set("big", []byte(big))
				if got := other().get("big"); string(got) != big {
					t.Errorf("%d bytes came back as %d others", len(big), len(got))
				}
				// A pipeline takes effect in order, and is answered in order.
				a.ask("set p 0 0 1\r\n1\r\nincr p 1\r\nget p\r\ndelete p\r\nget p\r\nadd p 0 0 1 noreply\r\n5\r\nincr p 5\r\nmn\r\n",
					"STORED\r\n2\r\nVALUE p 0 1\r\n2\r\nEND\r\nDELETED\r\nEND\r\n10\r\nMN\r\n")
				other().ask("flush_all\r\n", "OK\r\n")
				dial(t, nodes[i]).ask("get p big\r\n", "END\r\n")
			}
		})
	}
}

func TestClusterIsShown(t *testing.T) {
	nodes := startThree(t, consistency.Linearizable)
	c := dial(t, nodes[0])
	c.ask("set k 0 0 1\r\nv\r\n", "STORED\r\n")
	stats := make(map[string]string)
	attunetest.Eventually(t, "all three are ready, one leads", func() bool {
		c.send("stats attune\r\n")
		clear(stats)
		for {
			line := c.line()
			if line == "END" {
				break
			}
			fields := strings.SplitN(line, " ", 3)
			stats[fields[1]] = fields[2]
		}
		leaders := 0
		for i := range nodes {
			m := strings.Fields(stats[fmt.Sprint("member_n", i+1)])
			if len(m) != 5 || m[0] != "ready" {
				return false
			}
			if m[1] == "leader" {
				leaders++
			}
		}
		return leaders == 1 && stats["voters"] == "3"
	})
	if stats["level"] != "linearizable" || stats["health"] != "ok" || stats["refused_changes"] != "0" || stats["leader"] == "-" {
		t.Errorf("%v", stats)
	}
	leading := 0
	for _, n := range nodes {
		m := metrics(t, n)
		if m["attune_raft_role"].GetMetric()[0].GetLabel()[0].GetValue() == "leader" {
			leading++
			if got := len(m["attune_raft_member_lag"].GetMetric()); got != 3 {
				t.Errorf("the leader tells the lag of %d members", got)
			}
		}
		if got := sample(t, m, "attune_raft_voters").GetGauge().GetValue(); got != 3 {
			t.Errorf("%v voters", got)
		}
		if got := sample(t, m, "attune_member_up", "n2").GetGauge().GetValue(); got != 1 {
			t.Errorf("n2 up: %v", got)
		}
		if code, _ := httpGet(t, n, "/readyz"); code != 200 {
			t.Errorf("/readyz: %d", code)
		}
		if code, body := httpDo(t, n, "POST", "/recover", ""); code != 400 || !strings.Contains(body, "force-new-cluster=yes") {
			t.Errorf("/recover: %d %s", code, body)
		}
	}
	if leading != 1 {
		t.Errorf("%d say that they lead", leading)
	}
}

// Without a quorum the linearizable level answers no read, the sequential one
// those of what it has; neither takes a write. All within the deadline.
func TestNoQuorum(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Sequential} {
		t.Run(level.String(), func(t *testing.T) {
			dir := t.TempDir()
			nodes := startThree(t, level, func(i int, cfg *Config) {
				cfg.OpTimeout = time.Second
				cfg.DataDir = fmt.Sprintf("%s/%d", dir, i) // else who leaves takes its vote along
			})
			c := dial(t, nodes[0])
			c.ask("set k 0 0 1\r\nv\r\n", "STORED\r\n")
			for _, n := range nodes[1:] {
				if err := n.Close(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			attunetest.Eventually(t, "the leader is missed", func() bool { return nodes[0].Ready() != nil })
			began := time.Now()
			c.send("set k 0 0 1\r\nw\r\n")
			if line := c.line(); !strings.HasPrefix(line, "SERVER_ERROR ") || !strings.Contains(line, "quorum") {
				t.Errorf("set: %q", line)
			}
			if level == consistency.Sequential {
				c.ask("get k\r\n", "VALUE k 0 1\r\nv\r\nEND\r\n")
				dial(t, nodes[0]).ask("get k\r\n", "VALUE k 0 1\r\nv\r\nEND\r\n")
			} else {
				c.send("get k\r\n")
				if line := c.line(); !strings.HasPrefix(line, "SERVER_ERROR ") {
					t.Errorf("get: %q", line)
				}
			}
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// A controller that comes back to a lost quorum serves no clients, but shows how far
// it is and can be told to go on alone.
func TestRecoverAfterARestart(t *testing.T) {
	dir := t.TempDir()
	nodes := startThree(t, consistency.Linearizable, func(i int, cfg *Config) {
		cfg.DataDir, cfg.Admin = fmt.Sprintf("%s/%d", dir, i), attunetest.FreeAddr(t)
	})
	dial(t, nodes[0]).ask("set k 0 0 1\r\nv\r\n", "STORED\r\n")
	attunetest.Eventually(t, "all have it applied", func() bool {
		for _, n := range nodes {
			if n.replicaStats().Items != 1 {
				return false
			}
		}
		return true
	})
	closeAll(nodes...)

	opened := make(chan *Node, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		n, err := Open(ctx, nodes[0].cfg)
		if err != nil {
			t.Error(err)
		}
		opened <- n
	}()
	admin := "http://" + nodes[0].cfg.Admin
	attunetest.Eventually(t, "it shows what it has applied", func() bool {
		resp, err := http.Get(admin + "/metrics")
		if err != nil {
			return false // not there yet
		}
		defer resp.Body.Close()
		raw, _ := io.ReadAll(resp.Body)
		body := string(raw)
		return strings.Contains(body, "\nattune_ready 0\n") && strings.Contains(body, "\nattune_items 1\n") &&
			regexp.MustCompile(`\nattune_raft_index\{of="applied"\} [1-9]`).MatchString(body)
	})
	resp, err := http.PostForm(admin+"/recover", url.Values{"force-new-cluster": {"yes"}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 {
		t.Fatalf("/recover: %d %s", resp.StatusCode, body)
	}
	n := <-opened
	if n == nil {
		t.FailNow()
	}
	t.Cleanup(func() { closeAll(n) })
	dial(t, n).ask("get k\r\nset k 0 0 1\r\nw\r\n", "VALUE k 0 1\r\nv\r\nEND\r\nSTORED\r\n")
}
