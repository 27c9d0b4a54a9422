package ordered

import (
	"errors"
	"slices"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/repair"
)

// Errors that end a request. Every one is told to a client as SERVER_ERROR.
var (
	// errUnknown: the request was sent or proposed and nobody knows whether it
	// took effect.
	errUnknown = errors.New("outcome unknown: the controller that was to carry it out is gone")
	// errTimeout: the same, at the op deadline.
	errTimeout = errors.New("timed out; the outcome is unknown")
	// errFetching: nothing was done.
	errFetching = errors.New("timed out while the value was fetched from the store or another controller; see op-timeout")
	// errNoQuorum: nothing was done.
	errNoQuorum = errors.New("no quorum: too few controllers can reach each other")
	// errBusy: nothing was done.
	errBusy = errors.New("busy: too many writes are waiting, try again")
	// errFull: nothing was done.
	errFull = errors.New("a disk is full: see the log of the controller that leads")
	// errNoValue: nothing was done, as what the op is decided on is out of reach.
	errNoValue = errors.New("nothing was done: the value this goes by is out of reach; try again")
	// errLate: nothing was done.
	errLate = errors.New("nothing was done: its time was over before it could be carried out; see op-timeout")
	// errNotReady: nothing was done.
	errNotReady = errors.New("not ready: this controller is not a full member of its cluster yet")
	// errClosed: this controller stops.
	errClosed = errors.New("controller is stopping")
)

// request is a Call, of this controller's connections or a peer's, on its way
// through the core. Only the core's goroutine uses it.
type request struct {
	call *attune.Call // nil: a peer's, see from

	// A peer's: who asked, and the number it will know the answer by.
	from uint64
	id   uint64

	kind     requestKind
	ops      []attune.Op
	res      []attune.Result
	lost     lost          // with evict
	deadline time.Duration // of the core's clock; 0 is none
	last     time.Duration // with kindAnchor: the deadline after this one

	trace *attune.Trace // of the call, or of the peer's request; nil for nearly all
	sent  attune.SpanID // what the leader does for it, once that was asked

	done  bool // answered: call, ops and res are somebody else's again
	begun bool // it may have been executed, should the answer never come

	// Bytes fetched for ops that are decided on values not in this process.
	fetched  map[attune.KeyHash]fetched
	fetching bool
}

type requestKind uint8

const (
	kindWrite   requestKind = iota
	kindBarrier             // linearizable: a read index
	kindAnchor              // sequential, first read of a connection: a read index if one is to be had soon
	kindSeen                // sequential: what this connection has seen
	kindEvict               // bytes that nobody has any more
	// kindTrace is no request, but says that the next one of its frame is traced: the
	// span that it is part of. It has a number of its own, so that a controller of an
	// older release, which knows no such kind, refuses it and nothing else.
	kindTrace
)

// lost names an item whose bytes nobody has.
type lost struct {
	hash    attune.KeyHash
	version attune.Version
}

// fetched is what came of fetching the bytes of one version.
type fetched struct {
	stored attune.Version
	value  []byte
	gone   bool // nobody has them
	err    error
}

// fail answers a request with an error.
func (c *core) fail(r *request, err error) {
	if r.done {
		return
	}
	for i := range r.res {
		r.res[i] = attune.Result{Status: attune.Failed, Err: err}
	}
	c.finish(r, 0, err)
}

// finish answers a request whose results are filled in. index is the newest log
// index it has to do with.
func (c *core) finish(r *request, index uint64, err error) {
	if r.done {
		return
	}
	r.done = true
	c.pending--
	c.counts.completed.Add(1)
	if r.trace != nil {
		c.endTrace(r, err)
	}
	if r.call == nil {
		c.answer(r, index, outcomeOf(err))
		return
	}
	call := r.call
	r.call, r.ops, r.res = nil, nil, nil
	call.Err = err
	call.Session.Seen = max(call.Session.Seen, index)
	call.Done()
}

// expire fails the requests whose time is up.
func (c *core) expire() {
	if c.now < c.nextExpiry {
		return
	}
	c.nextExpiry = c.now + expireEvery
	kept, failed := c.timed[:0], false
	for _, r := range c.timed {
		switch {
		case r.done:
		case r.deadline > c.now:
			kept = append(kept, r)
		case r.kind == kindAnchor:
			// A level that serves what is here serves it also without a quorum, if
			// the connection's own writes are among it.
			c.unanchored.Add(1)
			r.call.Session.Anchored = true // it is not tried again
			if r.kind, r.deadline = kindSeen, r.last; r.deadline != 0 {
				kept = append(kept, r)
			}
			c.reads.add(r)
		case r.begun && r.call == nil: // its answer comes when it is applied
		case r.begun:
			delete(c.forwarded, r.id) // an answer that was lost never comes
			c.fail(r, errTimeout)
			failed = true
		default:
			c.tooLate(r)
			failed = true
		}
	}
	clear(c.timed[len(kept):])
	c.timed = kept
	if failed {
		// Without a quorum, what waits may wait for days.
		c.writes = unanswered(c.writes)
		c.reads.forget()
	}
	c.releaseSeen()
}

// tooLate fails a request whose time is over, and that nothing was done of. Who could
// not be heard for a while must not carry out what nobody waits for any more.
func (c *core) tooLate(r *request) bool {
	switch {
	case r.deadline == 0 || r.deadline > c.now:
		return false
	case r.fetching:
		c.fail(r, errFetching)
	default:
		c.fail(r, c.why(r))
	}
	return true
}

// unanswered is what somebody still waits for, in the same memory.
func unanswered(reqs []*request) []*request {
	return slices.DeleteFunc(reqs, func(r *request) bool { return r.done })
}

// why says what kept this controller from carrying r out in time.
func (c *core) why(r *request) error {
	decides := c.leads() && (r.kind == kindWrite || r.kind == kindEvict)
	switch {
	case c.closing:
		return errClosed
	case !c.serving():
		return errNotReady
	case decides && c.world.behind():
		return repair.ErrBehind
	case decides && len(c.lead.inflight) < maxInflight:
		return errLate // this process stood still
	}
	return errNoQuorum
}
