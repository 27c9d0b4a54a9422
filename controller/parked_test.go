package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// eachHeld runs a test on both drivers, with an engine that answers when told.
// The function it gets starts the node, and the engine with it.
func eachHeld(t *testing.T, test func(t *testing.T, cfg Config, open func(cfg Config) (*Node, *held))) {
	for _, goroutines := range []bool{false, true} {
		t.Run(fmt.Sprint("goroutines=", goroutines), func(t *testing.T) {
			cfg := testConfig()
			cfg.goroutines = goroutines
			test(t, cfg, func(cfg Config) (*Node, *held) {
				var engine *held
				cfg.wrap = func(e consistency.Engine) consistency.Engine {
					engine = newHeld(e)
					return engine
				}
				return start(t, cfg), engine
			})
		})
	}
}

// next is the next request the engine is asked.
func (e *held) next(t testing.TB, kind string) *heldCall {
	t.Helper()
	select {
	case h := <-e.asked:
		if h.kind != kind {
			t.Fatalf("the engine is asked for a %s, want a %s", h.kind, kind)
		}
		return h
	case <-time.After(patience):
		t.Fatalf("the engine is not asked for a %s", kind)
		return nil
	}
}

// quiet wants the engine asked nothing more.
func (e *held) quiet(t testing.TB) {
	t.Helper()
	select {
	case h := <-e.asked:
		t.Fatalf("the engine is asked for a %s as well", h.kind)
	default:
	}
}

// TestEveryRequestMayBeAnsweredLater: what the engine is asked, in order, each
// time with the session left alone until it answers, and what the client sees.
func TestEveryRequestMayBeAnsweredLater(t *testing.T) {
	const a = "VALUE a 0 1\r\n1\r\n"
	for _, c := range []struct{ name, in, asked, reply string }{
		{"a read", "get a\r\n", "barrier", a + "END\r\n"},
		{"reads share a barrier", "get a none\r\ngets none\r\nmg a v\r\n", "barrier", a + "END\r\nEND\r\nVA 1\r\n1\r\n"},
		{"a write", "set b 0 0 1\r\nx\r\n", "write set", "STORED\r\n"},
		{"writes stand together", "set b 0 0 1\r\nx\r\nnonsense\r\nincr a 1\r\nmn\r\ndelete none\r\n", "write set incr delete",
			"STORED\r\nERROR\r\n2\r\nMN\r\nNOT_FOUND\r\n"},
		{"a read sees the write before it", "set a 0 0 1\r\nx\r\nget a\r\nset a 0 0 1\r\ny\r\nget a\r\n", "write set, barrier, write set, barrier",
			"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\nSTORED\r\nVALUE a 0 1\r\ny\r\nEND\r\n"},
		{"a touch in a read", "gat 0 a none\r\n", "write get get", a + "END\r\n"},
		{"a lease", "mg new N30 v t\r\nmg a v\r\n", "barrier, write get, barrier", "VA 0 t30 W\r\n\r\nVA 1\r\n1\r\n"},
		{"no lease", "mg a N30 v h\r\n", "barrier", "VA 1 h0\r\n1\r\n"},
		{"a flush", "get a\r\nflush_all\r\nget a\r\n", "barrier, write flush, barrier", a + "END\r\nOK\r\nEND\r\n"},
		{"writes around a flush", "set b 0 0 1\r\nx\r\nflush_all\r\nadd a 0 0 1\r\n1\r\n", "write set, write flush, write add",
			"STORED\r\nOK\r\nSTORED\r\n"},
		{"lost bytes", "get lost a\r\n", "barrier, recover", a + "END\r\n"},
		{"lost bytes and a lease", "mg lost v N30\r\nmg a v\r\n", "barrier, recover, write get, barrier", "VA 0 W\r\n\r\nVA 1\r\n1\r\n"},
		{"nothing to ask", "mn\r\nversion\r\n", "", "MN\r\nVERSION " + wireVersion + "\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var engine *held
			cfg := testConfig()
			cfg.wrap = func(e consistency.Engine) consistency.Engine {
				engine = newHeld(e)
				return engine
			}
			b := newBench(t, cfg)
			answered := 0
			b.s.call.Done = func() { answered++ }
			var asked []string
			b.answer = func() {
				h := <-engine.asked
				engine.quiet(t)
				what := h.kind
				for i := range h.c.Ops {
					if h.kind == "write" {
						what += " " + verbNames[h.c.Ops[i].Verb]
					}
				}
				asked = append(asked, what)
				if limit := time.Until(h.c.Deadline); limit <= 0 || limit > cfg.OpTimeout {
					t.Errorf("%s: the deadline is in %v", what, limit)
				}
				seen := h.c.Session.Seen
				before := answered
				h.answer()
				if answered != before+1 || b.s.call.Session.Seen != seen+1 {
					t.Errorf("%s: answered %d times, session %d after %d", what, answered-before, b.s.call.Session.Seen, seen)
				}
			}
			b.feed("set a 0 0 1\r\n1\r\nset lost 0 0 4\r\ngone\r\n")
			sh := b.s.node.shards[0]
			key := attune.Key{Text: []byte("lost")}
			b.s.node.route(&key)
			if err := sh.backend.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			asked = nil
			b.feed(c.in)
			if got := strings.Join(asked, ", "); got != c.asked {
				t.Errorf("the engine was asked: %s\nwant: %s", got, c.asked)
			}
			if string(b.out) != c.reply {
				t.Errorf("%q\nwant %q", b.out, c.reply)
			}
			if !b.s.idle() || b.s.work != nil || b.s.call.Ops != nil || b.s.call.Res != nil {
				t.Error("holds on to something")
			}
		})
	}
}

