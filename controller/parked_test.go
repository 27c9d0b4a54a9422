package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency"
)

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
			cfg := testConfig()
			engine := hold(&cfg)
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

// TestFlushAsksEveryShard also once one of them failed, and fails then.
func TestFlushAsksEveryShard(t *testing.T) {
	for _, failing := range []int{-1, 0, 1, 2} {
		cfg := testConfig()
		engine := hold(&cfg)
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
		// A key that is too long ends its command: the next one is answered again.
		c.send("get a " + strings.Repeat("k", 251) + "\r\nget a\r\nmn\r\n")
		engine.next(t, "barrier").finish(errMoody)
		c.want("SERVER_ERROR not today\r\nSERVER_ERROR not today\r\nMN\r\n")
		// A write is none of its business.
		c.send("get a\r\nset a 0 0 1\r\n1\r\nget a\r\n")
		engine.next(t, "barrier").finish(errMoody)
		engine.next(t, "write").answer()
		engine.next(t, "barrier").answer()
		c.want("SERVER_ERROR not today\r\nSTORED\r\nVALUE a 0 1\r\n1\r\nEND\r\n")
	})
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
