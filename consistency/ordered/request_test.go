package ordered

import (
	"testing"
	"time"

	"github.com/attunekv/attune"
)

// Without a quorum there is nobody to send a write to, and nobody to ask for a read
// index, for as long as it takes. What is answered meanwhile must not be kept until
// there is again.
func TestWithoutAQuorumNothingThatIsAnsweredIsKept(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	n := s.nodes[0]
	if !n.core.serving() {
		t.Fatal(s.describe())
	}
	for _, o := range s.nodes[1:] {
		o.crash(false)
	}
	const calls, every = 2000, 10 * time.Millisecond
	answered := 0
	for i := range calls {
		n.do(simInput{read: i%2 == 0, verb: attune.Set, key: "k", value: "v"}, func(simOutput) { answered++ })
		s.run(s.now + every)
	}
	c := n.core
	const bound = 3 * int(opTimeout/every)
	if kept := len(c.writes) + len(c.reads.next) + len(c.reads.asked) + len(c.forwarded) + len(c.timed); answered < calls-bound || kept > bound {
		t.Errorf("%d of %d are answered, and %d kept: %d writes, %d reads", answered, calls, kept, len(c.writes), len(c.reads.next))
	}
}

// A replica that is far behind hears read indexes that it will not have applied for
// long. Who does not wait for them any more is not kept, either.
func TestReadsThatAreAnsweredDoNotWaitForTheirIndex(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	c := s.nodes[0].core
	for range 100 {
		r := &request{kind: kindBarrier, deadline: c.now + time.Second, call: &attune.Call{Done: func() {}}}
		c.pending++
		c.timed = append(c.timed, r)
		c.reads.applied = append(c.reads.applied, awaited{c.st.applied + 1<<40, []*request{r}})
	}
	s.run(s.now + 2*time.Second)
	if len(c.reads.applied) != 0 || c.pending != 0 {
		t.Errorf("%d rounds are waited for by nobody, %d are not answered", len(c.reads.applied), c.pending)
	}
}
