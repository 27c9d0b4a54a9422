package gossip

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/gossip/journal"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

// With a data-dir, a member is the same origin after a restart, with all that it had.
// So nobody may hear of anything that is not in the journal: changes made here leave
// it, and are acknowledged, when they are; and the digests tell of those of others
// then. What comes in between is written together.

const (
	// boundAhead is how far ahead of its clock a member notes that it may have
	// issued versions, and boundLeft how much of that must be left.
	boundAhead = 4 * time.Second
	boundLeft  = 2 * time.Second
	// stateAfter is how much may be journaled before the state is written anew: that,
	// or as much as there is state.
	stateAfter = 64 << 20
)

// unsavedMost is how many bytes beyond the ring may wait for the journal, which may wait
// for a store without room, until nothing is taken from others any more.
var unsavedMost = 64 << 20

// Kinds of records in the journal.
const (
	recordUpdate byte = iota + 3 // and an update, its origin and seq given
	recordCut                    // and a version: what is dead up to it is forgotten
	recordFloor                  // and a version: what is older is flushed
	recordHeld                   // and what a member had of a key: see appendHeld
	recordVector                 // and dependencies: everything of these is here now
)

var (
	// errBound: the clock is beyond what the journal notes; renew, and do it again.
	errBound = errors.New("this controller was stopped for some seconds; try again")
	errState = errors.New("what is in the data directory was not written by this version of attune")
)

// persisted is the persistent half of a member.
type persisted struct {
	journal *journal.Journal
	limit   int64 // of the clock: see journal.Bound. Guarded by core.mu, as what follows
	// safe is the position in the ring up to which everything is in the journal.
	safe uint64
	// extra are records besides what is in the ring.
	extra []extra
	// behind are changes whose bytes a durable store gets when the journal has them.
	behind []repair.Staged

	buf  []byte // of persist alone, as ends, recs and seqs
	ends []int
	recs [][]byte
	// stage brings bytes to a durable store.
	stage func(repair.Staged)
	// drain waits until it has them.
	drain func(context.Context) error
	seqs  []dependency
	size  int64 // of the newest state; of save alone
}

// extra is a record that belongs before what is at a position of the ring.
type extra struct {
	pos    uint64
	record []byte
}

// durable says that changes wait for the journal.
func (k *core) durable() bool { return k.disk.journal != nil }

// Bytes go to a durable store when the journal has the change that wrote them. Before,
// they could take the place of others that a restart finds in the index: it would know
// neither the change that is not in the journal, nor the bytes that it replaced. And a
// state may take the place of the journal when the store has, synced, the bytes of all
// that is in the state.

// logged says that the store's bytes follow the journal.
func (k *core) logged() bool { return k.durable() && k.replica.Durable() }

// follow has the bytes of a change brought to the store when it is in the journal.
func (k *core) follow(c *attune.Change) {
	if k.replica.Stages(c) {
		k.disk.behind = append(k.disk.behind, repair.StagedOf(c))
		k.world.stir()
	}
}

// sendable is the position in the ring before which changes may leave.
func (k *core) sendable() uint64 {
	if k.durable() {
		return k.disk.safe
	}
	return k.ring.next()
}

// note has a record written behind what is in the ring by now.
func (k *core) note(kind byte, fill func([]byte) []byte) {
	if k.durable() {
		k.disk.extra = append(k.disk.extra, extra{k.ring.next(), fill([]byte{kind})})
		k.world.stir()
	}
}

// swamped reports whether so much waits for the journal that no more is taken from
// others. They keep it, or can be compared with.
func (k *core) swamped() bool {
	return k.durable() && k.ring.first >= k.ring.keep && k.ring.bytes > k.ring.limit+unsavedMost
}

func (k *core) noteVersion(kind byte, v attune.Version) {
	k.note(kind, func(b []byte) []byte { return binary.LittleEndian.AppendUint64(b, uint64(v)) })
}

// noteHeld is for a change that did not come as an update.
func (k *core) noteHeld(c *attune.Change) {
	k.note(recordHeld, func(b []byte) []byte {
		return appendHeld(b, &replica.Held{Key: c.Key, Item: c.Item, Mark: markOf(c)}, false)
	})
}

