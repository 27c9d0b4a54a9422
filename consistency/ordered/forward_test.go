package ordered

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// narrow is a world that has room for so many bytes on the way to each peer.
type narrow struct {
	world
	room int
	sent map[uint64][][]byte
}

func (n *narrow) send(to uint64, _ cluster.Class, _ byte, body []byte) bool {
	waiting := 0
	for _, b := range n.sent[to] {
		waiting += len(b)
	}
	if waiting > 0 && waiting+len(body) > n.room {
		return false
	}
	n.sent[to] = append(n.sent[to], body)
	return true
}

// Answers of one turn may be more than fits a frame, or the way to who asked: none is
// lost, none comes twice, and what has no room goes later, as long as somebody waits.
func TestLargeAnswersGoInPieces(t *testing.T) {
	value := bytes.Repeat([]byte("v"), 400<<10)
	w := &narrow{room: 8 << 20, sent: make(map[uint64][][]byte)}
	c := &core{world: w}
	const follower, other, n = 2, 3, 100
	for id := range uint64(n) {
		to := uint64(follower)
		if id%10 == 0 {
			to = other
		}
		c.answer(&request{from: to, id: id, res: []attune.Result{{Status: attune.Hit, Item: attune.Item{Value: value, Size: len(value)}}}}, 7, outcomeDone)
	}
	seen := make(map[uint64]bool)
	for range 20 {
		c.flushOut()
		if c.lateBytes > lateBytes {
			t.Fatalf("%d bytes wait", c.lateBytes)
		}
		for to, frames := range w.sent {
			for _, body := range frames {
				if len(body) > answerBytes+len(value)+100 {
					t.Errorf("a frame of %d bytes", len(body))
				}
				for len(body) > 0 {
					id, outcome, _, block, rest, ok := cut(body, 8)
					res := make([]attune.Result, 1)
					if !ok || outcome != outcomeDone || codec.DecodeResults(block, res) != nil || !bytes.Equal(res[0].Item.Value, value) {
						t.Fatal("an answer that cannot be read")
					}
					if seen[id] || (to == other) != (id%10 == 0) {
						t.Errorf("answer %d came twice, or to another", id)
					}
					seen[id], body = true, rest
				}
			}
		}
		clear(w.sent) // they have arrived
	}
	if len(seen) != n || len(c.late) != 0 || c.lateBytes != 0 {
		t.Errorf("%d of %d answers came, %d frames of %d bytes wait", len(seen), n, len(c.late), c.lateBytes)
	}

	// Nobody takes them: they are few, and then none.
	w.room = 0
	for id := range uint64(n * 3) {
		w.sent[follower] = [][]byte{{0}}
		c.answer(&request{from: follower, id: n + id, res: []attune.Result{{Status: attune.Hit, Item: attune.Item{Value: value, Size: len(value)}}}}, 7, outcomeDone)
	}
	c.flushOut()
	if c.lateBytes == 0 || c.lateBytes > lateBytes {
		t.Errorf("%d bytes wait", c.lateBytes)
	}
	c.now += latePatience
	if c.flushOut(); len(c.late) != 0 || c.lateBytes != 0 {
		t.Errorf("%d bytes still wait", c.lateBytes)
	}
}

// Whoever is told that the one it asked does not lead asks another. So nobody may be who
// asked for what is in the log already, also not by a leader that stops, and has so much
// to say that it does not wait for the end of its turn.
func TestALeaderThatStopsDoesNotHaveItDoneAgain(t *testing.T) {
	w := &narrow{room: 1 << 30, sent: make(map[uint64][][]byte)}
	c := &core{world: w}
	const n = answerBytes / 10
	p := new(proposal)
	for id := range uint64(n) {
		p.waiters = append(p.waiters, &request{from: 2, id: id, begun: true, res: make([]attune.Result, 1)})
	}
	c.lead.inflight = []*proposal{p}
	c.failAll(errClosed)
	c.flushOut()
	answers := 0
	for _, body := range w.sent[2] {
		for len(body) > 0 {
			_, outcome, _, _, rest, ok := cut(body, 8)
			if !ok || outcome != outcomeUnknown {
				t.Fatalf("an answer says %d", outcome)
			}
			answers, body = answers+1, rest
		}
	}
	if answers != n {
		t.Errorf("%d of %d are told", answers, n)
	}
}

