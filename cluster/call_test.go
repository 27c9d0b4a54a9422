package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

func TestCallAnswers(t *testing.T) {
	a, b := pair(t)
	b.HandleCall(testKind, func(_ context.Context, from uint64, body []byte) ([]byte, error) {
		if from != a.o.ID {
			t.Errorf("from %x", from)
		}
		if bytes.HasPrefix(body, []byte("fail")) {
			return nil, errors.New("failed as told")
		}
		return append([]byte("re: "), body...), nil
	}, Limit(20<<20))
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			body := fmt.Appendf(nil, "call %d", i)
			got, err := b2(a.Call(within(t), b.o.ID, testKind, body))
			if err != nil || got != fmt.Sprintf("re: call %d", i) {
				t.Errorf("%q %v", got, err)
			}
		})
	}
	wg.Wait()
	big := make([]byte, 10<<20)
	if got, err := a.Call(within(t), b.o.ID, testKind, big); err != nil || len(got) != len(big)+4 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	_, err := a.Call(within(t), b.o.ID, testKind, []byte("fail"))
	var remote *RemoteError
	if !errors.As(err, &remote) || remote.Text != "failed as told" || remote.From != b.o.ID || errors.Is(err, ErrNotSent) {
		t.Error(err)
	}
}

func b2(b []byte, err error) (string, error) { return string(b), err }

func TestNotSentWasNotExecuted(t *testing.T) {
	a, b := pair(t)
	var executed atomic.Int64
	b.HandleCall(testKind, func(context.Context, uint64, []byte) ([]byte, error) {
		executed.Add(1)
		return nil, nil
	})
	never := func(what string, want string, to uint64, ctx context.Context, kind byte) {
		t.Helper()
		if _, err := a.Call(ctx, to, kind, nil); !errors.Is(err, ErrNotSent) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	never("unknown node", "known", 99, within(t), testKind)
	never("itself", "known", a.o.ID, within(t), testKind)
	never("no handler", "handler", b.o.ID, within(t), testKind+1)
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("too late"))
	never("too late", "too late", b.o.ID, ended, testKind)
	if n := executed.Load(); n != 0 {
		t.Fatalf("%d calls were executed", n)
	}

	// While b dies and comes back, every call ends in one of two ways, and those
	// that were certainly not executed are not counted by either b.
	sure, unsure := int64(0), int64(0)
	o := b.o
	o.Peer, o.Gossip, o.Join = b.PeerAddr(), b.GossipAddr(), []string{a.GossipAddr()}
	for range 5 {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range 8 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
					_, err := a.Call(ctx, o.ID, testKind, nil)
					cancel()
					mu.Lock()
					switch {
					case err == nil:
						sure++
					case !errors.Is(err, ErrNotSent):
						unsure++
					}
					mu.Unlock()
				}
			})
		}
		was := executed.Load()
		attunetest.Eventually(t, "calls are executed", func() bool { return executed.Load() > was+50 })
		b.Close()
		attunetest.Eventually(t, "it opens again", func() bool {
			again, err := Open(o)
			if err != nil {
				return false
			}
			b = again
			return true
		})
		t.Cleanup(func() { b.Close() })
		b.HandleCall(testKind, func(context.Context, uint64, []byte) ([]byte, error) {
			executed.Add(1)
			return nil, nil
		})
		b.Belong(testCluster)
		was = executed.Load()
		attunetest.Eventually(t, "calls are executed again", func() bool { return executed.Load() > was })
		close(stop)
		wg.Wait()
	}
	if n := executed.Load(); n < sure || n > sure+unsure {
		t.Errorf("%d executed, %d for sure and %d perhaps", n, sure, unsure)
	}
	t.Logf("%d executed, %d for sure, %d perhaps", executed.Load(), sure, unsure)
}

func TestCallLostIsNotNotSent(t *testing.T) {
	a, b := pair(t)
	entered := make(chan struct{})
	b.HandleCall(testKind, func(ctx context.Context, _ uint64, _ []byte) ([]byte, error) {
		close(entered)
		<-ctx.Done() // b closes
		return nil, nil
	})
	out := make(chan error, 1)
	go func() {
		_, err := a.Call(context.Background(), b.o.ID, testKind, nil)
		out <- err
	}()
	receive(t, "the call is executed", entered)
	b.Close()
	if err := receive(t, "the call ends", out); !errors.Is(err, ErrLost) || errors.Is(err, ErrNotSent) {
		t.Error(err)
	}
}

