package ordered

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/attunekv/attune"
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

// When a snapshot takes the place of another whose values are still on their way, those
// of the first do not make the replica whole: it would become a voter without some.
func TestValuesOfAFormerSnapshotAreNotThoseOfThis(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	c := s.nodes[1].core
	if c.snaps.installed == 0 || !c.snaps.hydrated {
		t.Fatal(s.describe())
	}
	former := c.snaps.installed
	c.snaps.installed, c.snaps.hydrated = former+10, false
	if c.bytesHere(former); c.snaps.hydrated {
		t.Error("it counts as whole")
	}
	if c.bytesHere(former + 10); !c.snaps.hydrated {
		t.Error("it does not count as whole")
	}
}

// A newcomer that has the index and not the values answers nothing, and does not vote.
func TestAMemberWithoutItsValuesIsNoVoter(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	if !s.whole() {
		t.Fatal(s.describe())
	}
	n := s.nodes[2]
	n.crash(true)
	n.starved = true
	n.boot(false)
	s.run(s.now + 10*time.Second)
	c := n.core
	if c.snaps.installed == 0 || c.voter(c.id) || c.serving() {
		t.Fatalf("installed %d, voter %v, serving %v: %s", c.snaps.installed, c.voter(c.id), c.serving(), s.describe())
	}
	call := &attune.Call{Deadline: time.Time{}.Add(s.now + time.Second), Done: func() {}}
	n.in.calls = append(n.in.calls, localCall{call: call, kind: kindBarrier, deadline: s.now + time.Second})
	if n.turn(); !errors.Is(call.Err, errNotReady) {
		t.Errorf("a read came to %v", call.Err)
	}
	n.starved = false
	if s.run(s.now + 5*time.Second); !s.whole() {
		t.Error("it does not become one: " + s.describe())
	}
}

// What was proposed here before a snapshot came may be among what that sums up: it must
// not be done again.
func TestProposalsBehindASnapshotAreUnknown(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	if !s.whole() {
		t.Fatal(s.describe())
	}
	n, c := s.nodes[1], s.nodes[1].core
	cut, err := s.nodes[0].rep.Cut()
	if err != nil {
		t.Fatal(err)
	}
	var index bytes.Buffer
	if _, err := cut.WriteTo(&index); err != nil {
		t.Fatal(err)
	}
	cut.Close()
	prepared, err := n.rep.Prepare(&index)
	if err != nil {
		t.Fatal(err)
	}
	call := &attune.Call{Res: make([]attune.Result, 1), Done: func() {}}
	r := &request{call: call, res: call.Res, begun: true}
	c.lead.inflight = []*proposal{{index: c.st.applied + 3, term: c.st.term, waiters: []*request{r}}}
	snap := c.snapshotOf(1)
	snap.Metadata.Index = new(c.st.applied + 5)
	c.snaps.prepared = &preparedCut{index: c.st.applied + 5, header: snap.GetData()[8:], cut: prepared}
	if c.install(snap); !r.done || !errors.Is(call.Err, errUnknown) || len(c.writes) != 0 || len(c.lead.inflight) != 0 {
		t.Errorf("answered %v with %v, %d are to be done", r.done, call.Err, len(c.writes))
	}
}

// While a follower fetches a cut, the log behind that is kept for it, or it would need
// another one for ever.
func TestTheLogBehindACutIsKept(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	n := s.nodes[0]
	c := n.core
	if !s.whole() || !c.leads() {
		t.Fatal(s.describe())
	}
	c.snaps.saving = false
	if _, err := c.snapshot(); err != nil {
		t.Fatal(err)
	}
	at := c.snaps.open.index
	write := func() {
		for range 100 {
			n.do(simInput{verb: attune.Set, key: "k0", value: strings.Repeat("v", 200)}, func(simOutput) {})
			s.run(s.now + 10*time.Millisecond)
		}
	}
	if write(); c.store.Bytes() < 2*c.logBudget {
		t.Fatalf("%d bytes of log say nothing", c.store.Bytes())
	}
	if first, _ := c.store.FirstIndex(); first > at+1 {
		t.Errorf("the cut is at %d, and the log begins at %d", at, first)
	}
	// Nobody comes for it: it is not kept for good.
	s.run(s.now + snapshotPatience)
	if write(); c.store.Bytes() > 2*c.logBudget || c.snaps.open.cut != nil {
		t.Errorf("%d bytes of log are kept, and a cut: %v", c.store.Bytes(), c.snaps.open.cut != nil)
	}
}
