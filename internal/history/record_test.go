package history_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// A memcached alone keeps every promise, so its histories pass every check.
func TestMemcachedPasses(t *testing.T) {
	m := attunetest.StartMemcached(t)
	for _, w := range []history.Workload{
		history.Registers, history.CASRegisters, history.Counters, history.Appends,
		history.Locks, history.Mixed, history.Flushes, history.Removals, history.Chained,
	} {
		t.Run(w.Name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r := history.Recorder{
				Targets: []history.Target{{Name: "m1", Addr: m.Addr}, {Name: "m2", Addr: m.Addr}},
				Clients: 8, Workload: w, Pause: time.Millisecond, Hop: w.Name == "cas",
			}
			r.Begin()
			done := make(chan history.History, 1)
			go func() { done <- r.Run(ctx) }()
			attunetest.Eventually(t, "commands are answered", func() bool { return r.Answered() >= 1000 })
			cancel()
			h := <-done
			// The clients have stopped in the middle of commands, which are executed or not.
			time.Sleep(20 * time.Millisecond)
			survey, err := r.Survey(r.Targets, h.Keys())
			if err != nil {
				t.Fatal(err)
			}
			again, err := r.Survey(r.Targets, h.Keys())
			if err != nil {
				t.Fatal(err)
			}
			if n := h.Answered(); n < 1000 || int64(n) > r.Answered()+8 {
				t.Errorf("%d of %d commands answered", n, len(h))
			}
			for name, err := range map[string]error{
				"linearizable": history.Linearizable(h, attunetest.Patience, t.TempDir()),
				"fresh reads":  history.FreshReads(h),
				"sequential":   history.Sequential(h, history.ByClient),
				"causal":       history.Causal(h, history.Rules{Shared: true}),
				"eventual":     history.Eventual(h, history.Rules{Shared: true}),
				"converged":    history.Converged(h, survey, history.Rules{}),
				"settled":      history.Settled(h.With(again), survey, history.Rules{}),
				"one winner":   history.OneWinner(h),
			} {
				if err != nil {
					t.Errorf("not %s: %v", name, err)
				}
			}
			kinds := make(map[history.Status]int)
			for _, e := range h {
				kinds[e.Out.Status]++
			}
			t.Log(len(h), kinds)
		})
	}
}

// A client whose command is not answered is another one from then on, and asks
// another controller.
func TestUnknownOutcome(t *testing.T) {
	m := attunetest.StartMemcached(t)
	other := attunetest.StartMemcached(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := history.Recorder{
		Targets: []history.Target{{Name: "m", Addr: m.Addr}, {Name: "other", Addr: other.Addr}},
		Clients: 1, Workload: history.Registers, Timeout: time.Second,
	}
	r.Begin()
	done := make(chan history.History)
	go func() { done <- r.Run(ctx) }()
	attunetest.Eventually(t, "commands are answered", func() bool { return r.Answered() > 10 })
	m.Pause()
	attunetest.Eventually(t, "it stops", func() bool {
		n := r.Answered()
		time.Sleep(30 * time.Millisecond)
		return r.Answered() == n
	})
	attunetest.Eventually(t, "it goes on elsewhere", func() bool {
		n := r.Answered()
		time.Sleep(30 * time.Millisecond)
		return r.Answered() > n
	})
	m.Resume()
	cancel()
	h := <-done
	unknown := -1
	for i, e := range h {
		if e.Out.Status == history.Unknown && unknown < 0 {
			unknown = i
			if e.Return != history.Forever {
				t.Errorf("an unknown that ends: %v", e)
			}
		} else if unknown >= 0 && (e.Client == h[0].Client || e.Session == h[0].Session) {
			t.Fatalf("heard of again: %v", e)
		}
	}
	if unknown < 0 || unknown+1 == len(h) || h[unknown].Node != "m" || h[unknown+1].Node != "other" || h[unknown+1].Op.Kind != history.Get {
		t.Errorf("event %d of %d is the first of unknown outcome", unknown, len(h))
	}
	if gap, _ := h.Gap(0, h[len(h)-1].Call, func(history.Event) bool { return true }); gap < time.Second {
		t.Errorf("the longest time without an answer is %v", gap)
	}
}

func TestFilledValues(t *testing.T) {
	m := attunetest.StartMemcached(t)
	for _, text := range []bool{false, true} {
		c, err := history.Dial(m.Addr, text, attunetest.Patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if out := c.Do(history.Op{Kind: history.Set, Key: "k", Value: "7.1;"}, 100_001); out.Status != history.Stored {
			t.Fatal(out)
		}
		if out := c.Do(history.Op{Kind: history.Get, Key: "k"}, 0); out.Value != "7.1;" || out.Version == 0 {
			t.Errorf("read %v", out)
		}
	}
	c := m.Dial()
	for value, want := range map[string]string{
		"7.1;~7.1;7.": "7.1;",
		"7.1;~7.2;7.": "torn(7.1;~7.2;7.);",
		"12 ":         "12",
	} {
		if _, err := io.WriteString(c, "set k 0 0 "+string(rune('0'+len(value)/10))+string(rune('0'+len(value)%10))+" noreply\r\n"+value+"\r\nmn\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		out, err := history.Read(t.Context(), history.Target{Addr: m.Addr}, "k")
		if err != nil || out.Value != want {
			t.Errorf("%q is read as %v, %v; want %q", value, out, err, want)
		}
	}
}

func TestReadGivesUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if out, err := history.Read(ctx, history.Target{Name: "none", Addr: attunetest.FreeAddr(t)}, "k"); err == nil {
		t.Errorf("read %v from nobody", out)
	}
}

// FuzzAnswers lets a server answer anything: that is a Broken or Unknown, or an
// outcome that such a command may have.
func FuzzAnswers(f *testing.F) {
	for _, answer := range []string{
		"HD c7\r\n", "VA 2 c7\r\n12\r\n", "EN\r\n", "NF\r\n", "VALUE k 0 2 7\r\n12\r\nEND\r\n", "END\r\n", "STORED\r\n", "12\r\n",
		"SERVER_ERROR no quorum\r\n", "VA 99999999999\r\n", "VA -1\r\n", "VA\r\n", "VALUE k 0 3 7\r\n1", "\r\n", "OK\r\n", "HD c\r\n",
	} {
		for kind := range byte(history.Flush + 1) {
			f.Add(kind, true, answer)
			f.Add(kind, false, answer)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	answers := make(chan string)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, <-answers) // the client may be gone
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	f.Cleanup(func() { l.Close() })
	f.Fuzz(func(t *testing.T, kind byte, text bool, answer string) {
		op := history.Op{Kind: history.Kind(kind % byte(history.Flush+1)), Key: "k", Value: "1;", Delta: 1}
		c, err := history.Dial(l.Addr().String(), text, attunetest.Patience)
		if err != nil {
			t.Skip(err)
		}
		defer c.Close()
		answers <- answer
		out := c.Do(op, 0)
		if out.Status == history.Hit && op.Kind != history.Get || out.Status == history.Stored && op.Kind == history.Get {
			t.Errorf("%v -> %v", op, out)
		}
		_ = out.String()
	})
}
