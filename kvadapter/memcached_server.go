package kvadapter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/attunekv/attune/internal/rawio"
)

// memcachedServer is one server: its client, what is known of its health, and its
// figures.
type memcachedServer struct {
	addr    string
	timeout time.Duration
	client  *memcache.Client // for what is read, and records of Large or more
	reads   memcachedReads   // has the client get single records
	pipe    memcachedPipe    // for the other records, and deletions
	// busy has a token for each call on its way, but those of reads and pipe. Without
	// a bound, a thousand sessions would dial a thousand connections, and close all
	// but max_idle of them a moment later, again and again.
	busy chan struct{}

	health  memcachedHealth
	limit   memcachedLimit
	latency memcachedLatency // of calls that were made
	retired atomic.Bool      // no connection is kept

	gets     atomic.Int64 // keys asked for
	hits     atomic.Int64 // records found
	foreign  atomic.Int64 // found, but no record of ours
	puts     atomic.Int64 // asked
	deletes  atomic.Int64 // asked
	errors   atomic.Int64 // calls that failed, timeouts included
	timedOut atomic.Int64 // calls that failed for want of an answer
	retries  atomic.Int64 // calls repeated since an idle connection had died
	dials    atomic.Int64 // connections tried
}

func newMemcachedServer(addr string, timeout time.Duration, maxIdle int) *memcachedServer {
	s := &memcachedServer{
		addr:    addr,
		timeout: timeout,
		busy:    make(chan struct{}, maxIdle),
	}
	s.client = memcache.NewFromSelector(&memcachedAddr{addr})
	s.client.Timeout = timeout
	s.client.MaxIdleConns = maxIdle + readLanes
	s.client.DialContext = s.dial
	s.reads.open(s, maxIdle)
	s.pipe.open(s)
	s.limit.open()
	s.health.closing, s.health.ask = make(chan struct{}), s.ping
	return s
}

// memcachedAddr is a server's address as written, and the selector that always
// picks it. gomemcache's ServerList would look names up once, at the start.
type memcachedAddr struct{ addr string }

// Network implements net.Addr.
func (a *memcachedAddr) Network() string {
	if strings.HasPrefix(a.addr, "/") {
		return "unix"
	}
	return "tcp"
}

// String implements net.Addr.
func (a *memcachedAddr) String() string { return a.addr }

// PickServer implements memcache.ServerSelector.
func (a *memcachedAddr) PickServer(string) (net.Addr, error) { return a, nil }

// Each implements memcache.ServerSelector.
func (a *memcachedAddr) Each(fn func(net.Addr) error) error { return fn(a) }

// call runs op, a request of the client that may be repeated, and returns its
// error as the Backend interface has it: nil, ErrNotFound, an error that wraps
// one of the sentinels, or the cause of ctx.
func (s *memcachedServer) call(ctx context.Context, op func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := s.refused(1); err != nil { // without waiting for those who wait for the server
		return err
	}
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer func() { <-s.busy }()
	return s.try(1, op)
}

// try is call for n callers, who have waited for their turn.
func (s *memcachedServer) try(n int, op func() error) error {
	if err := s.refused(n); err != nil {
		return err
	}
	start := time.Now()
	err := op()
	for diedIdle(err) && time.Since(start) < s.timeout {
		s.retries.Add(1)
		s.dropIdle()
		err = op()
	}
	return s.finish(start, n, err)
}

// refused returns the error of n calls that are not made since the server is down,
// or nil.
func (s *memcachedServer) refused(n int) error {
	why := s.health.down.Load()
	if why == nil {
		return nil
	}
	s.errors.Add(int64(n))
	return fmt.Errorf("%w; trying again every %v", *why, probeEvery)
}

// finish takes note of n calls that began together and came to err, and returns the
// error of each.
func (s *memcachedServer) finish(start time.Time, n int, err error) error {
	s.latency.add(n, time.Since(start))
	if noAnswer(err) {
		s.timedOut.Add(int64(n))
	}
	// Connections to a host that is gone give no error, only silence: the next call
	// should not find out on another one.
	if noAnswer(err) || s.retired.Load() {
		s.dropIdle()
	}
	if err == nil || errors.Is(err, memcache.ErrCacheMiss) {
		s.health.answered()
		if err != nil {
			err = ErrNotFound
		}
		return err
	}
	s.errors.Add(int64(n))
	if err = s.explain(err); errors.Is(err, ErrUnavailable) {
		s.health.failed(n, err)
	} else {
		s.health.answered()
	}
	return err
}