var verbNames = [...]string{"get", "set", "add", "replace", "append", "prepend", "delete", "incr", "decr", "touch", "flush"}

// TestFlushAsksEveryShard also once one of them failed, and fails then.
func TestFlushAsksEveryShard(t *testing.T) {
	for _, failing := range []int{-1, 0, 1, 2} {
		var engine *held
		cfg := testConfig()
		cfg.wrap = func(e consistency.Engine) consistency.Engine {
			engine = newHeld(e)
			return engine
		}
		b := newBench(t, cfg)
		n := b.s.node
		one := n.shards[0]
		n.shards = []*shard{one, one, one} // enough to be asked
		t.Cleanup(func() { n.shards = n.shards[:1] })
		b.s.call.Done = func() {}
		asked := 0
		b.answer = func() {
			h := engine.next(t, "write")
			if len(h.c.Ops) != 1 || h.c.Ops[0].Verb != attune.Flush {
				t.Fatalf("asked %+v", h.c.Ops)
			}
			if asked++; asked-1 == failing {
				h.finish(errMoody)
			} else {
				h.answer()
			}
		}
		for _, fails := range []bool{true, false} { // nothing of the first is left
			if asked = 0; !fails {
				failing = -1
			}
			want := "OK\r\nMN\r\n"
			if failing >= 0 {
				want = "SERVER_ERROR not today\r\nMN\r\n"
			}
			if b.feed("flush_all\r\nmn\r\n"); string(b.out) != want || asked != 3 {
				t.Errorf("shard %d fails: %q after asking %d shards", failing, b.out, asked)
			}
		}
	}
}

// TestFailedBarrierIsNotTriedForEveryRead: but for the next that are received.
func TestFailedBarrierIsNotTriedForEveryRead(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		n, engine := open(cfg)
		c := dial(t, n)
		c.send(strings.Repeat("get a b\r\nmg a v\r\n", 50) + "mn\r\n")
		engine.next(t, "barrier").finish(errMoody)
		c.want(strings.Repeat("SERVER_ERROR not today\r\n", 100) + "MN\r\n")
		engine.quiet(t)
		c.send("get a\r\n")
		engine.next(t, "barrier").answer()
		c.want("END\r\n")
		// A write is none of its business.
		c.send("get a\r\nset a 0 0 1\r\n1\r\nget a\r\n")
		engine.next(t, "barrier").finish(errMoody)
		engine.next(t, "write").answer()
		engine.next(t, "barrier").answer()
		c.want("SERVER_ERROR not today\r\nSTORED\r\nVALUE a 0 1\r\n1\r\nEND\r\n")
	})
}

// TestClockIsReadBehindTheBarrier: what a barrier brings may have expired by the
// engine's clock only.
func TestClockIsReadBehindTheBarrier(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		n, engine := open(cfg)
		c := dial(t, n)
		c.send("set k 0 100 1\r\nx\r\n")
		engine.next(t, "write").answer()
		c.want("STORED\r\n")
		c.send("get k\r\nmg k t\r\n")
		h := engine.next(t, "barrier")
		engine.skew = 50_000
		h.answer()
		c.want("VALUE k 0 1\r\nx\r\nEND\r\n")
		if got := c.line(); got != "HD t50" && got != "HD t49" {
			t.Errorf("%q, want half of the time left", got)
		}
		c.send("get k\r\n")
		h = engine.next(t, "barrier")
		engine.skew = 200_000
		h.answer()
		c.want("END\r\n")
	})
}

