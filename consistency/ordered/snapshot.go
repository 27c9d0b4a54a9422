package ordered

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/consistency/ordered/raftlog"
	"github.com/attunekv/attune/replica"
)

const (
	// snapshotPatience is how long a snapshot may be announced and not fetched.
	snapshotPatience = 5 * time.Second
	// stateEvery is how many bytes of log on disk are worth a new state there.
	stateEvery = 64 << 20
	// saveRetry is how long after a failure it is tried again.
	saveRetry = 10 * time.Second
)

// snapshots are what this member does about logs that are too short: its own, or
// that of a follower. What Raft calls a snapshot is a few bytes here, with the
// number of a cut; the index is fetched aside, and the values after it.
type snapshots struct {
	rec codec.Record // scratch of apply

	// Of a follower.
	fetching  uint64       // index of the snapshot whose index is being fetched; 0 is none
	prepared  *preparedCut // fetched, on its way through Raft
	installed uint64       // index of the newest that was installed
	hydrated  bool         // its values are here, as far as anybody has them

	// Of a leader, or of one that writes its state to disk.
	number uint64
	open   openCut
	told   map[uint64]time.Duration // who was told of a snapshot, and when

	saving   bool // a state is being written to disk
	saveWhen time.Duration
	wanted   bool // one is due though the log is short
	lastSize int64
}

type preparedCut struct {
	index  uint64
	header []byte
	cut    *replica.Prepared
}

// openCut is a cut that followers may fetch.
type openCut struct {
	sync.Mutex // guards the rest: streams take the cut away
	number     uint64
	index      uint64
	cut        *replica.Cut
	made       time.Duration
	taken      bool
}

func (s *snapshots) announced(id uint64, now time.Duration) {
	if s.told == nil {
		s.told = make(map[uint64]time.Duration)
	}
	s.told[id] = now
}

