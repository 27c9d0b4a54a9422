package controller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/otlp"
	"github.com/attunekv/attune/internal/room"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// Node is one controller: a memcache server over an engine, a replica and a
// backend.
type Node struct {
	cfg     Config                 // as it was opened
	conf    atomic.Pointer[Config] // see inUse
	log     *zap.Logger
	started time.Time
	ctx     context.Context // ends when the node does; commands run under it
	cancel  context.CancelCauseFunc

	shards []*shard    // of the one keyspace; see route
	room   *room.Watch // on the disks that are written to; nil if there are none
	// cluster is there while the engine looks for its place in it, and later.
	cluster atomic.Pointer[cluster.Cluster]
	// health is of the engine, once there is one: shards do not change from then on.
	health    atomic.Pointer[func() error]
	opened    atomic.Bool             // Open is done: before, only the admin address answers
	giveUp    context.CancelCauseFunc // ends Open
	fatal     chan error              // has room for one
	events    events                  // what log was told
	samples   samples
	discovery discovery
	reloads   reloads
	stripes   []counters
	loops     []*loop // empty where connections have goroutines

	listeners  []net.Listener
	admin      *adminServer
	accepting  sync.WaitGroup // one per listener
	background sync.WaitGroup // connections on goroutines, detached streams
	watching   sync.WaitGroup // for fatal errors

	draining   atomic.Bool
	drainUntil atomic.Int64  // unix nanoseconds, set before draining
	cut        atomic.Int64  // connections that the end of the drain closed while they were owed something
	stop       chan struct{} // closed when a client asked for shutdown, or an operator for leave
	stopOnce   sync.Once

	mu    sync.Mutex
	conns map[uint64]*connInfo // guarded by mu

	tracer      atomic.Pointer[tracer] // nil: nothing is exported
	traceCounts otlp.Counts
	logSample   logSample

	watches       atomic.Int64 // clients of /watch
	tracing       sync.Mutex   // held while a command is traced
	connIDs       atomic.Uint64
	curConns      atomic.Int64
	totalConns    atomic.Uint64
	rejectedConns atomic.Uint64
	resetAt       atomic.Pointer[totals] // what `stats reset` subtracts
}

// shard is one engine and the replica it keeps.
type shard struct {
	engine  consistency.Engine
	replica *replica.Replica
	backend kvadapter.Backend
	// remote says that bytes are outside this process: what is not at hand is
	// fetched, and the session waits.
	remote bool
	fetch  *fetcher // if remote
	// peers says that there may be others who have bytes that are out of reach here.
	peers bool
	// alone says that engine and bytes have only this process to do with: a
	// request waits for nothing, so it gets no deadline, and a barrier changes
	// nothing, so the clock need not be read again behind it. Both are a tenth of
	// a small read.
	alone bool
}

// connInfo is what is known of a connection from outside its session.
type connInfo struct {
	remote, local string
	active        atomic.Int64 // unix seconds of the last input
	conn          net.Conn     // nil if an event loop serves it
}

