package controller

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/attunekv/attune/internal/attunetest"
)

// startBefore is a node before memcached servers, with short timeouts.
func startBefore(t *testing.T, servers ...*attunetest.Memcached) *Node {
	var addrs []string
	for _, m := range servers {
		addrs = append(addrs, m.Addr)
	}
	cfg := testConfig()
	cfg.Backend = "memcached://" + strings.Join(addrs, ",") + "?timeout=200ms"
	cfg.OpTimeout = 500 * time.Millisecond
	cfg.HotCache = 0 // it would answer for them
	return start(t, cfg)
}

// limit is how long a command may take before a dead backend: the op timeout,
// and what a busy machine adds.
const limit = 4 * time.Second

// fails wants the command refused for the backend's sake, within the limit.
func (c *client) fails(command string) {
	c.t.Helper()
	began := time.Now()
	c.send(command)
	if got := c.line(); !strings.HasPrefix(got, "SERVER_ERROR backend ") && !strings.HasPrefix(got, "SERVER_ERROR timed out") {
		c.t.Fatalf("%.30q: %q, want the backend's failure", command, got)
	}
	if took := time.Since(began); took > limit {
		c.t.Errorf("%.30q failed after %v", command, took)
	}
}

// awaitBackend sends a command until it does not fail any more, and wants the answer.
func (c *client) awaitBackend(command, want string) {
	c.t.Helper()
	for end := time.Now().Add(attunetest.Patience); ; time.Sleep(10 * time.Millisecond) {
		c.send(command)
		if got := c.line(); got == want {
			return
		} else if !strings.HasPrefix(got, "SERVER_ERROR backend ") || time.Now().After(end) {
			c.t.Fatalf("%.30q: %q, want %q", command, got, want)
		}
	}
}

// works wants commands that need no backend answered at once.
func (c *client) works() {
	c.t.Helper()
	began := time.Now()
	c.ask("mn\r\nversion\r\nget never-stored\r\n", "MN\r\nVERSION "+wireVersion+"\r\nEND\r\n")
	if took := time.Since(began); took > limit {
		c.t.Errorf("held up for %v", took)
	}
}

func TestBackendKilledAndRestarted(t *testing.T) {
	m := attunetest.StartMemcached(t)
	n := startBefore(t, m)
	c, other := dial(t, n), dial(t, n)
	for _, key := range []string{"a", "b", "n", "gone"} {
		c.set(key, []byte("10"))
	}
	m.Kill()
	c.fails("get a\r\n")
	c.fails("gets a b a\r\n") // one error for the command, and no END behind it
	other.works()
	c.fails("mg a v\r\n")
	c.fails("set a 0 0 3\r\nnew\r\n")
	c.fails("incr n 1\r\n")
	c.fails("append b 0 0 1\r\nx\r\n")
	c.ask("mn\r\n", "MN\r\n") // nothing was left over
	// What is decided without bytes is still decided.
	c.ask("delete gone\r\nget gone\r\nadd b 0 0 1\r\nx\r\n", "DELETED\r\nEND\r\nNOT_STORED\r\n")
	if got := c.stats("")["backend_errors"]; got == "0" {
		t.Error("backend_errors 0 after errors")
	}

	m.Start()
	// A failed set may or may not have happened; the old value it never is.
	c.ask("get a\r\n", "END\r\n")
	// The server lost what it had: misses, not errors. That it is back is found by a
	// probe.
	c.awaitBackend("get b\r\n", "END")
	c.ask("get n\r\nincr n 1\r\n", "END\r\nNOT_FOUND\r\n")
	c.set("a", []byte("again"))
	if got := c.get("a"); string(got) != "again" {
		t.Errorf("after the restart: %q", got)
	}
}

