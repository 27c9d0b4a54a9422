//go:build unix

package attunetest

import "syscall"

// Pause stops the process: it accepts and reads nothing any more. It returns
// once every thread has stopped; the signal alone leaves them time for an answer
// or two.
func (m *Memcached) Pause() {
	m.t.Helper()
	if !m.signal(syscall.SIGSTOP) {
		return
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(m.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		m.t.Errorf("memcached does not stop: %v, %v", status, err)
	}
}

// Resume lets it go on after Pause, with all it was sent meanwhile.
func (m *Memcached) Resume() {
	m.t.Helper()
	m.signal(syscall.SIGCONT)
}

func (m *Memcached) signal(sig syscall.Signal) (sent bool) {
	m.t.Helper()
	if m.cmd == nil {
		m.t.Errorf("%v: memcached does not run", sig)
		return false
	}
	if err := m.cmd.Process.Signal(sig); err != nil {
		m.t.Error(err)
		return false
	}
	return true
}
