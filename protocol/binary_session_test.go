package protocol_test

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/protocol"
)

// binSession does what a session does, with a store that knows no replica.
type binSession struct {
	p       protocol.Parser
	r       protocol.Request
	store   *binStore
	trickle bool // parse again after each byte

	in, out  []byte
	skip     int64
	requests []string
	closed   bool
}

func newBinSession(store *binStore) *binSession {
	return &binSession{p: protocol.Parser{MaxItem: 1 << 20}, store: store}
}

func (s *binSession) exchange(packet []byte) (requests []string, replies []byte, closed bool) {
	if s.trickle && len(packet) < 1000 {
		for i := range packet {
			s.feed(packet[i : i+1])
		}
	} else {
		s.feed(packet)
	}
	requests, s.requests = s.requests, nil
	return requests, s.take(), s.closed
}

func (s *binSession) take() []byte {
	out := s.out
	s.out = nil
	return out
}

func (s *binSession) feed(data []byte) {
	s.in = append(s.in, data...)
	for !s.closed {
		drop := min(s.skip, int64(len(s.in)))
		s.in = s.in[drop:]
		if s.skip -= drop; s.skip > 0 || len(s.in) == 0 {
			return
		}
		r := &s.r
		n, err := s.p.Next(s.in, r)
		if err != nil {
			s.closed = true
		} else if n == 0 {
			return
		}
		if r.Body >= 0 {
			whole := n + r.Body + r.Trailer
			if len(s.in) < whole {
				return // and parse it again
			}
			s.p.SetBody(r, s.in[n:n+r.Body], s.in[n+r.Body:whole])
			n = whole
		}
		s.requests = append(s.requests, binDescribe(r))
		s.reply()
		s.skip = r.Skip
		s.in = s.in[n:]
	}
}

func (s *binSession) reply() {
	r := &s.r
	switch r.Kind {
	case protocol.Op:
		res := s.store.do(&r.Op)
		out, value := r.AppendHead(s.out, &res, 0)
		s.out = append(out, value...)
		if value != nil {
			s.out = r.AppendTail(s.out)
		}
	case protocol.Version:
		s.out = r.AppendVersion(s.out, "1.6.18")
	case protocol.Stats:
		var args []string
		for _, a := range r.Args {
			args = append(args, string(a))
		}
		switch strings.Join(args, " ") {
		case "":
			s.out = r.AppendStat(s.out, "pid", "7")
			s.out = r.AppendStat(s.out, "version", "1.6.18")
			s.out = r.AppendStatEnd(s.out)
		case "detail on", "detail off":
			s.out = r.AppendText(s.out, "OK")
		case "detail nosuch":
			s.out = r.AppendText(s.out, "CLIENT_ERROR usage: stats detail on|off|dump")
		case "reset":
			s.out = r.AppendText(s.out, "RESET")
		default:
			s.out = r.AppendText(s.out, "ERROR")
		}
	case protocol.Quit:
		s.closed = true
		s.out = r.AppendReply(s.out)
	default:
		s.out = r.AppendReply(s.out)
	}
}

// binDescribe tells what the parser understood.
func binDescribe(r *protocol.Request) string {
	var b strings.Builder
	switch r.Kind {
	case protocol.Op:
		op := &r.Op
		fmt.Fprintf(&b, "%s", [...]string{"get", "set", "add", "replace", "append", "prepend", "delete", "incr", "decr", "touch", "flush"}[op.Verb])
		if op.Key.Text != nil && op.Verb != attune.Flush {
			fmt.Fprintf(&b, " %s", binQuote(op.Key.Text))
		}
		for _, m := range []struct {
			bit  attune.Mode
			text string
		}{
			{attune.WantValue, "value"},
			{attune.IfCAS, fmt.Sprintf("compare=%d", op.Compare)},
			{attune.Retime, "retime"},
			{attune.Vivify, fmt.Sprintf("initial=%d ttl=%d", op.Initial, op.VivifyTTL)},
		} {
			if op.Mode.Has(m.bit) {
				fmt.Fprintf(&b, " %s", m.text)
			}
		}
		if op.Flags != 0 {
			fmt.Fprintf(&b, " flags=%#x", op.Flags)
		}
		if op.Exptime != 0 {
			fmt.Fprintf(&b, " exptime=%d", op.Exptime)
		}
		if op.Delta != 0 {
			fmt.Fprintf(&b, " delta=%d", op.Delta)
		}
		if r.Body >= 0 {
			fmt.Fprintf(&b, " %s", binQuote(op.Value))
		}
	default:
		fmt.Fprintf(&b, "%s", map[protocol.Kind]string{protocol.Reply: "reply", protocol.Noop: "noop",
			protocol.Version: "version", protocol.Stats: "stats", protocol.Quit: "quit"}[r.Kind])
		for _, a := range r.Args {
			fmt.Fprintf(&b, " %s", binQuote(a))
		}
	}
	if r.TooLarge {
		b.WriteString(" too large")
	}
	if r.Skip > 0 {
		fmt.Fprintf(&b, " skip=%d", r.Skip)
	}
	return b.String()
}

// binNow is the clock of the tests: 2026-01-01 UTC, in unix milliseconds.
const binNow = 1767225600_000

// binStore is the least that can execute an Op.
type binStore struct {
	items map[string]attune.Item
	clock attune.Version
}

func newBinStore() *binStore { return &binStore{items: make(map[string]attune.Item)} }

func (s *binStore) do(op *attune.Op) attune.Result {
	if op.Verb == attune.Flush {
		if op.Exptime == 0 {
			clear(s.items)
		}
		return attune.Result{Status: attune.Flushed}
	}
	key := string(op.Key.Text)
	cur := s.items[key]
	c, res := op.Decide(&cur, binNow, nil)
	switch {
	case c.None():
		return res
	case len(c.Item.Value) > 1<<20:
		return attune.Result{Status: attune.TooLarge}
	}
	s.clock++
	c.Stamp(s.clock)
	res.Stamped(&c)
	switch {
	case c.Item.Deleted:
		delete(s.items, key)
		return res
	case c.Item.Stored == s.clock:
		c.Item.Value = bytes.Clone(c.Item.Value)
	default:
		c.Item.Value = cur.Value
	}
	s.items[key] = c.Item
	return res
}
