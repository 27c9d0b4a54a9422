package kvadapter_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
)

// listed returns how often Scan lists each key.
func listed(t *testing.T, b kvadapter.Backend) (map[string]int, error) {
	t.Helper()
	seen := make(map[string]int)
	err := b.(kvadapter.Scanner).Scan(t.Context(), func(key []byte, _ kvadapter.Stamp, _ int) bool {
		seen[string(key)]++
		return true
	})
	return seen, err
}

// rawSet sets items 0 to n of a server, each to a record of version 1.
func rawSet(t testing.TB, addr string, n int) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	out := bufio.NewWriter(nc)
	for i := range n {
		fmt.Fprintf(out, "set k%d 0 0 17 noreply\r\n\xa7\x54\x01\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00v\r\n", i)
	}
	out.WriteString("version\r\n")
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(nc).ReadString('\n'); !strings.HasPrefix(line, "VERSION") {
		t.Fatalf("%q, %v", line, err)
	}
}

// TestMemcachedKeysFetchNothing, but for keys that memcached has in another form.
func TestMemcachedKeysFetchNothing(t *testing.T) {
	server := attunetest.StartMemcached(t)
	b := openMemcached(t, server.Addr, "?timeout=10s")
	rawSet(t, server.Addr, 1000)
	mustPut(t, b, "with a space", mrec(1, "v"))
	n := 0
	if err := b.(kvadapter.Lister).Keys(t.Context(), func([]byte) bool { n++; return true }); err != nil || n != 1001 {
		t.Errorf("%d keys, %v", n, err)
	}
	c := server.Dial()
	if _, err := io.WriteString(c, "stats\r\n"); err != nil {
		t.Fatal(err)
	}
	for in := bufio.NewScanner(c); in.Scan(); {
		if line := in.Text(); strings.HasPrefix(line, "STAT cmd_get ") {
			if line != "STAT cmd_get 1" {
				t.Error(line)
			}
			return
		}
	}
	t.Error("memcached does not tell")
}

func TestMemcachedScanPassesOverWhatIsNotOurs(t *testing.T) {
	_, one := startMemcached(t)
	_, two := startMemcached(t)
	servers := []string{one, two}
	b := openMemcached(t, one+","+two, "?timeout=10s")
	ours := on(t, servers, 0, 3)
	for _, key := range ours {
		mustPut(t, b, key, mrec(1, "v"))
	}
	other := memcache.New(one)
	defer other.Close()
	item, err := other.Get(ours[0])
	if err != nil {
		t.Fatal(err)
	}
	hashed := "\xff0123456789abcdef0123456789abcdef"
	for _, key := range append(on(t, servers, 1, 2), hashed, "\xff", hashed+"0") {
		if err := other.Set(&memcache.Item{Key: key, Value: item.Value}); err != nil { // on the wrong server, or without its text
			t.Fatal(err)
		}
	}
	if err := other.Set(&memcache.Item{Key: ours[2], Value: []byte("overwritten by another client")}); err != nil {
		t.Fatal(err)
	}
	seen, err := listed(t, b)
	if err != nil || len(seen) != 2 || seen[ours[0]] != 1 || seen[ours[1]] != 1 {
		t.Errorf("%v, %v; want %q", seen, err, ours[:2])
	}
}

