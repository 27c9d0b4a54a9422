package controller

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attunekv/attune/internal/attunetest"
)

func TestMaxConns(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		cfg.MaxConns = 3
		n := start(t, cfg)
		var held []*client
		for range cfg.MaxConns {
			c := dial(t, n)
			c.ask("mn\r\n", "MN\r\n")
			held = append(held, c)
		}
		over := dial(t, n)
		over.want("ERROR Too many open connections\r\n")
		over.end()
		if got := held[0].stats("")["rejected_connections"]; got != "1" {
			t.Errorf("rejected_connections %s, want 1", got)
		}
		held[1].Close()
		attunetest.Eventually(t, "a place is free", func() bool { return n.curConns.Load() == 2 })
		dial(t, n).ask("mn\r\n", "MN\r\n")
	})
}

func TestUnixSocket(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		path := filepath.Join(t.TempDir(), "s")
		cfg.Listen = []string{"unix:" + path}

		// What a killed process leaves: a socket file nobody answers on.
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		n := start(t, cfg)
		c := dial(t, n)
		c.set("k", pattern(100_000, 1))
		if !bytes.Equal(c.get("k"), pattern(100_000, 1)) {
			t.Error("another value came back")
		}

		if second, err := Open(context.Background(), cfg); err == nil {
			second.Close(t.Context())
			t.Fatal("took the socket of a live node")
		} else if !strings.Contains(err.Error(), "another process is listening there") {
			t.Errorf("%v does not say what is wrong", err)
		}
		c.ask("get none\r\n", "END\r\n") // and the live one still has it
		dial(t, n).ask("mn\r\n", "MN\r\n")
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("socket file after Close: %v", err)
		}
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := Open(context.Background(), cfg); err == nil {
			n.Close(t.Context())
			t.Error("replaced a file that is no socket")
		}
	})
}

func TestOpenFailsWhole(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	before := goleak.IgnoreCurrent()
	files := openFiles(t)
	for name, spoil := range map[string]func(*Config){
		"listen":  func(c *Config) { c.Admin, c.Listen = "127.0.0.1:0", append(c.Listen, taken.Addr().String()) },
		"admin":   func(c *Config) { c.Admin = taken.Addr().String() },
		"backend": func(c *Config) { c.Backend = "memcached://nowhere" },
		"peer":    func(c *Config) { c.Expect, c.Gossip, c.Peer = 2, "127.0.0.1:0", taken.Addr().String() },
		"gossip":  func(c *Config) { c.Expect, c.Gossip, c.Peer = 2, taken.Addr().String(), "127.0.0.1:0" },
	} {
		cfg := testConfig()
		spoil(&cfg)
		n, err := Open(context.Background(), cfg)
		if err == nil {
			n.Close(t.Context())
			t.Fatalf("%s: opened", name)
		}
		t.Logf("%s: %v", name, err)
		if name != "backend" {
			if !strings.Contains(err.Error(), "address already in use") || !strings.Contains(err.Error(), "--"+name) {
				t.Errorf("%s: %v does not say what to do", name, err)
			}
		}
	}
	goleak.VerifyNone(t, before)
	if got := openFiles(t); got != files {
		t.Errorf("%d descriptors, %d before", got, files)
	}
}

// TestOpenWithoutDescriptors: whichever part meets the limit, nothing stays.
func TestOpenWithoutDescriptors(t *testing.T) {
	files := openFiles(t)
	var limit, low syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	before := goleak.IgnoreCurrent()
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	for spare := range 2*runtime.GOMAXPROCS(0) + 2 {
		low = limit
		low.Cur = uint64(files - 1 + spare)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
			t.Fatal(err)
		}
		n, err := Open(context.Background(), testConfig())
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
		t.Logf("%d to spare: %v", spare, err)
		if err == nil {
			n.Close(t.Context())
		}
		goleak.VerifyNone(t, before)
		if got := openFiles(t); got > files {
			t.Fatalf("with %d to spare (%v): %d descriptors, %d before", spare, err, got, files)
		}
	}
}

