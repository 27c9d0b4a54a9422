package gossip

import (
	"cmp"
	"slices"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/gossip/sketch"
	"github.com/attunekv/attune/replica"
)

const (
	// servedAtOnce is how many pulls a member serves; more are told to come later.
	// servedFor is how long one that went silent counts.
	servedAtOnce = 4
	servedFor    = 3 * time.Second
	// scanMost is how many entries of the index are looked at for one answer, unless
	// the first part has more: some milliseconds, for which writes wait.
	scanMost = 16 << 10
	// recordsBytes is how much of records goes into an answer, unless one is larger.
	recordsBytes = 256 << 10

	cellBytes = 26 // on the wire, mostly
	itemBytes = 16
)

// part is one of so many, a power of two, into which the index is cut: some of its
// segments, or those entries of one that have some of the lowest bits of their keys
// in common. Both sides can walk it without a word of where they are, which an index
// that changes could not keep.
type part struct {
	first, end int // segments
	sub, mask  uint64
}

func partAt(i, parts int) part {
	if n := replica.Segments / parts; n > 0 {
		return part{first: i * n, end: (i + 1) * n}
	}
	split := parts / replica.Segments
	return part{first: i / split, end: i/split + 1, sub: uint64(i % split), mask: uint64(split - 1)}
}

// partsOf is into how many parts to cut an index of so many entries.
func partsOf(entries int64) int {
	parts := 1
	for entries/int64(parts) > scanMost/2 && parts < maxParts {
		parts *= 2
	}
	return parts
}

func (p part) has(key uint64) bool { return key&p.mask == p.sub }

// walk calls fn for the entries of a part, and returns how many it looked at. fn
// must not call the replica.
func (k *core) walk(p part, fn func(it sketch.Item)) (looked int) {
	for s := p.first; s < p.end; s++ {
		k.replica.Each(s, func(h attune.KeyHash, m replica.Mark) {
			looked++
			if key := sketchKey(h); p.has(key) {
				fn(sketch.Item{Key: key, Mark: uint64(m)})
			}
		})
	}
	return looked
}

// vector is how far this member is, by origin; or as far as it may tell, so that
// others count on it.
func (k *core) vector(tells bool) []dependency {
	v := make([]dependency, 0, len(k.vv))
	for o, p := range k.vv {
		seq := p.seq
		if tells {
			seq = p.told
		}
		if seq != 0 {
			v = append(v, dependency{o, seq})
		}
	}
	slices.SortFunc(v, func(a, b dependency) int { return cmp.Compare(a.origin, b.origin) })
	return v
}

// serve answers a request of a pull. Of pulls it keeps nothing but their number:
// what is asked again, or for the first time much later, is answered as of then.
func (r *reconciler) serve(from uint64, kind byte, body []byte, now time.Duration) {
	k := r.k
	q, ok := parseRequest(kind, body)
	if !ok {
		k.log.Warn("a peer asked for what this version does not know: are all controllers of one version?")
		return
	}
	to := frameCellsOf
	if kind == frameWant {
		to = frameRecords
	}
	a := answer{session: q.session, number: q.number, floor: k.replica.Floor(), cut: k.replica.Collected()}
	// Who takes over a causal cluster's data has of that some of each moment, until
	// it has all; and who was away may have what is dead. Neither must pass that on.
	if !r.admit(q.session, now) || k.causal && !k.synced || k.cut.lagging() {
		a.flags = isBusy
		r.send(from, to, a.append(nil))
		return
	}
	if q.flags&tellVector != 0 {
		// The records of the moment may be of changes that this member would lose, if
		// it crashed now. Nobody must count those as known; yet who wants to have what
		// belongs together waits until they come.
		a.flags, a.vector = hasVector, k.vector(kind == frameCells)
	}
	b := a.append(make([]byte, 0, 4<<10))
	switch {
	case kind == frameWant:
		b = r.records(b, &q)
	case q.parts == 0:
		cells := k.sketch.Cells()
		b = appendCells(b, cells[0].Count, cells[:max(min(q.cells, len(cells)), 1)])
	default:
		b = r.parts(b, &q)
	}
	r.send(from, to, b)
}

// admit reports whether a pull may be served.
func (r *reconciler) admit(session uint64, now time.Duration) bool {
	for s, last := range r.serving {
		if now-last > servedFor {
			delete(r.serving, s)
		}
	}
	if _, known := r.serving[session]; !known && len(r.serving) >= servedAtOnce {
		return false
	}
	r.serving[session] = now
	return true
}

// send is for frames of pulls. They do not go with the updates, or those would wait
// behind them.
func (r *reconciler) send(to uint64, kind byte, body []byte) bool {
	sent := r.k.world.send(to, cluster.Calls, kind, body)
	if sent {
		r.out += uint64(len(body))
	}
	return sent
}

// records appends the records asked for, as many as have room.
func (r *reconciler) records(b []byte, q *request) []byte {
	for start := len(b); len(q.keys) > 0 && len(b)-start < recordsBytes; q.keys = q.keys[1:] {
		at := len(b)
		b = append(b, 0)
		r.buf = r.k.replica.Fetch(q.keys[0], r.buf, func(h replica.Held) {
			b[at]++
			b = appendHeld(b, &h, q.flags&withoutBytes != 0)
		})
	}
	return b
}

// parts appends those asked for, as many as have room: each as cells or, if that is
// no longer, as a list.
func (r *reconciler) parts(b []byte, q *request) []byte {
	looked := 0
	end := min(q.first+q.count, q.parts)
	for i, start := q.first, len(b); i < end && len(b)-start < frameBytes && looked < scanMost; i++ {
		items := r.items[:0]
		looked += r.k.walk(partAt(i, q.parts), func(it sketch.Item) { items = append(items, it) })
		r.items = items
		if q.cells == 0 || itemBytes*len(items) <= cellBytes*q.cells {
			b = appendList(b, items)
		} else {
			b = appendCells(b, int64(len(items)), r.cellsOf(items, q.cells))
		}
	}
	return b
}

// cellsOf are the first n cells of a set.
func (r *reconciler) cellsOf(items []sketch.Item, n int) []sketch.Cell {
	s := sketch.New(r.secret, 0, n)
	for _, it := range items {
		s.Insert(it)
	}
	return s.Cells()
}