func TestBackendFrozen(t *testing.T) {
	frozen, fine := attunetest.StartMemcached(t), attunetest.StartMemcached(t)
	n := startBefore(t, frozen, fine)
	c, other := dial(t, n), dial(t, n)
	var onFrozen, onFine []string
	direct := behind(t, fine)
	for i := range 20 {
		key := fmt.Sprint("key", i)
		c.set(key, []byte("old"))
		if direct.get(key) != nil {
			onFine = append(onFine, key)
		} else {
			onFrozen = append(onFrozen, key)
		}
	}
	if len(onFine) < 3 || len(onFrozen) < 3 {
		t.Fatalf("keys are dealt unevenly: %v, %v", onFrozen, onFine)
	}

	frozen.Pause()
	thawed := false
	defer func() {
		if !thawed {
			frozen.Resume()
		}
	}()
	c.send("set " + onFrozen[0] + " 0 0 3\r\nnew\r\n") // waits; the others do not
	began := time.Now()
	other.works()
	for _, key := range onFine {
		if got := other.get(key); string(got) != "old" {
			t.Errorf("%s on the other server: %q", key, got)
		}
	}
	other.set(onFine[0], []byte("new"))
	if took := time.Since(began); took > limit {
		t.Errorf("the other server's keys took %v", took)
	}
	if got := c.line(); !strings.HasPrefix(got, "SERVER_ERROR ") {
		t.Errorf("set on the frozen server: %q", got)
	}
	for _, key := range onFrozen[1:] { // also once it counts as hung
		c.fails("get " + key + "\r\n")
	}
	c.fails("get " + onFine[0] + " " + onFrozen[1] + "\r\n")
	other.works()

	frozen.Resume()
	thawed = true
	attunetest.Eventually(t, "the server is used again", func() bool {
		c.send("set " + onFrozen[1] + " 0 0 5\r\nagain\r\n")
		return c.line() == "STORED"
	})
	// The set that timed out was refused; now that the server works off its
	// queue, whatever it did there, the value from before must not come back.
	if got := c.get(onFrozen[0]); string(got) == "old" {
		t.Error("the old value was read after a failed set")
	}
	if got := c.get(onFrozen[1]); string(got) != "again" {
		t.Errorf("after the thaw: %q", got)
	}
}

func TestBackendForgetsAndLies(t *testing.T) {
	m := attunetest.StartMemcached(t)
	n := startBefore(t, m)
	c, direct := dial(t, n), behind(t, m)
	c.set("k", []byte("first"))
	record := direct.get("k") // as stored: value and stamp
	if !bytes.Contains(record, []byte("first")) {
		t.Fatalf("the server holds %q", record)
	}

	// An old record, come back from a stale copy, is a miss.
	c.set("k", []byte("second"))
	direct.set("k", record)
	c.ask("get k\r\nget k\r\n", "END\r\nEND\r\n")
	if st := n.replicaStats(); st.Strange != 1 || st.Gone != 1 {
		t.Errorf("%d reads met other bytes, %d none or others", st.Strange, st.Gone)
	}
	c.ask("incr k 1\r\nadd k 0 0 5\r\nthird\r\n", "NOT_FOUND\r\nSTORED\r\n")
	if got := c.get("k"); string(got) != "third" {
		t.Errorf("got %q", got)
	}
	// So is what another program wrote.
	direct.set("k", []byte("foreign"))
	c.ask("get k\r\n", "END\r\n")
	c.set("k", []byte("fourth"))
	// And what was flushed behind our back.
	direct.ask("flush_all\r\n", "OK\r\n")
	c.ask("get k\r\nappend k 0 0 1\r\nx\r\n", "END\r\nNOT_STORED\r\n")
	c.set("k", []byte("fifth"))
	if got := c.get("k"); string(got) != "fifth" {
		t.Errorf("got %q", got)
	}
}