// TestMemcachedScanWhileWritten checks that what is there throughout is listed
// once, even if it is read and overwritten all the time.
func TestMemcachedScanWhileWritten(t *testing.T) {
	const items = 20_000
	server := attunetest.StartMemcached(t, "-m", "256")
	rawSet(t, server.Addr, items)
	b := openMemcached(t, server.Addr, "?timeout=10s")
	var busy sync.WaitGroup
	var stop atomic.Bool
	for w := range 4 {
		busy.Go(func() {
			for i := w; !stop.Load(); i += 7 {
				key := mkey(fmt.Sprintf("k%d", i%items))
				if _, err := b.Get(t.Context(), key, nil); err != nil {
					t.Error(err)
				}
				if err := b.Put(t.Context(), key, mrec(attune.Version(i), "new")); err != nil {
					t.Error(err)
				}
				if err := b.Put(t.Context(), mkey(fmt.Sprintf("more %d", i)), mrec(1, "v")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen, err := listed(t, b)
	stop.Store(true)
	busy.Wait()
	if err != nil {
		t.Fatal(err)
	}
	for i := range items {
		if n := seen[fmt.Sprintf("k%d", i)]; n != 1 {
			t.Fatalf("k%d is listed %d times", i, n)
		}
	}
}

func TestMemcachedScanOfServersThatAreDown(t *testing.T) {
	server, alive := startMemcached(t)
	servers := []string{attunetest.FreeAddr(t), alive, attunetest.FreeAddr(t)}
	b := openMemcached(t, strings.Join(servers, ","), "?timeout=10s")
	key := on(t, servers, 1, 1)[0]
	mustPut(t, b, key, mrec(1, "v"))
	seen, err := listed(t, b)
	mustFail(t, err, kvadapter.ErrUnavailable, servers[0], servers[2], "connection refused")
	if len(seen) != 1 || seen[key] != 1 {
		t.Errorf("of the server that is up %v is listed, want %s", seen, key)
	}
	_, err = b.(kvadapter.Counter).Items(t.Context())
	mustFail(t, err, kvadapter.ErrUnavailable, servers[0])

	hung := openMemcached(t, alive, "?timeout=200ms")
	server.Pause()
	defer server.Resume()
	_, err = hung.(kvadapter.Counter).Items(t.Context())
	mustFail(t, err, kvadapter.ErrUnavailable, alive, "no answer within 200ms")
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("drained")
	timer := time.AfterFunc(50*time.Millisecond, func() { cancel(reason) })
	defer timer.Stop()
	if err := hung.(kvadapter.Scanner).Scan(ctx, nil); !errors.Is(err, reason) {
		t.Errorf("got %v, want the cause", err)
	}
}

// TestMemcachedScanAcrossRestart has the server lose all while it is scanned: what
// was listed and is gone is passed over, and the next scan finds what is new.
func TestMemcachedScanAcrossRestart(t *testing.T) {
	server, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=10s")
	for i := range 1000 {
		mustPut(t, b, fmt.Sprint(i), mrec(1, "v"))
	}
	n := 0
	err := b.(kvadapter.Scanner).Scan(t.Context(), func([]byte, kvadapter.Stamp, int) bool {
		if n++; n == 50 {
			server.Kill()
			server.Start()
			mustPut(t, b, "new", mrec(1, "v"))
		}
		return true
	})
	if err != nil || n < 50 || n > 150 {
		t.Errorf("%d listed, %v; want the batch that was fetched, and no more", n, err)
	}
	seen, err := listed(t, b)
	if err != nil || len(seen) != 1 || seen["new"] != 1 {
		t.Errorf("%v, %v; want new", seen, err)
	}
	n = 0
	err = b.(kvadapter.Scanner).Scan(t.Context(), func([]byte, kvadapter.Stamp, int) bool {
		if n++; n == 1 {
			server.Kill()
		}
		return true
	})
	if err != nil || n != 1 {
		t.Errorf("%d listed, %v", n, err)
	}
}

// TestMemcachedScanNeedsListing has servers that cannot list, or answer what
// nobody asked for.
func TestMemcachedScanNeedsListing(t *testing.T) {
	server := attunetest.StartMemcached(t)
	nc := server.Dial()
	if _, err := io.WriteString(nc, "lru_crawler disable\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(nc).ReadString('\n'); line != "OK\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	b := openMemcached(t, server.Addr, "")
	attunetest.Eventually(t, "its crawler has ended", func() bool {
		_, err := listed(t, b)
		return err != nil && !strings.Contains(err.Error(), "an unknown error happened")
	})
	_, err := listed(t, b)
	mustFail(t, err, kvadapter.ErrUnavailable, server.Addr, "no_lru_crawler")

	for _, test := range []struct{ answer, want string }{
		{"BADCLASS invalid class id\r\n", "1.6.9"},
		{"ERROR\r\n", "1.6.9"},
		{"CLIENT_ERROR bad command line format\r\n", "1.6.9"},
		{"key=a size=1", "in the middle"},
		{"", "in the middle"},
		{"key=a\nEND\r\n", "key=a"},
		{"key=a exp=-1 size=x\nEND\r\n", "size=x"},
		{"key=%zz size=1\nEND\r\n", "%zz"},
		{"key=% size=1\nEND\r\n", "key=%"},
		{"key= size=1\nEND\r\n", "key= "},
		{"key=" + strings.Repeat("a", 251) + " size=1\nEND\r\n", "key=aaa"},
		{"HTTP/1.1 400 Bad Request\r\n", "HTTP/1.1 400"},
		{strings.Repeat("a", 1<<20), "longer than"},
	} {
		_, err := listed(t, openMemcached(t, answering(t, test.answer), ""))
		mustFail(t, err, kvadapter.ErrUnavailable, test.want)
	}
	for _, test := range []struct{ answer, want string }{
		{"STAT pid 1\r\nEND\r\n", "curr_items"},
		{"STAT curr_items many\r\nEND\r\n", "many"},
		{"STAT curr_items -1\r\nEND\r\n", "-1"},
		{"ERROR\r\n", "ERROR"},
		{"STAT curr_items 1\r\n", "in the middle"},
	} {
		_, err := openMemcached(t, answering(t, test.answer), "").(kvadapter.Counter).Items(t.Context())
		mustFail(t, err, kvadapter.ErrUnavailable, test.want)
	}
}

// answering starts a server that has one answer to a line, and then hangs up.
func answering(t *testing.T, answer string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := bufio.NewReader(nc).ReadString('\n'); err == nil {
				io.WriteString(nc, answer)
			}
			nc.Close()
		}
	})
	return l.Addr().String()
}

// BenchmarkMemcachedScan lists a million records.
func BenchmarkMemcachedScan(b *testing.B) {
	const items = 1_000_000
	server := attunetest.StartMemcached(b, "-m", "1024")
	rawSet(b, server.Addr, items)
	store := openMemcached(b, server.Addr, "?timeout=10s")
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := store.(kvadapter.Scanner).Scan(b.Context(), func([]byte, kvadapter.Stamp, int) bool { n++; return true }); err != nil || n != items {
			b.Fatal(n, err)
		}
	}
}
