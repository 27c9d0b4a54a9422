package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"
)

// Kinds of a [Fault].
const (
	FaultDrop      = "drop"      // loses Percent of what goes to and comes from Peers
	FaultDelay     = "delay"     // holds it back for Delay, in each direction
	FaultPartition = "partition" // loses all of it
	FaultPause     = "pause"     // partition from everybody; Paused says so
	FaultClock     = "clock"     // the wall clock is off by Offset; see Wall
)

const (
	// MaxFault is how long a fault may last: who forgets one has it for no longer.
	MaxFault = time.Hour
	// maxFaultDelay stays below deadAfter, or a peer would be given up.
	maxFaultDelay = 2 * time.Second
	// maxFaultOffset: of what is stamped by a clock that is ahead something stays for
	// as long as that was.
	maxFaultOffset = 24 * time.Hour
)

// Fault is something wrong with the network of this node, or its clock, on purpose. On
// the network it concerns both directions and all that two nodes say to each other:
// frames, calls, streams, and gossip, so that failure detection sees it, too; but gossip
// is never delayed.
//
// A frame of Control or Log is lost without a sound, and so is a packet of gossip. A
// lost call breaks its connection, as its caller may wait for the answer without end,
// and so does a lost chunk of a stream.
type Fault struct {
	ID      int           `json:"id"`
	Kind    string        `json:"kind"`
	Peers   []string      `json:"peers,omitempty"` // names of nodes
	Percent int           `json:"percent,omitempty"`
	Delay   time.Duration `json:"delay,omitempty"` // nanoseconds in JSON, as Offset
	Offset  time.Duration `json:"offset,omitempty"`
	Until   time.Time     `json:"until"`
}

// String is f as an operator would say it.
func (f Fault) String() string {
	text := f.Kind
	for i, p := range f.Peers {
		if i > 0 {
			text += ","
		} else {
			text += " "
		}
		text += p
	}
	switch f.Kind {
	case FaultDrop:
		text += fmt.Sprintf(" %d%%", f.Percent)
	case FaultDelay:
		text += " " + f.Delay.String()
	case FaultClock:
		text += fmt.Sprintf(" %v ", f.Offset.Abs()) + map[bool]string{true: "ahead", false: "behind"}[f.Offset > 0]
	}
	return text
}

func (f *Fault) on(name string) bool { return f.Kind == FaultPause || slices.Contains(f.Peers, name) }

// loses reports whether the next thing between this node and one it concerns is lost.
func (f *Fault) loses() bool {
	return f.Kind == FaultPartition || f.Kind == FaultPause || f.Kind == FaultDrop && rand.IntN(100) < f.Percent
}

// faults are those injected and not over yet.
type faults struct {
	// active is what hot paths look at: nil if there are none. What it points to is
	// never modified.
	active atomic.Pointer[[]Fault]

	mu   sync.Mutex // guards what follows, and the storing of active
	next int
	ends map[int]context.CancelFunc // of those in active, by ID
}

// check says what is wrong with a fault that is asked for.
func (c *Cluster) check(f *Fault, lasts time.Duration) error {
	known := c.Members()
	for _, name := range f.Peers {
		if !slices.ContainsFunc(known, func(m Member) bool { return m.Name == name && !m.Self }) {
			return fmt.Errorf("no other controller is called %q", name)
		}
	}
	switch {
	case lasts <= 0 || lasts > MaxFault:
		return fmt.Errorf("a fault lasts up to %v, have %v", MaxFault, lasts)
	case !slices.Contains([]string{FaultDrop, FaultDelay, FaultPartition, FaultPause, FaultClock}, f.Kind):
		return fmt.Errorf("unknown fault %q: choose drop, delay, partition, pause or clock", f.Kind)
	case (f.Kind == FaultPause || f.Kind == FaultClock) != (len(f.Peers) == 0):
		return errors.New("drop, delay and partition take the names of other controllers, and pause and clock none")
	case (f.Kind == FaultDrop) != (f.Percent != 0) || f.Percent < 0 || f.Percent > 100:
		return fmt.Errorf("drop takes 1 to 100 percent, and nothing else does; have %d", f.Percent)
	case (f.Kind == FaultDelay) != (f.Delay != 0) || f.Delay < 0 || f.Delay > maxFaultDelay:
		return fmt.Errorf("delay takes a duration of up to %v, and nothing else does; have %v", maxFaultDelay, f.Delay)
	case (f.Kind == FaultClock) != (f.Offset != 0) || f.Offset.Abs() > maxFaultOffset:
		return fmt.Errorf("clock takes an offset of up to %v either way, and nothing else does; have %v", maxFaultOffset, f.Offset)
	}
	return nil
}

