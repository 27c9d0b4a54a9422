package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"go.uber.org/goleak"

	"github.com/attunekv/attune/client/internal/memtest"
	"github.com/attunekv/attune/internal/attunetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a client with a short timeout that the test's end closes.
func open(t *testing.T, servers ...string) *Client {
	c := New(servers...)
	c.Timeout = 200 * time.Millisecond
	t.Cleanup(func() { c.Close() })
	return c
}

func set(c *Client, key, value string) error {
	return c.Set(&memcache.Item{Key: key, Value: []byte(value)})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func at(t *testing.T, c *Client, f *memtest.Fake) {
	t.Helper()
	if c.Controller() != f.Addr {
		t.Fatalf("current controller is %s, want %s", c.Controller(), f.Addr)
	}
}

func TestStaysWithOneControllerAndMovesOnFailure(t *testing.T) {
	a, b := memtest.Serve(t, ""), memtest.Serve(t, "")
	c := open(t, a.Addr, b.Addr)
	for i := range 20 {
		must(t, set(c, fmt.Sprint("key", i), "v"))
	}
	if b.Seen() != 0 {
		t.Fatalf("the second controller saw %d requests while the first was fine", b.Seen())
	}

	a.Stop()
	must(t, set(c, "k", "v")) // a write, yet no error: it was not sent to the dead one
	at(t, c, b)

	a.Start()
	before := a.Seen()
	for range 20 {
		must(t, set(c, "k", "v"))
	}
	at(t, c, b)
	if a.Seen() != before {
		t.Fatal("it went back although nothing had failed")
	}

	b.Stop()
	must(t, set(c, "k", "v"))
	at(t, c, a)
}

func TestMovesOnTimeout(t *testing.T) {
	a, b := memtest.Serve(t, ""), memtest.Serve(t, "")
	must(t, set(open(t, b.Addr), "k", "from b"))
	a.Answer(func(string) string { return "hang" })
	c := open(t, a.Addr, b.Addr)

	it, err := c.Get("k") // a read is asked again, elsewhere
	must(t, err)
	if string(it.Value) != "from b" {
		t.Fatalf("got %q", it.Value)
	}
	at(t, c, b)
}

func TestLostWriteIsNotRepeated(t *testing.T) {
	for _, how := range []string{"hang", "close"} {
		a, b := memtest.Serve(t, ""), memtest.Serve(t, "")
		a.Answer(func(string) string { return how })
		c := open(t, a.Addr, b.Addr)

		_, err := c.Increment("n", 1)
		var lost *LostError
		if !errors.As(err, &lost) || lost.Controller != a.Addr {
			t.Fatalf("%s: got %v, want a LostError of %s", how, err, a.Addr)
		}
		if a.Seen() != 1 || b.Seen() != 0 {
			t.Fatalf("%s: sent %d and %d times, want 1 and 0", how, a.Seen(), b.Seen())
		}
		if how == "hang" {
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() {
				t.Fatalf("%v does not say it is a timeout", err)
			}
		}
		at(t, c, b)
	}
}

// A controller that refuses has done nothing, so that anything is sent to another
// one, once to each.
func TestRefusedIsSentElsewhere(t *testing.T) {
	for _, line := range refusals {
		a, b := memtest.Serve(t, ""), memtest.Serve(t, "")
		a.Answer(func(string) string { return line + ": why" })
		c := open(t, a.Addr, b.Addr)
		must(t, set(c, "n", "1"))
		at(t, c, b)

		b.Answer(func(string) string { return line + ": why" })
		before := a.Seen() + b.Seen()
		_, get := c.Get("n")
		if asked := a.Seen() + b.Seen() - before; asked != 2 {
			t.Errorf("%s: a get was sent %d times to two controllers", line, asked)
		}
		_, multi := c.GetMulti([]string{"n"})
		_, gat := c.GetAndTouch("n", 1)
		_, incr := c.Increment("n", 1)
		_, decr := c.Decrement("n", 1)
		item := &memcache.Item{Key: "n"}
		all := []error{
			get, multi, gat, incr, decr, set(c, "n", "2"), c.Add(item), c.Replace(item), c.Append(item), c.Prepend(item),
			c.CompareAndSwap(item), c.Touch("n", 1), c.Delete("n"), c.DeleteAll(), c.FlushAll(),
		}
		for i, err := range all {
			if got, ok := ErrorLine(err); got != line+": why" || !ok {
				t.Errorf("%d: got %q from %v, want %q", i, got, err, line)
			}
		}
		a.Answer(nil)
		must(t, set(c, "n", "3"))
		at(t, c, a)
	}
}

func TestRestartWhileIdleCostsNothing(t *testing.T) {
	a, b := memtest.Serve(t, ""), memtest.Serve(t, "")
	c := open(t, a.Addr, b.Addr)
	must(t, set(c, "n", "1"))
	must(t, c.Raw(t.Context(), []byte("version\r\n"), func(_, _ []byte) bool { return false }))
	a.Stop()
	a.Start()
	if n, err := c.Increment("n", 1); err != nil || n != 2 {
		t.Fatalf("incr on a connection closed while idle: %d, %v", n, err)
	}
	must(t, c.Raw(t.Context(), []byte("version\r\n"), func(_, _ []byte) bool { return false }))
	at(t, c, a)
}

func TestUnreachable(t *testing.T) {
	a, b := memtest.Serve(t, ""), memtest.Serve(t, "")
	a.Stop()
	b.Stop()
	c := open(t, a.Addr, b.Addr)
	_, getErr := c.Get("k")
	for _, err := range []error{getErr, set(c, "k", "v"), c.Raw(t.Context(), nil, nil)} {
		if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), a.Addr) || !strings.Contains(err.Error(), b.Addr) {
			t.Fatalf("got %v, want ErrUnreachable naming both", err)
		}
	}
	b.Start()
	must(t, set(c, "k", "v"))

	c = open(t)
	if err := set(c, "k", "v"); err != memcache.ErrNoServers {
		t.Fatal(err)
	}
	if err := c.Raw(t.Context(), nil, nil); err != memcache.ErrNoServers || c.Controller() != "" {
		t.Fatal(err)
	}
}

