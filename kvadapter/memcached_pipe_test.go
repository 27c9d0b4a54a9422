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
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
)

// together puts a record under each of n keys at once, most of them in batches, and
// returns what came of each.
func together(ctx context.Context, b kvadapter.Backend, n int, value func(i int) string) []error {
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { errs[i] = b.Put(ctx, mkey(fmt.Sprint(i)), mrec(1, value(i))) })
	}
	wg.Wait()
	return errs
}

// TestMemcachedPutsHaveTheirOwnOutcome has some of a batch refused.
func TestMemcachedPutsHaveTheirOwnOutcome(t *testing.T) {
	server := attunetest.StartMemcached(t, "-I", "16k", "-o", "slab_chunk_max=8192")
	b := openMemcached(t, server.Addr, "?timeout=10s")
	value := func(i int) string { return strings.Repeat("x", i%3*16_000) }
	for i, err := range together(t.Context(), b, 200, value) {
		if i%3 == 2 {
			mustFail(t, err, kvadapter.ErrTooLarge, server.Addr, "-I")
			mustMiss(t, b, fmt.Sprint(i))
		} else if err != nil {
			t.Error(err)
		} else {
			mustGet(t, b, fmt.Sprint(i), mrec(1, value(i)))
		}
	}
	if n := mstat(t, b, "server_0_dials"); n > 2 {
		t.Errorf("%d connections: a refusal is no reason for another", n)
	}
}

func TestMemcachedPutsWhenFull(t *testing.T) {
	server := attunetest.StartMemcached(t, "-M", "-m", "2")
	b := openMemcached(t, server.Addr, "?timeout=10s")
	full := 0
	for i, err := range together(t.Context(), b, 500, func(int) string { return strings.Repeat("x", 20_000) }) {
		if err == nil {
			mustGet(t, b, fmt.Sprint(i), mrec(1, strings.Repeat("x", 20_000)))
			continue
		}
		full++
		mustFail(t, err, kvadapter.ErrFull, server.Addr, "-m")
	}
	if full == 0 || full == 500 {
		t.Errorf("%d of 500 did not fit", full)
	}
}

// TestMemcachedGivenUpBeforeItWasSent has puts wait for their turn while the server
// hangs: who gives up then is not sent.
func TestMemcachedGivenUpBeforeItWasSent(t *testing.T) {
	server, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=10s")
	server.Pause()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Put(t.Context(), mkey("first"), mrec(1, "v")); err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(slack); mstat(t, b, "server_0_dials") == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is being sent")
		}
	}
	reason := errors.New("drained")
	ctx, cancel := context.WithCancelCause(t.Context())
	timer := time.AfterFunc(50*time.Millisecond, func() { cancel(reason) })
	defer timer.Stop()
	for _, err := range together(ctx, b, 20, func(int) string { return "v" }) {
		if !errors.Is(err, reason) {
			t.Errorf("got %v, want the cause", err)
		}
	}
	server.Resume()
	wg.Wait()
	mustPut(t, b, "last", mrec(1, "v"))
	for i := range 20 {
		mustMiss(t, b, fmt.Sprint(i))
	}
	mustGet(t, b, "first", mrec(1, "v"))
}

// TestMemcachedRestartsUnderPuts kills the server again and again under many puts:
// each succeeds or says why not, and none is stored under another's key.
func TestMemcachedRestartsUnderPuts(t *testing.T) {
	server, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=10s")
	value := func(i int) string { return strings.Repeat(fmt.Sprint(i), 500) }
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 5 {
			server.Kill()
			server.Start()
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		for _, err := range together(t.Context(), b, 50, value) {
			if err != nil && !errors.Is(err, kvadapter.ErrUnavailable) {
				t.Error(err)
			}
		}
	}
	awaitUp(t, b, 0)
	for i, err := range together(t.Context(), b, 50, value) {
		if err != nil {
			t.Error(err)
		} else {
			mustGet(t, b, fmt.Sprint(i), mrec(1, value(i)))
		}
	}
}

// TestMemcachedAnswersOutOfStep has a server answer more, or something else, than it
// was asked: no later command may have such an answer for its own.
func TestMemcachedAnswersOutOfStep(t *testing.T) {
	for _, test := range []struct {
		answers []string // to the first command of each connection, in turn; then ERROR
		want    []string // of each put: "" is success
	}{
		{[]string{"STORED\r\nSTORED\r\n", "NOT_STORED\r\n"}, []string{"", "NOT_STORED"}},
		{[]string{"ERROR\r\nSTORED\r\n", "STORED\r\n"}, []string{`"ERROR"`, ""}},
		{[]string{"CLIENT_ERROR bad data chunk\r\nERROR\r\n", "STORED\r\n"}, []string{"bad data chunk", ""}},
		{[]string{"DELETED\r\n", "STORED\r\n"}, []string{"DELETED", ""}},
		{[]string{"SERVER_ERROR out of memory reading request\r\n", "STORED\r\n"}, []string{"out of memory reading", ""}},
		{[]string{strings.Repeat("x", 10_000), "STORED\r\n"}, []string{"buffer full", ""}},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		t.Cleanup(func() { l.Close(); serving.Wait() })
		serving.Go(func() {
			for _, answer := range test.answers {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				serving.Go(func() {
					defer nc.Close()
					in := bufio.NewReader(nc)
					for range 2 { // the command and its data
						if _, err := in.ReadString('\n'); err != nil {
							return
						}
					}
					io.WriteString(nc, answer)
					io.Copy(io.Discard, in)
				})
			}
		})
		b := openMemcached(t, l.Addr().String(), "?timeout=10s")
		for i, want := range test.want {
			if err := b.Put(t.Context(), mkey("k"), mrec(1, "v")); want == "" && err != nil {
				t.Errorf("%q: put %d: %v", test.answers, i, err)
			} else if want != "" {
				mustFail(t, err, kvadapter.ErrUnavailable, want)
			}
		}
	}
}

// TestMemcachedGetsTogether checks that what is got in one request with others is each
// caller's own, however often a key is asked for.
func TestMemcachedGetsTogether(t *testing.T) {
	_, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=10s")
	value := func(i int) string { return strings.Repeat(fmt.Sprint(i), 1+i*1000) }
	for i := range 10 {
		if i != 3 {
			mustPut(t, b, fmt.Sprint(i), mrec(1, value(i)))
		}
	}
	var wg sync.WaitGroup
	for g := range 40 {
		wg.Go(func() {
			for round := range 20 {
				i := (g/4 + round) % 10
				got, err := b.Get(t.Context(), mkey(fmt.Sprint(i)), nil)
				switch {
				case i == 3 && !errors.Is(err, kvadapter.ErrNotFound):
					t.Errorf("%d: %d bytes, %v; want a miss", i, len(got.Value), err)
				case i != 3 && (err != nil || string(got.Value) != value(i)):
					t.Errorf("%d: %d bytes, %v; want %d", i, len(got.Value), err, len(value(i)))
				}
				clear(got.Value) // the caller's
			}
		})
	}
	wg.Wait()
	if n := mstat(t, b, "server_0_dials"); n > 3 {
		t.Errorf("%d connections for what is to go together", n)
	}
}
