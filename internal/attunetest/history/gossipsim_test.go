package history

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// flaw is what a simulated gossiping store does besides, or instead.
type flaw int

const (
	causal      flaw = iota // none: what comes of something comes after it
	anyOrder                // updates are merged as they arrive, which is eventual still
	itemByItem              // causal, but now and then a replica takes over the state of another one item at a time
	noTombs                 // a delete leaves nothing behind
	dropping                // some updates never arrive at one replica
	amnesiac                // some writes are acknowledged and never happen
	lastArrival             // what arrives replaces what is there, whatever its version
	wandering               // reads are answered by any replica
	carelessCAS             // cas does not compare
	twofold                 // some increments happen twice
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

// cluster is a gossiping store, one step at a time.
type cluster struct {
	flaw  flaw
	rand  *rand.Rand
	nodes [replicas]replica
	now   uint64
}

func newCluster(f flaw, r *rand.Rand) *cluster {
	c := &cluster{flaw: f, rand: r}
	for i := range c.nodes {
		c.nodes[i].items = make(map[string]held)
		c.nodes[i].skew = r.Uint64N(200)
	}
	return c
}

// merge is what a replica does with an item of another.
func (c *cluster) merge(n *replica, key string, it held) {
	if key == "" {
		n.floor = max(n.floor, it.version)
	} else if c.flaw == noTombs && it.dead {
		if n.items[key].version < it.version {
			delete(n.items, key)
		}
	} else if c.flaw == lastArrival || n.items[key].version < it.version {
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
func (c *cluster) deliver(at, which int) {
	n := &c.nodes[at]
	u := n.inbox[which]
	if u.seq <= n.seen[u.from] && c.flaw != anyOrder && c.flaw != lastArrival {
		n.inbox = slices.Delete(n.inbox, which, which+1)
		return
	}
	if c.flaw != anyOrder && c.flaw != lastArrival {
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
	if c.flaw == dropping && at == 1 && c.rand.IntN(2) == 0 {
		return
	}
	c.merge(n, u.key, u.it)
}

// receive delivers to a replica all that has arrived.
func (c *cluster) receive(at int) {
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
func (c *cluster) step() {
	c.now++
	at := c.rand.IntN(replicas)
	n := &c.nodes[at]
	c.receive(at)
	if c.flaw != itemByItem || c.rand.IntN(4) != 0 {
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

// quiet delivers everything.
func (c *cluster) quiet() {
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
func (c *cluster) write(at int, key, value string, dead bool) uint64 {
	n := &c.nodes[at]
	n.clock = max(n.clock+1, c.now*4+n.skew, n.items[key].version/replicas+1)
	it := held{n.clock*replicas + uint64(at), value, dead}
	if c.flaw == amnesiac && c.rand.IntN(20) == 0 {
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
func (c *cluster) join(a, b int) {
	for key, it := range c.nodes[b].items {
		c.merge(&c.nodes[a], key, it)
	}
	c.merge(&c.nodes[a], "", held{version: c.nodes[b].floor})
	for o, seq := range c.nodes[b].seen {
		c.nodes[a].seen[o] = max(c.nodes[a].seen[o], seq)
	}
}

// do executes op at a replica.
func (c *cluster) do(at int, op Op) Outcome {
	const home = 0
	c.step()
	switch op.Kind {
	case Get:
		if c.flaw == wandering {
			at = c.rand.IntN(replicas)
		}
		if it, live := c.nodes[at].item(op.Key); live {
			return Outcome{Status: Hit, Value: it.value, Version: it.version}
		}
		return Outcome{Status: Miss}
	case Set:
		return Outcome{Status: Stored, Version: c.write(at, op.Key, op.Value, false)}
	case Delete:
		if _, live := c.nodes[at].item(op.Key); !live {
			return Outcome{Status: NotFound}
		}
		c.write(at, op.Key, "", true)
		return Outcome{Status: Deleted}
	case Flush:
		c.write(at, "", "", true)
		return Outcome{Status: Flushed}
	}
	if at != home {
		c.join(home, at)
		defer c.join(at, home)
	}
	cur, live := c.nodes[home].item(op.Key)
	to := func(value string) Outcome {
		return Outcome{Status: Stored, Version: c.write(home, op.Key, value, false)}
	}
	switch {
	case op.Kind == Add && !live, op.Kind == Replace && live:
		return to(op.Value)
	case op.Kind == Add, op.Kind == Replace, (op.Kind == Append || op.Kind == Prepend) && !live:
		return Outcome{Status: NotStored}
	case !live:
		return Outcome{Status: NotFound}
	case op.Kind == CAS && cur.version != op.Compare && c.flaw != carelessCAS:
		return Outcome{Status: Exists}
	case op.Kind == CAS:
		return to(op.Value)
	case op.Kind == Append:
		return to(cur.value + op.Value)
	case op.Kind == Prepend:
		return to(op.Value + cur.value)
	}
	var n, times uint64 = 0, 1
	_, _ = fmt.Sscan(cur.value, &n)
	if c.flaw == twofold && c.rand.IntN(20) == 0 {
		times = 2
	}
	if op.Kind == Incr {
		n += times * op.Delta
	} else {
		n -= min(n, times*op.Delta)
	}
	out := to(fmt.Sprint(n))
	out.Status, out.Number = Counted, n
	return out
}

// survey is what all replicas hold.
func (c *cluster) survey(keys []string, at int64) Survey {
	s := Survey{Begin: at, End: at + 1, Nodes: make(map[string]map[string]Outcome)}
	for i := range c.nodes {
		read := make(map[string]Outcome)
		for _, key := range keys {
			read[key] = Outcome{Status: Miss}
			if it, live := c.nodes[i].item(key); live {
				read[key] = Outcome{Status: Hit, Value: it.value, Version: it.version}
			}
		}
		s.Nodes[fmt.Sprint("n", i)] = read
	}
	return s
}

// gossiped is a history of clients of a gossiping store, and what was there in the
// end. Every fourth is not told versions; some commands are never answered, and
// some of those happen later.
func gossiped(w Workload, f flaw, seed uint64, clients, ops int) (History, Survey, *cluster) {
	c := newCluster(f, rand.New(rand.NewPCG(seed, 1)))
	var progress atomic.Int64
	type client struct {
		gen   *Gen
		id    int
		node  int
		state int // 0 idle, 1 called, 2 done
		fate  int // of the command under way; below 2 its outcome gets lost
		wary  bool
		e     Event
	}
	var (
		all  []*client
		h    History
		late []*Event
	)
	ids := clients
	for i := range clients {
		all = append(all, &client{gen: newGen(&w, i, rand.New(rand.NewPCG(seed, uint64(i+2))), &progress), id: i, node: i % replicas})
	}
	now := int64(0)
	for ; len(h) < ops; now++ {
		c.step()
		if len(late) > 0 && c.rand.IntN(40) == 0 {
			c.do(int(late[0].Node[1]-'0'), late[0].Op)
			late = late[1:]
		}
		cl := all[c.rand.IntN(len(all))]
		switch cl.state {
		case 0:
			cl.e = Event{Client: cl.id, Session: cl.id, Node: fmt.Sprint("n", cl.node), Op: cl.gen.next(cl.wary), Call: now}
			cl.fate = c.rand.IntN(100)
		case 1:
			if cl.fate != 0 {
				cl.e.Out = c.do(cl.node, cl.e.Op)
			}
		case 2:
			cl.e.Return = now
			if cl.fate < 2 {
				cl.e.Out, cl.e.Return = Outcome{}, Forever
				if cl.fate == 0 && c.rand.IntN(2) == 0 {
					e := cl.e
					late = append(late, &e)
				}
				ids++
				cl.id, cl.node, cl.wary = ids, (cl.node+1)%replicas, true
			} else {
				cl.wary = false
				progress.Add(1)
				if cl.gen.client%4 == 3 && cl.e.Op.Kind != Get {
					cl.e.Out.Version = 0
				}
				cl.gen.saw(cl.e.Op, cl.e.Out)
			}
			h = append(h, cl.e)
		}
		cl.state = (cl.state + 1) % 3
	}
	for _, cl := range all {
		if cl.state != 0 {
			cl.e.Out, cl.e.Return = Outcome{}, Forever
			h = append(h, cl.e)
		}
	}
	c.quiet()
	return h, c.survey(h.Keys(), now), c
}
