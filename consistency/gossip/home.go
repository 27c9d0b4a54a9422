package gossip

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
)

// An op that is decided on what is there, such as an incr or a cas, is carried out
// by its key's home: one member, the same for all who agree on who is there. So
// while they do, such ops on one key are decided one after the other, and none is
// lost. This file is the way there; forward.go has the frames, and what a home does.
//
// What a client did and saw here, it must find at the home, and what the home told
// it must be here when it reads next. Neither the ops nor the answers bring records
// along: changes come by their stream anyway, a millisecond later or sooner, so each
// side says what the other must have got first (needs), and the other waits for it.
// Records in the frames would save that millisecond, but carry values twice, need a
// way around the stores outside this process, and at the causal level they would
// overtake what they depend on.
//
// Nothing that may have been carried out is tried again. What certainly was not goes
// to the next home, and at last is decided here: what is lost then is that nobody
// else decides at the same time.

const (
	// maxForward bounds the ops of one Call that are under way together, and those
	// of a frame unless one Call's are more, in bytes.
	maxForward = 256 << 10
	// valueWeight is what an op counts for whose answer has a value. It bounds the
	// answer to a frame: 64 values.
	valueWeight = 4 << 10
	// maxFlights is how many frames may be under way to one home. While they are, what
	// comes gathers for the next.
	maxFlights = 2
	// numberBits are those of a frame's number that count. Those above are drawn when
	// a process starts.
	numberBits = 44
	// arrival is how long an answer waits, at the eventual level, for what it is
	// about to arrive here as well.
	arrival = 200 * time.Millisecond
	// silence is after what time without a digest a member is no home.
	silence = 2*idleEvery + 500*time.Millisecond
)

var (
	// errUnknown: the op was sent to its home, and there is no answer.
	errUnknown = errors.New("outcome unknown: the controller that was to carry it out does not answer")
	// errUnseen: it was carried out, and must not be seen before what it depends on.
	errUnseen = errors.New("carried out, but changes that it depends on did not arrive here in time")
	// errNotDone: nothing was done.
	errNotDone = errors.New("timed out before it could be carried out; see op-timeout")
)

// homes brings ops to the homes of their keys, and carries out those of keys whose
// home is here.
type homes struct {
	k *core
	// decide carries out c.Ops[from:to] here, and knows c.Ctx and c.Deadline only.
	decide func(c *attune.Call, from, to int)
	// room waits until a Call that another member sent may begin, and reports false if
	// it is over with that; nil: at once.
	room func(c *attune.Call) bool
	// live are the members that may be homes, this one among them.
	live atomic.Pointer[[]uint64]
	// traceOf traces ops for others; nil: not at all. See trace.go.
	traceOf func(attune.SpanContext, []attune.Op) *attune.Trace

	ctx     context.Context // ends with close
	cancel  context.CancelCauseFunc
	work    context.Context // ends when close waits no longer
	abort   context.CancelCauseFunc
	running sync.WaitGroup
	waiting atomic.Int32 // len(waits)

	mu     sync.Mutex // guards the rest; taken before core.mu, never after it
	closed bool
	last   uint64 // number of the newest frame
	trips  []*trip
	over   []*trip // their run has ended: unlock goes on with them
	routes map[uint64]*route
	ops    []attune.Op // memory for encoding
	waits  map[*wait]struct{}
	// newest is the number of the newest frame that each process sent here. It is
	// never forgotten: a frame may come late.
	newest map[asker]uint64
	busy   map[uint64]int // frames of each member that are being carried out
	// traced is what each process has said of the frame that it sends next.
	traced map[asker]announced
	counts homeCounts
}

// homeCounts are for the operator, in ops.
type homeCounts struct {
	forwarded uint64 // sent to their homes
	served    uint64 // carried out for others
	refused   uint64 // others' that were not
	unknown   uint64 // nobody knows
}

// trip is a Call some of whose ops are elsewhere.
type trip struct {
	call     *attune.Call
	deadline time.Time
	local    bool // something was decided here
	next     int  // the ops before it are done or under way
	open     int  // hops that are not done
	hops     []*hop
	finished bool
}

