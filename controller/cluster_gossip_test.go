package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// gossipLevels are those whose controllers answer for themselves.
var gossipLevels = []consistency.Level{consistency.Causal, consistency.Eventual}

func TestGossipClusterIsShown(t *testing.T) {
	for _, level := range gossipLevels {
		t.Run(level.String(), func(t *testing.T) {
			nodes := startThree(t, level, func(_ int, cfg *Config) { cfg.MaxSkew = time.Minute }) // what died stays for two
			c := dial(t, nodes[0])
			c.ask("set a 0 0 1\r\nv\r\nset b 0 0 1\r\nv\r\ndelete a\r\n", "STORED\r\nSTORED\r\nDELETED\r\n")
			var stats map[string]string
			attunetest.Eventually(t, "the others have the same", func() bool {
				stats = c.stats("attune")
				return stats["peers_equal"] == "2" && stats["changes"] == "3"
			})
			for name, want := range map[string]string{
				"level": level.String(), "name": "n1", "health": "ok", "peers": "2", "peers_alive": "2",
				"lag": "0", "behind": "0", "tombstones": "1",
				"held_back": "0", "waiting_for_acks": "0", "changes_dropped": "0", "changes_too_far_ahead": "0",
			} {
				if stats[name] != want {
					t.Errorf("%s is %q, want %q", name, stats[name], want)
				}
			}
			if _, err := time.Parse(time.RFC3339, stats["collected_to"]); err != nil && stats["collected_to"] != "never" {
				t.Errorf("collected_to is %q, want a time or never", stats["collected_to"])
			}
			attunetest.Eventually(t, "all are ready", func() bool {
				stats = c.stats("attune")
				for i, role := range []string{"self", "equal", "equal"} {
					m := strings.Fields(stats[fmt.Sprint("member_n", i+1)])
					if len(m) != 7 || m[0] != "ready" || m[1] != role || m[2] != nodes[i].cfg.Listen[0] {
						return false
					}
					if i > 0 && (m[4] != "0" || m[5] != "0") {
						return false
					}
					if _, err := time.ParseDuration(m[6]); i > 0 && err != nil {
						t.Fatalf("the clock of n%d is off by %q", i+1, m[6])
					}
				}
				return true
			})

			m := metrics(t, nodes[0])
			for _, want := range []struct {
				name   string
				labels []string
				value  float64
			}{
				{"attune_gossip_peer_equal", []string{"n2"}, 1},
				{"attune_gossip_peer_equal", []string{"n3"}, 1},
				{"attune_gossip_lag", []string{"n2", "there"}, 0},
				{"attune_gossip_lag", []string{"n3", "here"}, 0},
				{"attune_gossip_tombstones", nil, 1},
				{"attune_gossip_waiting_for_acks", nil, 0},
				{"attune_gossip_held_back_bytes", nil, 0},
				{"attune_member_up", []string{"n3"}, 1},
				{"attune_ready", nil, 1},
			} {
				if got := sample(t, m, want.name, want.labels...).GetGauge().GetValue(); got != want.value {
					t.Errorf("%s%v is %v, want %v", want.name, want.labels, got, want.value)
				}
			}
			if got := sample(t, m, "attune_gossip_changes_total", "made").GetCounter().GetValue(); got != 3 {
				t.Errorf("%v changes were made here, want 3", got)
			}
			if got := sample(t, m, "attune_gossip_ring_bytes").GetGauge().GetValue(); got == 0 {
				t.Error("no bytes of changes are kept")
			}
			for _, clock := range []string{"attune_gossip_clock_offset_seconds", "attune_gossip_clock_skew_seconds"} {
				if got := sample(t, m, clock).GetGauge().GetValue(); got < -1 || got > 1 {
					t.Errorf("%s is %v on one machine", clock, got)
				}
			}
			if m := metrics(t, nodes[1]); sample(t, m, "attune_gossip_changes_total", "applied").GetCounter().GetValue() != 3 {
				t.Error("n2 did not count the changes that came to it")
			}
			for name := range m {
				if strings.HasPrefix(name, "attune_raft") {
					t.Errorf("%s at a level without Raft", name)
				}
			}

			// Commands that look first are decided by the homes of their keys.
			for i := range 60 {
				c.ask(fmt.Sprintf("add %d 0 0 1\r\nv\r\n", i), "STORED\r\n")
			}
			forwarded := func(n *Node, what string) float64 {
				return sample(t, metrics(t, n), "attune_gossip_forwarded_total", what).GetCounter().GetValue()
			}
			sent := forwarded(nodes[0], "sent")
			if decided := forwarded(nodes[1], "decided") + forwarded(nodes[2], "decided"); sent < 10 || sent > 55 || sent != decided {
				t.Errorf("of 60 commands %v were sent to their homes, and %v decided there", sent, decided)
			}
			if unknown := forwarded(nodes[0], "unknown"); unknown != 0 {
				t.Errorf("%v commands got no answer", unknown)
			}

			settings := c.stats("settings")
			if settings["write_acks"] != "1" || settings["max_skew"] != "1m0s" || settings["tombstone_max_age"] != "24h0m0s" || settings["expect"] != "3" {
				t.Errorf("%v", settings)
			}
			if code, body := httpDo(t, nodes[0], "POST", "/recover", "force-new-cluster=yes"); code != 409 || !strings.Contains(body, "no quorum to lose") {
				t.Errorf("/recover: %d %s", code, body)
			}
		})
	}
}

