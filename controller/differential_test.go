package controller_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/controller"
)

// pair is a memcached and an attune that are told the same.
type pair struct {
	memcached, attune string
	old               bool
}

// startPair starts both. With later, attune's engine answers some requests later.
func startPair(t testing.TB, later bool) pair {
	t.Helper()
	change := func(c *controller.Config) {
		if later {
			controller.AnswerLater(t, c)
		}
	}
	p := pair{memcached: startMemcached(t), attune: startNode(t, change)}
	p.old = isOld(t, p.memcached)
	return p
}

// replies runs a script at a server, whose keys it removes first, and returns
// what the client sees, and at the end the state of the keys, in canonical form.
func replies(addr string, s script, pause time.Duration) ([]byte, error) {
	var forget, probe [][]byte
	for _, k := range append([]string{"noreply", "bin", strings.Repeat("k", 250), "\xff\x01\t\x80"}, scriptKeys...) {
		forget = append(forget, []byte("delete "+k+" noreply\r\n"))
		probe = append(probe, []byte("mg "+k+" k h f t c s v\r\n"))
	}
	if _, err := talk(addr, append(forget, []byte("mn\r\n")), 0); err != nil {
		return nil, err
	}
	var c canon
	var out []byte
	for i, batch := range append(s[:len(s):len(s)], probe) {
		batch, err := resolve(addr, batch)
		if err != nil {
			return nil, err
		}
		reply, err := talk(addr, batch, pause)
		if err != nil {
			return nil, err
		}
		out = fmt.Appendf(out, "--- connection %d\n", i+1)
		out = append(out, c.of(reply)...)
	}
	return out, nil
}

// both runs a script at both servers.
func (p pair) both(s script, pause time.Duration) (memcached, attune []byte, err error) {
	if memcached, err = replies(p.memcached, s, pause); err == nil {
		attune, err = replies(p.attune, s, pause)
	}
	return memcached, attune, err
}

// What compare found, besides the name of a difference that is allowed.
const (
	alike  = "alike"
	unlike = "unlike"
)

// compare runs a script at both servers, and tells whether their replies are
// alike.
func (p pair) compare(s script) (why string, err error) {
	memcached, attune, err := p.both(s, 0)
	if err != nil || bytes.Equal(memcached, attune) {
		return alike, err
	}
	if why = explain(p, s, memcached, attune); why == "" {
		why = unlike
	}
	return why, nil
}

// seeds is how many scripts of each kind to run.
func seeds(t testing.TB, usual int) int {
	if s := os.Getenv("ATTUNE_TEST_SEEDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("ATTUNE_TEST_SEEDS: %v", err)
		}
		return n
	}
	return usual
}

// firstSeed is the same in every run, so that a test that passed passes again:
// to look for new differences, set ATTUNE_TEST_SEED to something else, or have
// ATTUNE_TEST_SEEDS say how many.
func firstSeed(t testing.TB) uint64 {
	s := os.Getenv("ATTUNE_TEST_SEED")
	if s == "" {
		return 1
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("ATTUNE_TEST_SEED: %v", err)
	}
	return n
}

// A client cannot tell attune from memcached by what it answers to commands,
// nor by what it makes of broken ones.
func TestLikeMemcached(t *testing.T) {
	for _, kind := range []string{"classic", "meta", "mixed", "binary", "mixed later", "binary later"} {
		dialect, _, later := strings.Cut(kind, " ")
		for _, broken := range []bool{false, true} {
			name := kind
			if broken {
				name += " broken"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p := startPair(t, later)
				if broken && p.old {
					t.Skip("a memcached before 1.6.45 takes broken commands otherwise in too many ways to list")
				}
				first := firstSeed(t)
				n := seeds(t, 30)
				if later { // the replies are known by then, only when they come is not
					n = seeds(t, 10)
				}
				var chance int
				allowed := map[string]int{}
				failures := 0
				for seed := first; seed < first+uint64(n); seed++ {
					s := newScript(seed, dialect)
					if broken {
						s = mutated(seed, s)
					}
					why, err := p.compare(s)
					if err != nil {
						t.Fatalf("ATTUNE_TEST_SEED=%d: %v\n%q", seed, err, clip(bytes.Join(s[len(s)-1], nil)))
					}
					if why == unlike {
						// Once more on servers of its own: an earlier difference, or a
						// second that just ended, is not this script's.
						p2 := startPair(t, later)
						if why, err = p2.compare(s); err != nil {
							t.Fatal(err)
						}
						if why != unlike {
							chance++
							continue
						}
						s = shrink(p2, s)
						memcached, attune, _ := p2.both(s, 0)
						if bytes.Equal(memcached, attune) {
							chance++ // a second that ended, again
							continue
						}
						t.Errorf("ATTUNE_TEST_SEED=%d\n%.3000q\n%s", seed, s, firstDifference(memcached, attune))
						if failures++; failures == 5 {
							t.FailNow()
						}
					}
					allowed[why]++
				}
				delete(allowed, alike)
				t.Logf("%d scripts from seed %d: %d differed by chance, allowed differences %v", n, first, chance, allowed)
				if chance > n/20+2 {
					t.Errorf("%d of %d scripts differed, but not alone", chance, n)
				}
			})
		}
	}
}

// firstDifference shows where two servers' replies part.
func firstDifference(memcached, attune []byte) string {
	m, a := strings.SplitAfter(string(memcached), "\n"), strings.SplitAfter(string(attune), "\n")
	i := 0
	for i < len(m) && i < len(a) && m[i] == a[i] {
		i++
	}
	show := func(lines []string) []byte { return clip([]byte(strings.Join(lines, ""))) }
	return fmt.Sprintf("alike: %.1000q\nmemcached: %q\nattune: %q", m[:i], show(m[i:]), show(a[i:]))
}

// shrink drops the commands without which a script still shows a difference that
// is not allowed.
func shrink(p pair, s script) script {
	differs := func(s script) bool {
		why, err := p.compare(s)
		return err == nil && why == unlike
	}
	for i := len(s) - 1; i >= 0; i-- {
		for j := len(s[i]) - 1; j >= 0; j-- {
			shorter := append(script{}, s...)
			shorter[i] = append(append([][]byte{}, s[i][:j]...), s[i][j+1:]...)
			if len(shorter[i]) == 0 {
				shorter = append(shorter[:i:i], shorter[i+1:]...)
			}
			if differs(shorter) {
				if s = shorter; i >= len(s) {
					break
				}
			}
		}
	}
	return s
}