// Inject makes something go wrong from now on, for as long as lasts says, up to
// [MaxFault]. It returns f with ID and Until. The beginning and the end are logged.
func (c *Cluster) Inject(f Fault, lasts time.Duration) (Fault, error) {
	if err := c.check(&f, lasts); err != nil {
		return f, err
	}
	fs := &c.faults
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if c.ctx.Err() != nil {
		return f, ErrClosed
	}
	fs.next++
	f.ID, f.Until = fs.next, time.Now().Add(lasts)
	ctx, cancel := context.WithTimeout(c.ctx, lasts)
	if fs.ends == nil {
		fs.ends = make(map[int]context.CancelFunc)
	}
	fs.ends[f.ID] = cancel
	all := append(slices.Clone(c.Faults()), f)
	fs.active.Store(&all)
	c.log.Warn("a fault was injected; it ends by itself, or with attune fault clear", zap.Stringer("fault", f), zap.Time("until", f.Until))
	c.wg.Go(func() {
		<-ctx.Done()
		c.mend(f)
	})
	if f.Kind == FaultPartition || f.Kind == FaultPause {
		c.breakOff(&f)
	}
	return f, nil
}

// mend ends a fault, unless that has been cleared.
func (c *Cluster) mend(f Fault) {
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	c.mendLocked(f)
}

func (c *Cluster) mendLocked(f Fault) {
	fs := &c.faults
	cancel, ok := fs.ends[f.ID]
	if !ok {
		return
	}
	cancel()
	delete(fs.ends, f.ID)
	left := slices.DeleteFunc(slices.Clone(c.Faults()), func(one Fault) bool { return one.ID == f.ID })
	if len(left) > 0 {
		fs.active.Store(&left)
	} else {
		fs.active.Store(nil)
	}
	c.log.Warn("a fault that was injected is over", zap.Stringer("fault", f))
}

// Faults lists those injected and not over yet. The caller does not modify it.
func (c *Cluster) Faults() []Fault {
	if all := c.faults.active.Load(); all != nil {
		return *all
	}
	return nil
}

// ClearFaults ends all of them.
func (c *Cluster) ClearFaults() {
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	for _, f := range c.Faults() {
		c.mendLocked(f)
	}
}

// Paused reports whether this node is to answer nobody.
func (c *Cluster) Paused() bool {
	return c.faults.active.Load() != nil && slices.ContainsFunc(c.Faults(), func(f Fault) bool { return f.Kind == FaultPause })
}

// ClockOffset is how far faults have the wall clock ahead. Without any it costs a look at
// a pointer.
func (c *Cluster) ClockOffset() (sum time.Duration) {
	if c.faults.active.Load() != nil {
		for _, f := range c.Faults() {
			sum += f.Offset
		}
	}
	return sum
}

// Wall is the time, for all that believes a wall clock. What measures how long something
// takes has Go's monotonic clock, which faults leave alone.
func (c *Cluster) Wall() time.Time { return time.Now().Add(c.ClockOffset()) }

// spoiled says whether what goes to or comes from a node is lost now, or else how long
// it is held back. It is for when there are faults.
func (c *Cluster) spoiled(name string) (lost bool, hold time.Duration) {
	for _, f := range c.Faults() {
		if f.on(name) {
			lost, hold = lost || f.loses(), max(hold, f.Delay)
		}
	}
	return lost, hold
}

// cutOff reports whether a node is out of reach by a fault.
func (c *Cluster) cutOff(name string) bool {
	return slices.ContainsFunc(c.Faults(), func(f Fault) bool {
		return f.on(name) && (f.Kind == FaultPartition || f.Kind == FaultPause)
	})
}

// nameOf is the name of the node with an id, "" if gossip has not told.
func (c *Cluster) nameOf(id uint64) string {
	m, _ := c.Member(id)
	return m.Name
}

