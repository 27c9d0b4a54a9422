package broken

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/attunekv/attune/internal/history"
)

// GossipFault is what a [Gossip] does besides, or instead.
type GossipFault int

const (
	Causal      GossipFault = iota // none: what comes of something comes after it
	AnyOrder                       // updates are merged as they arrive, which is eventual still
	ItemByItem                     // causal, but now and then a replica takes over the state of another one item at a time
	NoTombs                        // a delete leaves nothing behind
	Dropping                       // some updates never arrive at one replica
	Amnesiac                       // some writes are acknowledged and never happen
	LastArrival                    // what arrives replaces what is there, whatever its version
	Wandering                      // reads are answered by any replica
	CarelessCAS                    // cas does not compare
	Twofold                        // some increments happen twice
)

// held is what a replica holds of a key.
type held struct {
	version uint64
	value   string
	dead    bool
}

// update is a write on its way.
type update struct {
	from, seq int
	deps      [replicas]int
	key       string
	it        held
	due       uint64 // when it arrives
}

const (
	replicas = 3
	slow     = 800 // steps that an update may take
)

type replica struct {
	items map[string]held
	floor uint64        // what is not newer was flushed
	seen  [replicas]int // by origin: all updates up to it
	clock uint64
	skew  uint64
	inbox []update
	copy  []string // keys still to be taken over from peer
	peer  int
	goal  [replicas]int // what peer had seen when that began
}

// Gossip is a store whose replicas answer each for itself and tell each other later,
// one step at a time.
type Gossip struct {
	Fault GossipFault // may be set before any command

	rand  *rand.Rand
	nodes [replicas]replica
	now   uint64
}

// NewGossip returns an empty store whose dice are r.
func NewGossip(f GossipFault, r *rand.Rand) *Gossip {
	c := &Gossip{Fault: f, rand: r}
	for i := range c.nodes {
		c.nodes[i].items = make(map[string]held)
		c.nodes[i].skew = r.Uint64N(200)
	}
	return c
}

// merge is what a replica does with an item of another.
func (c *Gossip) merge(n *replica, key string, it held) {
	if key == "" {
		n.floor = max(n.floor, it.version)
	} else if c.Fault == NoTombs && it.dead {
		if n.items[key].version < it.version {
			delete(n.items, key)
		}
	} else if c.Fault == LastArrival || n.items[key].version < it.version {
		n.items[key] = it
	}
	n.clock = max(n.clock, it.version/replicas)
}

// item is what a replica has of a key, and whether it serves it.
func (n *replica) item(key string) (it held, live bool) {
	it = n.items[key]
	return it, it.version > n.floor && !it.dead
}

// deliver merges an update that is on its way, if its time has come.
func (c *Gossip) deliver(at, which int) {
	n := &c.nodes[at]
	u := n.inbox[which]
	if u.seq <= n.seen[u.from] && c.Fault != AnyOrder && c.Fault != LastArrival {
		n.inbox = slices.Delete(n.inbox, which, which+1)
		return
	}
	if c.Fault != AnyOrder && c.Fault != LastArrival {
		for o, seq := range u.deps {
			if o != u.from && n.seen[o] < seq {
				return
			}
		}
		if n.seen[u.from] != u.seq-1 {
			return
		}
	}
	n.inbox = slices.Delete(n.inbox, which, which+1)
	n.seen[u.from] = max(n.seen[u.from], u.seq)
	if c.Fault == Dropping && at == 1 && c.rand.IntN(2) == 0 {
		return
	}
	c.merge(n, u.key, u.it)
}

// receive delivers to a replica all that has arrived.
func (c *Gossip) receive(at int) {
	n := &c.nodes[at]
	for which := 0; which < len(n.inbox); {
		before := len(n.inbox)
		if n.inbox[which].due <= c.now {
			c.deliver(at, which)
		}
		if len(n.inbox) == before {
			which++
		} else {
			which = 0 // others may have waited for it
		}
	}
}

// step lets something happen between the replicas.
func (c *Gossip) step() {
	c.now++
	at := c.rand.IntN(replicas)
	n := &c.nodes[at]
	c.receive(at)
	if c.Fault != ItemByItem || c.rand.IntN(4) != 0 {
		return
	}
	if len(n.copy) > 0 {
		c.merge(n, n.copy[0], c.nodes[n.peer].items[n.copy[0]])
		if n.copy = n.copy[1:]; len(n.copy) == 0 {
			c.merge(n, "", held{version: c.nodes[n.peer].floor})
			for o, seq := range n.goal {
				n.seen[o] = max(n.seen[o], seq)
			}
		}
	} else if c.rand.IntN(10) == 0 {
		n.peer = (at + 1) % replicas
		n.goal = c.nodes[n.peer].seen
		n.copy = slices.Sorted(maps.Keys(c.nodes[n.peer].items))
		c.rand.Shuffle(len(n.copy), func(i, j int) { n.copy[i], n.copy[j] = n.copy[j], n.copy[i] })
	}
}

// Quiet delivers everything.
func (c *Gossip) Quiet() {
	for at := range c.nodes {
		for len(c.nodes[at].copy) > 0 {
			c.step()
		}
	}
	c.now += slow
	for range replicas {
		for at := range c.nodes {
			c.receive(at)
		}
	}
}

