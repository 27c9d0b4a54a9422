package ordered

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/ordered/raftlog"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// simNode is a controller, and what it has on disk.
type simNode struct {
	s       *sim
	slot    int
	id      uint64
	durable bool
	skew    time.Duration // of the wall clock
	core    *core         // nil while down
	rep     *replica.Replica
	life    int // counts restarts
	paused  bool
	choked  bool // writes here wait for its store
	full    bool // its store takes nothing
	starved bool // nobody gives it values
	in      inbox
	turning bool
	calls   map[*attune.Call]func(err error) // of clients, not answered

	store *raftlog.Log
	disk  *simState
}

// simState is a state file.
type simState struct {
	meta   *pb.SnapshotMetadata
	header []byte
	data   []byte // index and values
}

func (n *simNode) name() string { return "n" + strconv.Itoa(n.slot+1) }

// boot starts a new member without memory.
func (n *simNode) boot(found bool) {
	s := n.s
	if n.id == 0 || !s.broken.reuseID {
		n.id = s.nextID
		s.nextID++
	}
	var err error
	if n.store, err = raftlog.Open(disk.Options{Log: zap.NewNop()}); err != nil {
		s.t.Fatal(err)
	}
	n.disk = nil
	n.open()
	if found {
		conf := &pb.ConfState{Voters: []uint64{n.id}}
		if err := n.store.Install(1, 1, conf); err != nil {
			s.t.Fatal(err)
		}
		n.core.st = state{applied: 1, term: 1, time: n.wall(), members: map[uint64]string{n.id: n.name()}}
		n.core.snaps.hydrated, n.core.snaps.wanted = true, true
	}
	n.start()
	if !found {
		n.join()
	}
}

// open makes a core of what is on disk.
func (n *simNode) open() {
	backend, err := kvadapter.Open("embedded")
	if err != nil {
		n.s.t.Fatal(err)
	}
	n.rep = replica.Open(replica.Options{Backend: backend, Gen: 1, Seed: 1})
	n.core = &core{
		id: n.id, name: n.name(), expect: simNodes, log: zap.NewNop(), replica: n.rep, store: n.store, world: n,
		ctx: context.Background(), durable: n.durable, syncs: n.durable, logBudget: 4 << 10,
	}
	if os.Getenv("ATTUNE_SIM_LOG") != "" {
		n.core.log, _ = zap.NewDevelopment()
		n.core.log = n.core.log.With(zap.String("node", n.name()), zap.Uint64("id", n.id))
	}
}

func (n *simNode) start() {
	n.life++
	n.in, n.turning, n.calls = inbox{}, false, make(map[*attune.Call]func(error))
	n.core.now = n.s.now
	n.core.nextTick = n.s.now + time.Duration(n.s.rng.IntN(int(tickEvery)))
	if err := n.core.start(); err != nil {
		n.s.t.Fatal(err)
	}
	n.wake(0)
}

// wake has the node take a turn in d, unless one is due already.
func (n *simNode) wake(d time.Duration) {
	if n.turning {
		return
	}
	n.turning = true
	life := n.life
	n.s.after(d, func() {
		if n.life != life {
			return
		}
		n.turning = false
		n.turn()
	})
}

func (n *simNode) turn() {
	if n.core == nil || n.paused {
		return
	}
	in := n.in
	n.in = inbox{}
	n.core.turn(n.s.now, &in)
	if n.core.memb.removed && !n.core.memb.leaving {
		// Another incarnation of it took its place, or so it must be.
		n.crash(true)
		n.boot(false)
		return
	}
	life := n.life
	n.s.after(n.core.wait(), func() {
		if n.life == life {
			n.wake(0)
		}
	})
}

// post hands something to the node, some microseconds later.
func (n *simNode) post(fn func()) {
	n.in.tasks = append(n.in.tasks, fn)
	n.wake(time.Duration(n.s.rng.IntN(200)) * time.Microsecond)
}

// join asks whoever leads, again and again, until the node is a member.
func (n *simNode) join() {
	life := n.life
	n.s.after(300*time.Millisecond, func() {
		if n.life != life || n.core.member(n.id) {
			return
		}
		for _, o := range n.s.nodes {
			if o != n && o.core != nil && !o.paused && !n.s.cut[[2]int{n.slot, o.slot}] && o.core.leads() && !o.core.member(n.id) {
				o.core.memb.joins[n.id] = n.name()
			}
		}
		n.join()
	})
}

