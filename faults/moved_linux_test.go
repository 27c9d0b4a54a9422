package faults

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

// TestMovedToAnotherAddress gives a machine another address while its controller runs,
// as a container gets one that is connected to its network again. It finds the others,
// they find it, and it is the member that it was.
func TestMovedToAnotherAddress(t *testing.T) {
	if !ownNetwork(t, "ATTUNE_TEST_BINARY="+attunetest.Binary(t)) {
		return
	}
	// The others have missed it when it is back, or not yet.
	t.Run("at once", func(t *testing.T) { moved(t, eventual, 0) })
	if long {
		t.Run("later", func(t *testing.T) { moved(t, linearizable, 4*time.Second) })
	}
}

func moved(t *testing.T, level string, away time.Duration) {
	const nodes = 3
	w := newWires(t, nodes)
	defer w.ip("link", "del", "br0")
	for i := range nodes { // else it has no address that others could be told
		w.in(i, "ip", "route", "add", "default", "via", w.addr(253))
	}
	c := attunetest.StartCluster(t, attunetest.ClusterOptions{
		Level: level, Nodes: nodes,
		Host: func(i int) (string, []string) { return w.addr(i), w.enter(i) },
		Args: []string{"--listen", "0.0.0.0:7000", "--peer", "0.0.0.0:7001", "--gossip", "0.0.0.0:7003", "--admin", "0.0.0.0:7004"},
	})
	n := c.Nodes[0]
	ask := func(n *attunetest.Controller, command, want string) {
		t.Helper()
		conn, err := net.Dial("tcp", n.Listen)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, command)
		got := make([]byte, len(want))
		if _, err := conn.Read(got); err != nil || string(got) != want {
			t.Errorf("%s: %q: %q (%v), want %q", n.Name, command, got, err, want)
		}
	}
	ask(n, "set before 0 0 1\r\n1\r\n", "STORED\r\n")

	fresh := subnet + "77"
	w.in(0, "ip", "addr", "del", w.addr(0)+"/24", "dev", "eth0")
	pause(t, away)
	w.in(0, "ip", "addr", "add", fresh+"/24", "dev", "eth0")
	w.in(0, "ip", "route", "add", "default", "via", w.addr(253))
	n.Listen, n.Admin = fresh+":7000", fresh+":7004"
	c.WaitReady(c.Nodes...)
	ask(n, "set after 0 0 1\r\n2\r\n", "STORED\r\n")
	ask(c.Nodes[1], "set back 0 0 1\r\n3\r\n", "STORED\r\n")
	for _, other := range c.Nodes {
		attunetest.Eventually(t, other.Name+" has what was written on both sides", func() bool {
			conn, err := net.Dial("tcp", other.Listen)
			if err != nil {
				return false
			}
			defer conn.Close()
			fmt.Fprint(conn, "get before after back\r\n")
			want := "VALUE before 0 1\r\n1\r\nVALUE after 0 1\r\n2\r\nVALUE back 0 1\r\n3\r\nEND\r\n"
			got := make([]byte, len(want))
			m, err := conn.Read(got)
			return err == nil && string(got[:m]) == want
		})
	}
}
