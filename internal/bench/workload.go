package bench

import (
	"math"
	"math/rand/v2"
)

// A mix draws the requests of one connection: which verb, which key, how large
// a value. It depends on the seed and the connection's number only, so two
// servers under test are asked the same.
type mix struct {
	rng   *rand.Rand
	o     *Options
	zipf  *zipf // nil is uniform
	key   []byte
	verbs int
}

func newMix(o *Options, z *zipf, conn int) *mix {
	m := &mix{
		rng:   rand.New(rand.NewPCG(o.Seed, uint64(conn)+1)),
		o:     o,
		zipf:  z,
		key:   make([]byte, o.KeySize),
		verbs: o.Ratio.Gets + o.Ratio.Sets,
	}
	copy(m.key, keyPrefix)
	return m
}

// draw picks the verb and key of the next request.
func (m *mix) draw() (v verb, key int64) {
	switch {
	case m.o.Incr:
		v = verbIncr
	case m.rng.IntN(m.verbs) >= m.o.Ratio.Gets:
		v = verbSet
	}
	if m.zipf != nil {
		return v, m.zipf.draw(m.rng) - 1
	}
	return v, m.rng.Int64N(m.o.Keys)
}

// counter is what a counter holds at first.
var counter = []byte("0")

// value picks what to set under key: a counter, or a value of a size drawn.
func (m *mix) value(key, fill []byte) value {
	if m.o.Incr {
		return value{counter, counter, len(counter)} // no filler is reached
	}
	return value{key, fill, m.size()}
}

// size picks how large a value to set.
func (m *mix) size() int {
	z := m.o.Values
	if z.Min == z.Max {
		return z.Min
	}
	return z.Min + m.rng.IntN(z.Max-z.Min+1)
}

// text writes key number n: the prefix, then n with leading zeros. The result
// is valid until the next call.
func (m *mix) text(n int64) []byte {
	for i := len(m.key) - 1; i >= len(keyPrefix); i-- {
		m.key[i] = byte('0' + n%10)
		n /= 10
	}
	return m.key
}

// filler is what follows the key in a value. It depends on the size alone, not
// on the seed, so that values of an earlier run verify too.
func filler(size int) []byte {
	b := make([]byte, size)
	rng := rand.New(rand.NewPCG(0, 0))
	for i := range b {
		b[i] = byte('a' + rng.IntN(26))
	}
	return b
}

// value describes what a set stores: the head, which is the key unless it is a
// counter, then filler from the same offset on, cut to size.
type value struct {
	head, fill []byte
	size       int
}

// append appends the bytes of the value.
func (v value) append(out []byte) []byte {
	k := min(v.size, len(v.head))
	out = append(out, v.head[:k]...)
	return append(out, v.fill[k:v.size]...)
}

// isValue reports whether v is the value for key at v's size.
func isValue(v, key, fill []byte) bool {
	if len(v) > len(fill) {
		return false
	}
	k := min(len(v), len(key))
	return string(v[:k]) == string(key[:k]) && string(v[k:]) == string(fill[k:len(v)])
}

// zipf draws ranks 1 to n where rank k comes up in proportion to k^-s, for any
// s > 0, by rejection-inversion (W. Hörmann, G. Derflinger: "Rejection-inversion
// to generate variates from monotone discrete distributions", 1996): constant
// time and no table. The Zipf of math/rand takes only s > 1, which leaves out
// the 0.99 that caches are usually compared at. Safe for concurrent use; the
// generator is the caller's.
type zipf struct {
	n         float64
	s         float64
	low, high float64 // the ends of the area inverted
	sure      float64 // closer than this to its rank, a draw needs no test
}

func newZipf(n int64, s float64) *zipf {
	z := &zipf{n: float64(n), s: s}
	z.low = z.area(1.5) - 1
	z.high = z.area(z.n + 0.5)
	z.sure = 2 - z.inverse(z.area(2.5)-z.density(2))
	return z
}

func (z *zipf) draw(rng *rand.Rand) int64 {
	for {
		u := z.high + rng.Float64()*(z.low-z.high)
		x := z.inverse(u)
		k := min(max(math.Floor(x+0.5), 1), z.n)
		if k-x <= z.sure || u >= z.area(k+0.5)-z.density(k) {
			return int64(k)
		}
	}
}

// density is x^-s.
func (z *zipf) density(x float64) float64 { return math.Exp(-z.s * math.Log(x)) }

// area is the integral of density from 1 to x: (x^(1-s) - 1) / (1-s), or log x
// where s is 1, without losing digits in between.
func (z *zipf) area(x float64) float64 {
	l := math.Log(x)
	t := (1 - z.s) * l
	if math.Abs(t) < 1e-8 {
		return l * (1 + t/2)
	}
	return l * math.Expm1(t) / t
}

// inverse undoes area.
func (z *zipf) inverse(a float64) float64 {
	t := max(a*(1-z.s), -1) // rounding may carry it past the pole
	if math.Abs(t) < 1e-8 {
		return math.Exp(a * (1 - t/2))
	}
	return math.Exp(a * math.Log1p(t) / t)
}
