//go:build unix

package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/attunekv/attune/internal/attunetest"
)

// reload writes the file that p was started with, has p read it, and waits for a
// line of its log that has all words, and was not there before.
func (p *process) reload(t *testing.T, path, text string, words ...string) {
	t.Helper()
	before := len(p.logged())
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGHUP)
	attunetest.Eventually(t, fmt.Sprintf("a line with %q", words), func() bool {
	lines:
		for line := range strings.SplitSeq(p.logged()[before:], "\n") {
			for _, word := range words {
				if !strings.Contains(line, word) {
					continue lines
				}
			}
			return true
		}
		return false
	})
}

// TestReload exchanges the memcached servers of a controller in a cluster: values
// that are sought on another one come back from the other controller.
func TestReload(t *testing.T) {
	one, two, other := attunetest.StartMemcached(t), attunetest.StartMemcached(t), attunetest.StartMemcached(t)
	gossip := attunetest.FreeAddr(t)
	on := func(servers ...*attunetest.Memcached) string {
		var addrs []string
		for _, m := range servers {
			addrs = append(addrs, m.Addr)
		}
		return "backend = memcached://" + strings.Join(addrs, ",") + "?timeout=2s\n"
	}
	path := file(t, on(one))
	p := startServe(t, "--config", path, "--peer", attunetest.FreeAddr(t), "--gossip", gossip, "--join", gossip, "--op-timeout", "5s")
	peer := startServe(t, "--name", "n2", "--peer", attunetest.FreeAddr(t), "--gossip", attunetest.FreeAddr(t), "--join", gossip,
		"--backend", "memcached://"+other.Addr)
	c, from := dial(t, "tcp", p.addr), dial(t, "tcp", peer.addr)
	const keys = 50
	for i := range keys {
		c.send(fmt.Sprintf("set k%d 0 0 2\r\n%02d\r\n", i, i))
		c.expect("STORED\r\n")
	}
	has := func(c *wire) {
		t.Helper()
		for i := range keys {
			c.send(fmt.Sprintf("get k%d\r\n", i))
			c.expect(fmt.Sprintf("VALUE k%d 0 2\r\n%02d\r\nEND\r\n", i, i))
		}
	}
	attunetest.Eventually(t, "the last set at the peer", func() bool {
		from.send(fmt.Sprintf("mg k%d\r\n", keys-1))
		line := make([]byte, 4)
		_, err := from.Read(line)
		return err == nil && string(line) == "HD\r\n"
	})
	has(from)

	p.reload(t, path, on(one, two), "settings reloaded", two.Addr)
	has(c)
	p.reload(t, path, on(two), "settings reloaded", "-> memcached://"+two.Addr)
	one.Kill()
	has(c)

	// What makes no sense, or takes a restart, changes nothing.
	p.reload(t, path, "backend = memcached://"+two.Addr+"?timout=1s\nlog-level = debug\n", "not reloaded", "unknown option timout")
	p.reload(t, path, "backend = embedded\nlog-level = debug\n", "not reloaded", "restart")
	p.reload(t, path, on(two)+"max-conn = 5\n", "not reloaded", "max-conns")
	p.reload(t, path, on(two)+"threads = 5\n", "take a restart", "threads 0 -> 5")
	has(c)
	p.reload(t, path, on(two)+"threads = 5\nlog-level = warn\n", "take a restart", "threads 0 -> 5")
	p.reload(t, path, on(two)+"threads = 5\nlog-level = info\n", "settings reloaded", "log-level warn -> info")
	has(c)
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit %d:\n%s", code, p.logged())
	}
}

// A controller whose bytes are its own has nothing to exchange, and lives on.
func TestReloadWithoutServers(t *testing.T) {
	path := file(t, "log-level = info\n")
	p := startServe(t, "--config", path, "--max-conns", "9")
	p.reload(t, path, "max-conns = 8\n", "none has changed", "flags")
	p.reload(t, path, "log-level = debug\n", "settings reloaded", "log-level info -> debug")
	p.reload(t, path, "backend = memcached://127.0.0.1:1\n", "not reloaded", "restart")
	p.reload(t, path, "", "settings reloaded", "log-level debug -> info")
	c := dial(t, "tcp", p.addr)
	c.send("set k 0 0 1\r\nv\r\n")
	c.expect("STORED\r\n")
}
