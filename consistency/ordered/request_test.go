package ordered

import (
	"errors"
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

// A controller whose disk is full takes what makes room, and nothing else; one that has
// too much to do takes nothing.
func TestWhatIsRefusedAtTheDoor(t *testing.T) {
	full := errors.New("3 bytes left")
	ops := func(verbs ...attune.Verb) (ops []attune.Op) {
		for _, v := range verbs {
			ops = append(ops, attune.Op{Verb: v})
		}
		return ops
	}
	for _, c := range []struct {
		ops     []attune.Op
		full    error
		pending int
		want    error
	}{
		{ops(attune.Set), nil, 1, nil},
		{ops(attune.Set), full, 1, errFull},
		{ops(attune.Touch), full, 1, errFull},
		{ops(attune.Delete, attune.Flush), full, 1, nil},
		{ops(attune.Delete, attune.Incr), full, 1, errFull},
		{ops(attune.Delete), nil, maxWaiting, nil},
		{ops(attune.Delete), nil, maxWaiting + 1, errBusy},
	} {
		core := &core{full: func() error { return c.full }, pending: c.pending}
		core.st.formed = true
		call := &attune.Call{Ops: c.ops, Res: make([]attune.Result, len(c.ops)), Done: func() {}}
		r := &request{call: call, ops: c.ops, res: call.Res}
		core.admit(r)
		if !errors.Is(call.Err, c.want) || r.done != (c.want != nil) || len(core.writes) == 1 != (c.want == nil) {
			t.Errorf("%v, full %v, %d pending: %v, %d are taken", c.ops, c.full, c.pending, call.Err, len(core.writes))
		}
	}
}
