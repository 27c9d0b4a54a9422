package controller

import (
	"sync"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/protocol"
)

const (
	// batchSize is how many commands of a pipeline go to the engine at once.
	batchSize = 32
	// inSize is the input buffer a connection gets while it has bytes to parse.
	// It holds any command whose value is not Large, so only those are read
	// straight into memory of their own.
	inSize = kvadapter.Large + 4<<10
)

// workspace is what a session needs while it has bytes to work on. An idle one
// has none: ten thousand idle connections are a common sight.
type workspace struct {
	in    [inSize]byte
	batch [batchSize]protocol.Request
	reply []byte // becomes out.buf
	value []byte // what a read of the local replica may use

	// The writes of the batch that are executed together: res answers ops.
	ops []attune.Op
	res []attune.Result

	// Reads of the batch fetched together, where one by one would cost a round
	// trip each.
	ahead ahead
}

var workspaces = sync.Pool{New: func() any { return new(workspace) }}

// want is what a session needs next from whoever moves its bytes.
type want uint8

const (
	wantInput  want = iota // everything understood so far is answered
	wantOutput             // too many replies gathered: write them, step again
	wantAnswer             // leave it alone until call.Done is called, then step again
	wantDetach             // a long answer is due: call detached, then step again
	wantClose              // write what is gathered, then close
)

// session is one connection's commands, without the connection: whoever moves
// the bytes puts them where space says, calls received, then step until it wants
// input, and writes what is in out. So a goroutine and an event loop drive the
// same code. It is used by one goroutine at a time.
//
// Where the engine answers later, step stops in the middle of the batch and is
// called again for the same command. It finds what it asked for by then: asking
// leaves nothing on the stack.
type session struct {
	node   *Node
	local  string  // where the client has reached it
	conf   *Config // of this step
	counts *counters
	parser protocol.Parser
	out    output

	call  attune.Call // to the engine, whose it is while asked says so
	asked asked       // and not answered yet
	got   asked       // answered, and not used yet by the current read
	turn  time.Time   // when step was called: deadlines count from it

	work       *workspace // nil while idle
	start, end int        // the unparsed part of work.in
	skip       int64      // bytes to drop before the next command

	// big receives a Large data block directly. Meanwhile the command's line
	// stays where it is in the input buffer, because work.batch[0] points into it.
	big       []byte
	bigFilled int

	// The batch: commands in work.batch, parsed and not answered yet. Their
	// slices point into the input buffer, so the batch is finished before that
	// moves.
	n, next int // parsed, answered

	// Of those before weighed it is known whether they are traced; call.Trace is of the
	// current one, and stays for all to come if it was given by who owns the session.
	tracer  *tracer // nil: none is
	weighed int
	given   bool

	opsToTell int // how many of work.res are still to be told

	now     int64 // the clock that reads and replies go by, unix ms: no older than the barrier
	barrier bool  // passed, and nothing received or written since
	barred  error // the barrier failed, and nothing received or written since
	reply   mark  // where the replies of the current text read begin

	// What the current read found of the item's use, before its lease was written.
	used struct {
		fetched  bool
		accessed int64
	}
	flush struct { // the current one
		shards int   // that have answered
		err    error // of one of them
	}

	failed  bool // the current text read was answered with an error
	closing bool
	// leaving refuses commands: the node drains, and what came before is answered.
	// A session that has refused one is closed, as is one that is still idle at
	// until.
	leaving, refused bool
	until            time.Time
	// detached streams a long answer, with wantDetach.
	detached func(emit func(line []byte) error) error
	tally    tally
}

func newSession(n *Node, c *counters) *session {
	s := &session{node: n, counts: c}
	s.call.Ctx = n.ctx
	s.configure()
	return s
}

// configure goes over to the settings that are in use now.
func (s *session) configure() {
	s.conf = s.node.inUse()
	s.parser.MaxItem = s.conf.MaxItemSize
	s.parser.NoFlush = s.conf.DisableFlush
	s.tracer = s.node.tracer.Load()
}

