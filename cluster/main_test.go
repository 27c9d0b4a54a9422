package cluster

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/attunekv/attune/internal/attunetest"
)

func TestMain(m *testing.M) {
	// A probe under way outlives its list, for seconds where packets are late.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

const (
	patience = attunetest.Patience
	testKind = MinKind + 3
)

var testCluster = [16]byte{1, 2, 3}

// options are those of a node on loopback ports of its own.
func options(name string, join ...string) Options {
	return Options{
		Name: name, ID: rand.Uint64() | 1, Kind: "ordered", Expect: 3,
		Peer: "127.0.0.1:0", Gossip: "127.0.0.1:0", Join: join,
		Listen: "127.0.0.1:11211", Admin: "127.0.0.1:9090",
	}
}

// start opens a node and closes it with the test.
func start(t testing.TB, o Options) *Cluster {
	t.Helper()
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// logged returns o with a log and what is written to it at a level and above.
func logged(o Options, level zapcore.Level) (Options, *observer.ObservedLogs) {
	core, logs := observer.New(level)
	o.Log = zap.New(core)
	return o, logs
}

// pair is two members of one cluster that know each other.
func pair(t testing.TB) (a, b *Cluster) {
	t.Helper()
	a = start(t, options("a"))
	b = start(t, options("b", a.GossipAddr()))
	a.Belong(testCluster)
	b.Belong(testCluster)
	meet(t, a, b)
	for _, c := range []*Cluster{a, b} {
		other := a.o.ID
		if c == a {
			other = b.o.ID
		}
		attunetest.Eventually(t, "the other tells its cluster", func() bool {
			m, _ := c.Member(other)
			return m.Cluster == Hash(testCluster)
		})
	}
	return a, b
}

// meet waits until all know all.
func meet(t testing.TB, all ...*Cluster) {
	t.Helper()
	for _, c := range all {
		for _, other := range all {
			attunetest.Eventually(t, c.o.Name+" knows "+other.o.Name, func() bool {
				m, ok := c.Member(other.o.ID)
				return ok && m.Alive && m.Name == other.o.Name
			})
		}
	}
}

// within is a context that a test which works never sees the end of.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// receive waits for a value.
func receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("not within %v: %s", patience, what)
		panic("unreachable")
	}
}

// said reports whether a line with the text was logged.
func said(logs *observer.ObservedLogs, text string) bool {
	return slices.ContainsFunc(logs.All(), func(e observer.LoggedEntry) bool { return strings.Contains(e.Message, text) })
}

// say opens a connection to c's peer port and says hello.
func say(t testing.TB, c *Cluster, h hello) (net.Conn, byte, []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", c.PeerAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(appendFrame([]byte{byte(h.class)}, kindHello, nil, h.append(nil))); err != nil {
		t.Fatal(err)
	}
	kind, body, err := readSmall(conn)
	if err != nil {
		t.Fatal(err)
	}
	return conn, kind, body
}
