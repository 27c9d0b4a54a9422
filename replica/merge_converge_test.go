package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// Replicas that merged the same changes are equal, in whatever order and however
// often these came, singly or all at once; and stay so when a cut has dropped
// what is dead, and all comes once more.
func TestMergingConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]string{"memory", "remote", "embedded"})
		a, b := gossiping(kinds[kind.Draw(t, "a")]()), gossiping(kinds[kind.Draw(t, "b")]())
		texts := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		var cs []attune.Change
		issued := map[string][]attune.Version{}
		for n := range rapid.IntRange(1, 30).Draw(t, "changes") {
			text := texts.Draw(t, "key")
			v := at(rapid.Uint64Range(1, 50).Draw(t, "ms"), n)
			had := issued[text]
			var c attune.Change
			switch kind := rapid.IntRange(0, 4).Draw(t, "kind"); {
			case kind == 0:
				c = deletion(a, text, v)
			case kind == 1 && len(had) > 0:
				c = lost(a, text, rapid.SampledFrom(had).Draw(t, "version"))
			case kind == 2 && len(had) > 0:
				c = touched(a, text, v, rapid.SampledFrom(had).Draw(t, "stored"))
			default:
				c = whole(a, text, v, v)
			}
			if !evicts(&c) {
				issued[text] = append(had, v)
			}
			if !c.Item.Deleted && rapid.Bool().Draw(t, "mortal") {
				c.Item.Expires = since2020(rapid.Int64Range(1, 60).Draw(t, "expires"))
			}
			cs = append(cs, c)
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 0))
		deliver := func(r *Replica) {
			mine := append(cs[:len(cs):len(cs)], cs[:rng.IntN(len(cs))]...)
			rng.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
			one := rng.IntN(len(mine))
			for i := range mine[:one] {
				_, _, applied, err := r.Merge(&mine[i], false, 0)
				if err != nil || applied && r.Settle(context.Background(), &mine[i]) != nil {
					t.Fatal(err)
				}
				if rng.IntN(5) == 0 {
					r.Free(since2020(rng.Int64N(60)), 1<<20)
				}
			}
			rest := mine[one:]
			var applied []int
			r.MergeAll(rest, func(i int, _, _ Mark, ok bool, _ error) {
				if ok {
					applied = append(applied, i)
				}
			})
			for _, i := range applied {
				if err := r.Settle(context.Background(), &rest[i]); err != nil {
					t.Fatal(err)
				}
			}
		}
		same := func(when string) {
			if a.Digest() != b.Digest() {
				t.Fatalf("%s:\n%v\n%v", when, dump(a), dump(b))
			}
			for _, r := range []*Replica{a, b} {
				audit(t, r)
				if n := r.Stats().Staged; n != 0 {
					t.Fatalf("%d keys still staged", n)
				}
			}
		}
		deliver(a)
		deliver(b)
		same("all merged")
		for _, c := range cs {
			if mark := a.MarkOf(c.Key.Hash); MarkOf(c.Item.Version, evicts(&c)).Newer(mark) {
				t.Fatalf("%+v is lost, there is %x", c, mark)
			}
		}

		cut := at(rapid.Uint64Range(0, 60).Draw(t, "cut"), 0)
		var dropped [2]map[attune.KeyHash]Mark
		for i, r := range []*Replica{a, b} {
			dropped[i] = map[attune.KeyHash]Mark{}
			r.SetCollected(cut)
			if rng.IntN(2) == 0 {
				deliver(r) // while it is on
			}
			for !r.Collect(cut, 1+rng.IntN(100), func(h attune.KeyHash, was Mark) { dropped[i][h] = was }) {
			}
		}
		if fmt.Sprint(dropped[0]) != fmt.Sprint(dropped[1]) {
			t.Fatalf("dropped %v and %v", dropped[0], dropped[1])
		}
		same("collected")
		digest := a.Digest()
		deliver(a)
		same("all merged again")
		if a.Digest() != digest {
			t.Fatal("something came back")
		}
	})
}