// hop is those ops of a Call that go to one home together.
type hop struct {
	trip  *trip
	to    uint64
	ops   []int    // of the Call
	tried []uint64 // homes that certainly did not carry them out
	size  int
	sent  bool
	here  bool          // being decided here
	span  attune.SpanID // of a traced Call: what the home does
	done  bool
}

// route is what goes to one home, in order.
type route struct {
	id      uint64
	queue   []*hop
	flights []*flight
}

// flight is a frame under way.
type flight struct {
	number uint64
	hops   []*hop
}

// newHomes needs a number that no other process of this member was given.
func newHomes(k *core, nonce uint64, decide func(c *attune.Call, from, to int)) *homes {
	h := &homes{
		k: k, decide: decide, last: nonce << numberBits,
		routes: make(map[uint64]*route), waits: make(map[*wait]struct{}),
		newest: make(map[asker]uint64), busy: make(map[uint64]int), traced: make(map[asker]announced),
	}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	h.work, h.abort = context.WithCancelCause(context.Background())
	h.refresh()
	return h
}

// homed reports whether an op is its home's to decide. A delete says that there was
// something, which is no reason to ask: it is as blind as a set.
func homed(op *attune.Op) bool {
	switch op.Verb {
	case attune.Flush:
		return false
	case attune.Get:
		return op.Mode&(attune.Lease|attune.Vivify|attune.Retime) != 0
	case attune.Delete:
		return op.Mode&(attune.IfCAS|attune.Invalidate|attune.Clear) != 0
	}
	return !op.Blind()
}

// homeOf is the member with the highest lot for a key, but for those in not. When
// one goes, only its keys get another home. It is self if there is nobody else.
func homeOf(live []uint64, self uint64, key attune.KeyHash, not []uint64) uint64 {
	home, top := self, uint64(0)
	for _, id := range live {
		if lot := mix(id, key[1]); lot > top && !slices.Contains(not, id) {
			home, top = id, lot
		}
	}
	return home
}

// refresh looks who is there. To be called when that has changed, by the goroutine
// that calls tick.
func (h *homes) refresh() {
	h.k.mu.Lock()
	live := h.k.homes()
	h.k.mu.Unlock()
	if was := h.live.Load(); was != nil && slices.Equal(*was, live) {
		return
	}
	h.mu.Lock()
	h.live.Store(&live)
	for id, r := range h.routes {
		if slices.Contains(live, id) {
			continue
		}
		// What was sent may still be answered.
		queue := r.queue
		r.queue = nil
		for _, p := range queue {
			h.elsewhere(p)
		}
		if len(r.flights) == 0 {
			delete(h.routes, id)
		}
	}
	h.unlock()
}

