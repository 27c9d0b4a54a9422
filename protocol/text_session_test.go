package protocol_test

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/protocol"
)

// textNow is the clock of the tests: 2026-01-01 UTC, in unix milliseconds.
const textNow = 1767225600_000

// textSession is the smallest session there can be: it hands the parser what
// has arrived and writes down what comes of it.
type textSession struct {
	parser protocol.Parser
	// result answers the next Op.
	result func(op *attune.Op) attune.Result

	in      []byte
	skip    int64
	failed  bool // a key of the current read did
	closed  bool
	log     []string // requests as described, replies as "< " and the bytes
	replies []byte   // all replies, with nothing taken back
}

func newTextSession(maxItem int, result func(op *attune.Op) attune.Result) *textSession {
	return &textSession{parser: protocol.Parser{MaxItem: maxItem}, result: result}
}

// feed is a packet arriving. A command whose block is not whole is parsed again
// when more has come, as sessions may.
func (s *textSession) feed(t testing.TB, data []byte) {
	s.in = append(s.in, data...)
	var r protocol.Request
	for !s.closed {
		drop := min(s.skip, int64(len(s.in)))
		s.in, s.skip = s.in[drop:], s.skip-drop
		if len(s.in) == 0 {
			return
		}
		n, err := s.parser.Next(s.in, &r)
		if n < 0 || n > len(s.in) {
			t.Fatalf("Next consumed %d of %d bytes", n, len(s.in))
		}
		if err != nil {
			if r.Kind != protocol.Reply && r.Kind != protocol.Quit {
				t.Fatalf("closed with a request of kind %d", r.Kind)
			}
			s.closed = true
			s.note("close")
			return
		}
		if n == 0 {
			if len(s.in) >= protocol.MaxLine {
				t.Fatalf("stuck with %d bytes: %.80q", len(s.in), s.in)
			}
			return
		}
		if r.Body >= 0 {
			whole := n + r.Body + r.Trailer
			if len(s.in) < whole {
				return
			}
			s.parser.SetBody(&r, s.in[n:n+r.Body:n+r.Body], s.in[n+r.Body:whole])
			n = whole
		}
		s.execute(&r)
		s.skip = r.Skip
		s.in = s.in[n:]
	}
}

func (s *textSession) execute(r *protocol.Request) {
	if s.failed {
		switch {
		case r.OfRead():
			return
		case r.Kind == protocol.End || r.Undo:
			s.failed = false
			return
		}
	}
	var out []byte
	switch r.Kind {
	case protocol.Op:
		s.note(describe(r))
		res := s.result(&r.Op)
		s.failed = r.OfRead() && res.Status == attune.Failed
		head, value := r.AppendHead(nil, &res, textNow)
		if out = head; value != nil {
			out = r.AppendTail(append(out, value...))
		}
	case protocol.Version:
		s.note("version")
		out = r.AppendVersion(nil, "1.2.3")
	case protocol.Config:
		s.note(describe(r))
		out = r.AppendConfig(nil, 12, []protocol.Server{{Host: "10.0.0.1", Port: "8000"}, {Host: "::1", Port: "8001"}})
	case protocol.Stats:
		s.note(describe(r))
		out = r.AppendStatEnd(r.AppendStat(nil, "pid", "42"))
	case protocol.Shutdown, protocol.Dump:
		s.note(describe(r))
		out = r.AppendText(nil, "controller's")
	default:
		if out = r.AppendReply(nil); len(out) == 0 && r.Kind == protocol.Reply && r.Skip == 0 {
			return // only dropped bytes, in pieces that depend on the packets
		}
		s.note(describe(r))
		s.closed = r.Kind == protocol.Quit
	}
	if len(out) > 0 {
		s.note("< " + escape(out))
		s.replies = append(s.replies, out...)
	}
}

func (s *textSession) note(line string) { s.log = append(s.log, line) }

