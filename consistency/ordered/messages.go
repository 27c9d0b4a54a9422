package ordered

import (
	"encoding/binary"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/attunekv/attune/cluster"
)

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

// commit is an append without entries, and when the first of those to a follower was put
// off.
type commit struct {
	m  *pb.Message
	at time.Duration
}

// putsOff keeps an append without entries for later. Mostly all it says is what is
// committed, and so does the next one: while there is one soon, that saves each follower
// that asked for nothing a message for each entry. Raft takes one that never comes for
// lost, so any may be.
func (c *core) putsOff(m *pb.Message) bool {
	i := slices.IndexFunc(c.commits, func(w commit) bool { return w.m.GetTo() == m.GetTo() })
	empty := len(m.GetEntries()) == 0
	switch {
	case empty && i < 0:
		c.commits = append(c.commits, commit{m, c.now})
	case empty:
		c.commits[i].m = m
	case i >= 0:
		c.commits = slices.Delete(c.commits, i, i+1)
	}
	return empty
}

// sendCommits queues what was put off for those to whom something is said now, or that
// have not heard it for long enough.
func (c *core) sendCommits() {
	c.commits = slices.DeleteFunc(c.commits, func(w commit) bool {
		to := w.m.GetTo()
		due := c.now >= w.at+commitLater || c.says(func(o *outFrame) bool { return o.to == to })
		if due {
			c.queueRaft(w.m, cluster.Log)
		}
		return due
	})
}

// smallAnswers is up to how many bytes of answers travel with an append that goes to the
// same controller anyway, to be one message with it, and keptUp how many entries that
// one may lack: answers must not wait for what a slow one is still to be sent.
const (
	smallAnswers = 4 << 10
	keptUp       = 8
)

// rides reports whether answers travel with an append of this turn.
func (c *core) rides(answers *outFrame) bool {
	return answers.kind == frameAnswer && len(answers.body) <= smallAnswers &&
		c.says(func(o *outFrame) bool { return o.to == answers.to && o.class == cluster.Log }) && c.keepsUp(answers.to)
}

// says reports whether this turn has something to say in such a frame.
func (c *core) says(such func(*outFrame) bool) bool {
	for i := range c.out {
		if o := &c.out[i]; len(o.body) > 0 && such(o) {
			return true
		}
	}
	return false
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
		if o := &c.out[i]; c.rides(o) {
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
