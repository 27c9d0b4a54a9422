package sketch_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/attunekv/attune/consistency/gossip/sketch"
)

// BenchmarkOverhead is how many cells a difference needs; that is the result, and
// not the time. To compare with the paper: -benchtime 1000x for the small ones.
func BenchmarkOverhead(b *testing.B) {
	for _, c := range []struct {
		name     string
		min, max int
	}{
		{"d=1", 1, 1},
		{"d=2-10", 2, 10},
		{"d=10", 10, 10},
		{"d=100", 100, 100},
		{"d=1000", 1000, 1000},
		{"d=100000", 100_000, 100_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			rnd := rand.New(rand.NewPCG(1, uint64(c.max)))
			var need []float64
			sum := 0.0
			for b.Loop() {
				n := c.min + rnd.IntN(c.max-c.min+1)
				ours, theirs := split(rnd, n)
				_, cells := diff(b, ours, theirs, max(1, n/200))
				need = append(need, float64(cells)/float64(n))
				sum += need[len(need)-1]
			}
			slices.Sort(need)
			b.ReportMetric(sum/float64(len(need)), "cells/d")
			b.ReportMetric(need[(len(need)-1)*99/100], "p99-cells/d")
		})
	}
}

func BenchmarkInsert(b *testing.B) {
	for _, cells := range []int{1, 256, 4096} {
		b.Run(fmt.Sprintf("cells=%d", cells), func(b *testing.B) {
			s := sketch.New(secret, 0, cells)
			b.ReportAllocs()
			it := sketch.Item{Key: 0x9e3779b97f4a7c15}
			for b.Loop() {
				it.Key *= 0xda942042e4dd58b5
				it.Mark++
				s.Insert(it)
			}
		})
	}
}

// BenchmarkExtend is one item's part in filling cells beyond the kept ones.
func BenchmarkExtend(b *testing.B) {
	s := sketch.New(secret, 4096, 8192)
	it := sketch.Item{Key: 0x9e3779b97f4a7c15}
	for b.Loop() {
		it.Key *= 0xda942042e4dd58b5
		s.Insert(it)
	}
}

// BenchmarkDecode is from two kept sketches, in blocks that double.
func BenchmarkDecode(b *testing.B) {
	for _, d := range []int{10, 1000, 2800} {
		b.Run(fmt.Sprintf("d=%d", d), func(b *testing.B) {
			const kept = 4096
			ours, theirs := split(rand.New(rand.NewPCG(1, 1)), d)
			x, y := of(0, kept, ours...).Cells(), of(0, kept, theirs...).Cells()
			b.ReportAllocs()
			for b.Loop() {
				dec := sketch.NewDecoder(secret, kept)
				for from, to := 0, 32; ; from, to = to, 2*to {
					done, err := dec.Add(x[from:to], y[from:to])
					if err != nil {
						b.Fatal(err)
					}
					if done {
						break
					}
				}
			}
		})
	}
}

func BenchmarkWire(b *testing.B) {
	const n, cells = 100_000, 4096
	c := of(0, cells, random(rand.New(rand.NewPCG(1, 1)), n)...).Cells()
	data := sketch.AppendCells(nil, 0, n, c)
	b.Run("append", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		buf := make([]byte, 0, len(data))
		for b.Loop() {
			sketch.AppendCells(buf, 0, n, c)
		}
		b.ReportMetric(float64(len(data))/cells, "B/cell")
	})
	b.Run("parse", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, err := sketch.ParseCells(data, 0, n); err != nil {
				b.Fatal(err)
			}
		}
	})
}
