package testbed

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Controller is one process of attune, which may be mistreated. Its methods may be
// called on any goroutine, but not at the same time.
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

// Ended reports whether the process does not run.
func (n *Controller) Ended() bool {
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

// Pid is the number of the process that was started last.
func (n *Controller) Pid() int { return n.cmd.Process.Pid }

// Start starts the process, again or for the first time, with the same command
// line, followed by extra, and what it has on disk. It does not wait until it is
// ready.
func (n *Controller) Start(extra ...string) error {
	if !n.Ended() {
		return fmt.Errorf("%s runs already", n.Name)
	}
	log, err := os.OpenFile(n.log(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	line := append(append([]string(nil), n.Prefix...), n.cluster.binary)
	line = append(append(line, n.args...), extra...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = Environment()
	cmd.Stdout, cmd.Stderr = log, log
	fmt.Fprintf(log, "{\"msg\":\"started by the test\",\"at\":%q}\n", time.Now().Format(time.RFC3339Nano))
	exited, err := Launch(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	n.cmd, n.exited, n.told, n.paused = cmd, exited, false, false
	return nil
}

// Kill ends the process at once, paused or not, if it runs. The error is that it had
// ended before.
func (n *Controller) Kill() error {
	err := n.blame()
	if n.Ended() {
		return err
	}
	n.told = true
	_ = n.cmd.Process.Kill() // it may have ended meanwhile
	<-n.exited
	return err
}

// Stop tells the process to end in order, waits until it has, and returns how long
// that took. One that does not within [Patience] is killed.
func (n *Controller) Stop() (took time.Duration, err error) {
	if err := n.blame(); err != nil || n.Ended() {
		return 0, err
	}
	n.told = true
	began := time.Now()
	_ = n.cmd.Process.Signal(syscall.SIGTERM) // it may have ended meanwhile
	select {
	case <-n.exited:
		if code := n.cmd.ProcessState.ExitCode(); code != 0 {
			err = fmt.Errorf("%s was told to stop, and ended with %v", n.Name, n.cmd.ProcessState)
		}
	case <-time.After(Patience):
		err = errors.Join(fmt.Errorf("%s was told to stop, and still runs after %v", n.Name, Patience), n.Kill())
	}
	return time.Since(began), err
}

// Pause stops the process: it accepts, reads and sends nothing any more, but its
// machine does. It returns once every thread has stopped.
func (n *Controller) Pause() error {
	if n.Ended() {
		return fmt.Errorf("pause: %s does not run", n.Name)
	}
	if err := pause(n.cmd.Process); err != nil {
		return fmt.Errorf("pause %s: %w", n.Name, err)
	}
	n.paused = true
	return nil
}

// Resume lets it go on after Pause, with all it was sent meanwhile.
func (n *Controller) Resume() error {
	if n.Ended() {
		return fmt.Errorf("resume: %s does not run", n.Name)
	}
	n.paused = false
	return resume(n.cmd.Process)
}

// Ready returns why the controller is not ready, or nil.
func (n *Controller) Ready() error { return Ready(n.Admin) }

// Fault injects a fault, by the form that /fault of the admin address takes; nil ends
// all that there are. It takes --enable-faults.
func (n *Controller) Fault(form url.Values) error {
	method := http.MethodPost
	if form == nil {
		method = http.MethodDelete
	}
	body, status, err := httpDo(method, "http://"+n.Admin+"/fault", form)
	if err == nil && status != http.StatusOK {
		err = errors.New(strings.TrimSpace(body))
	}
	if err != nil {
		return fmt.Errorf("fault at %s: %w", n.Name, err)
	}
	return nil
}

// blame returns, once, that the process ended without being told to.
func (n *Controller) blame() error {
	if n.cmd == nil || !n.Ended() || n.told {
		return nil
	}
	n.told = true
	return fmt.Errorf("%s ended by itself: %v", n.Name, n.cmd.ProcessState)
}
