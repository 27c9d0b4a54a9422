package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune/internal/rawio"
)

const (
	// maxConns is how many connections the peer port holds. Peers need three
	// each; strangers get the rest.
	maxConns = 4096
	readSize = 64 << 10
)

// Limit sets the longest body a node accepts of a kind, in bytes, instead of
// [DefaultLimit]. A peer that sends a longer one loses its connection.
func Limit(bytes int) HandleOption {
	return func(limit *int) { *limit = min(bytes, MaxFrame) }
}

// HandleOption changes how a handler is registered.
type HandleOption func(limit *int)

func limitOf(options []HandleOption) int {
	limit := DefaultLimit
	for _, o := range options {
		o(&limit)
	}
	return limit
}

func checkKind(kind byte) {
	if kind < MinKind {
		panic(fmt.Sprintf("cluster: kind %d is reserved", kind))
	}
}

type frameHandler struct {
	limit int
	fn    func(from uint64, body []byte)
}

// Handle registers who gets the frames of a kind, which is at least [MinKind].
// fn runs on the goroutine that reads the connection, so that frames of one
// connection come in order and one that is slow holds back its class of its
// sender only. After a reconnection the last frames of the old connection may be
// handled at the same time as the first of the new one. On Linux a connection is
// given up when fn, or this process, lets its sender wait for five seconds.
//
// The body is memory of its own and fn's to keep: raft holds on to the entries
// it carries without copying them. Frames of a kind nobody handles are dropped
// and counted, as they may come from a newer release.
func (c *Cluster) Handle(kind byte, fn func(from uint64, body []byte), options ...HandleOption) {
	checkKind(kind)
	c.frames[kind].Store(&frameHandler{limitOf(options), fn})
}

// accept serves the peer port until it is closed.
func (c *Cluster) accept() {
	wait := time.Duration(0)
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			if c.ctx.Err() != nil {
				return
			}
			// No descriptors, most likely. Others may close theirs.
			c.warnings.error("", "cannot accept peers", zap.Error(err))
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(wait):
			case <-c.ctx.Done():
			}
			continue
		}
		wait = 0
		if !c.enter(conn) {
			conn.Close()
			continue
		}
		c.wg.Go(func() {
			defer c.exit(conn)
			c.serve(conn)
		})
	}
}

// connPeer is what is known of the other end of a connection, once it said hello.
type connPeer struct {
	cluster, from uint64
	class         Class
}

// enter remembers a connection, so that Close ends it.
func (c *Cluster) enter(conn net.Conn) bool {
	c.connsMu.Lock()
	defer c.connsMu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	if len(c.conns) >= maxConns {
		c.warnings.error("", "too many connections to the peer port: keep strangers away from it")
		return false
	}
	c.conns[conn] = connPeer{}
	return true
}

func (c *Cluster) exit(conn net.Conn) {
	conn.Close()
	c.connsMu.Lock()
	delete(c.conns, conn)
	c.connsMu.Unlock()
}

// serve reads one connection to its end.
func (c *Cluster) serve(conn net.Conn) {
	peer := conn.RemoteAddr().String()
	host, _, _ := net.SplitHostPort(peer)
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(keepAlive)
	}
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	h, err := c.welcome(conn)
	if err == nil && h.to != 0 {
		conn.SetDeadline(time.Time{})
		st := &c.stats[h.class]
		st.connsIn.Add(1)
		if h.class == Bulk {
			err = c.serveStream(conn, h)
		} else {
			err = c.read(conn, h)
		}
		st.connsIn.Add(-1)
	}
	var bad garbage
	var no *refusal
	switch {
	case errors.As(err, &bad):
		c.invalid.Add(1)
		c.warnings.warn(host, "the peer port got what no attune sends", zap.String("what", string(bad)))
	case errors.As(err, &no):
		c.refused.Add(1)
		c.warnings.warn(h.name+"@"+host, "refused a peer: "+no.reason)
	case err != nil && c.ctx.Err() == nil:
		c.log.Debug("a connection from a peer ended", zap.String("peer", peer), zap.Error(err))
	}
}

