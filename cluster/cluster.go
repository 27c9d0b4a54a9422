package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/zeebo/xxh3"
	"go.uber.org/zap"
)

// Options say who a node is and where it looks for others.
type Options struct {
	Name string // stable label, at most 64 bytes; unique among the nodes that run
	ID   uint64 // of this memory; not 0, random, never used again for another
	Kind string // of engine, at most 32 bytes; nodes of another kind are refused
	// Expect is how many nodes must find each other before one of them founds
	// the cluster, at least 1. It should be the number of all nodes: if it is at
	// most half of that, two clusters can come to be.
	Expect int

	Peer string // host:port to listen on for peers; an empty host is every address
	// PeerAdvertise is the host:port others dial; a name is resolved anew for
	// each connection. By default it is Peer, or if that is every address, the
	// host of the gossip address.
	PeerAdvertise string
	Gossip        string // host:port to listen on for gossip, TCP and UDP
	// GossipAdvertise is the host:port others gossip with. By default it is
	// Gossip, or if that is every address, this machine's private one.
	GossipAdvertise string
	// Join names nodes that may be there already, as host:port of their gossip.
	// Names are resolved again at every attempt, and all their addresses tried.
	// It may name this node too.
	Join []string

	Listen, Admin string // addresses others are told, to show them

	Log *zap.Logger
}

const (
	maxName = 64
	maxKind = 32

	tcpTimeout = 3 * time.Second
	// gossipLabel keeps other programs that gossip with memberlist apart.
	gossipLabel = "attune"
)

// Cluster is this node among the others. Its methods may be called concurrently.
type Cluster struct {
	o        Options
	log      *zap.Logger
	warnings *warner
	nonce    uint64 // of this Open
	opened   time.Time
	place    atomic.Pointer[place]
	bound    net.TCPAddr // where this node listens for gossip

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // all goroutines started here
	once   sync.Once      // Close

	list      atomic.Pointer[memberlist.Memberlist] // replaced when place is
	transport *transport                            // of list, for who opens that
	listener  net.Listener
	// hash is that of the cluster this node belongs to, 0 for none. It is set
	// under connsMu.
	hash   atomic.Uint64
	ready  atomic.Bool
	retell chan struct{} // has room for one: our own words have changed
	fatal  chan error    // has room for one

	members members
	boot    boot
	seeds   seeds

	linksMu sync.RWMutex
	links   map[linkKey]*link

	connsMu sync.Mutex
	conns   map[net.Conn]connPeer // open ones
	faults  faults

	frames    [256]atomic.Pointer[frameHandler]
	callees   [256]atomic.Pointer[callHandler]
	streamers [256]atomic.Pointer[streamHandler]
	onDown    atomic.Pointer[func(id uint64, class Class)]
	onChange  atomic.Pointer[func()]

	calls          calls
	callsRunning   atomic.Int64
	callBytes      atomic.Int64
	streamsRunning atomic.Int64

	stats                     [classes]classCounters
	refused, invalid, unknown atomic.Uint64
}

// place is where others find this node.
type place struct {
	ip     net.IP // of gossip
	gossip string // what others gossip with, ip:port
	peer   string // what others dial
}

// Open opens both ports and starts looking for the others, for whom it never
// waits. Handlers should be registered before Belong: until then nobody sends
// frames, and calls and streams of a kind without handler are refused.
func Open(o Options) (*Cluster, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	c := &Cluster{
		o: o, log: o.Log, warnings: newWarner(o.Log), nonce: rand.Uint64(), opened: time.Now(),
		retell: make(chan struct{}, 1), fatal: make(chan error, 1),
		links: make(map[linkKey]*link), conns: make(map[net.Conn]connPeer),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.members.open(c)
	c.callees[callPromise].Store(&callHandler{DefaultLimit, c.promise})
	c.callees[callLeave].Store(&callHandler{DefaultLimit, c.leaves})
	for _, open := range []func() error{c.openPeer, c.openGossip} {
		if err := open(); err != nil {
			c.Close()
			return nil, err
		}
	}
	c.wg.Go(c.accept)
	c.wg.Go(c.join)
	c.wg.Go(c.tell)
	c.wg.Go(c.members.notify)
	return c, nil
}

func (o *Options) check() error {
	switch {
	case o.Name == "" || len(o.Name) > maxName || strings.ContainsFunc(o.Name, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f }):
		return fmt.Errorf("name %q: give every node a name of at most %d bytes, without spaces and slashes", o.Name, maxName)
	case o.ID == 0:
		return errors.New("a node needs an id other than 0")
	case o.Kind == "" || len(o.Kind) > maxKind:
		return fmt.Errorf("kind %q: 1 to %d bytes are possible", o.Kind, maxKind)
	case o.Expect < 1 || o.Expect > math.MaxUint16:
		return fmt.Errorf("expecting %d nodes: say how many there will be, at least 1", o.Expect)
	}
	return nil
}