// TestClockIsReadBehindTheBarrierAtOnce: the same if it was answered at once.
func TestClockIsReadBehindTheBarrierAtOnce(t *testing.T) {
	var engine *leaping
	cfg := testConfig()
	cfg.wrap = func(e consistency.Engine) consistency.Engine {
		engine = &leaping{Engine: e}
		return engine
	}
	b := newBench(t, cfg)
	b.feed("set k 0 100 1\r\nx\r\n")
	engine.leap = 40_000
	for _, want := range []string{"VALUE k 0 1\r\nx\r\nEND\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n", "END\r\n"} {
		if b.feed("get k\r\n"); string(b.out) != want {
			t.Errorf("%q, want %q", b.out, want)
		}
	}
}

// leaping is an engine whose barriers move its clock, by leap milliseconds.
type leaping struct {
	consistency.Engine
	leap, skew int64
}

func (e *leaping) Barrier(c *attune.Call) bool {
	e.skew += e.leap
	return e.Engine.Barrier(c)
}

func (e *leaping) Now() int64 { return e.Engine.Now() + e.skew }

func TestClientLeavesWhileParked(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		n, engine := open(cfg)
		files := openFiles(t)
		for i, leave := range []func(c *net.TCPConn){
			func(c *net.TCPConn) { c.Close() },
			func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
		} {
			c := dial(t, n)
			c.send(fmt.Sprintf("set k 0 0 1\r\n%d\r\nget k\r\nincr k 5\r\n", i))
			h := engine.next(t, "write")
			leave(c.Conn.(*net.TCPConn))
			time.Sleep(50 * time.Millisecond) // it gets there, and changes nothing
			if got := n.curConns.Load(); got != 1 {
				t.Fatalf("%d connections while the engine works for one", got)
			}
			h.answer()
			engine.next(t, "barrier").answer()
			engine.next(t, "write").answer() // it was sent, so it is done
			attunetest.Eventually(t, "the connection is gone", func() bool { return n.curConns.Load() == 0 })
			attunetest.Eventually(t, "its descriptor is closed", func() bool { return openFiles(t) <= files })
			c = dial(t, n)
			c.send("get k\r\n")
			engine.next(t, "barrier").answer()
			c.want(fmt.Sprintf("VALUE k 0 1\r\n%d\r\nEND\r\n", i+5))
			c.Close()
			attunetest.Eventually(t, "the other is gone", func() bool { return n.curConns.Load() == 0 })
		}
	})
}

// TestClientSendsMoreWhileParked: it is executed after, in order, and waiting
// for that takes no processor time.
func TestClientSendsMoreWhileParked(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		n, engine := open(cfg)
		c := dial(t, n)
		c.send("get k\r\nset k 0 0 1\r\n1\r\n")
		engine.next(t, "barrier").answer()
		h := engine.next(t, "write")
		for range 20 {
			c.send("get k\r\n")
			time.Sleep(time.Millisecond) // more than one packet
		}
		before, began := processorTime(t), time.Now()
		for time.Since(began) < 300*time.Millisecond {
			time.Sleep(10 * time.Millisecond)
		}
		if used := processorTime(t) - before; used > 150*time.Millisecond {
			t.Errorf("%v of processor time to wait %v", used, time.Since(began))
		}
		engine.quiet(t)
		h.answer()
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.want("END\r\nSTORED\r\n" + strings.Repeat("VALUE k 0 1\r\n1\r\nEND\r\n", 20) + "MN\r\n")
		}()
		c.send("mn\r\n")
		for {
			select {
			case h := <-engine.asked:
				if h.kind != "barrier" {
					t.Errorf("asked for a %s", h.kind)
				}
				h.answer()
				continue
			case <-done:
			}
			break
		}
	})
}