// crash ends the process. With forget it lost its memory, and its disk.
func (n *simNode) crash(forget bool) {
	n.life++
	n.core, n.paused = nil, false
	calls := n.calls
	n.calls = nil
	for _, c := range sortedCalls(calls) {
		calls[c](errUnknown)
	}
	if forget {
		n.disk = nil
	}
	id := n.id
	for _, o := range n.s.nodes { // whoever was connected sees the end of it
		if o != n && o.core != nil && !n.s.cut[[2]int{o.slot, n.slot}] {
			for _, class := range []cluster.Class{cluster.Control, cluster.Log, cluster.Calls} {
				o.post(func() { o.core.peerDown(id, class) })
			}
		}
	}
}

// sortedCalls are in the order of their deadlines, so that a run can be repeated.
func sortedCalls(calls map[*attune.Call]func(error)) []*attune.Call {
	var all []*attune.Call
	for c := range calls {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *attune.Call) int { return a.Deadline.Compare(b.Deadline) })
	return all
}

// remembers reports whether it could come back: whether its log goes on where its
// state ends.
func (n *simNode) remembers() bool {
	if n.disk == nil {
		return false
	}
	first, _ := n.store.FirstIndex()
	return n.disk.meta.GetIndex()+1 >= first
}

// restart brings it back with what is on disk.
func (n *simNode) restart() {
	n.open()
	c := n.core
	if _, err := c.st.decode(n.disk.header); err != nil {
		n.s.t.Fatal(err)
	}
	c.st.applied, c.st.term = n.disk.meta.GetIndex(), n.disk.meta.GetTerm()
	n.store.SetConfState(n.disk.meta.GetConfState())
	rd := bytes.NewReader(n.disk.data)
	cut, err := n.rep.Prepare(rd)
	if err == nil {
		n.rep.Swap(cut)
		_, err = n.rep.Import(c.ctx, rd)
	}
	if err != nil {
		n.s.t.Fatal(err)
	}
	c.snaps.hydrated = true
	n.start()
}

// What follows is the core's world.

func (n *simNode) find(id uint64) *simNode {
	for _, o := range n.s.nodes {
		if o.id == id {
			return o
		}
	}
	return nil
}

func (n *simNode) send(to uint64, class cluster.Class, kind byte, body []byte) bool {
	s := n.s
	o := n.find(to)
	if o == nil || o == n {
		return false
	}
	switch kind {
	case frameRaft:
		n.keepsWord(body)
	case frameAnswer:
		s.answers[class]++
	}
	if s.cut[[2]int{n.slot, o.slot}] || s.rng.Float64() < s.drop {
		return true // lost
	}
	copies := 1
	if s.rng.Float64() < s.dup {
		copies = 2
	}
	for range copies {
		delay := time.Duration(50+s.rng.IntN(300)) * time.Microsecond
		if s.delay > 0 {
			delay += time.Duration(s.rng.Int64N(int64(s.delay)))
		}
		from := n.id
		s.after(delay, func() {
			if o.core == nil || o.id != to {
				return
			}
			o.in.frames = append(o.in.frames, inFrame{from: from, kind: kind, body: body})
			o.wake(time.Duration(s.rng.IntN(100)) * time.Microsecond)
		})
	}
	return true
}

// keepsWord looks whether what is about to be sent to other members of Raft promises
// nothing that is not on disk yet.
func (n *simNode) keepsWord(body []byte) {
	last, _ := n.store.LastIndex()
	hard, _, _ := n.store.InitialState()
	for len(body) > 0 {
		size, used := binary.Uvarint(body)
		m := new(pb.Message)
		if err := proto.Unmarshal(body[used:used+int(size)], m); err != nil {
			n.s.t.Fatal(err)
		}
		body = body[used+int(size):]
		kept := true
		switch m.GetType() {
		case pb.MsgApp:
			if len(m.GetEntries()) == 0 {
				n.s.empty++
			}
		case pb.MsgAppResp:
			n.s.acks++
			kept = m.GetReject() || m.GetIndex() <= last && m.GetTerm() <= hard.GetTerm()
		case pb.MsgVoteResp:
			kept = m.GetReject() || m.GetTerm() < hard.GetTerm() || m.GetTerm() == hard.GetTerm() && hard.GetVote() == m.GetTo()
		case pb.MsgVote:
			kept = m.GetTerm() < hard.GetTerm() || m.GetTerm() == hard.GetTerm() && hard.GetVote() == n.id
		}
		if !kept {
			n.s.t.Errorf("%s sends %v, and has %v and entries to %d", n.name(), m, hard, last)
		}
	}
}