// noteVector is for updates that did not come, as all that they did is here.
func (k *core) noteVector(deps []dependency) {
	k.note(recordVector, func(b []byte) []byte { return appendDeps(b, deps) })
}

// collected notes that all members agreed to forget what is dead up to c.
func (k *core) collected(c attune.Version) {
	k.replica.SetCollected(c)
	k.noteVersion(recordCut, c)
}

// persist brings to the journal what it does not have yet. It is called by one
// goroutine, which exits the process on an error.
func (k *core) persist() error {
	d := &k.disk
	k.mu.Lock()
	next := k.ring.next()
	d.buf, d.ends, d.recs, d.seqs = d.buf[:0], d.ends[:0], d.recs[:0], d.seqs[:0]
	more := d.extra
	for pos := d.safe; ; pos++ {
		for ; len(more) > 0 && more[0].pos <= pos; more = more[1:] {
			d.buf = append(d.buf, more[0].record...)
			d.ends = append(d.ends, len(d.buf))
		}
		if pos == next {
			break
		}
		d.buf = appendUpdate(append(d.buf, recordUpdate), update{}, k.ring.at(pos))
		d.ends = append(d.ends, len(d.buf))
	}
	d.extra = nil
	behind := d.behind
	d.behind = nil
	for _, p := range k.vv {
		if p.told != p.seq {
			d.seqs = append(d.seqs, dependency{p.origin, p.seq})
		}
	}
	k.mu.Unlock()
	from := 0
	for _, end := range d.ends {
		d.recs = append(d.recs, d.buf[from:end])
		from = end
	}
	if len(d.recs) > 0 {
		if err := d.journal.Append(d.recs); err != nil {
			return err
		}
	}
	if cap(d.buf) > 4<<20 {
		d.buf = nil
	}
	// A store that does not keep up is waited for, and so are writes here.
	for i := range behind {
		d.stage(behind[i])
	}
	k.mu.Lock()
	d.safe, k.ring.keep = next, next
	for _, s := range d.seqs {
		k.tellOf(k.reach(s.origin), s.seq)
	}
	k.acks.heard(k)
	for _, p := range k.near {
		if p.owed {
			p.owed = false
			k.digestTo(p.id, k.clock.mono())
		}
	}
	k.mu.Unlock()
	return nil
}

// beyond reports whether a version must not be issued: after a crash, one that is
// older could be, for the same key.
func (k *core) beyond(v attune.Version) bool { return k.durable() && millis(v) > k.disk.limit }

// renew notes ahead of time how far the clock may go.
func (k *core) renew() error {
	now := k.clock.now()
	k.mu.Lock()
	limit := k.disk.limit
	k.mu.Unlock()
	if limit-max(now, millis(attune.Version(k.clock.last.Load()<<nodeBits))) > boundLeft.Milliseconds() {
		return nil
	}
	limit = max(now, millis(attune.Version(k.clock.last.Load()<<nodeBits))) + boundAhead.Milliseconds()
	if err := k.disk.journal.SetBound(limit); err != nil {
		return err
	}
	k.mu.Lock()
	k.disk.limit = max(k.disk.limit, limit)
	k.mu.Unlock()
	return nil
}

// save writes a state if the journal has grown enough.
func (k *core) save(ctx context.Context) error {
	if d := &k.disk; d.journal.Size() < max(stateAfter, d.size) {
		return nil
	}
	return k.saveNow(ctx)
}

// saveNow writes a state.
func (k *core) saveNow(ctx context.Context) error {
	d := &k.disk
	k.mu.Lock()
	cut, err := k.replica.Cut()
	if err != nil {
		k.mu.Unlock()
		return err
	}
	defer cut.Close()
	at := d.journal.Mark()
	head := k.stateHead()
	k.mu.Unlock()
	var size int64
	err = d.journal.Checkpoint(at, func(w io.Writer) (err error) {
		size, err = disk.WriteContent(w, head, cut, func(w io.Writer) error {
			if k.replica.Immediate() {
				return k.replica.Export(ctx, w)
			}
			return nil
		})
		if err != nil {
			return err
		}
		// An item that was overwritten meanwhile went without its bytes: what has
		// overwritten it must be in the journal before this state counts.
		if err := k.journaled(ctx); err != nil || !k.logged() {
			return err
		}
		if err := d.drain(ctx); err != nil {
			return err
		}
		return k.replica.Sync(ctx)
	})
	if err == nil {
		d.size = size
	}
	return err
}

