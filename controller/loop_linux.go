package controller

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attunekv/attune/internal/rawio"
)

// loopStint is how long a loop works before it lets others have the thread.
const loopStint = 500 * time.Microsecond

// loop serves many connections on one goroutine: it waits in epoll, and reads,
// executes and answers in place. Against a goroutine per connection this saves
// a hand-off per request, about a quarter of its cost when requests come one by
// one. It is right because no call of a session waits for anything but a lock.
//
// A connection whose engine answers later is parked: nothing is done with it
// until the engine calls Done, which puts it on a list that the loop works off
// in its next turn.
//
// A connection whose client does not read is not read from either, so it holds
// at most one highWater of replies.
type loop struct {
	node   *Node
	counts *counters
	epfd   int
	poll   *os.File        // epfd, as Go's own poller knows it
	ready  syscall.RawConn // of poll
	events []unix.EpollEvent
	found  int       // of events, in the last turn
	due    time.Time // when ready is to give up; never if zero
	rests  bool      // nothing was found at first, or others were let in
	rested time.Time // when that was so last
	wakefd int
	conns  []*loopConn   // by descriptor
	live   int           // connections, those detached included
	done   chan struct{} // closed when run has returned
	now    time.Time     // when the current turn began
	told   []*loopConn   // answered in this turn: their tallies are due
	spare  []*loopConn   // becomes answers

	mu      sync.Mutex
	inbox   []*loopConn // to be (re)attached; guarded by mu
	answers []*loopConn // whose engine has answered; guarded by mu
	closed  bool        // run has ended, nothing may be added; guarded by mu
}

type loopConn struct {
	fd      int
	s       *session
	unsent  [][]byte // replies the socket did not take; nothing is read meanwhile
	after   want     // what the session wanted when they were written
	active  time.Time
	since   time.Time // when what is being worked on came
	watched bool      // epoll knows of fd
	parked  bool      // the engine owes an answer, and the session is not to be touched
	gone    bool      // detached and its stream failed
	info    *connInfo
	onClose func()
}

// newLoops starts the event loops. With an error it returns those that it had
// started by then.
func newLoops(n *Node) ([]*loop, error) {
	var loops []*loop
	for i := range n.cfg.threads() {
		l := &loop{
			node: n, counts: &n.stripes[i%len(n.stripes)], epfd: -1, wakefd: -1,
			events: make([]unix.EpollEvent, 256), done: make(chan struct{}),
		}
		var err error
		if l.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err == nil {
			if l.wakefd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
				err = l.ctl(unix.EPOLL_CTL_ADD, l.wakefd, unix.EPOLLIN)
			}
		}
		if err == nil {
			err = l.adopt()
		}
		if err != nil {
			unix.Close(l.wakefd)
			unix.Close(l.epfd)
			return loops, os.NewSyscallError("epoll", err)
		}
		loops = append(loops, l)
		go l.run()
	}
	return loops, nil
}

// adopt gives epfd to Go's poller, which takes it for one more descriptor that may
// become readable. So a loop without work is a goroutine that waits, and its thread
// goes on with another. In epoll_wait it would block a thread, and others would wait
// until the scheduler notices: with a cluster's other goroutines beside it, that cost
// more than the calls it saves.
func (l *loop) adopt() (err error) {
	if err := unix.SetNonblock(l.epfd, true); err != nil { // else os takes it for a file
		return err
	}
	l.poll = os.NewFile(uintptr(l.epfd), "epoll")
	if l.ready, err = l.poll.SyscallConn(); err == nil {
		err = l.poll.SetReadDeadline(time.Time{}) // fails if there was no room in the poller
	}
	if err != nil {
		l.poll.Close()
		l.epfd = -1
	}
	return err
}

