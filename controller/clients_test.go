package controller_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/attunekv/attune/controller"
)

// need skips the test unless a program is installed.
func need(t *testing.T, program, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("no %s: install the package %s", program, debianPackage)
	}
}

// run runs a program to its end, which must be a success, and returns its
// output.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// onEachBackend runs a test against a node with the embedded store and one in
// front of a real memcached.
func onEachBackend(t *testing.T, test func(t *testing.T, addr string)) {
	t.Run("embedded", func(t *testing.T) { test(t, startNode(t, nil)) })
	t.Run("memcached", func(t *testing.T) {
		backend := startMemcached(t)
		test(t, startNode(t, func(c *controller.Config) { c.Backend = "memcached://" + backend }))
	})
}

// The whole of gomemcache.
func TestGomemcache(t *testing.T) {
	onEachBackend(t, func(t *testing.T, addr string) {
		c := memcache.New(addr)
		c.Timeout = 5 * time.Second
		defer c.Close()
		ok := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		refused := func(err, want error) {
			t.Helper()
			if !errors.Is(err, want) {
				t.Fatalf("error %v, want %v", err, want)
			}
		}
		want := func(key, value string) *memcache.Item {
			t.Helper()
			it, err := c.Get(key)
			ok(err)
			if string(it.Value) != value {
				t.Fatalf("%s is %q, want %q", key, it.Value, value)
			}
			return it
		}
		ok(c.Ping())
		ok(c.Set(&memcache.Item{Key: "a", Value: []byte("1"), Flags: 1<<32 - 1, Expiration: 100}))
		if it := want("a", "1"); it.Flags != 1<<32-1 {
			t.Errorf("flags %d", it.Flags)
		}
		_, err := c.Get("nothing")
		refused(err, memcache.ErrCacheMiss)
		refused(c.Add(&memcache.Item{Key: "a", Value: []byte("2")}), memcache.ErrNotStored)
		ok(c.Add(&memcache.Item{Key: "b", Value: []byte("2")}))
		refused(c.Replace(&memcache.Item{Key: "nothing"}), memcache.ErrNotStored)
		ok(c.Replace(&memcache.Item{Key: "b", Value: []byte("3")}))
		ok(c.Append(&memcache.Item{Key: "b", Value: []byte("4")}))
		ok(c.Prepend(&memcache.Item{Key: "b", Value: []byte("2")}))
		want("b", "234")
		refused(c.Append(&memcache.Item{Key: "nothing", Value: []byte("4")}), memcache.ErrNotStored)
		refused(c.Prepend(&memcache.Item{Key: "nothing", Value: []byte("4")}), memcache.ErrNotStored)

		items, err := c.GetMulti([]string{"a", "nothing", "b"})
		ok(err)
		if len(items) != 2 || string(items["a"].Value) != "1" || string(items["b"].Value) != "234" {
			t.Errorf("GetMulti: %v", items)
		}

		it := want("b", "234")
		it.Value = []byte("5")
		ok(c.CompareAndSwap(it))
		it.Value = []byte("6")
		refused(c.CompareAndSwap(it), memcache.ErrCASConflict)
		it = want("b", "5")
		ok(c.Delete("b"))
		refused(c.CompareAndSwap(it), memcache.ErrCacheMiss)
		refused(c.Delete("b"), memcache.ErrCacheMiss)

		n, err := c.Increment("a", 41)
		ok(err)
		if n != 42 {
			t.Errorf("Increment: %d", n)
		}
		n, err = c.Decrement("a", 50)
		ok(err)
		if n != 0 {
			t.Errorf("Decrement: %d", n)
		}
		_, err = c.Increment("nothing", 1)
		refused(err, memcache.ErrCacheMiss)
		_, err = c.Decrement("nothing", 1)
		refused(err, memcache.ErrCacheMiss)
		ok(c.Set(&memcache.Item{Key: "text", Value: []byte("text")}))
		if _, err = c.Increment("text", 1); err == nil || !strings.Contains(err.Error(), "non-numeric") {
			t.Errorf("Increment of a text: %v", err)
		}

		ok(c.Touch("text", 100))
		refused(c.Touch("nothing", 100), memcache.ErrCacheMiss)
		it, err = c.GetAndTouch("text", 200)
		ok(err)
		if string(it.Value) != "text" {
			t.Errorf("GetAndTouch: %q", it.Value)
		}
		_, err = c.GetAndTouch("nothing", 200)
		refused(err, memcache.ErrCacheMiss)

		large := strings.Repeat("large\r\n", 100_000)
		ok(c.Set(&memcache.Item{Key: "large", Value: []byte(large)}))
		want("large", large)
		if err := c.Set(&memcache.Item{Key: "large", Value: make([]byte, 2<<20)}); err == nil {
			t.Error("a value of 2 MiB was stored")
		}
		_, err = c.Get("large")
		refused(err, memcache.ErrCacheMiss)

		ok(c.DeleteAll())
		_, err = c.Get("text")
		refused(err, memcache.ErrCacheMiss)
		ok(c.Set(&memcache.Item{Key: "text", Value: []byte("again")}))
		want("text", "again")
		ok(c.FlushAll())
		_, err = c.Get("text")
		refused(err, memcache.ErrCacheMiss)
	})
}

