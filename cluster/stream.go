package cluster

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// maxStreams is how many streams a node serves at a time.
	maxStreams = 64
	// chunkSize is how much goes under one checksum.
	chunkSize = 64 << 10
	// maxChunk is the longest chunk that is accepted.
	maxChunk = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type streamHandler struct {
	limit int
	fn    func(ctx context.Context, from uint64, request []byte, w io.Writer) error
}

// HandleStream registers who answers streams of a kind, which is at least
// [MinKind]. fn writes the answer; its end is marked when fn returns nil, and the
// receiver gets an error otherwise. ctx ends when the receiver hangs up or the
// node closes. A receiver that takes nothing for a minute loses its connection.
func (c *Cluster) HandleStream(kind byte, fn func(ctx context.Context, from uint64, request []byte, w io.Writer) error, options ...HandleOption) {
	checkKind(kind)
	c.streamers[kind].Store(&streamHandler{limitOf(options), fn})
}

// Stream asks a node for a long answer, over a connection of its own. The reader
// returns io.EOF after the last byte of an answer that is complete, and another
// error if it ends in any other way: io.ErrUnexpectedEOF if the connection was
// cut, or nothing came for a minute; a [RemoteError] if the sender gave up. The
// caller closes it. ctx bounds the whole stream. Errors of Stream itself wrap
// [ErrNotSent].
func (c *Cluster) Stream(ctx context.Context, to uint64, kind byte, request []byte) (io.ReadCloser, error) {
	checkKind(kind)
	if len(request) > MaxFrame-1 {
		return nil, fmt.Errorf("%w: %d bytes are too many", ErrNotSent, len(request))
	}
	conn, err := c.dial(ctx, to, Bulk)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	if !c.enter(conn) { // so that Close ends it
		conn.Close()
		return nil, fmt.Errorf("%w: no more connections", ErrNotSent)
	}
	s := newStream(ctx, c, to, conn, conn)
	head := append(appendHead(nil, kindStream, 1+len(request)), kind)
	parts := net.Buffers{head, request}
	if _, err := parts.WriteTo(conn); err != nil {
		s.close()
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err) // half a request is none
	}
	return s, nil
}

// stream is the receiving end.
type stream struct {
	c        *Cluster
	ctx      context.Context // of whoever asked
	from     uint64
	conn     net.Conn
	r        *bufio.Reader
	patience time.Duration // with a sender that says nothing, and does not hang up either
	close    func()

	buf   []byte // memory of the chunks
	chunk []byte // what is left of the current one, in buf
	total uint64
	err   error // from now on
}

// newStream reads r, which is conn but in tests, until ctx ends.
func newStream(ctx context.Context, c *Cluster, from uint64, conn net.Conn, r io.Reader) *stream {
	c.stats[Bulk].connsOut.Add(1)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return &stream{
		c: c, ctx: ctx, from: from, conn: conn, r: bufio.NewReaderSize(r, readSize), patience: stuckAfter,
		close: sync.OnceFunc(func() {
			stop()
			c.exit(conn)
			c.stats[Bulk].connsOut.Add(-1)
		}),
	}
}

func (s *stream) Read(p []byte) (int, error) {
	for len(s.chunk) == 0 && s.err == nil {
		s.err = s.next()
	}
	if len(s.chunk) == 0 {
		return 0, s.err
	}
	n := copy(p, s.chunk)
	s.chunk = s.chunk[n:]
	return n, nil
}

// next reads a chunk, or the end as io.EOF.
func (s *stream) next() error {
	s.conn.SetReadDeadline(time.Now().Add(s.patience))
	kind, n, err := readHead(s.r)
	if err == nil {
		err = s.c.meddle(s.from)
	}
	if err != nil {
		return s.cut(err)
	}
	switch {
	case kind == kindChunk && n > chunkHead && n <= chunkHead+maxChunk,
		kind == kindEnd && n == 8,
		kind == kindFailed && n <= maxHandshake:
	default:
		return garbage(fmt.Sprintf("a frame of kind %d with %d bytes in a stream", kind, n))
	}
	if cap(s.buf) < n {
		s.buf = make([]byte, max(n, chunkHead+chunkSize))
	}
	b := s.buf[:n]
	if _, err := io.ReadFull(s.r, b); err != nil {
		return s.cut(err)
	}
	st := &s.c.stats[Bulk]
	st.framesIn.Add(1)
	st.bytesIn.Add(uint64(frameHead + n))
	switch kind {
	case kindEnd:
		if total := binary.LittleEndian.Uint64(b); total != s.total {
			return garbage(fmt.Sprintf("a stream of %d bytes that claims to be %d long", s.total, total))
		}
		return io.EOF
	case kindFailed:
		return &RemoteError{From: s.from, Text: string(b)}
	}
	if data := b[chunkHead:]; crc32.Checksum(data, castagnoli) == binary.LittleEndian.Uint32(b) {
		s.chunk = data
		s.total += uint64(len(data))
		return nil
	}
	return garbage("a chunk that was damaged on its way")
}

