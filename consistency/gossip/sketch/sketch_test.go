package sketch_test

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/attunekv/attune/consistency/gossip/sketch"
)

const secret = sketch.Secret(0x5eed)

// of is cells from to to-1 of a set.
func of(from, to int, items ...sketch.Item) *sketch.Sketch {
	s := sketch.New(secret, from, to)
	for _, it := range items {
		s.Insert(it)
	}
	return s
}

// random is n items, no two the same.
func random(rnd *rand.Rand, n int) []sketch.Item {
	items := make([]sketch.Item, n)
	for i := range items {
		items[i] = sketch.Item{Key: rnd.Uint64(), Mark: rnd.Uint64()}
	}
	return items
}

// drawItem draws one of few keys and marks, so that sets meet.
func drawItem(t *rapid.T) sketch.Item {
	return sketch.Item{
		Key:  rapid.Uint64Range(0, 60).Draw(t, "key"),
		Mark: rapid.Uint64Range(0, 3).Draw(t, "mark"),
	}
}

// TestCellsDependOnTheSetAlone inserts, removes and overwrites, and compares with
// a sketch of what is left.
func TestCellsDependOnTheSetAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.IntRange(0, 100).Draw(t, "from")
		to := from + rapid.IntRange(0, 100).Draw(t, "len")
		s := of(from, to)
		model := make(map[uint64]uint64) // mark by key, as a store has it
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			it := drawItem(t)
			old, had := model[it.Key]
			if had {
				s.Remove(sketch.Item{Key: it.Key, Mark: old})
				delete(model, it.Key)
			}
			if !had || rapid.Bool().Draw(t, "overwrite") {
				s.Insert(it)
				model[it.Key] = it.Mark
			}
		}
		var left []sketch.Item
		for k, m := range model {
			left = append(left, sketch.Item{Key: k, Mark: m})
		}
		if !slices.Equal(s.Cells(), of(from, to, left...).Cells()) {
			t.Fatal("the cells differ from those of the same set made anew")
		}
		if first := of(0, 1, left...).Cells()[0]; first.Count != int64(len(left)) {
			t.Fatalf("cell 0 counts %d of %d items", first.Count, len(left))
		}
	})
}

func TestBlocksContinueEachOther(t *testing.T) {
	items := random(rand.New(rand.NewPCG(1, 1)), 500)
	var joined []sketch.Cell
	for _, b := range [][2]int{{0, 0}, {0, 1}, {1, 100}, {100, 256}, {256, 1000}} {
		joined = append(joined, of(b[0], b[1], items...).Cells()...)
	}
	if !slices.Equal(joined, of(0, 1000, items...).Cells()) {
		t.Error("cells of blocks differ from those of one sketch")
	}
}

func TestCellZeroTellsSetsApart(t *testing.T) {
	a := []sketch.Item{{Key: 1, Mark: 10}, {Key: 2, Mark: 20}}
	first := func(secret sketch.Secret, items ...sketch.Item) sketch.Cell {
		s := sketch.New(secret, 0, 1)
		for _, it := range items {
			s.Insert(it)
		}
		return s.Cells()[0]
	}
	same := first(secret, a...)
	if first(secret, a[1], a[0]) != same {
		t.Error("the order matters")
	}
	// Same keys, marks and count, as sums.
	if c := first(secret, sketch.Item{Key: 1, Mark: 20}, sketch.Item{Key: 2, Mark: 10}); c == same {
		t.Error("marks that changed places make no difference")
	}
	if first(secret+1, a...) == same {
		t.Error("the secret does not matter")
	}
	if first(secret) != (sketch.Cell{}) {
		t.Error("the cell of no items is not zero")
	}
}

func TestNewRefusesImpossibleRanges(t *testing.T) {
	for _, r := range [][2]int{{-1, 1}, {2, 1}, {0, sketch.MaxCells + 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("cells %d to %d exist", r[0], r[1])
				}
			}()
			sketch.New(secret, r[0], r[1])
		}()
	}
}

func TestChangesAllocateNothing(t *testing.T) {
	s := of(0, 256)
	it := sketch.Item{Key: 1}
	if n := testing.AllocsPerRun(100, func() { s.Insert(it); s.Remove(it); it.Mark++ }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// difference is what only a has, and what only b has.
func difference(a, b map[sketch.Item]bool) (onlyA, onlyB []sketch.Item) {
	for it := range a {
		if !b[it] {
			onlyA = append(onlyA, it)
		}
	}
	for it := range b {
		if !a[it] {
			onlyB = append(onlyB, it)
		}
	}
	return sorted(onlyA), sorted(onlyB)
}

func sorted(items []sketch.Item) []sketch.Item {
	return slices.SortedFunc(slices.Values(items), func(a, b sketch.Item) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Mark, b.Mark))
	})
}
