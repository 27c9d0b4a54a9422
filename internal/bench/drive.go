package bench

import (
	"net"
	"sync"
	"time"
)

// A driver moves the bytes of a worker's streams.
type driver struct {
	// attach takes a new connection over.
	attach func(net.Conn) (link, error)
	// run drives the worker until it is done.
	run func(*worker)
}

// A link is what a driver keeps of a connection.
type link interface{ close() }

// netDriver is the portable one: two blocking goroutines per connection. It
// costs a switch of goroutines per request more than epoll does.
//
// Two and not one because with deep pipelines of large values the server may
// stop reading until some of its replies are read.
var netDriver = &driver{
	attach: func(c net.Conn) (link, error) { return netLink{c}, nil },
	run:    runNet,
}

type netLink struct{ net.Conn }

func (l netLink) close() { l.Close() }

// A netRun is a worker under the portable driver.
type netRun struct {
	w    *worker
	stop chan struct{} // closed when the worker is done
	mu   sync.Mutex    // guards w and its streams, but for the buffers, see below
	all  sync.WaitGroup
}

func runNet(w *worker) {
	r := &netRun{w: w, stop: make(chan struct{})}
	var conns []net.Conn
	for _, s := range w.streams {
		if s.link == nil {
			continue
		}
		c := s.link.(netLink).Conn
		conns = append(conns, c)
		wake := make(chan struct{}, 1) // a reply may have made room for requests
		r.all.Go(func() { r.write(s, c, wake) })
		r.all.Go(func() { r.read(s, c, wake) })
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for done := false; !done; <-ticker.C {
		r.mu.Lock()
		done = w.done(clock())
		w.answered.Store(w.ops() + w.errors)
		r.mu.Unlock()
	}
	close(r.stop)
	for _, c := range conns {
		// Frees the reader. An error means that the connection is gone already.
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
	r.all.Wait()
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Time{})
	}
}

// write sends what the stream pumps. It alone touches s.out.
func (r *netRun) write(s *stream, c net.Conn, wake <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	p := r.w.p
	for {
		r.mu.Lock()
		if s.link == nil {
			r.mu.Unlock()
			return
		}
		now := clock()
		s.pump(now)
		b := s.pending()
		pause := tick
		if d := p.due(s.next) - now; p.interval > 0 && d > 0 {
			pause = min(pause, time.Duration(d))
		}
		r.mu.Unlock()

		if len(b) > 0 {
			n, err := c.Write(b)
			s.wrote(n)
			if err != nil {
				r.drop(s, err)
				return
			}
			continue
		}
		timer.Reset(pause)
		select {
		case <-wake:
		case <-timer.C:
		case <-r.stop:
			return
		}
	}
}

// read takes replies. It alone touches s.in.
func (r *netRun) read(s *stream, c net.Conn, wake chan<- struct{}) {
	for {
		n, err := c.Read(s.room())
		now := clock()
		r.mu.Lock()
		if n > 0 && s.link != nil {
			if e := s.took(n, now); e != nil {
				r.w.drop(s, e)
			}
		}
		r.mu.Unlock()
		select {
		case wake <- struct{}{}:
		default:
		}
		if err != nil {
			r.drop(s, err)
			return
		}
	}
}

// drop gives the stream's connection up, unless that was done already or the
// error is how the reader was freed.
func (r *netRun) drop(s *stream, err error) {
	select {
	case <-r.stop:
		return
	default:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.link != nil {
		r.w.drop(s, err)
	}
}
