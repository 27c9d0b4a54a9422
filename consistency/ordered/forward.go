package ordered

import (
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/consistency/repair"
)

// Kinds of frames between the members of a cluster.
const (
	frameRaft       byte = cluster.MinKind + iota // messages of Raft: each length and protobuf
	frameForward                                  // requests for the leader
	frameAnswer                                   // answers to these
	frameFull                                     // a learner has everything and wants to vote
	frameLeave                                    // a member wants to be removed
	frameLeft                                     // and was
	frameSnapFailed                               // a snapshot could not be fetched
)

// maxForward bounds a frame of requests, unless one request alone is larger.
const maxForward = 1 << 20

const (
	// answerBytes is about the most of a frame of answers, unless one alone is larger.
	answerBytes = 1 << 20
	// smallAnswers is up to how many bytes of answers travel with an append that goes to
	// the same controller anyway, to be one message with it, and keptUp how many entries
	// that one may lack: answers must not wait for what a slow one is still to be sent.
	smallAnswers = 4 << 10
	keptUp       = 8
	// lateBytes bounds the answers that wait for room on the way to who asked, unless
	// one alone is larger; they do for latePatience at most, and are tried again
	// every lateEvery.
	lateBytes    = 64 << 20
	latePatience = 5 * time.Second
	lateEvery    = 10 * time.Millisecond
)

// idBits are those of a request's number that count. Those above are drawn when a
// process starts: a member that comes back with its log has the same Raft id, and
// must not take answers to what it asked before, nor be taken for repeating itself.
const idBits = 44

// asker is one process of a member.
type asker struct {
	id    uint64
	nonce uint64
}

// Outcomes of a forwarded request.
const (
	outcomeDone byte = iota
	outcomeNotLeader
	outcomeBusy
	outcomeNotReady
	outcomeUnknown
	outcomeFull
	outcomeNoValue
	outcomeLate
)

var errNotLeader = errors.New("asked a controller that does not lead")

func outcomeOf(err error) byte {
	switch {
	case err == nil:
		return outcomeDone
	case errors.Is(err, errBusy):
		return outcomeBusy
	case errors.Is(err, errNotLeader):
		return outcomeNotLeader
	case errors.Is(err, errNotReady):
		return outcomeNotReady
	case errors.Is(err, errFull):
		return outcomeFull
	case errors.Is(err, errNoValue):
		return outcomeNoValue
	case errors.Is(err, errLate), errors.Is(err, errFetching), errors.Is(err, errNoQuorum), errors.Is(err, repair.ErrBehind):
		return outcomeLate
	default:
		return outcomeUnknown
	}
}

// inFrame is what came from a peer. The core keeps no part of body beyond what
// it answers.
type inFrame struct {
	from uint64
	kind byte
	body []byte
}

// receive takes a frame from a peer. What cannot be read was not made by this
// software, or is of another version: it is dropped, and counts as lost.
func (c *core) receive(f *inFrame) {
	switch f.kind {
	case frameRaft:
		c.receiveRaft(f)
	case frameForward:
		c.receiveForward(f)
	case frameAnswer:
		c.receiveAnswer(f)
	case frameFull:
		c.memb.full[f.from] = c.now
	case frameLeave:
		if c.soft.RaftState == raft.StateLeader { // else it asks who does
			c.memb.leaves[f.from] = true
		}
	case frameLeft:
		c.memb.removed, c.memb.removedAt = true, c.now
	case frameSnapFailed:
		c.raft.ReportSnapshot(f.from, raft.SnapshotFailure)
	}
}

