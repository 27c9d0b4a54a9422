package history

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
)

// Workload makes the commands of clients.
type Workload struct {
	Name string
	// Prefix is what all keys begin with.
	Prefix string
	// Keys is how many are in use at a time. After Turn commands answered for each,
	// others take their place (0: never): a key of few commands is searched fast.
	// The old ones are read now and then.
	Keys, Turn int
	one        string // the only key, if there is but one
	next       func(g *Gen, key string) Op
}

// The workloads. Their keys live for a few hundred commands each, unless said.
var (
	// Registers are set and read.
	Registers = Workload{Name: "register", Keys: 4, Turn: 400, next: func(g *Gen, key string) Op {
		if g.rand.IntN(2) == 0 {
			return Op{Kind: Get, Key: key}
		}
		return g.write(Set, key)
	}}
	// Large are a few registers that stay, for values of some size.
	Large = Workload{Name: "large", Keys: 8, next: Registers.next}
	// CASRegisters are read and then set if nobody else has set them.
	CASRegisters = Workload{Name: "cas", Keys: 3, Turn: 300, next: func(g *Gen, key string) Op {
		return g.compare(key)
	}}
	// Counters are incremented and decremented.
	Counters = Workload{Name: "counter", Keys: 4, Turn: 300, next: func(g *Gen, key string) Op {
		switch n := g.rand.IntN(8); {
		case g.absent[key]:
			return Op{Kind: Add, Key: key, Value: "100"}
		case n == 0:
			return Op{Kind: Get, Key: key}
		case n < 3:
			return Op{Kind: Decr, Key: key, Delta: 1}
		default:
			return Op{Kind: Incr, Key: key, Delta: 1}
		}
	}}
	// Appends make lists, which tell the order in which they were appended to.
	Appends = Workload{Name: "append", Keys: 8, Turn: 60, next: func(g *Gen, key string) Op {
		switch n := g.rand.IntN(4); {
		case g.absent[key]:
			return g.write(Add, key)
		case n == 0:
			return Op{Kind: Get, Key: key}
		case n == 1:
			return g.write(Prepend, key)
		default:
			return g.write(Append, key)
		}
	}}
	// Locks are taken by add and given back by delete.
	Locks = Workload{Name: "lock", Keys: 4, Turn: 200, next: func(g *Gen, key string) Op {
		if g.held != "" {
			key, g.held = g.held, ""
			return Op{Kind: Delete, Key: key}
		}
		return g.write(Add, key)
	}}
	// Mixed is every command but those on numbers.
	Mixed = Workload{Name: "mixed", Keys: 4, Turn: 250, next: mixed}
	// Flushes are sets and reads among which everything is flushed now and then.
	Flushes = Workload{Name: "flush", Keys: 4, Turn: 250, next: func(g *Gen, key string) Op {
		switch n := g.rand.IntN(200); {
		case n == 0:
			return Op{Kind: Flush}
		case n < 100:
			return Op{Kind: Get, Key: key}
		}
		return g.write(Set, key)
	}}
	// Removals are set, read and deleted. Nothing else removes them, so that every
	// miss must be explained by a delete.
	Removals = Workload{Name: "remove", Keys: 6, Turn: 200, next: func(g *Gen, key string) Op {
		switch n := g.rand.IntN(10); {
		case n < 4:
			return g.write(Set, key)
		case n < 6:
			return Op{Kind: Delete, Key: key}
		}
		return Op{Kind: Get, Key: key}
	}}
	// Chained are sets whose values name what their writer has last read or written,
	// and readers who go after what a value names. See Chains.
	Chained = Workload{Name: "chain", Keys: 8, Turn: 200, next: func(g *Gen, key string) Op {
		if named, _, ok := cause(g.value); ok && g.last.Kind == Get && g.rand.IntN(8) != 0 {
			return Op{Kind: Get, Key: named}
		}
		if g.version != 0 && g.last.Key != key && g.rand.IntN(2) == 0 {
			return Op{Kind: Set, Key: key, Value: naming(g.token(), g.last.Key, g.version)}
		}
		if g.rand.IntN(2) == 0 {
			return g.write(Set, key)
		}
		return Op{Kind: Get, Key: key}
	}}
	// Expiring are added, for [ExpiringTTL], and read, so that each expires again and
	// again. See Expired.
	Expiring = Workload{Name: "expire", Keys: 8, Turn: 400, next: func(g *Gen, key string) Op {
		if g.rand.IntN(3) != 0 {
			return Op{Kind: Get, Key: key}
		}
		op := g.write(Add, key)
		op.TTL = ExpiringTTL
		return op
	}}
	// UniqueSets sets every key once. See KeptSets.
	UniqueSets = Workload{Name: "set", next: func(g *Gen, _ string) Op {
		g.count++
		return Op{Kind: Set, Key: fmt.Sprintf("%sset-%d-%d", g.workload.Prefix, g.client, g.count), Value: g.token()}
	}}
)

