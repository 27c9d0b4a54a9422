package controller

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"
)

// bench is a session without a connection.
type bench struct {
	s   *session
	t   testing.TB
	out []byte
	now time.Time // as a loop reads it, once for many sessions
	// answer is called when the session waits for the engine, and has it answer.
	answer func()
}

func newBench(t testing.TB, cfg Config) *bench {
	return &bench{s: newSession(start(t, cfg), new(counters)), t: t, now: time.Now()}
}

// feed gives the session bytes and takes what it answers, as a driver would.
func (b *bench) feed(in string) {
	b.out = b.out[:0]
	for {
		n := copy(b.s.space(), in)
		in = in[n:]
		b.s.received(n)
		for {
			w := b.s.step(b.now)
			if w == wantAnswer {
				b.answer()
				continue
			}
			if b.s.out.size > 0 {
				for _, seg := range b.s.out.take() {
					b.out = append(b.out, seg...)
				}
				b.s.out.release()
			}
			if w == wantInput {
				break
			}
			if w != wantOutput {
				b.t.Fatalf("the session wants %d", w)
			}
		}
		if len(in) == 0 {
			break
		}
	}
	b.s.release()
}

// request is one of the hot path. A reply that is "" is not compared.
type request struct{ name, before, in, reply string }

func requests() []request {
	value := strings.Repeat("v", 100)
	text := "set key 0 0 100\r\n" + value + "\r\nset n 0 0 5\r\n10000\r\n"
	packet := func(op byte, extras int, key, value string) string {
		p := make([]byte, 24+extras)
		p[0], p[1], p[4] = 0x80, op, byte(extras)
		binary.BigEndian.PutUint16(p[2:], uint16(len(key)))
		binary.BigEndian.PutUint32(p[8:], uint32(extras+len(key)+len(value)))
		return string(p) + key + value
	}
	set := packet(0x01, 8, "key", value)
	return []request{
		{"get", text, "get key\r\n", "VALUE key 0 100\r\n" + value + "\r\nEND\r\n"},
		{"gets-3", text, "gets key key none\r\n", ""},
		{"get-miss", text, "get none\r\n", "END\r\n"},
		{"set", text, "set key 0 0 100\r\n" + value + "\r\n", "STORED\r\n"},
		{"mg", text, "mg key s v f t k\r\n", "VA 100 s100 f0 t-1 kkey\r\n" + value + "\r\n"},
		{"mg-miss", text, "mg none v\r\n", "EN\r\n"},
		{"ms", text, "ms key 100 T0 F0\r\n" + value + "\r\n", "HD\r\n"},
		{"delete-miss", text, "delete none\r\n", "NOT_FOUND\r\n"},
		{"touch", text, "touch key 0\r\n", "TOUCHED\r\n"},
		{"incr", text, "incr n 1\r\n", ""},
		{"binary-get", set, packet(0x00, 0, "key", ""), ""},
		{"binary-set", "", set, ""},
	}
}

// TestHotPathDoesNotAllocate: nothing per request, from parsing to the reply,
// the store and the counters included.
func TestHotPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools drop things")
	}
	for _, r := range requests() {
		t.Run(r.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.TraceSample = 1 // without an endpoint it costs nothing
			b := newBench(t, cfg)
			b.feed(r.before)
			if b.feed(r.in); r.reply != "" && string(b.out) != r.reply {
				t.Fatalf("%q, want %q", b.out, r.reply)
			}
			b.feed(r.in)
			// A collection may empty the pool now and then: hence not exactly 0.
			if n := testing.AllocsPerRun(2000, func() { b.feed(r.in) }); n >= 0.5 {
				t.Errorf("%v allocations per request", n)
			}
		})
	}
}