// forward sends what waits to the leader, in as few frames as are sensible. What
// is certainly not sent goes on waiting.
func (c *core) forward() {
	leader := c.soft.Lead
	if leader == raft.None || leader == c.id {
		return
	}
	for len(c.writes) > 0 {
		body, n := []byte(nil), 0
		for n < len(c.writes) && len(body) < maxForward {
			r := c.writes[n]
			n++
			if r.done || c.tooLate(r) {
				continue
			}
			if r.call == nil {
				c.finish(r, 0, errNotLeader)
				continue
			}
			c.lastID++
			r.id = c.lastID
			if r.trace != nil {
				body = c.appendTrace(body, r)
			}
			body = appendRequest(body, r, c.now)
		}
		sent := body == nil || c.world.send(leader, cluster.Calls, frameForward, body)
		if !sent {
			return
		}
		for _, r := range c.writes[:n] {
			if !r.done {
				r.begun = true
				r.from = leader
				c.forwarded[r.id] = r
				c.counts.forwards.Add(1)
				if r.trace != nil {
					r.trace.Left(r.sent, "forward", "sent to "+c.nameOf(leader)+", which leads")
				}
			}
		}
		m := copy(c.writes, c.writes[n:])
		clear(c.writes[m:])
		c.writes = c.writes[:m]
	}
}

// appendRequest encodes a request: number, kind, what is left of its time in ms (0: no
// end), length, and what it is about.
func appendRequest(buf []byte, r *request, now time.Duration) []byte {
	var left uint32
	if r.deadline != 0 {
		left = uint32(min(max((r.deadline-now).Milliseconds(), 1), math.MaxUint32))
	}
	buf = binary.LittleEndian.AppendUint64(buf, r.id)
	buf = append(buf, byte(r.kind))
	buf = binary.LittleEndian.AppendUint32(buf, left)
	buf = append(buf, 0, 0, 0, 0)
	start := len(buf)
	if r.kind == kindEvict {
		buf = binary.LittleEndian.AppendUint64(buf, r.lost.hash[0])
		buf = binary.LittleEndian.AppendUint64(buf, r.lost.hash[1])
		buf = binary.LittleEndian.AppendUint64(buf, uint64(r.lost.version))
	} else {
		buf = codec.AppendOps(buf, r.ops)
	}
	binary.LittleEndian.PutUint32(buf[start-4:], uint32(len(buf)-start))
	return buf
}

// cut takes a number, a byte and a counted block off the front of a frame.
func cut(data []byte, head int) (id uint64, kind byte, fixed, block, rest []byte, ok bool) {
	if len(data) < 9+head+4 {
		return 0, 0, nil, nil, nil, false
	}
	id, kind, fixed = binary.LittleEndian.Uint64(data), data[8], data[9:9+head]
	n := binary.LittleEndian.Uint32(data[9+head:])
	data = data[9+head+4:]
	if uint64(n) > uint64(len(data)) {
		return 0, 0, nil, nil, nil, false
	}
	return id, kind, fixed, data[:n], data[n:], true
}

// receiveForward takes a follower's requests. Each has a number that the
// follower uses once, and they grow: one that is not larger than the newest was
// here before, or was overtaken. It must not be executed again, nor after the
// others; the follower will answer that nobody knows.
func (c *core) receiveForward(f *inFrame) {
	var traced attune.SpanContext // of the next request
	for data := f.body; len(data) > 0; {
		id, kind, fixed, block, rest, ok := cut(data, 4)
		if !ok {
			return
		}
		data = rest
		who := asker{f.from, id >> idBits}
		if id <= c.asked[who] {
			continue
		}
		c.asked[who] = id
		if requestKind(kind) == kindTrace && len(block) == len(traced.Trace)+len(traced.Span) {
			copy(traced.Span[:], block[copy(traced.Trace[:], block):])
			continue
		}
		span := traced
		traced = attune.SpanContext{}
		r := &request{from: f.from, id: id, kind: requestKind(kind)}
		if left := binary.LittleEndian.Uint32(fixed); left > 0 {
			// Then whoever asked has told its client that nobody knows.
			r.deadline = c.now + time.Duration(left)*time.Millisecond
			c.timed = append(c.timed, r)
		}
		c.pending++
		switch {
		case r.kind == kindEvict && len(block) == 24:
			r.lost.hash = attune.KeyHash{binary.LittleEndian.Uint64(block), binary.LittleEndian.Uint64(block[8:])}
			r.lost.version = attune.Version(binary.LittleEndian.Uint64(block[16:]))
		case r.kind == kindWrite:
			ops, err := codec.DecodeOps(block, nil)
			if err != nil {
				c.finish(r, 0, errNotReady)
				continue
			}
			for i := range ops {
				if ops[i].Key.Text != nil {
					ops[i].Key.Hash = c.replica.Hash(ops[i].Key.Text)
				}
			}
			r.ops, r.res = ops, make([]attune.Result, len(ops))
			if span.Span != (attune.SpanID{}) && c.traceOf != nil {
				if r.trace = c.traceOf(span, ops); r.trace != nil {
					c.traces++
				}
			}
		default:
			c.finish(r, 0, errNotReady)
			continue
		}
		if c.soft.RaftState != raft.StateLeader {
			c.finish(r, 0, errNotLeader)
			continue
		}
		c.admit(r)
	}
}