// Open starts a node in order: admin, backend, engine and replica, listeners. The
// node serves when Open returns: in a cluster that is when it is a full member, for
// which it waits until ctx ends. On error nothing is left running.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{
		cfg:     cfg,
		started: time.Now(),
		stripes: make([]counters, 8),
		conns:   make(map[uint64]*connInfo),
		stop:    make(chan struct{}),
		fatal:   make(chan error, 1),
	}
	n.logSample.set(cfg.LogSample)
	n.log = cfg.Log.With(zap.String("node", cfg.Name)).WithOptions(zap.WrapCore(n.logSample.thin), zap.WrapCore(n.events.keep))
	n.trace(&n.cfg)
	n.conf.Store(&n.cfg)
	n.Reloaded(nil)
	ctx, n.giveUp = context.WithCancelCause(ctx)
	defer n.giveUp(nil)
	n.ctx, n.cancel = context.WithCancelCause(context.Background())
	n.resetAt.Store(new(totals))
	for _, part := range []struct {
		name string
		open func(ctx context.Context) error
	}{
		{"admin", n.openAdmin},
		{"listen", n.tryListen},
		{"store", n.openShard},
		{"event loops", n.openLoops},
		{"cluster", n.awaitReady},
		{"listen", n.openListeners},
	} {
		if err := part.open(ctx); err != nil {
			n.closeNow(errors.New("start failed"))
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	n.opened.Store(true)
	n.log.Info("serving",
		zap.Stringer("level", cfg.Level),
		zap.Strings("listen", n.Addrs()),
		zap.String("admin", n.AdminAddr()),
		zap.String("backend", cfg.Backend))
	return n, nil
}

func (n *Node) openShard(ctx context.Context) error {
	backend, err := kvadapter.Open(n.cfg.Backend, kvadapter.Log(n.log))
	if err != nil {
		return err
	}
	n.watchFleet(backend)
	_, inProcess := backend.(kvadapter.Memory)
	alone := n.cfg.Alone()
	sh := &shard{backend: backend, remote: !inProcess, peers: !alone}
	sh.alone = inProcess && alone && n.cfg.wrap == nil
	full, err := n.watchRoom()
	if err != nil {
		return errors.Join(err, backend.Close())
	}
	shardNumber := len(n.shards)
	sh.engine, err = consistency.Open(ctx, n.cfg.Level, consistency.Options{
		OpenReplica: func(o replica.Options) (*replica.Replica, error) {
			o.Backend, o.MemoryLimit, o.HotCache = backend, n.cfg.MemoryLimit, n.cfg.HotCache
			sh.replica = replica.Open(o)
			return sh.replica, nil
		},
		Alone:       alone,
		Node:        n.cfg.Name,
		MaxItem:     n.cfg.MaxItemSize,
		OpenCluster: n.openCluster,
		Expect:      n.cfg.Expect,
		DataDir:     n.cfg.dataDir(),
		Full:        full,
		Sync:        n.cfg.Sync,
		WriteAcks:   n.cfg.WriteAcks, MaxSkew: n.cfg.MaxSkew, TombstoneMaxAge: n.cfg.TombstoneMaxAge,
		RepairRate: n.cfg.RepairRate,
		Trace: func(span attune.SpanContext, ops []attune.Op) *attune.Trace {
			return n.traceFor(shardNumber, span, ops)
		},
		Log: n.log,
	})
	if err != nil {
		if n.room != nil {
			n.room.Close()
		}
		return errors.Join(err, backend.Close())
	}
	if g, ok := sh.engine.(interface{ Fatal() <-chan error }); ok {
		n.watch(g.Fatal())
	}
	if sh.remote {
		sh.fetch = newFetcher(n.ctx, sh.replica, backend)
	}
	if n.cfg.wrap != nil {
		sh.engine = n.cfg.wrap(sh.engine)
	}
	n.shards = append(n.shards, sh)
	health := sh.engine.Health
	n.health.Store(&health)
	return nil
}

// watchRoom watches the disks that this node writes to. full says that one has too
// little room; it is nil if there are none.
func (n *Node) watchRoom() (full func() error, err error) {
	dir := n.cfg.dataDir()
	if dir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o700); errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("data-dir: %w: this process must be allowed to read and write the directory and all files in it", err)
	} else if err != nil {
		return nil, fmt.Errorf("data-dir: %w", err)
	}
	dirs := []room.Reserved{{Dir: dir, Reserve: room.Reserve}}
	if bytes, reserve := kvadapter.PebbleDir(n.cfg.Backend); bytes != "" {
		dirs = append(dirs, room.Reserved{Dir: bytes, Reserve: reserve})
	}
	n.room = room.New(func(err error) {
		if err != nil {
			n.log.Error("writes are refused until there is room", zap.Error(err))
		} else {
			n.log.Info("there is room again; writes are accepted")
		}
	}, dirs...)
	return n.room.Err, nil
}

// full is why writes are refused here, for want of room on a disk, or nil.
func (n *Node) full() error {
	if n.room == nil {
		return nil
	}
	return n.room.Err()
}

// awaitReady returns when the level is served here.
func (n *Node) awaitReady(ctx context.Context) error {
	for _, sh := range n.shards {
		select {
		case <-sh.engine.Ready():
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", sh.engine.Health(), context.Cause(ctx))
		}
	}
	return nil
}