func TestIdleConnectionsFollow(t *testing.T) {
	a, b := memtest.Serve(t, ""), memtest.Serve(t, "")
	c := open(t, a.Addr, b.Addr)
	c.MaxIdleConns = 8
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { set(c, "k", "v") })
	}
	wg.Wait()
	a.Answer(func(string) string { return "close" })
	if _, err := c.Increment("k", 1); err == nil {
		t.Fatal("no error from a closed connection")
	}
	at(t, c, b)
	a.Answer(nil)
	before := a.Seen()
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if err := set(c, "k", "v"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if a.Seen() != before {
		t.Fatal("pooled connections went on talking to the controller that was left")
	}
}

func TestManyFailuresMoveOnce(t *testing.T) {
	a, b, d := memtest.Serve(t, ""), memtest.Serve(t, ""), memtest.Serve(t, "")
	a.Answer(func(string) string { return "hang" })
	c := open(t, a.Addr, b.Addr, d.Addr)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { c.Increment("n", 1) })
	}
	wg.Wait()
	at(t, c, b)
}

func TestUnixSocket(t *testing.T) {
	a := memtest.Serve(t, filepath.Join(t.TempDir(), "a.sock"))
	for _, addr := range []string{a.Addr, "unix:" + a.Addr} {
		must(t, set(open(t, addr), "k", "v"))
	}
}

func TestDialContextIsUsed(t *testing.T) {
	a := memtest.Serve(t, "")
	c := open(t, "name:1")
	c.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if network != "tcp" || address != "name:1" {
			t.Errorf("asked to dial %s %s", network, address)
		}
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", a.Addr)
		return struct{ net.Conn }{nc}, err // as a TLS connection: no syscall.Conn
	}
	must(t, set(c, "k", "v"))
	must(t, set(c, "k", "v"))
}

func TestRaw(t *testing.T) {
	a := memtest.Serve(t, "")
	c := open(t, a.Addr)
	must(t, set(c, "k", "va\r\nlue"))
	var got []string
	collect := func(last string) func(line, block []byte) bool {
		got = nil
		return func(line, block []byte) bool {
			got = append(got, string(line))
			if block != nil {
				got = append(got, string(block))
			}
			return string(line) != last
		}
	}
	want := func(lines ...string) {
		t.Helper()
		if strings.Join(got, "|") != strings.Join(lines, "|") {
			t.Fatalf("got %q, want %q", got, lines)
		}
	}
	must(t, c.Raw(t.Context(), []byte("stats\r\n"), collect("END")))
	want("STAT pid 1", "STAT version 1.6.0-fake", "END")
	must(t, c.Raw(t.Context(), []byte("gets k none\r\n"), collect("END")))
	want("VALUE k 0 7 1", "va\r\nlue", "END")

	err := c.Raw(t.Context(), []byte("bogus\r\n"), collect(""))
	if line, ok := ErrorLine(err); line != "ERROR" || !ok || len(got) != 0 {
		t.Fatalf("got %v %q", err, got)
	}
	for _, bad := range []string{"VA x", "VA 99999999999", "VALUE k 0 -1", "VA 3\r\nabcd", strings.Repeat("x", maxLine+1)} {
		a.Answer(func(string) string { return bad })
		if err := c.Raw(t.Context(), []byte("mg k v\r\n"), collect("")); err == nil {
			t.Errorf("no error for the reply %.20q", bad)
		}
	}

	a.Answer(func(string) string { return "hang" })
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
	if err := c.Raw(ctx, []byte("mg k v\r\n"), collect("")); err != why {
		t.Fatalf("got %v, want the context's cause", err)
	}
	at(t, c, a)
	if err := c.Raw(t.Context(), []byte("mg k v\r\n"), collect("")); readAgain(err) == false {
		t.Fatalf("got %v, want a LostError", err)
	}
}

