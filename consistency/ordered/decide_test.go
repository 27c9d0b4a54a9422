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
