package attune

import (
	"fmt"
	"sync"
	"time"
)

// Trace is when a [Call] came to each step on its way, for people who ask where the
// time goes. Its methods may be called concurrently, and those who note something in
// the Trace of a Call must see that there is one: most have none.
type Trace struct {
	began time.Time

	mu    sync.Mutex // guards the rest
	steps []Step
}

// Step is something that happened to a Call, so long after its Trace began.
type Step struct {
	At   time.Duration
	Text string
}

// NewTrace begins a Trace now.
func NewTrace() *Trace { return &Trace{began: time.Now()} }

// Note says what has just happened. Said again, it is not noted again.
func (t *Trace) Note(format string, args ...any) {
	at, text := time.Since(t.began), fmt.Sprintf(format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.steps {
		if t.steps[i].Text == text {
			return
		}
	}
	t.steps = append(t.steps, Step{at, text})
}

// Steps are those so far, in order.
func (t *Trace) Steps() []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Step(nil), t.steps...)
}
