package history

// For the tests that need the broken stores, which import this package.

// Story tells all of h.
func Story(h History) string { return story(h, len(h)) }

// Brute reports whether there is an order: each process in its own order, known
// versions ascending.
func Brute(h History) bool {
	versions := make(map[string]uint64) // by value, as far as a read tells
	for _, e := range h {
		if e.Out.Status == Hit {
			versions[e.Out.Value] = e.Out.Version
		}
	}
	values := make(map[uint64]string)
	for value, v := range versions {
		values[v] = value
	}
	type state struct {
		done [16]bool
		last uint64
		a, b item
	}
	tried := make(map[state]bool)
	var search func(s state, left int) bool
	search = func(s state, left int) bool {
		if left == 0 {
			return true
		}
		if tried[s] {
			return false
		}
		tried[s] = true
		before := make(map[int]bool)
		for i, e := range h {
			if s.done[i] {
				continue
			}
			first := !before[e.Session]
			before[e.Session] = true
			if !first {
				continue
			}
			next := s
			next.done[i] = true
			if e.Out.Status == Unknown && search(next, left-1) { // it never happens
				return true
			}
			cur := &next.a
			if e.Op.Key == "b" {
				cur = &next.b
			}
			out := e.Out
			works := out.Status == Stored
			if out.Status == Unknown {
				works = e.Op.Kind == Set || e.Op.Kind == CAS && cur.present && cur.version == e.Op.Compare
			}
			after, ok := step(*cur, e.Op, out, values)
			if !ok {
				continue
			}
			if works {
				v := out.Version
				if v == 0 {
					v = versions[e.Op.Value]
				}
				if v != 0 && v <= s.last {
					continue
				}
				next.last = max(next.last, v)
				after.version = v
			}
			*cur = after
			if search(next, left-1) {
				return true
			}
		}
		return false
	}
	return search(state{}, len(h))
}
