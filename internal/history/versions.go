package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// VersionOrder returns an error unless acknowledged writes have versions in the
// order of time: one that was called after another had returned has a greater
// version, whatever the keys. So it is at every ordered level, where one leader
// after the other hands them out. No two writes have the same.
func VersionOrder(h History) error {
	var writes []*Event
	owner := make(map[uint64]*Event)
	for i := range h {
		e := &h[i]
		if !e.writes() || e.Out.Status == Unknown || e.Out.Version == 0 {
			continue
		}
		if other, ok := owner[e.Out.Version]; ok {
			return fmt.Errorf("two writes of one version:\n%v\n%v", *other, *e)
		}
		owner[e.Out.Version] = e
		writes = append(writes, e)
	}
	return ordered(writes, writes, func(first, second *Event) error {
		if second.Out.Version > first.Out.Version {
			return nil
		}
		return fmt.Errorf("a write after another has the lower version:\n%v\n%v", *first, *second)
	})
}

// FreshReads returns an error for a read that is older than what was already
// known when it was called: an acknowledged write of the key, or another read. It
// finds part of what Linearizable finds, in n log n, so that it also judges the
// histories that are too long for a search. A miss is only judged for a key that
// nobody tried to delete.
func FreshReads(h History) error {
	keys := h.perKey()
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		var known, reads []*Event
		mortal := false
		events := keys[key]
		if _, err := versionValues(key, events); err != nil {
			return err
		}
		for i := range events {
			e := &events[i]
			switch {
			case e.Op.Kind == Delete || e.Op.Kind == Flush:
				mortal = true
			case e.Out.Status == Hit && e.Out.Version != 0:
				known, reads = append(known, e), append(reads, e)
			case e.Out.Status == Miss:
				reads = append(reads, e)
			case e.Out.Version != 0 && e.writes():
				known = append(known, e)
			}
		}
		err := ordered(known, reads, func(first, second *Event) error {
			if second.Out.Version >= first.Out.Version || second.Out.Status == Miss && mortal {
				return nil
			}
			return fmt.Errorf("a read shows less than was known before it was called:\n%v\n%v", *first, *second)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ordered calls check with each of second, and of those of first that had
// returned before it was called, the one of the greatest version.
func ordered(first, second []*Event, check func(first, second *Event) error) error {
	first, second = slices.Clone(first), slices.Clone(second)
	slices.SortFunc(first, func(a, b *Event) int { return cmp.Compare(a.Return, b.Return) })
	slices.SortFunc(second, func(a, b *Event) int { return cmp.Compare(a.Call, b.Call) })
	var newest *Event
	for _, e := range second {
		for len(first) > 0 && first[0].Return < e.Call {
			if newest == nil || first[0].Out.Version > newest.Out.Version {
				newest = first[0]
			}
			first = first[1:]
		}
		if newest == nil {
			continue
		}
		if err := check(newest, e); err != nil {
			return err
		}
	}
	return nil
}
