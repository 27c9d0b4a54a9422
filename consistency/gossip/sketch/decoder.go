package sketch

import (
	"errors"
	"fmt"
)

// Errors of [Decoder.Add], which stay.
var (
	// ErrInconsistent: the cells are not those of two sets. Either side's were
	// taken while the set changed, or in different orders, or with another secret,
	// or were damaged. Begin again with fresh ones.
	ErrInconsistent = errors.New("the cells are not all of one set at one moment")
	// ErrLimit: the difference needs more cells than allowed. Transfer everything.
	ErrLimit = errors.New("the sets differ too much for their sketches")
)

// Decoder finds out in what two sets differ, given the cells of both. It is for
// one goroutine, and one difference.
//
// The cells may be anything: what it does and keeps is bounded by their number.
type Decoder struct {
	secret Secret
	limit  int

	// cells are theirs less ours, less what was found.
	cells []Cell
	// found has one item of each cell that was emptied, so never more than there
	// are cells.
	found []found
	// look are the numbers of cells that may have come down to one item.
	look []int

	theirs, ours []Item
	done         bool
	err          error
}

// found is an item that only one side has, on its way to the first cell that was
// not added yet.
type found struct {
	one Cell // the item alone: its Count is 1 if it is theirs, -1 if ours
	walk
}

// NewDecoder returns a Decoder that gives up beyond limit cells. It keeps some 40
// bytes of each, and 80 of each item it finds.
func NewDecoder(secret Secret, limit int) *Decoder {
	return &Decoder{secret: secret, limit: min(limit, MaxCells)}
}

// Add takes the next cells of both sides, as many of one as of the other, from
// cell 0 on, and reports whether that was enough: [Decoder.Theirs] and
// [Decoder.Ours] are then the difference. It looks at all that was found before,
// so blocks should grow with the number of cells. Errors: [ErrInconsistent],
// [ErrLimit].
func (d *Decoder) Add(ours, theirs []Cell) (done bool, err error) {
	if d.done || d.err != nil {
		return d.done, d.err
	}
	d.done, d.err = d.add(ours, theirs)
	return d.done, d.err
}

func (d *Decoder) add(ours, theirs []Cell) (bool, error) {
	if len(ours) != len(theirs) {
		return false, fmt.Errorf("%d cells against %d: %w", len(theirs), len(ours), ErrInconsistent)
	}
	first := len(d.cells)
	if len(ours) > d.limit-first {
		return false, ErrLimit
	}
	for i := range theirs {
		c := theirs[i]
		c.subtract(&ours[i])
		d.cells = append(d.cells, c)
	}
	for i := range d.found {
		f := &d.found[i]
		for ; f.at < uint64(len(d.cells)); f.walk = f.next() {
			d.cells[f.at].subtract(&f.one)
		}
	}
	for i := first; i < len(d.cells); i++ {
		d.look = append(d.look, i)
		for len(d.look) > 0 {
			last := len(d.look) - 1
			at := d.look[last]
			d.look = d.look[:last]
			if err := d.peel(at); err != nil {
				return false, err
			}
		}
	}
	if len(d.cells) == 0 || d.cells[0] != (Cell{}) {
		return false, nil
	}
	// Nothing is left, so nothing may be left anywhere.
	for i := range d.cells {
		if d.cells[i] != (Cell{}) {
			return false, ErrInconsistent
		}
	}
	return true, nil
}

// peel takes the item of cell i out of all cells, if there is but one.
func (d *Decoder) peel(i int) error {
	one := d.cells[i]
	it := Item{one.Key, one.Mark}
	if one.Count != 1 && one.Count != -1 || d.secret.sum(it) != one.Sum {
		return nil
	}
	// A cell that was emptied stays empty, if all is well; if not, two items can
	// bring each other back for ever.
	if len(d.found) == len(d.cells) {
		return ErrInconsistent
	}
	f := found{one: one, walk: start(one.Sum)}
	for ; f.at < uint64(len(d.cells)); f.walk = f.next() {
		c := &d.cells[f.at]
		c.subtract(&one)
		if c.Count == 1 || c.Count == -1 {
			d.look = append(d.look, int(f.at))
		}
	}
	if d.cells[i] != (Cell{}) { // it does not belong there
		return ErrInconsistent
	}
	d.found = append(d.found, f)
	if one.Count > 0 {
		d.theirs = append(d.theirs, it)
	} else {
		d.ours = append(d.ours, it)
	}
	return nil
}

func (c *Cell) subtract(o *Cell) {
	c.add(Item{o.Key, o.Mark}, o.Sum, -o.Count)
}

// Len returns the number of cells added, which is the number of the next one.
func (d *Decoder) Len() int { return len(d.cells) }

// Theirs returns what only they have, in no order. Before Add said done it is
// some of that, and may be wrong if the cells are.
func (d *Decoder) Theirs() []Item { return d.theirs }

// Ours returns what only we have, like [Decoder.Theirs].
func (d *Decoder) Ours() []Item { return d.ours }