func TestCallDeadline(t *testing.T) {
	a, b := pair(t)
	told := make(chan bool, 1)
	b.HandleCall(testKind, func(ctx context.Context, _ uint64, _ []byte) ([]byte, error) {
		<-ctx.Done() // the caller's deadline came along, a little early
		told <- true
		time.Sleep(100 * time.Millisecond) // an answer in time would be one
		return nil, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Call(ctx, b.o.ID, testKind, nil); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNotSent) {
		t.Error(err)
	}
	receive(t, "the handler's context ends", told)
	a.calls.mu.Lock()
	defer a.calls.mu.Unlock()
	if n := len(a.calls.waiting); n != 0 {
		t.Errorf("%d calls wait", n)
	}
}

func TestTooManyCallsAreRefused(t *testing.T) {
	a, b := pair(t)
	release := make(chan struct{})
	b.HandleCall(testKind, func(context.Context, uint64, []byte) ([]byte, error) {
		<-release
		return nil, nil
	})
	const over = 10
	out := make(chan error, maxCalls+over)
	for range maxCalls + over {
		go func() {
			_, err := a.Call(within(t), b.o.ID, testKind, nil)
			out <- err
		}()
	}
	for range over {
		if err := receive(t, "a call is refused", out); !errors.Is(err, ErrNotSent) || !strings.Contains(err.Error(), "busy") {
			t.Error(err)
		}
	}
	close(release)
	for range maxCalls {
		if err := receive(t, "a call is answered", out); err != nil {
			t.Error(err)
		}
	}
}

// Two answers that the caller must not take for its own.
func TestStaleAnswersAreIgnored(t *testing.T) {
	a, b := pair(t)
	release := make(chan struct{})
	b.HandleCall(testKind, func(context.Context, uint64, []byte) ([]byte, error) {
		<-release
		return []byte("right"), nil
	})
	out := make(chan string, 1)
	go func() {
		got, _ := a.Call(within(t), b.o.ID, testKind, nil)
		out <- string(got)
	}()
	var id uint64
	attunetest.Eventually(t, "the call waits", func() bool {
		a.calls.mu.Lock()
		defer a.calls.mu.Unlock()
		for id = range a.calls.waiting {
		}
		return id != 0
	})
	h := hello{class: Calls, cluster: Hash(testCluster), from: 77, to: a.o.ID, name: "x", kind: "ordered"}
	conn, kind, _ := say(t, a, h)
	if kind != kindWelcome {
		t.Fatal("refused")
	}
	answerTo := func(id uint64) []byte {
		return appendFrame(nil, kindResponse, append(binary.LittleEndian.AppendUint64(nil, id), statusDone), []byte("wrong"))
	}
	was := a.Stats().Class[Calls].FramesIn
	conn.Write(append(answerTo(id), answerTo(id+1)...))
	attunetest.Eventually(t, "both were read", func() bool { return a.Stats().Class[Calls].FramesIn >= was+2 })
	close(release)
	if got := receive(t, "the answer", out); got != "right" {
		t.Errorf("took %q for the answer", got)
	}
}

func BenchmarkCall(b *testing.B) {
	x, y := pair(b)
	y.HandleCall(testKind, func(_ context.Context, _ uint64, body []byte) ([]byte, error) { return body, nil })
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := x.Call(b.Context(), y.o.ID, testKind, make([]byte, 100)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// A request that was half written when the connection broke may have been
// executed, for all its sender knows; the one behind it was not.
func TestHalfWrittenCallIsLost(t *testing.T) {
	a := start(t, options("a"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const id = 77
	if _, kind, _ := say(t, a, hello{class: Calls, from: id, to: a.o.ID, name: "x", kind: "ordered", peer: l.Addr().String()}); kind != kindWelcome {
		t.Fatal("refused")
	}
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := a.Call(within(t), id, testKind, make([]byte, 30<<20))
		first <- err
	}()
	conn, err := l.Accept() // and read nothing but hello
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if kind, _, err := readSmall(conn); err != nil || kind != kindHello {
		t.Fatal(kind, err)
	}
	w := welcome{id: id, name: "x"}
	conn.Write(appendFrame(nil, kindWelcome, nil, w.append(nil)))
	attunetest.Eventually(t, "the request is being written", func() bool {
		a.calls.mu.Lock()
		defer a.calls.mu.Unlock()
		for _, p := range a.calls.waiting {
			return p.state.Load() == callSent
		}
		return false
	})
	go func() {
		_, err := a.Call(within(t), id, testKind, nil)
		second <- err
	}()
	attunetest.Eventually(t, "the second waits behind it", func() bool {
		a.calls.mu.Lock()
		defer a.calls.mu.Unlock()
		return len(a.calls.waiting) == 2
	})
	l.Close()
	conn.Close()
	if err := receive(t, "the first ends", first); !errors.Is(err, ErrLost) || errors.Is(err, ErrNotSent) {
		t.Errorf("the first: %v", err)
	}
	if err := receive(t, "the second ends", second); !errors.Is(err, ErrNotSent) {
		t.Errorf("the second: %v", err)
	}
}