func (n *simNode) wall() int64 {
	return 1_800_000_000_000 + (n.s.now + n.skew).Milliseconds()
}

func (n *simNode) nonce() uint64 { return n.s.rng.Uint64() }

var errSim = errors.New("lost in the simulation")

// transfer is a stream from another node, in the middle of which anything may
// happen. get runs on the other node's side.
func (n *simNode) transfer(from uint64, get func(o *simNode, w io.Writer) error, then func(data []byte, err error)) {
	s, life := n.s, n.life
	s.after(time.Duration(s.rng.IntN(20))*time.Millisecond, func() {
		if n.life != life {
			return
		}
		o := n.find(from)
		var buf bytes.Buffer
		err := errSim
		if o != nil && o.core != nil && !o.paused && !s.cut[[2]int{o.slot, n.slot}] && s.rng.Float64() >= s.drop/2 {
			err = get(o, &buf)
		}
		s.after(time.Duration(s.rng.IntN(20))*time.Millisecond, func() {
			if n.life == life {
				n.post(func() { then(buf.Bytes(), err) })
			}
		})
	})
}

func (n *simNode) fetchIndex(m *pb.Message) {
	number := binary.LittleEndian.Uint64(m.GetSnapshot().GetData())
	n.transfer(m.GetFrom(), func(o *simNode, w io.Writer) error {
		cut, err := o.core.takeCut(number)
		if err == nil {
			_, err = cut.WriteTo(w)
			o.core.closeCut(number)
		}
		return err
	}, func(data []byte, err error) {
		var cut *replica.Prepared
		if err == nil {
			cut, err = n.rep.Prepare(bytes.NewReader(data))
		}
		n.core.indexFetched(m, cut, err)
	})
}

func (n *simNode) hydrate(index uint64) {
	from := n.core.soft.Lead
	n.transfer(from, func(o *simNode, w io.Writer) error {
		return o.rep.Export(o.core.ctx, w)
	}, func(data []byte, err error) {
		if err == nil && !n.starved {
			_, err = n.rep.Import(n.core.ctx, bytes.NewReader(data))
		}
		if err != nil || n.starved {
			n.hydrate(index)
			return
		}
		n.core.bytesHere(index)
	})
}

func (n *simNode) saveState(snap *pb.Snapshot, cut *replica.Cut) {
	life := n.life
	var buf bytes.Buffer
	// What is written is what the cut is of, though it is written later.
	if _, err := cut.WriteTo(&buf); err != nil {
		n.s.t.Fatal(err)
	}
	cut.Close()
	n.s.after(time.Duration(n.s.rng.IntN(50))*time.Millisecond, func() {
		if n.life != life {
			return
		}
		if err := n.rep.Export(n.core.ctx, &buf); err != nil {
			n.s.t.Fatal(err)
		}
		n.disk = &simState{meta: snap.GetMetadata(), header: snap.GetData()[8:], data: buf.Bytes()}
		n.post(func() { n.core.stateSaved(int64(buf.Len()), nil) })
	})
}

// fetchBytes asks the leader, as the one that surely has them.
func (n *simNode) fetchBytes(r *request, wants []wanted) {
	life := n.life
	n.s.after(time.Millisecond, func() {
		if n.life != life {
			return
		}
		got := make(map[attune.KeyHash]fetched)
		for _, w := range wants {
			f := fetched{stored: w.item.Stored, err: errSim}
			for _, o := range n.s.nodes {
				if o.core == nil || o.paused || n.s.cut[[2]int{o.slot, n.slot}] {
					continue
				}
				if it, err := o.rep.Get(o.core.ctx, w.key, nil, false); err == nil && it.Stored == w.item.Stored {
					f.value, f.err = it.Value, nil
				}
			}
			got[w.key.Hash] = f
		}
		n.post(func() { n.core.bytesFetched(r, got) })
	})
}

func (n *simNode) stageChange(*attune.Change) {}
func (n *simNode) behind() bool               { return n.choked }
func (n *simNode) swamped() bool              { return n.full }