// cut is the error of a connection that ended too early.
func (s *stream) cut(err error) error {
	switch {
	case s.ctx.Err() != nil:
		return context.Cause(s.ctx)
	case s.c.ctx.Err() != nil:
		return ErrClosed
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
}

func (s *stream) Close() error {
	s.close()
	return nil
}

// serveStream answers the one request of a Bulk connection.
func (c *Cluster) serveStream(conn net.Conn, h hello) error {
	if tcp, ok := conn.(*net.TCPConn); ok {
		setUserTimeout(tcp, stuckAfter)
	}
	conn.SetReadDeadline(time.Now().Add(stuckAfter))
	kind, n, err := readHead(conn)
	if err != nil {
		return err
	}
	if kind != kindStream || n < 1 {
		return garbage("a bulk connection that asks for no stream")
	}
	var b [1]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return unexpected(err)
	}
	n--
	w := &chunkWriter{c: c, to: h.from, conn: conn}
	handler := c.streamers[b[0]].Load()
	if handler == nil {
		c.unknown.Add(1)
		return w.fail(fmt.Errorf("%s has no handler for streams of kind %d", c.o.Name, b[0]))
	}
	if n > handler.limit {
		return garbage(fmt.Sprintf("a request for a stream with %d bytes, where %d is the limit", n, handler.limit))
	}
	request, err := readBody(conn, n)
	if err != nil {
		return err
	}
	if c.streamsRunning.Add(1) > maxStreams {
		c.streamsRunning.Add(-1)
		return w.fail(fmt.Errorf("%s is busy with other streams", c.o.Name))
	}
	defer c.streamsRunning.Add(-1)
	conn.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	c.wg.Go(func() { hungUp(conn, cancel) })
	if err := handler.fn(ctx, h.from, request, w); err != nil {
		return w.fail(err)
	}
	return w.end()
}

// chunkWriter gathers what a handler writes into chunks.
type chunkWriter struct {
	c     *Cluster
	to    uint64
	conn  net.Conn
	buf   []byte // the frame being filled, its head included
	total uint64
	err   error // of the connection; nothing is written after it
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	if w.buf == nil {
		w.buf = make([]byte, frameHead+chunkHead, frameHead+chunkHead+chunkSize)
	}
	n := 0
	for len(p) > 0 && w.err == nil {
		k := min(len(p), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, p[:k]...)
		n, p = n+k, p[k:]
		if len(w.buf) == cap(w.buf) {
			w.flush()
		}
	}
	return n, w.err
}

func (w *chunkWriter) flush() {
	const head = frameHead + chunkHead
	if len(w.buf) <= head {
		return
	}
	data := w.buf[head:]
	binary.LittleEndian.PutUint32(w.buf[frameHead:], crc32.Checksum(data, castagnoli))
	appendHead(w.buf[:0], kindChunk, chunkHead+len(data))
	w.total += uint64(len(data))
	w.send(w.buf)
	w.buf = w.buf[:head]
}

func (w *chunkWriter) send(b []byte) {
	if w.err != nil {
		return
	}
	if w.err = w.c.meddle(w.to); w.err != nil {
		return
	}
	w.conn.SetWriteDeadline(time.Now().Add(stuckAfter))
	if _, w.err = w.conn.Write(b); w.err != nil {
		return
	}
	st := &w.c.stats[Bulk]
	st.framesOut.Add(1)
	st.bytesOut.Add(uint64(len(b)))
}

func (w *chunkWriter) end() error {
	w.flush()
	w.send(appendFrame(nil, kindEnd, nil, binary.LittleEndian.AppendUint64(nil, w.total)))
	return w.err
}

// fail tells the receiver that the stream is not complete, and why.
func (w *chunkWriter) fail(err error) error {
	text := err.Error()
	w.send(appendFrame(nil, kindFailed, nil, []byte(text[:min(len(text), maxReason)])))
	return err
}
