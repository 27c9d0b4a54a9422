package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

type settled struct {
	c     *Cluster
	found bool
	err   error
}

// settle runs Settle of all, and founds when one is to.
func settle(t *testing.T, all ...*Cluster) (founders []*Cluster) {
	t.Helper()
	out := make(chan settled, len(all))
	for _, c := range all {
		go func() {
			found, err := c.Settle(within(t))
			if found {
				c.Belong(testCluster)
			}
			out <- settled{c, found, err}
		}()
	}
	for range all {
		s := receive(t, "everybody settles", out)
		if s.err != nil {
			t.Fatalf("%s: %v", s.c.o.Name, s.err)
		}
		if s.found {
			founders = append(founders, s.c)
		}
	}
	return founders
}

func TestExactlyOneFounds(t *testing.T) {
	for round := range 3 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			seeds := []string{attunetest.FreeAddr(t), attunetest.FreeAddr(t), attunetest.FreeAddr(t)}
			var all []*Cluster
			for i, name := range []string{"a", "b", "c"} {
				o := options(name, seeds...)
				o.Gossip = seeds[i]
				all = append(all, start(t, o))
			}
			founders := settle(t, all...)
			if len(founders) != 1 || founders[0].o.Name != "a" {
				t.Fatalf("%d founders", len(founders))
			}
			for _, c := range all {
				if w := c.Waiting(); w != "" {
					t.Errorf("%s still waits: %s", c.o.Name, w)
				}
			}

			late := start(t, options("0", seeds...)) // though its name is lower
			if len(settle(t, late)) != 0 {
				t.Error("a newcomer founded a second cluster")
			}
		})
	}
}

func TestFoundsAlone(t *testing.T) {
	for _, c := range []struct{ listen, join string }{
		{"127.0.0.1", ""}, {"127.0.0.1", "127.0.0.1"}, {"127.0.0.1", "localhost"}, {"0.0.0.0", "127.0.0.1"}, {"0.0.0.0", "127.0.0.9"},
	} {
		o := options("a")
		o.Expect = 1
		_, port, _ := net.SplitHostPort(attunetest.FreeAddr(t))
		o.Gossip = net.JoinHostPort(c.listen, port)
		if c.join != "" {
			o.Join = []string{net.JoinHostPort(c.join, port)}
		}
		if len(settle(t, start(t, o))) != 1 {
			t.Errorf("did not found: %+v", c)
		}
	}
}

// The loopback network has more than one address, and each may have a node, of the same
// port too.
func TestAnotherLoopbackAddressIsAnotherNode(t *testing.T) {
	_, port, _ := net.SplitHostPort(attunetest.FreeAddr(t))
	l, err := net.Listen("tcp", "127.0.0.2:"+port)
	if err != nil {
		t.Skip("this machine has no 127.0.0.2: ", err)
	}
	l.Close()
	o := options("a", "127.0.0.2:"+port)
	o.Expect, o.Gossip = 1, "127.0.0.1:"+port
	a := start(t, o)
	waits(t, a, "--join")
	o = options("b")
	o.Expect, o.Gossip = 1, "127.0.0.2:"+port
	b := start(t, o)
	meet(t, a, b)
	if !a.here("127.0.0.1:"+port) || !a.here("[::1]:"+port) || a.here("127.0.0.2:"+port) || b.here("127.0.0.1:"+port) || b.here("[::1]:"+port) {
		t.Error("does not know itself")
	}
}

// waits checks that nobody founds for longer than that would take.
func waits(t *testing.T, c *Cluster, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 1500*time.Millisecond, errors.New("enough"))
	defer cancel()
	found, err := c.Settle(ctx)
	if found || err == nil || err.Error() != "enough" {
		t.Errorf("%s: found %v, %v", c.o.Name, found, err)
	}
	if got := c.Waiting(); !strings.Contains(got, text) {
		t.Errorf("%s waits for %q, not %q", c.o.Name, got, text)
	}
}

func TestFewerThanExpectedWait(t *testing.T) {
	a := start(t, options("a"))
	b := start(t, options("b", a.GossipAddr()))
	meet(t, a, b)
	waits(t, a, "2 of 3 controllers found each other: a, b")
}

func TestNobodyFoundsBeforeASeedAnswered(t *testing.T) {
	o := options("a", attunetest.FreeAddr(t))
	o.Expect = 1
	waits(t, start(t, o), "--join")

	o = options("a", attunetest.FreeAddr(t))
	o.Expect = 2
	a := start(t, o)
	o = options("b", a.GossipAddr())
	o.Expect = 2
	b := start(t, o)
	meet(t, a, b)
	waits(t, a, "--join") // b found it, but is not who it was told to find
	waits(t, b, "a is to found")
}

func TestPromiseIsKept(t *testing.T) {
	o := options("c")
	c := start(t, o)
	ask := func(from uint64) string {
		no, err := c.promise(t.Context(), from, nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(no)
	}
	if no := ask(1); no != "" {
		t.Fatal(no)
	}
	if no := ask(1); no != "" {
		t.Errorf("refused to renew: %s", no)
	}
	if no := ask(2); !strings.Contains(no, "promised") {
		t.Errorf("promised to two: %q", no)
	}
	if c.boot.begin() {
		t.Error("founds itself in spite of a promise")
	}
	c.boot.until = time.Now()
	if no := ask(2); no != "" {
		t.Errorf("refused after the promise had ended: %s", no)
	}
	c.boot.until = time.Now()
	if !c.boot.begin() {
		t.Error("does not found after the promise had ended")
	}
	if no := ask(1); !strings.Contains(no, "founding") {
		t.Errorf("promised while founding: %q", no)
	}
	c.boot.giveUp()
	c.Belong(testCluster)
	if no := ask(1); !strings.Contains(no, "belongs") {
		t.Errorf("promised as a member: %q", no)
	}
}

// One that does not promise holds up the founder.
func TestFoundingNeedsAllPromises(t *testing.T) {
	a := start(t, options("a"))
	b := start(t, options("b", a.GossipAddr()))
	c := start(t, options("c", a.GossipAddr()))
	meet(t, a, b, c)
	c.boot.mu.Lock()
	c.boot.to, c.boot.until = 12345, time.Now().Add(time.Hour)
	c.boot.mu.Unlock()
	waits(t, a, "asking b, c")
	c.boot.mu.Lock()
	c.boot.until = time.Now()
	c.boot.mu.Unlock()
	if len(settle(t, a)) != 1 {
		t.Error("did not found")
	}
}

func TestSettleEndsWithClose(t *testing.T) {
	a := start(t, options("a"))
	out := make(chan error, 1)
	go func() {
		_, err := a.Settle(within(t))
		out <- err
	}()
	a.Close()
	if err := receive(t, "Settle returns", out); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}
