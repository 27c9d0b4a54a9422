package bench

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var bestDriver = epollDriver

// epollDriver runs all connections of a worker in one loop: a generator that
// shares its machine with the server must not cost more than the server does.
var epollDriver = &driver{attach: attachFD, run: runEpoll}

// fdLink is a nonblocking socket.
type fdLink int

func (fd fdLink) close() { unix.Close(int(fd)) }

// attachFD duplicates the socket and closes the original, since that one is
// also registered with the runtime's own poller, which would wake for every
// reply.
func attachFD(c net.Conn) (link, error) {
	defer c.Close()
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T has no file descriptor", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := raw.Control(func(orig uintptr) {
		fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	}); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, fmt.Errorf("duplicate socket: %w", err)
	}
	return fdLink(fd), nil
}

// A poller is a worker under epoll.
type poller struct {
	w     *worker
	ep    int
	timer int // a timerfd, for the open loop; -1 without

	// The open loop's next request to become due, in the order of the schedule:
	// the cycle-th of streams[turn].
	turn  int
	cycle int64
	armed int64 // what the timer is set for; 0 is nothing
}

// timerEvent tells the timer's events from those of streams, whose data is their
// slot.
const timerEvent = -1

func runEpoll(w *worker) {
	q := &poller{w: w, timer: -1}
	if err := q.open(); err != nil {
		for _, s := range w.streams {
			if s.link != nil {
				w.drop(s, err)
			}
		}
		return
	}
	defer q.close()

	now := clock()
	if w.p.interval == 0 {
		for _, s := range w.streams {
			q.flush(s, now)
		}
	}
	events := make([]unix.EpollEvent, 128)
	for ; !w.done(now); now = clock() {
		if w.p.interval > 0 {
			q.schedule(now)
		}
		n, err := unix.EpollWait(q.ep, events, int(tick/time.Millisecond))
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("epoll_wait: %v", err)) // only a descriptor that is not ours can do this
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd == timerEvent {
				continue // schedule looks at the clock, and setting the timer again quiets it
			}
			s := w.streams[e.Fd]
			if e.Events&^unix.EPOLLOUT != 0 {
				q.read(s)
			} else {
				q.flush(s, clock())
			}
		}
		w.answered.Store(w.ops() + w.errors)
	}
}

func (q *poller) open() (err error) {
	if q.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create: %w", err)
	}
	defer func() {
		if err != nil {
			q.close()
		}
	}()
	for _, s := range q.w.streams {
		if s.link == nil {
			continue
		}
		if err := q.control(unix.EPOLL_CTL_ADD, int(s.link.(fdLink)), unix.EPOLLIN, s.slot); err != nil {
			return err
		}
	}
	if q.w.p.interval > 0 {
		// The timeout of epoll_wait counts milliseconds, too coarse a schedule.
		if q.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
			return fmt.Errorf("timerfd_create: %w", err)
		}
		return q.control(unix.EPOLL_CTL_ADD, q.timer, unix.EPOLLIN, timerEvent)
	}
	return nil
}

func (q *poller) close() {
	unix.Close(q.ep)
	if q.timer >= 0 {
		unix.Close(q.timer)
	}
}

func (q *poller) control(op, fd int, events uint32, data int) error {
	if err := unix.EpollCtl(q.ep, op, fd, &unix.EpollEvent{Events: events, Fd: int32(data)}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// schedule starts what an open loop has due, and sets the timer for what comes
// next.
func (q *poller) schedule(now int64) {
	p := q.w.p
	end := p.end.Load()
	for {
		s := q.w.streams[q.turn]
		n := q.cycle*int64(len(s.t.streams)) + int64(s.id)
		due := p.due(n)
		if n >= p.limit || due >= end {
			q.arm(0, now) // else an expired timer would keep waking us
			return
		}
		if due > now {
			q.arm(due, now)
			return
		}
		q.flush(s, now)
		if q.turn++; q.turn == len(q.w.streams) {
			q.turn = 0
			q.cycle++
		}
	}
}

// arm sets the timer for when due comes; 0 stops it.
func (q *poller) arm(due, now int64) {
	if q.armed == due {
		return
	}
	q.armed = due
	var t unix.ItimerSpec
	if due > 0 {
		t.Value = unix.NsecToTimespec(due - now)
	}
	if err := unix.TimerfdSettime(q.timer, 0, &t, nil); err != nil {
		panic(fmt.Sprintf("timerfd_settime: %v", err)) // as for epoll_wait
	}
}

// read takes what the socket holds, and starts what may start after it.
func (q *poller) read(s *stream) {
	if s.link == nil {
		return
	}
	n, err := unix.Read(int(s.link.(fdLink)), s.room())
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return
	case err != nil:
		q.w.drop(s, err)
		return
	case n == 0:
		q.w.drop(s, errLost)
		return
	}
	now := clock()
	if err := s.took(n, now); err != nil {
		q.w.drop(s, err)
		return
	}
	q.flush(s, now)
}

// flush pumps the stream and sends what the socket takes.
func (q *poller) flush(s *stream, now int64) {
	if s.link == nil {
		return
	}
	fd := int(s.link.(fdLink))
	for {
		s.pump(now)
		b := s.pending()
		if len(b) == 0 {
			q.wantOut(s, fd, false)
			return
		}
		n, err := unix.Write(fd, b)
		switch err {
		case nil:
			s.wrote(n)
		case unix.EINTR:
		case unix.EAGAIN:
			q.wantOut(s, fd, true)
			return
		default:
			q.w.drop(s, err)
			return
		}
	}
}

// wantOut has epoll report, or no longer report, that the socket takes more.
func (q *poller) wantOut(s *stream, fd int, want bool) {
	if s.wantsOut == want {
		return
	}
	s.wantsOut = want
	events := uint32(unix.EPOLLIN)
	if want {
		events |= unix.EPOLLOUT
	}
	if err := q.control(unix.EPOLL_CTL_MOD, fd, events, s.slot); err != nil {
		q.w.drop(s, err)
	}
}