// space returns where the next received bytes go.
func (s *session) space() []byte {
	if s.big != nil {
		return s.big[s.bigFilled:]
	}
	if s.work == nil {
		s.work = workspaces.Get().(*workspace)
		s.out.buf, s.work.reply = s.work.reply, nil
	}
	if s.start > 0 && s.n == 0 {
		// Nothing points into the buffer between steps, so it may move.
		s.end = copy(s.work.in[:], s.work.in[s.start:s.end])
		s.start = 0
	}
	return s.work.in[s.end:]
}

// received says that n bytes came.
func (s *session) received(n int) {
	s.barrier, s.barred = false, nil
	if s.big != nil {
		s.bigFilled += n
		return
	}
	s.end += n
}

// idle reports whether the session owes its client nothing: no command is half
// received and no reply is unsent.
func (s *session) idle() bool {
	return s.start == s.end && s.big == nil && s.n == 0 && s.skip == 0 && s.out.empty()
}

// leave has an idle session refuse what comes from now on.
func (s *session) leave(now time.Time) { s.leaving, s.until = true, now.Add(lastCall) }

// release gives the workspace back if there is nothing in it.
func (s *session) release() {
	if s.work != nil && s.start == s.end && s.big == nil && s.n == 0 && s.out.size == 0 {
		s.work.reply, s.out.buf = s.out.buf, nil
		s.call.Ops, s.call.Res = nil, nil // they point into it
		workspaces.Put(s.work)
		s.work, s.start, s.end = nil, 0, 0
	}
}

// step parses and executes what was received; now is the time, more or less. It
// calls itself done (wantInput) only when no whole command is left.
func (s *session) step(now time.Time) want {
	if s.work == nil {
		return wantInput
	}
	s.turn = now
	if s.conf != s.node.inUse() {
		s.configure()
	}
	if s.asked != askedNothing {
		s.answered()
	}
	for {
		if w := s.run(); w != wantInput {
			return w
		}
		if s.closing {
			return wantClose
		}
		more, err := s.parse()
		if err != nil {
			s.closing = true
		}
		if s.n == 0 && !more && err == nil {
			if s.refused && s.start == s.end && s.big == nil && s.skip == 0 {
				return wantClose
			}
			return wantInput
		}
	}
}

// parse fills the batch. more is true if it stopped for another reason than a
// lack of bytes. A command whose data block is not there yet is parsed again
// when it is: that is cheaper than remembering half of it.
func (s *session) parse() (more bool, err error) {
	if s.big != nil {
		if s.bigFilled < len(s.big) {
			return false, nil
		}
		r := &s.work.batch[0]
		s.parser.SetBody(r, s.big[:r.Body:r.Body], s.big[r.Body:])
		s.big = nil
		s.n = 1
		return true, nil
	}
	for s.n < batchSize {
		if s.skip > 0 {
			drop := min(s.skip, int64(s.end-s.start))
			s.start += int(drop)
			if s.skip -= drop; s.skip > 0 {
				return false, nil
			}
		}
		if s.start == s.end {
			return false, nil
		}
		r := &s.work.batch[s.n]
		r.Kind = protocol.Quit
		buf := s.work.in[s.start:s.end]
		used, err := s.parser.Next(buf, r)
		if err != nil {
			s.start = s.end
			s.n++ // a Reply to write first, or Quit
			return false, err
		}
		if used == 0 {
			if len(buf) == inSize {
				return false, errLongCommand
			}
			return false, nil
		}
		if r.Body >= 0 {
			whole := used + r.Body + r.Trailer
			switch {
			case len(buf) >= whole:
				value := buf[used : used+r.Body : used+r.Body]
				if r.Body >= kvadapter.Large {
					value = append(make([]byte, 0, r.Body), value...)
				}
				s.parser.SetBody(r, value, buf[used+r.Body:whole])
				used = whole
			case r.Body < kvadapter.Large:
				return false, nil // the buffer has room for it
			case s.n > 0:
				return true, nil // answer the batch first
			default:
				s.big = make([]byte, r.Body+r.Trailer)
				s.bigFilled = copy(s.big, buf[used:])
				s.start = s.end
				return false, nil
			}
		}
		s.start += used
		s.skip = r.Skip
		s.n++
	}
	return true, nil
}