// answer tells a follower what became of its request, at the end of this turn at the
// latest.
func (c *core) answer(r *request, index uint64, outcome byte) {
	to := c.outTo(r.from, cluster.Calls, frameAnswer)
	buf := binary.LittleEndian.AppendUint64(to.body, r.id)
	buf = append(buf, outcome)
	buf = binary.LittleEndian.AppendUint64(buf, index)
	buf = append(buf, 0, 0, 0, 0)
	start := len(buf)
	if outcome == outcomeDone {
		buf = codec.AppendResults(buf, r.res)
	}
	binary.LittleEndian.PutUint32(buf[start-4:], uint32(len(buf)-start))
	to.body = buf
	r.ops, r.res = nil, nil
	if len(buf) > answerBytes {
		c.sendOut(to)
	}
}

// late is a frame of answers for which there was no room on the way to who asked:
// what reads show with their writes may be large.
type late struct {
	outFrame
	until time.Duration // then nobody waits for it any more
}

// keepAnswers has a frame of answers sent later, if it is not too much.
func (c *core) keepAnswers(to uint64, body []byte) {
	if c.lateBytes == 0 || c.lateBytes+len(body) <= lateBytes {
		c.late = append(c.late, late{outFrame{to, cluster.Calls, frameAnswer, body}, c.now + latePatience})
		c.lateBytes += len(body)
	}
}

// sendLate sends the answers for which there is room now.
func (c *core) sendLate() {
	c.late = slices.DeleteFunc(c.late, func(l late) bool {
		done := c.now >= l.until || c.world.send(l.to, l.class, l.kind, l.body)
		if done {
			c.lateBytes -= len(l.body)
		}
		return done
	})
}

// receiveAnswer takes the leader's answers.
func (c *core) receiveAnswer(f *inFrame) {
	for data := f.body; len(data) > 0; {
		id, outcome, fixed, block, rest, ok := cut(data, 8)
		if !ok {
			return
		}
		data = rest
		r := c.forwarded[id]
		if r == nil || r.from != f.from {
			continue
		}
		delete(c.forwarded, id)
		if r.done {
			continue
		}
		if r.trace != nil {
			r.trace.Back(r.sent, "answered by "+c.nameOf(f.from))
		}
		switch outcome {
		case outcomeDone:
			if err := codec.DecodeResults(block, r.res); err != nil {
				c.fail(r, errUnknown)
				continue
			}
			c.finish(r, binary.LittleEndian.Uint64(fixed), nil)
		case outcomeNotLeader:
			c.again(r)
		case outcomeBusy:
			c.fail(r, errBusy)
		case outcomeNotReady:
			c.fail(r, errNotReady)
		case outcomeFull:
			c.fail(r, errFull)
		case outcomeNoValue:
			c.fail(r, errNoValue)
		case outcomeLate:
			c.fail(r, errLate)
		default:
			c.fail(r, errUnknown)
		}
	}
}

// peerDown fails what was forwarded over a connection that broke: it may have
// been executed.
func (c *core) peerDown(id uint64, class cluster.Class) {
	switch class {
	case cluster.Calls:
		for _, n := range slices.Sorted(maps.Keys(c.forwarded)) {
			if r := c.forwarded[n]; r.from == id {
				delete(c.forwarded, n)
				c.fail(r, errUnknown)
			}
		}
	case cluster.Log:
		c.raft.ReportUnreachable(id)
	case cluster.Control:
		if id == c.soft.Lead && c.voter(c.id) {
			// A process that was killed hangs up at once. If it was the leader, nobody
			// need wait for an election timeout; if it lives, the others know, and say
			// no to the pre-vote. Members draw lots for who begins.
			if err := c.raft.ForgetLeader(); err == nil {
				c.campaignAt = c.now + time.Duration(c.world.nonce()%uint64(hasteMost))
			}
		}
	}
}

