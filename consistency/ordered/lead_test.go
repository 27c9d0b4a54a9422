package ordered

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
)

// A leader that is killed hangs up, and nobody waits for an election timeout. One that
// lives goes on, whoever has lost its connection to it.
func TestALeaderThatHangsUpIsMissedAtOnce(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, seed)
			s := newSim(t, seed, broken{})
			s.run(10 * time.Second)
			if !s.whole() || !s.led() {
				t.Fatal(s.describe())
			}
			leader := s.nodes[0].find(s.nodes[0].core.soft.Lead)
			for _, n := range s.nodes {
				if n != leader {
					n.post(func() { n.core.peerDown(leader.id, cluster.Control) })
					break
				}
			}
			term := leader.core.raft.BasicStatus().GetTerm()
			s.run(s.now + 3*time.Second)
			if !s.led() || !leader.core.leads() || leader.core.raft.BasicStatus().GetTerm() != term {
				t.Errorf("it leads no more, or in another term than %d: %s", term, s.describe())
			}
			began := s.now
			leader.crash(false)
			for led := false; !led; s.run(s.now + time.Millisecond) {
				if s.now-began > hasteMost+200*time.Millisecond {
					t.Fatal("nobody leads: " + s.describe())
				}
				for _, n := range s.nodes {
					led = led || n.core != nil && n.core.leads()
				}
			}
		})
	}
}

// That an entry is committed is told at once, and not answered. An answer that was lost
// is asked for again all the same.
func TestAnEntryIsAcknowledgedOnce(t *testing.T) {
	s := newSim(t, 1, broken{})
	leader, other := s.roles(t)
	applied := func() bool { return other.core.st.applied == leader.core.st.applied }
	set := func(lasts time.Duration) (done bool) {
		leader.do(simInput{verb: attune.Set, key: "k", value: "v"}, func(out simOutput) { done = !out.unknown })
		s.run(s.now + lasts)
		return done
	}
	const writes = 20
	before := s.acks
	for i := range writes {
		if lasts := 5 * time.Millisecond; !set(lasts) || !applied() {
			t.Fatalf("write %d is not done after %v, or not at %s", i, lasts, other.name())
		}
	}
	if got := s.acks - before; got != 2*writes {
		t.Errorf("%d acknowledgements of %d entries by two followers", got, writes)
	}
	for i := range writes {
		for _, n := range s.nodes {
			s.cut[[2]int{n.slot, leader.slot}] = true
		}
		if set(time.Duration(i) * 2 * time.Millisecond) {
			t.Fatal("done, and nobody could say so")
		}
		clear(s.cut)
		if s.run(s.now + 2*tickEvery); leader.core.pending > 0 || !applied() {
			t.Fatalf("write %d is not done two heartbeats after the answers got lost: %s", i, s.describe())
		}
	}
}

// What is committed is told with what follows, and with answers, or soon.
func TestCommitsAreToldWithWhatFollows(t *testing.T) {
	s := newSim(t, 1, broken{})
	leader, other := s.roles(t)
	const writes = 20
	write := func(n *simNode) {
		left := writes
		var next func(simOutput)
		next = func(out simOutput) {
			if out.unknown || out.refused {
				t.Errorf("a write at %s: %+v", n.name(), out)
			}
			if left--; left > 0 {
				n.do(simInput{verb: attune.Set, key: "k", value: "v"}, next)
			}
		}
		n.do(simInput{verb: attune.Set, key: "k", value: "v"}, next)
		for end := s.now + time.Second; left > 0 && s.now < end; {
			s.run(s.now + 100*time.Microsecond)
		}
		if left > 0 {
			t.Fatalf("%d writes at %s are not done", left, n.name())
		}
	}
	empty := s.empty
	write(leader)
	if got := s.empty - empty; got > 4 {
		t.Errorf("%d appends without entries, of %d writes one after the other", got, writes)
	}
	s.run(s.now + commitLater + 3*time.Millisecond)
	for _, n := range s.nodes {
		if n.core.st.applied != leader.core.st.applied {
			t.Errorf("%s has applied %d, the leader %d", n.name(), n.core.st.applied, leader.core.st.applied)
		}
	}
	before := maps.Clone(s.answers)
	write(other)
	if log, calls := s.answers[cluster.Log]-before[cluster.Log], s.answers[cluster.Calls]-before[cluster.Calls]; log < writes || calls > 0 {
		t.Errorf("%d answers with appends and %d by themselves", log, calls)
	}
	if !leader.core.keepsUp(other.id) {
		t.Errorf("%s is not known to keep up", other.name())
	}
	other.paused = true
	if write(leader); leader.core.keepsUp(other.id) {
		t.Errorf("%s lacks %d entries, and its answers would wait for them", other.name(), writes)
	}
}

// Who is needed for a quorum of those that are left does not leave.
func TestTheLastOfAQuorumDoesNotLeave(t *testing.T) {
	g := newGroup(t, 3, true)
	dead, stays, leaver := g.members[0], g.members[1], g.members[2]
	eventually(t, func() error {
		if st := leaver.Status(); st.Voters != 3 {
			return fmt.Errorf("%d voters", st.Voters)
		}
		return nil
	})
	dead.close()
	eventually(t, func() error {
		if m, _ := leaver.cluster.Member(dead.ident.ID); m.Alive {
			return errors.New("it is not missed")
		}
		if err := leaver.LeaveForGood(); err == nil || errors.Is(err, errNoQuorum) {
			return fmt.Errorf("it would leave: %v", err)
		}
		return nil
	})
	leaver.do(leaver.op(attune.Set, "k", "v"))
	stays.want("k", "v")
}

// Who leaves for good takes the time that it needs: stopped as a voter, it would be
// missed for ever.
func TestLeaveForGoodIsConfirmed(t *testing.T) {
	g := newGroup(t, 3, true)
	leaver, stays := g.members[2], g.members[0]
	eventually(t, func() error {
		if st := stays.Status(); st.Voters != 3 {
			return fmt.Errorf("%d voters", st.Voters)
		}
		return leaver.LeaveForGood()
	})
	if _, err := leaver.cluster.Inject(cluster.Fault{Kind: cluster.FaultPartition, Peers: []string{"n1", "n2"}}, leavePatience+3*time.Second); err != nil {
		t.Fatal(err)
	}
	leaver.close()
	eventually(t, func() error {
		if st := stays.Status(); st.Voters != 2 || st.Leader == "" {
			return fmt.Errorf("%d voters, %q leads", st.Voters, st.Leader)
		}
		return nil
	})
}