// escape makes bytes one readable line.
func escape(b []byte) string {
	q := strconv.Quote(string(b))
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// describe writes a request down with all that is not zero.
func describe(r *protocol.Request) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	if r.Kind != protocol.Op {
		names := [...]string{"", "end", "reply", "noop", "version", "stats", "shutdown", "dump", "config", "quit"}
		say("%s", names[r.Kind])
		for _, a := range r.Args {
			say(" %s", escape(a))
		}
	} else {
		op := &r.Op
		verbs := [...]string{"get", "set", "add", "replace", "append", "prepend", "delete", "incr", "decr", "touch", "flush"}
		say("%s", verbs[op.Verb])
		if op.Verb != attune.Flush {
			say(" %s", escape(op.Key.Text))
		}
		modes := [...]string{"value", "ifcas", "choosecas", "retime", "vivify", "lease", "recache", "invalidate", "clear", "nobump", "ifmatch"}
		for i, m := range modes {
			if op.Mode.Has(1 << i) {
				say(" +%s", m)
			}
		}
		number := func(name string, v uint64) {
			if v != 0 {
				say(" %s=%d", name, v)
			}
		}
		signed := func(name string, v int64) {
			if v != 0 {
				say(" %s=%d", name, v)
			}
		}
		number("flags", uint64(op.Flags))
		signed("exptime", op.Exptime)
		signed("vivifyttl", op.VivifyTTL)
		signed("recachettl", op.RecacheTTL)
		number("compare", op.Compare)
		number("cas", op.CAS)
		number("delta", op.Delta)
		number("initial", op.Initial)
		if len(op.Value) > 0 {
			say(" bytes=%s", escape(op.Value))
		}
	}
	for _, mark := range []struct {
		set  bool
		name string
	}{{r.First, "first"}, {r.Undo, "undo"}, {r.TooLarge, "toolarge"}} {
		if mark.set {
			say(" (%s)", mark.name)
		}
	}
	if r.Skip > 0 {
		say(" skip=%d", r.Skip)
	}
	return b.String()
}

// anyResult makes up results for fuzzing: every status in turn.
func anyResult() func(*attune.Op) attune.Result {
	calls := 0
	return func(op *attune.Op) attune.Result {
		calls++
		res := attune.Result{Status: attune.Status(1 + calls%int(attune.Failed)), Number: uint64(calls)}
		res.Item = attune.Item{Value: []byte("v\r\n"), Size: 3, Flags: 7, CAS: uint64(calls % 3), Expires: textNow + 5000}
		res.Stale, res.Won, res.Taken = calls%2 == 0, calls%3 == 0, calls%5 == 0
		if res.Status == attune.Failed {
			res.Err = fmt.Errorf("backend\r\n%d", calls)
		}
		return res
	}
}

// checkSplits parses data whole, byte by byte and, up to every, in two parts
// split at each place, and demands the same requests and replies of all.
func checkSplits(t testing.TB, data []byte, maxItem, every int, result func() func(*attune.Op) attune.Result) {
	t.Helper()
	run := func(parts ...[]byte) []string {
		s := newTextSession(maxItem, result())
		for _, part := range parts {
			s.feed(t, part)
		}
		if n := len(s.replies); n > 0 && !bytes.HasSuffix(s.replies, []byte("\r\n")) {
			t.Fatalf("%q was answered %q", data, s.replies)
		}
		return s.log
	}
	whole := strings.Join(run(data), "\n")
	same := func(how string, log []string) {
		if got := strings.Join(log, "\n"); got != whole {
			t.Fatalf("%q\nparsed whole:\n%s\n\nparsed %s:\n%s", data, whole, how, got)
		}
	}
	single := make([][]byte, len(data))
	for i := range data {
		single[i] = data[i : i+1]
	}
	same("byte by byte", run(single...))
	for i := 1; i < len(data); i += max(1, len(data)/every) {
		same("split at "+strconv.Itoa(i), run(data[:i], data[i:]))
	}
}