// processorTime is what this process has used.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestManyAreAnsweredTogether, from one goroutine, as an engine does that has
// applied a batch.
func TestManyAreAnsweredTogether(t *testing.T) {
	const clients, rounds = 100, 20
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		n, engine := open(cfg)
		stop := make(chan struct{})
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				var batch []*heldCall
				select {
				case h := <-engine.asked:
					batch = append(batch, h)
				case <-stop:
					return
				}
				for len(engine.asked) > 0 {
					batch = append(batch, <-engine.asked)
				}
				for _, h := range batch {
					h.answer()
				}
			}
		}()
		together(t, n, clients, func(i int, c *client) {
			for j := range rounds {
				c.tell("set k%d 0 0 3\r\n%03d\r\nget k%d\r\n", i, j, i)
				want := fmt.Sprintf("STORED\r\nVALUE k%d 0 3\r\n%03d\r\nEND\r\n", i, j)
				got := make([]byte, len(want))
				if _, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
					c.t.Errorf("%q, %v", got, err)
					return
				}
			}
		})
		close(stop)
		<-stopped
	})
}

func TestDrainWaitsForTheEngine(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		cfg.DrainTimeout = patience
		n, engine := open(cfg)
		idle, parked := dial(t, n), dial(t, n)
		idle.ask("mn\r\n", "MN\r\n")
		parked.send("set k 0 0 1\r\n1\r\n")
		h := engine.next(t, "write")
		closed := make(chan error, 1)
		go func() { closed <- n.Close(context.Background()) }()
		idle.end()
		select {
		case err := <-closed:
			t.Fatalf("closed (%v) with a write under way", err)
		default:
		}
		if err := h.c.Ctx.Err(); err != nil {
			t.Errorf("its context has ended: %v", err)
		}
		h.answer()
		parked.want("STORED\r\n")
		parked.end()
		if err := <-closed; err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

// TestCloseEndsWithoutTheEngine: one that answers only when it is closed, or not
// even then, keeps a node no longer than the drain.
func TestCloseEndsWithoutTheEngine(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		for _, mute := range []bool{false, true} {
			files := openFiles(t)
			cfg.DrainTimeout = 300 * time.Millisecond
			cfg.OpTimeout = 0
			n, engine := open(cfg)
			engine.mute = mute
			reader, writer, left := dial(t, n), dial(t, n), dial(t, n)
			var held []*heldCall
			reader.send("get k\r\n")
			held = append(held, engine.next(t, "barrier"))
			writer.send("set k 0 0 40000\r\n" + string(pattern(40_000, 1)) + "\r\n")
			held = append(held, engine.next(t, "write"))
			left.send("incr k 1\r\n")
			held = append(held, engine.next(t, "write"))
			left.Close()
			for _, h := range held {
				if !h.c.Deadline.IsZero() {
					t.Errorf("%s: a deadline, with no op timeout", h.kind)
				}
			}
			began := time.Now()
			err := n.Close(context.Background())
			if err == nil || !strings.Contains(err.Error(), "3 connections did not finish in time") {
				t.Errorf("close says %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("close took %v", took)
			}
			reader.end()
			writer.end()
			for _, h := range held {
				if h.c.Ctx.Err() == nil {
					t.Errorf("%s: nobody said that nobody waits", h.kind)
				}
				if len(h.c.Ops) == 1 && string(h.c.Ops[0].Key.Text) != "k" {
					t.Errorf("what the engine still has was changed: %+v", h.c.Ops)
				}
				if mute {
					h.c.Done() // long after: nobody is there
				}
			}
			reader.Close()
			writer.Close()
			attunetest.Eventually(t, "all descriptors are closed", func() bool { return openFiles(t) <= files })
		}
	})
}

// TestIdleTimeoutSparesTheParked: it is not the client that is slow.
func TestIdleTimeoutSparesTheParked(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		cfg.IdleTimeout = 200 * time.Millisecond
		n, engine := open(cfg)
		parked := dial(t, n)
		parked.send("get k\r\n")
		h := engine.next(t, "barrier")
		idle := dial(t, n)
		idle.ask("mn\r\n", "MN\r\n")
		idle.end()
		h.answer()
		parked.ask("mn\r\n", "END\r\nMN\r\n")
		parked.end() // idle, now
	})
}

