package sketch_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/attunekv/attune/consistency/gossip/sketch"
)

// TestLiveIsASketch changes a few keys, and many that share their places, and
// compares with a Sketch of the same set made anew.
func TestLiveIsASketch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cells := rapid.IntRange(1, 100).Draw(t, "cells")
		stride := rapid.SampledFrom([]uint64{1, 64, 1 << 13, 1 << 20}).Draw(t, "stride")
		live := sketch.NewLive(secret, cells)
		model := make(map[uint64]uint64)
		check := func(all bool) {
			var items []sketch.Item
			for k, m := range model {
				if m != 0 {
					items = append(items, sketch.Item{Key: k, Mark: m})
				}
			}
			made := of(0, cells, items...).Cells()
			if live.Total() != made[0] {
				t.Fatal("cell 0 is not that of the set")
			}
			if all && !slices.Equal(live.Cells(), made) {
				t.Fatal("the cells differ from those of the same set made anew")
			}
		}
		for range rapid.IntRange(0, 300).Draw(t, "steps") {
			key := rapid.Uint64Range(0, 20).Draw(t, "key") * stride
			mark := rapid.Uint64Range(0, 3).Draw(t, "mark")
			live.Replace(key, model[key], mark)
			model[key] = mark
			if rapid.IntRange(0, 20).Draw(t, "check") == 0 {
				check(rapid.Bool().Draw(t, "all"))
			}
		}
		check(true)
		check(true) // to look changes nothing
	})
}

// TestLiveGrows fills one to the last of its places and beyond.
func TestLiveGrows(t *testing.T) {
	const cells = 256
	live, made := sketch.NewLive(secret, cells), sketch.New(secret, 0, cells)
	for _, it := range random(rand.New(rand.NewPCG(1, 1)), 40_000) {
		live.Replace(it.Key, 0, it.Mark)
		if it.Key%3 == 0 {
			live.Replace(it.Key, it.Mark, 0)
			continue
		}
		made.Insert(it)
	}
	if live.Total() != made.Cells()[0] || !slices.Equal(live.Cells(), made.Cells()) {
		t.Fatal("the cells differ from those of the same set made anew")
	}
}

// BenchmarkReplace overwrites keys at random, of a few and of many.
func BenchmarkReplace(b *testing.B) {
	for _, c := range []struct {
		name string
		keys int
	}{{"keys=100", 100}, {"keys=10k", 10_000}, {"keys=1M", 1_000_000}} {
		b.Run(c.name, func(b *testing.B) {
			rnd := rand.New(rand.NewPCG(1, 1))
			live := sketch.NewLive(secret, 1024)
			marks := make([]uint64, c.keys)
			b.ReportAllocs()
			for b.Loop() {
				i := rnd.IntN(c.keys)
				key := uint64(i) * 0x9e3779b97f4a7c15
				key ^= key >> 32
				live.Replace(key, marks[i], marks[i]+1)
				marks[i]++
			}
		})
	}
}
