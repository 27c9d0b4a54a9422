package bench

import (
	"errors"
	"fmt"
	"time"
)

const (
	startBuffer = 16 << 10
	// outLimit is how many unsent bytes a connection may hold before it stops
	// making more: a deep pipeline of large values must not cost their product
	// in memory.
	outLimit = 256 << 10
)

// errLost is why a connection that ended is given up.
var errLost = errors.New("the server closed the connection")

// started is the zero of the clock below.
var started = time.Now()

// clock returns monotonic nanoseconds.
func clock() int64 { return int64(time.Since(started)) }

// A request is one in flight.
type request struct {
	at   int64 // when it was sent, or in an open loop was to be sent
	key  int64
	verb verb
}

// A stream is one connection without its I/O. Its driver moves the bytes: what
// the server sent goes to room and took, what pending returns goes to the
// server and then to wrote. A stream belongs to one worker at a time.
type stream struct {
	id   int  // among the target's, from 0
	slot int  // among the worker's, from 0
	link link // nil when there is no connection; kept by the driver
	t    *target
	w    *worker // of the present pass
	mix  *mix

	// flight is a ring of at least the pass's depth: flying requests from head
	// on, oldest first. The requests were numbered in order, the newest as
	// serial-1.
	flight []request
	head   int
	flying int
	serial uint32

	in       []byte // read but not parsed: in[:inLen]
	inLen    int
	out      []byte // to send: out[outFrom:]
	outFrom  int
	wantsOut bool // the driver waits for the socket to take more

	// In a closed loop, the numbers of the batch not made into requests yet; in
	// an open loop, the next number of this connection.
	next int64
	left int64 // of the batch
}

// enter readies the stream for a pass.
func (s *stream) enter(w *worker, slot int) {
	s.w, s.slot = w, slot
	if len(s.flight) < w.p.depth {
		s.flight = make([]request, w.p.depth)
	}
	s.head, s.flying, s.left = 0, 0, 0
	s.inLen, s.out, s.outFrom, s.wantsOut = 0, s.out[:0], 0, false
	s.next = int64(s.id)
	if s.in == nil {
		s.in = make([]byte, startBuffer)
	}
}

// pump makes the requests that may start at now.
func (s *stream) pump(now int64) {
	p := s.w.p
	if p.interval > 0 {
		end := p.end.Load()
		for s.flying < p.depth && s.next < p.limit && len(s.out)-s.outFrom < outLimit {
			due := p.due(s.next)
			if due > now || due >= end {
				return
			}
			s.start(due, now)
			s.next += int64(len(s.t.streams))
		}
		return
	}
	if s.left == 0 && s.flying == 0 && now < p.end.Load() {
		s.next, s.left = p.take(int64(p.depth))
	}
	for s.left > 0 && len(s.out)-s.outFrom < outLimit {
		s.start(now, now)
		s.next++
		s.left--
	}
}

// start makes one request whose latency counts from at.
func (s *stream) start(at, now int64) {
	w := s.w
	r := request{at: at, key: s.next, verb: verbSet}
	if !w.p.prefill {
		r.verb, r.key = s.mix.draw()
	}
	key := s.mix.text(r.key)
	switch r.verb {
	case verbGet:
		s.out = s.t.dialect.get(s.out, key, s.serial)
	case verbSet:
		s.out = s.t.dialect.set(s.out, key, s.mix.value(key, s.t.fill), s.serial)
	case verbIncr:
		s.out = s.t.dialect.incr(s.out, key, s.serial)
	}
	s.serial++
	i := s.head + s.flying
	if i >= len(s.flight) {
		i -= len(s.flight)
	}
	s.flight[i] = r
	s.flying++
	if w.flying++; w.flying == 1 {
		w.moved = now
	}
}

// owed counts the requests that the pass's schedule has for this stream up to
// its end and that were never answered.
func (s *stream) owed() int64 {
	p := s.w.p
	n := int64(s.flying) + s.left
	if p.interval > 0 {
		end := p.end.Load()
		for next := s.next; next < p.limit && p.due(next) < end; next += int64(len(s.t.streams)) {
			n++
		}
	}
	return n
}

// finished reports that nothing is in flight and nothing is left to start.
func (s *stream) finished(now int64) bool {
	p := s.w.p
	switch {
	case s.flying > 0 || s.left > 0:
		return false
	case p.interval > 0:
		return s.next >= p.limit || p.due(s.next) >= p.end.Load()
	default:
		return now >= p.end.Load() || p.spent()
	}
}

// pending is what is to be sent.
func (s *stream) pending() []byte { return s.out[s.outFrom:] }

// wrote says that the first n pending bytes were sent.
func (s *stream) wrote(n int) {
	s.outFrom += n
	if s.outFrom == len(s.out) {
		s.out, s.outFrom = s.out[:0], 0
	}
}

// room is where to read to. It is never empty.
func (s *stream) room() []byte {
	if s.inLen == len(s.in) {
		s.in = append(s.in, make([]byte, len(s.in))...)
	}
	return s.in[s.inLen:]
}

// took says that n bytes were read into room, and counts the replies now
// complete as received at now. An error means that the connection is of no more
// use.
func (s *stream) took(n int, now int64) error {
	s.inLen += n
	in := s.in[:s.inLen]
	for s.flying > 0 && len(in) > 0 {
		r := &s.flight[s.head]
		key := s.mix.text(r.key)
		n, a, err := s.t.dialect.reply(in, key, r.verb, s.serial-uint32(s.flying))
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if a.kind == hit && s.t.o.Verify && !s.right(a.text, key) {
			a = answer{refused, fmt.Appendf(nil, "the value of %s is not the one stored by this load: %q", key, clip(a.text))}
		}
		s.w.count(r, a, now)
		in = in[n:]
		if s.head++; s.head == len(s.flight) {
			s.head = 0
		}
		s.flying--
	}
	if s.flying == 0 && len(in) > 0 {
		return fmt.Errorf("unasked for: %q", clip(in))
	}
	if len(in) < s.inLen {
		s.inLen = copy(s.in, in)
	}
	return nil
}

// right reports whether a value is one this load stores under key.
func (s *stream) right(value, key []byte) bool {
	z := s.t.o.Values
	return len(value) >= z.Min && len(value) <= z.Max && isValue(value, key, s.t.fill)
}
