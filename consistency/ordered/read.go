package ordered

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
)

// reads are the barriers that wait. At most one read-index round is under way;
// who comes meanwhile joins the next one, because a round may only answer reads
// that began before it did.
type reads struct {
	next    []*request // for the next round
	seen    []*request // that need no round, but to see their own writes here
	asked   []*request // of the round under way
	id      uint64     // of the round under way; 0 is none
	issued  time.Duration
	counter uint64    // of rounds; it begins where no process of this member did
	applied []awaited // rounds that are confirmed, and wait for this replica; oldest first
}

// awaited are requests that may go on when index is applied.
type awaited struct {
	index uint64
	reqs  []*request
}

func (r *reads) add(q *request) {
	if q.kind == kindSeen {
		r.seen = append(r.seen, q)
		return
	}
	r.next = append(r.next, q)
}

// moveReads begins a round if there is something to ask.
func (c *core) moveReads() {
	c.releaseSeen()
	if c.reads.id != 0 || len(c.reads.next) == 0 || c.soft.Lead == raft.None {
		return
	}
	c.reads.asked, c.reads.next = c.reads.next, c.reads.asked[:0]
	c.askIndex()
}

// askIndex sends a read index request under a number that was never used
// before: with an old one, an old answer would do.
func (c *core) askIndex() {
	r := &c.reads
	r.counter++
	r.id = r.counter
	r.issued = c.now
	ctx := make([]byte, 16)
	binary.LittleEndian.PutUint64(ctx, c.id)
	binary.LittleEndian.PutUint64(ctx[8:], r.id)
	c.counts.rounds.Add(1)
	if c.traces > 0 {
		noteAll(r.asked, "read wait", "asked "+c.nameOf(c.soft.Lead)+", which leads, how far the log is")
	}
	c.raft.ReadIndex(ctx)
}

// retryReads asks again when an answer is overdue: any message may be lost.
func (c *core) retryReads() {
	if c.reads.id != 0 && c.now-c.reads.issued > readRetry {
		c.restartReads()
	}
}

// restartReads gives up the round under way, and joins its requests with those
// that wait for the next.
func (c *core) restartReads() {
	r := &c.reads
	if r.id == 0 {
		return
	}
	r.id = 0
	r.next = append(unanswered(r.asked), r.next...)
	r.asked = nil
}

// forget lets go of those that were answered without their round, or before this
// replica was as far.
func (r *reads) forget() {
	r.next = unanswered(r.next)
	for i := range r.applied {
		r.applied[i].reqs = unanswered(r.applied[i].reqs)
	}
	r.applied = slices.DeleteFunc(r.applied, func(a awaited) bool { return len(a.reqs) == 0 })
}

// readStates takes the answers to read index requests.
func (c *core) readStates(states []raft.ReadState) {
	r := &c.reads
	for _, s := range states {
		if len(s.RequestCtx) != 16 || binary.LittleEndian.Uint64(s.RequestCtx) != c.id ||
			binary.LittleEndian.Uint64(s.RequestCtx[8:]) != r.id || r.id == 0 {
			continue // of a round that was given up
		}
		r.id = 0
		if c.traces > 0 {
			noteAll(r.asked, "read index", fmt.Sprintf("a quorum has confirmed: to entry %d", s.Index))
		}
		if s.Index <= c.st.applied {
			c.release(r.asked)
			r.asked = r.asked[:0]
			continue
		}
		r.applied = append(r.applied, awaited{s.Index, r.asked})
		r.asked = nil
	}
}

// releaseReads lets those go on whose index is applied.
func (c *core) releaseReads() {
	r := &c.reads
	n := 0
	for n < len(r.applied) && r.applied[n].index <= c.st.applied {
		c.release(r.applied[n].reqs)
		n++
	}
	r.applied = slices.Delete(r.applied, 0, n)
	c.releaseSeen()
}

func (c *core) release(reqs []*request) {
	if c.traces > 0 {
		noteAll(reqs, "apply", "applied here as far")
	}
	for i, q := range reqs {
		if !q.done {
			q.call.Session.Anchored = true
			c.finish(q, c.st.applied, nil)
		}
		reqs[i] = nil
	}
}

// releaseSeen lets those go on whose own writes are applied here.
func (c *core) releaseSeen() {
	r := &c.reads
	if len(r.seen) == 0 {
		return
	}
	kept := r.seen[:0]
	for _, q := range r.seen {
		switch {
		case q.done:
		case q.call.Session.Seen <= c.st.applied:
			c.finish(q, c.st.applied, nil)
		default:
			kept = append(kept, q)
		}
	}
	clear(r.seen[len(kept):])
	r.seen = kept
}