// hasteMost is how long a member that lost its leader's connection waits at most
// before it stands for election.
const hasteMost = 300 * time.Millisecond

// hasten stands for election if the leader hung up, and is not back.
func (c *core) hasten() {
	if c.campaignAt == 0 || c.now < c.campaignAt {
		return
	}
	c.campaignAt = 0
	if c.soft.Lead == raft.None && c.voter(c.id) && !c.memb.leaving {
		_ = c.raft.Campaign() // that it cannot now is no matter: there is the timeout
	}
}

// sendRaft queues a message for the end of the turn. Only appends carry values
// and go by a connection of their own, so that no heartbeat waits for them; all
// appends do, or the commit index would overtake what it is about.
func (c *core) sendRaft(m *pb.Message) {
	class := cluster.Control
	switch m.GetType() {
	case pb.MsgApp:
		if c.putsOff(m) {
			return
		}
		class = cluster.Log
	case pb.MsgAppResp:
		if c.repeats(m) {
			return
		}
	case pb.MsgSnap:
		c.snaps.announced(m.GetTo(), c.now)
	}
	c.queueRaft(m, class)
}

func (c *core) queueRaft(m *pb.Message, class cluster.Class) {
	to := c.outTo(m.GetTo(), class, frameRaft)
	buf := binary.AppendUvarint(to.body, uint64(proto.Size(m)))
	buf, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(buf, m)
	if err != nil {
		panic(err) // it is Raft's own
	}
	to.body = buf
	if len(buf) > maxEntryBytes {
		c.sendOut(to)
	}
}

// ackAgain is how long a follower does not say again what it has. It is less than the
// time between two heartbeats, by which a leader that has not heard it asks again.
const ackAgain = tickEvery / 5

// acked is what a follower said last that it has.
type acked struct {
	to, term, index uint64
	at              time.Duration
}

// repeats reports whether m acknowledges only what another did a moment ago. As soon as
// an entry is committed the leader says so, in an append without entries; to answer that
// as Raft does would be every second message of a follower that is up to date, and every
// second wake of the leader.
func (c *core) repeats(m *pb.Message) bool {
	a := acked{m.GetTo(), m.GetTerm(), m.GetIndex(), c.now}
	if m.GetReject() {
		a = acked{} // it is told from where on to send, and wants to hear of that
	} else if w := c.acked; a.to == w.to && a.term == w.term && a.index <= w.index && a.at < w.at+ackAgain {
		return true
	}
	c.acked = a
	return false
}

// commitLater is how long a follower that waits for no answer need not hear that an
// entry is committed, as long as nothing else is said to it.
const commitLater = time.Millisecond

// commit is an append without entries, and when it was put off.
type commit struct {
	m  *pb.Message
	at time.Duration
}

// putsOff keeps an append without entries for later. Mostly all it says is what is
// committed, and so does the next one: while there is one soon, that saves each follower
// that asked for nothing a message for each entry. Raft takes one that never comes for
// lost, so any may be.
func (c *core) putsOff(m *pb.Message) bool {
	at := c.now
	c.commits = slices.DeleteFunc(c.commits, func(w commit) bool {
		same := w.m.GetTo() == m.GetTo()
		if same {
			at = w.at
		}
		return same
	})
	if len(m.GetEntries()) > 0 {
		return false
	}
	c.commits = append(c.commits, commit{m, at})
	return true
}

// sendCommits queues what was put off for those to whom something is said now, or that
// have not heard it for long enough.
func (c *core) sendCommits() {
	c.commits = slices.DeleteFunc(c.commits, func(w commit) bool {
		now := c.now >= w.at+commitLater || c.speaks(w.m.GetTo(), cluster.Control, cluster.Log, cluster.Calls)
		if now {
			c.queueRaft(w.m, cluster.Log)
		}
		return now
	})
}