// openPeer listens for peers. They are served once gossip is there too.
func (c *Cluster) openPeer() error {
	l, err := net.Listen("tcp", c.o.Peer)
	if err != nil {
		return fmt.Errorf("peer address: %w", err)
	}
	c.listener = l
	return nil
}

// openGossip starts memberlist, which from then on tells others about this node. It is
// called again when this machine has another address: see follow.
func (c *Cluster) openGossip() error {
	conf := memberlist.DefaultLANConfig()
	conf.Name = c.o.Name
	conf.Label = gossipLabel
	conf.Logger = log.New(gossipLog{c.log}, "", 0)
	conf.TCPTimeout = tcpTimeout
	// A dead node is noticed within 2 to 3 s: half a second between probes, and
	// three of those under suspicion, six if nobody else can tell.
	conf.ProbeInterval = 500 * time.Millisecond
	conf.ProbeTimeout = 250 * time.Millisecond
	conf.SuspicionMult = 3
	conf.SuspicionMaxTimeoutMult = 2
	conf.GossipInterval = 100 * time.Millisecond
	conf.PushPullInterval = 15 * time.Second
	// Else who comes back at another address is refused for as long as anybody
	// remembers the former one.
	conf.DeadNodeReclaimTime = time.Second
	host, port, err := hostPort(c.o.Gossip)
	if err != nil {
		return fmt.Errorf("gossip address: %w", err)
	}
	if c.bound.Port != 0 {
		port = c.bound.Port
	}
	transport, err := openTransport(c, host, port, conf.Logger)
	if err != nil {
		return fmt.Errorf("gossip address: %w", err)
	}
	c.transport, conf.Transport = transport, transport
	conf.BindAddr, conf.BindPort = host, transport.GetAutoBindPort()
	conf.AdvertisePort = conf.BindPort
	c.bound = net.TCPAddr{IP: net.ParseIP(host), Port: conf.BindPort}
	if c.o.GossipAdvertise != "" {
		if conf.AdvertiseAddr, conf.AdvertisePort, err = hostPort(c.o.GossipAdvertise); err == nil && conf.AdvertiseAddr == anyHost {
			err = errors.New("name one address")
		}
		if conf.AdvertisePort == 0 {
			conf.AdvertisePort = conf.BindPort
		}
	}
	var ip net.IP
	if err == nil {
		ip, conf.AdvertisePort, err = transport.FinalAdvertiseAddr(conf.AdvertiseAddr, conf.AdvertisePort)
	}
	if err != nil {
		transport.Shutdown()
		return fmt.Errorf("the gossip address that others are told: %w; set it", err)
	}
	conf.AdvertiseAddr = ip.String()
	at := &place{ip: ip, gossip: net.JoinHostPort(conf.AdvertiseAddr, strconv.Itoa(conf.AdvertisePort))}
	if at.peer, err = c.advertisedPeer(conf.AdvertiseAddr); err != nil {
		transport.Shutdown()
		return fmt.Errorf("the peer address that others are told: %w", err)
	}
	c.place.Store(at)
	d := delegate{c, at}
	conf.Delegate, conf.Events, conf.Conflict, conf.Alive, conf.Merge = d, d, d, d, d
	own := c.meta()
	if err := own.check(); err != nil {
		transport.Shutdown()
		return err
	}
	list, err := memberlist.Create(conf)
	if err != nil {
		transport.Shutdown()
		return fmt.Errorf("gossip: %w", err)
	}
	c.list.Store(list)
	return nil
}

