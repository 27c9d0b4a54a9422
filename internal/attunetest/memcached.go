package attunetest

import (
	"net"
	"testing"

	"github.com/attunekv/attune/internal/testbed"
)

// Memcached is a running memcached. Its methods may be called on any goroutine,
// but not at the same time; but for Dial they report a failure and return.
type Memcached struct {
	*testbed.Memcached

	t testing.TB
}

// StartMemcached starts a memcached with these arguments on a free loopback
// port, or on a unix socket if "-s", path is among them. The test is skipped if
// there is none to start. The test's end kills it.
func StartMemcached(t testing.TB, args ...string) *Memcached {
	t.Helper()
	path, err := testbed.FindMemcached()
	if err != nil {
		t.Skip(err)
	}
	run, err := testbed.StartMemcached(path, "", args...)
	if err != nil {
		t.Fatal(err)
	}
	m := &Memcached{run, t}
	t.Cleanup(m.Kill)
	return m
}

func (m *Memcached) report(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Error(err)
	}
}

// Kill ends the process, paused or not, if it runs.
func (m *Memcached) Kill() { m.t.Helper(); m.report(m.Memcached.Kill()) }

// Start starts it again after Kill, at the same address and empty.
func (m *Memcached) Start() { m.t.Helper(); m.report(m.Memcached.Start()) }

// Pause stops the process: it accepts and reads nothing any more.
func (m *Memcached) Pause() { m.t.Helper(); m.report(m.Memcached.Pause()) }

// Resume lets it go on after Pause, with all it was sent meanwhile.
func (m *Memcached) Resume() { m.t.Helper(); m.report(m.Memcached.Resume()) }

// Dial connects to it until the test ends.
func (m *Memcached) Dial() net.Conn {
	m.t.Helper()
	c, err := m.Memcached.Dial()
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}
