//go:build unix

package main

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

// fault runs attune fault against p.
func (p *process) fault(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := run(t, "", append([]string{"fault", "--admin", p.admin}, args...)...)
	if code != 0 {
		t.Fatalf("attune fault %q: %s", args, errs)
	}
	return out
}

// does runs one command of the shell against p, and reports whether it prints want.
func (p *process) does(t *testing.T, want string, words ...string) bool {
	out, _, _ := run(t, "", append([]string{"cli", "-s", p.addr}, words...)...)
	return strings.TrimSpace(out) == want
}

// A leader that is cut off by a fault leads no more, the others go on, and it is with
// them again when the fault's time is up.
func TestFaultPartitionsALeader(t *testing.T) {
	cluster := three(t, "--consistency", "linearizable", "--enable-faults", "--op-timeout", "2s")
	named := make(map[string]*process)
	for i, p := range cluster {
		named[fmt.Sprintf("n%d", i+1)] = p
	}
	leader := func(p *process) string {
		out, _, _ := run(t, "", "show", "-s", p.addr)
		_, rest, _ := strings.Cut(out, "\nleader ")
		name, _, _ := strings.Cut(rest, ",")
		return name
	}
	first := ""
	attunetest.Eventually(t, "a leader", func() bool { first = leader(cluster[0]); return named[first] != nil })
	var others []string
	for name := range named {
		if name != first {
			others = append(others, name)
		}
	}
	old, other := named[first], named[others[0]]
	if out := old.fault(t, "partition", strings.Join(others, ","), "--for", "10s"); !strings.HasPrefix(out, "partition ") {
		t.Error(out)
	}
	attunetest.Eventually(t, "another leader", func() bool { now := leader(other); return now != first && named[now] != nil })
	attunetest.Eventually(t, "a write without the old one", func() bool { return other.does(t, "STORED", "set", "k", "new") })
	if out, _, _ := run(t, "", "show", "-s", old.addr); strings.Contains(old.get(t, "/metrics"), "\nattune_fault_active 1\n") && !strings.Contains(out, "FAULT injected at "+first+": partition ") {
		t.Errorf("nothing tells of the fault in\n%s", out)
	}
	attunetest.Eventually(t, "the end", func() bool { return strings.Contains(old.get(t, "/metrics"), "\nattune_fault_active 0\n") })
	attunetest.Eventually(t, "what was written, at the old leader", func() bool { return old.does(t, "new", "get", "k") })
	for _, said := range []string{"a fault was injected", "a fault that was injected is over"} {
		if !strings.Contains(old.logged(), said) {
			t.Errorf("the log lacks %q", said)
		}
	}
}

// At the level eventual both sides of a partition go on, and come to the same.
func TestFaultPartitionsReplicas(t *testing.T) {
	cluster := three(t, "--consistency", "eventual", "--enable-faults")
	attunetest.Eventually(t, "all know all", func() bool {
		out, _, _ := run(t, "", "show", "-s", cluster[0].addr)
		return strings.Count(out, " equal ") == 2
	})
	cluster[0].fault(t, "partition", "n2,n3", "--for", "1h")
	for i, p := range cluster[:2] {
		if !p.does(t, "STORED", "set", fmt.Sprintf("k%d", i), "v") || !p.does(t, "STORED", "set", "both", fmt.Sprint(i)) {
			t.Errorf("n%d does not take writes", i+1)
		}
	}
	attunetest.Eventually(t, "the others have it", func() bool { return cluster[2].does(t, "v", "get", "k1") })
	if cluster[0].does(t, "v", "get", "k1") || cluster[2].does(t, "v", "get", "k0") {
		t.Error("something came through the partition")
	}
	if out := cluster[0].fault(t, "list"); !strings.HasPrefix(out, "partition n2,n3, for another ") {
		t.Error(out)
	}
	if out := cluster[0].fault(t, "clear"); out != "no faults\n" {
		t.Error(out)
	}
	for i, p := range cluster {
		attunetest.Eventually(t, fmt.Sprintf("n%d has it all", i+1), func() bool {
			return p.does(t, "v", "get", "k0") && p.does(t, "v", "get", "k1") && p.does(t, "1", "get", "both")
		})
	}
}