// advertisedPeer is the address others are told to dial.
func (c *Cluster) advertisedPeer(gossipHost string) (string, error) {
	bound := c.listener.Addr().(*net.TCPAddr)
	if c.o.PeerAdvertise != "" {
		host, port, err := net.SplitHostPort(c.o.PeerAdvertise)
		if err != nil {
			return "", err
		}
		if port == "" || port == "0" {
			port = strconv.Itoa(bound.Port)
		}
		return net.JoinHostPort(host, port), nil
	}
	if bound.IP.IsUnspecified() {
		return net.JoinHostPort(gossipHost, strconv.Itoa(bound.Port)), nil
	}
	return bound.String(), nil
}

// anyHost stands for every IPv4 address of the machine.
const anyHost = "0.0.0.0"

// hostPort resolves an address to listen on.
func hostPort(addr string) (string, int, error) {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return "", 0, err
	}
	if a.IP == nil || a.IP.IsUnspecified() {
		return anyHost, a.Port, nil
	}
	return a.IP.String(), a.Port, nil
}

// PeerAddr returns the address that others are told to dial.
func (c *Cluster) PeerAddr() string { return c.place.Load().peer }

// GossipAddr returns the address that others are told to gossip with.
func (c *Cluster) GossipAddr() string { return c.place.Load().gossip }

// age is the time since Open in milliseconds.
func (c *Cluster) age() uint64 { return uint64(time.Since(c.opened).Milliseconds()) }

// Hash is the number that clusters go by on the wire and in [Member].
func Hash(clusterID [16]byte) uint64 {
	return max(xxh3.Hash(clusterID[:]), 1) // 0 is none
}

// Belong makes this node a member of a cluster from now on: it says so by gossip
// and to peers it connects to, and refuses members of others. A node belongs to
// one cluster for as long as it is open: calling Belong with another one later
// is Fatal, but see [Cluster.Move].
func (c *Cluster) Belong(clusterID [16]byte) {
	hash := Hash(clusterID)
	switch old := c.hash.Load(); old {
	case 0:
		c.belong(hash)
	case hash:
	default:
		c.die(fmt.Errorf("this node belongs to cluster %016x and was asked to belong to %016x: restart it", old, hash))
	}
}

// Move takes this node from its cluster to another, as an operator has forced it
// to go on without the others: these are foreigners from now on.
func (c *Cluster) Move(clusterID [16]byte) { c.belong(Hash(clusterID)) }

func (c *Cluster) belong(hash uint64) {
	c.connsMu.Lock()
	c.hash.Store(hash)
	for conn, other := range c.conns {
		if foreign(other.cluster, hash) {
			conn.Close()
		}
	}
	c.connsMu.Unlock()
	c.linksMu.RLock()
	for _, l := range c.links {
		l.again()
	}
	c.linksMu.RUnlock()
	c.boot.belongs()
	c.changedWords()
	c.members.changed()
}

// SetReady tells the others whether this node serves clients.
func (c *Cluster) SetReady(ready bool) {
	if c.ready.Swap(ready) != ready {
		c.changedWords()
		c.members.changed()
	}
}

func (c *Cluster) changedWords() {
	select {
	case c.retell <- struct{}{}:
	default:
	}
}

// tell has memberlist tell others when our own words have changed, and says them
// once more when that is done. memberlist 0.7 may lose an update from its queue: the
// queue numbers a message, drops the one it replaces, and begins to count anew if that
// was the last; another node's message of the same length then takes the same place.
// Nobody would hear of it before the next push/pull.
func (c *Cluster) tell() {
	for {
		select {
		case <-c.retell:
		case <-c.ctx.Done():
			return
		}
		for left := 2; left > 0; left-- {
			// The error is that not everybody was told yet.
			if err := c.list.Load().UpdateNode(time.Second); err != nil {
				c.log.Debug("gossip is slow", zap.Error(err))
				left = 2
			}
			select {
			case <-c.retell:
				left = 3
			case <-time.After(time.Second):
			case <-c.ctx.Done():
				return
			}
		}
	}
}

// meta is what this node says of itself.
func (c *Cluster) meta() meta {
	return meta{
		id: c.o.ID, cluster: c.hash.Load(), expect: uint16(c.o.Expect), ready: c.ready.Load(),
		kind: c.o.Kind, peer: c.place.Load().peer, listen: c.o.Listen, admin: c.o.Admin,
	}
}

// Fatal gets an error when this node must stop: its name is used by another that
// runs. The text tells the operator what to do. It is never closed.
func (c *Cluster) Fatal() <-chan error { return c.fatal }