// snapshot is what Raft sends to a follower whose next entries are gone from the
// log here. One cut is open at a time; a second follower waits.
func (c *core) snapshot() (*pb.Snapshot, error) {
	o := &c.snaps.open
	o.Lock()
	defer o.Unlock()
	if o.cut != nil || c.snaps.saving {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	cut, err := c.replica.Cut()
	if err != nil {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	c.snaps.number++
	o.number, o.index, o.cut, o.made, o.taken = c.snaps.number, c.st.applied, cut, c.now, false
	return c.snapshotOf(c.snaps.number), nil
}

func (c *core) snapshotOf(number uint64) *pb.Snapshot {
	data := binary.LittleEndian.AppendUint64(nil, number)
	return &pb.Snapshot{
		Data: c.st.encode(data),
		Metadata: &pb.SnapshotMetadata{
			ConfState: proto.Clone(c.conf).(*pb.ConfState),
			Index:     new(c.st.applied),
			Term:      new(c.st.term),
		},
	}
}

// takeCut gives an announced cut to the stream that sends it. Any goroutine.
func (c *core) takeCut(number uint64) (*replica.Cut, error) {
	o := &c.snaps.open
	o.Lock()
	defer o.Unlock()
	if o.cut == nil || o.number != number || o.taken {
		return nil, errors.New("that snapshot is not here any more")
	}
	o.taken = true
	return o.cut, nil
}

// closeCut ends a cut, sent or not.
func (c *core) closeCut(number uint64) {
	o := &c.snaps.open
	o.Lock()
	defer o.Unlock()
	if o.cut != nil && o.number == number {
		o.cut.Close()
		o.cut = nil
	}
}

// pinned is the index behind which the log must stay for a follower that is
// about to install a cut.
func (c *core) pinned() uint64 {
	o := &c.snaps.open
	o.Lock()
	defer o.Unlock()
	if o.cut != nil {
		return o.index
	}
	return ^uint64(0)
}

// snapshotAnnounced has the index of a snapshot fetched before Raft hears of the
// snapshot, because Raft believes that it is here when it does.
func (c *core) snapshotAnnounced(m *pb.Message) {
	snap := m.GetSnapshot()
	if index := snap.GetMetadata().GetIndex(); c.snaps.fetching == 0 && index > c.st.applied && len(snap.GetData()) >= 8 {
		c.snaps.fetching = index
		c.log.Info("fetching a snapshot", zap.String("from", c.nameOf(m.GetFrom())), zap.Uint64("index", index), zap.Uint64("applied", c.st.applied))
		c.world.fetchIndex(m)
		return
	} else if c.snaps.fetching != 0 {
		return // it will be asked for again
	}
	_ = c.raft.Step(m) // it is old: Raft says how far we are
}

// indexFetched goes on with a snapshot whose index is here, or failed to come.
func (c *core) indexFetched(m *pb.Message, cut *replica.Prepared, err error) {
	c.snaps.fetching = 0
	if err != nil {
		c.log.Warn("a snapshot could not be fetched; it will be tried again", zap.String("from", c.nameOf(m.GetFrom())), zap.Error(err))
		c.world.send(m.GetFrom(), controlClass, frameSnapFailed, nil)
		return
	}
	c.snaps.prepared = &preparedCut{index: m.GetSnapshot().GetMetadata().GetIndex(), header: m.GetSnapshot().GetData()[8:], cut: cut}
	_ = c.raft.Step(m)
}

// install replaces all state by that of a snapshot. The values follow: until
// they are here, this member may vote, but answers nothing.
func (c *core) install(snap *pb.Snapshot) {
	meta := snap.GetMetadata()
	p := c.snaps.prepared
	if p == nil || p.index != meta.GetIndex() {
		panic("ordered: a snapshot that was not fetched")
	}
	c.snaps.prepared = nil
	st := state{}
	if _, err := st.decode(p.header); err != nil {
		panic(fmt.Sprintf("snapshot at %d: %v", meta.GetIndex(), err))
	}
	st.applied, st.term = meta.GetIndex(), meta.GetTerm()
	if err := c.store.Install(st.applied, st.term, meta.GetConfState()); err != nil {
		panic(fmt.Sprintf("the Raft log cannot be written; this controller must not go on: %v", err))
	}
	c.begun.Store(st.applied)
	c.replica.Swap(p.cut)
	c.st = st
	c.conf = meta.GetConfState()
	c.pace = logClock{}
	c.pace.heard(st.time, c.mono())
	// What was proposed here before may be among what the snapshot sums up.
	for _, p := range c.lead.inflight {
		for _, r := range p.waiters {
			c.fail(r, errUnknown)
		}
	}
	c.lead.inflight = nil
	// Written at once, though the values are not here yet: until a state follows the
	// snapshot on disk, a restart would make this a new member. It is written again
	// when they are.
	c.snaps.installed, c.snaps.hydrated, c.snaps.wanted = st.applied, false, true
	c.log.Info("installed a snapshot", zap.Uint64("index", st.applied), zap.Int("items", c.replica.Len()))
	c.world.hydrate(st.applied)
	c.publish()
}

// bytesHere is called when the values of the snapshot with that index are here. Those
// of one that another has replaced meanwhile do not make this replica whole.
func (c *core) bytesHere(index uint64) {
	if index != c.snaps.installed {
		return
	}
	c.snaps.hydrated, c.snaps.wanted = true, true
	c.isServing.Store(c.serving())
	c.log.Info("all values are here", zap.Uint64("applied", c.st.applied), zap.Int("items", c.replica.Len()))
}

// compact forgets what the log need not have any more, has the state written to
// disk when the log there is long, and looks after announced snapshots.
func (c *core) compact() {
	budget := c.store.IndexFor(c.logBudget)
	c.store.Compact(min(budget, c.st.applied, c.pinned()))
	o := &c.snaps.open
	o.Lock()
	stale := o.cut != nil && !o.taken && c.now-o.made > snapshotPatience
	number := o.number
	busy := o.cut != nil
	o.Unlock()
	if stale {
		c.closeCut(number)
	}
	if !busy && c.soft.RaftState == raft.StateLeader {
		for _, id := range slices.Sorted(maps.Keys(c.snaps.told)) {
			if c.now-c.snaps.told[id] > snapshotPatience {
				// Lost on the way, or so was its answer: Raft would wait for ever.
				delete(c.snaps.told, id)
				c.raft.ReportSnapshot(id, raft.SnapshotFailure)
			}
		}
	}
	due := c.snaps.wanted || c.store.DiskBytes() > max(stateEvery, c.snaps.lastSize)
	if c.durable && due && !busy && !c.snaps.saving && c.now >= c.snaps.saveWhen {
		c.saveState()
	}
}

// saveState begins to write the state to disk.
func (c *core) saveState() {
	cut, err := c.replica.Cut()
	if err != nil {
		return // another one is open
	}
	c.snaps.saving, c.snaps.wanted = true, false
	snap := c.snapshotOf(0)
	c.world.saveState(snap, cut)
}

// stateSaved ends what saveState began.
func (c *core) stateSaved(size int64, err error) {
	c.snaps.saving = false
	if errors.Is(err, raftlog.ErrUnknown) {
		panic(fmt.Sprintf("the state cannot be synced to disk; this controller must not go on: %v", err))
	}
	if err != nil {
		c.snaps.wanted, c.snaps.saveWhen = true, c.now+saveRetry
		c.log.Error("the state could not be written to disk; the log there goes on growing until it can", zap.Error(err))
		return
	}
	c.snaps.lastSize = size
}