// A session that leaves refuses all it is sent, to the end, and closes.
func TestLeavingSessionRefuses(t *testing.T) {
	const refusal = "SERVER_ERROR not ready: this controller is stopping\r\n"
	large := strings.Repeat("v", 100_000)
	for _, c := range []struct{ name, in, reply string }{
		{"set", "set k 0 0 1\r\n1\r\n", refusal},
		{"meta", "ms k 1\r\n1\r\nmg k v\r\n", refusal + refusal},
		{"read", "get k l m\r\n", refusal},
		{"pipeline", strings.Repeat("incr n 1\r\n", 3*batchSize), strings.Repeat(refusal, 3*batchSize)},
		{"large", "set k 0 0 100000\r\n" + large + "\r\n", refusal},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, testConfig())
			b.feed("set k 0 0 3\r\nold\r\nset n 0 0 1\r\n0\r\n")
			b.s.leave(b.now)
			var out []byte
			w := wantInput
			for in := c.in; len(in) > 0; {
				n := copy(b.s.space(), in)
				in = in[n:]
				b.s.received(n)
				if w = b.s.step(b.now); w == wantClose && len(in) > 0 {
					t.Fatalf("it closes with %d bytes to come", len(in))
				}
				for _, seg := range b.s.out.take() {
					out = append(out, seg...)
				}
				b.s.out.release()
			}
			if string(out) != c.reply || w != wantClose {
				t.Errorf("%.200q, then %d; want %.200q, then %d", out, w, c.reply, wantClose)
			}
			b.s = newSession(b.s.node, new(counters))
			b.feed("get k n\r\n")
			if want := "VALUE k 0 3\r\nold\r\nVALUE n 0 1\r\n0\r\nEND\r\n"; string(b.out) != want {
				t.Errorf("afterwards there is %q, want %q", b.out, want)
			}
		})
	}
}

func BenchmarkSession(b *testing.B) {
	for _, depth := range []int{1, 16} {
		for _, r := range requests() {
			b.Run(fmt.Sprintf("%s/depth=%d", r.name, depth), func(b *testing.B) {
				s := newBench(b, testConfig())
				s.feed(r.before)
				in := strings.Repeat(r.in, depth)
				s.feed(in)
				b.ReportAllocs()
				for n := 0; n < b.N; n += depth {
					s.feed(in)
				}
			})
		}
	}
}

// TestOutputUndo takes back part of an output that was split by references.
func TestOutputUndo(t *testing.T) {
	large := bytes.Repeat([]byte("L"), 40_000)
	add := func(o *output, s string) { o.grew(append(o.buf, s...)) }
	all := func(o *output) string {
		var b strings.Builder
		for _, seg := range o.take() {
			b.Write(seg)
		}
		o.release()
		return b.String()
	}
	var o output
	add(&o, "one ")
	o.refer(large)
	add(&o, "two ")
	m := o.mark()
	add(&o, "three ")
	o.refer(large)
	add(&o, "four")
	o.undo(m)
	add(&o, "five")
	if want := "one " + string(large) + "two five"; o.size != len(want) || all(&o) != want {
		t.Error("undo behind a reference took back something else")
	}

	add(&o, "one ")
	m = o.mark()
	add(&o, "two ")
	if got := all(&o); got != "one two " {
		t.Errorf("%q", got)
	}
	add(&o, "three ")
	o.refer(large)
	o.undo(m) // what was sent stays sent, the rest goes
	add(&o, "four")
	if got := all(&o); got != "four" || !o.empty() {
		t.Errorf("%.40q", got)
	}
}

// TestIdleSessionHoldsNothing: whatever it did before.
func TestIdleSessionHoldsNothing(t *testing.T) {
	b := newBench(t, testConfig())
	b.feed("set s 0 0 1\r\nx\r\nset big 0 0 50000\r\n" + string(pattern(50_000, 1)) + "\r\nget s big s big none\r\nmg big v\r\n")
	b.feed("get " + strings.Repeat("s big ", 40) + "\r\nset big 0 0 60000\r\n" + string(pattern(60_000, 1)) + "\r\n")
	if s := b.s; !s.idle() || s.work != nil || s.big != nil || s.out.buf != nil || len(s.out.segs) > 0 {
		t.Errorf("idle %v, workspace %v, big %d, reply buffer %d", s.idle(), s.work != nil, len(s.big), cap(s.out.buf))
	}
	for _, seg := range b.s.out.segs[:cap(b.s.out.segs)] {
		if seg != nil {
			t.Errorf("pins %d bytes", len(seg))
		}
	}
	b.feed("get s")
	if b.s.idle() {
		t.Error("idle in the middle of a command")
	}
}
