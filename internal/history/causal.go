package history

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"
)

// Rules say what a store of replicas that answer each for itself need not keep.
// The zero Rules are those of a store in which nothing is lost.
type Rules struct {
	// Shared says that what one connection to a controller was shown, all later
	// ones to it are: more than is promised to clients, and so for as long as no
	// controller lost its memory.
	Shared bool
	// Lossy says that items may go without a trace in the history: evicted,
	// expired, or lost with the controllers that knew of them. Misses are not
	// judged then. What is known to have gone is better written down as a Delete
	// of unknown outcome; see Recorder.Add.
	Lossy bool
	// Late is how long a controller waits, before it answers, for what another one
	// decided for it to come back; 0 is as long as it takes. Of what took longer the
	// connection need not know.
	Late time.Duration
	// MayLose says of an event that what it wrote or read may be gone from all
	// controllers: the one that answered it was killed before it can have told
	// the others. For Converged; nil is none.
	MayLose func(e Event) bool
}

// Causal returns an error unless h is causally consistent, and convergent: of
// what a command knows, it shows the newest.
//
// A command knows the commands before it on its connection, the writers of what
// it reads, and what those know. Versions order the writes of a key. Then
//
//   - every value that is read was written, and not after it was read;
//   - nobody knows himself;
//   - a write is newer than every version of the key it knows;
//   - a read is not older than any version of the key it knows, and newer than
//     what a delete, a flush or a miss that it knows found in its place;
//   - a miss knows no write of the key, or there is a delete that can be newer
//     than all of them.
//
// For histories of sets and gets whose versions are all told or read this is
// exact. What clients are not told makes it one-sided, and it never complains of
// a store that is right: a delete has a version above those that it knows and
// below those of the commands that know it, and nobody knows which delete a miss
// has read; writes of unknown outcome count from when somebody reads them; a write
// whose version was neither told nor read is above what it knows. Refusals
// (NOT_STORED of an add, EXISTS) are not judged, nor what a number was before it
// was incremented. A cas knows the write it compares with, which must be the
// newest it knows, and an add that is stored is also a miss. Nothing is asked of
// the versions of different keys.
//
// It takes time in the order of commands × connections, times the logarithm of
// commands, and room for writes × connections. A miss may take longer, that of all
// deletes of its key; most are explained by one of the last of them.
func Causal(h History, r Rules) error {
	w, err := newWeb(h, r, true)
	if err != nil {
		return err
	}
	return w.walk()
}

// Eventual returns an error unless every connection by itself is shown a key in
// the order of its versions, and nothing that was not written. It is what Causal
// checks, for a command that knows only those before it on its connection (with
// Shared: on its controller), but not the writers of what it reads. That replicas
// come to agree is for Converged to see.
func Eventual(h History, r Rules) error {
	w, err := newWeb(h, r, false)
	if err != nil {
		return err
	}
	return w.walk()
}

// web is who knows whom.
type web struct {
	*origins
	rules  Rules
	causal bool

	session []int   // by event: its connection, counted from 0
	pos     []int32 // by event: the how many-th of its connection, from 1
	before  []int   // by event: the one before it on its connection, or -1
	// links are what connections of one controller share: the answered events of a
	// controller in the order they returned. Link l, the node len(h)+l of the web,
	// knows event returned[l] and, if linked[l], the link before it.
	returned []int
	linked   []bool
	link     []int // by event: the newest link whose event returned before it was called, or -1

	// clock says, by node and connection, how many of the connection's events the
	// node knows. An event's own connection is not in it. Slices are shared by those
	// who know the same and never modified.
	clock    [][]int32
	state    []byte // by node: unseen, under way, done
	sessions int

	logs    map[string]*keyLog
	absents []absent
}

// keyLog is what there is to know of a key.
type keyLog struct {
	active   []int           // connections, in the order they came to it
	entries  map[int][]entry // by connection, in its order
	removals []int
	highs    []uint64 // by removal, once they are sorted: its version is below this
}

// entry is what the first pos events of a connection show of a key. Its events
// are -1 for none.
type entry struct {
	pos    int32
	newest int // who shows the newest version
	killer int // who shows that all versions up to below are dead or overwritten
	below  uint64
	write  int // the last write
}

var nothing = entry{newest: -1, killer: -1, write: -1}

// absent is an event that found no item.
type absent struct {
	event int
	key   string
}