func (l *loop) ctl(op, fd int, events uint32) error {
	return unix.EpollCtl(l.epfd, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// add takes a connection over from package net. onClose is called once, when
// it is closed.
func (l *loop) add(c net.Conn, info *connInfo, onClose func()) error {
	defer c.Close() // the duplicate lives on
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	fd := -1
	if cerr := raw.Control(func(h uintptr) {
		fd, err = unix.FcntlInt(h, unix.F_DUPFD_CLOEXEC, 0)
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	lc := &loopConn{fd: fd, s: newSession(l.node, l.counts), active: time.Now(), info: info, onClose: onClose}
	lc.s.local = c.LocalAddr().String()
	lc.s.call.Done = func() { l.answered(lc) }
	if !l.post(lc) {
		unix.Close(fd)
		return net.ErrClosed
	}
	return nil
}

// post hands a connection to the loop. It reports false if the loop has ended.
func (l *loop) post(lc *loopConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.inbox = append(l.inbox, lc)
	l.wakeLocked()
	return true
}

// answered is the Done of lc's session: it has the loop go on with it. The
// engine may get there before its call has returned to the loop, and after the
// loop gave up waiting for it.
func (l *loop) answered(lc *loopConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.answers = append(l.answers, lc)
	if len(l.answers) == 1 { // else the loop was woken, and has not looked yet
		l.wakeLocked()
	}
}

// wake makes the loop take a turn, unless it has ended.
func (l *loop) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Once ended, wakefd is closed, and its number may be somebody else's.
	if !l.closed {
		l.wakeLocked()
	}
}

func (l *loop) wakeLocked() {
	one := [8]byte{1}
	rawio.Write(l.wakefd, one[:])
}

func (l *loop) run() {
	defer close(l.done)
	poll := func(fd uintptr) bool {
		if !l.rests && l.now.Sub(l.rested) > loopStint {
			// Who finds nothing to run asks Go's poller, and no thread does while its
			// loop has work: what peers sent would wait for 10 ms. So the loop goes to
			// sleep, and has made sure that it is woken.
			l.rests = true
			l.wake()
			return false
		}
		var errno syscall.Errno
		if l.found, errno = rawio.Poll(int(fd), l.events); errno != 0 {
			panic("epoll_wait: " + errno.Error()) // only a bug here can cause it
		}
		l.rests = l.rests || l.found == 0
		return l.found > 0
	}
	lastSweep := time.Now()
	for {
		l.limit()
		l.found, l.rests = 0, false
		if err := l.ready.Read(poll); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			panic("waiting in epoll: " + err.Error()) // likewise
		}
		l.node.stalled()
		if l.now = time.Now(); l.rests {
			l.rested = l.now
		}
		for _, ev := range l.events[:l.found] {
			if int(ev.Fd) == l.wakefd {
				l.woken()
				continue
			}
			if lc := l.conns[ev.Fd]; lc != nil {
				l.handle(lc, ev.Events)
			}
		}
		l.count()
		if l.now.Sub(lastSweep) > 100*time.Millisecond || l.node.draining.Load() {
			lastSweep = l.now
			if l.sweep() {
				return
			}
			l.count()
		}
	}
}

// limit has the loop take a turn now and then, if there is something to sweep.
func (l *loop) limit() {
	switch {
	case l.node.inUse().IdleTimeout > 0 || l.node.draining.Load():
		if now := time.Now(); l.due.Sub(now) < 100*time.Millisecond {
			l.due = now.Add(200 * time.Millisecond)
			_ = l.poll.SetReadDeadline(l.due) // it was adopted
		}
	case !l.due.IsZero():
		l.due = time.Time{}
		_ = l.poll.SetReadDeadline(l.due)
	}
}

// count tells the counters what the sessions answered in this turn, as if all
// had been answered now: one reading of the clock serves them all, and is right
// for the last of them.
func (l *loop) count() {
	if len(l.told) == 0 {
		return
	}
	now := time.Now()
	for i, lc := range l.told {
		lc.s.tally.flush(l.counts, now.Sub(lc.since))
		l.told[i] = nil
	}
	l.told = l.told[:0]
}

// woken attaches what is in the inbox, and goes on with whom the engine answered.
func (l *loop) woken() {
	var b [8]byte
	rawio.Read(l.wakefd, b[:])
	l.mu.Lock()
	inbox, answers := l.inbox, l.answers
	l.inbox, l.answers = nil, l.spare[:0]
	l.mu.Unlock()
	for _, lc := range inbox {
		for len(l.conns) <= lc.fd {
			l.conns = append(l.conns, nil)
		}
		l.conns[lc.fd] = lc
		lc.active, lc.since = l.now, l.now
		if lc.after != wantDetach {
			l.live++
		}
		if lc.gone {
			l.close(lc)
		} else if l.watch(lc, unix.EPOLLIN) && lc.after == wantDetach {
			l.pump(lc) // a stream ended: go on with what was buffered behind it
		}
	}
	for i, lc := range answers {
		answers[i] = nil
		if lc.parked { // else it was closed meanwhile
			lc.parked = false
			lc.active = l.now
			l.pump(lc)
		}
	}
	l.spare = answers
}

// sweep closes connections that were idle too long or, during a drain, that are
// owed nothing. It reports whether the loop is over.
func (l *loop) sweep() (over bool) {
	draining := l.node.draining.Load()
	idle := l.node.inUse().IdleTimeout
	if !draining && idle == 0 {
		return false
	}
	expired := draining && l.now.After(l.node.drainDeadline())
	for _, lc := range l.conns {
		switch {
		case lc == nil:
		case expired:
			l.close(lc)
		case lc.parked: // it is the engine that is slow, and that has a deadline
		case idle > 0 && l.now.Sub(lc.active) > idle:
			l.close(lc)
		case !draining || !lc.s.idle():
		case !lc.s.leaving:
			// What already reached the socket is still answered.
			if l.read(lc) && lc.s.idle() {
				lc.s.leave(time.Now()) // l.now may be long ago by now
			}
		case l.now.After(lc.s.until):
			// What came meanwhile is refused: this loop may not have run for a while.
			if l.read(lc) && lc.s.idle() {
				l.close(lc)
			}
		}
	}
	if !draining {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live > 0 || len(l.inbox) > 0 {
		return false
	}
	l.closed = true
	l.poll.Close()
	unix.Close(l.wakefd)
	return true
}

// handle moves one connection on.
func (l *loop) handle(lc *loopConn, events uint32) {
	if lc.parked {
		// The client sent more, or left. It is read when the session can take it;
		// until then, epoll would report it again and again.
		l.unwatch(lc)
		return
	}
	lc.active = l.now
	lc.info.active.Store(l.now.Unix())
	if lc.unsent != nil {
		if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			l.resume(lc)
		}
		return
	}
	l.read(lc)
}

// read takes what the socket holds, once, and answers it. It reports whether
// the connection lives.
func (l *loop) read(lc *loopConn) bool {
	buf := lc.s.space()
	n, errno := rawio.Read(lc.fd, buf)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		lc.s.release()
		return true
	case n <= 0:
		l.close(lc)
		return false
	}
	lc.since = l.now
	lc.s.received(n)
	lc.s.tally.add(bytesRead, n)
	return l.pump(lc)
}

// watch has epoll report events of a connection from now on. It reports whether
// the connection lives.
func (l *loop) watch(lc *loopConn, events uint32) bool {
	op := unix.EPOLL_CTL_MOD
	if !lc.watched {
		op = unix.EPOLL_CTL_ADD
	}
	if err := l.ctl(op, lc.fd, events); err != nil { // the system has no room for it
		l.close(lc)
		return false
	}
	lc.watched = true
	return true
}

func (l *loop) unwatch(lc *loopConn) {
	if lc.watched {
		l.ctl(unix.EPOLL_CTL_DEL, lc.fd, 0)
		lc.watched = false
	}
}

// pump steps the session until it wants input, or the engine or the client keeps
// it waiting. It reports whether the connection lives.
func (l *loop) pump(lc *loopConn) bool {
	for {
		if lc.after = lc.s.step(l.now); lc.after == wantAnswer {
			// What is gathered goes out with what follows: one write for both.
			lc.parked = true
			return true
		}
		if lc.s.out.size > 0 {
			lc.unsent = lc.s.out.take()
			if !l.send(lc) {
				return false
			}
			if lc.unsent != nil {
				return l.watch(lc, unix.EPOLLOUT)
			}
		}
		switch lc.after {
		case wantInput:
			l.told = append(l.told, lc)
			lc.s.release()
			return lc.watched || l.watch(lc, unix.EPOLLIN)
		case wantClose:
			l.close(lc)
			return false
		case wantDetach:
			l.detach(lc)
			return false
		}
	}
}

// resume writes what the socket did not take before.
func (l *loop) resume(lc *loopConn) {
	if !l.send(lc) || lc.unsent != nil {
		return
	}
	lc.since = l.now
	if !l.watch(lc, unix.EPOLLIN) {
		return
	}
	switch lc.after {
	case wantClose:
		l.close(lc)
	case wantDetach:
		l.detach(lc)
	default:
		l.pump(lc)
	}
}

// send writes lc.unsent as far as the socket takes it, and leaves the rest
// there. It reports whether the connection lives.
func (l *loop) send(lc *loopConn) bool {
	for len(lc.unsent) > 0 {
		var n int
		var errno syscall.Errno
		if len(lc.unsent) == 1 {
			n, errno = rawio.Write(lc.fd, lc.unsent[0])
		} else {
			var err error
			n, err = unix.Writev(lc.fd, lc.unsent[:min(len(lc.unsent), 64)])
			errno, _ = err.(syscall.Errno)
		}
		if errno == unix.EINTR {
			continue
		}
		if errno == unix.EAGAIN {
			return true
		}
		if errno != 0 {
			l.close(lc)
			return false
		}
		lc.s.tally.add(bytesWritten, n)
		for n > 0 || len(lc.unsent) > 0 && len(lc.unsent[0]) == 0 {
			if n < len(lc.unsent[0]) {
				lc.unsent[0] = lc.unsent[0][n:]
				break
			}
			n -= len(lc.unsent[0])
			lc.unsent = lc.unsent[1:]
		}
	}
	lc.unsent = nil
	lc.s.out.release()
	return true
}

// detach streams a long answer on a goroutine of its own, which hands the
// connection back when done.
func (l *loop) detach(lc *loopConn) {
	l.unwatch(lc)
	l.conns[lc.fd] = nil
	l.node.background.Add(1)
	go func() {
		defer l.node.background.Done()
		lc.gone = lc.s.stream(&fdWriter{fd: lc.fd, node: l.node}) != nil
		lc.after = wantDetach
		l.post(lc) // it counts as live, so the loop is there
	}()
}

func (l *loop) close(lc *loopConn) {
	l.conns[lc.fd] = nil
	l.live--
	lc.parked = false // an answer would find somebody else's descriptor
	lc.finish()       // closing the last descriptor takes it out of epoll
}

func (lc *loopConn) finish() {
	unix.Close(lc.fd)
	lc.s.abandon()
	lc.onClose()
}

// fdWriter writes to a non-blocking descriptor, waiting where it must.
type fdWriter struct {
	fd   int
	node *Node
}

func (w *fdWriter) Write(b []byte) (wrote int, err error) {
	patience := w.node.inUse().IdleTimeout
	last := time.Now()
	for wrote < len(b) {
		n, err := unix.Write(w.fd, b[wrote:])
		switch {
		case err == nil:
			wrote += n
			last = time.Now()
		case err == unix.EINTR:
		case err != unix.EAGAIN:
			return wrote, err
		default:
			if patience > 0 && time.Since(last) > patience {
				return wrote, os.ErrDeadlineExceeded
			}
			if w.node.draining.Load() && time.Now().After(w.node.drainDeadline()) {
				return wrote, net.ErrClosed
			}
			// Waiting in poll would hold a thread per client that does not read.
			time.Sleep(5 * time.Millisecond)
		}
	}
	return wrote, nil
}