// A paused controller answers nobody, and then all that it was asked.
func TestFaultPauses(t *testing.T) {
	cluster := three(t, "--consistency", "eventual", "--enable-faults")
	p := cluster[0]
	c := dial(t, "tcp", p.addr)
	c.send("mn\r\n")
	c.expect("MN\r\n")
	p.fault(t, "pause", "--for", "1h")
	c.send("mn\r\n")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)))
	n, err := c.Read(make([]byte, 10))
	if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
		t.Errorf("%d bytes, %v from a controller that is paused", n, err)
	}
	if got := p.get(t, "/readyz"); got != "ready\n" {
		t.Errorf("/readyz: %s", got)
	}
	p.fault(t, "clear")
	must(c.SetDeadline(time.Now().Add(patience)))
	c.expect("MN\r\n")
}

func TestFaultRefusals(t *testing.T) {
	plain := startServe(t)
	gossip := attunetest.FreeAddr(t)
	enabled := startServe(t, "--enable-faults", "--peer", "127.0.0.1:0", "--gossip", gossip, "--join", gossip)
	for _, c := range []struct {
		p    *process
		args string
		want string
	}{
		{plain, "pause --for 1s", "enable-faults=true"},
		{plain, "list", "enable-faults=true"},
		{enabled, "pause", `required flag(s) "for" not set`},
		{enabled, "pause --for 2h", "a fault lasts up to 1h0m0s"},
		{enabled, "drop n2 3% --for 1s", `no other controller is called "n2"`},
		{enabled, "delay n2 soon --for 1s", "delay: want a duration"},
		{enabled, "drop n2 half --for 1s", "percent: want"},
		{enabled, "clock sideways 1h --for 1s", "offset: want"},
		{enabled, "clock ahead 25h --for 1s", "up to 24h"},
	} {
		_, errs, code := run(t, "", append([]string{"fault", "--admin", c.p.admin}, strings.Fields(c.args)...)...)
		if code == 0 || !strings.Contains(errs, c.want) {
			t.Errorf("attune fault %s: exit %d, %s, want %q", c.args, code, errs, c.want)
		}
	}
}

// Where a log has the time, a wall clock that is off matters to unix times alone.
func TestFaultClock(t *testing.T) {
	cluster := three(t, "--consistency", "linearizable", "--enable-faults")
	p := cluster[0]
	attunetest.Eventually(t, "a write", func() bool { return p.does(t, "STORED", "set", "before", "v", "--ttl", "100") })
	c := dial(t, "tcp", p.addr)
	absolute := fmt.Sprintf("set k 0 %d 1\r\nv\r\nget k\r\n", time.Now().Unix()+100)
	c.send(absolute)
	c.expect("STORED\r\nVALUE k 0 1\r\nv\r\nEND\r\n")
	for _, one := range cluster { // whoever leads
		if out := one.fault(t, "clock", "ahead", "1h", "--for", "1h"); !strings.HasPrefix(out, "clock 1h0m0s ahead, for another ") {
			t.Error(out)
		}
	}
	c.send(absolute)
	c.expect("STORED\r\nEND\r\n")
	if !p.does(t, "STORED", "set", "after", "v", "--ttl", "100") {
		t.Error("a clock that plays no part keeps a write off")
	}
	time.Sleep(time.Second) // for what expires to do so
	for _, key := range []string{"before", "after"} {
		if !p.does(t, "v", "get", key) {
			t.Errorf("%s expired by a wall clock", key)
		}
	}
	out, _, _ := run(t, "", "show", "-s", p.addr)
	if !strings.Contains(out, "FAULT injected at n1: clock 1h0m0s ahead until ") || !strings.Contains(p.get(t, "/metrics"), "\nattune_fault_active 1\n") {
		t.Errorf("nothing tells of the fault in\n%s", out)
	}
	for _, one := range cluster {
		one.fault(t, "clear")
	}
	c.send(absolute)
	c.expect("STORED\r\nVALUE k 0 1\r\nv\r\nEND\r\n")
}
