package ordered

import (
	"errors"
	"fmt"
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
