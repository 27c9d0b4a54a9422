package sketch_test

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/attunekv/attune/consistency/gossip/sketch"
)

// TestDecodeIsTheSymmetricDifference has nothing but the sketches that two sides
// kept while they changed, and in the end compares with the sets.
func TestDecodeIsTheSymmetricDifference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const cells = 1024 // far more than some 240 items need
		kept := [2]*sketch.Sketch{of(0, cells), of(0, cells)}
		sets := [2]map[sketch.Item]bool{{}, {}}
		for range rapid.IntRange(0, 150).Draw(t, "steps") {
			it := drawItem(t)
			who := rapid.SampledFrom([][]int{{0}, {1}, {0, 1}}).Draw(t, "who")
			for _, side := range who {
				if sets[side][it] {
					kept[side].Remove(it)
					delete(sets[side], it)
				} else {
					kept[side].Insert(it)
					sets[side][it] = true
				}
			}
		}
		ours, theirs := difference(sets[0], sets[1])

		d := sketch.NewDecoder(secret, cells)
		for done := false; !done; {
			from := d.Len()
			to := min(from+rapid.IntRange(0, 200).Draw(t, "block"), cells)
			if from == cells {
				t.Fatalf("%d differences, not decoded from %d cells", len(ours)+len(theirs), cells)
			}
			var err error
			if done, err = d.Add(kept[0].Cells()[from:to], kept[1].Cells()[from:to]); err != nil {
				t.Fatal(err)
			}
			if d.Len() != to {
				t.Fatalf("Len %d after %d cells", d.Len(), to)
			}
		}
		if !slices.Equal(sorted(d.Ours()), ours) || !slices.Equal(sorted(d.Theirs()), theirs) {
			t.Fatalf("ours %v, want %v; theirs %v, want %v", d.Ours(), ours, d.Theirs(), theirs)
		}
	})
}

// diff feeds a Decoder the cells of a difference alone, which are the same as
// those of any two sets that differ so, in blocks of step, and returns it with
// the number of cells that were enough.
func diff(tb testing.TB, ours, theirs []sketch.Item, step int) (*sketch.Decoder, int) {
	d := sketch.NewDecoder(secret, sketch.MaxCells)
	size := max(2*(len(ours)+len(theirs)), 4*step)
	for from := 0; ; from += size {
		a, b := of(from, from+size, ours...).Cells(), of(from, from+size, theirs...).Cells()
		for i := 0; i < size; i += step {
			to := min(i+step, size)
			done, err := d.Add(a[i:to], b[i:to])
			if err != nil {
				tb.Fatal(err)
			}
			if done {
				return d, d.Len()
			}
		}
	}
}

// split is d items, half of them ours.
func split(rnd *rand.Rand, d int) (ours, theirs []sketch.Item) {
	items := random(rnd, d)
	return items[:d/2], items[d/2:]
}

// TestOverhead holds what the paper found, and that nothing is left undecoded.
func TestOverhead(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct {
		d, trials int
		most      float64 // mean cells per difference
	}{
		{1, 100, 1},
		{2, 500, 2.2},
		{10, 500, 1.85},
		{100, 200, 1.52},
		{1000, 20, 1.42},
		{20_000, 1, 1.40},
	} {
		cells := 0
		for range c.trials {
			ours, theirs := split(rnd, c.d)
			d, n := diff(t, ours, theirs, max(1, c.d/200))
			if len(d.Ours()) != len(ours) || len(d.Theirs()) != len(theirs) {
				t.Fatalf("%d and %d items of %d and %d", len(d.Ours()), len(d.Theirs()), len(ours), len(theirs))
			}
			cells += n
		}
		if mean := float64(cells) / float64(c.trials*c.d); mean > c.most {
			t.Errorf("%d differences need %.2f cells each, want %.2f", c.d, mean, c.most)
		} else {
			t.Logf("%d differences: %.2f cells each", c.d, mean)
		}
	}
}

