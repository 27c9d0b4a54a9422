package faults

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
	"github.com/attunekv/attune/internal/testbed"
)

// inside is set in the environment of a test that runs in a network of its own.
const inside = "ATTUNE_FAULTS_INSIDE"

// ownNetwork runs the test once more, in a process that has a network of its own,
// and reports how that ended; in that process it returns true. All that is built
// there, bridge, namespaces and links, has no name outside and ends with the
// processes.
func ownNetwork(t *testing.T, env ...string) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	for _, program := range []string{"ip", "unshare", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("install iproute2 and util-linux: ", err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("only root can make networks")
	}
	if out, err := exec.Command("unshare", "-n", "ip", "link", "add", "br0", "type", "bridge").CombinedOutput(); err != nil {
		t.Skipf("no networks can be made here: %v\n%s", err, out)
	}
	cmd := exec.Command("unshare", "-n", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), inside+"=1"), env...)
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	exited, err := testbed.Launch(cmd)
	if err != nil {
		t.Fatal(err)
	}
	<-exited
	text, _ := os.ReadFile(out.Name())
	if !cmd.ProcessState.Success() {
		t.Fatalf("%v\n%s", cmd.ProcessState, text)
	}
	if !strings.Contains(string(text), "--- PASS: "+t.Name()) {
		t.Fatalf("it did not run:\n%s", text)
	}
	t.Logf("%s", text)
	return false
}

// wires is a bridge with a machine on each port.
type wires struct {
	t       *testing.T
	holders []int // process ids that keep the namespaces
}

const subnet = "10.99.0."

func newWires(t *testing.T, machines int) *wires {
	t.Helper()
	w := &wires{t: t}
	w.ip("link", "set", "lo", "up")
	w.ip("link", "add", "br0", "type", "bridge")
	w.ip("addr", "add", subnet+"254/24", "dev", "br0")
	w.ip("link", "set", "br0", "up")
	for i := range machines {
		cmd := exec.Command("unshare", "-n", "sleep", "infinity")
		exited, err := testbed.Launch(cmd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it never ends by itself
			<-exited
		})
		pid := cmd.Process.Pid
		w.holders = append(w.holders, pid)
		own, _ := os.Readlink("/proc/self/ns/net")
		attunetest.Eventually(t, "the namespace is there", func() bool {
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
			return err == nil && ns != own
		})
		port := fmt.Sprintf("port%d", pid) // those of an earlier cluster may linger
		w.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(pid))
		w.ip("link", "set", port, "master", "br0", "up")
		w.in(i, "ip", "link", "set", "lo", "up")
		w.in(i, "ip", "addr", "add", w.addr(i)+"/24", "dev", "eth0")
		w.in(i, "ip", "link", "set", "eth0", "up")
	}
	return w
}

func (w *wires) addr(i int) string { return subnet + fmt.Sprint(i+1) }

// enter is what runs a program on a machine.
func (w *wires) enter(i int) []string {
	return []string{"nsenter", "-t", fmt.Sprint(w.holders[i]), "-n"}
}

func (w *wires) ip(args ...string) { w.must(exec.Command("ip", args...)) }

func (w *wires) in(i int, args ...string) {
	line := append(w.enter(i), args...)
	w.must(exec.Command(line[0], line[1:]...))
}

