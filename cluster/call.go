package cluster

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Errors of Call and Stream. One that is neither of these says that nobody knows
// whether the request was executed.
var (
	// ErrNotSent is wrapped by errors of Call and Stream when the request was
	// certainly not executed and never will be: the peer is unknown or cannot be
	// reached, refuses this node, is overloaded, or has no handler for it. It may
	// be tried again, there or elsewhere.
	ErrNotSent = errors.New("not sent")
	// ErrLost is wrapped by errors of Call when the connection broke after the
	// request was sent: it may have been executed.
	ErrLost = errors.New("connection lost while waiting for the answer")
	// ErrClosed is returned by calls of a Cluster after Close.
	ErrClosed = errors.New("this node is shutting down")
)

// RemoteError is what a handler of another node returned: the text of its error.
// The request was executed as far as that says. A handler whose caller needs to
// tell errors apart puts them into its answer instead.
type RemoteError struct {
	From uint64
	Text string
}

func (e *RemoteError) Error() string { return e.Text }

const (
	// maxCalls is how many requests of others a node executes at a time, and
	// maxCallBytes how long they may be together, unless it is one.
	maxCalls     = 1024
	maxCallBytes = 256 << 20
)

type callHandler struct {
	limit int
	fn    func(ctx context.Context, from uint64, body []byte) ([]byte, error)
}

// HandleCall registers who answers calls of a kind, which is at least [MinKind].
// fn runs on a goroutine of its own; ctx ends when the caller will not wait any
// longer (if it set itself a deadline) or the node closes, and fn must return
// soon after. The body is fn's to keep, and what it returns is cluster's. An
// error becomes the caller's [RemoteError].
//
// A node that executes too many calls already refuses more, with [ErrNotSent].
func (c *Cluster) HandleCall(kind byte, fn func(ctx context.Context, from uint64, body []byte) ([]byte, error), options ...HandleOption) {
	checkKind(kind)
	c.callees[kind].Store(&callHandler{limitOf(options), fn})
}

// Call asks a node and waits for its answer, which is the caller's to keep. The
// body belongs to cluster from then on. Errors: wrapping [ErrNotSent] if the
// request was certainly not executed; a [RemoteError]; wrapping [ErrLost] or
// the cause of ctx's end if it may have been.
func (c *Cluster) Call(ctx context.Context, to uint64, kind byte, body []byte) ([]byte, error) {
	checkKind(kind)
	return c.call(ctx, to, kind, body)
}

func (c *Cluster) call(ctx context.Context, to uint64, kind byte, body []byte) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSent, context.Cause(ctx))
	}
	if c.ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSent, ErrClosed)
	}
	if len(body) > MaxFrame-requestHead {
		return nil, fmt.Errorf("%w: %d bytes are too many", ErrNotSent, len(body))
	}
	l := c.link(to, Calls)
	if l == nil {
		return nil, fmt.Errorf("%w: no node with id %016x is known", ErrNotSent, to)
	}
	var timeout time.Duration
	if end, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(end), time.Millisecond)
	}
	p := c.calls.add(to)
	f := frame{kind: kindRequest, body: body, call: p}
	putRequest(&f, p.id, timeout, kind)
	if !l.send(f) {
		c.calls.finish(p, nil, ErrNotSent)
		return nil, fmt.Errorf("%w: %016x cannot be reached or is too slow", ErrNotSent, to)
	}
	select {
	case a := <-p.answer:
		return a.body, a.err
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
	why := context.Cause(ctx)
	if why == nil {
		why = ErrClosed
	}
	if p.state.CompareAndSwap(callQueued, callGivenUp) {
		why = fmt.Errorf("%w: %w", ErrNotSent, why)
	}
	c.calls.finish(p, nil, why)
	a := <-p.answer // ours, or one that came just now
	return a.body, a.err
}

// States of a call.
const (
	callQueued  int32 = iota // not sent
	callSent                 // it is being written or was
	callGivenUp              // never to be sent
)

// call is one that waits for its answer.
type call struct {
	id, to uint64
	state  atomic.Int32
	answer chan answer // gets exactly one: from whoever removed it from the table
}

type answer struct {
	body []byte
	err  error
}

// calls are those that wait. Their ids go up from a random number, so that an
// answer to a former process of the same node answers nothing.
type calls struct {
	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*call // by id
}

func (cs *calls) add(to uint64) *call {
	p := &call{to: to, answer: make(chan answer, 1)}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.waiting == nil {
		cs.waiting, cs.next = make(map[uint64]*call), rand.Uint64()
	}
	cs.next++
	p.id = cs.next
	cs.waiting[p.id] = p
	return p
}

