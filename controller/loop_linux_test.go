package controller

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// parkedAlone is a loop that only moves when told, and its only connection, for which
// the engine owes an answer.
func parkedAlone(t *testing.T) (*loop, *loopConn) {
	n := start(t, testConfig())
	l := &loop{node: n, counts: &n.stripes[0]}
	var err, err2 error
	l.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	l.wakefd, err2 = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	low, err3 := unix.Eventfd(0, unix.EFD_CLOEXEC)
	// The kernel hands out the lowest number: a high one nobody gets when it is free again.
	fd, err4 := unix.FcntlInt(uintptr(low), unix.F_DUPFD_CLOEXEC, 512)
	if err := errors.Join(err, err2, err3, err4, unix.Close(low)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, fd := range []int{l.epfd, l.wakefd, fd} {
			unix.Close(fd)
		}
	})
	lc := &loopConn{fd: fd, s: newSession(n, l.counts), parked: true, onClose: func() {}}
	l.conns, l.live = make([]*loopConn, fd+1), 1
	l.conns[fd] = lc
	return l, lc
}

// TestLateAnswerFindsNobodyElse: the engine answers a connection that the end of a
// drain has closed, and whose descriptor is somebody else's by now.
func TestLateAnswerFindsNobodyElse(t *testing.T) {
	l, lc := parkedAlone(t)
	l.close(lc)
	if err := unix.Dup3(l.wakefd, lc.fd, unix.O_CLOEXEC); err != nil { // somebody else
		t.Fatal(err)
	}
	l.answered(lc)
	l.woken()
	if err := l.ctl(unix.EPOLL_CTL_ADD, lc.fd, unix.EPOLLIN); err != nil {
		t.Errorf("%v: the loop watches the descriptor already", err)
	}
}

// TestParkedIsNotWatched: epoll would tell again and again of what its client sent.
func TestParkedIsNotWatched(t *testing.T) {
	l, lc := parkedAlone(t)
	if !l.watch(lc, unix.EPOLLIN) {
		t.Fatal("closed")
	}
	l.handle(lc, unix.EPOLLIN)
	if err := l.ctl(unix.EPOLL_CTL_ADD, lc.fd, unix.EPOLLIN); err != nil {
		t.Errorf("%v: the loop watches it still", err)
	}
}
