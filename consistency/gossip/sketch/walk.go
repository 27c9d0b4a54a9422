package sketch

import (
	"encoding/binary"
	"math"

	"github.com/zeebo/xxh3"
)

// MaxCells is how many cells a set has, at most, in this software: 8 GiB of them.
const MaxCells = 1 << 28

// Secret is what keys the checksum of items. Sketches with different ones have
// nothing in common, so it is the same on all nodes of a cluster; and who does
// not know it cannot choose items that hide each other.
type Secret uint64

// sum is the checksum of an item, which also decides on the cells it is in.
func (s Secret) sum(it Item) uint64 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:8], it.Key)
	binary.LittleEndian.PutUint64(b[8:], it.Mark)
	return xxh3.HashSeed(b[:], uint64(s))
}

// walk is the way of one item through the cells it is in, from cell 0 up.
type walk struct {
	at    uint64 // the cell it is in now
	state uint64 // of splitmix64, seeded with the item's checksum
}

func start(sum uint64) walk { return walk{state: sum} }

// next is the walk at the item's next cell. An item is in cell i with probability
// 2/(2+i) = 1/(1+i/2), so the chance of being in none of the g cells after i is
//
//	(i+1)(i+2) / ((i+g+1)(i+g+2)), about ((i+1.5)/(i+g+1.5))²
//
// and with a uniform u in its place, the g at which it falls below u is the one to
// go by. It is solved for the square, and not for the product, since then root and
// quotient need not wait for the step before.
//
// Each operation on floats is rounded exactly once, on any machine that follows
// IEEE 754: there is no library function but the root, and a product that an
// addition could be fused with is converted, which forbids that.
//
// The compiler inlines it, just so; a call would make it a third slower.
func (w walk) next() walk {
	w.state += 0x9e3779b97f4a7c15
	z := w.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	u := float64(int64((z^z>>31)>>11)+1) * 0x1p-53 // of (0, 1], exact
	gap := float64((float64(int64(w.at)) + 1.5) * (1/math.Sqrt(u) - 1))
	// The next integer above it: at least 1, and below 2^55 from any cell there is.
	w.at += uint64(int64(gap)) + 1
	return w
}

// expected is how many of a set's items cell i has, on average. With a number
// that is nonsense so is the result, the same one everywhere.
func expected(items int64, i int) int64 { return 2 * items / (2 + int64(i)) }