func TestCloseAnswersWhatItReceived(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		cfg.Admin = "127.0.0.1:0"
		cfg.DrainTimeout = patience
		n := start(t, cfg)
		idle, busy, eager := dial(t, n), dial(t, n), dial(t, n)
		idle.ask("mn\r\n", "MN\r\n")
		busy.set("k", []byte("old"))
		eager.ask("mn\r\n", "MN\r\n")
		if code, _ := httpGet(t, n, "/readyz"); code != http.StatusOK {
			t.Fatalf("readyz %d while serving", code)
		}

		value := pattern(1<<20, 1)
		busy.send(fmt.Sprintf("set k 0 0 %d\r\n%s", len(value), value[:500_000]))
		attunetest.Eventually(t, "half of the value arrived", func() bool { return n.totals().n[bytesRead] > 0 })
		time.Sleep(50 * time.Millisecond)
		eager.send("set e 0 0 1\r\n1\r\nget e\r\nget k\r\n")
		closed := make(chan error, 1)
		began := time.Now()
		go func() { closed <- n.Close(context.Background()) }()

		eager.want("STORED\r\nVALUE e 0 1\r\n1\r\nEND\r\nVALUE k 0 3\r\nold\r\nEND\r\n")
		eager.end()
		idle.end()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("idle connections were kept for %v", took)
		}
		if code, body := httpGet(t, n, "/readyz"); code != http.StatusServiceUnavailable || body != "draining\n" {
			t.Errorf("readyz %d %q while draining", code, body)
		}
		if code, _ := httpGet(t, n, "/healthz"); code != http.StatusOK {
			t.Errorf("healthz %d while draining", code)
		}
		if c, err := net.Dial("tcp", n.Addrs()[0]); err == nil {
			c.Close()
			t.Error("takes connections while draining")
		}
		select {
		case err := <-closed:
			t.Fatalf("closed (%v) with a value half received", err)
		default:
		}
		busy.ask(string(value[500_000:])+"\r\n", "STORED\r\n")
		busy.end()
		if err := <-closed; err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

// No client is left in doubt about a command by a node that drains: each one is
// carried out and answered, or refused.
func TestDrainAnswersOrRefuses(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		cfg.DrainTimeout = patience
		n := start(t, cfg)
		dial(t, n).ask("set n 0 0 1\r\n0\r\n", "STORED\r\n")
		var done, most, begun atomic.Uint64
		var clients sync.WaitGroup
		const many = 16
		for range many {
			c := dial(t, n)
			clients.Go(func() {
				began := time.Now()
				for i := 0; ; i++ {
					if i == 1 {
						begun.Add(1)
					}
					before := began
					began = time.Now()
					_, err := io.WriteString(c, "incr n 1\r\n")
					line := ""
					if err == nil {
						line, err = c.r.ReadString('\n')
					}
					number, isNumber := strconv.ParseUint(strings.TrimSpace(line), 10, 64)
					switch {
					case isNumber == nil:
						done.Add(1)
						for old := most.Load(); number > old && !most.CompareAndSwap(old, number); old = most.Load() {
						}
						continue
					case strings.HasPrefix(line, "SERVER_ERROR not ready"):
					case err != nil && time.Since(before) > lastCall/2: // this machine is busy, and it was late
					default:
						t.Errorf("incr: %q, %v, %v after the one before", line, err, time.Since(before))
					}
					return
				}
			})
		}
		// A connection that nobody has accepted yet is reset, as any server does.
		attunetest.Eventually(t, "they count", func() bool { return done.Load() > 100 && begun.Load() == many })
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
		clients.Wait()
		if done.Load() != most.Load() {
			t.Errorf("%d increments were answered, and made %d", done.Load(), most.Load())
		}
	})
}

func TestDrainTimeoutCutsTheRest(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		cfg.DrainTimeout = 300 * time.Millisecond
		n := start(t, cfg)
		half, deaf, idle := dial(t, n), dial(t, n), dial(t, n)
		idle.set("big", pattern(1<<20, 1))
		half.send("set k 0 0 100000\r\nonly this")
		deaf.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		deaf.send(strings.Repeat("get big\r\n", 50))
		attunetest.Eventually(t, "the commands arrived", func() bool { return n.totals().n[bytesWritten] > 0 })
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		err := n.Close(context.Background())
		if err == nil || !strings.Contains(err.Error(), "2 connections did not finish in time") {
			t.Errorf("close says %v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("close took %v", took)
		}
		half.end()
	})
}

// TestCloseAtOnce: a context that ends cuts the drain short.
func TestCloseAtOnce(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		cfg.DrainTimeout = time.Minute
		n := start(t, cfg)
		c := dial(t, n)
		c.send("set k 0 0 10\r\n")
		c.send("half")
		time.Sleep(50 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		if err := n.Close(ctx); err == nil || !strings.Contains(err.Error(), "1 connections did not finish in time") {
			t.Errorf("close says %v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("close took %v", took)
		}
	})
}

