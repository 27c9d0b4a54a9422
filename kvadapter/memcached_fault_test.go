package kvadapter_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
)

func TestMemcachedOneOfTwoIsDead(t *testing.T) {
	_, alive := startMemcached(t)
	dead := attunetest.FreeAddr(t)
	b := openMemcached(t, alive+","+dead, "?timeout=5s")
	servers := []string{alive, dead}
	here, gone := on(t, servers, 0, 3), on(t, servers, 1, 3)

	start := time.Now()
	for _, key := range here {
		mustPut(t, b, key, mrec(1, "v"))
	}
	for _, key := range gone {
		mustFail(t, b.Put(t.Context(), mkey(key), mrec(1, "v")), kvadapter.ErrUnavailable, dead, "connection refused")
		mustFail(t, b.Delete(t.Context(), mkey(key)), kvadapter.ErrUnavailable, dead)
		_, err := b.Get(t.Context(), mkey(key), nil)
		mustFail(t, err, kvadapter.ErrUnavailable, dead)
	}
	// Of the living server's keys one was never put: that is no failure.
	never := on(t, servers, 0, 4)[3]
	recs, errs := multi(t.Context(), b, gone[0], here[0], gone[1], here[1], never)
	for i, rec := range recs {
		switch i {
		case 0, 2:
			mustFail(t, errs[i], kvadapter.ErrUnavailable, dead, "connection refused")
		case 1, 3:
			if errs[i] != nil || string(rec.Value) != "v" {
				t.Errorf("%s: got %q, %v", here[i/2], rec.Value, errs[i])
			}
		case 4:
			if !errors.Is(errs[i], kvadapter.ErrNotFound) {
				t.Errorf("%s: got %q, %v; want a miss", never, rec.Value, errs[i])
			}
		}
	}
	if d := time.Since(start); d > slack {
		t.Errorf("a refused connection took %v", d)
	}
	if n := mstat(t, b, "server_1_errors"); n != 10 {
		t.Errorf("%d errors counted, want 10", n)
	}
}

func TestMemcachedEachErrorNamesItsServer(t *testing.T) {
	servers := []string{attunetest.FreeAddr(t), attunetest.FreeAddr(t)}
	b := openMemcached(t, strings.Join(servers, ","), "?timeout=10s")
	_, errs := multi(t.Context(), b, on(t, servers, 0, 1)[0], on(t, servers, 1, 1)[0])
	for i, err := range errs {
		mustFail(t, err, kvadapter.ErrUnavailable, servers[i])
	}
}

// A request that timed out before the server's kernel had all of it never gets
// there: it was answered with a failure, and newer ones may be acknowledged.
func TestMemcachedTimedOutPutDoesNotArriveLate(t *testing.T) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096)
		}), err)
	}}
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := openMemcached(t, l.Addr().String(), "?timeout=200ms")
	// More than the server's kernel takes, less than ours does; sent alone and sent
	// with others.
	for _, size := range []int{100_000, kvadapter.Large - 1} {
		mustFail(t, b.Put(t.Context(), mkey("k"), mrec(1, strings.Repeat("v", size))), kvadapter.ErrUnavailable, "no answer")
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
		n, err := io.Copy(io.Discard, nc)
		if n >= int64(size) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes of %d came after the request had failed, %v", n, size, err)
		}
	}
}

func TestMemcachedComesLate(t *testing.T) {
	server, addr := startMemcached(t)
	server.Kill()
	b := openMemcached(t, addr, "?timeout=10s")
	_, err := b.Get(t.Context(), mkey("k"), nil)
	mustFail(t, err, kvadapter.ErrUnavailable)
	server.Start()
	mustMiss(t, b, "k")
	mustPut(t, b, "k", mrec(1, "v"))
	mustGet(t, b, "k", mrec(1, "v"))
}

func TestMemcachedUnknownHost(t *testing.T) {
	b := openMemcached(t, "no-such-host.invalid:11211", "?timeout=300ms")
	start := time.Now()
	_, err := b.Get(t.Context(), mkey("k"), nil)
	mustFail(t, err, kvadapter.ErrUnavailable, "no-such-host.invalid:11211")
	if d := time.Since(start); d > 300*time.Millisecond+slack {
		t.Errorf("took %v", d)
	}
}

// TestMemcachedRestart leaves many idle connections dead and checks that no call
// fails for it.
func TestMemcachedRestart(t *testing.T) {
	server, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=10s")
	mustPut(t, b, "k", mrec(1, "v"))
	var wg sync.WaitGroup
	each := func(fn func(i int)) {
		for i := range 32 {
			wg.Go(func() { fn(i) })
		}
		wg.Wait()
	}
	for round := range 3 {
		// Values this large keep their connections busy side by side.
		large := strings.Repeat("x", 300<<10)
		each(func(i int) {
			if err := b.Put(t.Context(), mkey(fmt.Sprint(i)), mrec(1, large)); err != nil {
				t.Error(err)
			}
		})
		if n := mstat(t, b, "server_0_dials"); n < 2 {
			t.Fatalf("%d connections: nothing is tested", n)
		}
		server.Kill()
		server.Start()
		each(func(i int) {
			var err error
			switch (i + round) % 3 {
			case 0:
				if _, err = b.Get(t.Context(), mkey("k"), nil); errors.Is(err, kvadapter.ErrNotFound) {
					err = nil
				}
			case 1:
				err = b.Put(t.Context(), mkey(fmt.Sprint(i)), mrec(2, "v"))
			case 2:
				err = b.Delete(t.Context(), mkey("k"))
			}
			if err != nil {
				t.Error(err)
			}
		})
		mustMiss(t, b, "k")
	}
	if n := mstat(t, b, "server_0_retries"); n == 0 {
		t.Error("no call met a dead connection: nothing is tested")
	}
}

