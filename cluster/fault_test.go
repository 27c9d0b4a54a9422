package cluster

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/attunekv/attune/internal/attunetest"
)

// inject injects a fault that lasts for longer than a test, unless it is told when to
// end.
func inject(t *testing.T, c *Cluster, f Fault, lasts time.Duration) Fault {
	t.Helper()
	f, err := c.Inject(f, lasts)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFaultsThatMakeNoSense(t *testing.T) {
	a, _ := pair(t)
	for _, f := range []Fault{
		{Kind: "burn", Peers: []string{"b"}}, {Kind: FaultPartition}, {Kind: FaultPartition, Peers: []string{"a"}},
		{Kind: FaultPartition, Peers: []string{"c"}}, {Kind: FaultPartition, Peers: []string{"b"}, Percent: 3},
		{Kind: FaultDrop, Peers: []string{"b"}}, {Kind: FaultDrop, Peers: []string{"b"}, Percent: 101}, {Kind: FaultDrop, Peers: []string{"b"}, Percent: -1},
		{Kind: FaultDelay, Peers: []string{"b"}}, {Kind: FaultDelay, Peers: []string{"b"}, Delay: time.Minute},
		{Kind: FaultPause, Peers: []string{"b"}},
		{Kind: FaultClock}, {Kind: FaultClock, Peers: []string{"b"}, Offset: time.Hour}, {Kind: FaultClock, Offset: 25 * time.Hour},
		{Kind: FaultClock, Offset: -25 * time.Hour}, {Kind: FaultPause, Offset: time.Hour},
	} {
		if _, err := a.Inject(f, time.Minute); err == nil {
			t.Errorf("%v was injected", f)
		}
	}
	for _, lasts := range []time.Duration{0, -1, MaxFault + 1} {
		if _, err := a.Inject(Fault{Kind: FaultPause}, lasts); err == nil {
			t.Errorf("a fault of %v was injected", lasts)
		}
	}
	if a.faults.active.Load() != nil {
		t.Errorf("%v", a.Faults())
	}
}

// A partition at one side cuts frames, calls and streams in both directions, and both
// sides find each other dead; and it ends by itself.
func TestFaultPartition(t *testing.T) {
	o, logs := logged(options("a"), zapcore.WarnLevel)
	a := start(t, o)
	b := start(t, options("b", a.GossipAddr()))
	got := make(chan string, 100)
	for _, c := range []*Cluster{a, b} {
		c.Belong(testCluster)
		c.Handle(testKind, func(_ uint64, body []byte) { got <- c.o.Name + string(body) })
		c.HandleCall(testKind, func(_ context.Context, _ uint64, body []byte) ([]byte, error) { return body, nil })
		c.HandleStream(testKind, func(_ context.Context, _ uint64, _ []byte, w io.Writer) error {
			_, err := w.Write([]byte("stream"))
			return err
		})
	}
	meet(t, a, b)
	talks := func(from, to *Cluster) bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := from.Call(ctx, to.o.ID, testKind, []byte("x")); err != nil {
			return false
		}
		s, err := from.Stream(ctx, to.o.ID, testKind, nil)
		if err != nil {
			return false
		}
		defer s.Close()
		_, err = io.ReadAll(s)
		return err == nil
	}
	frame := func(from, to *Cluster, text string) {
		t.Helper()
		attunetest.Eventually(t, text, func() bool { return from.Send(to.o.ID, Log, testKind, []byte(text)) })
	}
	all := func() bool { return talks(a, b) && talks(b, a) }
	attunetest.Eventually(t, "both talk", all)
	frame(a, b, "1")
	frame(b, a, "1")
	receive(t, "a frame", got)
	receive(t, "a frame", got)

	f := inject(t, a, Fault{Kind: FaultPartition, Peers: []string{"b"}}, time.Hour)
	if f.String() != "partition b" || time.Until(f.Until) < time.Minute {
		t.Errorf("%v until %v", f, f.Until)
	}
	a.Send(b.o.ID, Log, testKind, []byte("lost"))
	b.Send(a.o.ID, Log, testKind, []byte("lost"))
	if talks(a, b) || talks(b, a) {
		t.Error("they talk through a partition")
	}
	for _, c := range []*Cluster{a, b} {
		other := map[*Cluster]*Cluster{a: b, b: a}[c]
		attunetest.Eventually(t, c.o.Name+" finds the other dead", func() bool { m, _ := c.Member(other.o.ID); return !m.Alive })
	}
	inject(t, a, Fault{Kind: FaultPartition, Peers: []string{"b"}}, 10*time.Millisecond)
	attunetest.Eventually(t, "the end of the second", func() bool { return len(a.Faults()) == 1 })
	if !said(logs, "a fault was injected") || !said(logs, "is over") {
		t.Error("nobody said it")
	}
	a.ClearFaults()
	if a.faults.active.Load() != nil {
		t.Error("not cleared")
	}
	meet(t, a, b)
	attunetest.Eventually(t, "both talk again", all)
	frame(a, b, "2")
	frame(b, a, "2")
	for range 2 {
		if text := receive(t, "a frame", got); strings.Contains(text, "lost") {
			t.Errorf("%s came", text)
		}
	}
}