// hotCounter is the name of the workload Increments.
const hotCounter = "incr"

// Increments increments one counter, which is there already. See ExactCounter.
func Increments(key string) Workload {
	return Workload{Name: hotCounter, one: key, next: func(*Gen, string) Op { return Op{Kind: Incr, Key: key, Delta: 1} }}
}

// turn is how often the keys have been replaced after so many commands.
func (w *Workload) turn(answered int64) int {
	if w.Turn == 0 {
		return 0
	}
	return int(answered) / (w.Keys * w.Turn)
}

func (w *Workload) key(turn, i int) string {
	if w.one != "" {
		return w.one
	}
	return fmt.Sprintf("%s%s-%d-%d", w.Prefix, w.Name, turn, i)
}

// Gen makes the commands of one client.
type Gen struct {
	workload *Workload
	client   int
	rand     *rand.Rand
	progress *atomic.Int64

	tokens  int
	count   int
	last    Op              // the newest command that was answered
	version uint64          // of the item it read or wrote
	value   string          // that it read
	held    string          // a lock
	absent  map[string]bool // keys found absent, to be made
}

// NewGen returns what makes the commands of a client: the same for the same dice and
// answers. Progress is how many commands all clients of the workload had answered.
func NewGen(w *Workload, client int, r *rand.Rand, progress *atomic.Int64) *Gen {
	return &Gen{workload: w, client: client, rand: r, progress: progress, absent: make(map[string]bool)}
}

// Next returns a command; a wary client only reads.
func (g *Gen) Next(wary bool) Op {
	turn := g.workload.turn(g.progress.Load())
	old := turn > 0 && g.rand.IntN(32) == 0
	if old {
		turn -= 1 + g.rand.IntN(min(turn, 8))
	}
	key := g.workload.key(turn, g.rand.IntN(max(g.workload.Keys, 1)))
	if wary || old {
		return Op{Kind: Get, Key: key}
	}
	return g.workload.next(g, key)
}

// Saw tells what became of a command.
func (g *Gen) Saw(op Op, out Outcome) {
	g.last, g.version, g.value = op, out.Version, out.Value
	switch {
	case out.Status == NotFound, out.Status == NotStored && op.Kind != Add:
		g.absent[op.Key] = true
	case op.Kind == Add:
		delete(g.absent, op.Key)
		if out.Status == Stored {
			g.held = op.Key
		}
	}
}

// token returns a value that nobody else writes.
func (g *Gen) token() string {
	g.tokens++
	return fmt.Sprintf("%d.%d;", g.client, g.tokens)
}

func (g *Gen) write(kind Kind, key string) Op { return Op{Kind: kind, Key: key, Value: g.token()} }

// compare reads, and then compares with the version that was read. Now and then
// the key is set or removed, so that there is something to miss.
func (g *Gen) compare(key string) Op {
	if g.version != 0 && g.last.Kind == Get {
		op := g.write(CAS, g.last.Key)
		op.Compare = g.version
		return op
	}
	if g.last.Kind == Get && g.last.Key != "" { // it missed
		return g.write(Add, g.last.Key)
	}
	return Op{Kind: Get, Key: key}
}

func mixed(g *Gen, key string) Op {
	switch g.rand.IntN(10) {
	case 0:
		return g.write(Set, key)
	case 1:
		return g.write(Add, key)
	case 2:
		return g.write(Replace, key)
	case 3:
		return g.write(Append, key)
	case 4:
		return g.write(Prepend, key)
	case 5:
		return Op{Kind: Delete, Key: key}
	case 6, 7:
		return g.compare(key)
	}
	return Op{Kind: Get, Key: key}
}