// libmemcached's own tests of a server: 27 in ASCII, 27 in binary.
func TestMemcapable(t *testing.T) {
	need(t, "memccapable", "libmemcached-tools")
	onEachBackend(t, func(t *testing.T, addr string) {
		host, port, _ := net.SplitHostPort(addr)
		for _, dialect := range []string{"-a", "-b"} {
			out := run(t, "memccapable", "-h", host, "-p", port, dialect)
			if !strings.Contains(out, "All tests passed") {
				t.Errorf("memcapable %s:\n%s", dialect, out)
			}
		}
	})
}

// libmemcached's tools.
func TestLibmemcachedTools(t *testing.T) {
	need(t, "memccp", "libmemcached-tools")
	addr := startNode(t, nil)
	servers := "--servers=" + addr
	file := filepath.Join(t.TempDir(), "file")
	content := "first line\nsecond line\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, binary := range []bool{false, true} {
		tool := func(more ...string) string {
			t.Helper()
			if name := more[0]; binary && name != "memcping" && name != "memcstat" {
				more = append(more, "--binary")
			}
			return run(t, more[0], append([]string{servers}, more[1:]...)...)
		}
		tool("memcping")
		tool("memccp", file)
		if out := tool("memccat", "file"); strings.TrimSpace(out) != strings.TrimSpace(content) {
			t.Errorf("memccat: %q", out)
		}
		tool("memcexist", "file")
		tool("memctouch", "--expire=100", "file")
		if out := tool("memcstat"); !strings.Contains(out, "curr_items") {
			t.Errorf("memcstat: %s", out)
		}
		if !binary { // there is no cachedump in binary
			if out := tool("memcdump"); !strings.Contains(out, "file") {
				t.Errorf("memcdump: %q", out)
			}
		}
		tool("memcrm", "file")
		if err := exec.Command("memcexist", servers, "file").Run(); err == nil {
			t.Error("memcexist finds what memcrm removed")
		}
	}
}

// Two Python clients, one of them libmemcached's.
func TestPythonClients(t *testing.T) {
	const python = "/usr/bin/python3" // that of the distribution, which has its packages
	for _, module := range []string{"pymemcache", "pylibmc"} {
		t.Run(module, func(t *testing.T) {
			if err := exec.Command(python, "-c", "import "+module).Run(); err != nil {
				t.Skipf("no %s: install the package python3-%s", module, module)
			}
			onEachBackend(t, func(t *testing.T, addr string) {
				_, port, _ := net.SplitHostPort(addr)
				if out := run(t, python, filepath.Join("testdata", module+"_session.py"), port); strings.TrimSpace(out) != "ok" {
					t.Error(out)
				}
			})
		})
	}
}

// memcached's own tool.
func TestMemcachedTool(t *testing.T) {
	const tool = "/usr/share/memcached/scripts/memcached-tool"
	if _, err := os.Stat(tool); err != nil {
		t.Skip("no memcached-tool: install the package memcached")
	}
	addr := startNode(t, nil)
	if _, err := talk(addr, [][]byte{[]byte("set a 0 0 1\r\nx\r\nset b 0 100 1\r\ny\r\n")}, 0); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[string][]string{
		"display":  {"Item_Size", "Count"},
		"stats":    {"curr_items", "cmd_set"},
		"settings": {"maxbytes"},
		"sizes":    {"Size", "Count"},
		"keys":     {"key=a ", "key=b "},
		"dump":     {"add a 0 0 1\r\nx", "add b 0 "},
	} {
		out := run(t, tool, addr, mode)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("memcached-tool %s lacks %q:\n%s", mode, w, out)
			}
		}
	}
}
