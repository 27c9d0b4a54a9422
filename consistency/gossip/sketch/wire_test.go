package sketch_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/attunekv/attune/consistency/gossip/sketch"
)

func TestCellsSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-3, 1e6), rapid.SampledFrom([]int64{math.MinInt64, math.MaxInt64}))
		from := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, sketch.MaxCells)).Draw(t, "from")
		items := number.Draw(t, "items")
		cells := rapid.SliceOf(rapid.Custom(func(t *rapid.T) sketch.Cell {
			u := rapid.Uint64()
			return sketch.Cell{Key: u.Draw(t, "key"), Mark: u.Draw(t, "mark"), Sum: u.Draw(t, "sum"), Count: number.Draw(t, "count")}
		})).Draw(t, "cells")

		b := sketch.AppendCells([]byte("head"), from, items, cells)
		if len(b) > 4+len(cells)*sketch.MaxCellBytes {
			t.Fatalf("%d cells in %d bytes", len(cells), len(b))
		}
		got, err := sketch.ParseCells(b[4:], from, items)
		if err != nil || !slices.Equal(got, cells) {
			t.Fatalf("%v, %v, want %v", got, err, cells)
		}
		if len(cells) > 0 {
			cut := rapid.IntRange(1, 24).Draw(t, "cut")
			if _, err := sketch.ParseCells(b[4:len(b)-cut], from, items); !errors.Is(err, sketch.ErrCorrupt) {
				t.Fatalf("without the last %d bytes: %v", cut, err)
			}
		}
	})
}

// TestGoldenWire holds the format: without another format version around it, it
// must not change.
func TestGoldenWire(t *testing.T) {
	// Key, mark, sum and what the count is off; both items are in cell 0, where of
	// 3 items 3 are expected, and the first in cells 1 and 2, where 2 and 1 are. The
	// sums are those of TestGoldenPlaces.
	const want = "" +
		"0300000000000000" + "0300000000000000" + "21b022cd5c87c978" + "01" +
		"0100000000000000" + "0200000000000000" + "cd4fbe8d303c742a" + "01" +
		"0100000000000000" + "0200000000000000" + "cd4fbe8d303c742a" + "00"
	set := sketch.New(7, 0, 3)
	set.Insert(sketch.Item{Key: 1, Mark: 2})
	set.Insert(sketch.Item{Key: 2, Mark: 1})
	if got := hex.EncodeToString(sketch.AppendCells(nil, 0, 3, set.Cells())); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestParseIsStrict(t *testing.T) {
	cell := make([]byte, 24)
	for name, end := range map[string][]byte{
		"no count":         {},
		"count cut off":    {0x80},
		"count too long":   {0x80, 0x00},
		"count too large":  bytes.Repeat([]byte{0xff}, 10),
		"something behind": {0, 7},
	} {
		if c, err := sketch.ParseCells(append(slices.Clone(cell), end...), 0, 0); !errors.Is(err, sketch.ErrCorrupt) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	if c, err := sketch.ParseCells(nil, 5, 5); len(c) != 0 || err != nil {
		t.Errorf("no cells: %v, %v", c, err)
	}
	defer func() {
		if recover() == nil {
			t.Error("there is a cell -1")
		}
	}()
	sketch.ParseCells(nil, -1, 0)
}

// TestCountsAreShortOnTheWire is why they are sent as they are.
func TestCountsAreShortOnTheWire(t *testing.T) {
	const n, cells = 20_000, 512
	set := of(0, cells, random(rand.New(rand.NewPCG(1, 9)), n)...)
	if got := float64(len(sketch.AppendCells(nil, 0, n, set.Cells()))) / cells; got > 25.5 {
		t.Errorf("%.2f bytes a cell", got)
	}
}

func FuzzParseCells(f *testing.F) {
	f.Add(sketch.AppendCells(nil, 0, 2, of(0, 3, sketch.Item{Key: 1, Mark: 10}).Cells()), 0, int64(2))
	f.Add(make([]byte, 50), 7, int64(math.MinInt64))
	f.Fuzz(func(t *testing.T, data []byte, from int, items int64) {
		from &= sketch.MaxCells - 1
		cells, err := sketch.ParseCells(data, from, items)
		switch {
		case err == nil:
			if again := sketch.AppendCells(nil, from, items, cells); !bytes.Equal(again, data) {
				t.Fatalf("%x\nencoded again: %x", data, again)
			}
		case !errors.Is(err, sketch.ErrCorrupt):
			t.Fatal(err)
		}
	})
}
