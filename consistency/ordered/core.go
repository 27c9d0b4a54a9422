package ordered

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/consistency/ordered/raftlog"
	"github.com/attunekv/attune/replica"
)

const (
	tickEvery     = 100 * time.Millisecond
	electionTicks = 10
	// readRetry is when a read index that was not answered is asked for again.
	readRetry = 2 * tickEvery
	// expireEvery is how exactly deadlines are kept.
	expireEvery = 20 * time.Millisecond
	// anchorPatience is how long the first read of a connection waits for a read
	// index at the sequential level.
	anchorPatience = 200 * time.Millisecond
	// maxWaiting bounds the requests that wait or are under way on a controller.
	maxWaiting = 100_000
	// maxInflight is how many proposals are under way at a time: what comes
	// meanwhile shares the next.
	maxInflight = 2
	// defaultLogBudget is the bytes of log that are kept in memory for followers.
	defaultLogBudget = 64 << 20
)

// world is what the core needs of its surroundings. What takes time is done
// elsewhere, and the result comes back by post; in simulations all of it is made
// of paper.
type world interface {
	// send queues a frame for a peer. False is certainly not sent.
	send(to uint64, class cluster.Class, kind byte, body []byte) bool
	// nonce is a random number.
	nonce() uint64
	// wall is the wall clock, unix milliseconds.
	wall() int64
	// fetchIndex gets the index of the snapshot that a peer announced in m, and has
	// core.indexFetched called with it.
	fetchIndex(m *pb.Message)
	// hydrate fills in the bytes of index entries from peers, after a snapshot with
	// that index was installed, and has core.bytesHere called when all are there.
	hydrate(index uint64)
	// fetchBytes gets values from the store or a peer, and has core.bytesFetched
	// called.
	fetchBytes(r *request, wanted []wanted)
	// stageChange takes over the bytes of an applied change for a store outside this
	// process.
	stageChange(change *attune.Change)
	// behind reports whether so much waits for that store that writes must wait, too.
	behind() bool
	// swamped reports whether it is so much that nothing more is taken from the leader.
	swamped() bool
	// saveState writes cut and the values to disk, closes cut, and has
	// core.stateSaved called.
	saveState(snap *pb.Snapshot, cut *replica.Cut)
}

// core is one member of one Raft group, and all decisions in it. It has no
// goroutine and no clock: whoever owns it calls turn, from one goroutine, and so
// a simulation can drive it.
type core struct {
	id        uint64
	name      string
	expect    int
	maxItem   int
	log       *zap.Logger
	replica   *replica.Replica
	store     *raftlog.Log
	raft      *raft.RawNode
	world     world
	ctx       context.Context
	now       time.Duration // of this turn, since some start; monotonic
	nextTick  time.Duration
	ticked    bool // in this turn
	nextSweep time.Duration
	closing   bool
	durable   bool         // the state is written to disk
	syncs     bool         // and the log with fsync
	full      func() error // why the disk has no room, if it has not; nil: never
	logBudget int64        // bytes of log kept in memory for followers

	// What everybody may read.
	applied    atomic.Uint64
	begun      atomic.Uint64 // at least st.applied; the replica has nothing of later entries
	clock      atomic.Int64  // st.time
	isServing  atomic.Bool
	unanchored atomic.Uint64
	counts     counts

	st   state
	conf *pb.ConfState
	pace logClock
	soft raft.SoftState
	// reigns is who led when, reign the term of the newest entry applied since the start,
	// and noted the newest whose leader is there.
	reigns       reigns
	reign, noted uint64
	since        time.Duration // when the leader was last found missing
	// campaignAt is when to stand for election because the leader hung up; 0 is not.
	campaignAt time.Duration

	// Requests.
	pending    int        // not answered
	writes     []*request // to be decided or forwarded
	timed      []*request // those with a deadline
	nextExpiry time.Duration
	forwarded  map[uint64]*request // by the number we gave them
	lastID     uint64
	asked      map[asker]uint64 // the newest request of each that came

	traces  int                                                 // requests that are traced and not answered
	traceOf func(attune.SpanContext, []attune.Op) *attune.Trace // nil: nobody asks

	ahead [lookahead]codec.Record // of the entry that is applied

	reads reads
	lead  leadership
	memb  membership
	snaps snapshots

	came    []*pb.Message // of Raft, in this turn
	acked   acked
	commits []commit // that are put off, one per follower
	// out is what this turn has to say, per peer and connection; the order is that
	// in which it came up, so that a simulation can be repeated.
	out []outFrame
	// late is what there was no room for, of any turn, and lateBytes its size.
	late      []late
	lateBytes int
}

