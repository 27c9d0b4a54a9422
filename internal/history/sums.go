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

// BoundedCounter returns an error if a counter that began at begin and was only
// incremented by one, and read as final at the end, counted more than it was
// asked to: what a store may come to that loses increments, when it is parted,
// but does none twice. No result is more than the increments that were called
// before it was known can make it. See ExactCounter.
func BoundedCounter(h History, key string, begin, final uint64) (n Counts, err error) {
	if err := sane(h); err != nil {
		return n, err
	}
	var calls []int64
	for _, e := range h {
		if e.Op.Key != key || e.Op.Kind != Incr {
			continue
		}
		if e.Op.Delta != 1 {
			return n, fmt.Errorf("not an increment by one: %v", e)
		}
		calls = append(calls, e.Call)
		if e.Out.Status == Unknown {
			n.Unknown++
		} else {
			n.Acknowledged++
		}
	}
	slices.Sort(calls)
	for _, e := range h {
		if e.Op.Key != key || e.Op.Kind != Incr || e.Out.Status != Counted {
			continue
		}
		called, _ := slices.BinarySearch(calls, e.Return+1) // how many until then
		if most := begin + uint64(called); e.Out.Number <= begin || e.Out.Number > most {
			return n, fmt.Errorf("%d increments from %d make at most %d when it is answered: %v", called, begin, most, e)
		}
	}
	if most := begin + uint64(len(calls)); final < begin || final > most {
		return n, fmt.Errorf("%s is %d at the end; %d increments from %d make at most %d", key, final, len(calls), begin, most)
	}
	return n, nil
}

// OneWinner returns an error if two cas of one version of a key were stored: one
// of them did not see the other. For histories in which nobody was cut off and
// nobody came or went; else a store that answers on both sides of a cut may do so.
func OneWinner(h History) error {
	if err := sane(h); err != nil {
		return err
	}
	type item struct {
		key     string
		version uint64
	}
	winner := make(map[item]Event)
	for _, e := range h.byCall() {
		if e.Op.Kind != CAS || e.Out.Status != Stored {
			continue
		}
		it := item{e.Op.Key, e.Op.Compare}
		if other, ok := winner[it]; ok {
			return fmt.Errorf("two cas of one version were stored:\n%v\n%v", other, e)
		}
		winner[it] = e
	}
	return nil
}
