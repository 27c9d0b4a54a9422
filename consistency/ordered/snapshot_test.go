package ordered

import (
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
)

// An index that was fetched while the log brought the same is as large as the
// replica's own: it must not be kept until the next snapshot, which may never come.
func TestAFetchedIndexThatRaftDoesNotTakeIsForgotten(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	leader := s.nodes[0].core.soft.Lead
	for _, n := range s.nodes {
		c := n.core
		if c.id == leader {
			continue
		}
		if !c.serving() {
			t.Fatal(s.describe())
		}
		snap := c.snapshotOf(1)
		m := &pb.Message{
			Type: pb.MsgSnap.Enum(), From: new(leader), To: new(c.id),
			Term: new(c.raft.BasicStatus().GetTerm()), Snapshot: snap,
		}
		n.post(func() { c.indexFetched(m, nil, nil) })
		s.run(s.now + time.Second)
		if c.snaps.prepared != nil {
			t.Errorf("%s keeps an index of entry %d, and has applied %d", n.name(), c.snaps.prepared.index, c.st.applied)
		}
	}
}
