package controller

import (
	"errors"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/protocol"
	"github.com/attunekv/attune/replica"
)

// asked is what a session has asked the engine for.
type asked uint8

const (
	askedNothing asked = iota
	askedBarrier       // for the reads received so far
	askedFetch         // of bytes for the current read, and for others behind it
	askedRecover       // of the bytes of the current read
	askedLease         // the write that the current read turned out to be
	askedWrites        // those of the batch that stand together
	askedFlush         // of one shard
)

// isRead reports whether op is answered by the local replica behind a barrier.
// A lease may turn out to need a write; see read.
func isRead(op *attune.Op) bool {
	return op.Verb == attune.Get && !op.Mode.Has(attune.Retime)
}

// answered takes note of an answer that came later. What was asked for a read
// the read takes itself, when run calls it again.
func (s *session) answered() {
	asked := s.asked
	s.asked = askedNothing
	switch asked {
	case askedBarrier:
		s.passed()
	case askedFetch:
		if t := s.call.Trace; t != nil {
			t.Ended("store get", "the store has answered")
		}
	case askedRecover:
		if t := s.call.Trace; t != nil {
			t.Ended("peer get", "the others were asked for its bytes")
		}
		s.got = asked
	case askedLease:
		s.wrote()
		s.got = asked
	case askedWrites:
		s.wrote()
		s.opsToTell = len(s.work.ops)
	case askedFlush:
		s.wrote()
		s.flushedOne()
	}
}

// limit sets when the engine gives up what it is asked next.
func (s *session) limit(sh *shard) {
	if !sh.alone {
		s.call.Deadline = s.deadline(sh)
	}
}

// deadline is when to give up what sh is asked now; zero is never.
func (s *session) deadline(sh *shard) time.Time {
	d := s.conf.OpTimeout
	switch {
	case d == 0:
		return time.Time{}
	case sh.remote:
		// Others that this turn served may have taken their time: it is longer where
		// bytes go to a backend.
		return time.Now().Add(d)
	}
	return s.turn.Add(d)
}

// read answers one read, unless it has to ask the engine: then it is called
// again.
func (s *session) read(r *protocol.Request) {
	op := &r.Op
	sh := s.node.route(&op.Key)
	if s.got == askedLease {
		s.got = askedNothing
		s.tellLease(r)
		return
	}
	item, err := s.look(sh, op)
	if s.asked != askedNothing {
		return
	}
	if err != nil {
		s.tell(r, &attune.Result{Status: attune.Failed, Err: err})
		return
	}
	change, res := op.Decide(&item, s.now, nil)
	if !change.None() {
		// The reader wins a lease or creates the item: that is a write, and is
		// decided where writes are.
		s.used.fetched, s.used.accessed = item.Fetched, item.Accessed
		s.work.ops = append(s.work.ops[:0], *op)
		if s.execute(sh, askedLease) {
			s.tellLease(r)
		}
		return
	}
	if res.Status == attune.Miss && item.Version != 0 {
		s.tally.add(getExpired, 1)
	}
	s.tell(r, &res)
}

// tellLease answers a read that was a write.
func (s *session) tellLease(r *protocol.Request) {
	res := &s.work.res[0]
	if !res.Absent {
		// The engine read the item once more: what the reply tells of its use is
		// from before this command.
		res.Item.Fetched, res.Item.Accessed = s.used.fetched, s.used.accessed
	}
	s.tell(r, res)
}

// look gets the item a read asks for: the zero Item if there is none, or if the
// engine was asked and answers later.
func (s *session) look(sh *shard, op *attune.Op) (attune.Item, error) {
	if s.got == askedRecover {
		s.got = askedNothing
		return s.work.res[0].Item, s.call.Err
	}
	if !s.barrier {
		if s.barred == nil {
			s.limit(sh)
			if !sh.engine.Barrier(&s.call) {
				s.asked = askedBarrier
				return attune.Item{}, nil
			}
			if s.passed(); !sh.alone {
				s.now = s.node.now() // the barrier may have moved it, and what it is compared with
			}
		}
		if s.barred != nil {
			return attune.Item{}, s.barred
		}
	}
	bump := !op.Mode.Has(attune.NoBump)
	if !op.NeedsValue() {
		return sh.replica.Peek(op.Key, bump), nil
	}
	var item attune.Item
	var err error
	if sh.remote {
		for here := false; ; {
			if item, here, err = s.here(sh, op, bump); here {
				break
			}
			if s.fetchAhead(sh) {
				return attune.Item{}, nil
			}
		}
	} else {
		item, err = sh.replica.Get(s.call.Ctx, op.Key, s.work.value, bump)
		// A Large one is the store's own memory: nothing may be read into it.
		if len(item.Value) < kvadapter.Large && cap(item.Value) > cap(s.work.value) {
			s.work.value = item.Value[:0]
		}
	}
	if errors.Is(err, replica.ErrGone) || errors.Is(err, kvadapter.ErrUnavailable) && sh.peers {
		return s.retrieve(sh, op, item)
	}
	return item, err
}

// passed takes note of what came of a barrier. One that failed is not tried
// again for the reads that were received with it: in a pipeline, each would wait
// as long as the first.
func (s *session) passed() {
	s.barred = s.call.Err
	s.barrier = s.barred == nil
}

