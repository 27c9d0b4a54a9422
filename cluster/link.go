package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune/internal/rawio"
)

const (
	connectTimeout   = 2 * time.Second
	handshakeTimeout = 2 * time.Second
	// deadAfter is how long a peer may leave bytes unacknowledged before its
	// connection is given up.
	deadAfter = 5 * time.Second
	// stuckAfter is deadAfter of a stream, whose receiver may be busy with what
	// it got.
	stuckAfter = time.Minute

	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
	// steadyAfter is how long a connection must have lasted for the next one to
	// be dialed at once.
	steadyAfter = time.Second

	// copyBelow is the size from which a body is handed to the kernel where it
	// lies instead of being gathered with its neighbours.
	copyBelow = 4 << 10
	// keepScratch is how much memory for gathering a link keeps.
	keepScratch = 256 << 10
)

// queueLimit is how many bytes may wait for a connection, or be under way into
// it, by class. One frame is always accepted: it may be larger than that.
var queueLimit = [classes]int{Control: 4 << 20, Log: 64 << 20, Calls: 32 << 20}

// frame is one frame to send.
type frame struct {
	kind    byte
	headLen uint8
	head    [requestHead]byte
	body    []byte
	call    *call // of a request; else nil
}

func (f *frame) size() int { return frameHead + int(f.headLen) + len(f.body) }

// link is the sending end of one connection: what waits for it, and the
// goroutine that dials it when there is something to send, and writes.
//
// Frames are lost in three ways, and OnDown is told of each: the peer cannot be
// dialed (then whatever waited is dropped), a write fails (then whatever was in
// it), or the connection breaks after the write (nobody knows). What waits while
// a connection breaks is sent over the next one.
type link struct {
	c      *Cluster
	id     uint64
	class  Class
	ctx    context.Context // ends when nobody wants the link any more
	cancel context.CancelFunc
	wake   chan struct{} // has room for one: there is something to do

	mu      sync.Mutex
	queue   []frame
	bytes   int // of queue and of what is being written
	conn    net.Conn
	broken  bool // conn is of no use any more
	renew   bool // say HELLO anew before the next frame
	closed  bool
	failed  int       // attempts in a row that came to nothing
	retryAt time.Time // until then nothing is accepted; set if failed > 0

	// Used by the goroutine only.
	opened  time.Time
	batch   []frame
	scratch []byte
	parts   net.Buffers
}

// link returns the one to a node, or nil if nobody knows where that is.
func (c *Cluster) link(id uint64, class Class) *link {
	key := linkKey{id, class}
	c.linksMu.RLock()
	l := c.links[key]
	c.linksMu.RUnlock()
	if l != nil {
		return l
	}
	if id == c.o.ID || c.address(id) == "" {
		return nil
	}
	c.linksMu.Lock()
	defer c.linksMu.Unlock()
	if l = c.links[key]; l == nil && c.ctx.Err() == nil {
		l = &link{c: c, id: id, class: class, wake: make(chan struct{}, 1)}
		l.ctx, l.cancel = context.WithCancel(c.ctx)
		c.links[key] = l
		c.wg.Go(l.run)
	}
	return l
}

type linkKey struct {
	id    uint64
	class Class
}

// send queues a frame. False: it will certainly not be sent.
func (l *link) send(f frame) bool {
	n := f.size()
	l.mu.Lock()
	ok := !l.closed && (l.bytes == 0 || l.bytes+n <= queueLimit[l.class]) &&
		(l.failed == 0 || !time.Now().Before(l.retryAt))
	if ok {
		l.queue = append(l.queue, f)
		l.bytes += n
	}
	l.mu.Unlock()
	if !ok {
		l.c.stats[l.class].dropped.Add(1)
		return false
	}
	l.c.stats[l.class].queued.Add(int64(n))
	l.poke()
	return true
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// hope forgets that the peer could not be reached: it was just heard of.
func (l *link) hope() {
	l.mu.Lock()
	l.failed = 0
	l.mu.Unlock()
}

// again has the link say HELLO anew before the next frame. What is written
// already arrives all the same.
func (l *link) again() {
	l.mu.Lock()
	l.renew = true
	l.failed = 0
	l.mu.Unlock()
	l.poke()
}

func (l *link) run() {
	for l.ctx.Err() == nil {
		select {
		case <-l.wake:
			l.turn()
		case <-l.ctx.Done():
		}
	}
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.hangUp()
	l.drop(l.take())
	l.down()
}

// turn does whatever there is to do.
func (l *link) turn() {
	l.mu.Lock()
	broken, renew, idle := l.broken, l.renew, len(l.queue) == 0
	l.mu.Unlock()
	if broken {
		l.hangUp()
		if l.ended() {
			return
		}
	}
	if idle {
		if renew {
			l.hangUp() // everything is written: the peer reads it to its end
		}
		return
	}
	if renew {
		l.hangUp()
	}
	if l.conn == nil && !l.connect() {
		l.fail()
		return
	}
	batch := l.take()
	if l.c.faults.active.Load() != nil {
		batch = l.spoil(batch)
	}
	if err := l.write(batch); err != nil {
		l.hangUp()
		l.lose(batch)
		if !l.ended() {
			l.poke()
		}
		return
	}
	n := l.forget(batch)
	l.c.stats[l.class].framesOut.Add(uint64(len(batch)))
	l.c.stats[l.class].bytesOut.Add(uint64(n))
	l.batch = batch[:0]
}

// take takes everything queued. Its bytes count until forget.
func (l *link) take() []frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := l.queue
	l.queue, l.batch = l.batch[:0], nil
	return batch
}