// newWeb traces h and, if what is read tells whom one knows (causal), makes the
// web of it.
func newWeb(h History, r Rules, causal bool) (*web, error) {
	if err := sane(h); err != nil {
		return nil, err
	}
	h = slices.DeleteFunc(h.byCall(), func(e Event) bool { return e.Op.Kind == Get && e.Out.Status == Unknown })
	o, err := trace(h)
	if err != nil {
		return nil, err
	}
	w := &web{
		origins: o, rules: r, causal: causal,
		session: make([]int, len(h)), pos: make([]int32, len(h)), before: make([]int, len(h)), link: make([]int, len(h)),
		logs: make(map[string]*keyLog),
	}
	for _, key := range o.keys {
		w.logs[key] = &keyLog{entries: make(map[int][]entry)}
	}
	numbers := make(map[int]int)
	var last []int // by session
	for i := range h {
		w.link[i] = -1
		s, ok := numbers[h[i].Session]
		if late := r.late(&h[i]); late || !ok {
			s = len(last)
			last = append(last, -1)
			if !late {
				numbers[h[i].Session] = s
			}
		}
		w.session[i], w.before[i], w.pos[i] = s, last[s], 1
		if b := last[s]; b >= 0 {
			if h[b].Out.Status == Unknown {
				return nil, fmt.Errorf("a connection is used after a command that was not answered:\n%v\n%v", h[b], h[i])
			}
			w.pos[i] = w.pos[b] + 1
		}
		last[s] = i
	}
	w.sessions = len(last)
	if r.Shared {
		w.share()
	}
	w.clock = make([][]int32, len(h)+len(w.returned))
	w.state = make([]byte, len(w.clock))
	return w, nil
}

// late reports whether the event is one that its own connection need not know of.
func (r *Rules) late(e *Event) bool {
	switch e.Op.Kind {
	case Add, Replace, CAS, Append, Prepend, Incr, Decr:
		return r.Late > 0 && e.Out.Status != Unknown && e.Return-e.Call >= int64(r.Late)
	}
	return false
}

// share links the connections of each controller.
func (w *web) share() {
	nodes := make(map[string][]int)
	for i := range w.h {
		if w.rules.late(&w.h[i]) {
			continue
		}
		nodes[w.h[i].Node] = append(nodes[w.h[i].Node], i)
	}
	for _, events := range nodes {
		done := slices.Clone(events)
		done = slices.DeleteFunc(done, func(i int) bool { return w.h[i].Out.Status == Unknown })
		slices.SortStableFunc(done, func(a, b int) int { return cmp.Compare(w.h[a].Return, w.h[b].Return) })
		first, n := len(w.returned), 0
		for _, i := range events { // in the order of calls
			for n < len(done) && w.h[done[n]].Return < w.h[i].Call {
				n++
			}
			if n > 0 {
				w.link[i] = first + n - 1
			}
		}
		for n, i := range done {
			w.returned = append(w.returned, i)
			w.linked = append(w.linked, n > 0)
		}
	}
}

// known calls f with the nodes that a node knows at first hand, until it returns
// false.
func (w *web) known(node int, f func(node int) bool) {
	if l := node - len(w.h); l >= 0 {
		if f(w.returned[l]) && w.linked[l] {
			f(node - 1)
		}
		return
	}
	if w.before[node] >= 0 && !f(w.before[node]) {
		return
	}
	if w.link[node] >= 0 && !f(len(w.h)+w.link[node]) {
		return
	}
	if w.causal {
		for _, writer := range w.from[node] {
			if !f(writer) {
				return
			}
		}
	}
}

// knows reports whether event i knows event j.
func (w *web) knows(i, j int) bool { return w.count(i, w.session[j]) >= w.pos[j] }

// count is how many events of session s event i knows.
func (w *web) count(i, s int) int32 {
	switch {
	case s == w.session[i]:
		return w.pos[i] - 1
	case w.clock[i] == nil:
		return 0
	}
	return w.clock[i][s]
}

// walk checks every event after all that it knows, and then the misses.
func (w *web) walk() error {
	for i := range w.h {
		if err := w.visit(i); err != nil {
			return err
		}
	}
	if w.rules.Lossy {
		return nil
	}
	for _, a := range w.absents {
		if err := w.explain(a); err != nil {
			return err
		}
	}
	return nil
}

const (
	unseen byte = iota
	underWay
	done
)