func (w *wires) must(cmd *exec.Cmd) {
	w.t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

// cut has what machine i sends to machine j go to a hardware address that nobody
// has: it is lost, and nobody is told.
func (w *wires) cut(i, j int) {
	w.in(i, "ip", "neigh", "replace", w.addr(j), "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent")
}

func (w *wires) heal(i, j int) { w.in(i, "ip", "neigh", "del", w.addr(j), "dev", "eth0") }

// The wires themselves: a cut is one machine's, in one direction, and silent.
func TestWires(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	const hub = 253 // the bridge's end, by the numbers of addr
	w := newWires(t, 2)
	l, err := net.Listen("tcp", w.addr(hub)+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	reaches := func(i int) bool {
		line := append(w.enter(i), "timeout", "1", "bash", "-c", "</dev/tcp/"+w.addr(hub)+"/"+port)
		return exec.Command(line[0], line[1:]...).Run() == nil
	}
	attunetest.Eventually(t, "both reach the hub", func() bool { return reaches(0) && reaches(1) })
	w.cut(0, hub)
	if reaches(0) {
		t.Error("it reaches the hub though it is cut off")
	}
	if !reaches(1) {
		t.Error("another is cut off too")
	}
	w.heal(0, hub)
	attunetest.Eventually(t, "it reaches the hub again", func() bool { return reaches(0) })
}

// A minority is cut off, with everything it says, for longer than the membership
// remembers the dead (30 s). Both sides must find each other again by themselves.
func TestRow08PartitionedLongerThanGossipRemembers(t *testing.T) {
	onlyLong(t)
	if !ownNetwork(t, "ATTUNE_TEST_BINARY="+attunetest.Binary(t)) {
		return
	}
	for _, level := range []string{linearizable, sequential} {
		t.Run(level, func(t *testing.T) {
			ownWires(t, level, 3)
		})
	}
	t.Run("3 of 5", func(t *testing.T) { ownWires(t, linearizable, 5) })
}

func ownWires(t *testing.T, level string, nodes int) {
	w := newWires(t, nodes)
	defer w.ip("link", "del", "br0")
	run(t, scenario{
		ClusterOptions: attunetest.ClusterOptions{
			Level: level, Nodes: nodes,
			Host: func(i int) (string, []string) { return w.addr(i), w.enter(i) },
		},
		workload: history.Mixed,
		outage:   outage,
		pause:    20 * time.Millisecond, // a minute of it
		faults: func(s *stage) {
			leader := s.WaitLeader()
			if leader == nil {
				return
			}
			minority := append([]*attunetest.Controller{leader}, s.Others(leader)[:(nodes-1)/2-1]...)
			both := func(f func(i, j int)) {
				for i, a := range s.Nodes {
					for j, b := range s.Nodes {
						if i != j && slices.Contains(minority, a) != slices.Contains(minority, b) {
							f(i, j)
						}
					}
				}
			}
			both(w.cut)
			parted(s, level, minority, s.Others(minority...))
			pause(s.t, 60*time.Second)
			parted(s, level, minority, s.Others(minority...))
			both(w.heal)
			s.WaitReady(s.Nodes...)
			if s.WaitLeader() == nil {
				return
			}
			for _, n := range minority {
				if out := s.do(n, get("parted")); out.Value != "parted.1;" {
					s.t.Errorf("%s is back, and has %v", n.Name, out)
				}
			}
		},
	})
}

// A minority is cut off, with everything it says, for longer than the membership
// remembers the dead (30 s). Both sides take each other for dead and go on, and
// find each other again by themselves.
func TestRow08ApartLongerThanGossipRemembers(t *testing.T) {
	onlyLong(t)
	if !ownNetwork(t, "ATTUNE_TEST_BINARY="+attunetest.Binary(t)) {
		return
	}
	for _, level := range []string{causal, eventual} {
		t.Run(level, func(t *testing.T) { wiresApart(t, level, 3) })
	}
	t.Run("2 of 5", func(t *testing.T) { wiresApart(t, causal, 5) })
}

func wiresApart(t *testing.T, level string, nodes int) {
	w := newWires(t, nodes)
	defer w.ip("link", "del", "br0")
	run(t, scenario{
		ClusterOptions: attunetest.ClusterOptions{
			Level: level, Nodes: nodes,
			Host: func(i int) (string, []string) { return w.addr(i), w.enter(i) },
		},
		workload: history.Mixed, // on both sides there are homes
		pause:    20 * time.Millisecond,
		faults: func(s *stage) {
			minority := (nodes - 1) / 2
			both := func(f func(i, j int)) {
				for i := range nodes {
					for j := range nodes {
						if (i < minority) != (j < minority) {
							f(i, j)
						}
					}
				}
			}
			both(w.cut)
			// The clients would not do: who waits for a home beyond the cut goes elsewhere.
			longest := time.Duration(0)
			for end := time.Now().Add(60 * time.Second); time.Now().Before(end); pause(s.t, 100*time.Millisecond) {
				for _, n := range s.Nodes {
					began := time.Now()
					if out := ask(n, set("alone-"+n.Name, "alone.1;")); out.Status != history.Stored {
						s.t.Errorf("%s does not write: %v", n.Name, out)
					}
					longest = max(longest, time.Since(began))
				}
			}
			s.t.Logf("a set took %v at most", longest.Round(time.Millisecond))
			if longest > busy {
				s.t.Errorf("that is more than %v", busy)
			}
			for _, n := range s.Nodes {
				op := history.Op{Kind: history.Add, Key: "apart-" + n.Name, Value: n.Name + ".1;"}
				if out := s.do(n, op); out.Status != history.Stored {
					s.t.Errorf("%s decides alone: %v", n.Name, out)
				}
			}
			both(w.heal)
			began := time.Now()
			for _, n := range s.Nodes {
				for _, other := range s.Nodes {
					attunetest.Eventually(s.t, n.Name+" hears of "+other.Name, func() bool {
						return ask(n, get("apart-"+other.Name)).Status == history.Hit
					})
				}
			}
			s.t.Logf("after %v they have found each other", time.Since(began).Round(time.Millisecond))
		},
	})
}
