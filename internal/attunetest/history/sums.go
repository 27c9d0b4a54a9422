package history

import (
	"fmt"
	"slices"
)

// Counts says what became of commands.
type Counts struct{ Acknowledged, Unknown int }

// KeptSets returns an error if a set that was acknowledged is not there: final
// tells how the keys were read at the end. For a workload that sets each key once
// and deletes none; sets of unknown outcome may be there or not.
func KeptSets(h History, final map[string]Outcome) (n Counts, err error) {
	if err := sane(h); err != nil {
		return n, err
	}
	var lost, first = 0, Event{}
	for _, e := range h {
		if e.Op.Kind != Set {
			continue
		}
		out, read := final[e.Op.Key]
		present := read && out.Status == Hit
		if present && out.Value != e.Op.Value {
			return n, fmt.Errorf("%v\nis at the end: %v", e, out)
		}
		switch {
		case e.Out.Status == Unknown:
			n.Unknown++
			continue
		case e.Out.Status != Stored:
			return n, fmt.Errorf("no answer to a set: %v", e)
		}
		n.Acknowledged++
		if !present {
			if lost++; lost == 1 || e.Call < first.Call {
				first = e
			}
		}
	}
	if lost > 0 {
		return n, fmt.Errorf("%d of %d acknowledged sets are lost, the first of them: %v\nis at the end: %v",
			lost, n.Acknowledged, first, final[first.Op.Key])
	}
	return n, nil
}

// ExactCounter returns an error unless a counter that began at begin and was only
// incremented by one, and read as final at the end, counted exactly: every
// increment that was acknowledged has a result of its own, greater than any
// result known before it was called, and final is what the acknowledged
// increments make it, or more by those of unknown outcome.
func ExactCounter(h History, key string, begin, final uint64) (n Counts, err error) {
	if err := sane(h); err != nil {
		return n, err
	}
	var done []*Event
	owner := make(map[uint64]*Event)
	for i := range h {
		e := &h[i]
		if e.Op.Key != key || e.Op.Kind != Incr {
			continue
		}
		if e.Op.Delta != 1 {
			return n, fmt.Errorf("not an increment by one: %v", *e)
		}
		switch e.Out.Status {
		case Unknown:
			n.Unknown++
			continue
		case Counted:
		default:
			return n, fmt.Errorf("the counter is not there: %v", *e)
		}
		n.Acknowledged++
		if other, ok := owner[e.Out.Number]; ok {
			return n, fmt.Errorf("two increments have one result:\n%v\n%v", *other, *e)
		}
		if e.Out.Number <= begin || e.Out.Number > final {
			return n, fmt.Errorf("from %d to %d does not lead over: %v", begin, final, *e)
		}
		owner[e.Out.Number] = e
		done = append(done, e)
	}
	if low, high := begin+uint64(n.Acknowledged), begin+uint64(n.Acknowledged+n.Unknown); final < low || final > high {
		return n, fmt.Errorf("%s is %d at the end; %d acknowledged increments from %d, and %d unknown, make it %d to %d",
			key, final, n.Acknowledged, begin, n.Unknown, low, high)
	}
	// The results are versions of a kind.
	as := make([]Event, len(done))
	ptrs := make([]*Event, len(done))
	for i, e := range done {
		as[i] = *e
		as[i].Out.Version = e.Out.Number
		ptrs[i] = &as[i]
	}
	err = ordered(ptrs, slices.Clone(ptrs), func(first, second *Event) error {
		if second.Out.Number > first.Out.Number {
			return nil
		}
		return fmt.Errorf("an increment after another has the lower result:\n%v\n%v", *first, *second)
	})
	return n, err
}