func TestMemcachedHung(t *testing.T) {
	hung, addr := startMemcached(t)
	_, other := startMemcached(t)
	const timeout = 500 * time.Millisecond
	b := openMemcached(t, addr+","+other, "?timeout=500ms")
	servers := []string{addr, other}
	stuck, fine := on(t, servers, 0, 1)[0], on(t, servers, 1, 1)[0]
	mustPut(t, b, stuck, mrec(1, "v"))
	mustPut(t, b, fine, mrec(1, "v"))
	hung.Pause()

	// Calls to the one that hangs all end in time, however many there are.
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			start := time.Now()
			var err error
			switch i % 3 {
			case 0:
				_, err = b.Get(t.Context(), mkey(stuck), nil)
			case 1:
				err = b.Put(t.Context(), mkey(stuck), mrec(2, "v"))
			case 2:
				recs, errs := multi(t.Context(), b, stuck, fine)
				if recs[0].Value != nil || errs[1] != nil || string(recs[1].Value) != "v" {
					t.Errorf("multi: got %q, %q, %v", recs[0].Value, recs[1].Value, errs[1])
				}
				err = errs[0]
			}
			if !errors.Is(err, kvadapter.ErrUnavailable) || !strings.Contains(err.Error(), addr) {
				t.Errorf("got %v", err)
			}
			if d := time.Since(start); d > 2*timeout+slack {
				t.Errorf("took %v", d)
			}
		})
	}
	// Meanwhile the other one answers as ever.
	for range 20 {
		mustGet(t, b, fine, mrec(1, "v"))
		time.Sleep(timeout / 20)
	}
	wg.Wait()

	// By now it is known to hang: of many calls in a row few wait.
	start := time.Now()
	for range 100 {
		_, err := b.Get(t.Context(), mkey(stuck), nil)
		mustFail(t, err, kvadapter.ErrUnavailable, addr, "500ms")
	}
	if d := time.Since(start); d > 2*timeout+slack {
		t.Errorf("100 calls took %v", d)
	}
	if mstat(t, b, "server_0_down") != 1 || mstat(t, b, "server_1_down") != 0 {
		t.Errorf("stats do not tell who hangs: %v", b.(kvadapter.Statter).Stats())
	}

	hung.Resume()
	awaitUp(t, b, 0)
	mustPut(t, b, stuck, mrec(3, "v"))
	mustGet(t, b, stuck, mrec(3, "v"))
}

// awaitUp waits until a server that is up is known to be. A probe finds out.
func awaitUp(t *testing.T, b kvadapter.Backend, server int) {
	t.Helper()
	for end := time.Now().Add(attunetest.Patience); mstat(t, b, fmt.Sprintf("server_%d_down", server)) != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still counts as down")
		}
	}
}

// TestMemcachedDown checks that a server that refuses connections is left alone but
// for probes, is found when it is back, and that each change is told once.
func TestMemcachedDown(t *testing.T) {
	server, addr := startMemcached(t)
	_, other := startMemcached(t)
	servers := []string{addr, other}
	b := openMemcached(t, addr+","+other, "?timeout=10s")
	told := make(chan string, 100)
	b.(kvadapter.Fleet).Watch(func(addr string, why error) { told <- fmt.Sprint(addr, ": ", why) })
	key, fine := on(t, servers, 0, 1)[0], on(t, servers, 1, 1)[0]
	for round := range 2 {
		mustPut(t, b, key, mrec(1, "v"))
		server.Kill()
		for range 3 {
			mustFail(t, b.Put(t.Context(), mkey(key), mrec(1, "v")), kvadapter.ErrUnavailable, addr)
		}
		dials, start := mstat(t, b, "server_0_dials"), time.Now()
		for range 300 {
			_, err := b.Get(t.Context(), mkey(key), nil)
			mustFail(t, err, kvadapter.ErrUnavailable, addr, "connection refused", "trying again")
			mustFail(t, b.Put(t.Context(), mkey(key), mrec(1, "v")), kvadapter.ErrUnavailable, addr, "connection refused")
			mustPut(t, b, fine, mrec(1, "v"))
		}
		if n := mstat(t, b, "server_0_dials") - dials; n > 5+2*int64(time.Since(start)/(100*time.Millisecond)) {
			t.Errorf("600 calls dialled %d times", n)
		}
		list := b.(kvadapter.Fleet).Servers()
		if len(list) != 2 || list[0].Addr != addr || !list[0].Down || list[1].Down || list[0].Errors != int64(603*(round+1)) || list[1].Errors != 0 {
			t.Errorf("%+v", list)
		}
		server.Start()
		awaitUp(t, b, 0)
		mustMiss(t, b, key)
	}
	var count uint64
	for _, n := range b.(kvadapter.Fleet).Servers()[1].Latency.Buckets {
		count += n
	}
	if count != 600 {
		t.Errorf("%d calls of 600 are in the histogram", count)
	}
	for range 2 {
		if line := <-told; !strings.HasPrefix(line, addr+": backend "+addr) {
			t.Errorf("told %q, want that it is down", line)
		}
		if line := <-told; line != addr+": <nil>" {
			t.Errorf("told %q, want that it is up", line)
		}
	}
	if len(told) != 0 {
		t.Errorf("told more: %q", <-told)
	}
}