// journaled returns when everything that is here now is in the journal.
func (k *core) journaled(ctx context.Context) error {
	k.mu.Lock()
	next := k.ring.next()
	k.mu.Unlock()
	for {
		k.mu.Lock()
		safe := k.disk.safe
		k.mu.Unlock()
		if safe >= next {
			return nil
		}
		k.world.stir()
		select {
		case <-time.After(lingering):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

const stateFormat = 1

// stateHead is what a state begins with: all but the replica.
func (k *core) stateHead() []byte {
	b := append([]byte(nil), stateFormat)
	b = binary.LittleEndian.AppendUint64(b, uint64(k.replica.Collected()))
	deps := make([]dependency, 0, len(k.vv))
	for _, p := range k.vv {
		deps = append(deps, dependency{p.origin, p.seq})
	}
	return appendDeps(b, deps)
}

// load takes over what the journal has. It is called before anything else.
func (k *core) load(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := &k.disk
	err := d.journal.LoadState(func(r io.Reader) error {
		head, err := disk.ReadHead(r, 64<<20)
		if err != nil {
			return err
		}
		h := reader{b: head}
		format, collected := h.u8(), attune.Version(h.u64())
		for range h.count(9) {
			origin, seq := h.u64(), h.uvarint()
			k.advance(k.reach(origin), seq, 0)
			k.ring.dropped[origin] = seq
		}
		if format != stateFormat || !h.end() {
			return errState
		}
		if err := k.replica.Install(r); err != nil {
			return err
		}
		k.replica.SetCollected(collected)
		if !k.replica.Immediate() {
			return nil
		}
		_, err = k.replica.Import(ctx, r)
		return err
	})
	if err == nil {
		err = d.journal.Replay(k.replay)
	}
	if err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	for _, p := range k.vv {
		k.tellOf(p, p.seq)
	}
	d.safe, k.ring.keep = k.ring.next(), k.ring.next()
	d.extra = nil // it was all read there
	k.resketch()
	for i := range replica.Segments {
		k.replica.Each(i, func(_ attune.KeyHash, m replica.Mark) { k.newest = max(k.newest, m.Version()) })
	}
	k.clock.observe(versionAt(d.journal.Bound() + 1))
	k.log.Info("took the state from disk", zap.Int("items", k.replica.Len()), zap.Uint64("changes", k.own.seq))
	return nil
}

// replay applies a record of the journal.
func (k *core) replay(record []byte) error {
	if len(record) == 0 {
		return errState
	}
	r := reader{b: bytes.Clone(record[1:])} // it is kept
	switch record[0] {
	case recordUpdate:
		var u heldUpdate
		if !r.next(&update{}, &u) {
			return errState
		}
		k.apply(&u.rec, k.clock.mono())
		if p := k.reach(u.origin); u.seq > p.seq {
			k.advance(p, u.seq, 0)
			k.ring.add(u.update)
		}
	case recordCut:
		k.replica.SetCollected(attune.Version(r.u64()))
	case recordFloor:
		k.raiseFloor(attune.Version(r.u64()))
	case recordHeld:
		c, ok := r.held()
		if !ok {
			return errState
		}
		k.apply(&codec.Record{Version: c.Item.Version, Change: c}, k.clock.mono())
	case recordVector:
		for range r.count(9) {
			if p, seq := k.reach(r.u64()), r.uvarint(); seq > p.seq {
				k.advance(p, seq, 0)
				k.ring.dropped[p.origin] = seq
			}
		}
	default:
		return errState
	}
	if !r.end() {
		return errState
	}
	return nil
}
