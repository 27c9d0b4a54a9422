package history

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
)

// Process says what the program order of Sequential is: the commands of one what.
type Process func(e *Event) int

// BySession is a process per connection: what a client without a memory of its
// own is promised.
func BySession(e *Event) int { return e.Session }

// ByClient is a process per client, over all its connections.
func ByClient(e *Event) int { return e.Client }

// Sequential returns an error unless there is one order of all commands, with the
// commands of each process in the order they were called and the writes in the
// order of their versions, in which every answer is right.
//
// With the order of the writes known that is no search. A process is at a
// position: the version of the newest write it knows of. Its own write takes it
// to that write. A read of version v is right at the positions from v up to the
// next write of the key: the process must not be past them, and is at v or later
// afterwards. A miss is right between a delete and the next write. Processes meet
// only in the order of writes, so each can be judged by itself, and a process
// that goes as little forward as it must never goes wrong without need.
//
// What makes the check less than exact is what clients are not told. Writes of
// unknown outcome count from when some read shows them. A delete has no version:
// it is taken to be at any version between what its process knew before and what
// it did later. A refusal (NOT_STORED of an add, EXISTS) is not judged, and what a
// write makes of the item before it only as far as a cas: no other write is
// between the version it compares and its own.
func Sequential(h History, process Process) error {
	if err := sane(h); err != nil {
		return err
	}
	if err := VersionOrder(h); err != nil {
		return err
	}
	s := sequence{writes: make(map[string][]uint64), deletes: make(map[string][]*removal)}
	if err := s.learn(h); err != nil {
		return err
	}
	processes := make(map[int][]*Event)
	sorted := h.byCall()
	for i := range sorted {
		e := &sorted[i]
		processes[process(e)] = append(processes[process(e)], e)
	}
	for _, p := range slices.Sorted(maps.Keys(processes)) {
		s.bound(processes[p])
	}
	for _, p := range slices.Sorted(maps.Keys(processes)) {
		if err := s.walk(processes[p]); err != nil {
			return err
		}
	}
	return nil
}

// sequence is the order of the writes, as far as it is known.
type sequence struct {
	writes  map[string][]uint64   // by key, ascending
	deletes map[string][]*removal // by key; those of a Flush under ""
}

// removal is a delete or flush: its version is above low and below high.
type removal struct{ low, high uint64 }

const never = math.MaxUint64

// learn collects the writes, and checks what does not depend on processes.
func (s *sequence) learn(h History) error {
	for key, events := range h.perKey() {
		if _, err := versionValues(key, events); err != nil {
			return err
		}
		written := make(map[string]bool)
		for i := range events {
			written[events[i].Op.Value] = true
		}
		set := make(map[uint64]bool)
		for i := range events {
			e := &events[i]
			if e.Out.Version != 0 {
				set[e.Out.Version] = true
			}
			if e.Out.Status != Hit {
				continue
			}
			for _, token := range tokens(e.Out.Value) {
				if !written[token] {
					return fmt.Errorf("%q was never written to %s, but read: %v", token, key, *e)
				}
			}
		}
		s.writes[key] = slices.Sorted(maps.Keys(set))
		for i := range events {
			e := &events[i]
			if e.Op.Kind != CAS || e.Out.Status != Stored || e.Out.Version == 0 {
				continue
			}
			if next := s.after(key, e.Op.Compare); next != e.Out.Version {
				return fmt.Errorf("between the version it compares and its own there is the write @%d: %v", next, *e)
			}
		}
	}
	return nil
}

// after returns the version of the first write of key after v, or never.
func (s *sequence) after(key string, v uint64) uint64 {
	all := s.writes[key]
	i, found := slices.BinarySearch(all, v)
	if found {
		i++
	}
	if i == len(all) {
		return never
	}
	return all[i]
}

// bound notes between what versions the removals of a process are: after all it
// knew before, and before whatever it did later. Misses are left out, because
// where they are depends on removals.
func (s *sequence) bound(events []*Event) {
	var own []*removal
	pos := uint64(0)
	for _, e := range events {
		if (e.Op.Kind == Delete || e.Op.Kind == Flush) && e.writes() {
			r := &removal{low: pos, high: never}
			key := e.Op.Key
			if e.Op.Kind == Flush {
				key = ""
			}
			s.deletes[key] = append(s.deletes[key], r)
			if e.Out.Status != Unknown { // an unknown one may happen any time later
				own = append(own, r)
			}
			continue
		}
		end := e.Out.Version
		if e.Out.Status == Hit {
			end = s.after(e.Op.Key, e.Out.Version)
		}
		if e.Out.Version == 0 {
			continue
		}
		for _, r := range own {
			r.high = min(r.high, end)
		}
		pos = max(pos, e.Out.Version)
	}
}

// walk follows one process.
func (s *sequence) walk(events []*Event) error {
	pos := uint64(0)
	at := events[0] // what took the process to pos
	removed := make(map[string]uint64)
	flushed := uint64(0)
	wrong := func(e *Event, why string) error {
		var own History
		for _, other := range events {
			if own = append(own, *other); other == e {
				break
			}
		}
		return fmt.Errorf("not sequentially consistent: %s\nIt is at version %d since %v\n%v\nThe process:\n%s", why, pos, *at, *e, story(own, 20))
	}
	for _, e := range events {
		key, v := e.Op.Key, e.Out.Version
		switch {
		case e.Out.Status == Unknown:
		case e.Op.Kind == Delete && e.Out.Status == Deleted:
			removed[key] = max(pos, removed[key])
		case e.Op.Kind == Flush:
			flushed = pos
		case e.Out.Status == Stored || e.Out.Status == Counted:
			if v == 0 {
				continue
			}
			if v <= pos {
				return wrong(e, "a process's write is before what it has seen")
			}
			pos, at = v, e
		case e.Out.Status == Hit && v != 0:
			if s.after(key, v) <= pos {
				return wrong(e, "a process that has seen the next write of a key reads the one before")
			}
			if gone, ok := removed[key]; ok && v <= gone || v <= flushed {
				return wrong(e, "a process reads what it has deleted")
			}
			if v > pos {
				pos, at = v, e
			}
		case e.Out.Status == Miss || e.Out.Status == NotFound || e.Out.Status == NotStored && e.Op.Kind != Add:
			begin, ok := s.gap(key, pos)
			if !ok {
				return wrong(e, "a process that has seen an item misses it, and nobody has deleted it since")
			}
			if begin > pos {
				pos, at = begin, e
			}
		}
	}
	return nil
}

// gap returns the lowest position, not before pos, at which key may be absent.
func (s *sequence) gap(key string, pos uint64) (begin uint64, ok bool) {
	all := s.writes[key]
	if len(all) == 0 || pos < all[0] {
		return pos, true // not written yet
	}
	removals := slices.Concat(s.deletes[key], s.deletes[""])
	i, found := slices.BinarySearchFunc(all, pos, cmp.Compare[uint64])
	if !found {
		i-- // the write the process is at or behind
	}
	for ; i < len(all); i++ {
		end := uint64(never)
		if i+1 < len(all) {
			end = all[i+1]
		}
		low := uint64(never)
		for _, r := range removals {
			if r.low < end && r.high > all[i] {
				low = min(low, max(r.low, all[i]))
			}
		}
		if low != never {
			return max(pos, low), true
		}
	}
	return 0, false
}
