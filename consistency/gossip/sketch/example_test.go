package sketch_test

import (
	"fmt"
	"slices"

	"github.com/attunekv/attune/consistency/gossip/sketch"
)

// Two nodes hold a thousand keys; one missed an overwrite.
func Example() {
	const kept = 256
	ours, theirs := sketch.New(1, 0, kept), sketch.New(1, 0, kept)
	for key := range uint64(1000) {
		ours.Insert(sketch.Item{Key: key, Mark: 7})
		theirs.Insert(sketch.Item{Key: key, Mark: 7})
	}
	theirs.Remove(sketch.Item{Key: 42, Mark: 7})
	theirs.Insert(sketch.Item{Key: 42, Mark: 8})

	// Their answers to our questions for blocks are of one moment.
	moment := slices.Clone(theirs.Cells())
	items := moment[0].Count
	ask := func(from, to int) []byte { return sketch.AppendCells(nil, from, items, moment[from:to]) }

	d := sketch.NewDecoder(1, kept)
	for from, to := 0, 32; to <= kept; from, to = to, 2*to {
		cells, err := sketch.ParseCells(ask(from, to), from, items)
		if err != nil {
			panic(err)
		}
		done, err := d.Add(ours.Cells()[from:to], cells)
		if err != nil {
			panic(err)
		}
		if done {
			break
		}
	}
	fmt.Println("cells:", d.Len())
	fmt.Println("ours:", d.Ours())
	fmt.Println("theirs:", d.Theirs())
	// Output:
	// cells: 32
	// ours: [{42 7}]
	// theirs: [{42 8}]
}