// homes are the members that may be homes, by id. Of those that do not tell this one
// directly, only gossip is known; if such a one does not serve, it refuses, and the
// next home is the one that its neighbours think of first.
func (k *core) homes() []uint64 {
	now := k.clock.mono()
	var ids []uint64
	if k.serves() {
		ids = append(ids, k.id)
	}
	for id, p := range k.peers {
		if p.alive && (!p.neighbour || p.ready && now-p.heard < silence) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// write has c's ops take effect, each where it must, in order. It returns true if c
// is answered, and else calls c.Done when it is.
func (h *homes) write(c *attune.Call) bool {
	c.Err = nil
	return h.proceed(c, nil, 0) && !h.k.await(c)
}

// proceed goes on with c at one of its ops. False: some are under way now, and who
// brings the last of their answers goes on. Ops that stand together and are decided
// elsewhere are under way together: a key's go to one home, in order.
func (h *homes) proceed(c *attune.Call, t *trip, at int) bool {
	local := false
	for at < len(c.Ops) {
		if t != nil && t.late() {
			for ; at < len(c.Ops); at++ {
				c.Res[at] = attune.Result{Status: attune.Failed, Err: errNotDone}
			}
			break
		}
		live := *h.live.Load()
		end := at
		for end < len(c.Ops) && (!homed(&c.Ops[end]) || homeOf(live, h.k.id, c.Ops[end].Key.Hash, nil) == h.k.id) {
			end++
		}
		if end > at {
			h.decide(c, at, end)
			local, at = true, end
			continue
		}
		for size := 0; end < len(c.Ops) && homed(&c.Ops[end]) && size < maxForward; end++ {
			size += weight(&c.Ops[end])
		}
		h.mu.Lock()
		if t == nil {
			t = &trip{call: c, deadline: c.Deadline}
			h.trips = append(h.trips, t)
		}
		t.next, t.local, t.hops = end, t.local || local, nil
		run := make([]int, end-at)
		for i := range run {
			run[i] = at + i
		}
		h.dispatch(t, run, nil)
		h.unlock()
		return false
	}
	if t != nil {
		t.local = t.local || local
	}
	return true
}

// weight is about what an op takes of a frame, or its answer does.
func weight(op *attune.Op) int {
	n := len(op.Key.Text) + len(op.Value) + 16
	if op.Mode.Has(attune.WantValue) {
		n += valueWeight
	}
	return n
}

func (t *trip) late() bool { return !t.deadline.IsZero() && !time.Now().Before(t.deadline) }

// dispatch sends ops of a Call to their homes.
func (h *homes) dispatch(t *trip, ops []int, tried []uint64) {
	live := *h.live.Load()
	var hops []*hop
	for _, i := range ops {
		op := &t.call.Ops[i]
		to := homeOf(live, h.k.id, op.Key.Hash, tried)
		at := slices.IndexFunc(hops, func(p *hop) bool { return p.to == to })
		if at < 0 {
			at = len(hops)
			hops = append(hops, &hop{trip: t, to: to, tried: tried})
		}
		hops[at].ops = append(hops[at].ops, i)
		hops[at].size += weight(op)
	}
	t.open += len(hops)
	t.hops = append(t.hops, hops...)
	for _, p := range hops {
		if p.to == h.k.id {
			p.here = true
			h.spawn(func() { h.doHere(p) })
			continue
		}
		r := h.routes[p.to]
		if r == nil {
			r = &route{id: p.to}
			h.routes[p.to] = r
		}
		r.queue = append(r.queue, p)
		h.launch(r)
	}
}

// doHere decides a hop's ops.
func (h *homes) doHere(p *hop) {
	for i := 0; i < len(p.ops); {
		from := i
		for i++; i < len(p.ops) && p.ops[i] == p.ops[i-1]+1; i++ {
		}
		h.decide(p.trip.call, p.ops[from], p.ops[i-1]+1)
	}
	h.mu.Lock()
	p.trip.local = true
	h.arrived(p)
	h.unlock()
}

// launch sends what waits, as far as it may.
func (h *homes) launch(r *route) {
	for len(r.queue) > 0 && len(r.flights) < maxFlights {
		f := &flight{}
		n, size := 0, 0
		for ; n < len(r.queue) && (len(f.hops) == 0 || size+r.queue[n].size <= maxForward); n++ {
			if p := r.queue[n]; !p.done {
				f.hops = append(f.hops, p)
				size += p.size
			}
		}
		m := copy(r.queue, r.queue[n:])
		clear(r.queue[m:])
		r.queue = r.queue[:m]
		if len(f.hops) == 0 {
			continue
		}
		h.last++
		f.number = h.last
		h.announce(f, r.id)
		if !h.k.world.send(r.id, cluster.Calls, frameForward, h.encode(f, r.id, size)) {
			for _, p := range f.hops {
				h.elsewhere(p)
			}
			continue
		}
		r.flights = append(r.flights, f)
		for _, p := range f.hops {
			p.sent = true
			if t := p.trip.call.Trace; t != nil {
				t.Left(p.span, "forward", "sent to the home of its key, "+h.k.nameOf(r.id))
			}
			h.counts.forwarded += uint64(len(p.ops))
		}
	}
}

// elsewhere sends a hop, which certainly was not carried out, to the next homes.
func (h *homes) elsewhere(p *hop) {
	if p.done {
		return
	}
	h.dispatch(p.trip, p.ops, append(slices.Clip(p.tried), p.to))
	h.arrived(p) // its ops are others' now
}

// lost fails a hop of which nobody knows whether it was carried out.
func (h *homes) lost(p *hop) {
	if !p.done {
		h.counts.unknown += uint64(len(p.ops))
		h.fail(p, errUnknown)
	}
}

func (h *homes) fail(p *hop, err error) {
	for _, i := range p.ops {
		p.trip.call.Res[i] = attune.Result{Status: attune.Failed, Err: err}
	}
	h.arrived(p)
}

// arrived notes that a hop's results are there.
func (h *homes) arrived(p *hop) {
	t := p.trip
	p.done = true
	if t.open--; t.open == 0 {
		t.finished = t.next == len(t.call.Ops)
		h.over = append(h.over, t)
	}
}

// unlock releases h.mu and goes on with the Calls that it holds up no more.
func (h *homes) unlock() {
	finished := h.over[:0]
	for _, t := range h.over {
		if t.finished {
			finished = append(finished, t)
			continue
		}
		h.spawn(func() {
			if h.proceed(t.call, t, t.next) {
				h.end(t)
			}
		})
	}
	h.over = nil
	h.mu.Unlock()
	for _, t := range finished {
		h.end(t)
	}
}

// end answers a Call. Its home has seen to the acknowledgements of what was decided
// there.
func (h *homes) end(t *trip) {
	h.mu.Lock()
	t.finished = true
	h.mu.Unlock()
	if c := t.call; !t.local || !h.k.await(c) {
		c.Done()
	}
}

// spawn runs fn, unless this ends. Called with h.mu.
func (h *homes) spawn(fn func()) {
	if !h.closed {
		h.running.Go(fn)
	}
}

// down is told that a connection to a member broke. What was sent to it may have been
// carried out.
func (h *homes) down(id uint64, class cluster.Class) {
	if class != cluster.Calls {
		return
	}
	h.mu.Lock()
	defer h.unlock()
	r := h.routes[id]
	if r == nil {
		return
	}
	flights := r.flights
	r.flights = nil
	for _, f := range flights {
		for _, p := range f.hops {
			h.lost(p)
		}
	}
	h.launch(r)
}

// tick does what time alone asks for. It is called every digestEvery, or so.
func (h *homes) tick() {
	h.refresh()
	h.progress() // the core's tick may have got something done, too
	h.mu.Lock()
	defer h.unlock()
	kept := h.trips[:0]
	for _, t := range h.trips {
		if t.finished {
			continue
		}
		kept = append(kept, t)
		if !t.late() {
			continue
		}
		for _, p := range t.hops {
			switch {
			case p.done, p.here: // decide gives up by itself
			case p.sent:
				h.lost(p)
			default:
				h.fail(p, errNotDone)
			}
		}
	}
	clear(h.trips[len(kept):])
	h.trips = kept
	for _, r := range h.routes {
		// Nobody waits for these any more.
		r.flights = slices.DeleteFunc(r.flights, func(f *flight) bool {
			return !slices.ContainsFunc(f.hops, func(p *hop) bool { return !p.done })
		})
		h.launch(r)
	}
}

// close has other members' ops refused from now on, and waits for what is being
// carried out. What is under way for this one's clients is never answered. It must
// come before the cluster is left, or those who sent ops here would never know.
func (h *homes) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel(errClosed)
	patience := time.AfterFunc(leavePatience, func() { h.abort(errClosed) })
	h.running.Wait()
	patience.Stop()
	h.abort(errClosed)
}

// counters tells what was done so far.
func (h *homes) counters() homeCounts {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts
}

// decide does some ops of a Call here.
func (e *Engine) decide(c *attune.Call, from, to int) {
	ctx, cancel := e.bound(c)
	e.Write(ctx, c.Ops[from:to], c.Res[from:to])
	cancel()
	if c.Trace != nil {
		c.Trace.Ended("decide", "decided, stamped and applied here")
	}
}