// TestMemcachedReconfigured takes servers in and out under load: no call fails, and
// what is kept on a server that stays where it was is found.
func TestMemcachedReconfigured(t *testing.T) {
	_, one := startMemcached(t)
	_, two := startMemcached(t)
	_, three := startMemcached(t)
	b := openMemcached(t, one+","+two, "?timeout=10s")
	fleet := b.(kvadapter.Fleet)
	told := make(chan string, 100)
	fleet.Watch(func(addr string, why error) { told <- addr })

	var wg sync.WaitGroup
	var stop atomic.Bool
	for g := range 8 {
		wg.Go(func() {
			value := strings.Repeat("x", g*10_000) // some are put alone
			for i := 0; !stop.Load(); i++ {
				key := mkey(fmt.Sprint(g, i%50))
				if err := b.Put(t.Context(), key, mrec(1, value)); err != nil {
					t.Error(err)
					return
				}
				// It may be sought on another server by now.
				if got, err := b.Get(t.Context(), key, nil); err != nil && !errors.Is(err, kvadapter.ErrNotFound) || err == nil && string(got.Value) != value {
					t.Errorf("%d bytes, %v", len(got.Value), err)
					return
				}
			}
		})
	}
	for _, list := range []string{one + "," + two + "," + three, three, two + "?timeout=5s", one + "," + two + "?timeout=10s", one + "," + two + "?max_idle=3&timeout=10s"} {
		time.Sleep(20 * time.Millisecond)
		if err := fleet.Reconfigure("memcached://" + list); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if n := len(fleet.Servers()); n != 2 {
		t.Errorf("%d servers", n)
	}
	key := on(t, []string{one, two}, 0, 1)[0]
	mustPut(t, b, key, mrec(9, "kept"))
	for _, bad := range []string{"embedded", "memcached://", "memcached://cache1", "memcached://" + one + "?timout=1s"} {
		if err := fleet.Reconfigure(bad); err == nil {
			t.Errorf("%s: accepted", bad)
		}
		mustGet(t, b, key, mrec(9, "kept"))
	}
	// A server that was there before keeps its figures, and who watches hears of new ones.
	puts := mstat(t, b, "server_0_puts")
	gone := attunetest.FreeAddr(t)
	if err := fleet.Reconfigure("memcached://" + one + "," + gone + "?max_idle=3&timeout=10s"); err != nil || mstat(t, b, "server_0_puts") != puts {
		t.Errorf("%v; %d puts, were %d", err, mstat(t, b, "server_0_puts"), puts)
	}
	lost := on(t, []string{one, gone}, 1, 1)[0]
	for range 3 {
		mustFail(t, b.Put(t.Context(), mkey(lost), mrec(1, "v")), kvadapter.ErrUnavailable, gone)
	}
	if addr := <-told; addr != gone {
		t.Errorf("told of %s", addr)
	}
}

// TestMemcachedTrickle has a server answer a byte at a time: never silent, never
// done.
func TestMemcachedTrickle(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				for {
					if _, err := io.WriteString(nc, "VALUE k 0 1 1\r\nx\r\n"); err != nil {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
	})
	b := openMemcached(t, l.Addr().String(), "?timeout=200ms")
	start := time.Now()
	_, err = b.Get(t.Context(), mkey("k"), nil)
	mustFail(t, err, kvadapter.ErrUnavailable, "no answer within 200ms")
	if d := time.Since(start); d > 200*time.Millisecond+slack {
		t.Errorf("took %v", d)
	}
}

func TestMemcachedAnswersNonsense(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(nc, "ERROR Too many open connections\r\n")
			nc.(*net.TCPConn).CloseWrite() // the line must not be lost to a reset
			wg.Go(func() { io.Copy(io.Discard, nc); nc.Close() })
		}
	})
	b := openMemcached(t, l.Addr().String(), "?timeout=10s")
	_, err = b.Get(t.Context(), mkey("k"), nil)
	mustFail(t, err, kvadapter.ErrUnavailable, "Too many open connections")
	mustFail(t, b.Put(t.Context(), mkey("k"), mrec(1, "v")), kvadapter.ErrUnavailable, "Too many open connections")
	mustFail(t, b.Delete(t.Context(), mkey("k")), kvadapter.ErrUnavailable, "Too many open connections")
}