// What is merged all at once, readers see at once.
func TestMergeAllIsOneMoment(t *testing.T) {
	const keys, rounds, readers = 50, 200, 3
	r := gossiping(kinds["embedded"]())
	var all []attune.Key
	for i := range keys {
		all = append(all, keyOf(r, fmt.Sprint(i)))
	}
	step := func(n int) []attune.Change {
		var cs []attune.Change
		for _, key := range all {
			cs = append(cs, *put(key, attune.Version(n), fmt.Sprint(n)))
		}
		return cs
	}
	r.MergeAll(step(1), func(int, Mark, Mark, bool, error) {})
	done := make(chan struct{})
	var wait sync.WaitGroup
	for range readers {
		wait.Go(func() {
			for !ended(done) {
				i, j := rand.N(keys), rand.N(keys)
				first := r.Peek(all[i], true)
				second, err := r.Get(context.Background(), all[j], nil, false)
				if err != nil || second.Version < first.Version || string(second.Value) != fmt.Sprint(uint64(second.Version)) {
					t.Errorf("version %d, then %d: %q, %v", first.Version, second.Version, second.Value, err)
					return
				}
			}
		})
	}
	wait.Go(func() {
		for !ended(done) {
			other := gossiping(newMemory())
			mustInstall(t, other, snapshot(t, r))
			want := other.Peek(all[0], false).Version
			for _, key := range all {
				if v := other.Peek(key, false).Version; v != want {
					t.Errorf("versions %d and %d in a cut", v, want)
					return
				}
			}
		}
	})
	for n := range rounds {
		r.MergeAll(step(n+2), func(i int, was, is Mark, applied bool, err error) {
			if was != Mark(n+1) || is != Mark(n+2) || !applied || err != nil {
				t.Errorf("key %d: %d, %d, %v, %v", i, was, is, applied, err)
			}
		})
	}
	close(done)
	wait.Wait()
}

// A replica that merges what another holds, singly or at once, is equal to it.
func TestHeldMakesAPeerEqual(t *testing.T) {
	for kind, open := range kinds {
		t.Run(kind, func(t *testing.T) {
			r, peer := gossiping(open()), gossiping(open())
			texts := map[attune.KeyHash]string{}
			for i := range 2000 {
				text := fmt.Sprint(i)
				texts[keyOf(r, text).Hash] = text
				mustMerge(t, r, whole(r, text, at(20, i), at(uint64(10+i%11), 0)))
				switch i % 5 {
				case 0:
					mustMerge(t, r, deletion(r, text, at(21, i)))
				case 1:
					mustMerge(t, r, lost(r, text, at(20, i)))
				}
			}
			var keys []uint64
			for i := range Segments {
				r.Each(i, func(h attune.KeyHash, m Mark) { keys = append(keys, key64(h)) })
			}
			if len(keys) != 2000 {
				t.Fatalf("%d entries", len(keys))
			}
			var buf []byte
			var cs []attune.Change
			for _, key := range keys {
				buf = r.Fetch(key, buf, func(h Held) {
					c := h.Change()
					if h.Key.Text != nil && string(h.Key.Text) != texts[h.Key.Hash] {
						t.Fatalf("%q is %q", texts[h.Key.Hash], h.Key.Text)
					}
					c.Key.Text = bytes.Clone(c.Key.Text)
					c.Item.Value = bytes.Clone(c.Item.Value)
					cs = append(cs, c)
				})
			}
			for i := range cs[:1000] {
				mustMerge(t, peer, cs[i])
			}
			peer.MergeAll(cs[1000:], func(_ int, was, is Mark, applied bool, err error) {
				if was != 0 || is == 0 || !applied || err != nil {
					t.Error(was, is, applied, err)
				}
			})
			for i := range cs[1000:] {
				if err := peer.Settle(context.Background(), &cs[1000+i]); err != nil {
					t.Error(err)
				}
			}
			if peer.Digest() != r.Digest() {
				t.Error("it is not equal")
			}
			if r.memory != nil && !maps.Equal(dump(r), dump(peer)) {
				t.Error("their indexes differ")
			}
			if r.memory != nil {
				for h, text := range texts {
					a, errA := r.Get(context.Background(), attune.Key{Text: []byte(text), Hash: h}, nil, false)
					b, errB := peer.Get(context.Background(), attune.Key{Text: []byte(text), Hash: h}, nil, false)
					if !bytes.Equal(a.Value, b.Value) || errA != nil || errB != nil {
						t.Fatalf("%q: %q, %v and %q, %v", text, a.Value, errA, b.Value, errB)
					}
				}
			}
		})
	}
}

// All at once, on a backend that is slow and one that fails: no read sees bytes
// of another version or key than the index says, and in the end all is settled.
func TestConcurrentMerging(t *testing.T) {
	for name, backend := range map[string]kvadapter.Backend{
		"memory":          newMemory(),
		"embedded":        kinds["embedded"](),
		"slow":            &remote{store: newStore(), delay: 200 * time.Microsecond},
		"slow and faulty": &remote{store: newStore(), delay: 200 * time.Microsecond, failOnce: 0.1},
	} {
		t.Run(name, func(t *testing.T) { mergeAllOver(t, backend) })
	}
}

