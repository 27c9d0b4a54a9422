package gossip

import (
	"encoding/binary"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
)

// A TRACE frame goes before the FORWARD frame of the same number, if that has hops of
// traced Calls. So who does not know of it, as of an older release, drops it and nothing
// else. It is
//
//	number u64 | of each hop: trace 16 bytes, span 8 bytes, all 0 for one that is not traced

// announced is a TRACE frame that has come.
type announced struct {
	number uint64
	spans  []byte
}

const spanLen = 16 + 8

// announce tells a home which hops of a flight are traced. Called with h.mu.
func (h *homes) announce(f *flight, to uint64) {
	var b []byte
	for i, p := range f.hops {
		t := p.trip.call.Trace
		if t == nil {
			continue
		}
		span := t.NewSpan()
		p.span = span.Span
		if !t.Kept() {
			continue
		}
		if b == nil {
			b = make([]byte, 8+spanLen*len(f.hops))
			binary.LittleEndian.PutUint64(b, f.number)
		}
		at := b[8+spanLen*i:]
		copy(at[copy(at, span.Trace[:]):], span.Span[:])
	}
	if b != nil {
		h.k.world.send(to, cluster.Calls, frameTrace, b) // if it is lost, so is what the home does
	}
}

// announced takes a TRACE frame.
func (h *homes) announced(from uint64, body []byte) {
	if h.traceOf == nil || len(body) < 8 {
		return
	}
	number := binary.LittleEndian.Uint64(body)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.traced[asker{from, number >> numberBits}] = announced{number, body[8:]}
}

// spansOf is what was announced of the hops of a frame. Called with h.mu.
func (h *homes) spansOf(who asker, f *forwarded) (spans []attune.SpanContext) {
	a, ok := h.traced[who]
	if !ok {
		return nil
	}
	delete(h.traced, who)
	if a.number != f.number || len(a.spans) != spanLen*len(f.hops) {
		return nil
	}
	spans = make([]attune.SpanContext, len(f.hops))
	for i := range spans {
		s := &spans[i]
		copy(s.Span[:], a.spans[spanLen*i+copy(s.Trace[:], a.spans[spanLen*i:]):])
	}
	return spans
}

// traces are of the hops of a frame that is carried out; nil for one that is not traced.
type traces []*attune.Trace

func (h *homes) tracesOf(f *forwarded) traces {
	if f.spans == nil {
		return nil
	}
	ts := make(traces, len(f.hops))
	at := 0
	for i, n := range f.hops {
		if f.spans[i].Span != (attune.SpanID{}) {
			ts[i] = h.traceOf(f.spans[i], f.ops[at:at+n])
		}
		at += n
	}
	return ts
}

// accepted notes of which hops all that they need has come; the others are over.
func (ts traces) accepted(accepted []bool) {
	for i, t := range ts {
		switch {
		case t == nil:
		case accepted[i]:
			t.Ended("arrival", "here is all that it needs")
		default:
			t.End("refused: what it needs is not here")
			ts[i] = nil
		}
	}
}

func (ts traces) ended(phase, text string) {
	for _, t := range ts {
		if t != nil {
			t.Ended(phase, text)
		}
	}
}

func (ts traces) end(err string) {
	for _, t := range ts {
		if t != nil {
			t.End(err)
		}
	}
}