// ping asks the server whether it answers, on a new connection.
func (s *memcachedServer) ping() error {
	s.dropIdle()
	return s.client.Ping()
}

// close releases the server: calls under way go on, and keep no connection.
func (s *memcachedServer) close() {
	s.health.close()
	s.limit.close()
	s.retired.Store(true)
	s.pipe.retire(s.pipe.hangUp)
	s.dropIdle()
}

// acquire takes a token of busy.
func (s *memcachedServer) acquire(ctx context.Context) error {
	select {
	case s.busy <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(s.timeout)
	defer timer.Stop()
	select {
	case s.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		s.errors.Add(1)
		return s.unavailable(fmt.Sprintf("all %d connections busy for %v; raise max_idle if the server has time left", cap(s.busy), s.timeout))
	}
}

// dropIdle closes the connections that no call is using. The client dials anew.
func (s *memcachedServer) dropIdle() { _ = s.client.Close() }

// getMulti fetches names[i] into recs[i], or errs[i], for each i of idx. Once a
// batch failed, those behind it are not asked for.
func (s *memcachedServer) getMulti(ctx context.Context, names []string, idx []int, recs []Record, errs []error) {
	var failed error
	batch := make([]string, 0, min(len(idx), memcachedBatch))
	for len(idx) > 0 {
		part := idx[:min(len(idx), memcachedBatch)]
		idx = idx[len(part):]
		batch = batch[:0]
		for _, i := range part {
			batch = append(batch, names[i])
		}
		s.gets.Add(int64(len(part)))
		var items map[string]*memcache.Item
		if failed == nil {
			failed = s.call(ctx, func() (err error) {
				items, err = s.client.GetMulti(batch)
				return err
			})
		}
		// A call that failed has the items that came before it did.
		for _, i := range part {
			switch item := items[names[i]]; {
			case item != nil:
				recs[i], errs[i] = s.record(item)
			case failed != nil:
				recs[i], errs[i] = Record{}, failed
			default:
				recs[i], errs[i] = Record{}, ErrNotFound
			}
		}
	}
}

// record returns the record in an item, or ErrNotFound if it is no record.
func (s *memcachedServer) record(item *memcache.Item) (Record, error) {
	_, rec, ok := parseMemcachedRecord(item.Value)
	if !ok {
		s.foreign.Add(1)
		return Record{}, ErrNotFound
	}
	s.hits.Add(1)
	return rec, nil
}

func (s *memcachedServer) appendStats(out []Stat, prefix string) []Stat {
	down := int64(0)
	if s.health.down.Load() != nil {
		down = 1
	}
	for _, stat := range []Stat{
		{"gets", s.gets.Load()},
		{"hits", s.hits.Load()},
		{"foreign", s.foreign.Load()},
		{"puts", s.puts.Load()},
		{"deletes", s.deletes.Load()},
		{"errors", s.errors.Load()},
		{"timeouts", s.timedOut.Load()},
		{"retries", s.retries.Load()},
		{"dials", s.dials.Load()},
		{"busy", int64(len(s.busy) + s.reads.underWay() + s.pipe.underWay())},
		{"down", down},
		{"wait_us", time.Duration(s.latency.sum.Load()).Microseconds()},
	} {
		out = append(out, Stat{Name: prefix + stat.Name, Value: stat.Value})
	}
	return out
}

// explain turns an error of the client into one that says which server, what
// happened, and what helps, on one line.
func (s *memcachedServer) explain(err error) error {
	text := err.Error()
	var (
		connect *memcache.ConnectTimeoutError
		op      *net.OpError
	)
	switch {
	case errors.As(err, &connect):
		return s.unavailable(fmt.Sprintf("no connection within %v", s.timeout))
	case noAnswer(err):
		return s.unavailable(fmt.Sprintf("no answer within %v", s.timeout))
	case errors.As(err, &op):
		return s.unavailable(op.Err.Error()) // the rest names the address again
	// The client has no error values for the server's own; it quotes the line.
	case strings.Contains(text, `from "set": "SERVER_ERROR object too large`):
		return s.tooLarge()
	case strings.Contains(text, `from "set": "SERVER_ERROR out of memory`):
		return s.full()
	}
	return s.unavailable(strings.TrimPrefix(text, "memcache: "))
}

func (s *memcachedServer) tooLarge() error {
	return fmt.Errorf("backend %s: %w: raise memcached's item size limit (-I)", s.addr, ErrTooLarge)
}

func (s *memcachedServer) full() error {
	return fmt.Errorf("backend %s: %w: raise memcached's memory (-m)", s.addr, ErrFull)
}

func (s *memcachedServer) unavailable(why string) error {
	return fmt.Errorf("backend %s: %w: %s", s.addr, ErrUnavailable, why)
}

// noAnswer reports whether err is a timeout: nothing refused, nothing broke.
func noAnswer(err error) bool {
	var connect *memcache.ConnectTimeoutError
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &connect)
}

