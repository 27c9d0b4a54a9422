package testbed

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Mode is whether a direction of the network carries anything.
type Mode uint8

const (
	// Pass forwards.
	Pass Mode = iota
	// Hold forwards nothing, and keeps what was sent for later: connections stay,
	// and new ones are accepted and not answered, as where a cable is out.
	Hold
	// Reset breaks connections and refuses new ones, as where a machine is up and
	// the process is not.
	Reset
)

// Rule is what happens to the frames from one controller to another. The first
// frame of a connection, and connections of class Bulk, know Mode and Delay only.
type Rule struct {
	Mode Mode
	// Delay is added to each frame, and a random time up to Jitter. Frames stay in
	// order.
	Delay, Jitter time.Duration
	// Drop, Duplicate and Reorder are probabilities. A duplicate comes a little
	// later, as does a frame that is reordered: others overtake it.
	Drop, Duplicate, Reorder float64
}

// overtaking is how much later, at most, a duplicate or a reordered frame comes.
const overtaking = 50 * time.Millisecond

// Traffic counts the frames from one controller to another.
type Traffic struct{ Frames, Dropped, Duplicated, Reordered uint64 }

// Network stands between the peer ports of controllers. It reads the frames they
// send, and does to them what the rule for the two says. Connections are simplex:
// who dialed one sends, so that a rule for one direction is just that. Only the
// answers on Bulk flow the other way; they are forwarded if both directions are
// on Pass.
//
// Its methods may be called on any goroutine.
type Network struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	rules   map[link]Rule
	traffic map[link]*Traffic
	changed chan struct{} // closed, and replaced, when a rule changes
	rand    *rand.Rand
	strange []string // what was not as the protocol says
}

// link is a direction between two controllers, by name.
type link struct{ from, to string }

// NewNetwork returns a network without any rule; Close it. Seed makes the dice
// repeatable, not the timing.
func NewNetwork(seed uint64) *Network {
	ctx, cancel := context.WithCancel(context.Background())
	return &Network{
		ctx: ctx, cancel: cancel,
		rules: make(map[link]Rule), traffic: make(map[link]*Traffic), changed: make(chan struct{}),
		rand: rand.New(rand.NewPCG(seed, 0)),
	}
}

// Close ends all connections and listens no more.
func (n *Network) Close() {
	n.cancel()
	n.wg.Wait()
}

// Proxy listens at addr for connections to the controller of that name, whose
// peer port is at target.
func (n *Network) Proxy(addr, name, target string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	n.wg.Go(func() {
		<-n.ctx.Done()
		l.Close()
	})
	n.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				if n.ctx.Err() != nil {
					return
				}
				n.note(fmt.Sprintf("accept for %s: %v", name, err))
				time.Sleep(10 * time.Millisecond) // no descriptors: others may be closed
				continue
			}
			n.wg.Go(func() { n.serve(c.(*net.TCPConn), name, target) })
		}
	})
	return nil
}

// Set makes r the rule for what from sends to to.
func (n *Network) Set(from, to string, r Rule) {
	n.change(func() { n.rules[link{from, to}] = r })
}

// Cut holds what from sends to to. See [Hold].
func (n *Network) Cut(from, to string) { n.mode(from, to, Hold) }

// Break resets the connections of from to to. See [Reset].
func (n *Network) Break(from, to string) { n.mode(from, to, Reset) }

// mode changes the Mode of a rule only.
func (n *Network) mode(from, to string, m Mode) {
	n.change(func() {
		r := n.rules[link{from, to}]
		r.Mode = m
		n.rules[link{from, to}] = r
	})
}

// Part cuts both directions between any of a and any of b.
func (n *Network) Part(a, b []string) {
	n.change(func() {
		for _, x := range a {
			for _, y := range b {
				n.rules[link{x, y}], n.rules[link{y, x}] = Rule{Mode: Hold}, Rule{Mode: Hold}
			}
		}
	})
}

// All makes r the rule between all names.
func (n *Network) All(names []string, r Rule) {
	n.change(func() {
		for _, x := range names {
			for _, y := range names {
				if x != y {
					n.rules[link{x, y}] = r
				}
			}
		}
	})
}

// HealAll removes all rules.
func (n *Network) HealAll() { n.change(func() { clear(n.rules) }) }

func (n *Network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// Traffic returns what from has sent to to so far, without first frames and Bulk.
func (n *Network) Traffic(from, to string) Traffic {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.traffic[link{from, to}]; t != nil {
		return *t
	}
	return Traffic{}
}

// Strange returns what was seen that is not the peer protocol.
func (n *Network) Strange() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.strange...)
}

func (n *Network) note(what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.strange) < 20 {
		n.strange = append(n.strange, what)
	}
}

// rule returns the rule for l, and a channel that is closed when it may have
// changed.
func (n *Network) rule(l link) (Rule, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rules[l], n.changed
}

// errReset is why a connection ends whose rule says Reset.
var errReset = errors.New("reset by rule")

// open waits until all of links pass. Gone ends the waiting.
func (n *Network) open(gone <-chan struct{}, links ...link) error {
	for {
		hold := false
		var changed <-chan struct{}
		for i, l := range links {
			r, c := n.rule(l)
			if i == 0 {
				changed = c // of the first look, so that no change is missed
			}
			if r.Mode == Reset {
				return errReset
			}
			hold = hold || r.Mode == Hold
		}
		if !hold {
			return nil
		}
		select {
		case <-changed:
		case <-gone:
			return context.Canceled
		}
	}
}

// fate throws the dice for a frame: after how long each copy of it is due; none
// if it is dropped. Late copies may be overtaken.
func (n *Network) fate(l link) (due []time.Duration, late []bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.rules[l]
	t := n.traffic[l]
	if t == nil {
		t = new(Traffic)
		n.traffic[l] = t
	}
	t.Frames++
	if n.chance(r.Drop) {
		t.Dropped++
		return nil, nil
	}
	delay := n.delayLocked(r)
	reordered := n.chance(r.Reorder)
	if reordered {
		t.Reordered++
		delay += time.Duration(n.rand.Int64N(int64(overtaking)))
	}
	due, late = append(due, delay), append(late, reordered)
	if n.chance(r.Duplicate) {
		t.Duplicated++
		due, late = append(due, delay+time.Duration(n.rand.Int64N(int64(overtaking)))), append(late, true)
	}
	return due, late
}

func (n *Network) chance(p float64) bool { return p > 0 && n.rand.Float64() < p }

func (n *Network) delayLocked(r Rule) time.Duration {
	if r.Jitter > 0 {
		return r.Delay + time.Duration(n.rand.Int64N(int64(r.Jitter)))
	}
	return r.Delay
}

// delay is what a frame that nothing else happens to waits.
func (n *Network) delay(l link) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.delayLocked(n.rules[l])
}
