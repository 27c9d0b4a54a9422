//go:build unix

package attunetest

import "syscall"

// Pause stops the process: it accepts, reads and sends nothing any more, but its
// machine does. It returns once every thread has stopped.
func (n *Controller) Pause() {
	n.cluster.t.Helper()
	if !n.signal(syscall.SIGSTOP) {
		return
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(n.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		n.cluster.t.Errorf("%s does not stop: %v, %v", n.Name, status, err)
	}
	n.paused = true
}

// Resume lets it go on after Pause, with all it was sent meanwhile.
func (n *Controller) Resume() {
	n.cluster.t.Helper()
	n.signal(syscall.SIGCONT)
	n.paused = false
}

func (n *Controller) signal(sig syscall.Signal) (sent bool) {
	n.cluster.t.Helper()
	if n.ended() {
		n.cluster.t.Errorf("%v: %s does not run", sig, n.Name)
		return false
	}
	if err := n.cmd.Process.Signal(sig); err != nil {
		n.cluster.t.Error(err)
		return false
	}
	return true
}
