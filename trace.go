package attune

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"time"
)

// Trace is when a [Call] came to each step on its way, for people who ask where the
// time goes. What another controller does for the Call is a Trace there, which names a
// span of this one as its parent. Its methods may be called concurrently, and those who
// note something in the Trace of a Call must see that there is one: most have none.
type Trace struct {
	// ID names this Trace as a span, in the group of those that one command has made on
	// all controllers; Parent is the span of another controller that asked for it, 0 for
	// none.
	ID     SpanContext
	Parent SpanID
	// Name is what it times, and About says more. They do not change any more when
	// somebody else has the Trace.
	Name  string
	About []Attr
	Began time.Time

	done func(*Trace)

	mu    sync.Mutex // guards the rest
	steps []Step
	away  []away
	phase time.Duration // when the newest phase ended
	ended bool
	took  time.Duration
	err   string
}

// SpanID names a span of time in a trace, as of W3C Trace Context. 0 is none.
type SpanID [8]byte

// SpanContext names a span to other controllers.
type SpanContext struct {
	Trace [16]byte
	Span  SpanID
}

// Attr is something that a [Trace] is about.
type Attr struct{ Key, Value string }

// Step is something that happened to a Call, so long after its Trace began.
type Step struct {
	At   time.Duration
	Text string
	// Phase is what ended with it, since From; empty if nothing did. Of a Step with a
	// Phase, Span names that time.
	Phase string
	From  time.Duration
	Span  SpanID
	Away  bool // the phase was another controller's
}

// away is something that another controller does meanwhile.
type away struct {
	span  SpanID
	phase string
	from  time.Duration
}

// NewTrace begins a Trace now. done, if it is not nil, is called when it has ended, and
// must not block. Without, nobody keeps what it says, and others are not told of it.
func NewTrace(name string, done func(*Trace)) *Trace {
	t := &Trace{Name: name, Began: time.Now(), done: done}
	t.ID.Span = newSpanID()
	binary.LittleEndian.PutUint64(t.ID.Trace[:], rand.Uint64())
	binary.LittleEndian.PutUint64(t.ID.Trace[8:], rand.Uint64())
	return t
}

// Under makes the Trace part of what another controller traces. It is for who has just
// begun it.
func (t *Trace) Under(parent SpanContext) { t.ID.Trace, t.Parent = parent.Trace, parent.Span }

func newSpanID() (id SpanID) {
	binary.LittleEndian.PutUint64(id[:], rand.Uint64())
	return id
}

// Kept reports whether somebody keeps the Trace, so that other controllers are to trace
// what they do for it.
func (t *Trace) Kept() bool { return t.done != nil }

// Note says what has just happened. Said again, it is not noted again.
func (t *Trace) Note(text string) { t.note(Step{Text: text}) }

// Ended is Note for the end of a phase, which began when the one before it ended.
func (t *Trace) Ended(phase, text string) { t.note(Step{Text: text, Phase: phase, Span: newSpanID()}) }

func (t *Trace) note(s Step) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.steps {
		if t.steps[i].Text == s.Text {
			return
		}
	}
	t.addLocked(s, t.phase)
}

// addLocked adds a step that has just happened, and ends a phase that began at from.
func (t *Trace) addLocked(s Step, from time.Duration) {
	if t.ended {
		return
	}
	s.At = time.Since(t.Began)
	if s.Phase != "" {
		s.From, t.phase = from, s.At
	}
	t.steps = append(t.steps, s)
}

// NewSpan names a phase that another controller is asked to begin.
func (t *Trace) NewSpan() SpanContext { return SpanContext{t.ID.Trace, newSpanID()} }

// Left is Note for that phase's begin. It goes on beside others, until Back.
func (t *Trace) Left(span SpanID, phase, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addLocked(Step{Text: text}, 0)
	t.away = append(t.away, away{span, phase, time.Since(t.Began)})
}

// Back is Note for its end. A span that has not left is no matter.
func (t *Trace) Back(span SpanID, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, a := range t.away {
		if a.span == span {
			t.away = append(t.away[:i], t.away[i+1:]...)
			t.addLocked(Step{Text: text, Phase: a.phase, Span: span, Away: true}, a.from)
			return
		}
	}
}

// End ends the Trace, once, and with it what is away. err is why the Call failed, empty
// if it did not. Later notes are dropped.
func (t *Trace) End(err string) {
	t.mu.Lock()
	if t.ended {
		t.mu.Unlock()
		return
	}
	for _, a := range t.away {
		t.addLocked(Step{Text: "not answered", Phase: a.phase, Span: a.span, Away: true}, a.from)
	}
	t.ended, t.took, t.err = true, time.Since(t.Began), err
	t.mu.Unlock()
	if t.done != nil {
		t.done(t)
	}
}

// Outcome is how long an ended Trace took, and what End was told.
func (t *Trace) Outcome() (took time.Duration, err string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.took, t.err
}

// Steps are those so far, in order.
func (t *Trace) Steps() []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Step(nil), t.steps...)
}