// errFault is why a connection is closed, or not opened.
var errFault = errors.New("a fault was injected")

// meddle has faults act on one thing that comes from or goes to id: it waits, or
// returns an error if that is lost. Without faults it costs a look at a pointer.
func (c *Cluster) meddle(id uint64) error {
	if c.faults.active.Load() == nil {
		return nil
	}
	lost, hold := c.spoiled(c.nameOf(id))
	if lost {
		return errFault
	}
	c.hold(hold)
	return nil
}

func (c *Cluster) hold(d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-c.ctx.Done():
	}
}

// breakOff closes the connections on which nodes that are out of reach from now on
// wait for answers.
func (c *Cluster) breakOff(f *Fault) {
	c.connsMu.Lock()
	defer c.connsMu.Unlock()
	for conn, p := range c.conns {
		if p.from != 0 && (p.class == Calls || p.class == Bulk) && f.on(c.nameOf(p.from)) {
			conn.Close()
		}
	}
}

// spoil has faults act on what is about to be written, and returns what is left.
// Answers get lost only with the whole connection: see breakOff.
func (l *link) spoil(batch []frame) []frame {
	name := l.c.nameOf(l.id)
	kept, lost := make([]frame, 0, len(batch)), make([]frame, 0, len(batch))
	var longest time.Duration
	for _, f := range batch {
		gone, hold := l.c.spoiled(name)
		gone = gone && (l.class != Calls || f.call != nil || l.c.cutOff(name))
		if longest = max(longest, hold); gone {
			if f.call != nil {
				l.c.calls.finish(f.call, nil, ErrLost)
			}
			lost = append(lost, f)
		} else {
			kept = append(kept, f)
		}
	}
	l.lose(lost)
	l.c.hold(longest)
	return kept
}

// spoilIn has faults act on a frame that came, of whose n bytes of body none is read
// yet. What is held back is what comes together: each frame for itself would be a queue.
func (c *Cluster) spoilIn(r *bufio.Reader, h *hello, kind byte, n int) (lost bool, err error) {
	gone, hold := c.spoiled(h.name)
	if r.Buffered() <= n {
		c.hold(hold)
	}
	switch {
	case !gone || kind == kindResponse && !c.cutOff(h.name):
		return false, nil
	case h.class == Calls:
		return true, errFault
	}
	_, err = r.Discard(n)
	return true, unexpected(err)
}

// gossiper is the name of the node that gossips at an address, "" for none. With
// anyPort, which connections from others have, any of that host that is cut off.
func (c *Cluster) gossiper(addr string, anyPort bool) string {
	host, _, _ := net.SplitHostPort(addr)
	m := &c.members
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, r := range m.byName {
		at, _, _ := net.SplitHostPort(r.gossip)
		if r.gossip == addr || anyPort && at == host && c.cutOff(name) {
			return name
		}
	}
	return ""
}

// gossipLost reports whether faults lose a packet or a connection of gossip.
func (c *Cluster) gossipLost(addr string, anyPort bool) bool {
	if c.faults.active.Load() == nil {
		return false
	}
	lost, _ := c.spoiled(c.gossiper(addr, anyPort))
	return lost
}

// sift passes on what comes by gossip and is not lost. It takes things from
// memberlist's transport until that is shut down, which waits for somebody to take
// what it has.
func (t *transport) sift() {
	for {
		select {
		case p := <-t.NetTransport.PacketCh():
			if t.c.gossipLost(p.From.String(), false) {
				continue
			}
			select {
			case t.packets <- p:
			case <-t.ctx.Done():
			}
		case conn := <-t.NetTransport.StreamCh():
			if t.c.gossipLost(conn.RemoteAddr().String(), true) {
				conn.Close()
				continue
			}
			select {
			case t.streams <- conn:
			case <-t.ctx.Done():
				conn.Close()
			}
		case <-t.down:
			return
		}
	}
}

// Shutdown stops listening. It may be called again.
func (t *transport) Shutdown() error {
	defer t.closeDown()
	return t.NetTransport.Shutdown()
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if t.c.gossipLost(a.Addr, false) {
		return time.Now(), nil // as the network would have it
	}
	return t.NetTransport.WriteToAddress(b, a)
}
