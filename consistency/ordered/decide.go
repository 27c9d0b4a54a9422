package ordered

import (
	"errors"
	"fmt"
	"math"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

const (
	large = kvadapter.Large
	// An entry ends when it has this many records or bytes; a record may exceed
	// the latter.
	maxRecords    = 1024
	maxEntryBytes = 256 << 10
	// maxBatchBytes bounds what is decided in one turn.
	maxBatchBytes = 4 << 20
	// epoch and versionShift make the upper part of a version milliseconds since
	// 2020, as everywhere; the lower 22 bits count.
	epoch = 1577836800000
	// longestTTL is the largest exptime, in seconds, that is not unix time.
	longestTTL   = 60 * 60 * 24 * 30
	versionShift = 22
)

// batch is what is decided in one turn.
type batch struct {
	now     int64 // the log clock
	base    attune.Version
	changes []attune.Change
	// bytes says for each change which one of the batch has the item's bytes, -1
	// if none has.
	bytes []int
	// at is where a key's newest change is.
	at map[attune.KeyHash]int
	// marks are the records that are no changes, each before changes[i].
	marks   []mark
	size    int
	waiters []*request
	arena   []byte // built values
	read    []byte // the value an op is decided on
	evicted int64
	builder codec.Builder
	entries []*pb.Entry

	before promises // in case it is not proposed
}

type mark struct {
	before int
	kind   codec.Kind
	at     int64
	v      attune.Version
}

// moveWrites decides what waits, or sends it to who decides.
func (c *core) moveWrites() {
	switch {
	case c.leads():
		if len(c.lead.inflight) < maxInflight && (len(c.writes) > 0 || c.due()) {
			c.decide()
		}
	case len(c.writes) == 0:
	case c.soft.RaftState == raft.StateLeader: // soon
	default:
		c.forward()
	}
}

// due reports whether an entry is needed though nobody writes.
func (c *core) due() bool {
	now := c.leaderTime()
	if at := c.flushTime(); at != 0 && at <= now || c.formable() || c.replica.Over() && c.lead.evicting == 0 {
		return true
	}
	// Replicas expire items by the clock of the log, so it must go on.
	return now-c.lead.proposed >= clockGrain && c.replica.Expiring() > 0
}

// clockGrain is how far behind the log clock may be while nobody writes, in
// milliseconds.
const clockGrain = 250

func (c *core) flushTime() int64 {
	if c.lead.hasFlushAt {
		return c.lead.flushAt
	}
	return c.st.flushAt
}

// prefetch has the processor fetch what will be looked at to decide r.
func (c *core) prefetch(r *request) {
	if !r.done { // else its ops are somebody else's
		for i := range r.ops[:min(len(r.ops), lookahead)] {
			c.replica.Prefetch(r.ops[i].Key)
		}
	}
}

// decide turns the writes that wait into changes, and proposes them. They are
// decided in the order they came, on what the replica holds and what is pending;
// several on one key share a record where they can.
func (c *core) decide() {
	b := &c.lead.batch
	b.now = c.leaderTime()
	b.base = c.nextVersion(b.now)
	b.changes, b.bytes, b.marks = b.changes[:0], b.bytes[:0], b.marks[:0]
	b.waiters, b.arena, b.size, b.evicted = nil, b.arena[:0], 0, 0
	clear(b.at)
	b.before = c.lead.promises
	if at := c.flushTime(); at != 0 && at <= b.now {
		c.flushNow()
		c.flushLater(0)
	}
	if c.formable() {
		b.marks = append(b.marks, mark{kind: codec.KindFormed, v: c.nextVersion(b.now)})
		c.lead.formed = true
	}
	taken := 0
	for i, r := range c.writes {
		if b.size > maxBatchBytes || c.world.behind() {
			break
		}
		if i%lookahead == 0 {
			for _, next := range c.writes[i:min(i+lookahead, len(c.writes))] {
				c.prefetch(next)
			}
		}
		taken++
		if r.done || r.fetching || c.tooLate(r) || c.fetchFirst(r) {
			continue
		}
		if r.kind == kindEvict {
			c.decideEvict(r.lost)
		}
		for i := range r.ops {
			c.decideOp(r, &r.ops[i], &r.res[i])
		}
		b.waiters = append(b.waiters, r)
		if r.trace != nil {
			r.trace.Ended("decide", "decided here, by the leader")
		}
	}
	n := copy(c.writes, c.writes[taken:])
	clear(c.writes[n:])
	c.writes = c.writes[:n]
	c.makeRoom()
	if len(b.waiters) == 0 && len(b.changes) == 0 && len(b.marks) == 0 && b.now-c.lead.proposed < clockGrain {
		return
	}
	c.propose()
}

// current is a key's item as it will be when everything pending is applied. from
// is the change of this batch that has its bytes, -1 if none.
func (c *core) current(key attune.Key, bump bool) (it attune.Item, from int) {
	b := &c.lead.batch
	from = -1
	if i, ok := b.at[key.Hash]; ok {
		it, from = b.changes[i].Item, b.bytes[i]
		it.Value = nil
	} else if p, ok := c.lead.overlay[key.Hash]; ok {
		it = p.item
	} else {
		it = c.replica.Peek(key, bump)
	}
	if it.Version <= c.lead.floor {
		return attune.Item{}, -1
	}
	return it, from
}

// value finds the bytes of an item that current returned: in the batch, among
// what is pending, in what was fetched for r, or in the replica if that is in
// this process. ok is false if they must be fetched.
func (c *core) value(r *request, key attune.Key, it *attune.Item, from int) (v []byte, ok bool) {
	if from >= 0 {
		return c.lead.batch.changes[from].Item.Value, true
	}
	if p, found := c.lead.overlay[key.Hash]; found && p.data != nil && p.item.Stored == it.Stored {
		return valueOf(p.data, p.rec), true
	}
	if f, found := r.fetched[key.Hash]; found && f.stored == it.Stored && f.err == nil {
		return f.value, true
	}
	if !c.replica.Immediate() {
		return nil, false
	}
	got, err := c.replica.Get(c.ctx, key, c.lead.batch.read, false)
	if err != nil || got.Stored != it.Stored {
		return nil, false
	}
	if cap(got.Value) > cap(c.lead.batch.read) && len(got.Value) < large {
		c.lead.batch.read = got.Value[:0]
	}
	return got.Value, true
}

// valueOf is the value of record n of an entry of ours.
func valueOf(data []byte, n int) []byte {
	rd, err := codec.Open(data)
	if err != nil {
		panic(err) // it was made here
	}
	var rec codec.Record
	for ; n >= 0; n-- {
		if !rd.Next(&rec) {
			panic("ordered: an entry without its record")
		}
	}
	return rec.Change.Item.Value
}

// wanted is a value that must be fetched before an op can be decided.
type wanted struct {
	key  attune.Key
	item attune.Item
}

// fetchFirst reports whether r must wait for values to be fetched. It looks at
// all ops before any is decided, because they are decided together, in order.
func (c *core) fetchFirst(r *request) bool {
	var missing []wanted
	now := c.lead.batch.now
	for i := range r.ops {
		op := &r.ops[i]
		if op.Verb == attune.Flush || !op.NeedsValue() {
			continue
		}
		it, from := c.current(op.Key, false)
		if !it.Live(now) {
			continue
		}
		if f, ok := r.fetched[op.Key.Hash]; ok && f.err != nil && f.stored == it.Stored {
			c.fail(r, fmt.Errorf("%w: %w", errNoValue, f.err)) // none of r's ops was decided
			return true
		}
		if _, ok := c.value(r, op.Key, &it, from); !ok {
			missing = append(missing, wanted{key: op.Key, item: it})
		}
	}
	if missing == nil {
		return false
	}
	r.fetching = true
	c.world.fetchBytes(r, missing)
	return true
}

// bytesFetched has the request go on that waited for them.
func (c *core) bytesFetched(r *request, got map[attune.KeyHash]fetched) {
	r.fetching, r.fetched = false, got
	if !r.done {
		c.writes = append(c.writes, r)
	}
}

// decideOp decides one op, and fills in its result, which holds once the batch is
// applied.
func (c *core) decideOp(r *request, op *attune.Op, res *attune.Result) {
	b := &c.lead.batch
	if op.Verb == attune.Flush {
		if at := c.deadline(op.Exptime, b.now); at > b.now {
			c.flushLater(at)
		} else {
			c.flushLater(0)
			c.flushNow()
		}
		*res = attune.Result{Status: attune.Flushed}
		return
	}
	bump := op.Verb == attune.Touch || op.Verb == attune.Get && !op.Mode.Has(attune.NoBump)
	var cur attune.Item
	from := -1
	if !op.Blind() {
		cur, from = c.current(op.Key, bump)
		if op.NeedsValue() && cur.Live(b.now) {
			if f, ok := r.fetched[op.Key.Hash]; ok && f.gone && f.stored == cur.Stored && from < 0 {
				// A peer that cannot be reached now may have the bytes, so that a later
				// read would find what this op is told is not there.
				c.decideEvict(lost{hash: op.Key.Hash, version: cur.Version})
				cur = attune.Item{}
			} else if cur.Value, ok = c.value(r, op.Key, &cur, from); !ok {
				// An earlier op of the same request has made it so, and fetching did
				// not foresee it.
				*res = attune.Result{Status: attune.Failed, Err: replica.ErrBusy}
				return
			}
		}
	}
	own := op.Mode.Has(attune.WantValue) // the result shows the value, when the batch is long gone
	if own && cur.Value != nil && len(cur.Value) < large {
		cur.Value = append(make([]byte, 0, len(cur.Value)), cur.Value...)
	}
	var buf []byte
	if !own && len(cur.Value) < large {
		buf = c.room(len(cur.Value) + len(op.Value) + 20)
	}
	if op.Exptime > longestTTL || op.VivifyTTL > longestTTL {
		at := *op
		at.Exptime, at.VivifyTTL = c.exptime(op.Exptime, b.now), c.exptime(op.VivifyTTL, b.now)
		op = &at
	}
	ch, result := op.Decide(&cur, b.now, buf)
	*res = result
	if ch.None() {
		return
	}
	if c.maxItem > 0 && ch.Item.Size > c.maxItem {
		*res = attune.Result{Status: attune.NotStored} // as memcached says it
		return
	}
	stores := !ch.Item.Deleted && ch.Item.Stored == 0
	if stores && !c.replica.Fits(len(ch.Key.Text)+ch.Item.Size) {
		if op.Verb == attune.Set {
			// What it was to replace must not be read any more, as in memcached.
			c.add(attune.Change{Key: op.Key, Item: attune.Item{Deleted: true}, Prior: attune.AnyVersion}, -1)
		}
		*res = attune.Result{Status: attune.OutOfMemory}
		return
	}
	if stores && !c.taken(&ch, op, res) {
		return
	}
	ch.Stamp(c.nextVersion(b.now))
	res.Stamped(&ch)
	if stores && len(buf) == 0 && len(ch.Item.Value) > 0 && len(buf) < cap(buf) && &ch.Item.Value[0] == &buf[:1][0] {
		b.arena = b.arena[:len(b.arena)+len(ch.Item.Value)] // it is in the arena: keep it
	}
	c.addStamped(ch, from)
}

// taken reports whether the store here would take what ch puts there. It is written
// aside, when all is said; what none of the stores took would then be lost.
func (c *core) taken(ch *attune.Change, op *attune.Op, res *attune.Result) bool {
	err := c.replica.Takes(ch.Key, ch.Item.Size)
	switch {
	case err == nil:
		return true
	case !errors.Is(err, kvadapter.ErrTooLarge):
		*res = attune.Result{Status: attune.Failed, Err: err}
		return false
	case op.Verb == attune.Set:
		// As above.
		c.add(attune.Change{Key: op.Key, Item: attune.Item{Deleted: true}, Prior: attune.AnyVersion}, -1)
	}
	*res = attune.Result{Status: attune.TooLarge}
	return false
}

// room is memory for a value to be built, at the end of the arena.
func (c *core) room(n int) []byte {
	b := &c.lead.batch
	if cap(b.arena)-len(b.arena) < n {
		b.arena = make([]byte, 0, max(64<<10, n)) // what is in the old one stays where it is
	}
	return b.arena[len(b.arena):len(b.arena):cap(b.arena)]
}

func (c *core) add(ch attune.Change, from int) {
	ch.Stamp(c.nextVersion(c.lead.batch.now))
	c.addStamped(ch, from)
}

// addStamped puts a change into the batch: in place of the key's previous one if
// that makes no difference to who applies it.
func (c *core) addStamped(ch attune.Change, from int) {
	b := &c.lead.batch
	moves := !ch.Item.Deleted && ch.Item.Stored == ch.Item.Version
	if i, ok := b.at[ch.Key.Hash]; ok {
		prev := &b.changes[i]
		if moves || ch.Item.Deleted || prev.Item.Deleted || prev.Item.Stored != prev.Item.Version {
			b.size += len(ch.Item.Value) - len(prev.Item.Value)
			prev.Item = ch.Item
			if prev.Key.Text == nil {
				prev.Key = ch.Key
			}
			b.bytes[i] = from
			if moves {
				b.bytes[i] = i
			}
			return
		}
	}
	b.changes = append(b.changes, ch)
	if moves {
		from = len(b.changes) - 1
	}
	b.bytes = append(b.bytes, from)
	b.at[ch.Key.Hash] = len(b.changes) - 1
	b.size += len(ch.Key.Text) + len(ch.Item.Value) + 40
}

// flushNow kills every item there is.
func (c *core) flushNow() {
	b := &c.lead.batch
	v := c.nextVersion(b.now)
	b.marks = append(b.marks, mark{before: len(b.changes), kind: codec.KindFlush, v: v})
	c.lead.floor = v
	clear(b.at) // what was before is dead; what comes after has records of its own
}

// flushLater has every item die at a moment of the log clock; 0 is never.
func (c *core) flushLater(at int64) {
	if c.flushTime() == at {
		return
	}
	b := &c.lead.batch
	b.marks = append(b.marks, mark{before: len(b.changes), kind: codec.KindFlushAt, at: at, v: c.nextVersion(b.now)})
	c.lead.flushAt, c.lead.hasFlushAt = at, true
}

// exptime turns one that is unix time, by the wall clocks of clients, into the
// time of the log, which may differ.
func (c *core) exptime(exptime, now int64) int64 {
	if exptime <= longestTTL {
		return exptime
	}
	ahead := now - c.world.wall()
	return max(min(exptime, math.MaxInt64/2000)+int64(math.Round(float64(ahead)/1000)), longestTTL+1)
}

func (c *core) deadline(exptime, now int64) int64 {
	return attune.Deadline(c.exptime(exptime, now), now)
}

// decideEvict removes exactly the version whose bytes are lost, if it is still
// the newest.
func (c *core) decideEvict(l lost) {
	key := attune.Key{Hash: l.hash}
	if it, _ := c.current(key, false); it.Version == l.version && !it.Deleted {
		c.add(attune.Change{Key: key, Item: attune.Item{Deleted: true}, Prior: l.version}, -1)
	}
}

// A sweep looks at this share of the index, and at least and at most at so many
// entries: ten a second make ten seconds.
const (
	sweepShare = 100
	sweepLeast = 64
	sweepMost  = 16 << 10
)

// sweep proposes the removal of what expired or was flushed.
func (c *core) sweep() {
	b := &c.lead.batch
	n := min(max(c.replica.Len()/sweepShare, sweepLeast), sweepMost)
	for _, ch := range c.replica.Dead(b.now, n, nil) {
		if c.untouched(ch.Key.Hash) {
			c.add(ch, -1)
		}
	}
}

// untouched reports whether nothing is pending about a key.
func (c *core) untouched(h attune.KeyHash) bool {
	_, overlaid := c.lead.overlay[h]
	_, batched := c.lead.batch.at[h]
	return !overlaid && !batched
}

// Evictions of one batch are bounded, and so is the search for victims that are
// not busy.
const maxEvictions = 256

// makeRoom proposes evictions until what is here, less what is being evicted,
// is within the memory limit. Every replica holds the same, so all are.
func (c *core) makeRoom() {
	b := &c.lead.batch
	if c.now >= c.nextSweep {
		c.nextSweep = c.now + tickEvery
		c.sweep()
	}
	if !c.replica.Over() {
		return
	}
	excess := c.replica.Excess() - c.lead.evicting
	for tries := 0; excess > 0 && tries < maxEvictions; tries++ {
		victim, ok := c.replica.Victim(attune.KeyHash{})
		if !ok {
			return
		}
		if !c.untouched(victim.Key.Hash) {
			continue
		}
		it := c.replica.Peek(victim.Key, false)
		freed := int64(it.Size) + entryCost
		c.add(victim, -1)
		b.evicted += freed
		excess -= freed
	}
}

// entryCost is what an item costs besides its value, roughly.
const entryCost = 100
