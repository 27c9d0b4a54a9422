package kvadapter

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// memcachedPipe brings small records and deletions to a server, many in one round
// trip. gomemcache has a round trip for each, which is nearly all system calls, for
// the server as well. There is no goroutine: of the callers that wait the first
// sends all that is queued by then, its own included, reads the answers, and leaves
// what was queued meanwhile to the next. One caller alone waits for nobody.
//
// Who is queued may give up, and is then not sent. Who is sent waits for the
// outcome, at most the timeout for each MiB, and once more if a batch was under way
// before. What was sent and not answered when an idle connection turns out dead is
// sent again.
type memcachedPipe struct {
	server *memcachedServer

	mu      sync.Mutex
	queue   []*memcachedWrite // in the order they came
	sending bool              // the first of queue sends, or somebody before it
	retired bool              // no connection is kept

	// What follows is used by who sends.
	batch []*memcachedWrite
	nc    net.Conn // nil before the first request, and after a failure
	in    *bufio.Reader
	out   *bufio.Writer
}

// memcachedWrite is one command in a pipe. Nobody but its caller touches it once
// it was told its turn.
type memcachedWrite struct {
	request []byte    // the command as it is sent
	deletes bool      // it is a delete; else a set
	err     error     // the outcome
	turn    chan bool // true: the caller is to send; false: there is an outcome
	chosen  bool      // that it is to send is on its way; guarded by the pipe's mu
}

var memcachedWrites = sync.Pool{New: func() any { return &memcachedWrite{turn: make(chan bool, 1)} }}

const (
	// pipeBatch is the most commands of a batch. All are written before an answer
	// is read, so the answers must fit the buffers of the connection.
	pipeBatch = 512
	// pipeBytes is about the most bytes of a batch.
	pipeBytes = memcachedStride
)

func appendSet(dst []byte, name string, text []byte, rec Record) []byte {
	dst = append(append(dst, "set "...), name...)
	dst = strconv.AppendInt(append(dst, " 0 0 "...), int64(memcachedOverhead(text)+len(rec.Value)), 10)
	dst = appendMemcachedRecord(append(dst, '\r', '\n'), text, rec)
	return append(dst, '\r', '\n')
}

func appendDelete(dst []byte, name string) []byte {
	dst = append(append(dst, "delete "...), name...)
	return append(dst, '\r', '\n')
}

// do has a command sent and returns its outcome, as [memcachedServer.call] does.
func (p *memcachedPipe) do(ctx context.Context, w *memcachedWrite) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	p.mu.Lock()
	p.queue = append(p.queue, w)
	sends := !p.sending
	p.sending, w.chosen = true, sends
	p.mu.Unlock()
	if !sends {
		select {
		case sends = <-w.turn:
		case <-ctx.Done():
			if p.withdraw(w) {
				return context.Cause(ctx)
			}
			sends = <-w.turn
		}
	}
	if sends {
		p.sendBatch()
	}
	return w.err
}

// withdraw takes w out of the queue. It reports whether it could: not if w is being
// sent, or its caller is to send.
func (p *memcachedPipe) withdraw(w *memcachedWrite) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, queued := range p.queue {
		if queued == w && !w.chosen {
			p.queue = append(p.queue[:i], p.queue[i+1:]...)
			return true
		}
	}
	return false
}

// sendBatch is the turn of who is first in the queue: it sends what is there, tells
// the others, and then the next whose turn it is, so that those who were answered
// may join that one's batch.
func (p *memcachedPipe) sendBatch() {
	p.mu.Lock()
	n, size := 0, 0
	for n < len(p.queue) && n < pipeBatch && size < pipeBytes {
		size += len(p.queue[n].request)
		n++
	}
	p.batch = append(p.batch[:0], p.queue[:n]...)
	left := copy(p.queue, p.queue[n:])
	clear(p.queue[left:])
	p.queue = p.queue[:left]
	p.mu.Unlock()

	p.send()

	for _, w := range p.batch[1:] {
		w.turn <- false
	}
	clear(p.batch)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sending = len(p.queue) > 0; p.sending {
		p.queue[0].chosen = true
		p.queue[0].turn <- true
	} else if p.retired {
		p.hangUp()
	}
}

// retire closes the connection once nobody sends.
func (p *memcachedPipe) retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired = true; !p.sending {
		p.hangUp()
	}
}

// send gives each of the batch its outcome.
func (p *memcachedPipe) send() {
	s, start := p.server, time.Now()
	err := s.refused(len(p.batch))
	if err == nil {
		rest := p.batch
		for {
			if rest, err = p.exchange(rest); !diedIdle(err) || time.Since(start) >= s.timeout {
				break
			}
			s.retries.Add(1)
		}
		err = s.finish(start, len(p.batch), err)
		for _, w := range rest {
			w.err = err
		}
		return
	}
	for _, w := range p.batch {
		w.err = err
	}
}

// exchange sends commands and reads the answers. It returns those that were not
// answered, and why: the connection is closed then.
func (p *memcachedPipe) exchange(batch []*memcachedWrite) (rest []*memcachedWrite, err error) {
	defer func() {
		if err != nil {
			p.hangUp()
		}
	}()
	if p.nc == nil {
		if err := p.connect(); err != nil {
			return batch, err
		}
	}
	for _, w := range batch {
		if _, err := p.out.Write(w.request); err != nil {
			return batch, err
		}
	}
	if err := p.out.Flush(); err != nil {
		return batch, err
	}
	if rest, err = p.server.readOutcomes(p.in, batch); err == nil && p.in.Buffered() > 0 {
		p.hangUp() // what else it says would be taken for the next answers
	}
	return rest, err
}

func (p *memcachedPipe) connect() error {
	ctx, cancel := context.WithTimeout(context.Background(), p.server.timeout)
	defer cancel()
	addr := &memcachedAddr{p.server.addr}
	nc, err := p.server.dial(ctx, addr.Network(), addr.String())
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		return &memcache.ConnectTimeoutError{Addr: addr}
	}
	if err != nil {
		return err
	}
	if p.nc = nc; p.in == nil {
		p.in, p.out = bufio.NewReaderSize(nc, 4<<10), bufio.NewWriterSize(nc, 32<<10)
	}
	p.in.Reset(nc)
	p.out.Reset(nc)
	return nil
}

// hangUp closes the connection, if there is one.
func (p *memcachedPipe) hangUp() {
	if p.nc != nil {
		_ = p.nc.Close() // nothing is left to be said on it
		p.nc = nil
	}
}

// readOutcomes reads the answers to commands. It returns those that were not
// answered, and why: answers that nobody expects end it, as what they belong to
// cannot be told.
func (s *memcachedServer) readOutcomes(in *bufio.Reader, batch []*memcachedWrite) (rest []*memcachedWrite, err error) {
	for i, w := range batch {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return batch[i:], err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch answer := string(line); {
		case !w.deletes && answer == "STORED", w.deletes && (answer == "DELETED" || answer == "NOT_FOUND"):
			w.err = nil
		case !w.deletes && answer == "SERVER_ERROR object too large for cache":
			w.err = s.tooLarge()
			s.errors.Add(1)
		case !w.deletes && answer == "SERVER_ERROR out of memory storing object":
			w.err = s.full()
			s.errors.Add(1)
		default:
			return batch[i:], fmt.Errorf("it answered %.80q", line)
		}
	}
	return nil, nil
}
