package ordered

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
)

// A member that leaves and comes back empty is filled again.
func TestVolatileMemberReturns(t *testing.T) {
	g := newGroup(t, 3, false)
	m := g.members[0]
	for i := range 500 {
		m.do(m.op(attune.Set, fmt.Sprint("k", i), fmt.Sprint("v", i)))
	}
	for _, m := range g.members {
		m.close()
		other := g.members[0]
		if other == m {
			other = g.members[1]
		}
		other.do(other.op(attune.Set, "while away", m.o.Name))
		g.start(m)
		m.want("while away", m.o.Name)
		m.want("k77", "v77")
		g.equal()
	}
	eventually(t, func() error {
		if st := m.Status(); st.Voters != 3 || len(st.Members) != 3 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

// All go, and come back with what they had.
func TestDurableMembersReturn(t *testing.T) {
	g := newGroup(t, 3, true)
	m := g.members[0]
	for i := range 500 {
		m.do(m.op(attune.Set, fmt.Sprint("k", i), fmt.Sprint("v", i)))
	}
	var wg sync.WaitGroup
	for _, m := range g.members {
		wg.Go(m.close)
	}
	wg.Wait()
	g.start(g.members...)
	for _, m := range g.members {
		m.want("k499", "v499")
	}
	g.equal()
}

// A member that was removed while it was away, and comes back with its log, is
// taken in again.
func TestRemovedWhileAway(t *testing.T) {
	g := newGroup(t, 3, true)
	a, away := g.members[0], g.members[2]
	id := away.core.id
	away.kill()
	for _, m := range g.members[:2] {
		m.post(func() { m.core.memb.leaves[id] = true })
	}
	eventually(t, func() error {
		if st := a.Status(); st.Voters != 2 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	a.do(a.op(attune.Set, "k", "v"))
	g.start(away)
	eventually(t, func() error {
		if st := a.Status(); st.Voters != 3 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	away.want("k", "v")
}

// A member that is removed though it did not ask for it ends, and says what to do.
func TestRemovedMemberSaysSo(t *testing.T) {
	g := newGroup(t, 3, false)
	gone := g.members[2]
	id := gone.core.id
	for _, m := range g.members[:2] {
		m.post(func() { m.core.memb.leaves[id] = true })
	}
	select {
	case err := <-gone.Fatal():
		if !strings.Contains(err.Error(), "removed from its cluster") {
			t.Error(err)
		}
	case <-time.After(attunetest.Patience):
		t.Fatalf("it goes on: %+v", gone.Status())
	}
	if _, err := gone.get("k"); err == nil {
		t.Error("it answers reads")
	}
}

// Seven vote at most; more are replicas that do not. Who takes the place of a voter of
// its name is none more.
func TestSevenVoteAtMost(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	leader, n := s.nodes[0].core, s.nodes[2]
	if !s.whole() || !leader.leads() {
		t.Fatal(s.describe())
	}
	n.crash(true)
	n.starved = true
	n.boot(false)
	s.run(s.now + 5*time.Second)
	for fake := uint64(1000); len(leader.conf.GetVoters()) < maxVoters+1; fake++ {
		leader.conf.Voters = append(leader.conf.Voters, fake)
	}
	proposed := func() bool {
		leader.memb.until, leader.memb.full[n.id] = 0, leader.now
		leader.promote()
		return leader.memb.until != 0
	}
	if proposed() {
		t.Errorf("another one becomes a voter besides %d", len(leader.conf.GetVoters())-1)
	}
	leader.conf.Voters = leader.conf.Voters[:maxVoters]
	if !proposed() {
		t.Error("it does not take its own place")
	}
}

// Who asked a leader to be removed, and was by another one, may come back. It must not
// be removed again when that leader leads again.
func TestALeaderThatWasForgetsWhatItWasAsked(t *testing.T) {
	s := newSim(t, 1, broken{})
	leader, other := s.roles(t)
	leader.core.handOver()
	leader.core.memb.leaves[other.id] = true
	leader.core.memb.joins[1<<40] = "n9"
	leader.core.memb.until = s.now + time.Hour // it has no time for it
	s.run(s.now + 2*time.Second)
	if leader.core.leads() || !s.led() {
		t.Fatal("it did not hand over: " + s.describe())
	}
	if m := &leader.core.memb; len(m.leaves) != 0 || len(m.joins) != 0 {
		t.Errorf("it remembers %v and %v", m.leaves, m.joins)
	}
	leader.core.receive(&inFrame{from: other.id, kind: frameLeave}) // asked for too late
	if len(leader.core.memb.leaves) != 0 {
		t.Error("it remembers what a leader is to do")
	}
}

// With two of three gone for good an operator has the third go on, with what it
// has, and new members come in. The old ones are foreigners.
func TestForceNewCluster(t *testing.T) {
	g := newGroup(t, 3, true)
	a := g.members[0]
	a.do(a.op(attune.Set, "k", "v"))
	a.want("k", "v")
	if err := a.ForceNewCluster(); err == nil {
		t.Fatal("a cluster with a leader was given up")
	}
	for _, m := range g.members[1:] {
		m.kill()
	}
	eventually(t, a.Health0)
	call := &attune.Call{Deadline: time.Now().Add(300 * time.Millisecond)}
	if wait(call, a.Barrier); call.Err == nil {
		t.Error("read without a quorum")
	}
	eventually(t, a.ForceNewCluster)
	eventually(t, a.Health)
	a.want("k", "v")
	if res := a.do(a.op(attune.Set, "k", "w")); res[0].Status != attune.Stored {
		t.Error(res[0])
	}
	// One comes back with its old data, and is refused; one without, and enters.
	g.members[1].o.DataDir = t.TempDir()
	g.start(g.members[1])
	g.members[1].want("k", "w")
	// The forced one remembers.
	a.close()
	g.start(a)
	a.want("k", "w")
}

// What is in the survivor's log counts, known to be committed or not: those who are lost
// may have committed it, and told a client.
func TestForceNewClusterKeepsItsLog(t *testing.T) {
	g := newGroup(t, 3, true)
	a := g.members[0]
	a.do(a.op(attune.Set, "k", "v"))
	a.want("k", "v")
	if a.Status().Role != "leader" {
		t.Fatal("who founded the cluster does not lead it")
	}
	for _, m := range g.members[1:] {
		m.kill()
	}
	op := a.op(attune.Set, "k", "w")
	call := &attune.Call{Ops: []attune.Op{op}, Res: make([]attune.Result, 1), Deadline: time.Now().Add(300 * time.Millisecond)}
	if wait(call, a.Write); call.Res[0].Status == attune.Stored {
		t.Fatal("stored without a quorum")
	}
	eventually(t, a.ForceNewCluster)
	eventually(t, a.Health)
	a.want("k", "w")
}

// The others may be lost for good, and then the power: what the survivor has must be
// there at every moment of that, under the name of the new cluster.
func TestForcedAndKilledAtOnce(t *testing.T) {
	g := newGroup(t, 3, true)
	a := g.members[0]
	a.do(a.op(attune.Set, "k", "v"))
	a.want("k", "v")
	old := a.ident.Cluster
	for _, m := range g.members[1:] {
		m.kill()
	}
	eventually(t, a.Health0)
	copied := filepath.Join(t.TempDir(), "data")
	forced := make(chan error)
	eventually(t, func() error {
		a.post(func() {
			err := a.force()
			if err == nil {
				err = os.CopyFS(copied, os.DirFS(a.o.DataDir))
			}
			forced <- err
		})
		return <-forced
	})
	a.kill()
	a.o.DataDir = copied
	g.start(a)
	a.want("k", "v")
	if st := a.Status(); a.ident.Cluster == old || st.Voters != 1 || len(st.Members) != 1 {
		t.Errorf("it came back as one of %x, which was %x: %+v", a.ident.Cluster, old, st)
	}
}

// Who is to be the only member may be in the middle of a change of members, and may
// be about to be none itself.
func TestForceInTheMiddleOfAChange(t *testing.T) {
	for name, change := range map[string]*pb.ConfChangeV2{
		"learner comes": {Changes: []*pb.ConfChangeSingle{{Type: pb.ConfChangeAddLearnerNode.Enum(), NodeId: new(uint64(77))}}},
		"two swap": {Changes: []*pb.ConfChangeSingle{
			{Type: pb.ConfChangeAddNode.Enum(), NodeId: new(uint64(77))}, {Type: pb.ConfChangeRemoveNode.Enum(), NodeId: new(uint64(2))},
		}},
		"it goes": {Changes: []*pb.ConfChangeSingle{{Type: pb.ConfChangeRemoveNode.Enum(), NodeId: new(uint64(1))}}},
		"it is replaced": {Changes: []*pb.ConfChangeSingle{
			{Type: pb.ConfChangeAddNode.Enum(), NodeId: new(uint64(77))}, {Type: pb.ConfChangeRemoveNode.Enum(), NodeId: new(uint64(1))},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t, 1, broken{})
			s.run(10 * time.Second)
			n := s.nodes[0]
			if !s.whole() || n.id != 1 {
				t.Fatal(s.describe())
			}
			for _, o := range s.nodes[1:] {
				o.crash(false)
			}
			s.run(s.now + 5*time.Second)
			c := n.core
			data, err := proto.Marshal(change)
			if err != nil {
				t.Fatal(err)
			}
			last, _ := c.store.LastIndex()
			hs, _, _ := c.store.InitialState()
			// It is in the log here, and nobody knows whether it was committed.
			e := &pb.Entry{Type: pb.EntryConfChangeV2.Enum(), Term: hs.Term, Index: new(last + 1), Data: data}
			if err := c.store.Save(hs, []*pb.Entry{e}); err != nil {
				t.Fatal(err)
			}
			n.post(func() {
				if err := errors.Join(c.mayForce(), c.force()); err != nil {
					t.Error(err)
				}
			})
			s.run(s.now + 5*time.Second)
			var out *simOutput
			n.do(simInput{verb: attune.Set, key: "k", value: "v"}, func(o simOutput) { out = &o })
			s.run(s.now + time.Second)
			if out == nil || out.status != attune.Stored {
				t.Errorf("a write came to %+v: %s", out, s.describe())
			}
			if len(c.st.members) != 1 || len(c.conf.GetVoters()) != 1 || !c.voter(1) || len(c.conf.GetLearners()) > 0 || !c.serving() {
				t.Errorf("members %v: %s", c.st.members, s.describe())
			}
			if !n.durable {
				return
			}
			digest := n.rep.Digest()
			n.crash(false)
			n.restart()
			s.run(s.now + 5*time.Second)
			if c = n.core; !c.leads() || n.rep.Digest() != digest || len(c.st.members) != 1 {
				t.Errorf("after a restart: %v, %s", c.st.members, s.describe())
			}
		})
	}
}
