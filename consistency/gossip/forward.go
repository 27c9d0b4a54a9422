package gossip

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// A FORWARD frame is
//
//	number u64 (see asker) | patience uvarint: milliseconds until nobody waits any
//	more, 0 never | needs | uvarint count of hops, each: uvarint count of ops |
//	all ops, as of codec
//
// and an ANSWER, for all of its hops or none,
//
//	number u64 | needs | uvarint count of hops, each: outcome u8 | the results of
//	the ops that were carried out, as of codec
//
// Needs are
//
//	uvarint count, each: origin u64, seq uvarint | floor u64 | uvarint count, each: mark u64

// Outcomes of a hop.
const (
	hopDone    byte = iota
	hopRefused      // certainly not carried out
)

const (
	// behindMost is how long a home waits for what an op needs, but no longer than
	// half of the time that there is, so that somebody else can decide instead. A
	// change that was lost is sent again within this.
	behindMost = 2 * time.Second
	// maxFrames is how many frames of one member are carried out at a time. It has
	// maxFlights under way, and perhaps some that it has given up.
	maxFrames = 16
)

// needs are what must have come to a member before what others decided or want to
// have decided goes on there. At the causal level that is everything the other side
// has, as it may depend on any of it; its vector says so. At the eventual level it
// is what the keys in question have there, as what else came makes no difference;
// vectors say too little, as changes may be here that they do not cover yet.
type needs struct {
	deps  []dependency
	floor attune.Version
	marks []replica.Mark // of the keys of the ops, in order
}

func (n *needs) append(b []byte) []byte {
	le := binary.LittleEndian
	b = binary.AppendUvarint(b, uint64(len(n.deps)))
	for _, d := range n.deps {
		b = le.AppendUint64(b, d.origin)
		b = binary.AppendUvarint(b, d.seq)
	}
	b = le.AppendUint64(b, uint64(n.floor))
	b = binary.AppendUvarint(b, uint64(len(n.marks)))
	for _, m := range n.marks {
		b = le.AppendUint64(b, uint64(m))
	}
	return b
}

func (r *reader) needs() (n needs) {
	for range r.count(9) {
		n.deps = append(n.deps, dependency{r.u64(), r.uvarint()})
	}
	n.floor = attune.Version(r.u64())
	for range r.count(8) {
		n.marks = append(n.marks, replica.Mark(r.u64()))
	}
	return n
}