// forget lets go of a batch, and returns its size.
func (l *link) forget(batch []frame) int {
	n := 0
	for i := range batch {
		n += batch[i].size()
	}
	clear(batch)
	l.mu.Lock()
	l.bytes -= n
	l.mu.Unlock()
	l.c.stats[l.class].queued.Add(int64(-n))
	return n
}

// drop forgets frames that were never written.
func (l *link) drop(batch []frame) {
	for i := range batch {
		if call := batch[i].call; call != nil {
			l.c.calls.finish(call, nil, fmt.Errorf("%w: %016x cannot be reached", ErrNotSent, l.id))
		}
	}
	l.lose(batch)
}

// lose forgets frames that were perhaps written.
func (l *link) lose(batch []frame) {
	l.c.stats[l.class].dropped.Add(uint64(len(batch)))
	l.forget(batch)
}

// ended says that a connection broke. True: it was so short that the peer is
// given up for a moment, as one that accepts and hangs up is no better than none.
func (l *link) ended() bool {
	if time.Since(l.opened) < steadyAfter {
		l.fail()
		return true
	}
	l.down()
	return false
}

// fail gives up what waits, and the peer for a moment, before it tells of that:
// what is sent because it was told is not dropped with the rest.
func (l *link) fail() {
	l.mu.Lock()
	wait := min(minBackoff<<min(l.failed, 10), maxBackoff)
	wait = wait/2 + rand.N(wait/2+1) // so that the nodes of a rack do not retry in step
	l.failed++
	l.retryAt = time.Now().Add(wait)
	l.mu.Unlock()
	l.drop(l.take())
	l.down()
}

// hangUp closes the connection, if there is one. What was written arrives first.
func (l *link) hangUp() {
	l.mu.Lock()
	conn := l.conn
	l.conn, l.broken, l.renew = nil, false, false
	l.mu.Unlock()
	if conn != nil {
		conn.Close()
		l.c.stats[l.class].connsOut.Add(-1)
	}
}

// down tells who must know that frames may be lost.
func (l *link) down() {
	if l.class == Calls {
		l.c.calls.lost(l.id)
	}
	if fn := l.c.onDown.Load(); fn != nil && l.c.ctx.Err() == nil {
		(*fn)(l.id, l.class)
	}
}

func (l *link) connect() bool {
	conn, err := l.c.dial(l.ctx, l.id, l.class)
	if err != nil {
		return false
	}
	l.mu.Lock()
	l.conn, l.broken, l.failed = conn, false, 0
	l.mu.Unlock()
	l.opened = time.Now()
	l.c.stats[l.class].connsOut.Add(1)
	l.c.wg.Go(func() {
		// A write that blocks, or a peer that hangs up, is noticed here. There is
		// nothing to read: a peer that says anything breaks the rules.
		stop := context.AfterFunc(l.ctx, func() { conn.Close() })
		defer stop()
		var b [1]byte
		conn.Read(b[:])
		l.mu.Lock()
		if l.conn == conn {
			l.broken = true
		}
		l.mu.Unlock()
		l.poke()
	})
	return true
}