func TestEqualSetsNeedOneCell(t *testing.T) {
	s := of(0, 10, random(rand.New(rand.NewPCG(1, 2)), 1000)...)
	d := sketch.NewDecoder(secret, 1)
	if done, err := d.Add(nil, nil); done || err != nil {
		t.Fatalf("no cells: %v, %v", done, err)
	}
	if done, err := d.Add(s.Cells()[:1], s.Cells()[:1]); !done || err != nil {
		t.Fatalf("one cell: %v, %v", done, err)
	}
	if len(d.Ours())+len(d.Theirs()) != 0 {
		t.Error("found", d.Ours(), d.Theirs())
	}
	// Done is done: what comes later is not looked at.
	if done, err := d.Add(make([]sketch.Cell, 9), s.Cells()[:9]); !done || err != nil {
		t.Fatalf("after the end: %v, %v", done, err)
	}
}

func TestDecoderGivesUpAtItsLimit(t *testing.T) {
	theirs := of(0, 64, random(rand.New(rand.NewPCG(1, 2)), 1000)...).Cells()
	d := sketch.NewDecoder(secret, 48)
	if done, err := d.Add(make([]sketch.Cell, 48), theirs[:48]); done || err != nil {
		t.Fatal(done, err)
	}
	for range 2 { // an error stays
		if _, err := d.Add(make([]sketch.Cell, 1), theirs[48:49]); !errors.Is(err, sketch.ErrLimit) {
			t.Fatal(err)
		}
	}
}

// TestInconsistentCells are what decoding must notice, not search in for ever.
func TestInconsistentCells(t *testing.T) {
	x, y := sketch.Item{Key: 1, Mark: 1}, sketch.Item{Key: 2, Mark: 2}
	items := random(rand.New(rand.NewPCG(5, 6)), 100)
	for name, c := range map[string]struct{ ours, theirs []sketch.Cell }{
		"unequal lengths": {make([]sketch.Cell, 3), of(0, 2, x).Cells()},
		"items in cells they do not fall into": {make([]sketch.Cell, 64), func() []sketch.Cell {
			c := of(0, 64, items...).Cells()
			slices.Reverse(c)
			return c
		}()},
		"an item in all cells": {make([]sketch.Cell, 64), slices.Repeat(of(0, 1, x).Cells(), 64)},
		// The first cells of before a change, the next of after it.
		"a set that changed": {make([]sketch.Cell, 64), append(of(0, 10, x).Cells(), of(10, 64, x, y).Cells()...)},
		"something besides": {make([]sketch.Cell, 64), func() []sketch.Cell {
			c := of(0, 64, items[:20]...).Cells()
			c[63].Key++
			return c
		}()},
	} {
		d := sketch.NewDecoder(secret, 1000)
		if done, err := d.Add(c.ours, c.theirs); done || !errors.Is(err, sketch.ErrInconsistent) {
			t.Errorf("%s: %v, %v", name, done, err)
		}
	}

	// With another secret nothing is ever found.
	other := sketch.New(secret+1, 0, 64)
	other.Insert(x)
	d := sketch.NewDecoder(secret, 1000)
	if done, err := d.Add(make([]sketch.Cell, 64), other.Cells()); done || err != nil || len(d.Theirs()) != 0 {
		t.Errorf("another secret: %v, %v, %v", done, err, d.Theirs())
	}
	// Nor of an item that a set has twice.
	d = sketch.NewDecoder(secret, 1000)
	if done, err := d.Add(make([]sketch.Cell, 64), of(0, 64, x, x).Cells()); done || err != nil || len(d.Theirs()) != 0 {
		t.Errorf("twice: %v, %v, %v", done, err, d.Theirs())
	}
}

