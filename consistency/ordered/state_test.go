package ordered

import (
	"errors"
	"fmt"
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
