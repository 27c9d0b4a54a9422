package ordered

import (
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"

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
