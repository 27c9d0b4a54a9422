package sketch

import "fmt"

// Item is a member of a set: a key's hash and what tells the states of the key
// apart. A set has an item once, but may have several of one key.
type Item struct{ Key, Mark uint64 }

// Cell is the items of a set that fall into it, added up. The zero Cell is that
// of an empty set.
type Cell struct {
	Key, Mark, Sum uint64 // XOR of the items and of their checksums
	Count          int64  // how many; in cell 0, how many the set has
}

// add adds n items that are the same: 1, or -1 to take one out.
func (c *Cell) add(it Item, sum uint64, n int64) {
	c.Key ^= it.Key
	c.Mark ^= it.Mark
	c.Sum ^= sum
	c.Count += n
}

// Sketch holds some successive cells of a set. It has no lock: changing it and
// reading its cells is for one goroutine at a time.
type Sketch struct {
	secret Secret
	from   uint64
	cells  []Cell
}

// New returns the cells from, from+1, ..., to-1 of the empty set, 32 bytes each.
// It panics unless 0 <= from <= to <= [MaxCells]: who takes the bounds from a
// peer checks them first.
func New(secret Secret, from, to int) *Sketch {
	if from < 0 || from > to || to > MaxCells {
		panic(fmt.Sprintf("sketch: cells %d to %d", from, to))
	}
	return &Sketch{secret: secret, from: uint64(from), cells: make([]Cell, to-from)}
}

// Insert adds an item that the set does not have. Adding it twice is not
// noticed, and then nothing decodes any more; so is removing what is not there.
// To overwrite is to remove the old item and insert the new one. The time it
// takes grows with the logarithm of the number of the last cell.
func (s *Sketch) Insert(it Item) { s.add(it, 1) }

// Remove takes out an item that the set has. See [Sketch.Insert].
func (s *Sketch) Remove(it Item) { s.add(it, -1) }

func (s *Sketch) add(it Item, n int64) {
	sum := s.secret.sum(it)
	end := s.from + uint64(len(s.cells))
	for w := start(sum); w.at < end; w = w.next() {
		if w.at >= s.from {
			s.cells[w.at-s.from].add(it, sum, n)
		}
	}
}

// Cells returns the cells, the first of which is cell from of the set. They are
// the Sketch's own: not to be changed, and to be copied by who needs them as they
// are now.
func (s *Sketch) Cells() []Cell { return s.cells }
