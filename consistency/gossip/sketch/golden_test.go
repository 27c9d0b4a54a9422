package sketch

import (
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestGoldenPlaces holds where items are. The numbers were computed by another
// program, in another language. If this fails on one machine alone, that one
// rounds differently; if you changed something, nodes of before and after would
// find differences that do not exist.
func TestGoldenPlaces(t *testing.T) {
	for _, g := range []struct {
		secret Secret
		it     Item
		sum    uint64
		at     []uint64 // after cell 0
	}{
		{0, Item{0, 0}, 0xd0a66a65c7528968, []uint64{1, 2, 5, 6, 37, 124, 131, 158, 208, 217}},
		{0, Item{1, 2}, 0x07ee86c281446bef, []uint64{1, 3, 5, 7, 8, 10, 70, 121, 204, 229}},
		{7, Item{1, 2}, 0x2a743c308dbe4fcd, []uint64{1, 2, 7, 35, 40, 41, 117, 120, 304, 1779}},
		{7, Item{2, 1}, 0x52bdbb6c409cffec, []uint64{26, 58, 59, 310, 462, 497, 848, 2800, 4662, 17911}},
		{
			0x123456789abcdef, Item{0xfedcba9876543210, 0xc3a5c85c97cb3127},
			0x89cfbf381fbdb4e0, []uint64{1, 2, 5, 6, 8, 11, 20, 21, 23, 46},
		},
		{
			math.MaxUint64, Item{math.MaxUint64, math.MaxUint64},
			0xeba04b131c4a828e, []uint64{3, 4, 5, 7, 10, 20, 94, 113, 170, 835},
		},
	} {
		sum := g.secret.sum(g.it)
		if sum != g.sum {
			t.Errorf("%#x %#x: sum %#x, want %#x", g.secret, g.it, sum, g.sum)
		}
		w := start(sum)
		if w.at != 0 {
			t.Errorf("%#x %#x is not in cell 0", g.secret, g.it)
		}
		for _, want := range g.at {
			if w = w.next(); w.at != want {
				t.Errorf("%#x %#x: cell %d, want %d", g.secret, g.it, w.at, want)
			}
		}
	}

	// All places of 5000 items, folded: enough that a last bit rounded
	// differently moves one of them.
	var fold, n uint64
	for k := range uint64(5000) {
		w := start(Secret(42).sum(Item{k, k * k}))
		for w = w.next(); w.at < MaxCells; w = w.next() {
			fold = fold*0x100000001b3 ^ w.at
			n++
		}
	}
	if fold != 0x9749f1f3c4496f3b || n != 184564 {
		t.Errorf("%d places, folded %#x", n, fold)
	}
}

// TestAnItemIsInCellIWithItsProbability compares with 1/(1+i/2).
func TestAnItemIsInCellIWithItsProbability(t *testing.T) {
	const items, cells = 100_000, 1 << 18
	hits := make([]float64, cells)
	for k := range uint64(items) {
		for w := start(Secret(1).sum(Item{k, 0})); w.at < cells; w = w.next() {
			hits[w.at]++
		}
	}
	if hits[0] != items {
		t.Fatalf("%v of %d items are in cell 0", hits[0], items)
	}
	// Ranges [lo, 2*lo): the law of the square is off by up to 4 % in the first
	// few cells and nowhere else.
	for lo := 1; lo < cells; lo *= 2 {
		var got, want float64
		for i := lo; i < 2*lo; i++ {
			got += hits[i]
			want += items / (1 + float64(i)/2)
		}
		if off := math.Abs(got/want - 1); off > 0.05 || lo >= 8 && off > 0.01 {
			t.Errorf("cells %d to %d: %.0f items, want %.0f", lo, 2*lo, got, want)
		}
	}
}

// TestGapIsTheIntegerAboveTheRealNumber computes gaps with 200 bits; floats may be one
// off where the real number is next to an integer, which is rare.
func TestGapIsTheIntegerAboveTheRealNumber(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	exact := func(at, r uint64) uint64 {
		f := func(x uint64) *big.Float { return new(big.Float).SetPrec(200).SetUint64(x) }
		u := f(r>>11 + 1)
		u.SetMantExp(u, -53)
		g := u.Quo(f(1), u.Sqrt(u))
		g.Sub(g, f(1))
		g.Mul(g, new(big.Float).Add(f(at), big.NewFloat(1.5)))
		n, _ := g.Uint64()
		return n + 1
	}
	off := 0
	for range 20_000 {
		w := walk{at: rnd.Uint64() >> (36 + rnd.IntN(28)), state: rnd.Uint64()}
		was := w
		r := splitmix(w.state)
		w = w.next()
		switch got, want := w.at-was.at, exact(was.at, r); {
		case got == want:
		case max(got, want)-min(got, want) <= 1+want>>50:
			off++
		default:
			t.Fatalf("from cell %d: gap %d, want %d", was.at, got, want)
		}
	}
	if off > 5 {
		t.Errorf("%d gaps of 20000 are one off", off)
	}
}

// splitmix is what the paper of the generator has (Steele, Lea, Flood 2014).
func splitmix(state uint64) uint64 {
	z := state + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func TestWalkNeverStandsStill(t *testing.T) {
	// The largest random number, of which u is 1, and the next that is not.
	for _, r := range []uint64{math.MaxUint64, math.MaxUint64 &^ (1<<12 - 1)} {
		w := walk{state: before(r)}
		if w = w.next(); w.at != 1 {
			t.Errorf("at the random number %#x: cell %d", r, w.at)
		}
	}
	// And the smallest: as far as it goes.
	w := walk{at: MaxCells, state: before(0)}
	if w = w.next(); w.at < 1<<54 || w.at > 1<<55 {
		t.Errorf("at the smallest u: cell %d", w.at)
	}
}

// before is the state that next makes r of.
func before(r uint64) uint64 {
	unshift := func(z uint64, by uint) uint64 {
		x := z
		for range 64 / by {
			x = z ^ x>>by
		}
		return x
	}
	inverse := func(m uint64) uint64 {
		x := m
		for range 6 {
			x *= 2 - m*x
		}
		return x
	}
	z := unshift(r, 31) * inverse(0x94d049bb133111eb)
	z = unshift(z, 27) * inverse(0xbf58476d1ce4e5b9)
	return unshift(z, 30) - 0x9e3779b97f4a7c15
}

func TestExpectedIsAShareOfTheItems(t *testing.T) {
	var got []int64
	for i := range 5 {
		got = append(got, expected(3000, i))
	}
	if want := []int64{3000, 2000, 1500, 1200, 1000}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