// A caller that stops early must not leave its rest to the next one.
func TestRawDropsWhatWasNotRead(t *testing.T) {
	a := memtest.Serve(t, "")
	c := open(t, a.Addr)
	must(t, c.Raw(t.Context(), []byte("stats\r\n"), func(_, _ []byte) bool { return false }))
	must(t, c.Raw(t.Context(), []byte("version\r\n"), func(line, _ []byte) bool {
		if !strings.HasPrefix(string(line), "VERSION") {
			t.Errorf("read %q", line)
		}
		return false
	}))
}

func TestErrorLine(t *testing.T) {
	a := memtest.Serve(t, "")
	c := open(t, a.Addr)
	for _, line := range []string{"SERVER_ERROR \"outcome\" unknown", "CLIENT_ERROR bad", "ERROR"} {
		a.Answer(func(string) string { return line })
		_, get := c.Get("k")
		_, incr := c.Increment("k", 1)
		_, gat := c.GetAndTouch("k", 1)
		for i, err := range []error{get, incr, gat, set(c, "k", "v"), c.Delete("k"), c.Touch("k", 1), c.FlushAll(), c.Ping()} {
			if got, ok := ErrorLine(err); got != line || !ok {
				t.Errorf("%d: got %q from %v, want %q", i, got, err, line)
			}
			if server := strings.HasPrefix(line, "SERVER_ERROR"); readAgain(err) != server || refused(err) {
				t.Errorf("%d: after %v a read would be asked for again: %v, and a write: %v", i, err, readAgain(err), refused(err))
			}
		}
	}
	for _, err := range []error{nil, memcache.ErrCacheMiss, io.EOF, &LostError{"a", io.EOF}} {
		if line, ok := ErrorLine(err); ok {
			t.Errorf("%v: took %q for a server's line", err, line)
		}
	}
}

func TestWholeAPIOnMemcached(t *testing.T) {
	c := open(t, attunetest.StartMemcached(t, "-m", "16", "-t", "1").Addr)
	must(t, c.Ping())
	must(t, set(c, "k", "1"))
	must(t, c.Add(&memcache.Item{Key: "k2", Value: []byte("2"), Flags: 7}))
	if err := c.Add(&memcache.Item{Key: "k2"}); err != memcache.ErrNotStored {
		t.Fatal(err)
	}
	items, err := c.GetMulti([]string{"k", "k2", "none"})
	if err != nil || len(items) != 2 || items["k2"].Flags != 7 {
		t.Fatal(items, err)
	}
	must(t, c.CompareAndSwap(items["k"]))
	if err := c.CompareAndSwap(items["k"]); err != memcache.ErrCASConflict {
		t.Fatal(err)
	}
	must(t, c.Append(&memcache.Item{Key: "k", Value: []byte("0")}))
	if n, err := c.Decrement("k", 3); err != nil || n != 7 {
		t.Fatal(n, err)
	}
	must(t, c.Touch("k", 10))
	must(t, c.DeleteAll())
	if _, err := c.Get("k"); err != memcache.ErrCacheMiss {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 1<<20-1000)
	must(t, set(c, "big", big))
	if it, err := c.Get("big"); err != nil || string(it.Value) != big {
		t.Fatal(err)
	}
	must(t, c.Close())
	must(t, set(c, "k", "after Close"))
}

func BenchmarkGet(b *testing.B) {
	addr := attunetest.StartMemcached(b, "-m", "16", "-t", "1").Addr
	for name, get := range map[string]func(string) (*memcache.Item, error){
		"attune": New(addr).Get, "gomemcache": memcache.New(addr).Get,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := get("none"); err != memcache.ErrCacheMiss {
					b.Fatal(err)
				}
			}
		})
	}
}
