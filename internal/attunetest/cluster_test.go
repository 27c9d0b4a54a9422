//go:build unix

package attunetest

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// This program is also the controller that the tests of this file start: it
// serves /readyz, and tells who leads as the file named after its --join says.
func init() {
	if len(os.Args) < 2 || os.Args[1] != "serve" {
		return
	}
	flags := make(map[string]string)
	for i := 2; i+1 < len(os.Args); i += 2 {
		flags[strings.TrimPrefix(os.Args[i], "--")] = os.Args[i+1]
	}
	switch os.Getenv("ATTUNETEST_FAKE") {
	case "no peers":
		fmt.Fprintln(os.Stderr, "attune: unknown flag: --peer; see attune serve --help")
		os.Exit(1)
	case "broken":
		fmt.Fprintln(os.Stderr, `{"msg":"unknown flag: consistency: none"}`)
		os.Exit(1)
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go func() {
		<-told
		os.Exit(0)
	}()
	l, err := net.Listen("tcp", flags["listen"])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		_ = http.ListenAndServe(flags["admin"], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})) // ends with the process
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		line, _ := bufio.NewReader(c).ReadString('\n')
		switch strings.TrimSpace(line) {
		case "stats attune":
			leader, _ := os.ReadFile(os.Getenv("ATTUNETEST_LEADER"))
			fmt.Fprintf(c, "STAT leader %s\r\nSTAT term 3\r\nEND\r\n", leader)
		case "panic":
			go panic("asked to")
		case "end":
			os.Exit(0)
		}
		c.Close()
	}
}

// asFake has Binary be this program for the time of a test.
func asFake(t *testing.T) {
	reset := func() {
		built.once, built.path, built.err = sync.Once{}, "", nil
	}
	reset()
	t.Cleanup(reset)
	t.Setenv("ATTUNE_TEST_BINARY", os.Args[0])
	t.Setenv("ATTUNETEST_LEADER", filepath.Join(t.TempDir(), "leader"))
}

func lead(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(os.Getenv("ATTUNETEST_LEADER"), []byte(name), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestClusterMistreated(t *testing.T) {
	asFake(t)
	lead(t, "n1")
	c := StartCluster(t, ClusterOptions{Level: "linearizable", Durable: true})
	if got := c.Names("n2"); !slices.Equal(got, []string{"n1", "n3"}) {
		t.Error(got)
	}
	n1, n2 := c.Node("n1"), c.Node("n2")
	if c.WaitLeader() != n1 {
		t.Error("n1 leads, by all accounts")
	}

	n1.Pause()
	if err := n1.Ready(); err == nil {
		t.Error("paused, it answers")
	}
	if c.Leader() != nil {
		t.Error("one that is paused leads")
	}
	lead(t, "n2")
	if c.WaitLeader() != n2 {
		t.Error("n2 leads, by all accounts")
	}
	n1.Resume()
	Eventually(t, "it is ready again", func() bool { return n1.Ready() == nil })

	pid := n1.Pid()
	n1.Pause()
	n1.Kill()
	n1.Kill() // once is enough
	if n1.Ready() == nil {
		t.Error("killed, it answers")
	}
	if !n1.Restart() || n1.Pid() == pid {
		t.Error("it is not started again")
	}
	if took := n1.Stop(); took > Patience/2 {
		t.Errorf("to stop took it %v", took)
	}
	n1.Start()
	if !c.WaitReady(c.Nodes...) {
		t.Error("not all are ready")
	}
	if dir := c.Dir(); dir == "" {
		t.Error("no directory")
	}
}

// judge is a test that takes note of its failure.
type judge struct {
	testing.TB
	mu     sync.Mutex
	errors []string
	last   []func()
}

func (j *judge) note(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.errors = append(j.errors, s)
}
func (j *judge) Errorf(format string, args ...any) { j.note(fmt.Sprintf(format, args...)) }
func (j *judge) Error(args ...any)                 { j.note(fmt.Sprint(args...)) }
func (j *judge) Failed() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.errors) > 0
}
func (j *judge) Cleanup(f func()) { j.last = append(j.last, f) }
func (j *judge) end() {
	for _, f := range slices.Backward(j.last) {
		f()
	}
}

// A controller that ends though nobody told it to, or panics, fails the test, and
// its data and logs are kept.
func TestClusterFailures(t *testing.T) {
	asFake(t)
	lead(t, "n1")
	for word, want := range map[string]string{"end": "n2 ended by itself", "panic": "n2: panic: asked to", "": ""} {
		j := &judge{TB: t}
		c := StartCluster(j, ClusterOptions{Level: "linearizable"})
		n := c.Node("n2")
		if word != "" {
			conn, err := net.Dial("tcp", n.Listen)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(conn, word)
			Eventually(t, "it ends", n.Ended)
			conn.Close()
		}
		j.end()
		if got := strings.Join(j.errors, "\n"); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%q: want %q, have %q", word, want, got)
		}
		_, err := os.Stat(c.Dir())
		if kept := err == nil; kept != (want != "") {
			t.Errorf("%q: the directory is kept: %v", word, kept)
		}
		_ = os.RemoveAll(c.Dir()) // the system clears its directory for temporary files
	}
}

// A controller dies with the test, however that ends: the child is this test, run
// by itself and killed.
func TestClusterDiesWithTheTest(t *testing.T) {
	if os.Getenv("ATTUNETEST_CHILD") != "" {
		asFake(t)
		c := StartCluster(t, ClusterOptions{Nodes: 1, Level: "linearizable"})
		fmt.Println("at " + c.Nodes[0].Listen)
		time.Sleep(Patience)
		return
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a process of its parent's death")
	}
	addr := killedChild(t)
	Eventually(t, "the controller is gone", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}