// TestLatencyCountsTheWait, and not only the turn of the answer.
func TestLatencyCountsTheWait(t *testing.T) {
	const wait = 60 * time.Millisecond
	for _, goroutines := range []bool{false, true} {
		cfg := testConfig()
		cfg.goroutines = goroutines
		cfg.wrap = func(e consistency.Engine) consistency.Engine { return &later{Engine: e, delay: wait} }
		n := start(t, cfg)
		c := dial(t, n)
		spent := func(of class) (sum time.Duration) {
			for i := range n.stripes {
				sum += time.Duration(n.stripes[i].latency[of].sum.Load())
			}
			return sum
		}
		c.set("k", []byte("1"))
		c.ask("get none\r\n", "END\r\n")
		for _, of := range []class{classStore, classGet} {
			attunetest.Eventually(t, "it is counted", func() bool { return spent(of) > 0 })
			if got := spent(of); got < wait || got > patience {
				t.Errorf("goroutines %v: %s took %v, and waited %v", goroutines, classNames[of], got, wait)
			}
		}
	}
}

// TestRepliesStayAlignedWhenRequestsFail: each command has its own reply, or the
// failure in place of it.
func TestRepliesStayAlignedWhenRequestsFail(t *testing.T) {
	for _, goroutines := range []bool{false, true} {
		t.Run(fmt.Sprint("goroutines=", goroutines), func(t *testing.T) {
			cfg := testConfig()
			cfg.goroutines = goroutines
			cfg.wrap = func(e consistency.Engine) consistency.Engine {
				l := &later{Engine: e, fails: 30}
				t.Cleanup(l.check(t))
				return l
			}
			c := dial(t, start(t, cfg))
			const failure = "SERVER_ERROR not today"
			failures, successes := 0, 0
			for round := range 30 {
				var ask strings.Builder
				for i := range 40 {
					fmt.Fprintf(&ask, "set k%d 0 0 6\r\n%02d.%03d\r\nget k%d none k%d\r\nmg n%d.%d N30 k\r\ngat 0 k%d k%d\r\nmn\r\n", i, round, i, i, i, round, i, i, i)
				}
				go c.Write([]byte(ask.String()))
				is := func(got, want string) bool {
					t.Helper()
					if got == failure {
						failures++
						return false
					}
					if got != want {
						t.Fatalf("%q, want %q", got, want)
					}
					successes++
					return true
				}
				for i := range 40 {
					stored := is(c.line(), "STORED")
					values := func() { // those of a get; after a failed set, of an older one
						t.Helper()
						line := c.line()
						for ; strings.HasPrefix(line, "VALUE "); line = c.line() {
							is(line, fmt.Sprintf("VALUE k%d 0 6", i))
							if value := c.line(); stored && value != fmt.Sprintf("%02d.%03d", round, i) {
								t.Fatalf("%q right after it was set to something else", value)
							}
						}
						is(line, "END")
					}
					values()
					is(c.line(), fmt.Sprintf("HD kn%d.%d W", round, i))
					values()
					if line := c.line(); line != "MN" {
						t.Fatalf("%q, want MN", line)
					}
				}
			}
			if failures < 100 || successes < 100 {
				t.Errorf("%d failures, %d successes: that proves little", failures, successes)
			}
		})
	}
}

func TestHealthIsReadiness(t *testing.T) {
	var engine *held
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	cfg.wrap = func(e consistency.Engine) consistency.Engine {
		engine = newHeld(e)
		engine.health = errors.New("too few of us")
		return engine
	}
	n := start(t, cfg)
	code, body := httpGet(t, n, "/readyz")
	if code != http.StatusServiceUnavailable || body != "level eventual is not served: too few of us\n" {
		t.Errorf("readyz %d %q", code, body)
	}
}

// TestWaitingDoesNotAllocate: asking and being answered later costs nothing per
// request.
func TestWaitingDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools drop things")
	}
	cfg := testConfig()
	cfg.wrap = func(e consistency.Engine) consistency.Engine { return &prompt{e} }
	b := newBench(t, cfg)
	done := 0
	b.s.call.Done = func() { done++ }
	b.answer = func() {}
	in := "set k 0 0 1\r\n1\r\nget k\r\nset n 0 0 1\r\n1\r\nincr n 1\r\nget k n\r\n"
	b.feed(in)
	if n := testing.AllocsPerRun(2000, func() { b.feed(in) }); n >= 0.5 || done == 0 {
		t.Errorf("%v allocations per pipeline, %d answers", n, done)
	}
}

// prompt answers later, but before the call returns.
type prompt struct{ consistency.Engine }

func (e *prompt) Write(c *attune.Call) bool   { e.Engine.Write(c); c.Done(); return false }
func (e *prompt) Barrier(c *attune.Call) bool { e.Engine.Barrier(c); c.Done(); return false }