// An answer counts if it comes from who was asked: the number may be another's, too.
func TestAnswersOfOthersAreIgnored(t *testing.T) {
	r := &request{id: 7, from: 2, begun: true, call: &attune.Call{Done: func() {}}, res: make([]attune.Result, 1)}
	c := &core{world: &narrow{room: 1 << 20, sent: make(map[uint64][][]byte)}, forwarded: map[uint64]*request{7: r}}
	from := &core{world: c.world}
	from.answer(&request{from: 1, id: 7, res: []attune.Result{{Status: attune.Stored}}}, 9, outcomeDone)
	body := from.out[0].body
	if c.receiveAnswer(&inFrame{from: 3, body: body}); r.done {
		t.Error("another's answer was taken")
	}
	if c.receiveAnswer(&inFrame{from: 2, body: body}); !r.done || len(c.forwarded) != 0 {
		t.Error("the answer was not taken")
	}
}

// Of the heartbeats of one peer only the last counts: answering all that a member finds
// when it comes back kept leaders busy for seconds. But not if that is of an older term.
func TestOneHeartbeatOfATurnIsAnswered(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	s.nodes[0].find(s.nodes[0].core.soft.Lead).core.handOver() // so that there was a term before
	s.run(s.now + time.Second)
	leader := s.nodes[0].core.soft.Lead
	if !s.whole() || leader == 0 {
		t.Fatal(s.describe())
	}
	var n *simNode
	for _, o := range s.nodes {
		if o.id != leader {
			n = o
		}
	}
	c := n.core
	w := &narrow{world: n, room: 1 << 20, sent: make(map[uint64][][]byte)}
	c.world = w
	term := c.raft.BasicStatus().GetTerm()
	position := func(i int) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(i)) }
	for i := range 50 {
		m := &pb.Message{Type: pb.MsgHeartbeat.Enum(), From: new(leader), To: new(c.id), Term: new(term), Commit: new(uint64), Context: position(i)}
		if i == 49 {
			m.Term = new(term - 1)
		}
		c.came = append(c.came, m)
	}
	c.stepRaft()
	c.drive()
	c.flushOut()
	var answers []uint64
	for _, body := range w.sent[leader] {
		c.receiveRaft(&inFrame{from: c.id, body: body})
		for len(body) > 0 {
			size, used := binary.Uvarint(body)
			m := new(pb.Message)
			if err := proto.Unmarshal(body[used:used+int(size)], m); err != nil {
				t.Fatal(err)
			}
			if body = body[used+int(size):]; m.GetType() == pb.MsgHeartbeatResp {
				answers = append(answers, binary.LittleEndian.Uint64(m.GetContext()))
			}
		}
	}
	if !slices.Equal(answers, []uint64{48}) {
		t.Errorf("answered %v", answers)
	}
	if len(c.came) != 0 {
		t.Error("took what is for another member")
	}
}

// What a leader could not carry out in time it does not carry out later: the client was
// told long ago that nobody knows, and may have done it again.
func TestAForwardedRequestEndsWithItsSender(t *testing.T) {
	s := newSim(t, 1, broken{})
	leader, n := s.roles(t)
	incr := func() *simOutput {
		out := new(simOutput)
		n.do(simInput{verb: attune.Incr, key: "k0"}, func(o simOutput) { *out = o })
		return out
	}
	n.do(simInput{verb: attune.Set, key: "k0", value: "1"}, func(simOutput) {})
	s.run(s.now + time.Second)
	leader.choked = true
	late := incr()
	s.run(s.now + 100*time.Millisecond)
	if len(leader.core.writes) != 1 {
		t.Fatalf("%d wait at the leader", len(leader.core.writes))
	}
	s.run(s.now + 2*opTimeout)
	if c := leader.core; !late.unknown && !late.refused || len(c.writes) != 0 || c.pending != 0 || len(c.timed) != 0 {
		t.Errorf("it was answered %+v; %d wait at the leader, %d with a deadline, %d pending", late, len(c.writes), len(c.timed), c.pending)
	}
	leader.choked = false
	s.run(s.now + time.Second)
	now := incr()
	s.run(s.now + time.Second)
	if now.number != 2 {
		t.Errorf("the next increment came to %+v", now)
	}
}

