package gossip

import (
	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/gossip/sketch"
	"github.com/attunekv/attune/replica"
)

// difference takes the cells or lists that were asked for.
func (r *reconciler) difference(rd *reader, cut attune.Version) (ok bool) {
	p, q := r.pull, r.pull.asked
	if q.parts == 0 {
		part, ok := rd.part()
		if !ok || !rd.end() || len(part.cells) == 0 || len(part.cells) > max(q.cells, 1) {
			return false
		}
		r.whole(&part, cut)
		return true
	}
	var again []redo
	cells, i := 0, q.first
	for ; len(rd.b) > 0 && i < q.first+q.count; i++ {
		part, ok := rd.part()
		if !ok {
			return false
		}
		at := partAt(i, q.parts)
		found, done := r.inCommon(at, &part, cut)
		if !done {
			again = append(again, redo{i, 4 * len(part.cells)})
			continue
		}
		// The next parts differ as much as this one, more or less.
		cells = max(cells, cellsFor(found))
	}
	if !rd.end() || i == q.first {
		return false
	}
	if q.first < p.next { // it was asked for again
		p.again = p.again[1:]
	} else {
		p.next = i
	}
	if p.cells != 0 && cells != 0 {
		p.cells = cells
	}
	p.again = append(p.again, again...)
	return true
}

// whole takes cells of the whole index.
func (r *reconciler) whole(t *partOf, cut attune.Version) {
	p, n := r.pull, len(t.cells)
	d := sketch.NewDecoder(r.secret, n)
	if done, _ := d.Add(r.wholeCells(n), t.cells); done {
		r.compare(d.Theirs(), d.Ours(), cut)
		p.next = 1
		return
	}
	own := r.k.sketch.Total().Count
	least := max(own-t.items, t.items-own) // keys that differ, or more
	if n == p.cells && n < sketchCells && least < sketchCells*2/3 {
		for p.cells = 4 * n; int64(p.cells) < 2*least; {
			p.cells *= 2
		}
		p.cells = min(p.cells, sketchCells)
		return
	}
	p.parts = partsOf(max(own, t.items))
	p.cells = cellsFor(int(max(least, sketchCells)) / p.parts)
	if own == 0 {
		p.cells = 0 // everything is missing
	}
}

// cellsFor is how many cells nearly always suffice for so many items.
func cellsFor(items int) int { return min(items+items*3/4+firstCells/2, maxCells) }

// wholeCells are the first n cells of what is here and kept aside.
func (r *reconciler) wholeCells(n int) []sketch.Cell {
	p, k := r.pull, r.k
	cells := k.sketch.Cells()[:n]
	if len(p.changes) == 0 {
		return cells
	}
	over := sketch.New(r.secret, 0, n)
	for i := range p.changes {
		c := &p.changes[i]
		was, is := k.replica.MarkOf(c.Key.Hash), markOf(c)
		if !is.Newer(was) || is.Version() <= k.replica.Floor() {
			continue
		}
		if was != 0 {
			over.Remove(sketch.Item{Key: sketchKey(c.Key.Hash), Mark: uint64(was)})
		}
		over.Insert(sketch.Item{Key: sketchKey(c.Key.Hash), Mark: uint64(is)})
	}
	// Cells of the sum of two sets are the sums of theirs.
	sum := over.Cells()
	for i := range sum {
		sum[i].Key ^= cells[i].Key
		sum[i].Mark ^= cells[i].Mark
		sum[i].Sum ^= cells[i].Sum
		sum[i].Count += cells[i].Count
	}
	return sum
}

// markOf is the mark of an entry that came of c.
func markOf(c *attune.Change) replica.Mark {
	return replica.MarkOf(c.Item.Version, c.Item.Deleted && c.Prior == c.Item.Version)
}

// inCommon compares a part with what the source told of it, and reports in how much
// they differ, and whether that could be told.
func (r *reconciler) inCommon(at part, t *partOf, cut attune.Version) (found int, done bool) {
	own := r.own(at)
	if t.cells != nil {
		d := sketch.NewDecoder(r.secret, len(t.cells))
		if done, _ := d.Add(r.cellsOf(own, len(t.cells)), t.cells); !done {
			return 0, false
		}
		r.compare(d.Theirs(), d.Ours(), cut)
		return len(d.Theirs()) + len(d.Ours()), true
	}
	only := make(map[sketch.Item]struct{}, len(own))
	for _, it := range own {
		only[it] = struct{}{}
	}
	var theirs, ours []sketch.Item
	for _, it := range t.list {
		if _, both := only[it]; both {
			delete(only, it)
		} else {
			theirs = append(theirs, it)
		}
	}
	for _, it := range own {
		if _, left := only[it]; left {
			ours = append(ours, it)
		}
	}
	r.compare(theirs, ours, cut)
	return len(theirs) + len(ours), true
}

// own is what of a part is here or kept aside.
func (r *reconciler) own(at part) []sketch.Item {
	p, items := r.pull, r.items[:0]
	var aside map[uint64]replica.Mark
	for _, places := range p.inSegment[at.first:at.end] {
		for _, i := range places {
			c := &p.changes[i]
			if key := sketchKey(c.Key.Hash); at.has(key) && c.Item.Version > r.k.replica.Floor() {
				if aside == nil {
					aside = make(map[uint64]replica.Mark)
				}
				aside[key] = markOf(c)
			}
		}
	}
	r.k.walk(at, func(it sketch.Item) {
		if m, ok := aside[it.Key]; ok {
			delete(aside, it.Key)
			if m.Newer(replica.Mark(it.Mark)) {
				it.Mark = uint64(m)
			}
		}
		items = append(items, it)
	})
	for key, m := range aside {
		items = append(items, sketch.Item{Key: key, Mark: uint64(m)})
	}
	r.items = items
	return items
}

// compare takes a difference: what the source has newer is wanted. cut is the
// source's, when it told.
func (r *reconciler) compare(theirs, ours []sketch.Item, cut attune.Version) {
	p := r.pull
	floor, ownCut := max(p.floor, r.k.replica.Floor()), r.k.replica.Collected()
	here := make(map[uint64]replica.Mark, len(ours))
	for _, it := range ours {
		here[it.Key] = replica.Mark(it.Mark)
	}
	p.differing += len(theirs)
	for _, it := range theirs {
		m := replica.Mark(it.Mark)
		own, known := here[it.Key]
		delete(here, it.Key)
		// What is refused for want of an entry need not come.
		if m.Version() > floor && (known && m.Newer(own) || !known && m.Version() > ownCut) {
			p.wants = append(p.wants, it.Key)
		}
	}
	p.differing += len(here)
	// All others have what is not above their cut, or had it, and dropped it when it
	// was dead. What they do not know is from before this member was expelled.
	for _, it := range ours {
		m := replica.Mark(it.Mark)
		if _, alone := here[it.Key]; alone && m.Version() > floor && m.Version() <= cut {
			p.doomed = append(p.doomed, it)
		}
	}
}
