package cluster

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

// gone waits until a node is gone for another, and returns whether it left.
func gone(t *testing.T, at *Cluster, id uint64) (left bool) {
	t.Helper()
	attunetest.Eventually(t, "it is missed", func() bool {
		m, ok := at.Member(id)
		left = m.Left
		return ok && !m.Alive
	})
	return left
}

func leave(t *testing.T, c *Cluster) {
	t.Helper()
	if err := c.Leave(within(t)); err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// Who says that it goes has left, and who ends without a word has failed, until it is
// back: what it said before does not count for the next time.
func TestLeavingIsNotFailing(t *testing.T) {
	a := start(t, options("a"))
	b := start(t, options("b", a.GossipAddr()))
	o := options("c", a.GossipAddr())
	for _, leaves := range []bool{true, false, true} {
		c := start(t, o) // of one id, as with a data directory
		meet(t, a, b, c)
		if m, _ := a.Member(o.ID); m.Left {
			t.Error("it is here and has left")
		}
		if leaves {
			leave(t, c)
		}
		c.Close()
		for _, n := range []*Cluster{a, b} {
			if left := gone(t, n, o.ID); left != leaves {
				t.Errorf("at %s it has left: %v, want %v", n.o.Name, left, leaves)
			}
		}
	}
}

// A node that was cut off when another left takes that for failed, and learns better
// when it reaches one that heard.
func TestWhoWasCutOffHearsWhoLeft(t *testing.T) {
	a := start(t, options("a"))
	b := start(t, options("b", a.GossipAddr()))
	c := start(t, options("c", a.GossipAddr()))
	meet(t, a, b, c)
	inject(t, b, Fault{Kind: FaultPartition, Peers: []string{"a", "c"}}, MaxFault)
	if gone(t, b, c.o.ID) {
		t.Error("it has left already")
	}
	gone(t, a, b.o.ID)
	leave(t, c)
	if !gone(t, a, c.o.ID) {
		t.Error("who was told does not know")
	}
	b.ClearFaults()
	meet(t, a, b)
	attunetest.Eventually(t, "it hears from the others", func() bool { return gone(t, b, c.o.ID) })
}

// What others heard longer ago than this node saw that one alive is of an earlier time.
func TestLeftBeforeItWasSeen(t *testing.T) {
	a, b := pair(t)
	id := b.o.ID
	said := func(ago time.Duration) []byte {
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, id), uint64(ago.Milliseconds()))
	}
	b.Close()
	gone(t, a, id)
	a.members.heardOfLeavers(said(time.Hour))
	for _, damaged := range [][]byte{said(0)[:15], said(-time.Second), said(2 * forgetAfter)} {
		a.members.heardOfLeavers(damaged)
	}
	if gone(t, a, id) {
		t.Error("believed what does not hold")
	}
	a.members.heardOfLeavers(said(0))
	if !gone(t, a, id) {
		t.Error("not believed")
	}
	if got := a.members.leavers(); len(got) != 16 || binary.LittleEndian.Uint64(got) != id {
		t.Errorf("passes on %x", got)
	}
}