// checkDecode adds any cells and holds what must be so whatever they are.
func checkDecode(t interface{ Fatalf(string, ...any) }, ours, theirs []sketch.Cell, block int) {
	d := sketch.NewDecoder(secret, len(ours))
	for from := 0; from < len(ours); from += block {
		to := min(from+block, len(ours))
		done, err := d.Add(ours[from:to], theirs[from:to])
		if n := len(d.Ours()) + len(d.Theirs()); n > d.Len() {
			t.Fatalf("%d items of %d cells", n, d.Len())
		}
		if err != nil && !errors.Is(err, sketch.ErrInconsistent) {
			t.Fatalf("%v", err)
		}
		if err != nil {
			return
		}
		if !done {
			continue
		}
		// What is believed explains all cells that were seen.
		a, b := of(0, to, d.Ours()...).Cells(), of(0, to, d.Theirs()...).Cells()
		for i := range to {
			if minus(theirs[i], ours[i]) != minus(b[i], a[i]) {
				t.Fatalf("cell %d is not that of what was found", i)
			}
		}
		return
	}
}

func minus(a, b sketch.Cell) sketch.Cell {
	return sketch.Cell{Key: a.Key ^ b.Key, Mark: a.Mark ^ b.Mark, Sum: a.Sum ^ b.Sum, Count: a.Count - b.Count}
}

// TestDecodeOfDamagedCells damages cells in ways that look like true ones.
func TestDecodeOfDamagedCells(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 80).Draw(t, "cells")
		items := rapid.SliceOfNDistinct(rapid.Custom(drawItem), 0, 40, rapid.ID).Draw(t, "items")
		cut := rapid.IntRange(0, len(items)).Draw(t, "ours")
		ours, theirs := of(0, n, items[:cut]...).Cells(), of(0, n, items[cut:]...).Cells()
		for range rapid.IntRange(0, 4).Draw(t, "damages") {
			i, j := rapid.IntRange(0, n-1).Draw(t, "i"), rapid.IntRange(0, n-1).Draw(t, "j")
			switch rapid.IntRange(0, 4).Draw(t, "how") {
			case 0:
				theirs[i], theirs[j] = theirs[j], theirs[i]
			case 1:
				theirs[i] = theirs[j]
			case 2:
				theirs[i].Count = rapid.Int64().Draw(t, "count")
			case 3:
				theirs[i].Sum ^= 1 << (j % 64)
			case 4: // one item, alone, anywhere
				theirs[i] = of(0, 1, drawItem(t)).Cells()[0]
			}
		}
		checkDecode(t, ours, theirs, rapid.IntRange(1, n).Draw(t, "block"))
	})
}

// FuzzDecoder makes cells of bytes: three of them choose an item, what is done
// with it, and the cells it is done to.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte{1, 0, 0, 2, 0, 0, 3, 1, 0})
	f.Add([]byte{1, 2, 0, 1, 2, 5, 1, 3, 7, 200, 4, 9})
	f.Fuzz(func(t *testing.T, data []byte) {
		const n = 48
		ours, theirs := of(0, n), of(0, n)
		for ; len(data) >= 3; data = data[3:] {
			it := sketch.Item{Key: uint64(data[0] & 15), Mark: uint64(data[0] >> 4)}
			at := int(data[2]) % n
			c := &theirs.Cells()[at]
			one := of(0, 1, it).Cells()[0]
			switch data[1] % 7 {
			case 0:
				theirs.Insert(it)
			case 1:
				ours.Insert(it)
			case 2:
				*c = one
			case 3:
				*c = minus(*c, one)
			case 4:
				*c = minus(*c, sketch.Cell{Count: math.MinInt64 + int64(data[0])})
			case 5:
				*c = ours.Cells()[data[0]%n]
			case 6:
				c.Key ^= binary.LittleEndian.Uint64(append(slices.Clone(data[:3]), 0, 0, 0, 0, 1))
			}
		}
		checkDecode(t, ours.Cells(), theirs.Cells(), 7)
	})
}