// needsOf is what a member must have before it goes on with what is decided here, or
// is asked from here, by now.
func (h *homes) needsOf(to uint64, ops []attune.Op) (n needs) {
	k := h.k
	if !k.causal {
		n.floor = k.replica.Floor()
		for i := range ops {
			n.marks = append(n.marks, k.replica.MarkOf(ops[i].Key.Hash))
		}
		return n
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.peers[to]
	for o, e := range k.vv {
		if o != to && e.seq != 0 && (p == nil || p.vv[o].seq < e.seq) {
			n.deps = append(n.deps, dependency{o, e.seq})
		}
	}
	return n
}

// wait is for needs to be here. What has come once has come for good, so nothing is
// looked at twice.
type wait struct {
	needs
	ops   []attune.Op // whose keys the marks are of
	at    int         // marks before it are here
	ready chan struct{}
}

// covered reports whether all of w is here.
func (h *homes) covered(w *wait) bool {
	if len(w.deps) > 0 {
		h.k.mu.Lock()
		for len(w.deps) > 0 && h.k.seqOf(w.deps[0].origin) >= w.deps[0].seq {
			w.deps = w.deps[1:]
		}
		h.k.mu.Unlock()
	}
	if len(w.deps) > 0 || h.k.replica.Floor() < w.floor {
		return false
	}
	for w.at < len(w.marks) && passed(h.k.replica, w.ops[w.at].Key.Hash, w.marks[w.at]) {
		w.at++
	}
	return w.at == len(w.marks)
}

// await waits until w is here, and reports false if that takes longer than d, 0 for
// ever, or this ends.
func (h *homes) await(w *wait, d time.Duration) bool {
	w.ready = make(chan struct{})
	h.mu.Lock()
	h.waiting.Add(1) // before it is looked at: see progress
	h.waits[w] = struct{}{}
	came := h.covered(w)
	h.mu.Unlock()
	if !came {
		var timeout <-chan time.Time
		if d > 0 {
			t := time.NewTimer(d)
			defer t.Stop()
			timeout = t.C
		}
		select {
		case <-w.ready:
			return true // progress has forgotten it
		case <-timeout:
		case <-h.ctx.Done():
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.waits[w]; !ok {
		return true
	}
	delete(h.waits, w)
	h.waiting.Add(-1)
	return came
}

// progress is told that something came from others. It is called for every frame of
// theirs, and mostly nobody waits.
func (h *homes) progress() {
	if h.waiting.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.waits {
		if h.covered(w) {
			delete(h.waits, w)
			h.waiting.Add(-1)
			close(w.ready)
		}
	}
}

// encode makes the frame of a flight. Called with h.mu.
func (h *homes) encode(f *flight, to uint64, size int) []byte {
	h.ops = h.ops[:0]
	patience := time.Duration(0)
	for _, p := range f.hops {
		for _, i := range p.ops {
			h.ops = append(h.ops, p.trip.call.Ops[i])
		}
		if d := p.trip.deadline; !d.IsZero() {
			if left := max(time.Until(d), time.Millisecond); patience == 0 || left < patience {
				patience = left
			}
		}
	}
	n := h.needsOf(to, h.ops)
	b := make([]byte, 0, size+10*len(n.deps)+8*len(n.marks)+2*len(f.hops)+48)
	b = binary.LittleEndian.AppendUint64(b, f.number)
	b = binary.AppendUvarint(b, uint64(patience/time.Millisecond))
	b = n.append(b)
	b = binary.AppendUvarint(b, uint64(len(f.hops)))
	for _, p := range f.hops {
		b = binary.AppendUvarint(b, uint64(len(p.ops)))
	}
	b = codec.AppendOps(b, h.ops)
	clear(h.ops)
	return b
}

// asker is one process of a member. The numbers of its frames only grow.
type asker struct{ id, nonce uint64 }

// forwarded is a FORWARD frame.
type forwarded struct {
	number   uint64
	patience time.Duration
	came     time.Time
	needs    needs
	hops     []int // ops of each
	ops      []attune.Op
	spans    []attune.SpanContext // of each hop, if any of them is traced
}

// parseForward reads a FORWARD frame, but for the hashes of keys.
func parseForward(body []byte) (f *forwarded, ok bool) {
	r := reader{b: body}
	f = &forwarded{number: r.u64()}
	// A day is for ever, too.
	f.patience = time.Duration(min(r.uvarint(), 24*3600*1000)) * time.Millisecond
	f.needs = r.needs()
	left := 0
	for range r.count(1) {
		n := r.uvarint()
		if n == 0 || n > uint64(len(body)) {
			return nil, false
		}
		left += int(n)
		f.hops = append(f.hops, int(n))
	}
	if r.bad {
		return nil, false
	}
	var err error
	if f.ops, err = codec.DecodeOps(r.b, nil); err != nil || len(f.ops) != left || left == 0 {
		return nil, false
	}
	for i := range f.ops {
		op := &f.ops[i]
		if len(op.Key.Text) == 0 || !homed(op) {
			return nil, false
		}
		if n := len(op.Value); n >= kvadapter.Large && n < len(body)/2 {
			op.Value = bytes.Clone(op.Value) // the store keeps it, and would keep the frame
		}
	}
	return f, len(f.needs.marks) == 0 || len(f.needs.marks) == len(f.ops)
}

// frame takes what a member sent, to any part of the engine.
func (h *homes) frame(from uint64, kind byte, body []byte) {
	switch kind {
	case frameForward, frameAnswer, frameTrace:
		h.k.mu.Lock()
		drops := h.k.cut.drops(from, kind)
		h.k.mu.Unlock()
		switch {
		case drops:
		case kind == frameForward:
			h.forward(from, body)
		case kind == frameTrace:
			h.announced(from, body)
		default:
			h.answered(from, body)
		}
	default:
		h.k.frame(from, kind, body)
		h.progress()
	}
}

// forward takes a FORWARD frame. One whose number is not larger than the newest of
// its sender was here before or was overtaken: it must not be carried out again, nor
// after the others. Its sender will say that nobody knows.
func (h *homes) forward(from uint64, body []byte) {
	f, ok := parseForward(body)
	if !ok {
		h.k.log.Warn("a peer sent ops that cannot be read: are all controllers of one version?")
		return
	}
	f.came = time.Now()
	for i := range f.ops {
		f.ops[i].Key.Hash = h.k.replica.Hash(f.ops[i].Key.Text)
	}
	h.mu.Lock()
	who := asker{from, f.number >> numberBits}
	if f.number <= h.newest[who] {
		h.mu.Unlock()
		return
	}
	h.newest[who] = f.number
	f.spans = h.spansOf(who, f)
	if h.closed || h.busy[from] >= maxFrames {
		h.counts.refused += uint64(len(f.ops))
		h.mu.Unlock()
		h.answer(from, f, make([]bool, len(f.hops)), nil)
		return
	}
	h.busy[from]++
	h.spawn(func() { h.carryOut(from, f) })
	h.mu.Unlock()
}

// carryOut decides the ops of a frame, as if they were a Call of this controller's,
// and answers. Frames may overtake each other: what must keep its order is in one. It
// does not ask whose keys they are: if members disagree about that, the sender's word
// is as good.
func (h *homes) carryOut(from uint64, f *forwarded) {
	traces := h.tracesOf(f)
	accepted := h.accept(f)
	traces.accepted(accepted)
	c := &attune.Call{Ctx: h.work, Ops: f.ops}
	if f.patience > 0 {
		c.Deadline = f.came.Add(f.patience)
	}
	if slices.Contains(accepted, false) {
		c.Ops = nil
		at := 0
		for i, n := range f.hops {
			if accepted[i] {
				c.Ops = append(c.Ops, f.ops[at:at+n]...)
			}
			at += n
		}
	}
	c.Res = make([]attune.Result, len(c.Ops))
	if len(c.Ops) > 0 && (h.room == nil || h.room(c)) {
		h.decide(c, 0, len(c.Ops))
		traces.ended("decide", "decided, stamped and applied here")
		acked := make(chan struct{})
		c.Done = func() { close(acked) }
		if h.k.await(c) {
			select {
			case <-acked:
				traces.ended("acks", "those have it that must")
			case <-h.work.Done():
				return
			}
		}
	}
	h.mu.Lock()
	if h.busy[from]--; h.busy[from] == 0 {
		delete(h.busy, from)
	}
	h.counts.served += uint64(len(c.Ops))
	h.counts.refused += uint64(len(f.ops) - len(c.Ops))
	h.mu.Unlock()
	h.answer(from, f, accepted, c)
	traces.end("")
}

// accept reports of each hop of a frame whether it may be decided here. All of it
// may, mostly: the changes it needs come by another connection at about the same
// time. To decide without them would take from a client what it has just written:
// it is better off if its own controller decides.
func (h *homes) accept(f *forwarded) []bool {
	accepted := make([]bool, len(f.hops))
	h.k.mu.Lock()
	serves := h.k.serves()
	h.k.mu.Unlock()
	left := f.patience - time.Since(f.came)
	if !serves || f.patience > 0 && left <= 0 || h.ctx.Err() != nil {
		return accepted
	}
	most := behindMost
	if f.patience > 0 {
		most = min(most, max(left/2, 1))
	}
	w := wait{needs: f.needs, ops: f.ops}
	all := h.covered(&w) || h.await(&w, most)
	if !all && (h.ctx.Err() != nil || len(w.deps) > 0 || h.k.replica.Floor() < w.floor) {
		return accepted
	}
	at := 0
	for i, n := range f.hops {
		accepted[i] = true
		for j := at; j < at+n && !all; j++ {
			accepted[i] = accepted[i] && passed(h.k.replica, f.ops[j].Key.Hash, f.needs.marks[j])
		}
		at += n
	}
	return accepted
}

// answer tells a member what became of its frame. c has the ops that were carried
// out and their results.
func (h *homes) answer(to uint64, f *forwarded, accepted []bool, c *attune.Call) {
	var n needs
	var res []attune.Result
	if c != nil && len(c.Ops) > 0 {
		n, res = h.needsOf(to, c.Ops), c.Res
	}
	b := make([]byte, 0, 48+10*len(n.deps)+8*len(n.marks)+len(accepted)+40*len(res))
	b = binary.LittleEndian.AppendUint64(b, f.number)
	b = n.append(b)
	b = binary.AppendUvarint(b, uint64(len(accepted)))
	for _, ok := range accepted {
		if ok {
			b = append(b, hopDone)
		} else {
			b = append(b, hopRefused)
		}
	}
	// Not sent, it is as if it were lost.
	h.k.world.send(to, cluster.Calls, frameAnswer, codec.AppendResults(b, res))
}

// answered takes an ANSWER frame.
func (h *homes) answered(from uint64, body []byte) {
	r := reader{b: body}
	number := r.u64()
	w := wait{needs: r.needs()}
	outcomes := r.take(r.uvarint())
	if r.bad {
		return
	}
	h.mu.Lock()
	rt := h.routes[from]
	at := -1
	if rt != nil {
		at = slices.IndexFunc(rt.flights, func(f *flight) bool { return f.number == number })
	}
	if at < 0 {
		h.mu.Unlock()
		return
	}
	f := rt.flights[at]
	rt.flights = slices.Delete(rt.flights, at, at+1)
	var done []*hop
	total, ok := 0, len(outcomes) == len(f.hops)
	for i, p := range f.hops {
		if !ok {
			break
		}
		if !p.done && p.trip.call.Trace != nil {
			p.trip.call.Trace.Back(p.span, "answered by "+h.k.nameOf(from))
		}
		switch outcomes[i] {
		case hopDone:
			done = append(done, p)
			total += len(p.ops)
		case hopRefused:
		default:
			ok = false
		}
	}
	res := make([]attune.Result, total)
	ok = ok && (len(w.marks) == 0 || len(w.marks) == total) && codec.DecodeResults(r.b, res) == nil
	// Of a Call that was given up meanwhile, the ops are somebody else's.
	var until time.Time // the latest deadline
	given, forever := 0, false
	for i, p := range f.hops {
		switch {
		case !ok:
			h.lost(p)
		case outcomes[i] == hopRefused:
			h.elsewhere(p)
		case p.done:
			given++
		case p.trip.deadline.IsZero():
			forever = true
		case until.Before(p.trip.deadline):
			until = p.trip.deadline
		}
	}
	if forever {
		until = time.Time{}
	}
	if ok && given < len(done) && len(w.marks) > 0 {
		w.ops = make([]attune.Op, 0, total)
		for _, p := range done {
			for _, i := range p.ops {
				op := attune.Op{}
				if !p.done {
					op.Key.Hash = p.trip.call.Ops[i].Key.Hash
				} else {
					w.marks[len(w.ops)] = 0
				}
				w.ops = append(w.ops, op)
			}
		}
	}
	h.launch(rt)
	h.unlock()
	switch {
	case !ok || given == len(done):
	case h.covered(&w):
		h.deliver(done, res)
	default:
		h.mu.Lock()
		h.spawn(func() { h.visible(&w, until, done, res) })
		h.mu.Unlock()
	}
}

// visible delivers results when what they tell of has come here, too, so that a read
// after them sees it. At the causal level they are of no use before, and fail at their
// deadline; at the eventual level one that comes later is no lie.
func (h *homes) visible(w *wait, until time.Time, done []*hop, res []attune.Result) {
	limit := time.Duration(0)
	if !until.IsZero() {
		limit = max(time.Until(until), 1)
	}
	if !h.k.causal && (limit == 0 || limit > arrival) {
		limit = arrival
	}
	if !h.await(w, limit) {
		if h.k.causal {
			h.mu.Lock()
			for _, p := range done {
				if !p.done {
					h.fail(p, errUnseen)
				}
			}
			h.unlock()
			return
		}
		// What the client writes next must be newer all the same.
		now := h.k.clock.mono()
		h.k.mu.Lock()
		for _, m := range w.marks {
			h.k.observe(m.Version(), now)
		}
		h.k.mu.Unlock()
	}
	h.deliver(done, res)
}

// deliver hands results to those who wait for them.
func (h *homes) deliver(done []*hop, res []attune.Result) {
	h.mu.Lock()
	defer h.unlock()
	for _, p := range done {
		if !p.done {
			for j, i := range p.ops {
				p.trip.call.Res[i] = res[j]
			}
			if t := p.trip.call.Trace; t != nil {
				t.Ended("arrival", "here is all that the answer depends on")
			}
			h.arrived(p)
		}
		res = res[len(p.ops):]
	}
}
