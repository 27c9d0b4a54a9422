package attunetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Controller is one process of attune, which a test may mistreat.
type Controller struct {
	Name string
	// The addresses it is told to listen at; Advertise is what its peers are told,
	// and where the Network stands.
	Listen, Peer, Advertise, Gossip, Admin string
	Memcached                              *Memcached // its backend, or nil
	// Prefix is a program, and its arguments, that the next Start runs attune by.
	Prefix []string

	cluster *Cluster
	args    []string
	cmd     *exec.Cmd       // nil before the first Start
	exited  <-chan struct{} // closed when cmd has ended
	told    bool            // to end
	paused  bool
}

func (n *Controller) log() string { return filepath.Join(n.cluster.dir, n.Name+".log") }

func (n *Controller) ended() bool {
	if n.cmd == nil {
		return true
	}
	select {
	case <-n.exited:
		return true
	default:
		return false
	}
}

// Start starts the process, again or for the first time, with the same command
// line and what it has on disk. It does not wait until it is ready.
func (n *Controller) Start() {
	t := n.cluster.t
	t.Helper()
	if !n.ended() {
		t.Errorf("%s runs already", n.Name)
		return
	}
	log, err := os.OpenFile(n.log(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Error(err)
		return
	}
	defer log.Close() // the process has its own
	line := append(append([]string(nil), n.Prefix...), Binary(t))
	line = append(line, n.args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = cleanEnv()
	cmd.Stdout, cmd.Stderr = log, log
	fmt.Fprintf(log, "{\"msg\":\"started by the test\",\"at\":%q}\n", time.Now().Format(time.RFC3339Nano))
	exited, err := Launch(cmd)
	if err != nil {
		t.Errorf("start %s: %v", n.Name, err)
		return
	}
	n.cmd, n.exited, n.told, n.paused = cmd, exited, false, false
}

// Kill ends the process at once, paused or not, if it runs.
func (n *Controller) Kill() {
	n.blame()
	if n.ended() {
		return
	}
	n.told = true
	_ = n.cmd.Process.Kill() // it may have ended meanwhile
	<-n.exited
}

// Stop tells the process to end in order, waits until it has, and returns how long
// that took. One that does not is killed.
func (n *Controller) Stop() time.Duration {
	t := n.cluster.t
	t.Helper()
	n.blame()
	if n.ended() {
		return 0
	}
	n.told = true
	began := time.Now()
	_ = n.cmd.Process.Signal(syscall.SIGTERM) // it may have ended meanwhile
	select {
	case <-n.exited:
		if code := n.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("%s was told to stop, and ended with %v", n.Name, n.cmd.ProcessState)
		}
	case <-time.After(Patience):
		t.Errorf("%s was told to stop, and still runs after %v", n.Name, Patience)
		n.Kill()
	}
	return time.Since(began)
}

// Restart kills the process, starts it again and waits until it is ready.
func (n *Controller) Restart() bool {
	n.cluster.t.Helper()
	n.Kill()
	n.Start()
	return n.cluster.WaitReady(n)
}

// Ready returns why the controller is not ready, or nil.
func (n *Controller) Ready() error { return ready(n.Admin) }

// blame fails the test if the process ended without being told to.
func (n *Controller) blame() {
	if n.cmd != nil && n.ended() && !n.told {
		n.cluster.t.Errorf("%s ended by itself: %v", n.Name, n.cmd.ProcessState)
		n.told = true // once is enough
	}
}