func (n *Node) openLoops(context.Context) (err error) {
	if n.cfg.goroutines {
		return nil
	}
	n.loops, err = newLoops(n)
	return err
}

// tryListen sees that the addresses of clients are free before this node enters a
// cluster. They are opened when it serves: clients that come earlier are refused,
// and try another controller.
func (n *Node) tryListen(context.Context) error {
	for _, a := range n.cfg.Listen {
		l, err := listen(a, "listen")
		if err != nil {
			return err
		}
		l.Close()
	}
	return nil
}

func (n *Node) openListeners(context.Context) error {
	for _, a := range n.cfg.Listen {
		l, err := listen(a, "listen")
		if err != nil {
			return err
		}
		n.listeners = append(n.listeners, l)
	}
	for _, l := range n.listeners {
		n.accepting.Add(1)
		go n.accept(l)
	}
	return nil
}

// listen opens an address that setting holds. A unix socket nobody answers on is
// a leftover of a killed process and is replaced.
func listen(addr, setting string) (net.Listener, error) {
	network, address := splitAddr(addr)
	l, err := net.Listen(network, address)
	if err != nil && network == "unix" {
		if c, dialErr := net.Dial(network, address); dialErr == nil {
			c.Close()
			return nil, fmt.Errorf("%s: another process is listening there", addr)
		}
		if st, statErr := os.Lstat(address); statErr == nil && st.Mode()&os.ModeSocket != 0 {
			os.Remove(address)
			l, err = net.Listen(network, address)
		}
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w; choose another address with --%s, or stop what uses this one", err, setting)
	}
	return l, err
}

// accept takes connections until its listener is closed.
func (n *Node) accept(l net.Listener) {
	defer n.accepting.Done()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, most likely: it passes when a client leaves.
			n.log.Warn("cannot accept a connection; raise the limit of open files if this repeats", zap.Error(err))
			select {
			case <-time.After(100 * time.Millisecond):
			case <-n.ctx.Done():
			}
			continue
		}
		n.admit(c)
	}
}

// admit starts serving a connection, unless there are too many.
func (n *Node) admit(c net.Conn) {
	if n.curConns.Add(1) > int64(n.inUse().MaxConns) {
		n.curConns.Add(-1)
		n.rejectedConns.Add(1)
		c.SetWriteDeadline(time.Now().Add(time.Second))
		c.Write([]byte("ERROR Too many open connections\r\n"))
		c.Close()
		return
	}
	n.totalConns.Add(1)
	id := n.connIDs.Add(1)
	stripe := &n.stripes[id%uint64(len(n.stripes))]
	info := &connInfo{remote: connAddr(c.RemoteAddr()), local: connAddr(c.LocalAddr())}
	info.active.Store(time.Now().Unix())
	left := func() {
		n.mu.Lock()
		delete(n.conns, id)
		n.mu.Unlock()
		n.curConns.Add(-1)
	}
	if len(n.loops) == 0 {
		info.conn = c
	}
	n.mu.Lock()
	n.conns[id] = info
	n.mu.Unlock()
	if len(n.loops) > 0 {
		if err := n.loops[id%uint64(len(n.loops))].add(c, info, left); err != nil {
			left()
			n.log.Warn("connection dropped", zap.Error(err))
		}
		return
	}
	n.background.Add(1)
	go func() {
		defer n.background.Done()
		defer left()
		defer c.Close()
		n.serveConn(c, info, stripe)
	}()
}

// connAddr is an address as `stats conns` has it.
func connAddr(a net.Addr) string { return a.Network() + ":" + a.String() }

// route says which shard serves key, and fills in the key's hash if it was not
// routed before. Today there is one shard; the caller may not assume it.
func (n *Node) route(key *attune.Key) *shard {
	sh := n.shards[0]
	if key.Hash == (attune.KeyHash{}) {
		key.Hash = sh.replica.Hash(key.Text)
	}
	return sh
}

// now is the clock replies are formatted by, in unix milliseconds.
func (n *Node) now() int64 { return n.shards[0].engine.Now() }

// Ready reports why the node does not serve its level, or nil.
func (n *Node) Ready() error {
	if n.draining.Load() {
		return errors.New("draining")
	}
	if !n.opened.Load() {
		return n.opening()
	}
	for _, sh := range n.shards {
		if err := sh.engine.Health(); err != nil {
			return fmt.Errorf("level %v is not served: %w", n.cfg.Level, err)
		}
	}
	return nil
}

