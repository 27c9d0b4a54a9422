package history

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Survey is what all controllers were found to hold, at a time at which nothing
// was written.
type Survey struct {
	// Begin and End are when, by the clock of the history.
	Begin, End int64
	// Nodes has, by controller and key, how a get was answered.
	Nodes map[string]map[string]Outcome
}

// Survey reads keys from targets. It writes nothing down.
func (r *Recorder) Survey(targets []Target, keys []string) (Survey, error) {
	s := Survey{Begin: r.Now(), Nodes: make(map[string]map[string]Outcome)}
	for _, target := range targets {
		read, err := ReadAll(target, keys)
		if err != nil {
			return s, err
		}
		s.Nodes[target.Name] = read
	}
	s.End = r.Now()
	return s, nil
}

// Settle reads keys from targets until they agree on them, for as long as ctx lasts,
// and returns what they came to. The error says what they disagree about, or who does
// not answer.
func (r *Recorder) Settle(ctx context.Context, targets []Target, keys []string) (Survey, error) {
	for {
		s, err := r.Survey(targets, keys)
		if err == nil {
			err = s.Agree()
		}
		if err == nil || ctx.Err() != nil {
			return s, err
		}
		pause(ctx, 5*time.Millisecond)
	}
}

// keys returns all keys that were asked for.
func (s Survey) keys() []string {
	keys := make(map[string]bool)
	for _, read := range s.Nodes {
		for key := range read {
			keys[key] = true
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

// Agree returns an error unless all controllers answered alike for every key:
// the same value of the same version, or a miss.
func (s Survey) Agree() error {
	nodes := slices.Sorted(maps.Keys(s.Nodes))
	if len(nodes) == 0 {
		return fmt.Errorf("nobody was asked")
	}
	apart, first := 0, ""
	for _, key := range s.keys() {
		for _, node := range nodes[1:] {
			one, ok := s.Nodes[nodes[0]][key]
			other, also := s.Nodes[node][key]
			if ok && also && one == other {
				continue
			}
			if apart++; apart == 1 {
				first = fmt.Sprintf("%s is %v at %s and %v at %s", key, one, nodes[0], other, node)
			}
			break
		}
	}
	if apart > 0 {
		return fmt.Errorf("the controllers disagree about %d of %d keys, for one: %s", apart, len(s.keys()), first)
	}
	return nil
}

// final returns how all controllers answer for key, provided they agree.
func (s Survey) final(key string) (out Outcome, ok bool) {
	for _, read := range s.Nodes {
		out, ok = read[key]
		return out, ok
	}
	return out, false
}

// events are the answers as events of h, each of a connection of its own.
func (s Survey) events(h History) (events History) {
	last := 0
	for _, e := range h {
		last = max(last, e.Session)
	}
	for _, node := range slices.Sorted(maps.Keys(s.Nodes)) {
		last++
		for _, key := range slices.Sorted(maps.Keys(s.Nodes[node])) {
			events = append(events, Event{
				Client: -1, Session: last, Node: node, Op: Op{Kind: Get, Key: key}, Out: s.Nodes[node][key],
				Call: s.Begin, Return: s.End,
			})
		}
	}
	return events
}

// Keys returns all keys of h, sorted.
func (h History) Keys() []string {
	keys := make(map[string]bool)
	for _, e := range h {
		if e.Op.Kind != Flush {
			keys[e.Op.Key] = true
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

// until returns the events that were called before now.
func (h History) until(now int64) History {
	return slices.DeleteFunc(slices.Clone(h), func(e Event) bool { return e.Call >= now })
}

// Converged returns an error unless s, which was taken when the store was quiet
// and whole, is what it must have come to: the controllers agree; what they hold
// was written; it is not older than any version of the key that was acknowledged
// or read, and newer than what acknowledged deletes, flushes and misses found in
// its place; and what is missing was removed by somebody who can have come last.
//
// What h shows before s was taken is also checked as by [Eventual]. Where the
// version of an acknowledged write was neither told nor read, what survives must
// be newer than what its connection knew before. Commands of unknown outcome
// called before s may have happened, or not.
func Converged(h History, s Survey, r Rules) error {
	if err := s.Agree(); err != nil {
		return err
	}
	h = h.until(s.Begin)
	w, err := newWeb(append(h, s.events(h)...), r, false)
	if err != nil {
		return err
	}
	if err := w.walk(); err != nil {
		return err
	}
	for _, key := range s.keys() {
		if err := w.survives(key, s); err != nil {
			return err
		}
	}
	return nil
}

// survives checks that what s found of key may be what is left of it.
func (w *web) survives(key string, s Survey) error {
	out, _ := s.final(key)
	lost := func(what string, i int) error {
		return fmt.Errorf("not converged: %s\n%v\nall controllers have at last: %s: %v", what, w.h[i], key, out)
	}
	newest, last := -1, make(map[int]int)
	log := w.logs[key]
	all := slices.Clone(w.of[key])
	for _, removal := range log.removals {
		if w.h[removal].Op.Kind == Flush {
			all = append(all, removal)
		}
	}
	for _, i := range all {
		e := &w.h[i]
		if e.Call >= s.Begin || e.Out.Status == Unknown && w.version[i] == 0 || w.rules.MayLose != nil && w.rules.MayLose(*e) {
			continue
		}
		if w.version[i] != 0 && (newest < 0 || w.version[i] > w.version[newest]) {
			newest = i
		}
		if e.puts() {
			last[w.session[i]] = i
		}
		if out.Status != Hit || !e.absent() && (!e.writes() || w.version[i] != 0) {
			continue
		}
		if p := w.past(i, key, nil); out.Version <= w.shown(p) {
			if e.removes() || e.absent() {
				return lost("what had gone is back", i)
			}
			return lost("an acknowledged write is lost", i)
		}
	}
	if newest < 0 && len(last) == 0 || out.Status == Miss && w.rules.Lossy {
		return nil
	}
	if out.Status == Hit {
		if newest >= 0 && out.Version < w.version[newest] {
			return lost("what was newer is lost", newest)
		}
		return nil
	}
	shown := w.shown(entry{newest: newest})
	writes := slices.Collect(maps.Values(last))
	if !w.removed(key, shown, writes, s.Begin, func(int) bool { return true }) {
		if newest < 0 {
			newest = writes[0]
		}
		return lost("it is lost, and nothing can have removed it", newest)
	}
	return nil
}

// Settled returns an error if a command called after s was taken, when the store
// was quiet and whole, shows what is older: a version below that of s, an item
// that was missing everywhere and whose write had been answered before, or the
// miss of an item though no removal was still to come. It is what finds deleted
// values that return, in the history of the time after, or in later surveys:
// see [History.With].
func Settled(h History, s Survey, r Rules) error {
	if err := s.Agree(); err != nil {
		return err
	}
	if err := sane(h); err != nil {
		return err
	}
	h = append(h.byCall(), s.events(h)...)
	o, err := trace(h)
	if err != nil {
		return err
	}
	back := func(what string, i int) error {
		e := h[i]
		out, _ := s.final(e.Op.Key)
		return fmt.Errorf("%s\nall controllers had, at %.3f ms: %s: %v\n%v", what, float64(s.End)/1e6, e.Op.Key, out, e)
	}
	for _, key := range s.keys() {
		out, _ := s.final(key)
		newest := out.Version // as known when s was taken
		pending := func(e *Event) bool { return e.Return >= s.Begin }
		removal := slices.ContainsFunc(h, func(e Event) bool {
			return e.removes() && (e.Op.Kind == Flush || e.Op.Key == key) && pending(&e)
		})
		for _, i := range o.of[key] {
			if e := &h[i]; !pending(e) {
				newest = max(newest, o.version[i])
			}
		}
		for _, i := range o.of[key] {
			e := &h[i]
			if e.Call <= s.End {
				continue
			}
			switch {
			case e.absent():
				if out.Status == Hit && !removal && !r.Lossy {
					return back("not there any more, and nothing can have removed it", i)
				}
			case e.Out.Status != Hit:
			case out.Status == Hit && o.version[i] < out.Version:
				return back("older than what all controllers had", i)
			case out.Status == Miss && o.version[i] <= newest:
				return back("what was gone from all controllers is back", i)
			case out.Status == Miss:
				for _, w := range o.from[i] {
					if h[w].puts() && !pending(&h[w]) {
						return back("what was gone from all controllers is back", i)
					}
				}
			}
		}
	}
	return nil
}

// With returns h and, as events, what s found.
func (h History) With(s Survey) History { return append(slices.Clone(h), s.events(h)...) }