// Of frames some get lost, in both directions; those that come are in order. A lost
// call ends.
func TestFaultDrop(t *testing.T) {
	a, b := pair(t)
	const frames = 400
	for _, side := range []struct{ from, to *Cluster }{{a, b}, {b, a}} {
		got := make(chan int, frames+1)
		side.to.Handle(testKind, func(_ uint64, body []byte) { got <- len(body) })
		inject(t, a, Fault{Kind: FaultDrop, Peers: []string{"b"}, Percent: 50}, time.Hour)
		for i := range frames {
			attunetest.Eventually(t, "send", func() bool { return side.from.Send(side.to.o.ID, Log, testKind, make([]byte, i)) })
		}
		// What was dropped on its way out is counted where it was sent, and what was on
		// its way in only read.
		attunetest.Eventually(t, "all is written", func() bool { return side.from.Stats().Class[Log].Queued == 0 })
		if side.from == b {
			attunetest.Eventually(t, "some came", func() bool { return len(got) > frames/10 })
		}
		a.ClearFaults()
		attunetest.Eventually(t, "the last", func() bool { return side.from.Send(side.to.o.ID, Log, testKind, make([]byte, frames)) })
		last, n := -1, 0
		for last < frames {
			i := receive(t, "a frame", got)
			if i <= last {
				t.Errorf("%d after %d", i, last)
			}
			last, n = i, n+1
		}
		if n < frames/10 || n > frames*9/10 {
			t.Errorf("%d of %d frames came", n, frames)
		}
	}
	b.HandleCall(testKind, func(context.Context, uint64, []byte) ([]byte, error) { return nil, nil })
	inject(t, a, Fault{Kind: FaultDrop, Peers: []string{"b"}, Percent: 100}, time.Hour)
	if _, err := a.Call(within(t), b.o.ID, testKind, nil); !errors.Is(err, ErrLost) && !errors.Is(err, ErrNotSent) {
		t.Errorf("a call that was lost ends with %v", err)
	}
}

// What is delayed comes, in order, and no sooner than it may.
func TestFaultDelay(t *testing.T) {
	a, b := pair(t)
	b.HandleCall(testKind, func(_ context.Context, _ uint64, body []byte) ([]byte, error) { return body, nil })
	attunetest.Eventually(t, "a call", func() bool { _, err := a.Call(within(t), b.o.ID, testKind, nil); return err == nil })
	const hold = 50 * time.Millisecond
	inject(t, a, Fault{Kind: FaultDelay, Peers: []string{"b"}, Delay: hold}, time.Hour)
	began := time.Now()
	if _, err := a.Call(within(t), b.o.ID, testKind, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 2*hold { // there and back; slower is no failure
		t.Errorf("a call took %v through two delays of %v", took, hold)
	}
}

// Paused, a node has nobody.
func TestFaultPause(t *testing.T) {
	a, b := pair(t)
	b.HandleCall(testKind, func(_ context.Context, _ uint64, body []byte) ([]byte, error) { return body, nil })
	inject(t, a, Fault{Kind: FaultPause}, time.Hour)
	if !a.Paused() || b.Paused() {
		t.Error("paused is the wrong one")
	}
	if _, err := a.Call(within(t), b.o.ID, testKind, nil); err == nil {
		t.Error("a paused node talks")
	}
	attunetest.Eventually(t, "b finds it dead", func() bool { m, _ := b.Member(a.o.ID); return !m.Alive })
	a.ClearFaults()
	meet(t, a, b)
}

// A clock that is off is that of one node, as long as the fault lasts; two faults add up.
// Nothing is cut off by it.
func TestFaultClock(t *testing.T) {
	a, b := pair(t)
	b.HandleCall(testKind, func(_ context.Context, _ uint64, body []byte) ([]byte, error) { return body, nil })
	shows := func(c *Cluster, ahead time.Duration) {
		t.Helper()
		if off := time.Until(c.Wall()); c.ClockOffset() != ahead || (off-ahead).Abs() > time.Minute {
			t.Errorf("%s: the clock is %v ahead, and said to be %v; want %v", c.o.Name, off, c.ClockOffset(), ahead)
		}
	}
	f := inject(t, a, Fault{Kind: FaultClock, Offset: -2 * time.Hour}, time.Hour)
	if f.String() != "clock 2h0m0s behind" || time.Until(f.Until) > time.Hour {
		t.Errorf("%v until %v", f, f.Until)
	}
	shows(a, -2*time.Hour)
	shows(b, 0)
	inject(t, a, Fault{Kind: FaultClock, Offset: 3 * time.Hour}, time.Hour)
	shows(a, time.Hour)
	attunetest.Eventually(t, "a call", func() bool { _, err := a.Call(within(t), b.o.ID, testKind, nil); return err == nil })
	a.ClearFaults()
	inject(t, a, Fault{Kind: FaultClock, Offset: time.Hour}, 10*time.Millisecond)
	attunetest.Eventually(t, "the end", func() bool { return len(a.Faults()) == 0 })
	shows(a, 0)
}