func (c *Cluster) die(err error) {
	select {
	case c.fatal <- err:
	default: // one reason is enough
	}
}

// OnChange registers who is told, on a goroutine of this package and without any
// lock, that something about the members has changed. Changes in quick
// succession may be told once.
func (c *Cluster) OnChange(fn func()) { c.onChange.Store(&fn) }

// OnDown registers who is told that a connection to a node broke or could not be
// made, so that frames of that class may be lost. It is called on the goroutine
// that sends to that node, without any lock, and holds it up.
func (c *Cluster) OnDown(fn func(id uint64, class Class)) { c.onDown.Store(&fn) }

// Send queues a frame of a kind from [MinKind] on for a node, and never blocks.
// The body, at most [MaxFrame] bytes, belongs to cluster from then on and must
// not change. False: it will certainly not be sent, as the node is not known,
// could not be reached a moment ago, or its queue is full. True promises nothing.
// Bulk is for streams only.
func (c *Cluster) Send(to uint64, class Class, kind byte, body []byte) bool {
	checkKind(kind)
	if class >= Bulk || len(body) > MaxFrame {
		return false
	}
	l := c.link(to, class)
	if l == nil {
		if class < classes {
			c.stats[class].dropped.Add(1)
		}
		return false
	}
	return l.send(frame{kind: kind, body: body})
}

// Close closes both ports and all connections, and waits for everything that was
// started, handlers included. So it must not be called by one.
func (c *Cluster) Close() error {
	c.once.Do(func() {
		// Whoever starts a goroutine under one of these locks has started it, or
		// sees the end of ctx.
		c.faults.mu.Lock()
		c.linksMu.Lock()
		c.seeds.mu.Lock()
		c.connsMu.Lock()
		c.cancel()
		for conn := range c.conns {
			conn.Close()
		}
		c.connsMu.Unlock()
		c.seeds.mu.Unlock()
		c.linksMu.Unlock()
		c.faults.mu.Unlock()
		if c.listener != nil {
			c.listener.Close()
		}
		c.leaveGossip()
		c.wg.Wait()
		c.leaveGossip() // follow may have opened it again
	})
	return nil
}

func (c *Cluster) leaveGossip() {
	if list := c.list.Load(); list != nil {
		list.Shutdown()
	}
}

// transport is memberlist's own, but for dials and connections that end when the
// cluster is closed: a peer that does not answer must not hold up Close.
type transport struct {
	*memberlist.NetTransport
	c       *Cluster
	ctx     context.Context         // of c
	packets chan *memberlist.Packet // from sift
	streams chan net.Conn           // from sift
	down    chan struct{}           // closed by closeDown

	closeDown func()
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// openTransport listens for gossip. With port 0 the kernel picks one for TCP,
// which may be taken for UDP.
func openTransport(c *Cluster, host string, port int, logger *log.Logger) (t *transport, err error) {
	for range 10 {
		var net *memberlist.NetTransport
		net, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{host}, BindPort: port, Logger: logger})
		if err == nil {
			return newTransport(c, net), nil
		}
		if port != 0 {
			break
		}
	}
	return nil, err
}

func newTransport(c *Cluster, inner *memberlist.NetTransport) *transport {
	t := &transport{
		NetTransport: inner, c: c, ctx: c.ctx,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), down: make(chan struct{}),
	}
	t.closeDown = sync.OnceFunc(func() { close(t.down) })
	c.wg.Go(t.sift)
	return t
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if t.c.gossipLost(a.Addr, false) {
		return nil, errFault
	}
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	return &boundConn{Conn: conn, stop: context.AfterFunc(t.ctx, func() { conn.Close() })}, nil
}

type boundConn struct {
	net.Conn
	stop func() bool
}

func (b *boundConn) Close() error {
	b.stop()
	return b.Conn.Close()
}

// gossipLog hands memberlist's log lines on. They are for who looks for them:
// what an operator must know is said by this package.
type gossipLog struct{ log *zap.Logger }

var _ io.Writer = gossipLog{}

func (g gossipLog) Write(b []byte) (int, error) {
	if g.log.Core().Enabled(zap.DebugLevel) {
		g.log.Debug("gossip", zap.String("line", strings.TrimSpace(string(b))))
	}
	return len(b), nil
}
