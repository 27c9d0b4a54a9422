package ordered

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/replica"
)

// Who looks for lost bytes does so until the call's deadline, and no longer.
func TestLostBytesAreSoughtUntilTheDeadline(t *testing.T) {
	const callFetch = 3*cluster.MinKind + 3
	g := newGroup(t, 3, false)
	m := g.members[1]
	g.members[0].do(g.members[0].op(attune.Set, "n", "7"))
	m.want("n", "7")
	if err := m.backend.Delete(context.Background(), m.key("n")); err != nil {
		t.Fatal(err)
	}
	for _, other := range g.members {
		other.cluster.HandleCall(callFetch, func(context.Context, uint64, []byte) ([]byte, error) {
			<-t.Context().Done() // and not in time to say so
			return nil, t.Context().Err()
		})
	}
	it, err := m.replica.Get(t.Context(), m.key("n"), nil, false)
	if !errors.Is(err, replica.ErrGone) {
		t.Fatalf("not lost: %v", err)
	}
	// Shorter than one of the others is waited for.
	c := &attune.Call{Deadline: time.Now().Add(20 * time.Millisecond), Res: make([]attune.Result, 1)}
	if wait(c, func(c *attune.Call) bool { return m.Recover(c, m.key("n"), it) }); !errors.Is(c.Err, errFetching) {
		t.Errorf("recovered %+v, %v", c.Res[0].Item, c.Err)
	}
}
