package cluster

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

// An operator's word is as good as a seed: whom it names is met at once, and is who a
// founder waited for.
func TestMeet(t *testing.T) {
	o := options("a", attunetest.FreeAddr(t)) // where nobody is
	o.Expect = 2
	a := start(t, o)
	b := start(t, options("b"))
	waits(t, a, "1 of 2")
	answered, err := a.Meet(within(t), b.GossipAddr())
	if err != nil || !slices.Equal(answered, []string{b.GossipAddr()}) {
		t.Fatalf("%v, %v", answered, err)
	}
	meet(t, a, b)
	if m, _ := a.Member(b.o.ID); m.Gossip != b.GossipAddr() {
		t.Errorf("it is remembered at %q", m.Gossip)
	}
	if len(settle(t, a)) != 1 {
		t.Error("did not found")
	}
	if answered, err = a.Meet(within(t), b.GossipAddr()); err != nil || len(answered) != 1 { // again
		t.Errorf("%v, %v", answered, err)
	}
	a.Close()
	if _, err := a.Meet(within(t), b.GossipAddr()); err == nil {
		t.Error("after Close")
	}
}

// memcached answers what it does not understand, as attune does at its clients' port.
func memcached(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := bufio.NewReader(conn).ReadByte(); err == nil {
				io.WriteString(conn, "ERROR\r\n")
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// Whatever is at the address, the operator is told what that is, and what to say instead.
func TestMeetSaysWhatIsWrong(t *testing.T) {
	page := httptest.NewServer(http.NotFoundHandler())
	defer page.Close()
	o := options("a")
	o.Admin = page.Listener.Addr().String()
	a := start(t, o)
	a.Belong(testCluster)
	foreign := start(t, options("b"))
	foreign.Belong([16]byte{9})
	o = options("c")
	o.Kind = "causal"
	other := start(t, o)
	stranger := start(t, options("d"))
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	_, port, _ := net.SplitHostPort(a.GossipAddr())
	for name, c := range map[string]struct{ addr, want string }{
		"nobody":         {attunetest.FreeAddr(t), "does a controller run there"},
		"no such name":   {"nobody.invalid:7946", "nobody.invalid"},
		"no such port":   {"127.0.0.1:x", "x"},
		"itself":         {a.GossipAddr(), "itself"},
		"itself by name": {"localhost:" + port, "itself"},
		"another one":    {foreign.GossipAddr(), "they are never merged"},
		"another kind":   {other.GossipAddr(), "is of a causal cluster, this is a ordered one"},
		"peers":          {stranger.PeerAddr(), "d has it as peer"},
		"foreign peers":  {foreign.PeerAddr(), "b has it as peer"},
		"own peers":      {a.PeerAddr(), "a has it as peer, and gossips at " + a.GossipAddr()},
		"own page":       {page.Listener.Addr().String(), "a has it as admin"},
		"clients":        {memcached(t), "name the gossip port of a controller"},
		"says nothing":   {mute.Addr().String(), "name the gossip port of a controller"},
	} {
		t.Run(name, func(t *testing.T) {
			answered, err := a.Meet(within(t), c.addr)
			if err == nil || !strings.Contains(err.Error(), c.want) || len(answered) > 0 {
				t.Errorf("%v, %v; want %s", answered, err, c.want)
			}
		})
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("enough"))
	defer cancel()
	if _, err := a.Meet(ctx, mute.Addr().String()); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("the context's end: %v", err)
	}
}

func TestMeetOfTwoWithOneName(t *testing.T) {
	a := start(t, options("a"))
	b := start(t, options("b", a.GossipAddr()))
	meet(t, a, b)
	for _, name := range []string{"a", "b"} {
		twin := start(t, options(name))
		if _, err := a.Meet(within(t), twin.GossipAddr()); err == nil || !strings.Contains(err.Error(), "two controllers are called "+name) || !strings.Contains(err.Error(), twin.GossipAddr()) {
			t.Errorf("%s: %v", name, err)
		}
		twin.Close()
	}
}