// write stamps and spreads an item.
func (c *Gossip) write(at int, key, value string, dead bool) uint64 {
	n := &c.nodes[at]
	n.clock = max(n.clock+1, c.now*4+n.skew, n.items[key].version/replicas+1)
	it := held{n.clock*replicas + uint64(at), value, dead}
	if c.Fault == Amnesiac && c.rand.IntN(20) == 0 {
		return it.version
	}
	c.merge(n, key, it)
	deps := n.seen
	n.seen[at]++
	for other := range c.nodes {
		if other != at {
			due := c.now + c.rand.Uint64N(30)
			if c.rand.IntN(5) == 0 {
				due = c.now + c.rand.Uint64N(slow)
			}
			c.nodes[other].inbox = append(c.nodes[other].inbox, update{at, n.seen[at], deps, key, it, due})
		}
	}
	return it.version
}

// join has a know all that b does, at once: what a command that another replica
// decides must do before it is answered, as that knows what its client does not.
func (c *Gossip) join(a, b int) {
	for key, it := range c.nodes[b].items {
		c.merge(&c.nodes[a], key, it)
	}
	c.merge(&c.nodes[a], "", held{version: c.nodes[b].floor})
	for o, seq := range c.nodes[b].seen {
		c.nodes[a].seen[o] = max(c.nodes[a].seen[o], seq)
	}
}

// Do executes op at a replica.
func (c *Gossip) Do(at int, op history.Op) history.Outcome {
	const home = 0
	c.step()
	switch op.Kind {
	case history.Get:
		if c.Fault == Wandering {
			at = c.rand.IntN(replicas)
		}
		if it, live := c.nodes[at].item(op.Key); live {
			return history.Outcome{Status: history.Hit, Value: it.value, Version: it.version}
		}
		return history.Outcome{Status: history.Miss}
	case history.Set:
		return history.Outcome{Status: history.Stored, Version: c.write(at, op.Key, op.Value, false)}
	case history.Delete:
		if _, live := c.nodes[at].item(op.Key); !live {
			return history.Outcome{Status: history.NotFound}
		}
		c.write(at, op.Key, "", true)
		return history.Outcome{Status: history.Deleted}
	case history.Flush:
		c.write(at, "", "", true)
		return history.Outcome{Status: history.Flushed}
	}
	if at != home {
		c.join(home, at)
		defer c.join(at, home)
	}
	cur, live := c.nodes[home].item(op.Key)
	to := func(value string) history.Outcome {
		return history.Outcome{Status: history.Stored, Version: c.write(home, op.Key, value, false)}
	}
	switch {
	case op.Kind == history.Add && !live, op.Kind == history.Replace && live:
		return to(op.Value)
	case op.Kind == history.Add, op.Kind == history.Replace, (op.Kind == history.Append || op.Kind == history.Prepend) && !live:
		return history.Outcome{Status: history.NotStored}
	case !live:
		return history.Outcome{Status: history.NotFound}
	case op.Kind == history.CAS && cur.version != op.Compare && c.Fault != CarelessCAS:
		return history.Outcome{Status: history.Exists}
	case op.Kind == history.CAS:
		return to(op.Value)
	case op.Kind == history.Append:
		return to(cur.value + op.Value)
	case op.Kind == history.Prepend:
		return to(op.Value + cur.value)
	}
	var n, times uint64 = 0, 1
	_, _ = fmt.Sscan(cur.value, &n)
	if c.Fault == Twofold && c.rand.IntN(20) == 0 {
		times = 2
	}
	if op.Kind == history.Incr {
		n += times * op.Delta
	} else {
		n -= min(n, times*op.Delta)
	}
	out := to(fmt.Sprint(n))
	out.Status, out.Number = history.Counted, n
	return out
}

// Empty has all replicas forget everything, as if it had been flushed.
func (c *Gossip) Empty() {
	for i := range c.nodes {
		c.nodes[i].items = make(map[string]held)
	}
}

// Again has an old update arrive at all replicas, kept somewhere until now.
func (c *Gossip) Again(key, value string, version uint64) {
	for i := range c.nodes {
		c.merge(&c.nodes[i], key, held{version, value, false})
	}
}

// Expire has a key go from all replicas, because its time is over.
func (c *Gossip) Expire(key string) {
	for i := range c.nodes {
		if it, live := c.nodes[i].item(key); live {
			it.dead = true
			c.nodes[i].items[key] = it
		}
	}
}

// Survey is what all replicas hold.
func (c *Gossip) Survey(keys []string, at int64) history.Survey {
	s := history.Survey{Begin: at, End: at + 1, Nodes: make(map[string]map[string]history.Outcome)}
	for i := range c.nodes {
		read := make(map[string]history.Outcome)
		for _, key := range keys {
			read[key] = history.Outcome{Status: history.Miss}
			if it, live := c.nodes[i].item(key); live {
				read[key] = history.Outcome{Status: history.Hit, Value: it.value, Version: it.version}
			}
		}
		s.Nodes[fmt.Sprint("n", i)] = read
	}
	return s
}