func mergeAllOver(t *testing.T, backend kvadapter.Backend) {
	r := gossiping(backend)
	ctx := context.Background()
	var keys []attune.Key
	for _, text := range []string{"a", "b", "c", "d"} {
		keys = append(keys, keyOf(r, text))
	}
	var clock atomic.Uint64
	clock.Store(uint64(at(1000, 0)))
	next := func() attune.Version { return attune.Version(clock.Add(1 << 18)) }
	value := func(key attune.Key, stored attune.Version) []byte {
		return []byte(string(key.Text) + " " + strconv.FormatUint(uint64(stored), 10) + strings.Repeat(".", int(stored>>18%100)))
	}
	check := func(key attune.Key, it attune.Item, err error) {
		switch {
		case errors.Is(err, ErrGone), errors.Is(err, ErrBusy), errors.Is(err, kvadapter.ErrUnavailable):
		case err != nil:
			t.Error(err)
		case it.Expires != 1 && it.Version != 0 && !bytes.Equal(it.Value, value(key, it.Stored)):
			t.Errorf("read %q of version %d", it.Value, it.Stored)
		}
	}
	end := time.Now().Add(300 * time.Millisecond)
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for time.Now().Before(end) {
				key := keys[rand.N(len(keys))]
				v := next()
				stored := v
				if rand.N(4) == 0 {
					stored -= attune.Version(rand.N(20)) << 18
				}
				c := *put(key, v, string(value(key, stored)))
				c.Item.Stored = stored
				c.Prior = attune.AnyVersion
				if rand.N(4) == 0 {
					c.Item.Expires = since2020(int64(uint64(v)>>timeShift) + 1)
				}
				guard := false
				switch rand.N(8) {
				case 0:
					c.Item = attune.Item{Deleted: true, Version: v}
				case 1, 2:
					it := r.Peek(key, true)
					if it.Version == 0 {
						continue
					}
					c.Item, c.Prior, guard = it, it.Version, true
					c.Item.Version, c.Item.Expires = v, 0
				case 3:
					c, guard = lost(r, string(key.Text), r.Peek(key, false).Version), true
				case 4:
					if victim, ok := r.Victim(attune.KeyHash{}); ok {
						_, _, _, _ = r.Merge(&victim, true, 0)
					}
				}
				if _, _, applied, _ := r.Merge(&c, guard, 0); applied {
					if err := r.Settle(ctx, &c); err != nil {
						gone := lost(r, string(key.Text), v)
						_, _, _, _ = r.Merge(&gone, true, 0)
					}
				}
			}
		})
		wait.Go(func() {
			var buf []byte
			for time.Now().Before(end) {
				key := keys[rand.N(len(keys))]
				it, err := r.Get(ctx, key, buf, true)
				check(key, it, err)
				items, errs := make([]attune.Item, len(keys)), make([]error, len(keys))
				r.getMulti(ctx, keys, items, errs, false)
				for i := range keys {
					check(keys[i], items[i], errs[i])
				}
				r.Fetch(key64(key.Hash), nil, func(h Held) {
					if h.Item.Value != nil {
						check(h.Key, h.Item, nil)
					}
				})
			}
		})
	}
	wait.Go(func() {
		for time.Now().Before(end) {
			now := attune.Version(clock.Load())
			r.Free(since2020(int64(uint64(now)>>timeShift)), 1000)
			r.SetCollected(now - at(1, 0))
			r.Collect(now-at(1, 0), 1000, func(attune.KeyHash, Mark) {})
			for i := range Segments {
				r.Each(i, func(attune.KeyHash, Mark) {})
			}
			time.Sleep(time.Millisecond)
		}
	})
	wait.Wait()
	audit(t, r)
	if n := r.Stats().Staged; n != 0 {
		t.Errorf("%d keys still staged", n)
	}
}

func BenchmarkMerge(b *testing.B) {
	r := gossiping(kinds["embedded"]())
	keys := make([]attune.Key, 100_000)
	for i := range keys {
		keys[i] = keyOf(r, fmt.Sprintf("key:%07d", i))
	}
	value := bytes.Repeat([]byte("v"), 100)
	b.ReportAllocs()
	b.ResetTimer()
	c := attune.Change{Prior: attune.AnyVersion}
	v, i := attune.Version(0), 0
	for b.Loop() {
		v++
		c.Key, c.Item = keys[i], attune.Item{Value: value, Size: len(value)}
		c.Stamp(v)
		_, _, _, _ = r.Merge(&c, false, 0)
		if i += 7919; i >= len(keys) {
			i -= len(keys)
		}
	}
}

func BenchmarkFetch(b *testing.B) {
	r := gossiping(kinds["embedded"]())
	var keys []uint64
	for i := range 100_000 {
		key := keyOf(r, fmt.Sprintf("key:%07d", i))
		keys = append(keys, key64(key.Hash))
		mustMerge(b, r, *put(key, attune.Version(i+1), strings.Repeat("v", 100)))
	}
	b.ReportAllocs()
	b.ResetTimer()
	var buf []byte
	i, n := 0, 0
	for b.Loop() {
		buf = r.Fetch(keys[i], buf, func(h Held) { n += len(h.Item.Value) })
		if i += 7919; i >= len(keys) {
			i -= len(keys)
		}
	}
}
