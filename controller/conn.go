package controller

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// serveConn moves a session's bytes on a goroutine of its own. It is how a
// connection is served where a command may have to wait (a store across the
// network, a quorum), and on systems without epoll; otherwise see loop.
func (n *Node) serveConn(c net.Conn, info *connInfo, stripe *counters) {
	s := newSession(n, stripe)
	defer s.abandon()
	var idle time.Time
	for {
		if d := n.cfg.IdleTimeout; d > 0 {
			idle = time.Now().Add(d)
			c.SetDeadline(idle)
		}
		if n.draining.Load() && s.idle() {
			// Drain wakes readers with a deadline in the past. Whoever is in the
			// middle of a command gets the deadline of the drain instead.
			return
		}
		got, err := c.Read(s.space())
		start := time.Now()
		s.received(got)
		if got > 0 {
			info.active.Store(start.Unix())
			s.tally.add(bytesRead, got)
			if !n.pump(c, s) {
				return
			}
			s.tally.flush(stripe, time.Since(start))
			s.release()
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && n.draining.Load() && !s.idle():
			c.SetDeadline(n.drainDeadline())
			if time.Now().After(n.drainDeadline()) {
				return
			}
		default:
			return
		}
	}
}

// pump steps the session until it wants input, and writes what it answers. It
// reports whether the connection goes on.
func (n *Node) pump(c net.Conn, s *session) bool {
	for {
		w := s.step(n.ctx)
		if s.out.size > 0 {
			wrote, err := writeAll(c, s.out.take())
			s.out.release()
			s.tally.add(bytesWritten, int(wrote))
			if err != nil {
				return false
			}
		}
		switch w {
		case wantInput:
			return true
		case wantClose:
			closeWrite(c)
			return false
		case wantDetach:
			if s.stream(c) != nil {
				return false
			}
		}
	}
}

func writeAll(c net.Conn, segs [][]byte) (int64, error) {
	if len(segs) == 1 {
		n, err := c.Write(segs[0])
		return int64(n), err
	}
	bufs := net.Buffers(segs)
	return bufs.WriteTo(c)
}

// stream writes a long answer as it is made.
func (s *session) stream(w io.Writer) error {
	buf := make([]byte, 0, highWater)
	flush := func() error {
		n, err := w.Write(buf)
		s.tally.add(bytesWritten, n)
		buf = buf[:0]
		return err
	}
	answer := s.detached
	s.detached = nil
	err := answer(func(line []byte) error {
		buf = append(buf, line...)
		if len(buf) < highWater-4<<10 {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

// abandon ends a session whose connection is gone.
func (s *session) abandon() {
	s.tally.flush(s.counts, 0)
	s.start, s.end, s.big = 0, 0, nil
	s.release()
}

// closeWrite lets the peer read everything written before the close: closing
// with unread input would reset the connection under it.
func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
}

var (
	errLongCommand = errors.New("command longer than the input buffer")
	errOpTimeout   = errors.New("timed out waiting for the backend; see op-timeout")
	_              = context.Background
)