// Addrs lists the client addresses, as bound.
func (n *Node) Addrs() []string {
	var addrs []string
	for _, l := range n.listeners {
		addrs = append(addrs, boundAddr(l))
	}
	return addrs
}

// boundAddr is where l listens, as a setting has it.
func boundAddr(l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String()
	}
	return l.Addr().String()
}

// AdminAddr is the HTTP address as bound, or "".
func (n *Node) AdminAddr() string {
	if n.admin == nil {
		return ""
	}
	return n.admin.addr()
}

// ShutdownAsked is closed when a client stopped the node with `shutdown`, or an operator
// with `attune leave`.
func (n *Node) ShutdownAsked() <-chan struct{} { return n.stop }

const (
	// lastRead is how long a drain waits for bytes under way to a session that is
	// owed nothing.
	lastRead = 10 * time.Millisecond
	// lastCall is how long after that a session refuses commands before it is
	// closed. A connection that is just closed leaves a client that has sent a
	// command at that moment in doubt about it.
	lastCall = 200 * time.Millisecond
)

// errLeaving: nothing was done.
var errLeaving = errors.New("not ready: this controller is stopping")

// Close drains the node, within DrainTimeout and until ctx ends: it accepts no
// more connections, finishes the commands it received, refuses the next one of
// each session that falls idle and closes it, then stops admin, engine and
// backend. The error tells what was cut short.
func (n *Node) Close(ctx context.Context) error {
	n.drainUntil.Store(time.Now().Add(n.inUse().DrainTimeout).UnixNano())
	n.draining.Store(true)
	n.log.Info("draining", zap.Int64("connections", n.curConns.Load()), zap.Stringer("timeout", n.inUse().DrainTimeout))
	stop := context.AfterFunc(ctx, func() { n.drainUntil.Store(time.Now().UnixNano()) })
	defer stop()
	n.stopAccepting()

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, l := range n.loops {
			l.wake()
		}
		n.wakeConns()
		for _, l := range n.loops {
			<-l.done
		}
		n.background.Wait()
	}()
	for expired := false; ; {
		select {
		case <-ended:
			err := n.closeNow(errors.New("node closed"))
			if cut := n.cut.Load(); cut > 0 {
				err = errors.Join(err, fmt.Errorf("drain: %d connections did not finish in time", cut))
			}
			n.log.Info("stopped", zap.Error(err))
			return err
		case <-time.After(50 * time.Millisecond):
			if !expired && time.Now().After(n.drainDeadline()) {
				expired = true
				n.cancel(errors.New("drain timed out"))
				n.mu.Lock()
				for _, info := range n.conns {
					if info.conn != nil {
						info.conn.Close()
					}
				}
				n.mu.Unlock()
			}
		}
	}
}

func (n *Node) drainDeadline() time.Time { return time.Unix(0, n.drainUntil.Load()) }

// wakeConns ends the reads of sessions on goroutines, so that they notice the
// drain.
func (n *Node) wakeConns() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, info := range n.conns {
		if info.conn != nil {
			info.conn.SetReadDeadline(time.Now().Add(lastRead))
		}
	}
}

func (n *Node) stopAccepting() {
	for _, l := range n.listeners {
		l.Close()
	}
	n.accepting.Wait()
}

// closeNow is the mirror of Open, from wherever it got to.
func (n *Node) closeNow(cause error) error {
	n.draining.Store(true)
	n.stopAccepting()
	for _, l := range n.loops {
		l.wake()
		<-l.done
	}
	n.background.Wait()
	n.cancel(cause)
	n.watching.Wait()
	var errs []error
	if n.admin != nil {
		errs = append(errs, n.admin.close())
	}
	for _, sh := range n.shards {
		errs = append(errs, sh.engine.Close())
		if sh.remote {
			sh.fetch.running.Wait()
		}
		errs = append(errs, sh.backend.Close())
	}
	if n.room != nil {
		n.room.Close()
	}
	if t := n.tracer.Swap(nil); t != nil {
		t.exporter.Close()
	}
	return errors.Join(errs...)
}