// speaks reports whether this turn has something to say there by one of these
// connections.
func (c *core) speaks(to uint64, by ...cluster.Class) bool {
	return slices.ContainsFunc(c.out, func(o outFrame) bool { return o.to == to && len(o.body) > 0 && slices.Contains(by, o.class) })
}

// keepsUp reports whether a follower is known to have nearly all of the log.
func (c *core) keepsUp(id uint64) (does bool) {
	last, _ := c.store.LastIndex() // never fails
	c.raft.WithProgress(func(other uint64, _ raft.ProgressType, pr trackerProgress) {
		does = does || other == id && pr.Match+keptUp >= last
	})
	return does
}

// outTo returns the frame that gathers what is to be sent there.
func (c *core) outTo(to uint64, class cluster.Class, kind byte) *outFrame {
	for i := range c.out {
		if o := &c.out[i]; o.to == to && o.class == class && o.kind == kind {
			return o
		}
	}
	c.out = append(c.out, outFrame{to: to, class: class, kind: kind})
	return &c.out[len(c.out)-1]
}

func (c *core) sendOut(o *outFrame) {
	body := o.body
	o.body = nil
	if len(body) == 0 || c.world.send(o.to, o.class, o.kind, body) {
		return
	}
	switch {
	case o.kind == frameAnswer:
		c.keepAnswers(o.to, body)
	case o.class == cluster.Log:
		c.raft.ReportUnreachable(o.to)
	}
}

// flushOut sends what the turn had to say.
func (c *core) flushOut() {
	c.sendLate()
	c.sendCommits()
	for i := range c.out {
		if o := &c.out[i]; o.kind == frameAnswer && len(o.body) <= smallAnswers && c.speaks(o.to, cluster.Log) && c.keepsUp(o.to) {
			o.class = cluster.Log
		}
	}
	for i := range c.out {
		c.sendOut(&c.out[i])
	}
	c.out = c.out[:0]
}

// receiveRaft takes the messages of a frame; stepRaft gives them to Raft when the
// turn has all of them.
func (c *core) receiveRaft(f *inFrame) {
	for data := f.body; len(data) > 0; {
		n, used := binary.Uvarint(data)
		if used <= 0 || n > uint64(len(data)-used) {
			return
		}
		m := new(pb.Message)
		if err := proto.Unmarshal(data[used:used+int(n)], m); err != nil {
			return
		}
		data = data[used+int(n):]
		if m.GetFrom() != f.from || m.GetTo() != c.id || m.Type == nil {
			continue
		}
		c.came = append(c.came, m)
	}
}

// stepRaft gives Raft what came in this turn. Of the heartbeats from one peer,
// and of its answers to ours, only the last counts: it says what those before it
// said (a read index is confirmed by any later position). That is not for
// economy alone. A member that was cut off or stopped finds hundreds of them in
// its socket, one for each round of reads; it would answer each, and each answer
// would have the leader, who knows it to be behind, send it all it lacks again.
// That kept leaders busy for seconds.
//
// What a member cannot take, as its store does not, it has not heard: the leader says it
// again. So it goes on answering what it can, votes, and keeps nobody waiting.
func (c *core) stepRaft() {
	swamped := len(c.came) > 0 && c.world.swamped()
	for i, m := range c.came {
		c.came[i] = nil
		if t := m.GetType(); swamped && (t == pb.MsgApp || t == pb.MsgSnap) {
			continue
		}
		switch m.GetType() {
		case pb.MsgSnap:
			c.snapshotAnnounced(m)
			continue
		case pb.MsgHeartbeat, pb.MsgHeartbeatResp:
			if slices.ContainsFunc(c.came[i+1:], func(o *pb.Message) bool {
				return o.GetType() == m.GetType() && o.GetFrom() == m.GetFrom() && o.GetTerm() >= m.GetTerm()
			}) {
				continue
			}
		}
		c.noteAck(m)
		// An error says that it is of no use now: from one who is no member any
		// more, or not yet.
		_ = c.raft.Step(m)
	}
	c.came = c.came[:0]
}
