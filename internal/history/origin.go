package history

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// origins says of every event which version it wrote or read, as far as anybody
// was told, and of whom it reads. It returns an error for what was read and never
// written, or was read before it was written.
type origins struct {
	h       History
	version []uint64 // by event; 0 is unknown
	from    [][]int  // by event: the writers of what it read
	keys    []string // sorted
	of      map[string][]int
}

// authors are the writers of one key.
type authors struct {
	key       string
	byToken   map[string]int
	byVersion map[uint64]int
	// loose says that some number was written of which nobody was told the version,
	// so that one of a version nobody knows may be it.
	loose bool
}

// trace finds the origins of what h read. A version that its writer was not told
// is learnt from those who read the value.
func trace(h History) (*origins, error) {
	o := &origins{h: h, version: make([]uint64, len(h)), from: make([][]int, len(h)), of: make(map[string][]int)}
	for i := range h {
		o.version[i] = h[i].Out.Version
		if h[i].Op.Kind != Flush {
			o.of[h[i].Op.Key] = append(o.of[h[i].Op.Key], i)
		}
	}
	o.keys = slices.Sorted(maps.Keys(o.of))
	for _, key := range o.keys {
		events := make(History, len(o.of[key]))
		for n, i := range o.of[key] {
			events[n] = h[i]
		}
		if _, err := versionValues(key, events); err != nil {
			return nil, err
		}
		a, err := o.authors(key)
		if err != nil {
			return nil, err
		}
		for _, step := range []func(*authors, int) error{o.learn, o.read} {
			for _, i := range o.of[key] {
				if err := step(a, i); err != nil {
					return nil, err
				}
			}
		}
	}
	return o, nil
}

// puts reports whether the event may have written a value.
func (e *Event) puts() bool { return e.writes() && !e.removes() }

// removes reports whether the event may have removed a value.
func (e *Event) removes() bool { return (e.Op.Kind == Delete || e.Op.Kind == Flush) && e.writes() }

func (o *origins) authors(key string) (*authors, error) {
	a := &authors{key: key, byToken: make(map[string]int), byVersion: make(map[uint64]int)}
	for _, i := range o.of[key] {
		e := &o.h[i]
		if !e.puts() {
			continue
		}
		pieces := tokens(e.Op.Value)
		for _, piece := range pieces {
			if other, ok := a.byToken[piece]; ok {
				return nil, fmt.Errorf("%s: who wrote %q cannot be told from it:\n%v\n%v", key, piece, o.h[other], *e)
			}
			a.byToken[piece] = i
		}
		v := o.version[i]
		if v == 0 {
			a.loose = a.loose || len(pieces) == 0
			continue
		}
		if other, ok := a.byVersion[v]; ok {
			return nil, fmt.Errorf("two writes of %s have one version:\n%v\n%v", key, o.h[other], *e)
		}
		a.byVersion[v] = i
	}
	return a, nil
}

// makes reports whether the write e leaves value behind. Nothing is appended to an
// empty value.
func (e *Event) makes(value string) bool {
	switch e.Op.Kind {
	case Append:
		return len(value) > len(e.Op.Value) && strings.HasSuffix(value, e.Op.Value)
	case Prepend:
		return len(value) > len(e.Op.Value) && strings.HasPrefix(value, e.Op.Value)
	case Incr, Decr:
		return value == strconv.FormatUint(e.Out.Number, 10)
	}
	return value == e.Op.Value
}

// learn takes from a hit the version of its writer, if nobody told that.
func (o *origins) learn(a *authors, i int) error {
	e := &o.h[i]
	if e.Out.Status != Hit || e.Out.Version == 0 {
		return nil
	}
	if w, ok := a.byVersion[e.Out.Version]; ok {
		if !o.h[w].makes(e.Out.Value) {
			return fmt.Errorf("%s: another value was written with this version:\n%v\n%v", a.key, o.h[w], *e)
		}
		return nil
	}
	pieces := tokens(e.Out.Value)
	if len(pieces) == 0 {
		return nil
	}
	first, known := a.byToken[pieces[0]]
	last, also := a.byToken[pieces[len(pieces)-1]]
	switch {
	case !known || !also:
		return nil // read complains
	case len(pieces) > 1:
		// The newest piece is at one of the ends. Which of them is not known.
		prepended := o.h[first].Op.Kind == Prepend && o.version[first] == 0
		appended := o.h[last].Op.Kind == Append && o.version[last] == 0
		if !prepended && !appended {
			return fmt.Errorf("%s: nobody made this value with this version: %v", a.key, *e)
		}
		return nil
	case !o.h[first].makes(e.Out.Value):
		return fmt.Errorf("%s: half a value was read:\n%v\n%v", a.key, o.h[first], *e)
	case o.version[first] != 0:
		return fmt.Errorf("%s: what was written with version %d has another:\n%v\n%v", a.key, o.version[first], o.h[first], *e)
	}
	o.version[first] = e.Out.Version
	a.byVersion[e.Out.Version] = first
	return nil
}

// read notes of whom an event reads: of all whose pieces are in the value, and of
// who wrote the version.
func (o *origins) read(a *authors, i int) error {
	e := &o.h[i]
	if e.Op.Kind == CAS && e.writes() {
		if w, ok := a.byVersion[e.Op.Compare]; ok && w != i {
			o.from[i] = append(o.from[i], w)
		}
		return nil
	}
	if e.Out.Status != Hit {
		return nil
	}
	writer, known := a.byVersion[e.Out.Version]
	if known {
		o.from[i] = append(o.from[i], writer)
	}
	pieces := tokens(e.Out.Value)
	for _, piece := range pieces {
		w, ok := a.byToken[piece]
		if !ok {
			return fmt.Errorf("%q was never written to %s, but read: %v", piece, a.key, *e)
		}
		if !slices.Contains(o.from[i], w) {
			o.from[i] = append(o.from[i], w)
		}
		if len(pieces) == 1 && e.Out.Version == 0 {
			o.version[i] = o.version[w]
		}
	}
	number := len(pieces) == 0 && (known || a.loose)
	if !number && (len(pieces) == 0 || strings.Join(pieces, "") != e.Out.Value) {
		return fmt.Errorf("%q was never written to %s, but read: %v", e.Out.Value, a.key, *e)
	}
	for _, w := range o.from[i] {
		if o.h[w].Call > e.Return {
			return fmt.Errorf("%s was read before it was written:\n%v\n%v", a.key, *e, o.h[w])
		}
	}
	return nil
}
