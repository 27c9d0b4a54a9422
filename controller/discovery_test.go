package controller

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// discover asks where servers are, reading the answer as clients do: by its length.
func (c *client) discover() (version int64, servers []string) {
	c.t.Helper()
	c.send("config get cluster\r\n")
	size, err := strconv.Atoi(strings.TrimPrefix(c.line(), "CONFIG cluster 0 "))
	if err != nil {
		c.t.Fatal(err)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.r, body); err != nil {
		c.t.Fatal(err)
	}
	c.want("\r\nEND\r\n")
	lines := strings.Split(string(body), "\n")
	version, err = strconv.ParseInt(lines[0], 10, 32)
	if len(lines) != 3 || lines[2] != "" || err != nil {
		c.t.Fatalf("%q, %v", body, err)
	}
	for _, s := range strings.Fields(lines[1]) {
		words := strings.Split(s, "|")
		if len(words) != 3 || words[0] != words[1] {
			c.t.Fatalf("%q", body)
		}
		servers = append(servers, net.JoinHostPort(words[1], words[2]))
	}
	return version, servers
}

// TestClientsFindTheControllers that are ready, and a larger version when these are
// others.
func TestClientsFindTheControllers(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Eventual} {
		t.Run(level.String(), func(t *testing.T) {
			var addrs []string
			for range 3 {
				addrs = append(addrs, attunetest.FreeAddr(t))
			}
			nodes := startThree(t, level, func(i int, cfg *Config) {
				_, port, _ := net.SplitHostPort(addrs[i])
				cfg.Listen = []string{"0.0.0.0:" + port} // where the others are told, that is where peer is
			})
			c := dial(t, nodes[0])
			found := func(want ...string) (version int64) {
				t.Helper()
				attunetest.Eventually(t, fmt.Sprint(want), func() bool {
					var servers []string
					version, servers = c.discover()
					return strings.Join(servers, " ") == strings.Join(want, " ")
				})
				return version
			}
			first := found(addrs...)
			if again, _ := c.discover(); again != first {
				t.Errorf("version %d, then %d of the same", first, again)
			}
			closeAll(nodes[1])
			second := found(addrs[0], addrs[2])
			if second <= first {
				t.Errorf("version %d, then %d of others", first, second)
			}
		})
	}
}

// TestDiscoveryOfOne: alone, it is where the client has reached it.
func TestDiscoveryOfOne(t *testing.T) {
	for _, goroutines := range []bool{false, true} {
		cfg := testConfig()
		cfg.goroutines = goroutines
		cfg.Listen = []string{"unix:" + filepath.Join(t.TempDir(), "s"), "0.0.0.0:0"}
		n := start(t, cfg)
		_, port, _ := net.SplitHostPort(n.Addrs()[1])
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		c := &client{Conn: conn, r: bufio.NewReader(conn), t: t}
		if version, servers := c.discover(); version < 1 || strings.Join(servers, " ") != "127.0.0.1:"+port {
			t.Errorf("version %d, %q", version, servers)
		}
		if _, servers := dial(t, n).discover(); len(servers) != 0 {
			t.Errorf("over a unix socket: %q", servers)
		}
	}
}

// TestDiscoveryWhileNobodyIsReady tells the last list: there is no better one.
func TestDiscoveryWhileNobodyIsReady(t *testing.T) {
	cfg := clusterConfig(t, consistency.Linearizable)
	cfg.Listen = []string{attunetest.FreeAddr(t)}
	n := start(t, cfg)
	version, servers := dial(t, n).discover()
	if strings.Join(servers, " ") != cfg.Listen[0] {
		t.Fatal(servers)
	}
	for range 100 { // the engine, which knows better, sees to it at times
		n.cluster.Load().SetReady(false)
		if v, s := n.servers(""); v != version || len(s) != 1 {
			t.Fatalf("version %d, then %d: %v", version, v, s)
		}
	}
}
