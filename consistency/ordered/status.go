package ordered

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

type trackerProgress = tracker.Progress

const controlClass = cluster.Control

// Status is what an operator may want to know of one member of the group. It is
// at most a tick old.
type Status struct {
	Role     string // leader, follower, candidate, learner
	Leader   string // by name; empty if none is known
	Term     uint64
	Commit   uint64 // index known to be committed
	Applied  uint64 // index applied here
	Last     uint64 // index of the newest entry here
	LogBytes int64  // of entries in memory
	Voters   int
	Formed   bool // the cluster had its first size once
	Serving  bool // this replica is complete
	Members  []MemberStatus

	Pending    int           // requests not answered yet
	Leaderless time.Duration // how long no leader has been known; 0 if one is

	// Since start.
	Completed  uint64 // requests answered, of this controller's clients and for others
	Proposals  uint64 // log entries proposed here
	Records    uint64 // changes in these
	Forwards   uint64 // requests sent to a leader
	Rounds     uint64 // read-index rounds
	Terms      uint64 // changes of role or leader
	Unanchored uint64 // sessions begun without a read index, at the sequential level
	Refused    uint64 // changes that did not hold when applied: none, or there is a bug
}

// MemberStatus is a member as the group has it.
type MemberStatus struct {
	Name  string
	ID    uint64
	Voter bool
	// What only a leader knows of the others.
	Match  uint64
	Active bool
}

// Status tells how this member is.
func (e *Engine) Status() Status {
	if st := e.status.Load(); st != nil {
		return *st
	}
	return Status{}
}

// Repairs tells how the store is.
func (e *Engine) Repairs() repair.Status { return repair.StatusOf(e.stage, e.fetcher, e.filler) }

// Seek gives to fn what others have of the items that save lacks: see
// [repair.Fetcher.Seek].
func (e *Engine) Seek(ctx context.Context, save *replica.Save, fn func(key []byte, it attune.Item) error) (found int64, err error) {
	return e.fetcher.Seek(ctx, save, fn)
}

// describe makes a Status.
func (c *core) describe() *Status {
	b := c.raft.BasicStatus()
	last, _ := c.store.LastIndex()
	st := &Status{
		Leader: c.nameOf(c.soft.Lead), Term: b.GetTerm(), Commit: b.GetCommit(), Applied: c.st.applied, Last: last,
		LogBytes: c.store.Bytes(), Voters: len(c.conf.GetVoters()), Formed: c.st.formed, Serving: c.serving(),
		Pending: c.pending, Completed: c.counts.completed.Load(), Proposals: c.counts.proposals.Load(), Records: c.counts.records.Load(),
		Forwards: c.counts.forwards.Load(), Rounds: c.counts.rounds.Load(), Terms: c.counts.terms.Load(),
		Unanchored: c.unanchored.Load(), Refused: c.counts.refused.Load(),
	}
	switch {
	case c.soft.RaftState == raft.StateLeader:
		st.Role = "leader"
	case !c.voter(c.id):
		st.Role = "learner"
	case c.soft.RaftState == raft.StateFollower:
		st.Role = "follower"
	default:
		st.Role = "candidate"
	}
	if c.soft.Lead == raft.None {
		st.Leaderless = c.now - c.since
	}
	progress := make(map[uint64]trackerProgress)
	c.raft.WithProgress(func(id uint64, _ raft.ProgressType, pr trackerProgress) { progress[id] = pr })
	for id, name := range c.st.members {
		m := MemberStatus{Name: name, ID: id, Voter: c.voter(id)}
		if pr, ok := progress[id]; ok {
			m.Match, m.Active = pr.Match, pr.RecentActive || id == c.id
		}
		st.Members = append(st.Members, m)
	}
	slices.SortFunc(st.Members, func(a, b MemberStatus) int {
		if a.Name != b.Name {
			if a.Name < b.Name {
				return -1
			}
			return 1
		}
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return st
}
