package controller

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency"
)

// later is an engine that answers when it likes: at once, before its call has
// returned, a moment after, or some time after.
type later struct {
	consistency.Engine
	fails   int            // of a hundred requests
	delay   time.Duration  // at least
	waiting sync.WaitGroup // requests not answered
	changed atomic.Bool    // somebody changed what belonged to the engine
}

var (
	errMoody   = errors.New("not today")
	laterSeed  = maphash.MakeSeed()
	laterDelay = 300 * time.Microsecond
)

// answerLater is a Config.wrap for an engine that answers later.
func answerLater(t testing.TB) func(consistency.Engine) consistency.Engine {
	return func(e consistency.Engine) consistency.Engine {
		l := &later{Engine: e}
		t.Cleanup(l.check(t))
		return l
	}
}

// check is to be called when the node is closed.
func (e *later) check(t testing.TB) func() {
	return func() {
		if e.changed.Load() {
			t.Error("a request was changed before its answer")
		}
	}
}

func (e *later) Write(c *attune.Call) bool {
	return e.answer(c, func(failed error) {
		if failed == nil {
			e.Engine.Write(c)
			return
		}
		for i := range c.Res {
			c.Res[i] = attune.Result{Status: attune.Failed, Err: failed}
		}
	})
}

func (e *later) Barrier(c *attune.Call) bool {
	return e.answer(c, func(failed error) {
		if c.Err = failed; failed == nil {
			e.Engine.Barrier(c)
		}
	})
}

func (e *later) Recover(c *attune.Call, key attune.Key, lost attune.Item) bool {
	return e.answer(c, func(failed error) {
		if c.Err = failed; failed == nil {
			e.Engine.Recover(c, key, lost)
		}
	})
}

func (e *later) answer(c *attune.Call, fill func(failed error)) bool {
	var failed error
	if rand.IntN(100) < e.fails {
		failed = errMoody
	}
	how := rand.IntN(8)
	if how == 0 && e.delay == 0 {
		fill(failed)
		return true
	}
	if how == 1 && e.delay == 0 {
		fill(failed)
		c.Done()
		return false
	}
	before := sumOf(c)
	e.waiting.Add(1)
	answer := func() {
		defer e.waiting.Done()
		if sumOf(c) != before {
			e.changed.Store(true)
		}
		fill(failed)
		c.Session.Seen++
		c.Done()
	}
	if how < 4 && e.delay == 0 {
		go answer()
	} else {
		time.AfterFunc(e.delay+rand.N(laterDelay), answer)
	}
	return false
}

// sumOf is a hash of what a request points to: whoever changes it, or uses it
// for something else, before the answer is found out. So does the race detector.
func sumOf(c *attune.Call) uint64 {
	var h maphash.Hash
	h.SetSeed(laterSeed)
	for i := range c.Ops {
		h.Write(c.Ops[i].Key.Text)
		h.Write(c.Ops[i].Value)
	}
	return h.Sum64()
}

func (e *later) Close() error {
	e.waiting.Wait()
	return e.Engine.Close()
}

// held is an engine that answers when the test says so.
type held struct {
	consistency.Engine
	asked  chan *heldCall
	health error
	skew   int64 // of its clock, milliseconds
	mute   bool  // Close answers nobody

	mu  sync.Mutex
	due map[*heldCall]bool // not answered; guarded by mu
}

// heldCall is a request under way.
type heldCall struct {
	e    *held
	c    *attune.Call
	kind string // write, barrier or recover
	do   func()
}

// hold has the node of cfg answer when the test says so. The engine is there once the
// node is.
func hold(cfg *Config) *held {
	h := &held{asked: make(chan *heldCall, 1000), due: make(map[*heldCall]bool)}
	cfg.wrap = func(e consistency.Engine) consistency.Engine {
		h.Engine = e
		return h
	}
	return h
}

func (e *held) hold(c *attune.Call, kind string, do func()) bool {
	h := &heldCall{e, c, kind, do}
	e.mu.Lock()
	e.due[h] = true
	e.mu.Unlock()
	e.asked <- h
	return false
}

func (e *held) Write(c *attune.Call) bool {
	return e.hold(c, "write", func() { e.Engine.Write(c) })
}

func (e *held) Barrier(c *attune.Call) bool {
	return e.hold(c, "barrier", func() { e.Engine.Barrier(c) })
}

func (e *held) Recover(c *attune.Call, key attune.Key, lost attune.Item) bool {
	return e.hold(c, "recover", func() { e.Engine.Recover(c, key, lost) })
}

func (e *held) Now() int64 { return e.Engine.Now() + e.skew }

func (e *held) Health() error { return e.health }

// Close answers what it owes, as an engine may.
func (e *held) Close() error {
	e.mu.Lock()
	due := e.due
	e.due = make(map[*heldCall]bool)
	e.mu.Unlock()
	for h := range due {
		if !e.mute {
			h.finish(errors.New("engine closed"))
		}
	}
	return e.Engine.Close()
}

// answer carries the request out.
func (h *heldCall) answer() {
	h.do()
	h.c.Session.Seen++
	h.finish(nil)
}

// finish says that the request was carried out, or failed.
func (h *heldCall) finish(err error) {
	if err != nil {
		h.c.Err = err
		for i := range h.c.Res {
			h.c.Res[i] = attune.Result{Status: attune.Failed, Err: err}
		}
	}
	h.e.mu.Lock()
	delete(h.e.due, h)
	h.e.mu.Unlock()
	h.c.Done()
}

// eachHeld runs a test on both drivers, with an engine that answers when told.
// The function it gets starts the node, and the engine with it.
func eachHeld(t *testing.T, test func(t *testing.T, cfg Config, open func(cfg Config) (*Node, *held))) {
	for _, goroutines := range []bool{false, true} {
		t.Run(fmt.Sprint("goroutines=", goroutines), func(t *testing.T) {
			cfg := testConfig()
			cfg.goroutines = goroutines
			test(t, cfg, func(cfg Config) (*Node, *held) {
				engine := hold(&cfg)
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