// visit gives node its clock, and checks it, after all that it knows. It keeps
// the way it is on by itself, as that may be as long as the history.
func (w *web) visit(node int) error {
	way := []int{node}
	for len(way) > 0 {
		node := way[len(way)-1]
		if w.state[node] == done {
			way = way[:len(way)-1]
			continue
		}
		first := w.state[node] == unseen
		w.state[node] = underWay
		var err error
		ready := true
		w.known(node, func(k int) bool {
			switch {
			case w.state[k] == unseen:
				ready = false
				way = append(way, k)
			case w.state[k] == underWay && first:
				err = w.circle(node)
			}
			return err == nil
		})
		switch {
		case err != nil:
			return err
		case !ready:
			continue
		}
		w.state[node] = done
		w.join(node)
		if node < len(w.h) {
			if err := w.check(node); err != nil {
				return err
			}
		}
	}
	return nil
}

// join makes the clock of a node from those of whom it knows.
func (w *web) join(node int) {
	var clock []int32
	own := false // whether clock is ours to modify
	grow := func(s int, n int32) {
		if n == 0 || clock != nil && clock[s] >= n {
			return
		}
		if !own {
			fresh := make([]int32, w.sessions)
			copy(fresh, clock)
			clock, own = fresh, true
		}
		clock[s] = n
	}
	w.known(node, func(k int) bool {
		if clock == nil {
			clock = w.clock[k]
		} else {
			for s, n := range w.clock[k] {
				grow(s, n)
			}
		}
		if k < len(w.h) && (node >= len(w.h) || w.session[k] != w.session[node]) {
			grow(w.session[k], w.pos[k])
		}
		return true
	})
	w.clock[node] = clock
}

// past is what event i knows of a key. The rest of it is in the entry, except for
// the last writes of all connections, which f is called with, if it is not nil.
func (w *web) past(i int, key string, f func(write int)) entry {
	p := nothing
	log := w.logs[key]
	for _, s := range log.active {
		n := w.count(i, s)
		all := log.entries[s]
		at, found := slices.BinarySearchFunc(all, n, func(e entry, n int32) int { return cmp.Compare(e.pos, n) })
		if found {
			at++
		}
		if at == 0 {
			continue
		}
		e := all[at-1]
		w.merge(&p, e)
		if e.write >= 0 && f != nil {
			f(e.write)
		}
	}
	return p
}

// merge adds to p what e shows.
func (w *web) merge(p *entry, e entry) {
	if e.newest >= 0 && (p.newest < 0 || w.version[e.newest] > w.version[p.newest]) {
		p.newest = e.newest
	}
	if e.killer >= 0 && (p.killer < 0 || e.below > p.below) {
		p.killer, p.below = e.killer, e.below
	}
}

// shown is the version of p.newest, 0 if there is none.
func (w *web) shown(p entry) uint64 {
	if p.newest < 0 {
		return 0
	}
	return w.version[p.newest]
}

// check judges an event by what it knows, and notes what those learn who know it.
func (w *web) check(i int) error {
	e := &w.h[i]
	if e.Op.Kind == Flush {
		for _, key := range w.keys {
			w.note(i, key, w.past(i, key, nil))
			w.logs[key].removals = append(w.logs[key].removals, i)
		}
		return nil
	}
	key, v := e.Op.Key, w.version[i]
	p := w.past(i, key, nil)
	switch {
	case e.Out.Status == Hit && v != 0:
		if v < w.shown(p) {
			return w.violation("a read is older than what it must know", p.newest, i)
		}
		if p.killer >= 0 && v <= p.below {
			return w.violation("a read shows what it must know to be gone", p.killer, i)
		}
	case e.puts() && v != 0:
		if v <= w.shown(p) {
			return w.violation("a write is older than what it must know", p.newest, i)
		}
		if e.Op.Kind == CAS && e.Op.Compare < w.shown(p) {
			return w.violation("a cas compares with less than it must know", p.newest, i)
		}
		if e.Op.Kind == CAS && p.killer >= 0 && e.Op.Compare <= p.below {
			return w.violation("a cas compares with what it must know to be gone", p.killer, i)
		}
	case e.removes():
		w.logs[key].removals = append(w.logs[key].removals, i)
	}
	if e.absent() {
		w.absents = append(w.absents, absent{i, key})
	}
	w.note(i, key, p)
	return nil
}

// absent reports whether the event was answered as if there were no item.
func (e *Event) absent() bool {
	switch e.Out.Status {
	case Miss, NotFound:
		return true
	case NotStored:
		return e.Op.Kind != Add
	case Stored:
		return e.Op.Kind == Add
	}
	return false
}