func TestShutdownCommand(t *testing.T) {
	n := start(t, testConfig())
	dial(t, n).ask("shutdown\r\nmn\r\n", "SERVER_ERROR: shutdown not enabled\r\nMN\r\n")
	cfg := testConfig()
	cfg.EnableShutdown = true
	n = start(t, cfg)
	c := dial(t, n)
	c.send("shutdown\r\n")
	c.end()
	select {
	case <-n.ShutdownAsked():
	case <-time.After(patience):
		t.Error("not told that a client asked for shutdown")
	}
}

// TestIdleConnectionsAreCheap counts what 5,000 of them cost this process.
func TestIdleConnectionsAreCheap(t *testing.T) {
	conns := 5000
	if raceEnabled {
		conns = 500 // the detector's own memory would be measured
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if raised := (syscall.Rlimit{Cur: limit.Max, Max: limit.Max}); limit.Cur < uint64(2*conns+1000) {
		if limit.Max < uint64(2*conns+1000) {
			t.Skipf("needs %d descriptors, may have %d", 2*conns+1000, limit.Max)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised); err != nil {
			t.Skip("cannot raise the limit of open files:", err)
		}
	}
	for _, goroutines := range []bool{false, true} {
		t.Run(fmt.Sprint("goroutines=", goroutines), func(t *testing.T) {
			cfg := testConfig()
			cfg.goroutines = goroutines
			n := start(t, cfg)
			dial(t, n).set("k", pattern(8<<10, 1))
			held := make([]net.Conn, 0, conns)
			defer func() {
				for _, c := range held {
					c.Close()
				}
			}()
			runtime.GC()
			before := resident(t)
			reply := make([]byte, len("VALUE k 0 8192\r\nEND\r\n")+2+8<<10)
			for range conns {
				c, err := net.Dial("tcp", n.Addrs()[0])
				if err != nil {
					t.Fatal(err)
				}
				held = append(held, c)
				// Each was used once: that must not leave buffers behind.
				if _, err := io.WriteString(c, "get k\r\n"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, reply); err != nil {
					t.Fatal(err)
				}
			}
			attunetest.Eventually(t, "all are accepted", func() bool { return n.curConns.Load() == int64(conns+1) })
			grown := resident(t) - before
			t.Logf("%d idle connections: %.1f MiB, both ends", conns, float64(grown)/(1<<20))
			if bound := int64(100 << 20); !raceEnabled && grown > bound {
				t.Errorf("%d idle connections cost %d MiB", conns, grown>>20)
			}
		})
	}
}

// resident is this process's memory in use, in bytes.
func resident(t testing.TB) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("needs /proc:", err)
	}
	var size, pages int64
	fmt.Sscan(string(b), &size, &pages)
	return pages * int64(os.Getpagesize())
}

// httpGet asks the node's admin server.
func httpGet(t testing.TB, n *Node, path string) (int, string) {
	t.Helper()
	return httpDo(t, n, http.MethodGet, path, "")
}

func httpDo(t testing.TB, n *Node, method, path, body string) (int, string) {
	t.Helper()
	c := dialAdmin(t, n)
	defer c.Close()
	req, err := http.NewRequest(method, "http://"+n.AdminAddr()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	if err := req.Write(c); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.r, req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func dialAdmin(t testing.TB, n *Node) *client {
	t.Helper()
	c, err := net.Dial("tcp", n.AdminAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &client{Conn: c, r: bufio.NewReader(c), t: t}
}

// TestBytesOnDiskBringTheirStateAlong: a controller over files has a directory for
// what says which of them are current, and is a cluster, of one if need be.
func TestBytesOnDiskBringTheirStateAlong(t *testing.T) {
	for _, test := range []struct {
		backend, dataDir, want string
		alone                  bool
	}{
		{"embedded", "", "", true},
		{"memcached://127.0.0.1:1", "", "", true},
		{"embedded", "/d", "/d", false},
		{"pebble:///p?cache=1MiB", "", filepath.Join("/p", "state"), false},
		{"pebble:///p", "/d", "/d", false},
	} {
		c := Default()
		c.Backend, c.DataDir = test.backend, test.dataDir
		if got := c.dataDir(); got != test.want || c.Alone() != test.alone {
			t.Errorf("%s with data-dir %q: keeps its state in %q, alone %v; want %q, %v",
				test.backend, test.dataDir, got, c.Alone(), test.want, test.alone)
		}
	}
}

func TestHealthIsReadiness(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	hold(&cfg).health = errors.New("too few of us")
	n := start(t, cfg)
	code, body := httpGet(t, n, "/readyz")
	if code != http.StatusServiceUnavailable || body != "level eventual is not served: too few of us\n" {
		t.Errorf("readyz %d %q", code, body)
	}
}