// TestBackendServersAreShown checks what an operator sees of a server that goes down
// and comes back, and that servers are exchanged while the node serves.
func TestBackendServersAreShown(t *testing.T) {
	m, other := attunetest.StartMemcached(t), attunetest.StartMemcached(t)
	core, logs := observer.New(zap.InfoLevel)
	cfg := testConfig()
	cfg.Backend = "memcached://" + m.Addr + "?timeout=10s"
	cfg.Admin, cfg.Log, cfg.HotCache = "127.0.0.1:0", zap.New(core), 0
	n := start(t, cfg)
	c := dial(t, n)
	c.set("k", []byte("v"))
	shows := func(metric string) {
		t.Helper()
		if _, body := httpGet(t, n, "/metrics"); !strings.Contains(body, "\n"+metric) {
			t.Errorf("metrics lack %s", metric)
		}
	}
	shows(`attune_backend_up{server="` + m.Addr + `"} 1`)
	shows(`attune_backend_errors_total{server="` + m.Addr + `"} 0`)
	shows(`attune_backend_duration_seconds_count{server="` + m.Addr + `"} 1`)
	m.Kill()
	for range 10 {
		c.fails("get k\r\n")
	}
	shows(`attune_backend_up{server="` + m.Addr + `"} 0`)
	if down := logs.FilterMessageSnippet("is down").FilterField(zap.String("server", m.Addr)).Len(); down != 1 {
		t.Errorf("%d lines tell that the server is down, want 1", down)
	}
	m.Start()
	c.awaitBackend("get k\r\n", "END")
	for end := time.Now().Add(attunetest.Patience); logs.FilterMessageSnippet("is up again").Len() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no line tells that it is up again")
		}
	}

	c.set("k", []byte("v"))
	for _, spec := range []string{"embedded", "memcached://" + other.Addr + "?timout=1s"} {
		next := cfg
		next.Backend, next.MaxConns = spec, 1
		if err := n.Reconfigure(next); err == nil || n.inUse() != &n.cfg {
			t.Errorf("%s: %v, goes on with %s", spec, err, n.inUse().Backend)
		}
	}
	c.ask("get k\r\n", "VALUE k 0 1\r\nv\r\nEND\r\n")
	next := cfg
	next.Backend = "memcached://" + other.Addr + "?timeout=10s"
	if err := n.Reconfigure(next); err != nil {
		t.Fatal(err)
	}
	m.Kill()
	c.ask("get k\r\n", "END\r\n") // alone, what is elsewhere is lost
	c.set("k", []byte("new"))
	c.ask("get k\r\n", "VALUE k 0 3\r\nnew\r\nEND\r\n")
	shows(`attune_backend_up{server="` + other.Addr + `"} 1`)
	if err := start(t, testConfig()).Reconfigure(cfg); err == nil {
		t.Error("a store in the process was exchanged")
	}
}

func TestBackendListsKeys(t *testing.T) {
	m := attunetest.StartMemcached(t)
	c := dial(t, startBefore(t, m))
	c.set("a%b", []byte("10"))
	c.ask("lru_crawler mgdump all\r\n", "mg a%25b\r\nEN\r\n")
	// A key that memcached cannot have as it is.
	c.ask("delete a%b\r\nms YSBi 2 b\r\nok\r\nlru_crawler mgdump all\r\n", "DELETED\r\nHD\r\nmg a%20b\r\nEN\r\n")
	m.Kill()
	c.send("lru_crawler mgdump all\r\n")
	if got := c.line(); !strings.HasPrefix(got, "SERVER_ERROR backend "+m.Addr) {
		t.Errorf("%q, want the backend's failure", got)
	}
}

// TestBackendDownFromTheStart: a node starts without its store, and finds it
// when it comes.
func TestBackendDownFromTheStart(t *testing.T) {
	m := attunetest.StartMemcached(t)
	m.Kill()
	n := startBefore(t, m)
	c := dial(t, n)
	c.works()
	c.fails("set k 0 0 1\r\nx\r\n")
	c.ask("get k\r\n", "END\r\n")
	m.Start()
	c.set("k", []byte("x"))
	if got := c.get("k"); string(got) != "x" {
		t.Errorf("got %q", got)
	}
}

// TestNoDebrisFromAbandonedSessions: a client that leaves in the middle of its
// replies must not leave them to the next one.
func TestNoDebrisFromAbandonedSessions(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		c := dial(t, n)
		for i := range 32 {
			c.set(fmt.Sprint("mine", i), pattern(20_000, i))
			c.set(fmt.Sprint("yours", i), pattern(100, 50+i))
		}
		for range 20 {
			d := dial(t, n)
			d.SetDeadline(time.Now().Add(50 * time.Millisecond))
			var ask strings.Builder
			for i := range 3200 {
				fmt.Fprintf(&ask, "get mine%d\r\n", i%32)
			}
			d.Write([]byte(ask.String()))
			d.Close()
			for i := range 32 {
				if got := c.get(fmt.Sprint("yours", i)); !bytes.Equal(got, pattern(100, 50+i)) {
					t.Fatalf("yours%d: %.60q", i, got)
				}
			}
		}
	})
}
