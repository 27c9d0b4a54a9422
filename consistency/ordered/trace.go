package ordered

import (
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"
)

// tracing is the request whose steps are noted, one at a time: a newer one takes the
// place of the one before. What the leader does for another controller is noted by
// neither.
type tracing struct {
	r     *request
	index uint64 // of its log entry, once that is known
}

// trace begins to note the steps of r, if its Call wants that.
func (c *core) trace(r *request) {
	if r.call.Trace != nil {
		c.traced = tracing{r: r}
		c.note("the core's turn began")
	}
}

// note says what has happened to the traced request.
func (c *core) note(format string, args ...any) {
	if r := c.traced.r; r != nil && r.call != nil {
		r.call.Trace.Note(format, args...)
	}
}

// noteOf is note, if r is the traced one.
func (c *core) noteOf(r *request, format string, args ...any) {
	if r == c.traced.r {
		c.note(format, args...)
	}
}

// noteRead is note, if the traced one is among reqs.
func (c *core) noteRead(reqs []*request, format string, args ...any) {
	if c.traced.r != nil && slices.Contains(reqs, c.traced.r) {
		c.note(format, args...)
	}
}

// noteLogged notes that the traced request's entry is in the log here.
func (c *core) noteLogged() {
	if c.traced.r == nil || c.traced.index != 0 {
		return
	}
	for _, p := range c.lead.inflight {
		if p.index != 0 && slices.Contains(p.waiters, c.traced.r) {
			c.traced.index = p.index
			c.note("in the log here: entry %d", p.index)
		}
	}
}

// noteAck notes that a follower has the traced request's entry.
func (c *core) noteAck(m *pb.Message) {
	if t := &c.traced; t.r != nil && t.index != 0 && m.GetType() == pb.MsgAppResp && !m.GetReject() && m.GetIndex() >= t.index {
		c.note("in the log of %s", c.nameOf(m.GetFrom()))
	}
}

// noteCommitted notes that a quorum has the traced request's entry.
func (c *core) noteCommitted(entries []*pb.Entry) {
	if t := &c.traced; t.r != nil && t.index != 0 && len(entries) > 0 && entries[len(entries)-1].GetIndex() >= t.index {
		c.note("committed: a quorum has it")
	}
}
