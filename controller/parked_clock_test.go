package controller

import (
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

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
