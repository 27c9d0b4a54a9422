package ordered

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/attunekv/attune/cluster"
)

const (
	// maxVoters is how many members vote; more than that are replicas that do not.
	maxVoters = 7
	// changePatience is how long a proposed change of members is waited for.
	changePatience = 2 * time.Second
	// fullPatience is how long a learner's word that it is full counts.
	fullPatience = 2 * time.Second
	// nearly is how many entries a learner may be behind when it becomes a voter.
	nearly = 1000
)

// membership is what is going on among the members. The leader changes one thing
// at a time.
type membership struct {
	removed bool // this member was: it serves no more
	// removedAt is when it read that.
	removedAt time.Duration
	joins     map[uint64]string        // who wants to become a learner, and its name
	full      map[uint64]time.Duration // learners that have everything, and when they said so
	leaves    map[uint64]bool          // who wants to be removed
	until     time.Duration            // a change is under way until then at most
	leaving   bool                     // this member wants to be removed, or to lead no more
	forget    bool                     // and never comes back under this id
}

func (m *membership) init() {
	m.joins = make(map[uint64]string)
	m.full = make(map[uint64]time.Duration)
	m.leaves = make(map[uint64]bool)
}

// lost forgets what the leader was asked for: they ask the next one, too, and who leads
// again one day must not go by it then.
func (m *membership) lost() {
	clear(m.joins)
	clear(m.leaves)
}

func (c *core) voter(id uint64) bool { return slices.Contains(c.conf.GetVoters(), id) }

func (c *core) member(id uint64) bool {
	return c.voter(id) || slices.Contains(c.conf.GetLearners(), id) ||
		slices.Contains(c.conf.GetVotersOutgoing(), id) || slices.Contains(c.conf.GetLearnersNext(), id)
}

// formable reports whether it is time to write down that the cluster has its
// first size.
func (c *core) formable() bool {
	return !c.st.formed && !c.lead.formed && len(c.conf.GetVoters()) >= c.expect
}

// manage is what the leader does about members, ten times a second.
func (c *core) manage() {
	if len(c.conf.GetVotersOutgoing()) > 0 || c.now < c.memb.until {
		return // one change at a time
	}
	for _, id := range slices.Sorted(maps.Keys(c.memb.leaves)) {
		if !c.member(id) {
			delete(c.memb.leaves, id)
			c.world.send(id, cluster.Control, frameLeft, nil)
			continue
		}
		if id != c.id && (!c.voter(id) || len(c.conf.GetVoters()) > 1) {
			c.change(nil, &pb.ConfChangeSingle{Type: pb.ConfChangeRemoveNode.Enum(), NodeId: new(id)})
			return
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.memb.joins)) {
		name := c.memb.joins[id]
		if c.member(id) {
			delete(c.memb.joins, id)
			continue
		}
		c.change(appendMember(nil, id, name), &pb.ConfChangeSingle{Type: pb.ConfChangeAddLearnerNode.Enum(), NodeId: new(id)})
		return
	}
	c.promote()
}

// promote makes a voter of a learner that has everything. If its name had a
// voter before, which lost its memory, that one goes in the same step: there is
// no moment at which the new one votes and the old one counts.
func (c *core) promote() {
	last, _ := c.store.LastIndex() // of a log in memory: no error
	c.raft.WithProgress(func(id uint64, typ raft.ProgressType, pr trackerProgress) {
		at, full := c.memb.full[id]
		if typ != raft.ProgressTypeLearner || !full || c.now-at > fullPatience || pr.Match+nearly < last || c.now < c.memb.until {
			return
		}
		changes := []*pb.ConfChangeSingle{{Type: pb.ConfChangeAddNode.Enum(), NodeId: new(id)}}
		voters := len(c.conf.GetVoters())
		for _, old := range slices.Sorted(maps.Keys(c.st.members)) {
			if old != id && c.st.members[old] == c.st.members[id] {
				changes = append(changes, &pb.ConfChangeSingle{Type: pb.ConfChangeRemoveNode.Enum(), NodeId: new(old)})
				if c.voter(old) {
					voters--
				}
			}
		}
		if voters < maxVoters {
			c.change(nil, changes...)
		}
	})
}

// change proposes a change of members. names are of those it adds.
func (c *core) change(names []byte, changes ...*pb.ConfChangeSingle) {
	c.memb.until = c.now + changePatience
	err := c.raft.ProposeConfChange(&pb.ConfChangeV2{Changes: changes, Context: names})
	if err != nil && !errors.Is(err, raft.ErrProposalDropped) {
		c.log.Warn("a change of members was refused", zap.Error(err))
	}
}

// applyConfChange makes a committed change of members take effect.
func (c *core) applyConfChange(e *pb.Entry) {
	cc := new(pb.ConfChangeV2)
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		panic(err) // only this software proposes them
	}
	for rest := cc.GetContext(); len(rest) > 0; {
		id, name, more, err := cutMember(rest)
		if err != nil {
			panic(err)
		}
		c.st.members[id] = name
		rest = more
	}
	for _, ch := range cc.GetChanges() {
		id := ch.GetNodeId()
		name := c.nameOf(id)
		if ch.GetType() == pb.ConfChangeRemoveNode {
			delete(c.st.members, id)
			delete(c.memb.full, id)
		}
		if id == c.id {
			// A member that was away may read of its removal, and then of its return.
			c.memb.removed, c.memb.removedAt = ch.GetType() == pb.ConfChangeRemoveNode, c.now
		}
		c.log.Info("members changed", zap.Stringer("change", ch.GetType()), zap.String("member", name),
			zap.Uint64("id", id), zap.Uint64("index", e.GetIndex()))
	}
	c.conf = c.raft.ApplyConfChange(cc)
	c.store.SetConfState(c.conf)
	c.memb.until = 0
}