// run executes and answers the batch, in order.
func (s *session) run() want {
	if s.n > 0 {
		s.now = s.node.now() // behind a barrier that was answered later, too
	}
	if s.next == 0 && s.n > 1 {
		s.prefetch()
	}
	for s.next < s.n {
		if s.out.size >= highWater {
			return wantOutput
		}
		r := &s.work.batch[s.next]
		if r.First {
			s.reply = s.out.mark()
		}
		switch {
		case s.failed && r.OfRead() && s.opsToTell == 0:
			// The command was answered with an error: its other keys are moot.
		case s.failed && (r.Kind == protocol.End || r.Undo):
			s.failed = false
		case r.Kind == protocol.Op && s.leaving:
			s.refused = true
			s.tell(r, &attune.Result{Status: attune.Failed, Err: errLeaving})
		case r.Kind == protocol.Op && isRead(&r.Op):
			if s.tracer != nil {
				s.weigh(&r.Op, 1)
			}
			if s.read(r); s.asked != askedNothing {
				return wantAnswer
			}
		case r.Kind == protocol.Op:
			if s.opsToTell == 0 {
				if s.write(); s.asked != askedNothing {
					return wantAnswer
				}
			}
			s.tell(r, &s.work.res[len(s.work.ops)-s.opsToTell])
			s.opsToTell--
		default:
			if s.control(r); s.detached != nil {
				s.next++
				return wantDetach
			}
		}
		s.next++
	}
	if s.n > 0 {
		s.n, s.next, s.weighed = 0, 0, 0
		s.work.ahead.forget()
	}
	return wantInput
}

// prefetch asks for the memory that the commands of the batch will touch, so that
// they do not wait for it one after the other.
func (s *session) prefetch() {
	for i := range s.n {
		r := &s.work.batch[i]
		if r.Kind == protocol.Op && r.Op.Verb != attune.Flush {
			s.node.route(&r.Op.Key).replica.Prefetch(r.Op.Key)
		}
	}
}

// tell appends the reply to an Op and counts it. The error of one key of a text
// read stands in place of everything the command had to say, because a client
// that has read an error line reads no further.
func (s *session) tell(r *protocol.Request, res *attune.Result) {
	s.tally.op(r, res)
	if s.call.Trace != nil && !s.given {
		s.traced(res)
	}
	if r.OfRead() {
		if s.failed {
			return
		}
		if s.failed = res.Status == attune.Failed; s.failed {
			s.out.undo(s.reply)
		}
	}
	buf, value := r.AppendHead(s.out.buf, res, s.now)
	r.Op.Value, res.Item.Value = nil, nil // as in execute
	if value == nil {
		s.out.grew(buf)
		return
	}
	if len(value) < kvadapter.Large {
		s.out.grew(r.AppendTail(append(buf, value...)))
		return
	}
	s.out.grew(buf)
	s.out.refer(value)
	s.out.grew(r.AppendTail(s.out.buf))
}

// control answers a command that is no Op.
func (s *session) control(r *protocol.Request) {
	switch r.Kind {
	case protocol.Reply:
		if r.TooLarge {
			s.tally.op(r, nil)
		}
		if r.Undo {
			s.out.undo(s.reply)
		}
		s.out.grew(r.AppendReply(s.out.buf))
	case protocol.End, protocol.Noop:
		s.out.grew(r.AppendReply(s.out.buf))
	case protocol.Version:
		s.out.grew(r.AppendVersion(s.out.buf, wireVersion))
	case protocol.Stats:
		s.stats(r)
	case protocol.Shutdown:
		s.shutdown(r)
	case protocol.Dump:
		s.dump(r)
	case protocol.Config:
		s.config(r)
	case protocol.Quit:
		s.closing = true
		s.n = s.next + 1 // what was sent after it is not executed
		s.out.grew(r.AppendReply(s.out.buf))
	}
}
