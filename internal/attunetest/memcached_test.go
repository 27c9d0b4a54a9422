//go:build unix

package attunetest

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/testbed"
)

func ask(t *testing.T, c net.Conn, request, want string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(Patience))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("%q: got %q, %v; want %q", request, got[:n], err, want)
	}
}

func TestMemcachedMistreated(t *testing.T) {
	for name, args := range map[string][]string{"tcp": nil, "unix": {"-s", filepath.Join(t.TempDir(), "s")}} {
		t.Run(name, func(t *testing.T) {
			m := StartMemcached(t, args...)
			addr, c := m.Addr, m.Dial()
			ask(t, c, "set k 0 0 1\r\nv\r\n", "STORED\r\n")

			m.Pause()
			if _, err := io.WriteString(c, "get k\r\n"); err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("paused, it answers: %v", err)
			}
			m.Resume()
			ask(t, c, "", "VALUE k 0 1\r\nv\r\nEND\r\n")

			m.Pause()
			m.Kill()
			m.Kill() // once is enough
			if c, err := m.Memcached.Dial(); err == nil {
				c.Close()
				t.Fatal("killed, it accepts a connection")
			}
			m.Start()
			if m.Addr != addr {
				t.Errorf("at %s, then at %s", addr, m.Addr)
			}
			ask(t, m.Dial(), "get k\r\n", "END\r\n")
		})
	}
}

// Another memcached at the address is not taken for the one started.
func TestMemcachedAddressTaken(t *testing.T) {
	other := StartMemcached(t)
	path, err := testbed.FindMemcached()
	if err != nil {
		t.Fatal(err)
	}
	if m, err := testbed.StartMemcached(path, other.Addr); err == nil {
		t.Errorf("two at %s", m.Addr)
		_ = m.Kill() // the test has failed
	}
}

// A test that is killed leaves no memcached behind. The test killed is this one,
// run by itself.
func TestMemcachedDiesWithTheTest(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a process of its parent's death")
	}
	if os.Getenv("ATTUNETEST_CHILD") != "" {
		os.Stdout.WriteString("at " + StartMemcached(t).Addr + "\n")
		time.Sleep(Patience)
		return
	}
	if _, err := testbed.FindMemcached(); err != nil {
		t.Skip(err)
	}
	addr := killedChild(t)
	Eventually(t, "the memcached is gone", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}

func TestMemcachedNotInstalled(t *testing.T) {
	t.Setenv("ATTUNE_TEST_MEMCACHED", filepath.Join(t.TempDir(), "none"))
	t.Run("skips", func(t *testing.T) {
		defer func() {
			if !t.Skipped() {
				t.Error("the test goes on")
			}
		}()
		StartMemcached(t)
	})
}
