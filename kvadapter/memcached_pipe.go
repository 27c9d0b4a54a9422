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

// memcachedPipe brings small records and deletions to a server, all that wait in one
// round trip (memcachedConvoy), which gomemcache cannot.
//
// A batch takes the timeout for each MiB at most, and so does who is queued behind
// one before. What was sent and not answered when an idle connection turns out dead
// is sent again.
type memcachedPipe struct {
	memcachedConvoy[memcachedWrite]
	server *memcachedServer

	// What follows is used by who sends.
	nc  net.Conn // nil before the first request, and after a failure
	in  *bufio.Reader
	out *bufio.Writer
}

// memcachedWrite is one command in a pipe.
type memcachedWrite struct {
	request []byte // as it is sent
	deletes bool   // it is a delete; else a set
}

type memcachedWriteSeat = memcachedSeat[memcachedWrite]

var memcachedWrites = sync.Pool{New: func() any { return &memcachedWriteSeat{turn: make(chan bool, 1)} }}

const (
	// pipeBatch is the most commands of a batch. All are written before an answer
	// is read, so the answers must fit the buffers of the connection.
	pipeBatch = 512
	// pipeBytes is about the most bytes of a batch.
	pipeBytes = memcachedStride
)

func (p *memcachedPipe) open(s *memcachedServer) {
	p.server, p.lanes, p.room, p.send = s, 1, pipeRoom, p.sendAll
}

func pipeRoom(first *memcachedWriteSeat, queue []*memcachedWriteSeat) (n int) {
	for size := len(first.load.request); n < len(queue) && n < pipeBatch-1 && size < pipeBytes; n++ {
		size += len(queue[n].load.request)
	}
	return n
}

// nothing reports whether w is a deletion by hash alone: memcached finds none.
func (w *Write) nothing() bool { return w.Delete && w.Key.Text == nil }

// large reports whether w would hold up those behind it in a pipe.
func (w *Write) large() bool { return !w.Delete && len(w.Record.Value) >= Large }

// writeMulti does those of writes that idx lists, all of this server.
func (s *memcachedServer) writeMulti(ctx context.Context, names []string, idx []int, writes []Write, errs []error) {
	seats := make([]*memcachedWriteSeat, 0, len(idx))
	for _, i := range idx {
		if w := &writes[i]; !w.nothing() && !w.large() {
			seats = append(seats, s.seat(names[i], w))
		}
	}
	s.pipe.do(ctx, seats...)
	for _, i := range idx {
		switch w := &writes[i]; {
		case w.nothing():
			errs[i] = nil
		case w.large():
			errs[i] = s.putLarge(ctx, names[i], w)
		default:
			errs[i] = leave(seats[0])
			seats = seats[1:]
		}
	}
}

// putLarge has the client put a record: it takes one slice.
func (s *memcachedServer) putLarge(ctx context.Context, name string, w *Write) error {
	s.puts.Add(1)
	raw := make([]byte, 0, memcachedOverhead(w.Key.Text)+len(w.Record.Value))
	item := memcache.Item{Key: name, Value: appendMemcachedRecord(raw, w.Key.Text, w.Record)}
	return s.call(ctx, func() error { return s.client.Set(&item) })
}

// seat returns what takes w through the pipe. It must leave.
func (s *memcachedServer) seat(name string, w *Write) *memcachedWriteSeat {
	seat := memcachedWrites.Get().(*memcachedWriteSeat)
	request := seat.load.request[:0]
	if w.Delete {
		s.deletes.Add(1)
		request = appendDelete(request, name)
	} else {
		s.puts.Add(1)
		request = appendSet(request, name, w.Key.Text, w.Record)
	}
	seat.load = memcachedWrite{request, w.Delete}
	return seat
}

// leave returns the outcome of a seat, which others may have from then on.
func leave(seat *memcachedWriteSeat) error {
	defer memcachedWrites.Put(seat)
	return seat.err
}

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

// sendAll gives each of the batch its outcome.
func (p *memcachedPipe) sendAll(batch []*memcachedWriteSeat) {
	s, start, rest := p.server, time.Now(), batch
	err := s.refused(len(batch))
	if err == nil {
		for {
			if rest, err = p.exchange(rest); !diedIdle(err) || time.Since(start) >= s.timeout {
				break
			}
			s.retries.Add(1)
		}
		err = s.finish(start, len(batch), err)
	}
	for _, w := range rest {
		w.err = err
	}
}

// exchange sends commands and reads the answers. It returns those that were not
// answered, and why: the connection is closed then.
func (p *memcachedPipe) exchange(batch []*memcachedWriteSeat) (rest []*memcachedWriteSeat, err error) {
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
		if _, err := p.out.Write(w.load.request); err != nil {
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
func (s *memcachedServer) readOutcomes(in *bufio.Reader, batch []*memcachedWriteSeat) (rest []*memcachedWriteSeat, err error) {
	for i, w := range batch {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return batch[i:], err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch answer := string(line); {
		case !w.load.deletes && answer == "STORED", w.load.deletes && (answer == "DELETED" || answer == "NOT_FOUND"):
			w.err = nil
		case !w.load.deletes && answer == "SERVER_ERROR object too large for cache":
			w.err = s.tooLarge()
			s.errors.Add(1)
		case !w.load.deletes && answer == "SERVER_ERROR out of memory storing object":
			w.err = s.full()
			s.errors.Add(1)
		default:
			return batch[i:], fmt.Errorf("it answered %.80q", line)
		}
	}
	return nil, nil
}
