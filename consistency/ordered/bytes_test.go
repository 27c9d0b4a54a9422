package ordered

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

// Bytes that one replica has lost are fetched from another; those that all have
// lost are gone for all.
func TestLostBytes(t *testing.T) {
	g := newGroup(t, 3, false)
	lose := func(key string, members ...*member) {
		for _, m := range members {
			if err := m.backend.Delete(context.Background(), m.key(key)); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := g.members
	for _, m := range all {
		m.do(m.op(attune.Set, "k", "v"), m.op(attune.Set, "n", "7"))
		for _, o := range all {
			o.want("k", "v") // and so has applied both
			o.want("n", "7")
		}
		lose("k", m)
		m.want("k", "v")
		if m.replica.Stats().Gone == 0 {
			t.Fatal("nothing was lost")
		}
		if it, err := m.replica.Get(context.Background(), m.key("k"), nil, false); err != nil || string(it.Value) != "v" {
			t.Errorf("fetched and not kept: %+v %v", it, err)
		}
		lose("n", m) // what is decided on is fetched, too
		if res := m.do(m.op(attune.Incr, "n", "")); res[0].Number != 8 {
			t.Errorf("incr of lost bytes: %+v", res[0])
		}
		for _, o := range all { // else bytes that arrive late are not lost
			o.want("n", "8")
		}
	}
	lose("k", all...)
	lose("n", all...)
	all[1].want("k", "")
	if res := all[2].do(all[2].op(attune.Incr, "n", "")); res[0].Status != attune.NotFound {
		t.Errorf("incr of bytes that nobody has: %+v", res[0])
	}
	for _, m := range all {
		m.want("k", "")
		m.want("n", "")
	}
	g.equal()
}

// Bytes that one replica has lost are not given up while another that may have them
// does not tell, because it or its store is slow.
func TestLostBytesOfASilentPeer(t *testing.T) {
	const callFetch = 3*cluster.MinKind + 3
	g := newGroup(t, 3, false)
	g.members[0].do(g.members[0].op(attune.Set, "n", "7"))
	var leader *member
	for _, m := range g.members {
		m.want("n", "7")
		if m.Status().Role == "leader" {
			leader = m
		}
	}
	if leader == nil {
		t.Fatal("nobody leads")
	}
	if err := leader.backend.Delete(context.Background(), leader.key("n")); err != nil {
		t.Fatal(err)
	}
	for _, m := range g.members {
		m.cluster.HandleCall(callFetch, func(context.Context, uint64, []byte) ([]byte, error) {
			return nil, errors.New("the store is not there")
		})
	}
	if it, err := leader.get("n"); !errors.Is(err, repair.ErrSilent) {
		t.Errorf("a get of bytes that others may have: %+v, %v", it, err)
	}
	for _, op := range []attune.Op{leader.op(attune.Incr, "n", ""), leader.op(attune.Append, "n", "x")} {
		for _, m := range g.members { // those who forward it hear, too, that nothing was done
			if res := m.do(op); res[0].Status != attune.Failed || !errors.Is(res[0].Err, errNoValue) {
				t.Errorf("%v of bytes that others may have: %+v", op.Verb, res[0])
			}
		}
	}
	for _, m := range g.members {
		repair.NewFetcher(m.cluster, m.replica, m.stage, func() ([]cluster.Member, bool) { return m.peers(), true }, place{m.core}) // it answers again
	}
	leader.want("n", "7")
	if res := leader.do(leader.op(attune.Incr, "n", "")); res[0].Number != 8 {
		t.Errorf("incr afterwards: %+v", res[0])
	}
	g.equal()
}

// Who looks for lost bytes does so until the call's deadline, and no longer.
func TestLostBytesAreSoughtUntilTheDeadline(t *testing.T) {
	const callFetch = 3*cluster.MinKind + 3
	g := newGroup(t, 3, false)
	m := g.members[1]
	g.members[0].do(g.members[0].op(attune.Set, "n", "7"))
	m.want("n", "7")
	if err := m.backend.Delete(context.Background(), m.key("n")); err != nil {
		t.Fatal(err)
	}
	for _, other := range g.members {
		other.cluster.HandleCall(callFetch, func(context.Context, uint64, []byte) ([]byte, error) {
			<-t.Context().Done() // and not in time to say so
			return nil, t.Context().Err()
		})
	}
	it, err := m.replica.Get(t.Context(), m.key("n"), nil, false)
	if !errors.Is(err, replica.ErrGone) {
		t.Fatalf("not lost: %v", err)
	}
	// Shorter than one of the others is waited for.
	c := &attune.Call{Deadline: time.Now().Add(20 * time.Millisecond), Res: make([]attune.Result, 1)}
	if wait(c, func(c *attune.Call) bool { return m.Recover(c, m.key("n"), it) }); !errors.Is(c.Err, errFetching) {
		t.Errorf("recovered %+v, %v", c.Res[0].Item, c.Err)
	}
}

// A newcomer takes the values from who has them. Another one that is not ready may just
// as well be on its way to them, and would give what it has for all there is.
func TestValuesAreTakenFromThoseWhoHaveThem(t *testing.T) {
	member := func(name string, ready bool) cluster.Member {
		return cluster.Member{Name: name, Alive: true, Cluster: 1, Ready: ready}
	}
	names := func(all []cluster.Member) (s string) {
		for _, m := range all {
			s += m.Name
		}
		return s
	}
	all := []cluster.Member{member("a", false), member("b", true), member("c", true), member("d", false)}
	all = append(all, cluster.Member{Name: "e", Alive: true, Cluster: 1, Self: true}, cluster.Member{Name: "f", Cluster: 1}, cluster.Member{Name: "g", Alive: true})
	for leader, want := range map[string][2]string{"": {"bc", "ad"}, "c": {"cb", "ad"}, "d": {"dbc", "a"}, "x": {"bc", "ad"}} {
		if whole, others := sorted(all, leader); names(whole) != want[0] || names(others) != want[1] {
			t.Errorf("%q leads: %q and %q, want %q", leader, names(whole), names(others), want)
		}
	}
}

// A member that comes back has nothing to give before it has read what it has on disk:
// a part of it, or nothing, would be taken for all there is.
func TestAReplicaThatIsBeingReadIsNotGiven(t *testing.T) {
	g := newGroup(t, 3, true)
	away := g.members[2]
	id := away.core.id
	away.do(away.op(attune.Set, "k", "v"))
	away.want("k", "v")
	away.kill()
	open, begun, goOn := away.o.OpenReplica, make(chan struct{}), make(chan struct{})
	away.o.OpenReplica = func(o replica.Options) (*replica.Replica, error) {
		close(begun)
		<-goOn
		return open(o)
	}
	var wait sync.WaitGroup
	wait.Go(func() { g.start(away) })
	defer wait.Wait()
	defer close(goOn)
	<-begun
	eventually(t, func() error {
		n, err := g.members[0].receiveData(id)
		if _, told := errors.AsType[*cluster.RemoteError](err); !told {
			return fmt.Errorf("%d values came, and %v", n, err)
		}
		return nil
	})
}
