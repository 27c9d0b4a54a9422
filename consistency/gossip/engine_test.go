package gossip

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attunekv/attune"
)

func (n *node) flushAll(exptime int64) {
	n.t.Helper()
	n.wantStatus(n.do(attune.Op{Verb: attune.Flush, Exptime: exptime}), attune.Flushed)
}

// scenario runs a test in a time of its own.
func scenario(t *testing.T, test func(t *testing.T, n *node)) {
	synctest.Test(t, func(t *testing.T) { test(t, open(t, embedded(t), 0)) })
}

func TestExpiry(t *testing.T) {
	scenario(t, func(t *testing.T, n *node) {
		op := n.op(attune.Set, "k", "v")
		op.Exptime = 2
		n.do(op)
		time.Sleep(1900 * time.Millisecond)
		n.want("k", "v")
		time.Sleep(200 * time.Millisecond)
		n.wantMiss("k")
		n.wantStatus(n.do(n.op(attune.Touch, "k", "")), attune.NotFound)
		n.wantStatus(n.do(n.op(attune.Add, "k", "w")), attune.Stored)
		n.want("k", "w")
		op.Exptime = -1
		n.do(op)
		n.wantMiss("k")
	})
}

// What expired gives its memory back though nobody reads it.
func TestExpiredItemsAreSwept(t *testing.T) {
	scenario(t, func(t *testing.T, n *node) {
		used := n.replica.Stats().UsedBytes
		const items = 30_000
		for i := range items {
			op := n.op(attune.Set, fmt.Sprint(i), strings.Repeat("v", 200))
			if i%10 != 0 {
				op.Exptime = 5
			}
			n.do(op)
		}
		full := n.replica.Stats().UsedBytes
		time.Sleep(5 * time.Second)
		time.Sleep(sweepRound + time.Second)
		st := n.replica.Stats()
		if st.Items != items/10 || st.Expired != items*9/10 || st.Evicted != 0 {
			t.Errorf("%+v", st)
		}
		if st.UsedBytes-used > (full-used)/2 {
			t.Errorf("%d bytes used of %d", st.UsedBytes-used, full-used)
		}
	})
}

func TestFlushAtOnce(t *testing.T) {
	scenario(t, func(t *testing.T, n *node) {
		for _, exptime := range []int64{0, -1, n.Now()/1000 - 100} {
			n.set("a", "1")
			n.flushAll(exptime)
			n.wantMiss("a")
			n.wantStatus(n.do(n.op(attune.Add, "a", "2")), attune.Stored)
			n.want("a", "2")
		}
	})
}

func TestFlushInABatch(t *testing.T) {
	scenario(t, func(t *testing.T, n *node) {
		res := make([]attune.Result, 3)
		n.Write(t.Context(), []attune.Op{n.op(attune.Set, "a", "1"), {Verb: attune.Flush}, n.op(attune.Set, "b", "2")}, res)
		n.wantMiss("a")
		n.want("b", "2")
	})
}

func TestFlushLater(t *testing.T) {
	scenario(t, func(t *testing.T, n *node) {
		n.set("old", "1")
		n.flushAll(2)
		n.want("old", "1")
		time.Sleep(1900 * time.Millisecond)
		n.set("older than its moment", "1")
		n.want("old", "1")
		time.Sleep(200 * time.Millisecond)
		n.wantMiss("old")
		n.wantMiss("older than its moment")
		n.set("young", "1")
		time.Sleep(20 * time.Second)
		n.want("young", "1")
		if st := n.replica.Stats(); st.Items != 1 || st.Expired != 2 {
			t.Errorf("flushed items were not swept: %+v", st)
		}
	})
}

// There is one pending flush: the newest replaces it, also one at once.
func TestFlushReplaced(t *testing.T) {
	scenario(t, func(t *testing.T, n *node) {
		n.flushAll(2)
		n.flushAll(10)
		n.set("a", "1")
		time.Sleep(9 * time.Second)
		n.want("a", "1")
		time.Sleep(1100 * time.Millisecond)
		n.wantMiss("a")

		n.flushAll(10)
		n.flushAll(3) // an earlier one too
		n.set("a", "1")
		time.Sleep(3100 * time.Millisecond)
		n.wantMiss("a")

		n.flushAll(2)
		n.flushAll(0)
		n.set("a", "1")
		time.Sleep(5 * time.Second)
		n.want("a", "1")
	})
}

// A touch may be stamped above the floor that a flush is about to raise, and
// applied before it is raised: the item it carried over is flushed all the same.
func TestFlushKillsWhatWasTouchedMeanwhile(t *testing.T) {
	scenario(t, func(t *testing.T, n *node) { // time stands still, so versions can be foretold
		n.set("k", "v")
		touch := n.op(attune.Touch, "k", "")
		cur := n.replica.Peek(touch.Key, false)
		c, _ := touch.Decide(&cur, n.Now(), nil)
		// Just below the second version that the clock will issue, above the first.
		c.Stamp(attune.Version((n.clock.last.Load()+2)<<nodeBits|n.clock.node) - 1)
		if applied, err := n.replica.Apply(&c); !applied || err != nil {
			t.Fatal(applied, err)
		}
		n.flushAll(0)
		n.wantMiss("k")
	})
}

// A read-modify-write never carries a flushed item over, however they race.
func TestFlushRacingWrites(t *testing.T) {
	n := open(t, embedded(t), 0)
	for range 300 {
		n.set("k", "before")
		done := make(chan bool)
		go func() {
			n.do(n.op(attune.Touch, "k", ""))
			n.do(n.op(attune.Append, "k", "!"))
			done <- true
		}()
		n.flushAll(0)
		<-done
		n.wantMiss("k")
	}
}

func TestCloseTwice(t *testing.T) {
	n := open(t, embedded(t), 0)
	<-n.Ready()
	n.flushAll(3600)
	if err := errors.Join(n.Close(), n.Close()); err != nil {
		t.Error("Close failed")
	}
}

// A sweep at rest must not be felt: see BenchmarkSweep for the cost of a tick.
func BenchmarkSweep(b *testing.B) {
	n := open(b, embedded(b), 0)
	for i := range 1_000_000 {
		n.set(fmt.Sprint(i), "")
	}
	var buf []attune.Change
	for b.Loop() {
		buf = n.sweepTick(buf)
	}
	perTick := float64(b.Elapsed()) / float64(b.N)
	b.ReportMetric(100*perTick/float64(sweepEvery), "%cpu")
}

// Items written in one millisecond are of one age, and yet what was just written
// stays: it is the others that make room for it.
func TestRoomAmongItemsOfOneAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, embedded(t), 4<<20)
		for i := range 200 {
			text := fmt.Sprint("k", i)
			n.wantStatus(n.set(text, strings.Repeat("v", 100<<10)), attune.Stored)
			if n.replica.Peek(n.key(text), false).Version == 0 {
				t.Fatalf("%s made room for itself", text)
			}
		}
	})
}