// outFrame gathers what is to be sent over one connection to a peer.
type outFrame struct {
	to    uint64
	class cluster.Class
	kind  byte
	body  []byte
}

// counts are figures for metrics.
type counts struct {
	completed, proposals, records, forwards, rounds, refused, terms atomic.Uint64
}

// start makes the Raft node on what store and st say.
func (c *core) start() error {
	var err error
	c.forwarded = make(map[uint64]*request)
	c.asked = make(map[asker]uint64)
	c.lastID = c.world.nonce() << idBits
	// An answer to a former process of this member must be none to this one.
	c.reads.counter = c.world.nonce()
	c.lead.init()
	c.memb.init()
	if c.st.members == nil {
		c.st.members = make(map[uint64]string)
	}
	c.store.OnSnapshot(c.snapshot)
	if c.raft, err = c.newRaft(); err != nil {
		return err
	}
	_, c.conf, err = c.store.InitialState()
	if err != nil {
		return err
	}
	c.pace.heard(c.st.time, c.mono())
	c.publish()
	return nil
}

func (c *core) newRaft() (*raft.RawNode, error) {
	return raft.NewRawNode(&raft.Config{
		ID:                        c.id,
		ElectionTick:              electionTicks,
		HeartbeatTick:             1,
		Storage:                   c.store,
		Applied:                   c.st.applied,
		MaxSizePerMsg:             1 << 20,
		MaxCommittedSizePerReady:  4 << 20,
		MaxUncommittedEntriesSize: 64 << 20,
		MaxInflightMsgs:           256,
		MaxInflightBytes:          16 << 20,
		CheckQuorum:               true,
		PreVote:                   true,
		ReadOnlyOption:            raft.ReadOnlySafe,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    raftLogger{c.log.Sugar()},
	})
}

func (c *core) mono() int64 { return c.now.Milliseconds() }

// turn takes what came since the last one and does everything that follows from
// it. The order matters for speed only: what came together is decided, proposed
// and confirmed together.
func (c *core) turn(now time.Duration, in *inbox) {
	c.now = now
	for i := range in.tasks {
		in.tasks[i]()
	}
	if c.ticked = c.now >= c.nextTick; c.ticked {
		// One tick, however late: a process that was stopped has not heard
		// nothing for so long, it has not listened.
		c.nextTick = c.now + tickEvery
		c.tick()
	}
	for i := range in.frames {
		c.receive(&in.frames[i])
	}
	c.stepRaft()
	for _, call := range in.calls {
		c.accept(call)
	}
	c.hasten()
	c.drive()
	c.snaps.prepared = nil // what Raft has not taken by now it needs no more: the log was faster
	c.expire()
	c.flushOut()
}

// drive goes on until nothing follows from anything any more.
func (c *core) drive() {
	for {
		c.moveWrites()
		c.moveReads()
		if !c.raft.HasReady() {
			return
		}
		for c.raft.HasReady() {
			c.ready()
		}
	}
}