// The core may stand still, for a disk or a stopped process. What waited meanwhile for
// longer than it may is not begun any more, and its client is told so.
func TestWhatComesTooLateIsNotBegun(t *testing.T) {
	s := newSim(t, 1, broken{})
	s.run(10 * time.Second)
	if !s.whole() {
		t.Fatal(s.describe())
	}
	key := attune.Key{Text: []byte("k0"), Hash: s.nodes[0].rep.Hash([]byte("k0"))}
	for _, n := range s.nodes {
		n.paused = true
		call := &attune.Call{Ops: []attune.Op{{Verb: attune.Set, Key: key}}, Res: make([]attune.Result, 1)}
		answered := false
		call.Done = func() { answered = true }
		n.in.calls = append(n.in.calls, localCall{call: call, deadline: s.now + 100*time.Millisecond})
		s.run(s.now + 150*time.Millisecond)
		n.paused = false
		if n.turn(); !answered || !refuses(call.Res[0].Err) {
			t.Errorf("%s: answered %v with %v", n.name(), answered, call.Res[0].Err)
		}
		s.run(s.now + 5*time.Second)
		if it := n.rep.Peek(key, false); it.Version != 0 {
			t.Errorf("%s: it was done: %+v", n.name(), it)
		}
	}
}

// What announces that a request is traced is, to a release that does not know it, a
// request of its own: it is refused, the one behind it is not, and who asked takes no
// notice.
func TestAnnouncedTraces(t *testing.T) {
	for _, old := range []bool{false, true} {
		w := &narrow{room: 8 << 20, sent: make(map[uint64][][]byte)}
		tr := attune.NewTrace("set", func(*attune.Trace) {})
		call := &attune.Call{Done: func() {}, Ops: []attune.Op{{Verb: attune.Set, Key: attune.Key{Text: []byte("k")}}}, Res: make([]attune.Result, 1)}
		r := &request{call: call, ops: call.Ops, res: call.Res, trace: tr, id: 8}
		me := &core{world: w, id: 1, lastID: 8, pending: 1, traces: 1, forwarded: make(map[uint64]*request)}
		frame := appendRequest(me.appendTrace(nil, r), r, 0)
		plain := *r
		plain.id = 10
		frame = appendRequest(frame, &plain, 0) // one that is not traced
		r.from, me.forwarded[r.id] = 2, r
		if old {
			frame[8] = 200 // as kindTrace is to an older release: one that it does not know
		}
		backend, err := kvadapter.Open("embedded")
		if err != nil {
			t.Fatal(err)
		}
		defer backend.Close()
		var begun []attune.SpanContext
		var remote *attune.Trace
		leader := &core{world: w, id: 2, replica: replica.Open(replica.Options{Backend: backend, Gen: 1, Seed: 1}), asked: make(map[asker]uint64), st: state{formed: true}}
		leader.soft.RaftState = raft.StateLeader
		leader.traceOf = func(s attune.SpanContext, ops []attune.Op) *attune.Trace {
			begun = append(begun, s)
			remote = attune.NewTrace("forwarded", func(*attune.Trace) {})
			return remote
		}
		leader.receive(&inFrame{from: 1, kind: frameForward, body: frame})
		if len(leader.writes) != 2 || leader.writes[0].id != 9 || leader.writes[1].id != 10 || leader.writes[1].trace != nil {
			t.Fatalf("old %v: %d requests are taken", old, len(leader.writes))
		}
		if old != (len(begun) == 0) || !old && (begun[0].Trace != tr.ID.Trace || begun[0].Span != r.sent) {
			t.Errorf("old %v: traced under %v, want %v of %v", old, begun, r.sent, tr.ID)
		}
		for _, q := range slices.Clone(leader.writes) {
			leader.finish(q, 5, nil)
		}
		if leader.traces != 0 || leader.pending != 0 {
			t.Errorf("old %v: %d traces, %d requests are left", old, leader.traces, leader.pending)
		}
		leader.flushOut()
		for _, body := range w.sent[1] {
			me.receive(&inFrame{from: 2, kind: frameAnswer, body: body})
		}
		if !r.done || call.Err != nil || me.traces != 0 || me.pending != 0 {
			t.Errorf("old %v: answered %v, %v; %d traces, %d requests are left", old, r.done, call.Err, me.traces, me.pending)
		}
	}
}