// note writes down what event i, which knows p of key, shows to those who know it.
func (w *web) note(i int, key string, p entry) {
	log, s := w.logs[key], w.session[i]
	e := nothing
	if all := log.entries[s]; len(all) > 0 {
		e = all[len(all)-1]
	} else {
		log.active = append(log.active, s)
	}
	e.pos = w.pos[i]
	ev := &w.h[i]
	if w.version[i] != 0 {
		w.merge(&e, entry{newest: i, killer: -1})
	}
	// What replaces the newest that it knows, under a version nobody was told.
	if p.newest >= 0 && (ev.writes() && w.version[i] == 0 || ev.absent()) {
		w.merge(&e, entry{newest: -1, killer: i, below: w.version[p.newest]})
	}
	if ev.puts() {
		e.write = i
	}
	log.entries[s] = append(log.entries[s], e)
}

// explain returns an error if nothing can have removed the item that is missing.
func (w *web) explain(a absent) error {
	var writes []int
	p := w.past(a.event, a.key, func(write int) { writes = append(writes, write) })
	if p.newest < 0 && len(writes) == 0 {
		return nil
	}
	if w.removed(a.key, w.shown(p), writes, w.h[a.event].Return, func(removal int) bool { return !w.knows(removal, a.event) }) {
		return nil
	}
	culprit := p.newest
	if culprit < 0 {
		culprit = writes[0]
	}
	return w.violation("a miss of what it must know, and nothing can have removed it", culprit, a.event)
}

// removed reports whether there is a removal of key, called by the time until,
// that fits and can be newer than the version newest and than writes.
func (w *web) removed(key string, newest uint64, writes []int, until int64, fits func(removal int) bool) bool {
	log := w.logs[key]
	if log.highs == nil {
		slices.Sort(log.removals) // as h is in the order of calls
		log.highs = w.highs(key)
	}
	n := sort.Search(len(log.removals), func(n int) bool { return w.h[log.removals[n]].Call > until })
	for n--; n >= 0; n-- {
		removal := log.removals[n]
		if log.highs[n] > newest && fits(removal) &&
			!slices.ContainsFunc(writes, func(write int) bool { return w.knows(write, removal) }) {
			return true
		}
	}
	return false
}

// highs bounds the versions of the removals of key: each is below the version of
// any event that knows it. On a connection the first to know it has the lowest, or
// walk would have complained.
func (w *web) highs(key string) []uint64 {
	sessions := make(map[int][]int)
	for _, i := range w.of[key] {
		if w.version[i] != 0 {
			sessions[w.session[i]] = append(sessions[w.session[i]], i)
		}
	}
	removals := w.logs[key].removals
	highs := make([]uint64, len(removals))
	for n, removal := range removals {
		highs[n] = never
		for _, events := range sessions {
			if k := sort.Search(len(events), func(k int) bool { return w.knows(events[k], removal) }); k < len(events) {
				highs[n] = min(highs[n], w.version[events[k]])
			}
		}
	}
	return highs
}

// level is what violations call the promise.
func (w *web) level() string {
	if w.causal {
		return "causally consistent"
	}
	return "eventually consistent"
}

// violation tells of event i, which must know event j of its key.
func (w *web) violation(what string, j, i int) error {
	return fmt.Errorf("not %s: %s\nknown: %v\nwrong: %v\n%s", w.level(), what, w.h[j], w.h[i], w.how(j, i))
}

// how tells how event j came to be known to event i: the shortest way there is.
func (w *web) how(j, i int) string {
	knower := map[int]int{i: -1} // by node: who knows it, on the way to i
	for queue := []int{i}; len(queue) > 0; queue = queue[1:] {
		w.known(queue[0], func(k int) bool {
			if _, ok := knower[k]; !ok {
				knower[k] = queue[0]
				queue = append(queue, k)
			}
			return true
		})
	}
	if _, ok := knower[j]; !ok {
		return ""
	}
	var way History
	for node := j; node >= 0; node = knower[node] {
		if node < len(w.h) {
			way = append(way, w.h[node])
		}
	}
	return "How it is known, from one to the next by connection, by controller or by reading it:\n" + story(way, 20)
}

// circle tells of events that know themselves.
func (w *web) circle(node int) error {
	var way History
	seen := make(map[int]bool)
	for !seen[node] {
		seen[node] = true
		if node < len(w.h) {
			way = append(way, w.h[node])
		}
		at := node
		w.known(at, func(k int) bool {
			if w.state[k] == underWay {
				node = k
			}
			return true
		})
	}
	return fmt.Errorf("not %s: commands that know themselves, each by the one after it:\n%s", w.level(), story(way, 20))
}