// One controller of three is enough to read and write. Of those that left nobody is
// waited for, and who comes, under whatever name, has everything before it serves.
func TestGossipGoesOnAndIsRejoined(t *testing.T) {
	for _, level := range gossipLevels {
		t.Run(level.String(), func(t *testing.T) {
			nodes := startThree(t, level)
			dial(t, nodes[2]).ask("set early 0 0 1\r\n1\r\ndelete early\r\nset kept 0 0 1\r\n1\r\n", "STORED\r\nDELETED\r\nSTORED\r\n")
			closeAll(nodes[2]) // it hands over what it has before it goes
			closeAll(nodes[1])
			c := dial(t, nodes[0])
			c.ask("get early kept\r\nincr kept 1\r\nset late 0 0 1\r\n1\r\n", "VALUE kept 0 1\r\n1\r\nEND\r\n2\r\nSTORED\r\n")
			if code, body := httpGet(t, nodes[0], "/readyz"); code != 200 {
				t.Errorf("/readyz: %d %s", code, body)
			}
			attunetest.Eventually(t, "they are missed", func() bool {
				stats := c.stats("attune")
				return stats["peers_alive"] == "0" && strings.HasPrefix(stats["member_n2"], "left outside ")
			})

			for _, name := range []string{"n2", "n4"} {
				cfg := nodes[1].cfg // the ports of n2, so one after the other
				cfg.Name = name
				n := start(t, cfg)
				d := dial(t, n)
				d.ask("get early kept late\r\n", "VALUE kept 0 1\r\n2\r\nVALUE late 0 1\r\n1\r\nEND\r\n")
				d.ask("set "+name+" 0 0 1\r\n1\r\n", "STORED\r\n")
				attunetest.Eventually(t, "the first hears of it", func() bool { return c.get(name) != nil })
				closeAll(n)
			}
		})
	}
}

// A change that fewer controllers than asked for have took effect all the same; the
// client is told that it is not sure to last.
func TestWriteAcks(t *testing.T) {
	nodes := startThree(t, consistency.Eventual, func(_ int, cfg *Config) {
		cfg.WriteAcks, cfg.OpTimeout = 2, time.Second
	})
	c := dial(t, nodes[0])
	c.ask("set k 0 0 1\r\n1\r\nget k\r\n", "STORED\r\nVALUE k 0 1\r\n1\r\nEND\r\n")
	closeAll(nodes[1])
	c.ask("set k 0 0 1\r\n2\r\n", "STORED\r\n")
	closeAll(nodes[2])
	attunetest.Eventually(t, "both are missed", func() bool { return c.stats("attune")["peers_alive"] == "0" })
	began := time.Now()
	c.send("set k 0 0 1\r\n3\r\n")
	if line := c.line(); !strings.HasPrefix(line, "SERVER_ERROR ") || !strings.Contains(line, "write-acks") {
		t.Errorf("set without the others: %q", line)
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %v, op-timeout is 1s", took)
	}
	c.ask("get k\r\n", "VALUE k 0 1\r\n3\r\nEND\r\n")
	c.ask("delete k noreply\r\nget k\r\n", "END\r\n")
	// They took their leave: what died need not be kept for them.
	if waits := c.stats("attune")["collection_waits"]; strings.Contains(waits, "away") {
		t.Errorf("the dead are kept: %q", waits)
	}
	if code, _ := httpGet(t, nodes[0], "/readyz"); code != 200 {
		t.Errorf("/readyz: %d: it serves its level", code)
	}
}

// Clusters of two levels that find each other stay two.
func TestLevelsAreNotMixed(t *testing.T) {
	one := clusterConfig(t, consistency.Eventual)
	n := start(t, one)
	for _, level := range []consistency.Level{consistency.Causal, consistency.Sequential} {
		cfg := clusterConfig(t, level)
		cfg.Name, cfg.Join, cfg.Admin = "n2", one.Join, "127.0.0.1:0"
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		other, err := Open(ctx, cfg)
		cancel()
		if err == nil {
			other.Close(t.Context())
			t.Fatalf("a %v controller entered an eventual cluster", level)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: %v", level, err)
		}
	}
	c := dial(t, n)
	if stats := c.stats("attune"); stats["peers"] != "0" || stats["health"] != "ok" {
		t.Errorf("%v", stats)
	}
	c.ask("set k 0 0 1\r\nv\r\n", "STORED\r\n")
}