// diedIdle reports whether err means no more than that a connection died since
// its last call (the server restarted, or closed it for being idle), so that the
// request should be made again on another. All of ours may be: a Get changes
// nothing, and a Put or Delete made twice is the same as made once.
func diedIdle(err error) bool {
	var died *diedIdleError
	return errors.As(err, &died)
}

// diedIdleError is any error but a timeout on a connection that served calls
// before.
type diedIdleError struct{ error }

func (e *diedIdleError) Unwrap() error { return e.error }

// dial implements memcache.Client.DialContext. The dialer looks names up, each
// time, and tries all their addresses.
func (s *memcachedServer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	s.dials.Add(1)
	nc, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if s.limit.wanted.Load() {
		s.learn()
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = nc.SetDeadline(deadline) // cannot fail on an open connection
	}
	return &memcachedConn{Conn: rawio.Conn(nc), timeout: s.timeout}, nil
}

// memcachedStride is the bytes that a request may move within the timeout, before
// it gets the timeout anew: large values need time, and a server that sends some
// bytes now and then should not hold a call for ever.
const memcachedStride = 1 << 20

// memcachedConn keeps the time of a request. gomemcache moves the deadline with
// each value of an answer, and gives a dial a timeout of its own; here a request
// has one deadline, which for the first of a connection began with the dial.
type memcachedConn struct {
	net.Conn
	timeout  time.Duration
	moved    int  // bytes since the deadline was set
	answered bool // the last thing done was a Read
	served   bool // an earlier request was answered
}

// SetDeadline does nothing: see memcachedConn.
func (c *memcachedConn) SetDeadline(time.Time) error { return nil }

func (c *memcachedConn) restart() {
	c.moved = 0
	_ = c.Conn.SetDeadline(time.Now().Add(c.timeout)) // fails if closed, as what follows then does
}

func (c *memcachedConn) progress(n int) {
	if c.moved += n; c.moved >= memcachedStride {
		c.restart()
	}
}

// Write implements net.Conn. The first after a Read begins a request.
func (c *memcachedConn) Write(p []byte) (n int, err error) {
	if c.answered {
		c.answered, c.served = false, true
		c.restart()
	}
	for n < len(p) && err == nil {
		var m int
		m, err = c.Conn.Write(p[n:min(len(p), n+memcachedStride)])
		n += m
		c.progress(m)
	}
	return n, c.judge(err)
}

// Read implements net.Conn.
func (c *memcachedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.answered = true
	c.progress(n)
	return n, c.judge(err)
}

// judge marks the errors of connections that served before. One that timed out
// is about to be closed: with a reset, so that the kernel does not go on, for
// minutes if packets are lost, to deliver a request that was given up, and
// perhaps repeated or superseded since.
func (c *memcachedConn) judge(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if tcp, ok := rawio.Unwrap(c.Conn).(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // fails if closed already
		}
		return err
	}
	if err == nil || !c.served {
		return err
	}
	return &diedIdleError{err}
}
