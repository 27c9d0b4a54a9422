package replica

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// Verb is what became of a key, as a replica sees it: an incr is a set of what it
// came to.
type Verb string

// What a [Watch] tells.
const (
	VerbSet    Verb = "set"
	VerbTouch  Verb = "touch" // anything that leaves the bytes as they are
	VerbDelete Verb = "delete"
	VerbEvict  Verb = "evict"  // for room, or because its bytes are lost
	VerbExpire Verb = "expire" // told when the item is cleared away, some time after it expired
	VerbFlush  Verb = "flush"  // every item up to Version
)

// Event is a change that took effect on this replica.
type Event struct {
	Verb    Verb
	Key     string // empty where only the hash is known: see [NewWatch]
	Hash    attune.KeyHash
	Version attune.Version // of the change; of what was evicted or expired
	Size    int            // of the value, in bytes
	Expires int64          // unix milliseconds; 0 is never
	Time    int64          // when it took effect here, unix milliseconds
	Lost    uint64         // how many before it were lost
}

// Watch is one who watches. It is told everything from NewWatch to Close, as long as
// it keeps up.
type Watch struct {
	rs     []*Replica
	prefix string
	events chan Event
	lost   atomic.Uint64
}

// NewWatch tells of all changes in rs of keys that begin with prefix, and of flushes.
// Of room many events are kept for who reads slowly; what comes then is lost, and
// counted.
//
// Evictions and expiries go by the hash. Their keys are known if the bytes are in
// this process; else they are told only where prefix is empty, without the key. Not
// told is what comes with an index from elsewhere ([Replica.Swap]).
func NewWatch(prefix string, room int, rs ...*Replica) *Watch {
	w := &Watch{rs: rs, prefix: prefix, events: make(chan Event, room)}
	for _, r := range rs {
		r.setWatches(func(all []*Watch) []*Watch { return append(all, w) })
	}
	return w
}

// Events is where they come. It is never closed.
func (w *Watch) Events() <-chan Event { return w.events }

// Lost is how many were lost since it was last asked, and no event told of.
func (w *Watch) Lost() uint64 { return w.lost.Swap(0) }

// Close ends it. An event may come still.
func (w *Watch) Close() {
	for _, r := range w.rs {
		r.setWatches(func(all []*Watch) []*Watch {
			return slices.DeleteFunc(all, func(x *Watch) bool { return x == w })
		})
	}
}

// setWatches changes the list, which is replaced as a whole: those who tell have
// none of its locks.
func (r *Replica) setWatches(change func(all []*Watch) []*Watch) {
	for {
		was := r.watches.Load()
		var all []*Watch
		if was != nil {
			all = slices.Clone(*was)
		}
		all = change(all)
		var is *[]*Watch
		if len(all) > 0 {
			is = &all
		}
		if r.watches.CompareAndSwap(was, is) {
			return
		}
	}
}

// tell gives the event to those it is for. It waits for nobody.
func tell(ws *[]*Watch, ev Event) {
	for _, w := range *ws {
		if !strings.HasPrefix(ev.Key, w.prefix) && ev.Verb != VerbFlush {
			continue
		}
		ev.Lost = w.lost.Swap(0)
		select {
		case w.events <- ev:
		default:
			w.lost.Add(ev.Lost + 1)
		}
	}
}

// tellChange tells of c, which is about to take effect over e, nil for none.
func (r *Replica) tellChange(ws *[]*Watch, c *attune.Change, e *entry) {
	there := e != nil && !e.bare() && e.version > r.Floor()
	ev := Event{
		Verb: VerbTouch, Key: string(c.Key.Text), Hash: c.Key.Hash, Version: c.Item.Version,
		Size: c.Item.Size, Expires: c.Item.Expires, Time: int64(r.now()) + epoch,
	}
	switch {
	case c.Item.Deleted && (c.Key.Text == nil || evicts(c)):
		if there {
			r.tellRemoval(ws, e)
		}
		return
	case c.Item.Deleted:
		ev.Verb = VerbDelete
	case !there || e.stored != c.Item.Stored:
		ev.Verb = VerbSet
	}
	if ev.Key == "" {
		ev.Key = r.textOf(c.Key.Hash)
	}
	tell(ws, ev)
}

// tellRemoval tells that e's item goes without anybody having said so. What a flush
// killed was told then.
func (r *Replica) tellRemoval(ws *[]*Watch, e *entry) {
	if e.version <= r.Floor() {
		return
	}
	now := r.now()
	ev := Event{
		Verb: VerbEvict, Key: r.textOf(e.hash), Hash: e.hash, Version: e.version,
		Size: int(e.size), Time: int64(now) + epoch,
	}
	if x := e.expires(); x != 0 {
		ev.Expires = int64(x) + epoch
	}
	if r.expired(e, now) {
		ev.Verb = VerbExpire
	}
	tell(ws, ev)
}

// textOf is the key of a hash, or "" if it is not known in this process.
func (r *Replica) textOf(h attune.KeyHash) string {
	if loader, ok := r.memory.(kvadapter.Loader); ok {
		text, _, _ := loader.Load(h, nil)
		return string(text)
	}
	return ""
}
