package bench

import (
	"math"
	"math/rand/v2"
	"testing"
)

// Each of the most frequent ranks must come up as often as k^-s says, within
// five standard deviations, and no rank out of range.
func TestZipfFollowsItsLaw(t *testing.T) {
	const keys, draws = 1000, 400_000
	for _, s := range []float64{0.2, 0.99, 1, 1.5, 3} {
		z := newZipf(keys, s)
		rng := rand.New(rand.NewPCG(1, 2))
		var count [keys + 1]int
		for range draws {
			k := z.draw(rng)
			if k < 1 || k > keys {
				t.Fatalf("s=%g: rank %d of %d", s, k, keys)
			}
			count[k]++
		}
		var sum float64
		for k := 1; k <= keys; k++ {
			sum += math.Pow(float64(k), -s)
		}
		for _, k := range []int{1, 2, 3, 5, 10, 30, 100, keys} {
			p := math.Pow(float64(k), -s) / sum
			want, dev := p*draws, math.Sqrt(p*(1-p)*draws)
			if got := float64(count[k]); math.Abs(got-want) > 5*dev+1 {
				t.Errorf("s=%g: rank %d came up %.0f times, want %.0f ± %.0f", s, k, got, want, dev)
			}
		}
	}
}

func TestZipfOfFewKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int64{1, 2, 3} {
		seen := map[int64]bool{}
		for range 1000 {
			seen[newZipf(n, 0.99).draw(rng)] = true
		}
		if len(seen) != int(n) || !seen[1] || !seen[n] {
			t.Errorf("of %d keys, drew %v", n, seen)
		}
	}
}

func TestSameSeedSameRequests(t *testing.T) {
	o := Defaults()
	o.Values = Sizes{10, 20}
	type drawn struct {
		verb verb
		key  int64
		size int
	}
	draw := func(seed uint64, conn int) (all [100]drawn) {
		o.Seed = seed
		m := newMix(&o, nil, conn)
		for i := range all {
			all[i].verb, all[i].key = m.draw()
			all[i].size = m.size()
			if d := all[i]; d.key < 0 || d.key >= o.Keys || d.size < 10 || d.size > 20 {
				t.Fatalf("drew %+v", d)
			}
		}
		return all
	}
	first := draw(1, 0)
	if draw(1, 0) != first {
		t.Error("the same seed and connection drew differently")
	}
	if draw(2, 0) == first || draw(1, 1) == first {
		t.Error("another seed or connection drew the same")
	}
}

func TestRatioOfNothing(t *testing.T) {
	o := Defaults()
	for ratio, want := range map[Ratio]int{{1, 0}: 0, {0, 1}: 1000} {
		o.Ratio = ratio
		m, sets := newMix(&o, nil, 0), 0
		for range 1000 {
			if v, _ := m.draw(); v == verbSet {
				sets++
			}
		}
		if sets != want {
			t.Errorf("%s drew %d sets of 1000", ratio, sets)
		}
	}
}

func TestKeysAndValues(t *testing.T) {
	o := Defaults()
	o.KeySize = 12
	m := newMix(&o, nil, 0)
	for n, want := range map[int64]string{0: "bench:000000", 42: "bench:000042", 999_999: "bench:999999"} {
		if got := string(m.text(n)); got != want {
			t.Errorf("key %d is %s, want %s", n, got, want)
		}
	}
	fill := filler(100)
	for _, size := range []int{0, 1, 11, 12, 13, 100} {
		v := value{m.text(7), fill, size}.append(nil)
		if len(v) != size || !isValue(v, m.text(7), fill) {
			t.Errorf("a value of %d bytes: %q", size, v)
		}
		if size == 0 {
			continue
		}
		v[size-1] ^= 1
		if isValue(v, m.text(7), fill) {
			t.Errorf("a wrong last byte of %d was not seen", size)
		}
	}
	if isValue(value{m.text(7), fill, 100}.append(nil), m.text(8), fill) {
		t.Error("the value of key 7 passed for that of key 8")
	}
	if isValue(make([]byte, 101), m.text(7), fill) {
		t.Error("a value larger than any passed")
	}
}
