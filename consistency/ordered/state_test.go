package ordered

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/attunekv/attune/consistency/ordered/raftlog"
)

// A state that could not be written is tried again; but when nobody knows what is on
// disk, nothing may go on, also if nothing is to be saved just now.
func TestStateThatCannotBeSaved(t *testing.T) {
	c := &core{log: zap.NewNop()}
	c.stateSaved(0, errors.New("no space left on device"))
	if !c.snaps.wanted {
		t.Error("it is not tried again")
	}
	defer func() {
		if why := fmt.Sprint(recover()); !strings.Contains(why, "must not go on") {
			t.Error("it goes on:", why)
		}
	}()
	c.stateSaved(0, fmt.Errorf("save: %w", raftlog.ErrUnknown))
}

// The log clock goes on by this process's own between entries. Of the entries of some
// seconds the one that came fastest sets it; after that the next one does, or two clocks
// that differ in pace would part.
func TestLogClock(t *testing.T) {
	var c logClock
	for i, step := range []struct{ time, mono, at, want int64 }{
		{1_000_000, 500, 500, 1_000_000},
		{1_000_000, 500, 700, 1_000_200},
		{1_000_100, 800, 800, 1_000_300},                                          // it came late
		{1_000_400, 810, 810, 1_000_400},                                          // faster than all before
		{1_000_400, 810 + rebase, 810 + rebase, 1_000_400 + rebase},               // not later than rebase
		{1_000_400 + rebase - 50, 811 + rebase, 811 + rebase, 1_000_350 + rebase}, // later
	} {
		c.heard(step.time, step.mono)
		if got := c.now(step.at); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got, step.want)
		}
	}
}

// far is a world whose wall clock is somewhere else.
type far struct {
	world
	at int64
}

func (f far) wall() int64 { return f.at }

// An exptime that is unix time is meant by the clocks of clients, from which that of the
// log may be far: what is left of it counts. Others are seconds, and need no clock.
func TestExptimeThatIsUnixTime(t *testing.T) {
	const wall = 1_800_000_000_000
	for _, ahead := range []int64{0, 3_600_000, -86_400_000, 499, -499} {
		c := &core{world: far{at: wall}}
		now := int64(wall) + ahead
		if got, want := c.exptime(wall/1000+100, now), now/1000+100; got != want && got != want+1 {
			t.Errorf("log %d ms ahead: %d, want %d", ahead, got, want)
		}
		if got := c.exptime(wall/1000-100, now); got >= now/1000 {
			t.Errorf("log %d ms ahead: what is over is at %d, and now is %d", ahead, got, now/1000)
		}
		for _, as := range []int64{-1, 0, 1, longestTTL} {
			if got := c.exptime(as, now); got != as {
				t.Errorf("%d became %d", as, got)
			}
		}
		if got := c.exptime(longestTTL+1, now); got <= longestTTL {
			t.Errorf("1970 became %d, which is a number of seconds", got)
		}
		if got := c.exptime(math.MaxInt64, now); got < now/1000 {
			t.Errorf("never became %d", got)
		}
	}
}

// However many members there are, a state that was written can be read: who cannot
// read a snapshot can never come in.
func TestStateIsReadAsItWasWritten(t *testing.T) {
	for _, members := range []int{0, 1, 7, 5000} {
		was := state{time: 1_800_000_000_000, version: 1 << 60, flushAt: 5, formed: true, members: make(map[uint64]string)}
		for i := range members {
			was.members[uint64(i)<<40] = fmt.Sprint("n", i)[:i%3] // and no name at all
		}
		var is state
		rest, err := is.decode(append(was.encode(nil), "rest"...))
		if err != nil || string(rest) != "rest" || !reflect.DeepEqual(is, was) {
			t.Errorf("%d members: %v, then %q", members, err, rest)
		}
	}
}

// What a peer or a disk says is read, or refused; whatever is read is written the
// same.
func FuzzState(f *testing.F) {
	st := state{time: 1, version: 2, flushAt: 3, formed: true, members: map[uint64]string{1: "a", 2: ""}}
	f.Add(st.encode(nil))
	f.Add((&state{}).encode(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		var st, again state
		rest, err := st.decode(data)
		if err != nil {
			return
		}
		if len(rest) > len(data) || len(st.members) > len(data) {
			t.Fatalf("%d bytes made %d members and left %d bytes", len(data), len(st.members), len(rest))
		}
		if rest, err = again.decode(st.encode(nil)); err != nil || len(rest) > 0 || !reflect.DeepEqual(again, st) {
			t.Fatalf("%+v was read back as %+v: %v", st, again, err)
		}
	})
}