// ready carries out what Raft wants done, in the order that makes it safe: a
// leader's appends and heartbeats may leave before this disk has them; votes and
// acknowledgements may not.
func (c *core) ready() {
	rd := c.raft.Ready()
	if rd.SoftState != nil {
		c.softState(*rd.SoftState)
	}
	if term := rd.HardState.GetTerm(); rd.SoftState != nil || term != 0 && term != c.noted {
		c.noteLeader()
	}
	early := c.soft.RaftState == raft.StateLeader
	if early {
		for _, m := range rd.Messages {
			if leadersOwn(m) {
				c.sendRaft(m)
			}
		}
		if c.syncs && len(rd.Entries) > 0 {
			c.flushOut() // the others' disks work while this one does
		}
	}
	if snap := rd.Snapshot; !raft.IsEmptySnap(snap) {
		c.install(snap)
	}
	if len(rd.Entries) > 0 || !raft.IsEmptyHardState(rd.HardState) {
		if err := c.store.Save(rd.HardState, rd.Entries); err != nil {
			// What a failed write or fsync left on disk is unknown.
			panic(fmt.Sprintf("the Raft log cannot be written; this controller must not go on: %v", err))
		}
		c.lead.numbered(rd.Entries)
		c.noteLogged()
	}
	for _, m := range rd.Messages {
		if !early || !leadersOwn(m) {
			c.sendRaft(m)
		}
	}
	c.readStates(rd.ReadStates)
	c.noteCommitted(rd.CommittedEntries)
	for _, e := range rd.CommittedEntries {
		c.apply(e)
	}
	c.raft.Advance(rd)
	if len(rd.CommittedEntries) > 0 {
		c.publish()
	}
}

func leadersOwn(m *pb.Message) bool {
	switch m.GetType() {
	case pb.MsgApp, pb.MsgHeartbeat, pb.MsgSnap:
		return true
	}
	return false
}

// publish tells readers how far this replica is, and lets those go on who waited
// for it.
func (c *core) publish() {
	c.clock.Store(c.st.time)
	c.applied.Store(c.st.applied)
	c.releaseReads()
}

// softState notes who leads.
func (c *core) softState(s raft.SoftState) {
	was := c.soft
	c.soft = s
	if was.Lead != s.Lead || was.RaftState != s.RaftState {
		c.counts.terms.Add(1)
		c.log.Info("raft state changed",
			zap.Stringer("role", s.RaftState), zap.String("leader", c.nameOf(s.Lead)),
			zap.Uint64("term", c.raft.BasicStatus().GetTerm()), zap.Uint64("applied", c.st.applied))
		if s.Lead == 0 {
			c.since = c.now
		}
		c.restartReads()
	}
	if was.RaftState == raft.StateLeader && s.RaftState != raft.StateLeader {
		c.lead.lost()
		c.memb.lost()
	}
}

// leads reports whether this member may decide: it is the leader, and has
// applied everything that was committed before its term.
func (c *core) leads() bool {
	return c.soft.RaftState == raft.StateLeader && c.st.term == c.raft.BasicStatus().GetTerm()
}

// serving reports whether this replica may answer reads, after their barrier.
func (c *core) serving() bool {
	return c.st.formed && c.snaps.hydrated && !c.memb.removed
}

// tick is ten times a second.
func (c *core) tick() {
	c.raft.Tick()
	if c.leads() {
		c.manage()
	}
	c.retryReads()
	c.retryMembership()
	c.compact()
	c.isServing.Store(c.serving())
}

// accept takes a request of this controller's.
func (c *core) accept(in localCall) {
	r := &request{
		call: in.call, kind: in.kind, ops: in.call.Ops, res: in.call.Res[:min(len(in.call.Res), len(in.call.Ops))],
		lost: in.lost, deadline: in.deadline,
	}
	c.pending++
	if r.trace = in.call.Trace; r.trace != nil {
		c.traces++
		r.trace.Ended("queue", "the core's turn began")
	}
	if r.kind == kindAnchor {
		r.last = r.deadline
		limit := c.now + anchorPatience
		if r.deadline == 0 || r.deadline > limit {
			r.deadline = limit
		}
	}
	if r.deadline != 0 {
		c.timed = append(c.timed, r)
	}
	c.admit(r)
}

// admit queues a request, of whomever.
func (c *core) admit(r *request) {
	switch {
	case c.closing:
		c.fail(r, errClosed)
	case !c.st.formed:
		c.fail(r, errNotReady)
	case c.pending > maxWaiting:
		c.fail(r, errBusy)
	case r.kind == kindWrite && c.refused(r):
	case r.kind == kindWrite || r.kind == kindEvict:
		c.writes = append(c.writes, r)
	case !c.serving():
		c.fail(r, errNotReady)
	default:
		c.reads.add(r)
	}
}

