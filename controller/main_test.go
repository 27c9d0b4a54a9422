package controller

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = attunetest.Patience

// testConfig is a node on ports of its own, without admin.
func testConfig() Config {
	cfg := Default()
	cfg.Listen = []string{"127.0.0.1:0"}
	cfg.Admin = ""
	cfg.DrainTimeout = 5 * time.Second
	return cfg
}

// start opens a node and closes it with the test.
func start(t testing.TB, cfg Config) *Node {
	t.Helper()
	n, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cfg.DrainTimeout)
		defer cancel()
		n.Close(ctx) // tests that care about the error close the node themselves
	})
	return n
}

// eachDriver runs a test on the event loop and on a goroutine per connection,
// with an engine that answers at once and one that does not, with those of
// clusters, and before a memcached if there is one.
func eachDriver(t *testing.T, test func(t *testing.T, cfg Config)) {
	for _, goroutines := range []bool{false, true} {
		name := "loop"
		if goroutines {
			name = "goroutine"
		}
		cfg := testConfig()
		cfg.goroutines = goroutines
		t.Run(name, func(t *testing.T) { test(t, cfg) })
		t.Run(name+" later", func(t *testing.T) {
			cfg.wrap = answerLater(t)
			test(t, cfg)
		})
	}
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Eventual} {
		t.Run(level.String(), func(t *testing.T) { test(t, clusterConfig(t, level)) })
	}
	for _, goroutines := range []bool{false, true} {
		name := "memcached"
		if goroutines {
			name += " goroutine"
		}
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.goroutines = goroutines
			cfg.Backend = "memcached://" + attunetest.StartMemcached(t, "-I", "32m", "-m", "256").Addr + "?timeout=5s"
			cfg.OpTimeout = patience
			test(t, cfg)
		})
	}
}

// clusterConfig is that of a cluster of one.
func clusterConfig(t testing.TB, level consistency.Level) Config {
	cfg := testConfig()
	cfg.Level = level
	cfg.Peer, cfg.Gossip = attunetest.FreeAddr(t), attunetest.FreeAddr(t)
	cfg.Join = []string{cfg.Gossip} // else one at the level eventual is alone
	cfg.OpTimeout = patience
	return cfg
}

// client is a connection that speaks text.
type client struct {
	net.Conn
	r *bufio.Reader
	t testing.TB
}

func dial(t testing.TB, n *Node) *client {
	t.Helper()
	network, address := splitAddr(n.Addrs()[0])
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &client{Conn: c, r: bufio.NewReaderSize(c, 64<<10), t: t}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatalf("send %.60q: %v", s, err)
	}
}

// line reads one reply line, without its end.
func (c *client) line() string {
	c.t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("after %.60q: %v", s, err)
	}
	return strings.TrimSuffix(s, "\r\n")
}

// want reads exactly these bytes.
func (c *client) want(s string) {
	c.t.Helper()
	got := make([]byte, len(s))
	n, err := io.ReadFull(c.r, got)
	if err != nil || string(got) != s {
		at := 0
		for at < n && got[at] == s[at] {
			at++
		}
		from := max(0, at-40)
		c.t.Fatalf("reply differs at byte %d: got %.120q (%v), want %.120q", at, got[from:n], err, s[from:])
	}
}

// ask sends a command and wants exactly this reply.
func (c *client) ask(command, reply string) {
	c.t.Helper()
	c.send(command)
	c.want(reply)
}

// end wants the connection closed by the server, and nothing more said.
func (c *client) end() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if err != nil || len(rest) > 0 {
		c.t.Fatalf("got %.80q, %v; want the end", rest, err)
	}
}

// set stores a value and wants it stored.
func (c *client) set(key string, value []byte) {
	c.t.Helper()
	c.ask(fmt.Sprintf("set %s 0 0 %d\r\n%s\r\n", key, len(value), value), "STORED\r\n")
}

// get reads one key: nil if it is a miss.
func (c *client) get(key string) []byte {
	c.t.Helper()
	c.send("get " + key + "\r\n")
	head := c.line()
	if head == "END" {
		return nil
	}
	words := strings.Fields(head)
	if len(words) != 4 || words[0] != "VALUE" || words[1] != key {
		c.t.Fatalf("get %s: %q", key, head)
	}
	size, _ := strconv.Atoi(words[3])
	value := make([]byte, size)
	if _, err := io.ReadFull(c.r, value); err != nil {
		c.t.Fatal(err)
	}
	c.want("\r\nEND\r\n")
	return value
}

// stats reads a section of stats.
func (c *client) stats(section string) map[string]string {
	c.t.Helper()
	c.send(strings.TrimSpace("stats "+section) + "\r\n")
	all := make(map[string]string)
	for {
		line := c.line()
		if line == "END" {
			return all
		}
		words := strings.SplitN(line, " ", 3)
		if len(words) != 3 || words[0] != "STAT" {
			c.t.Fatalf("stats %s: %q", section, line)
		}
		if _, twice := all[words[1]]; twice {
			c.t.Errorf("stats %s: %s twice", section, words[1])
		}
		all[words[1]] = words[2]
	}
}

// pattern is size bytes that differ from those of another seed at every offset.
func pattern(size, seed int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte('!' + (i*7+i/251+seed)%90)
	}
	return b
}

// openFiles counts this process's descriptors.
func openFiles(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("counting descriptors needs /proc:", err)
	}
	return len(d)
}

// behind speaks to the memcached itself, behind the node's back.
func behind(t testing.TB, m *attunetest.Memcached) *client {
	t.Helper()
	c := m.Dial()
	c.SetDeadline(time.Now().Add(patience))
	return &client{Conn: c, r: bufio.NewReader(c), t: t}
}
