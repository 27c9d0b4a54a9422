package cluster

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune/internal/attunetest"
)

func TestThreeFindEachOther(t *testing.T) {
	a := start(t, options("a"))
	b := start(t, options("b", a.GossipAddr()))
	c := start(t, options("c", a.GossipAddr()))
	meet(t, a, b, c)

	var changes atomic.Int32
	a.OnChange(func() { changes.Add(1) })
	b.SetReady(true)
	attunetest.Eventually(t, "a hears that b is ready", func() bool {
		m, _ := a.Member(b.o.ID)
		return m.Ready
	})
	attunetest.Eventually(t, "a was told of a change", func() bool { return changes.Load() > 0 })

	all := a.Members()
	var names []string
	for _, m := range all {
		names = append(names, m.Name)
	}
	if got := strings.Join(names, " "); got != "a b c" {
		t.Fatalf("members %s", got)
	}
	if !all[0].Self || all[1].Self {
		t.Error("not exactly a is itself")
	}
	want := Member{
		Name: "b", ID: b.o.ID, Peer: b.PeerAddr(), Gossip: b.GossipAddr(), Listen: "127.0.0.1:11211", Admin: "127.0.0.1:9090",
		Kind: "ordered", Expect: 3, Alive: true, Ready: true,
	}
	if all[1] != want {
		t.Errorf("got %+v\nwant %+v", all[1], want)
	}
}

func TestSeedsMayComeLater(t *testing.T) {
	later := attunetest.FreeAddr(t)
	a := start(t, options("a", later))
	if m := a.Members(); len(m) != 1 {
		t.Fatalf("alone and knows %v", m)
	}
	o := options("b")
	o.Gossip = later
	meet(t, a, start(t, o))
}

// A node that died is remembered, and dialed again where it was once, though
// nobody gossips about it.
func TestDeadMemberIsRememberedAndFoundAgain(t *testing.T) {
	a := start(t, options("a"))
	o := options("b", a.GossipAddr())
	o.Gossip, o.Peer = attunetest.FreeAddr(t), attunetest.FreeAddr(t)
	b := start(t, o)
	meet(t, a, b)
	b.Close()
	attunetest.Eventually(t, "a notices that b is dead", func() bool {
		m, ok := a.Member(o.ID)
		return ok && !m.Alive && m.Peer == b.PeerAddr()
	})
	o.Join = nil // a has to find it
	meet(t, a, start(t, o))
}

func TestReturnsWithAnotherIDAtTheSameAddress(t *testing.T) { testReturns(t, true, false) }
func TestReturnsWithAnotherIDAndAddress(t *testing.T)       { testReturns(t, false, false) }
func TestReturnsAfterLeaving(t *testing.T)                  { testReturns(t, false, true) }