// finish answers a call, unless it is answered.
func (cs *calls) finish(p *call, body []byte, err error) {
	cs.mu.Lock()
	_, ok := cs.waiting[p.id]
	delete(cs.waiting, p.id)
	cs.mu.Unlock()
	if ok {
		p.answer <- answer{body, err}
	}
}

// find returns the call that an answer from a node is for, or nil.
func (cs *calls) find(id, from uint64) *call {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if p := cs.waiting[id]; p != nil && p.to == from {
		return p
	}
	return nil
}

// lost gives up the calls that were sent to a node.
func (cs *calls) lost(to uint64) {
	cs.mu.Lock()
	var gone []*call
	for id, p := range cs.waiting {
		if p.to == to && p.state.Load() == callSent {
			gone = append(gone, p)
			delete(cs.waiting, id)
		}
	}
	cs.mu.Unlock()
	for _, p := range gone {
		p.answer <- answer{err: ErrLost}
	}
}

// readRequest reads a call of another node and has it executed.
func (c *Cluster) readRequest(r *bufio.Reader, from uint64, n int) error {
	if n < requestHead {
		return garbage("a call that is too short")
	}
	var head [requestHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return unexpected(err)
	}
	id, timeout, kind := binary.LittleEndian.Uint64(head[:]), binary.LittleEndian.Uint32(head[8:]), head[12]
	n -= requestHead
	handler := c.callees[kind].Load()
	if handler == nil {
		if n > DefaultLimit {
			return garbage("a long call of an unknown kind")
		}
		c.unknown.Add(1)
		if _, err := r.Discard(n); err != nil {
			return unexpected(err)
		}
		c.respond(from, id, statusNotExecuted, fmt.Appendf(nil, "%s has no handler for calls of kind %d", c.o.Name, kind))
		return nil
	}
	if n > handler.limit {
		return garbage(fmt.Sprintf("a call of kind %d with %d bytes, where %d is the limit", kind, n, handler.limit))
	}
	running, bytes := c.callsRunning.Add(1), c.callBytes.Add(int64(n))
	done := func() {
		c.callsRunning.Add(-1)
		c.callBytes.Add(int64(-n))
	}
	if running > maxCalls || bytes > maxCallBytes && running > 1 {
		done()
		if _, err := r.Discard(n); err != nil {
			return unexpected(err)
		}
		c.respond(from, id, statusNotExecuted, fmt.Appendf(nil, "%s is busy", c.o.Name))
		return nil
	}
	body, err := readBody(r, n)
	if err != nil {
		done()
		return err
	}
	c.wg.Go(func() {
		defer done()
		ctx, cancel := c.ctx, context.CancelFunc(func() {})
		if timeout > 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(timeout)*time.Millisecond)
		}
		defer cancel()
		out, err := handler.fn(ctx, from, body)
		switch {
		case err != nil:
			c.respond(from, id, statusFailed, []byte(err.Error()))
		case len(out) > MaxFrame-responseHead:
			c.respond(from, id, statusFailed, fmt.Appendf(nil, "the answer of %d bytes is too long", len(out)))
		default:
			c.respond(from, id, statusDone, out)
		}
	})
	return nil
}

// respond sends an answer, if the caller can be reached: else it finds out by
// its deadline.
func (c *Cluster) respond(to, id uint64, status byte, body []byte) {
	if l := c.link(to, Calls); l != nil {
		f := frame{kind: kindResponse, body: body}
		putResponse(&f, id, status)
		l.send(f)
	}
}

// readResponse reads the answer to a call of this node.
func (c *Cluster) readResponse(r *bufio.Reader, from uint64, n int) error {
	if n < responseHead {
		return garbage("an answer that is too short")
	}
	var head [responseHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return unexpected(err)
	}
	n -= responseHead
	p := c.calls.find(binary.LittleEndian.Uint64(head[:]), from)
	if p == nil {
		// Its caller is gone, so no memory is spent on it.
		_, err := r.Discard(n)
		return unexpected(err)
	}
	body, err := readBody(r, n)
	if err != nil {
		return err
	}
	switch head[8] {
	case statusDone:
		c.calls.finish(p, body, nil)
	case statusFailed:
		c.calls.finish(p, nil, &RemoteError{From: from, Text: string(body)})
	case statusNotExecuted:
		c.calls.finish(p, nil, fmt.Errorf("%w: %s", ErrNotSent, printable(body)))
	default:
		return garbage("an answer of an unknown status")
	}
	return nil
}
