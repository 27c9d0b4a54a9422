package ordered

import (
	"encoding/binary"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
)

// The steps of requests that are traced: those of this controller's clients, and, at
// the leader, those of others' that say so. Requests of one entry or round share what
// is noted, so it is looked for where they are kept together, and only while c.traces
// says that there are any.

// appendTrace announces, before r, that r is traced.
func (c *core) appendTrace(buf []byte, r *request) []byte {
	span := r.trace.NewSpan()
	r.sent = span.Span
	if !r.trace.Kept() {
		return buf
	}
	buf = binary.LittleEndian.AppendUint64(buf, r.id)
	buf = append(buf, byte(kindTrace), 0, 0, 0, 0, byte(len(span.Trace)+len(span.Span)), 0, 0, 0)
	buf = append(append(buf, span.Trace[:]...), span.Span[:]...)
	c.lastID++
	r.id = c.lastID
	return buf
}

// endTrace is for a traced request that is answered. That of a client ends when the
// client is answered, by whoever began it.
func (c *core) endTrace(r *request, err error) {
	c.traces--
	if r.call == nil {
		why := ""
		if err != nil {
			why = err.Error()
		}
		r.trace.End(why)
	}
	r.trace = nil
}

// noteAll notes the end of a phase of those among reqs that are traced.
func noteAll(reqs []*request, phase, text string) {
	for _, r := range reqs {
		switch {
		case r.trace == nil:
		case phase == "":
			r.trace.Note(text)
		default:
			r.trace.Ended(phase, text)
		}
	}
}

// noteLogged notes what of the traced is in the log here.
func (c *core) noteLogged() {
	if c.traces == 0 {
		return
	}
	for _, p := range c.lead.inflight {
		if p.index != 0 && !p.noted {
			p.noted = true
			noteAll(p.waiters, "log", fmt.Sprintf("in the log here: entry %d", p.index))
		}
	}
}

// noteAck notes that a follower has the entries of the traced.
func (c *core) noteAck(m *pb.Message) {
	if c.traces == 0 || m.GetType() != pb.MsgAppResp || m.GetReject() {
		return
	}
	text := "in the log of " + c.nameOf(m.GetFrom())
	for _, p := range c.lead.inflight {
		if p.index != 0 && p.index <= m.GetIndex() {
			noteAll(p.waiters, "", text)
		}
	}
}

// noteCommitted notes that a quorum has the entries of the traced.
func (c *core) noteCommitted(entries []*pb.Entry) {
	if c.traces == 0 || len(entries) == 0 {
		return
	}
	for _, p := range c.lead.inflight {
		if p.index != 0 && p.index <= entries[len(entries)-1].GetIndex() {
			noteAll(p.waiters, "commit", "committed: a quorum has it")
		}
	}
}