// retryMembership is what a member does about itself, ten times a second.
func (c *core) retryMembership() {
	leader := c.soft.Lead
	switch {
	case c.memb.leaving && c.soft.RaftState == raft.StateLeader:
		c.handOver()
	case leader == raft.None || leader == c.id:
	case c.memb.leaving && c.memb.forget && !c.memb.removed:
		c.world.send(leader, cluster.Control, frameLeave, nil)
	case slices.Contains(c.conf.GetLearners(), c.id) && c.snaps.hydrated:
		c.world.send(leader, cluster.Control, frameFull, nil)
	}
}

// handOver makes the voter lead that has most of the log.
func (c *core) handOver() {
	if best := c.best(); best != 0 {
		c.raft.TransferLeader(best)
	}
}

// left reports whether a member that is leaving has nothing more to wait for.
func (c *core) left() bool {
	if len(c.conf.GetVoters()) <= 1 || !c.member(c.id) {
		return true
	}
	return c.soft.RaftState != raft.StateLeader && (!c.memb.forget || c.memb.removed)
}

// mayForce is why this member must not be made the only one.
func (c *core) mayForce() error {
	if c.soft.Lead != raft.None {
		return fmt.Errorf("%s leads a quorum of this cluster, so nothing is lost: no new one is needed", c.nameOf(c.soft.Lead))
	}
	if !c.serving() {
		return errors.New("this controller does not have all of the data: force another one, or restart all without their data")
	}
	return nil
}

// force makes this member the only one, because an operator says that a quorum of
// the others is lost for good. What is not applied here is gone; what the others
// may have acknowledged since is, too. That the others go is written behind the log as
// if they had agreed to it, in one record: so a process that dies meanwhile finds its
// data and the former members, or its data and none but itself.
func (c *core) force() error {
	c.failAll(errUnknown)
	c.writes, c.lead.inflight = nil, nil
	clear(c.forwarded)
	c.lead.lost()
	c.reads = reads{counter: c.reads.counter}
	if err := c.applyRest(); err != nil {
		return err
	}
	term := c.raft.BasicStatus().GetTerm() + 1
	alone := c.alone(term)
	hard := &pb.HardState{Term: new(term), Vote: new(uint64), Commit: new(c.st.applied + uint64(len(alone)))}
	if err := c.store.Save(hard, alone); err != nil {
		return err
	}
	c.memb = membership{leaving: c.memb.leaving}
	c.memb.init()
	c.soft = raft.SoftState{}
	var err error
	if c.raft, err = c.newRaft(); err != nil {
		return err
	}
	c.drive() // the others are none any more
	return c.raft.Campaign()
}

// alone are the entries behind the last one applied that leave no member but this.
func (c *core) alone(term uint64) (entries []*pb.Entry) {
	add := func(names []byte, changes ...*pb.ConfChangeSingle) {
		data, err := proto.Marshal(&pb.ConfChangeV2{Changes: changes, Context: names})
		if err != nil {
			panic(err) // it was made here
		}
		entries = append(entries, &pb.Entry{
			Type: pb.EntryConfChangeV2.Enum(), Term: new(term), Index: new(c.st.applied + 1 + uint64(len(entries))), Data: data,
		})
	}
	if len(c.conf.GetVotersOutgoing()) > 0 {
		add(nil) // first a change that is under way ends
	}
	if !c.voter(c.id) {
		add(appendMember(nil, c.id, c.name), &pb.ConfChangeSingle{Type: pb.ConfChangeAddNode.Enum(), NodeId: new(c.id)})
	}
	others := maps.Clone(c.st.members)
	for _, ids := range [][]uint64{c.conf.GetVoters(), c.conf.GetVotersOutgoing(), c.conf.GetLearners(), c.conf.GetLearnersNext()} {
		for _, id := range ids {
			others[id] = ""
		}
	}
	delete(others, c.id)
	for _, id := range slices.Sorted(maps.Keys(others)) {
		add(nil, &pb.ConfChangeSingle{Type: pb.ConfChangeRemoveNode.Enum(), NodeId: new(id)})
	}
	return entries
}

// applyRest applies what is in the log here and not known to be committed: those who
// are lost may have committed it, and clients been told.
func (c *core) applyRest() error {
	last, err := c.store.LastIndex()
	if err != nil {
		return err
	}
	for c.st.applied < last {
		entries, err := c.store.Entries(c.st.applied+1, last+1, restChunk)
		if err != nil {
			return err
		}
		for _, e := range entries {
			c.apply(e)
		}
	}
	return nil
}

// restChunk is how much of the log applyRest looks at in one go, in bytes.
const restChunk = 1 << 20
