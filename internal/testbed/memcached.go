package testbed

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Memcached is a running memcached. Its methods may be called on any goroutine,
// but not at the same time.
type Memcached struct {
	Addr string // host:port, or the path of a unix socket

	path   string
	args   []string
	cmd    *exec.Cmd       // nil while killed
	exited <-chan struct{} // closed when cmd has ended
}

// FindMemcached returns the memcached to run: what the environment variable
// ATTUNE_TEST_MEMCACHED names, else the one installed.
func FindMemcached() (path string, err error) {
	path, err = exec.LookPath(cmp.Or(os.Getenv("ATTUNE_TEST_MEMCACHED"), "memcached"))
	if err != nil {
		return "", fmt.Errorf("install memcached (Debian: apt-get install memcached), or name one in ATTUNE_TEST_MEMCACHED: %w", err)
	}
	return path, nil
}

// StartMemcached starts the memcached at path with these arguments, at addr or, if
// that is empty, on a free loopback port, or on a unix socket if "-s", socket is
// among them. It returns once that serves; Kill it.
func StartMemcached(path, addr string, args ...string) (*Memcached, error) {
	m := &Memcached{Addr: addr, path: path, args: args}
	if os.Getuid() == 0 {
		// memcached wants the user said. It stays root: a process that becomes
		// another user is no longer told of the death of its parent.
		m.args = append([]string{"-u", "root"}, args...)
	}
	if addr != "" {
		return m, m.start()
	}
	socket := slices.Index(args, "-s") + 1
	var err error
	for range 5 { // a port may be taken meanwhile
		if socket > 0 {
			m.Addr = args[socket]
		} else if m.Addr, err = FreeAddr("127.0.0.1"); err != nil {
			return nil, err
		}
		if err = m.start(); err == nil {
			return m, nil
		}
	}
	return nil, err
}

// start runs the program at Addr and returns when it serves.
func (m *Memcached) start() error {
	args := m.args
	if m.network() == "tcp" {
		host, port, _ := net.SplitHostPort(m.Addr)
		args = append([]string{"-l", host, "-p", port, "-U", "0"}, args...)
	}
	cmd := exec.Command(m.path, args...)
	exited, err := Launch(cmd)
	if err != nil {
		return err
	}
	m.cmd, m.exited = cmd, exited
	for end := time.Now().Add(Patience); time.Now().Before(end); {
		if m.serves() {
			return nil
		}
		select {
		case <-exited:
			m.cmd = nil
			return fmt.Errorf("%v: %v", cmd, cmd.ProcessState)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return errors.Join(fmt.Errorf("%v: does not serve", cmd), m.Kill())
}

// serves asks for the process number: another memcached may have been faster to
// take the port.
func (m *Memcached) serves() bool {
	c, err := m.Dial()
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(c, "stats\r\n"); err != nil {
		return false
	}
	line, _ := bufio.NewReader(c).ReadString('\n')
	return line == fmt.Sprintf("STAT pid %d\r\n", m.cmd.Process.Pid)
}

func (m *Memcached) network() string {
	if strings.Contains(m.Addr, "/") {
		return "unix"
	}
	return "tcp"
}

// Kill ends the process, paused or not, if it runs.
func (m *Memcached) Kill() error {
	if m.cmd == nil {
		return nil
	}
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-m.exited
	m.cmd = nil
	return nil
}

// Start starts it again after Kill, at the same address and empty.
func (m *Memcached) Start() error {
	err := m.start()
	for tries := 0; err != nil && tries < 20; tries++ {
		time.Sleep(50 * time.Millisecond) // somebody's connection may have the port for a moment
		err = m.start()
	}
	return err
}

// Dial connects to it.
func (m *Memcached) Dial() (net.Conn, error) { return net.Dial(m.network(), m.Addr) }

// Pause stops the process: it accepts and reads nothing any more. It returns
// once every thread has stopped; the signal alone leaves them time for an answer
// or two.
func (m *Memcached) Pause() error {
	if m.cmd == nil {
		return errors.New("pause: memcached does not run")
	}
	return pause(m.cmd.Process)
}

// Resume lets it go on after Pause, with all it was sent meanwhile.
func (m *Memcached) Resume() error {
	if m.cmd == nil {
		return errors.New("resume: memcached does not run")
	}
	return resume(m.cmd.Process)
}