func testReturns(t *testing.T, samePorts, leaves bool) {
	a, first := pair(t)
	c := start(t, options("c", a.GossipAddr()))
	meet(t, a, first, c)
	old := first.o.ID
	if !a.Send(old, Control, testKind, []byte("x")) {
		t.Fatal("cannot send to a member")
	}
	if leaves {
		if err := first.Leave(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	o := options("b", a.GossipAddr())
	if samePorts {
		o.Gossip, o.Peer = first.GossipAddr(), first.PeerAddr()
	}
	first.Close()
	second := start(t, o)
	meet(t, a, second, c)
	for _, n := range []*Cluster{a, c} {
		if m, ok := n.Member(old); ok {
			t.Errorf("the old id is still %+v", m)
		}
		if n.Send(old, Control, testKind, nil) {
			t.Error("sent to an id that is gone")
		}
		if got := len(n.Members()); got != 3 {
			t.Errorf("%d members", got)
		}
	}
	select {
	case err := <-second.Fatal():
		t.Errorf("took its former self for another node: %v", err)
	default:
	}
	a.linksMu.RLock()
	defer a.linksMu.RUnlock()
	if a.links[linkKey{old, Control}] != nil {
		t.Error("the link to the old id is still there")
	}
}

func TestYoungerOfTwoWithOneNameStops(t *testing.T) {
	a := start(t, options("a"))
	elder := start(t, options("b", a.GossipAddr()))
	meet(t, a, elder)
	for elder.age() < 5 {
		time.Sleep(time.Millisecond)
	}
	younger := start(t, options("b", a.GossipAddr()))
	err := receive(t, "the younger is told to stop", younger.Fatal())
	for _, want := range []string{`"b"`, elder.PeerAddr(), elder.GossipAddr(), "--name"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %s", err, want)
		}
	}
	select {
	case err := <-elder.Fatal():
		t.Errorf("the elder is told to stop too: %v", err)
	default:
	}
	if m, ok := a.Member(elder.o.ID); !ok || !m.Alive {
		t.Error("the elder was forgotten over it")
	}
}

func TestForeignClusterIsRefused(t *testing.T) {
	o, logs := logged(options("a"), zap.ErrorLevel)
	a := start(t, o)
	a.Belong(testCluster)
	b := start(t, options("b", a.GossipAddr()))
	b.Belong([16]byte{9})
	attunetest.Eventually(t, "a says that it refuses", func() bool { return said(logs, "never merged") })
	for _, c := range []*Cluster{a, b} {
		for _, m := range c.Members() { // b may have been met before it belonged anywhere
			if m.Alive && !m.Self {
				t.Errorf("%s accepted %v", c.o.Name, m)
			}
		}
	}
	for _, class := range []Class{Control, Log, Calls, Bulk} {
		_, kind, why := say(t, a, hello{class: class, cluster: Hash([16]byte{9}), from: b.o.ID, to: a.o.ID, name: "b", kind: "ordered"})
		if kind != kindRefused || !strings.Contains(string(why), "never merged") {
			t.Errorf("%v: %d %q", class, kind, why)
		}
	}
}

// Two that met before they had a cluster, and then got different ones.
func TestMemberThatStraysIsNotAliveAnyMore(t *testing.T) {
	a := start(t, options("a"))
	b := start(t, options("b", a.GossipAddr()))
	meet(t, a, b)
	a.HandleCall(testKind, func(context.Context, uint64, []byte) ([]byte, error) { return nil, nil })
	b.HandleCall(testKind, func(context.Context, uint64, []byte) ([]byte, error) { return nil, nil })
	if _, err := b.Call(within(t), a.o.ID, testKind, nil); err != nil {
		t.Fatal(err)
	}
	a.Belong(testCluster)
	attunetest.Eventually(t, "b hears of a's cluster", func() bool {
		m, _ := b.Member(a.o.ID)
		return m.Cluster == Hash(testCluster)
	})
	b.Belong([16]byte{9})
	for _, c := range []*Cluster{a, b} {
		attunetest.Eventually(t, c.o.Name+" does not count the other any more", func() bool {
			for _, m := range c.Members() {
				if !m.Self && m.Alive {
					return false
				}
			}
			return true
		})
	}
	attunetest.Eventually(t, "b cannot call a", func() bool {
		_, err := b.Call(within(t), a.o.ID, testKind, nil)
		return err != nil
	})
}

func TestOtherKindIsRefused(t *testing.T) {
	o, logs := logged(options("a"), zap.ErrorLevel)
	a := start(t, o)
	o = options("b", a.GossipAddr())
	o.Kind = "gossip"
	b := start(t, o)
	attunetest.Eventually(t, "a says that it refuses", func() bool { return said(logs, "never merged") })
	for _, c := range []*Cluster{a, b} {
		for _, m := range c.Members() { // b may have been met before it belonged anywhere
			if m.Alive && !m.Self {
				t.Errorf("%s accepted %v", c.o.Name, m)
			}
		}
	}
	_, kind, why := say(t, a, hello{class: Calls, from: b.o.ID, to: a.o.ID, name: "b", kind: "gossip"})
	if kind != kindRefused || !strings.Contains(string(why), "never merged") {
		t.Errorf("%d %q", kind, why)
	}
}

func TestSecondClusterIsFatal(t *testing.T) {
	a := start(t, options("a"))
	a.Belong(testCluster)
	a.Belong(testCluster)
	select {
	case err := <-a.Fatal():
		t.Fatal(err)
	default:
	}
	a.Belong([16]byte{9})
	receive(t, "a must stop", a.Fatal())
	if m, _ := a.Member(a.o.ID); m.Cluster != Hash(testCluster) {
		t.Error("changed its cluster")
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for what, spoil := range map[string]func(*Options){
		"name":           func(o *Options) { o.Name = "a b" },
		"id":             func(o *Options) { o.ID = 0 },
		"kind":           func(o *Options) { o.Kind = "" },
		"expecting":      func(o *Options) { o.Expect = 0 },
		"peer address":   func(o *Options) { o.Peer = taken.Addr().String() },
		"gossip address": func(o *Options) { o.Gossip = taken.Addr().String() },
		"too long":       func(o *Options) { o.Listen, o.Admin = strings.Repeat("l", 250), strings.Repeat("a", 250) },
		"at most 255":    func(o *Options) { o.Listen = strings.Repeat("l", 256) },
	} {
		o := options("a")
		spoil(&o)
		c, err := Open(o)
		if err == nil {
			c.Close()
			t.Errorf("opened in spite of its %s", what)
		} else if !strings.Contains(err.Error(), what) {
			t.Errorf("%q does not speak of %s", err, what)
		}
	}
}

func TestAdvertisedAddresses(t *testing.T) {
	o := options("a")
	o.Peer, o.Gossip, o.GossipAdvertise = ":0", "0.0.0.0:0", "127.0.0.1:0"
	a := start(t, o)
	host, port, _ := net.SplitHostPort(a.PeerAddr())
	if host != "127.0.0.1" || port == "0" {
		t.Errorf("peers are told %s", a.PeerAddr())
	}
	if !a.here(a.GossipAddr()) || !a.here(fmt.Sprintf("127.0.0.1:%d", a.bound.Port)) || a.here("127.0.0.1:1") {
		t.Error("does not know itself")
	}
	o = options("b", a.GossipAddr())
	o.PeerAdvertise = "b.example:0"
	b := start(t, o)
	meet(t, a, b)
	m, _ := a.Member(b.o.ID)
	if host, port, _ := net.SplitHostPort(m.Peer); host != "b.example" || port != fmt.Sprint(b.listener.Addr().(*net.TCPAddr).Port) {
		t.Errorf("peers are told %s", m.Peer)
	}
}

func FuzzMeta(f *testing.F) {
	full := meta{id: 7, cluster: 9, expect: 3, ready: true, kind: "ordered", peer: "h:1", listen: "h:2", admin: "h:3"}
	f.Add(full.append(nil))
	f.Add(append(full.append(nil), "of a later version"...))
	f.Add([]byte{metaVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		if again := m.append(nil); !bytes.Equal(again[2:], b[2:len(again)]) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
