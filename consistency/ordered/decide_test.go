package ordered

import (
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/attunekv/attune"
)

// What was proposed in an earlier term, and lies behind an entry of a later one,
// will never be in the log. It must not keep its place among what is under way, or
// a member that leads again could propose nothing any more.
func TestProposalsOfAnEarlierTermAreDecidedAgain(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	c := s.nodes[0].core
	if !c.leads() {
		t.Fatal(s.describe())
	}
	term := c.st.term
	var waiting []*request
	for i := range uint64(5) {
		r := &request{call: &attune.Call{Done: func() { t.Error("answered") }}, begun: true}
		waiting = append(waiting, r)
		c.lead.inflight = append(c.lead.inflight, &proposal{index: c.st.applied + 10 + i, term: term, waiters: []*request{r}})
	}
	c.settleProposals(&pb.Entry{Index: new(c.st.applied + 1), Term: new(term)})
	if len(c.lead.inflight) != 5 {
		t.Fatal("an entry of the same term settled proposals behind it")
	}
	c.settleProposals(&pb.Entry{Index: new(c.st.applied + 2), Term: new(term + 1)})
	if len(c.lead.inflight) != 0 || len(c.writes) != len(waiting) {
		t.Fatalf("%d are still under way, %d wait to be decided", len(c.lead.inflight), len(c.writes))
	}
	for _, r := range waiting {
		if r.begun || r.done {
			t.Errorf("%+v", r)
		}
	}
}

// Another leader's entry at the place of a proposal is not the proposal: who waits for
// that must not be told that it was done.
func TestAProposalWhosePlaceWasTakenWasNotDone(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	c := s.nodes[0].core
	if !c.leads() {
		t.Fatal(s.describe())
	}
	r := &request{call: &attune.Call{Done: func() { t.Error("answered") }}, begun: true}
	at := c.st.applied + 1
	c.lead.inflight = []*proposal{{index: at, term: c.st.term, waiters: []*request{r}}}
	c.settleProposals(&pb.Entry{Index: new(at), Term: new(c.st.term + 1)})
	if r.done || r.begun || len(c.writes) != 1 || len(c.lead.inflight) != 0 {
		t.Errorf("%+v, %d wait to be decided, %d are under way", r, len(c.writes), len(c.lead.inflight))
	}
}

// A version is above every other, also if those were given by a clock far ahead.
func TestVersionsGrowWhateverTheClockSays(t *testing.T) {
	c := &core{}
	const now = epoch + 1000
	c.st.version = 1 << 60
	if v := c.nextVersion(now); v != 1<<60+1 {
		t.Errorf("%d after one that is applied", v)
	}
	c.st.version = 5
	if v := c.nextVersion(now); v != 1<<60+2 {
		t.Errorf("%d after one that was issued", v)
	}
	if v := (&core{}).nextVersion(now); v != 1000<<versionShift {
		t.Errorf("%d by the clock", v)
	}
}

// What a leader promised itself with entries that Raft did not take is void: a flush_all
// that is not in the log hides nothing.
func TestADroppedProposalLeavesNothingBehind(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	leader := s.nodes[0]
	c := leader.core
	if !s.whole() || !c.leads() {
		t.Fatal(s.describe())
	}
	for _, o := range s.nodes[1:] {
		o.paused = true
	}
	c.raft.TransferLeader(s.nodes[1].id) // Raft drops what is proposed meanwhile
	call := &attune.Call{Ops: []attune.Op{{Verb: attune.Flush}}, Res: make([]attune.Result, 1), Done: func() {}}
	leader.in.calls = append(leader.in.calls, localCall{call: call})
	was := c.lead.promises
	leader.turn()
	if len(c.writes) != 1 || c.lead.promises != was || len(c.lead.inflight) != 0 {
		t.Errorf("%d wait, %+v is promised and was %+v, %d under way", len(c.writes), c.lead.promises, was, len(c.lead.inflight))
	}
}
