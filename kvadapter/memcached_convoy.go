package kvadapter

import (
	"context"
	"slices"
	"sync"
)

// memcachedConvoy has calls that wait for a server go together, as a round trip
// for each is nearly all system calls, for the server as well. There is no
// goroutine: of those that wait the first sends all that is queued by then, its own
// included, and leaves what is queued meanwhile to the next. One caller alone waits
// for nobody.
//
// What is queued may be given up, and is then not sent. Who is sent waits for the
// outcome.
type memcachedConvoy[T any] struct {
	lanes int // batches that may be under way
	// room says how many of queue go with first.
	room func(first *memcachedSeat[T], queue []*memcachedSeat[T]) int
	// send gives each of a batch its outcome.
	send func(batch []*memcachedSeat[T])

	mu      sync.Mutex
	queue   []*memcachedSeat[T] // in the order they came
	sending int                 // lanes in use: their callers send, or are told to
	retired func()              // called whenever nobody sends any more; nil before retire
}

// memcachedSeat is one call in a convoy. Nobody but its caller touches it once it
// was told its turn.
type memcachedSeat[T any] struct {
	load T
	err  error     // the outcome
	turn chan bool // true: the caller is to send; false: there is an outcome
}

// do has calls sent, with others that wait, and returns when each has its outcome:
// that of the server, or the cause of ctx.
func (c *memcachedConvoy[T]) do(ctx context.Context, ws ...*memcachedSeat[T]) {
	if len(ws) == 0 || ctx.Err() != nil {
		for _, w := range ws {
			w.err = context.Cause(ctx)
		}
		return
	}
	waiting := ws
	c.mu.Lock()
	sends := c.sending < c.lanes
	if sends {
		c.sending++
		waiting = ws[1:]
	}
	c.queue = append(c.queue, waiting...)
	c.mu.Unlock()
	if sends {
		c.lead(ws[0])
	}
	for _, w := range waiting {
		select {
		case sends = <-w.turn:
		case <-ctx.Done():
			if c.withdraw(w) {
				w.err = context.Cause(ctx)
				continue
			}
			sends = <-w.turn
		}
		if sends {
			c.lead(w)
		}
	}
}

// withdraw takes w out of the queue. It reports whether it was there: else it is
// being sent, or its caller is to send.
func (c *memcachedConvoy[T]) withdraw(w *memcachedSeat[T]) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.queue, w)
	if i < 0 {
		return false
	}
	c.queue = slices.Delete(c.queue, i, i+1)
	return true
}

// lead sends w and what waits, tells the others, and then the one whose turn is next,
// so that those who were answered may join its batch.
func (c *memcachedConvoy[T]) lead(w *memcachedSeat[T]) {
	c.mu.Lock()
	n := c.room(w, c.queue)
	batch := append(append(make([]*memcachedSeat[T], 0, 1+n), w), c.queue[:n]...)
	c.queue = slices.Delete(c.queue, 0, n)
	c.mu.Unlock()

	c.send(batch)
	for _, other := range batch[1:] {
		other.turn <- false
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) > 0 {
		next := c.queue[0]
		c.queue = slices.Delete(c.queue, 0, 1)
		next.turn <- true
		return
	}
	if c.sending--; c.sending == 0 && c.retired != nil {
		c.retired()
	}
}

// underWay is the batches that are.
func (c *memcachedConvoy[T]) underWay() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sending
}

// retire has fn called once nobody sends, and again if somebody has sent after that.
func (c *memcachedConvoy[T]) retire(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired = fn; c.sending == 0 {
		fn()
	}
}
