package ordered

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/attunekv/attune"
)

// A member that comes back with its log has the id of its former process. What that one
// asked may be answered now, with how far the log was then: that must not do for a read
// of this one.
func TestAnAnswerToAFormerProcessIsNone(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	var n *simNode
	for _, o := range s.nodes {
		if o.remembers() && !o.core.leads() {
			n = o
		}
	}
	if n == nil {
		t.Fatal(s.describe())
	}
	read := func(answered *bool) {
		n.do(simInput{read: true, key: "k0"}, func(out simOutput) { *answered = !out.unknown })
	}
	begun := n.core.reads.counter
	var first bool
	for range 5 {
		read(&first)
		s.run(s.now + time.Second/10)
	}
	last := n.core.reads.counter
	if !first || last == begun {
		t.Fatal("nothing was read")
	}
	n.crash(false)
	n.restart()
	for end := s.now + 5*time.Second; n.core.soft.Lead == raft.None; s.run(s.now + time.Second/100) {
		if s.now > end {
			t.Fatal(s.describe())
		}
	}
	for _, o := range s.nodes { // nobody answers this one
		s.cut[[2]int{n.slot, o.slot}] = true
	}
	var second bool
	read(&second)
	s.run(s.now + time.Second/100)
	if n.core.reads.id == 0 {
		t.Fatal("no round is under way")
	}
	for id := begun + 1; id <= last; id++ {
		ctx := binary.LittleEndian.AppendUint64(nil, n.id)
		n.core.readStates([]raft.ReadState{{Index: 1, RequestCtx: binary.LittleEndian.AppendUint64(ctx, id)}})
	}
	s.run(s.now + time.Second/100)
	if second {
		t.Error("it was taken for an answer")
	}
}

// The first read of a connection at the sequential level asks how far the cluster is. If
// nobody says so in time it is served what is there, and counted; but not less than what
// its connection has seen.
func TestAConnectionWithoutAnAnchorIsServedWhatIsHere(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	n := s.nodes[0]
	if !s.whole() {
		t.Fatal(s.describe())
	}
	for _, o := range s.nodes[1:] {
		o.crash(false)
	}
	s.run(s.now + 5*time.Second)
	read := func(seen uint64) (call *attune.Call, answered *bool) {
		call, answered = &attune.Call{Deadline: time.Time{}.Add(s.now + time.Second)}, new(bool)
		call.Session.Seen, call.Done = seen, func() { *answered = true }
		n.in.calls = append(n.in.calls, localCall{call: call, kind: kindAnchor, deadline: s.now + time.Second})
		n.wake(0)
		return call, answered
	}
	old, known := read(n.core.st.applied)
	ahead, shown := read(n.core.st.applied + 10)
	s.run(s.now + anchorPatience - 10*time.Millisecond)
	if *known || *shown {
		t.Error("answered before anybody could have said anything")
	}
	s.run(s.now + 2*expireEvery + 10*time.Millisecond)
	if !*known || old.Err != nil || !old.Session.Anchored || n.core.unanchored.Load() != 2 {
		t.Errorf("answered %v: %v, %+v; %d are counted", *known, old.Err, old.Session, n.core.unanchored.Load())
	}
	if *shown {
		t.Error("it was shown less than it has seen")
	}
	if s.run(s.now + time.Second); !*shown || !errors.Is(ahead.Err, errNoQuorum) {
		t.Errorf("answered %v: %v", *shown, ahead.Err)
	}
}

// Who waits for a round joins the next one, and never the one under way: that may be
// answered with how far the log was before.
func TestAReadDoesNotJoinTheRoundUnderWay(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	if !s.whole() {
		t.Fatal(s.describe())
	}
	for _, n := range s.nodes {
		c := n.core
		rounds := c.counts.rounds.Load()
		answered := 0
		read := func() { n.do(simInput{read: true, key: "k0"}, func(simOutput) { answered++ }) }
		var in inbox
		for range 3 {
			read()
		}
		in, n.in = n.in, in
		c.turn(s.now, &in)
		first := c.reads.id
		read()
		read()
		in, n.in = n.in, inbox{}
		if c.turn(s.now, &in); c.reads.id != first || len(c.reads.asked) != 3 || len(c.reads.next) != 2 {
			t.Errorf("%s: round %d became %d, of %d and %d", n.name(), first, c.reads.id, len(c.reads.asked), len(c.reads.next))
		}
		s.run(s.now + time.Second)
		if got := c.counts.rounds.Load() - rounds; answered != 5 || got != 2 {
			t.Errorf("%s: %d answered by %d rounds", n.name(), answered, got)
		}
	}
}

// A round that is lost on the way is asked again, and those who wait for it are answered.
func TestALostRoundIsAskedAgain(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	if !s.whole() || !s.led() {
		t.Fatal(s.describe())
	}
	for _, n := range s.nodes {
		for _, o := range s.nodes {
			s.cut[[2]int{n.slot, o.slot}] = true
		}
		answered := false
		n.do(simInput{read: true, key: "k0"}, func(out simOutput) { answered = out.status == attune.Miss })
		s.run(s.now + 50*time.Millisecond)
		clear(s.cut)
		if s.run(s.now + 2*readRetry + tickEvery); !answered {
			t.Errorf("%s: not answered", n.name())
		}
	}
}

// A member of the other ordered level may be in the cluster: it reads by its own.
func TestLevelsInOneCluster(t *testing.T) {
	g := newGroup(t, 3, false)
	seq := g.members[2]
	seq.close()
	seq.o.Sequential = true
	g.start(seq)
	a := g.members[0]
	for i := range 20 {
		value := string(rune('a' + i))
		for _, m := range []*member{a, seq} {
			m.do(m.op(attune.Set, "k", value+m.o.Name))
			for _, o := range g.members {
				o.want("k", value+m.o.Name)
			}
		}
	}
	// Behind its first read a connection asks nobody.
	rounds := seq.core.counts.rounds.Load()
	c := &attune.Call{Deadline: time.Now().Add(5 * time.Second)}
	for range 10 {
		if wait(c, seq.Barrier); c.Err != nil {
			t.Fatal(c.Err)
		}
	}
	if got := seq.core.counts.rounds.Load() - rounds; got != 1 {
		t.Errorf("ten reads of a connection took %d rounds", got)
	}
}
