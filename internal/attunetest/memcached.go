package attunetest

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// Memcached is a running memcached. Its methods may be called on any goroutine,
// but not at the same time; but for Dial they report a failure and return.
type Memcached struct {
	Addr string // host:port, or the path of a unix socket

	t      testing.TB
	path   string
	args   []string
	cmd    *exec.Cmd     // nil while killed
	exited chan struct{} // closed when cmd has ended
}

// FindMemcached returns the memcached that tests run: what the environment
// variable ATTUNE_TEST_MEMCACHED names, else the one installed.
func FindMemcached() (path string, err error) {
	return exec.LookPath(cmp.Or(os.Getenv("ATTUNE_TEST_MEMCACHED"), "memcached"))
}

// StartMemcached starts a memcached with these arguments on a free loopback
// port, or on a unix socket if "-s", path is among them. The test is skipped if
// there is none to start. The test's end kills it.
func StartMemcached(t testing.TB, args ...string) *Memcached {
	t.Helper()
	path, err := FindMemcached()
	if err != nil {
		t.Skip("install the Debian package memcached, or name one in ATTUNE_TEST_MEMCACHED:", err)
	}
	m := &Memcached{t: t, path: path, args: args}
	if os.Getuid() == 0 {
		// memcached wants the user said. It stays root: a process that becomes
		// another user is no longer told of the death of its parent.
		m.args = append([]string{"-u", "root"}, args...)
	}
	t.Cleanup(m.Kill)
	socket := slices.Index(args, "-s") + 1
	for range 5 { // a port may be taken meanwhile
		if socket > 0 {
			m.Addr = args[socket]
		} else {
			m.Addr = FreeAddr(t)
		}
		if err = m.start(); err == nil {
			return m
		}
	}
	t.Fatal(err)
	return nil
}

// start runs the program at Addr and returns when it serves.
func (m *Memcached) start() error {
	args := m.args
	if m.network() == "tcp" {
		host, port, _ := net.SplitHostPort(m.Addr)
		args = append([]string{"-l", host, "-p", port, "-U", "0"}, args...)
	}
	cmd, started, exited := exec.Command(m.path, args...), make(chan error), make(chan struct{})
	dieTogether(cmd)
	go func() {
		defer close(exited)
		// To Linux the parent is a thread: this one is kept as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is killed
		}
	}()
	if err := <-started; err != nil {
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
	m.Kill()
	return fmt.Errorf("%v: does not serve", cmd)
}

// serves asks for the process number: another memcached may have been faster to
// take the port.
func (m *Memcached) serves() bool {
	c, err := net.Dial(m.network(), m.Addr)
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
func (m *Memcached) Kill() {
	if m.cmd == nil {
		return
	}
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.t.Error(err)
		return
	}
	<-m.exited
	m.cmd = nil
}

// Start starts it again after Kill, at the same address and empty.
func (m *Memcached) Start() {
	m.t.Helper()
	err := m.start()
	for tries := 0; err != nil && tries < 20; tries++ {
		time.Sleep(50 * time.Millisecond) // somebody's connection may have the port for a moment
		err = m.start()
	}
	if err != nil {
		m.t.Error(err)
	}
}

// Dial connects to it until the test ends.
func (m *Memcached) Dial() net.Conn {
	m.t.Helper()
	c, err := net.Dial(m.network(), m.Addr)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}
