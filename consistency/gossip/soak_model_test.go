package gossip

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/attunekv/attune"
)

// asked is one command on one key, in terms of the numbers that are its values:
// each is written once, so it says which write a read saw. 0 is no item.
type asked struct {
	verb    attune.Verb
	value   int64 // Set, Add, Replace: what is written
	compare int64 // Set: the value whose unique was given; 0 for no cas
}

// answered is what came back: with Hit and Counted, the value.
type answered struct {
	status attune.Status
	value  int64
}

// history is what happened to one key.
type history []porcupine.Operation

// register is a key as a memcache client may see it. A lossy one may lose its
// item at any moment, as a cache does that runs out of memory or whose backend
// restarts; no register ever goes back to an older value.
func register(lossy bool) porcupine.Model {
	return (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{int64(0)} },
		Step: func(state, input, output any) (after []any) {
			from := []int64{state.(int64)}
			if lossy {
				from = append(from, 0)
			}
			for _, value := range from {
				for _, next := range step(value, input.(asked), output.(answered)) {
					if !slices.Contains(after, any(next)) {
						after = append(after, next)
					}
				}
			}
			return after
		},
	}).ToModel()
}

// step returns the values that a key which has value may have once in was
// answered with out; none if that is no answer to give.
func step(value int64, in asked, out answered) []int64 {
	works := in.works(value)
	becomes := map[attune.Verb]int64{attune.Incr: value + 1, attune.Delete: 0, attune.Flush: 0, attune.Touch: value, attune.Get: value}
	next, ok := becomes[in.verb]
	if !ok {
		next = in.value
	}
	switch out.status {
	case attune.Failed, attune.OutOfMemory: // it happened or not, and may have cost the item
		if !works {
			next = value
		}
		return []int64{value, next, 0}
	case attune.Hit, attune.Counted:
		if works && out.value == next {
			return []int64{next}
		}
	case attune.Stored, attune.Deleted, attune.Touched, attune.Flushed:
		if works {
			return []int64{next}
		}
	case attune.Miss, attune.NotFound:
		if value == 0 {
			return []int64{0}
		}
	case attune.NotStored:
		if !works {
			return []int64{value}
		}
	case attune.Exists:
		if value != 0 && !works {
			return []int64{value}
		}
	}
	return nil
}

// works reports whether in does what it says to a key that has value.
func (in asked) works(value int64) bool {
	switch in.verb {
	case attune.Set:
		return in.compare == 0 || in.compare == value
	case attune.Add:
		return value == 0
	case attune.Flush:
		return true
	default:
		return value != 0
	}
}

// check reports whether h is linearizable, and if not, tells it.
func check(t testing.TB, key string, h history, lossy bool) bool {
	t.Helper()
	switch porcupine.CheckOperationsTimeout(register(lossy), h, 20*time.Second) {
	case porcupine.Ok:
		return true
	case porcupine.Unknown:
		t.Errorf("%s: %d operations could not be checked in time", key, len(h))
		return true
	}
	slices.SortFunc(h, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	var story strings.Builder
	for _, op := range h {
		fmt.Fprintf(&story, "%10.3f to %10.3f ms, client %d: %+v -> %+v\n",
			float64(op.Call)/1e6, float64(op.Return)/1e6, op.ClientId, op.Input, op.Output)
	}
	t.Logf("%s is not a register:\n%s", key, story.String())
	return false
}

// A checker is worth what it rejects.
func TestRegister(t *testing.T) {
	at := int64(0)
	then := func(in asked, out answered) porcupine.Operation {
		at += 2
		return porcupine.Operation{Input: in, Output: out, Call: at, Return: at + 1}
	}
	set := func(v int64) porcupine.Operation {
		return then(asked{verb: attune.Set, value: v}, answered{status: attune.Stored})
	}
	get := func(v int64) porcupine.Operation {
		if v == 0 {
			return then(asked{}, answered{status: attune.Miss})
		}
		return then(asked{}, answered{status: attune.Hit, value: v})
	}
	failed := func(v int64) porcupine.Operation {
		return then(asked{verb: attune.Set, value: v}, answered{status: attune.Failed})
	}
	op := func(in asked, status attune.Status, value int64) porcupine.Operation {
		return then(in, answered{status, value})
	}
	for _, c := range []struct {
		name          string
		h             history
		strict, lossy bool
	}{
		{"what is set is read", history{set(1), get(1), set(2), get(2)}, true, true},
		{"an item is lost", history{set(1), get(0)}, false, true},
		{"an item comes back", history{set(1), get(0), get(1)}, false, false},
		{"an old value", history{set(1), set(2), get(1)}, false, false},
		{"an old value after a failure", history{set(1), failed(2), get(2), get(1)}, false, false},
		{"a failure that happened", history{set(1), failed(2), get(2)}, true, true},
		{"a failure that did not", history{set(1), failed(2), get(1)}, true, true},
		{"a failure that happens late", history{set(1), failed(2), get(1), get(2)}, false, false},
		{"add over an item", history{set(1), op(asked{verb: attune.Add, value: 2}, attune.Stored, 0)}, false, true},
		{"add of none refused", history{op(asked{verb: attune.Add, value: 2}, attune.NotStored, 0)}, false, false},
		{"a lost increment", history{set(1), op(asked{verb: attune.Incr}, attune.Counted, 2), op(asked{verb: attune.Incr}, attune.Counted, 2)}, false, false},
		{"cas of another", history{set(1), set(2), op(asked{attune.Set, 3, 1}, attune.Stored, 0)}, false, false},
		{"cas refused", history{set(1), op(asked{attune.Set, 3, 1}, attune.Exists, 0)}, false, false},
		{"touch keeps", history{set(1), op(asked{verb: attune.Touch}, attune.Touched, 0), get(1)}, true, true},
		{"delete of none", history{op(asked{verb: attune.Delete}, attune.Deleted, 0)}, false, false},
		{"read after a flush", history{set(1), op(asked{verb: attune.Flush}, attune.Flushed, 0), get(1)}, false, false},
	} {
		for lossy, want := range map[bool]bool{false: c.strict, true: c.lossy} {
			if got := porcupine.CheckOperations(register(lossy), c.h); got != want {
				t.Errorf("%s (lossy %v): %v", c.name, lossy, got)
			}
		}
	}
}
