package controller

import (
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// firstRead is how much a connection reads before it takes a workspace.
const firstRead = 2 << 10

// serveConn moves a session's bytes on a goroutine of its own. It is how a
// connection is served on systems without epoll; otherwise see loop.
func (n *Node) serveConn(c net.Conn, info *connInfo, stripe *counters) {
	s := newSession(n, stripe)
	s.local = c.LocalAddr().String()
	answered := make(chan struct{}, 1) // room for the answer nobody waits for
	s.call.Done = func() { answered <- struct{}{} }
	defer s.abandon()
	// What an idle connection waits with, so as not to hold a workspace.
	var first [firstRead]byte
	for last := false; ; {
		if last && s.idle() && !s.leaving {
			s.leave(time.Now())
		}
		last = n.draining.Load()
		switch d := n.inUse().IdleTimeout; {
		case s.leaving && s.idle():
			c.SetReadDeadline(s.until)
		case last && s.idle():
			// What already reached the socket is still answered.
			c.SetReadDeadline(time.Now().Add(lastRead))
		case last:
			c.SetReadDeadline(n.drainDeadline())
		case d > 0:
			c.SetReadDeadline(time.Now().Add(d))
		}
		var got int
		var err error
		if s.work == nil {
			if got, err = c.Read(first[:]); got > 0 {
				copy(s.space(), first[:got])
			}
		} else {
			got, err = c.Read(s.space())
		}
		n.stalled()
		start := time.Now()
		if got > 0 {
			s.received(got)
			info.active.Store(start.Unix())
			s.tally.add(bytesRead, got)
			if !n.pump(c, s, answered) {
				return
			}
			s.tally.flush(stripe, time.Since(start))
			s.release()
		}
		if err == nil {
			continue
		}
		// A drain wakes readers by a deadline: see wakeConns.
		now := time.Now()
		if !errors.Is(err, os.ErrDeadlineExceeded) || !n.draining.Load() || last && now.After(n.drainDeadline()) {
			return
		}
		if s.leaving && s.idle() && !now.Before(s.until) {
			if now.Sub(s.until) < lastRead {
				return
			}
			// This goroutine did not run for a while, and a deadline that is over hides
			// what came meanwhile.
			s.until = now.Add(lastRead)
		}
	}
}

// pump steps the session until it wants input, and writes what it answers. It
// reports whether the connection goes on.
func (n *Node) pump(c net.Conn, s *session, answered <-chan struct{}) bool {
	for {
		w := s.step(time.Now())
		if s.out.size > 0 && w != wantAnswer {
			if d := n.inUse().IdleTimeout; d > 0 {
				c.SetWriteDeadline(time.Now().Add(d))
			}
			wrote, err := writeAll(c, s.out.take())
			s.tally.add(bytesWritten, int(wrote))
			if err != nil {
				return false
			}
			s.out.release()
		}
		switch w {
		case wantInput:
			return true
		case wantAnswer:
			select {
			case <-answered:
			case <-n.ctx.Done(): // the drain is over, whether the engine answers or not
				return false
			}
		case wantClose:
			return false
		case wantDetach:
			if s.stream(patientWriter{c, n.inUse().IdleTimeout}) != nil {
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

// patientWriter gives each write the time in which something must move.
type patientWriter struct {
	net.Conn
	patience time.Duration // 0 is endless
}

func (w patientWriter) Write(b []byte) (int, error) {
	if w.patience > 0 {
		w.SetWriteDeadline(time.Now().Add(w.patience))
	}
	return w.Conn.Write(b)
}

// abandon ends a session whose connection is gone. If the engine owes it an
// answer, what the engine has of it stays as it is, and is collected after.
func (s *session) abandon() {
	if n := s.node; n.draining.Load() && !s.idle() && time.Now().After(n.drainDeadline()) {
		n.cut.Add(1)
	}
	s.tally.flush(s.counts, 0)
	if t := s.call.Trace; t != nil && !s.given {
		t.End("the connection was closed")
	}
	if s.n > 0 {
		s.work = nil // left in the middle of work, it is of no use to others, or the engine's
	}
	s.start, s.end, s.big, s.out = 0, 0, nil, output{}
	s.release()
}

var errLongCommand = errors.New("command longer than the input buffer")