// write writes a batch with as few calls of the kernel as it can. Small bodies
// are gathered; large ones are sent from where they are.
func (l *link) write(batch []frame) error {
	need := 0
	for i := range batch {
		need += frameHead + int(batch[i].headLen)
		if n := len(batch[i].body); n < copyBelow {
			need += n
		}
	}
	b := l.scratch[:0]
	if cap(b) < need {
		b = make([]byte, 0, need) // once, as parts point into it
	}
	parts, from := l.parts[:0], 0
	for i := range batch {
		f := &batch[i]
		if f.call != nil && !f.call.state.CompareAndSwap(callQueued, callSent) {
			continue // whoever asked does not wait any more
		}
		b = appendHead(b, f.kind, int(f.headLen)+len(f.body))
		b = append(b, f.head[:f.headLen]...)
		if len(f.body) < copyBelow {
			b = append(b, f.body...)
			continue
		}
		parts = append(parts, b[from:], f.body)
		from = len(b)
	}
	if from < len(b) {
		parts = append(parts, b[from:])
	}
	l.parts = parts // WriteTo eats its receiver, not the array behind it
	eaten := parts
	var err error
	if len(parts) == 1 {
		_, err = l.conn.Write(parts[0])
	} else {
		_, err = eaten.WriteTo(rawio.Unwrap(l.conn)) // which has a system call for that
	}
	clear(l.parts)
	l.scratch = b
	if cap(b) > keepScratch {
		l.scratch = nil
	}
	return err
}

// dial connects to a node and says hello.
func (c *Cluster) dial(ctx context.Context, id uint64, class Class) (net.Conn, error) {
	addr := c.address(id)
	if addr == "" {
		return nil, errors.New("nobody knows where it is")
	}
	if c.faults.active.Load() != nil && c.cutOff(c.nameOf(id)) {
		return nil, errFault
	}
	conn, _, err := c.greet(ctx, addr, id, class)
	var refused *refusal
	switch {
	case err == nil:
		return rawio.Conn(conn), nil
	case errors.As(err, &refused):
		c.warnings.warn(addr, "a peer refuses this node: "+refused.reason)
	case ctx.Err() == nil:
		c.log.Debug("no connection to a peer", zap.String("peer", addr), zap.Stringer("class", class), zap.Error(err))
	}
	return nil, err
}

// refusal is what a peer said instead of welcome.
type refusal struct{ reason string }

func (r *refusal) Error() string { return "refused: " + r.reason }

// greet opens a connection to an address. To id 0 it asks who is there.
func (c *Cluster) greet(ctx context.Context, addr string, id uint64, class Class) (_ net.Conn, w welcome, err error) {
	dialer := net.Dialer{Timeout: connectTimeout, KeepAliveConfig: keepAlive}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, w, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			conn.Close()
		}
	}()
	timeout := deadAfter
	if class == Bulk {
		timeout = stuckAfter
	}
	setUserTimeout(conn.(*net.TCPConn), timeout)
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	h := hello{
		class: class, cluster: c.hash.Load(), from: c.o.ID, to: id,
		name: c.o.Name, kind: c.o.Kind, peer: c.place.Load().peer,
	}
	if _, err = conn.Write(appendFrame([]byte{byte(class)}, kindHello, nil, h.append(nil))); err != nil {
		return nil, w, err
	}
	kind, body, err := readSmall(conn)
	switch {
	case err != nil:
		return nil, w, unexpected(err)
	case kind == kindRefused:
		return nil, w, &refusal{printable(body)}
	case kind != kindWelcome:
		return nil, w, garbage("an answer to hello that is not attune's")
	}
	if w, err = parseWelcome(body); err != nil {
		return nil, w, err
	}
	if id != 0 && w.id != id {
		return nil, w, fmt.Errorf("%016x answers there instead of %016x", w.id, id)
	}
	return conn, w, conn.SetDeadline(time.Time{})
}

// keepAlive notices a peer that vanished while nothing is on its way to it.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3}

// printable makes a stranger's text fit for a log.
func printable(b []byte) string {
	b = b[:min(len(b), maxReason)]
	text := make([]rune, 0, len(b))
	for _, r := range string(b) {
		if r < ' ' || r == 0x7f {
			r = ' '
		}
		text = append(text, r)
	}
	return string(text)
}

func putRequest(f *frame, id uint64, timeout time.Duration, kind byte) {
	f.headLen = requestHead
	binary.LittleEndian.PutUint64(f.head[:], id)
	binary.LittleEndian.PutUint32(f.head[8:], uint32(min(max(timeout.Milliseconds(), 0), 1<<32-1)))
	f.head[12] = kind
}

func putResponse(f *frame, id uint64, status byte) {
	f.headLen = responseHead
	binary.LittleEndian.PutUint64(f.head[:], id)
	f.head[8] = status
}