// retrieve has the engine find the bytes of an item that the replica has lost.
func (s *session) retrieve(sh *shard, op *attune.Op, lost attune.Item) (attune.Item, error) {
	if len(s.work.res) == 0 {
		s.work.res = append(s.work.res, attune.Result{})
	}
	s.call.Ops, s.call.Res = nil, s.work.res[:1]
	s.limit(sh)
	if !sh.engine.Recover(&s.call, op.Key, lost) {
		s.asked = askedRecover
		return attune.Item{}, nil
	}
	return s.work.res[0].Item, s.call.Err
}

// here gets the item of the current read if it need not be fetched, or was. Of
// later reads no more than bytes were fetched with it: each sees what the index says
// when its turn comes, so they see things in order.
func (s *session) here(sh *shard, op *attune.Op, bump bool) (item attune.Item, ok bool, err error) {
	a := &s.work.ahead
	var none replica.Got
	got := &none
	if i := a.slot[s.next]; i > 0 {
		got = &a.got[i-1]
	}
	item, ok, err = sh.replica.Here(op.Key, got, bump)
	if !ok && a.rounds == fetchRounds {
		ok, err = true, replica.ErrBusy
	}
	if ok {
		a.rounds = 0
	}
	return item, ok, err
}

// fetchRounds is how often the bytes of a read are fetched, if its key is written
// each time before they come.
const fetchRounds = 64

// fetchAhead asks for the value that this read needs, and for those behind it, up to
// the next write or until they are worth a reply. False: it needs none any more.
func (s *session) fetchAhead(sh *shard) bool {
	a := &s.work.ahead
	rounds := a.rounds
	a.forget()
	a.rounds = rounds + 1
	size := 0 // what a client that does not read would make this session hold
	for i := s.next; i < s.n && size < highWater; i++ {
		r := &s.work.batch[i]
		if r.Kind != protocol.Op {
			continue
		}
		if !isRead(&r.Op) {
			break
		}
		var got replica.Got
		if r.Op.NeedsValue() && s.node.route(&r.Op.Key) == sh && sh.replica.Lacks(r.Op.Key, &got) {
			size += got.Size()
			a.keys, a.got = append(a.keys, r.Op.Key), append(a.got, got)
			a.slot[i] = uint8(len(a.keys))
		} else if i == s.next {
			return false // they have come by another way since
		}
	}
	a.deadline, a.done = s.deadline(sh), s.call.Done
	s.asked = askedFetch
	sh.fetch.add(a)
	return true
}

// write executes the writes of the batch from next on that one shard serves.
// Answers that need no engine may stand between them; a read may not.
func (s *session) write() {
	var sh *shard
	s.work.ops = s.work.ops[:0]
	for i := s.next; i < s.n; i++ {
		r := &s.work.batch[i]
		if r.Kind == protocol.Reply || r.Kind == protocol.Noop {
			continue
		}
		if r.Kind != protocol.Op || isRead(&r.Op) {
			break
		}
		if r.Op.Verb == attune.Flush {
			if sh == nil {
				s.work.ops = append(s.work.ops, r.Op)
				if s.tracer != nil {
					s.weigh(&r.Op, 1)
				}
				s.flushAll()
				return
			}
			break
		}
		if to := s.node.route(&r.Op.Key); sh != nil && to != sh {
			break
		} else {
			sh = to
		}
		s.work.ops = append(s.work.ops, r.Op)
	}
	if s.tracer != nil {
		s.weigh(&s.work.ops[0], len(s.work.ops))
	}
	if s.execute(sh, askedWrites) {
		s.opsToTell = len(s.work.ops)
	}
}

// execute writes s.work.ops to sh, and reports whether the results are in
// s.work.res: if not, they are once what was asked is answered.
func (s *session) execute(sh *shard, what asked) bool {
	for len(s.work.res) < len(s.work.ops) {
		s.work.res = append(s.work.res, attune.Result{})
	}
	s.call.Ops, s.call.Res = s.work.ops, s.work.res[:len(s.work.ops)]
	s.limit(sh)
	if !sh.engine.Write(&s.call) {
		s.asked = what
		return false
	}
	s.wrote()
	return true
}

// wrote cleans up behind a write.
func (s *session) wrote() {
	for i := range s.work.ops {
		s.work.ops[i].Value = nil // it may be Large, and the store's to drop
	}
	s.barrier, s.barred = false, nil
	// Replies count from no earlier than the writes did, or a TTL just set would
	// read back a second longer.
	s.now = s.node.now()
	s.work.ahead.forget() // what was fetched may have changed
}

// flushAll executes the one Flush in s.work.ops on every shard that has not had
// it. It failed if it failed anywhere.
func (s *session) flushAll() {
	for s.flush.shards < len(s.node.shards) {
		if !s.execute(s.node.shards[s.flush.shards], askedFlush) {
			return
		}
		s.flushedOne()
	}
	if s.flush.err != nil {
		s.work.res[0].Status, s.work.res[0].Err = attune.Failed, s.flush.err
	}
	s.flush.shards, s.flush.err = 0, nil
	s.opsToTell = 1
}

// flushedOne takes note that one more shard has answered a flush.
func (s *session) flushedOne() {
	if res := &s.work.res[0]; res.Status == attune.Failed {
		s.flush.err = res.Err
	}
	s.flush.shards++
}