// refused fails a request that would fill this disk up: that of the leader, which
// decides it, or of the controller that was asked. What others decided must be
// written, or this controller end.
func (c *core) refused(r *request) bool {
	if c.full == nil {
		return false
	}
	err := c.full()
	if err == nil || !slices.ContainsFunc(r.ops, func(op attune.Op) bool { return op.Verb != attune.Delete && op.Verb != attune.Flush }) {
		return false
	}
	c.fail(r, fmt.Errorf("%w: %w", errFull, err))
	return true
}

// nameOf is a member's name for people.
func (c *core) nameOf(id uint64) string {
	if id == 0 {
		return ""
	}
	if name, ok := c.st.members[id]; ok {
		return name
	}
	return fmt.Sprintf("%x", id)
}

// apply makes one committed entry take effect. It is a pure function of the log:
// it reads no clock and waits for nothing.
func (c *core) apply(e *pb.Entry) {
	c.noteReign(e.GetTerm())
	c.st.applied, c.st.term = e.GetIndex(), e.GetTerm()
	c.begun.Store(c.st.applied)
	switch e.GetType() {
	case pb.EntryConfChange, pb.EntryConfChangeV2:
		c.applyConfChange(e)
	default:
		if len(e.GetData()) > 0 {
			c.applyRecords(e)
		}
	}
	c.settleProposals(e)
}

// lookahead is how many changes, or requests, are seen before the first takes effect:
// most of the time that one takes goes to waiting for memory.
const lookahead = 32

func (c *core) applyRecords(e *pb.Entry) {
	rd, err := codec.Open(e.GetData())
	if err != nil {
		panic(fmt.Sprintf("log entry %d cannot be read, so this controller cannot stay equal to the others: %v", e.GetIndex(), err))
	}
	c.st.time = max(c.st.time, rd.Header.Time)
	c.replica.Passed(c.st.time)
	if c.soft.RaftState != raft.StateLeader {
		c.pace.heard(c.st.time, c.mono())
	}
	for more := true; more; {
		recs := c.ahead[:0]
		for len(recs) < lookahead {
			recs = recs[:len(recs)+1]
			rec := &recs[len(recs)-1]
			if more = rd.Next(rec); !more {
				recs = recs[:len(recs)-1]
				break
			}
			if key := &rec.Change.Key; key.Text != nil {
				key.Hash = c.replica.Hash(key.Text)
				c.replica.Prefetch(*key)
			}
		}
		for i := range recs {
			c.applyRecord(&recs[i], len(e.GetData()))
		}
		clear(recs)
	}
	if err := rd.Err(); err != nil {
		panic(fmt.Sprintf("log entry %d is damaged, so this controller cannot stay equal to the others: %v", e.GetIndex(), err))
	}
}

func (c *core) applyRecord(rec *codec.Record, entrySize int) {
	c.st.version = max(c.st.version, rec.Version)
	switch rec.Kind {
	case codec.KindChange:
		c.applyChange(&rec.Change, entrySize)
	case codec.KindFlush:
		c.replica.Flush(rec.Version)
	case codec.KindFlushAt:
		c.st.flushAt = rec.At
	case codec.KindFormed:
		c.st.formed = true
		c.log.Info("the cluster has its first size and is served", zap.Int("members", len(c.st.members)))
	}
}

// applyChange gives a change to the replica. It holds, because the leader decided
// it on everything that is before it in the log; the replica checks once more.
func (c *core) applyChange(ch *attune.Change, entrySize int) {
	if len(ch.Item.Value) >= large && entrySize > 2*len(ch.Item.Value) {
		// A large value is kept, and would keep all of the entry.
		ch.Item.Value = append(make([]byte, 0, len(ch.Item.Value)), ch.Item.Value...)
	}
	applied, err := c.replica.Apply(ch)
	if !applied {
		c.counts.refused.Add(1)
		return
	}
	if err != nil {
		// The bytes do not fit here. A read will find them missing, and get them
		// from a peer or have the item evicted everywhere.
		c.log.Warn("a value could not be stored", zap.Error(err))
		return
	}
	if !c.replica.Immediate() {
		c.world.stageChange(ch)
	}
}