// welcome reads and answers the first words of a connection.
func (c *Cluster) welcome(conn net.Conn) (h hello, err error) {
	var class [1]byte
	if _, err := io.ReadFull(conn, class[:]); err != nil {
		return h, err
	}
	if Class(class[0]) >= classes {
		return h, garbage("an unknown class of connection")
	}
	kind, body, err := readSmall(conn)
	if err != nil {
		return h, err
	}
	if kind != kindHello {
		return h, garbage("a first frame that is no hello")
	}
	h, err = parseHello(body)
	if errors.Is(err, errVersion) {
		err = &refusal{fmt.Sprintf("this node speaks version %d of the peer protocol: run the same release on all nodes", protoVersion)}
	} else if err == nil && h.class != Class(class[0]) {
		err = garbage("two different classes in one hello")
	}
	if err == nil && c.faults.active.Load() != nil && c.cutOff(h.name) {
		return h, errFault
	}
	if err == nil {
		if why := c.judge(&h); why != "" {
			err = &refusal{why}
		}
	}
	var no *refusal
	if errors.As(err, &no) {
		reason := no.reason[:min(len(no.reason), maxReason)]
		conn.Write(appendFrame(nil, kindRefused, nil, []byte(reason)))
	}
	if err != nil {
		return h, err
	}
	// Before the answer, so that Belong either finds the connection here or has
	// changed what judge goes by.
	if h.to != 0 && !c.admit(conn, &h) {
		return h, &refusal{c.judge(&h)}
	}
	w := welcome{id: c.o.ID, nonce: c.nonce, age: c.age(), name: c.o.Name}
	if _, err := conn.Write(appendFrame(nil, kindWelcome, nil, w.append(nil))); err != nil {
		return h, err
	}
	if h.to != 0 {
		c.heard(&h)
	}
	return h, nil
}

// admit notes the cluster of a connection's peer, unless this node has become a
// member of another one since judge looked.
func (c *Cluster) admit(conn net.Conn, h *hello) bool {
	c.connsMu.Lock()
	defer c.connsMu.Unlock()
	if foreign(h.cluster, c.hash.Load()) {
		return false
	}
	c.conns[conn] = connPeer{h.cluster, h.from, h.class}
	return true
}

// judge says why a peer is refused, or "".
func (c *Cluster) judge(h *hello) string {
	own := c.hash.Load()
	switch {
	case h.to == 0 && h.class == Calls:
		return "" // merely asks who is here
	case h.kind != c.o.Kind:
		return fmt.Sprintf("%s is of a %s cluster, this is a %s one: they are never merged", h.name, h.kind, c.o.Kind)
	case foreign(h.cluster, own):
		return fmt.Sprintf("%s belongs to cluster %016x, this node to %016x: they are never merged; correct --join", h.name, h.cluster, own)
	case h.to != c.o.ID:
		return fmt.Sprintf("%016x is gone, %s is %016x now", h.to, c.o.Name, c.o.ID)
	case (h.cluster == 0 || own == 0) && (h.class == Control || h.class == Log):
		return "no cluster yet"
	}
	return ""
}

// foreign reports whether two hashes name two clusters.
func foreign(a, b uint64) bool { return a != 0 && b != 0 && a != b }

// read reads frames until the connection ends.
func (c *Cluster) read(conn net.Conn, h hello) error {
	r := bufio.NewReaderSize(rawio.Conn(conn), readSize)
	st := &c.stats[h.class]
	for {
		kind, n, err := readHead(r)
		if err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		if c.faults.active.Load() != nil {
			if lost, err := c.spoilIn(r, &h, kind, n); err != nil {
				return err
			} else if lost {
				continue
			}
		}
		switch {
		case kind >= MinKind:
			err = c.readFrame(r, h.from, kind, n)
		case h.class == Calls && kind == kindRequest:
			err = c.readRequest(r, h.from, n)
		case h.class == Calls && kind == kindResponse:
			err = c.readResponse(r, h.from, n)
		default:
			err = garbage(fmt.Sprintf("a frame of kind %d on class %s", kind, h.class))
		}
		if err != nil {
			return err
		}
		st.framesIn.Add(1)
		st.bytesIn.Add(uint64(frameHead + n))
	}
}

func (c *Cluster) readFrame(r *bufio.Reader, from uint64, kind byte, n int) error {
	handler := c.frames[kind].Load()
	if handler == nil {
		if n > DefaultLimit {
			return garbage("a long frame of an unknown kind")
		}
		c.unknown.Add(1)
		_, err := r.Discard(n)
		return unexpected(err)
	}
	if n > handler.limit {
		return garbage(fmt.Sprintf("a frame of kind %d with %d bytes, where %d is the limit", kind, n, handler.limit))
	}
	body, err := readBody(r, n)
	if err == nil {
		handler.fn(from, body)
	}
	return err
}

// hungUp calls fn when the peer closes a connection it has nothing to send on,
// or sends something nevertheless. It returns when the connection is closed.
func hungUp(conn net.Conn, fn context.CancelFunc) {
	var b [1]byte
	conn.Read(b[:])
	fn()
}
