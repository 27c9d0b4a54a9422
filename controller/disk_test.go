package controller

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// full is the backend of a controller whose disk has no room, whatever it has.
func full(dir string) string { return "pebble://" + dir + "?reserve=1PiB" }

// TestAFullDiskRefusesWritesAndIsReady for reads; and says so wherever somebody looks.
// What counts is what the backend wants to be left free, too.
func TestAFullDiskRefusesWritesAndIsReady(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Eventual, consistency.Linearizable} {
		t.Run(level.String(), func(t *testing.T) {
			cfg, dir := clusterConfig(t, level), t.TempDir()
			cfg.Backend, cfg.Admin = full(dir), "127.0.0.1:0"
			n := start(t, cfg)
			c := dial(t, n)
			c.send("set k 0 0 1\r\nv\r\n")
			if got := c.line(); !strings.HasPrefix(got, "SERVER_ERROR") || !strings.Contains(got, "disk is full: "+dir) {
				t.Errorf("set: %q", got)
			}
			c.ask("get k\r\n", "END\r\n")
			c.ask("delete k\r\n", "NOT_FOUND\r\n")
			if code, text := httpGet(t, n, "/readyz"); code != http.StatusOK || !strings.Contains(text, "ready") || !strings.Contains(text, "writes are refused: disk is full: "+dir) {
				t.Errorf("/readyz: %d %s", code, text)
			}
			if got := c.stats("attune")["writes_refused"]; !strings.Contains(got, "disk is full: "+dir) {
				t.Errorf("stats attune: %q", got)
			}
			found := false
			for _, m := range metrics(t, n)["attune_disk_reserve_bytes"].GetMetric() {
				found = found || m.GetLabel()[0].GetValue() == dir && m.GetGauge().GetValue() == 1<<50
			}
			if !found {
				t.Error("no alert could go by the metrics of the disk")
			}
		})
	}
}

// TestAFollowerThatCannotFollowIsNotReady: its store takes nothing, and no more can be
// kept on the way there. The others go on.
func TestAFollowerThatCannotFollowIsNotReady(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Eventual, consistency.Sequential} {
		t.Run(level.String(), func(t *testing.T) {
			nodes := startThree(t, level, func(i int, cfg *Config) {
				cfg.Admin = attunetest.FreeAddr(t)
				if cfg.Backend = "pebble://" + t.TempDir(); i == 2 {
					cfg.Backend = full(t.TempDir())
				}
			})
			stuck := nodes[2]
			if g, ok := stuck.group(); ok {
				attunetest.Eventually(t, "another one leads", func() bool {
					st := g.Status()
					if st.Role == "leader" && st.Voters == 3 {
						post(t, stuck, "/leader/transfer", url.Values{})
					}
					return st.Voters == 3 && st.Leader != "" && st.Role != "leader"
				})
			}
			c := dial(t, nodes[0])
			c.set("first", []byte("value"))
			value := make([]byte, 1_000_000)
			set := func(i int) {
				c.SetDeadline(time.Now().Add(patience))
				c.set("k"+strconv.Itoa(i), value)
			}
			for i := range 34 { // half of what may be on its way
				set(i)
			}
			i := 34
			attunetest.Eventually(t, "it says so", func() bool {
				if i++; i < 100 {
					set(i)
				}
				code, text := httpGet(t, stuck, "/readyz")
				return code == http.StatusServiceUnavailable && strings.Contains(text, "disk is full: ")
			})
			set(0)
			if code, text := httpGet(t, nodes[0], "/readyz"); code != http.StatusOK {
				t.Errorf("another: %d %s", code, text)
			}
			s := dial(t, stuck)
			s.ask("get first\r\n", "VALUE first 0 5\r\nvalue\r\nEND\r\n")
		})
	}
}
