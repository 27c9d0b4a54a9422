package protocol_test

import (
	"fmt"
	"strconv"
	"strings"
	"time"

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
		case "detail dump":
			s.out = r.AppendText(s.out, "PREFIX a get 1 hit 0 set 0 del 0")
			s.out = r.AppendText(s.out, "END")
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

// binStore is as much of a memcached as the stories need.
type binStore struct {
	items map[string]attune.Item
	cas   uint64
}

func newBinStore() *binStore { return &binStore{items: make(map[string]attune.Item)} }

func (s *binStore) put(key string, value []byte, flags uint32, exptime int64) attune.Item {
	s.cas++
	it := attune.Item{Value: append([]byte(nil), value...), Size: len(value), Flags: flags, Expires: exptime, Version: attune.Version(s.cas), CAS: s.cas}
	s.items[key] = it
	return it
}

func (s *binStore) do(op *attune.Op) attune.Result {
	key := string(op.Key.Text)
	it, found := s.items[key]
	if found && it.Expires > 60*60*24*30 && it.Expires < time.Now().Unix() {
		found = false
	}
	if op.Mode.Has(attune.IfCAS) {
		if found && it.CAS != op.Compare {
			return attune.Result{Status: attune.Exists}
		}
		if !found && op.Verb == attune.Set {
			return attune.Result{Status: attune.NotFound}
		}
	}
	stored := func(value []byte, flags uint32, exptime int64) attune.Result {
		return attune.Result{Status: attune.Stored, Item: s.put(key, value, flags, exptime)}
	}
	switch op.Verb {
	case attune.Get, attune.Touch:
		switch {
		case !found && op.Verb == attune.Get:
			return attune.Result{Status: attune.Miss}
		case !found:
			return attune.Result{Status: attune.NotFound}
		}
		if op.Verb == attune.Touch || op.Mode.Has(attune.Retime) {
			it.Expires = op.Exptime
			s.items[key] = it
		}
		if op.Verb == attune.Touch {
			it.Value = nil
			return attune.Result{Status: attune.Touched, Item: it}
		}
		return attune.Result{Status: attune.Hit, Item: it}
	case attune.Set:
		return stored(op.Value, op.Flags, op.Exptime)
	case attune.Add, attune.Replace:
		if found != (op.Verb == attune.Replace) {
			return attune.Result{Status: attune.NotStored}
		}
		return stored(op.Value, op.Flags, op.Exptime)
	case attune.Append, attune.Prepend:
		sum := string(it.Value) + string(op.Value)
		if op.Verb == attune.Prepend {
			sum = string(op.Value) + string(it.Value)
		}
		switch {
		case !found:
			return attune.Result{Status: attune.NotStored}
		case len(sum) > 1<<20:
			return attune.Result{Status: attune.TooLarge}
		}
		return stored([]byte(sum), it.Flags, it.Expires)
	case attune.Delete:
		if !found {
			return attune.Result{Status: attune.NotFound}
		}
		delete(s.items, key)
		return attune.Result{Status: attune.Deleted}
	case attune.Incr, attune.Decr:
		number := op.Initial
		switch {
		case !found && !op.Mode.Has(attune.Vivify):
			return attune.Result{Status: attune.NotFound}
		case !found:
			it = attune.Item{Expires: op.VivifyTTL}
		default:
			old, err := strconv.ParseUint(strings.TrimRight(string(it.Value), " "), 10, 64)
			if err != nil {
				return attune.Result{Status: attune.NonNumeric}
			}
			if number = old + op.Delta; op.Verb == attune.Decr {
				number = old - min(op.Delta, old)
			}
		}
		text := fmt.Sprintf("%-*d", len(it.Value), number)
		return attune.Result{Status: attune.Counted, Number: number, Item: s.put(key, []byte(text), it.Flags, it.Expires)}
	case attune.Flush:
		if op.Exptime == 0 {
			clear(s.items)
		}
		return attune.Result{Status: attune.Flushed}
	}
	panic("unknown verb")
}

