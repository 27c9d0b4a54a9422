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

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

func mustMerge(t testing.TB, r *Replica, c attune.Change) {
	t.Helper()
	_, _, applied, err := r.Merge(&c, false)
	if !applied || err != nil {
		t.Fatalf("Merge(%+v) = %v, %v", c.Item, applied, err)
	}
	if err := r.Settle(context.Background(), &c); err != nil {
		t.Fatal(err)
	}
}

// Reading what expired and was freed shows an expired item, by any clock, and
// what a peer is sent is the item as it was.
func TestFreedIsExpired(t *testing.T) {
	for kind, open := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := gossiping(open())
			key := keyOf(r, "k")
			c := *put(key, at(10, 0), "value")
			c.Item.Expires, c.Item.Flags = since2020(100), 5
			mustMerge(t, r, c)
			mustMerge(t, r, *put(keyOf(r, "other"), at(10, 1), "value"))
			used, digest := r.usage(), r.Digest()
			if n := r.Free(since2020(99), 1000); n != 0 {
				t.Errorf("freed %d before its time", n)
			}
			if n := r.Free(since2020(100), 1000); n != 1 {
				t.Errorf("freed %d", n)
			}
			if n := r.Free(since2020(100), 1000); n != 0 {
				t.Errorf("freed %d again", n)
			}
			st := r.Stats()
			if st.Items != 1 || st.Tombstones != 1 || st.Expired != 1 || r.Digest() != digest || r.memory != nil && r.usage() >= used {
				t.Errorf("%+v, digest %x, used %d; before %x, %d", st, r.Digest(), r.usage(), digest, used)
			}
			items, errs := make([]attune.Item, 2), make([]error, 2)
			r.getMulti(context.Background(), []attune.Key{key, keyOf(r, "other")}, items, errs, true)
			got, err := r.Get(context.Background(), key, nil, true)
			for _, it := range []attune.Item{got, items[0], r.Peek(key, true)} {
				if it.Version != at(10, 0) || it.Live(epoch+1) || it.Size != 0 || err != nil || errs[0] != nil {
					t.Errorf("%+v, %v", it, err)
				}
			}
			if string(items[1].Value) != "value" || st.Gone != 0 {
				t.Errorf("%+v", items[1])
			}
			r.Fetch(key64(key.Hash), nil, func(h Held) {
				want := c.Item
				want.Value = nil
				if fmt.Sprint(h.Item) != fmt.Sprint(want) {
					t.Errorf("held is %+v, want %+v", h.Item, want)
				}
			})
			if err := r.Restore(context.Background(), key, c.Item); err != nil || r.memory != nil && r.usage() >= used {
				t.Error("what was freed came back:", err)
			}
			// Decided before it was freed, this would keep what is not there.
			touch := attune.Change{Key: key, Item: c.Item, Prior: c.Item.Version}
			touch.Item.Value, touch.Item.Version = nil, at(11, 0)
			if _, _, applied, _ := r.Merge(&touch, true); applied {
				t.Error("touched what was freed")
			}
			// A peer may have thought otherwise in time.
			touch.Item.Expires = 0
			mustMerge(t, r, touch)
			if r.memory == nil {
				mustGet(t, r, key, "value")
				return
			}
			if _, err := r.Get(context.Background(), key, nil, false); !errors.Is(err, ErrGone) {
				t.Error(err)
			}
			if err := r.Restore(context.Background(), key, c.Item); err != nil {
				t.Fatal(err)
			}
			mustGet(t, r, key, "value")
			audit(t, r)
		})
	}
}

// What a flush killed is none, and goes when Free meets it.
func TestFreeDropsTheFlushed(t *testing.T) {
	mem := newMemory()
	r := gossiping(mem)
	for i := range 3000 {
		text := fmt.Sprint(i)
		mustMerge(t, r, *put(keyOf(r, text), at(10, i), "v"))
		if i%3 == 0 {
			mustMerge(t, r, deletion(r, text, at(11, i)))
		}
	}
	r.Flush(at(10, 2900))
	n := 0
	for i := range Segments {
		r.Each(i, func(attune.KeyHash, Mark) { n++ })
	}
	if met := r.Free(since2020(1), 1<<20); met != 2901*2/3 || n != 3000-2901*2/3 {
		t.Errorf("met %d, %d entries before", met, n)
	}
	if st := r.Stats(); st.Items != 66 || st.Tombstones != 1000 || len(mem.recs) != 66 {
		t.Errorf("%+v, %d records", st, len(mem.recs))
	}
	audit(t, r)
}

// An entry that came without text and bytes is completed by Restore.
func TestRestoreOfWhatCameByHash(t *testing.T) {
	for kind, open := range kinds {
		t.Run(kind, func(t *testing.T) {
			r, peer := gossiping(open()), gossiping(open())
			key := keyOf(r, "k")
			full := whole(r, "k", at(10, 0), at(9, 0))
			mustMerge(t, peer, full)
			c := full
			c.Key.Text, c.Item.Value = nil, nil
			mustMerge(t, r, c)
			if _, err := r.Get(context.Background(), key, nil, false); !errors.Is(err, ErrGone) {
				t.Error(err)
			}
			if r.Digest() != peer.Digest() {
				t.Error("it is not equal to its peer")
			}
			if err := r.Restore(context.Background(), key, full.Item); err != nil {
				t.Fatal(err)
			}
			mustGet(t, r, key, string(full.Item.Value))
			if dump(r)[key.Hash] != dump(peer)[key.Hash] {
				t.Error(dump(r), dump(peer))
			}
			audit(t, r)
		})
	}
}

// Older bytes under a newer version replace newer bytes under an older one, also
// on the stage.
func TestBytesFollowTheChange(t *testing.T) {
	b := newSlowly()
	r := gossiping(b)
	key := keyOf(r, "k")
	two, three := whole(r, "k", 2, 2), whole(r, "k", 3, 1)
	three.Item.Value = []byte("one")
	three.Item.Size = 3
	_, _, _, _ = r.Merge(&two, false)
	first, second := make(chan error), make(chan error)
	go func() { first <- r.Settle(context.Background(), &two) }()
	if rec := <-b.begin; rec.Stamp.Version != 2 {
		t.Fatal(rec)
	}
	if _, _, applied, _ := r.Merge(&three, false); !applied {
		t.Fatal("not applied")
	}
	go func() { second <- r.Settle(context.Background(), &three) }()
	mustGet(t, r, key, "one")
	b.end <- nil
	if rec := <-b.begin; rec.Stamp.Version != 1 {
		t.Fatal(rec)
	}
	b.end <- nil
	if err := errors.Join(<-first, <-second); err != nil {
		t.Error(err)
	}
	mustGet(t, r, key, "one")
	if n := r.Stats().Staged; n != 0 {
		t.Errorf("%d keys still staged", n)
	}
}

// So do bytes that a peer had, while others of the key are on their way.
func TestRestoredBytesFollowTheChange(t *testing.T) {
	b := newSlowly()
	r := gossiping(b)
	key := keyOf(r, "k")
	two := *put(key, 2, "two")
	three := *put(key, 3, "one")
	three.Item.Stored, three.Item.Value = 1, nil
	_, _, _, _ = r.Merge(&two, false)
	first, second := make(chan error), make(chan error)
	go func() { first <- r.Settle(context.Background(), &two) }()
	<-b.begin
	mustMerge(t, r, three)
	go func() {
		second <- r.Restore(context.Background(), key, attune.Item{Stored: 1, Value: []byte("one")})
	}()
	eventually(func() bool {
		s := r.segment(key.Hash)
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.stage[key.Hash].owners == 2
	})
	b.end <- nil
	if err := <-first; err != nil {
		t.Error(err)
	}
	select {
	case rec := <-b.begin:
		if rec.Stamp.Version != 1 {
			t.Fatal(rec)
		}
		b.end <- nil
		if err := <-second; err != nil {
			t.Error(err)
		}
	case err := <-second:
		t.Error("restored without a Put:", err)
	}
	mustGet(t, r, key, "one")
}

// Victim finds every live item among any number of dead ones, and says when
// there is none. What expired it frees itself.
func TestVictimAmongTombstones(t *testing.T) {
	for _, dead := range []int{0, 500, 40_000} {
		for _, live := range []int{0, 3, 300, 2000} {
			r := gossiping(newMemory())
			for i := range live + dead {
				text := fmt.Sprint(i)
				mustMerge(t, r, *put(keyOf(r, text), at(10, i), "value"))
				if i >= live {
					mustMerge(t, r, lost(r, text, at(10, i)))
				}
			}
			c := *put(keyOf(r, "old"), at(10, live+dead), "value")
			c.Item.Expires = since2020(20)
			mustMerge(t, r, c)
			r.Free(since2020(20), 0) // the time is known, no more
			seen := map[attune.KeyHash]bool{}
			for {
				c, ok := r.Victim(keyOf(r, "0").Hash)
				if !ok {
					break
				}
				if seen[c.Key.Hash] || c.Key.Hash == keyOf(r, "old").Hash {
					t.Fatalf("victim %+v", c)
				}
				seen[c.Key.Hash] = true
				if _, _, applied, _ := r.Merge(&c, true); !applied {
					t.Fatalf("%+v was not applied", c)
				}
			}
			st := r.Stats()
			if want := max(live-1, 0); len(seen) != want || st.Items != int64(min(live, 1)) || st.Evicted != int64(want+dead) || st.Expired != 1 {
				t.Errorf("%d live of %d: %d victims; %+v", live, live+dead, len(seen), st)
			}
			audit(t, r)
		}
	}
}

// The least recently used go first, if there are few items by how many dead ones
// whatever.
func TestFewAmongTombstonesGoInOrder(t *testing.T) {
	r := gossiping(newMemory())
	for i := range 3000 {
		text := fmt.Sprint("dead", i)
		mustMerge(t, r, deletion(r, text, at(1, i)))
	}
	for i := range 5 {
		mustMerge(t, r, *put(keyOf(r, fmt.Sprint(i)), at(2, i), "v"))
	}
	for _, i := range []int{3, 0, 4, 1, 2} {
		time.Sleep(2 * time.Millisecond)
		r.Peek(keyOf(r, fmt.Sprint(i)), true)
	}
	for _, i := range []int{3, 0, 4, 1, 2} {
		c, _ := r.Victim(attune.KeyHash{})
		if c.Key.Hash != keyOf(r, fmt.Sprint(i)).Hash {
			t.Fatalf("%d was not the next victim", i)
		}
		mustMerge(t, r, c)
	}
}

// One pass meets everything once, whatever the steps and whatever is merged
// between them, and gives the memory back.
func TestCollectMeetsEverything(t *testing.T) {
	const n = 20_000
	for _, step := range []int{1, 77, 1_000_000} {
		mem := newMemory()
		r := gossiping(mem)
		empty := r.Stats().IndexBytes
		for i := range n {
			text := fmt.Sprint(i)
			switch i % 4 {
			case 0:
				mustMerge(t, r, deletion(r, text, at(10, i)))
			case 1:
				mustMerge(t, r, lost(r, text, at(10, i)))
			case 2:
				c := *put(keyOf(r, text), at(10, i), "v")
				c.Item.Expires = since2020(20)
				mustMerge(t, r, c)
			default:
				c := *put(keyOf(r, text), at(10, i), "v")
				c.Item.Expires = since2020(21)
				mustMerge(t, r, c)
			}
		}
		told := map[attune.KeyHash]Mark{}
		pass := func(cut attune.Version, between func(i int)) {
			clear(told)
			r.SetCollected(cut)
			for i := 0; ; i++ {
				done := r.Collect(cut, step, func(h attune.KeyHash, was Mark) {
					if told[h] != 0 {
						t.Fatalf("%x was dropped twice", h)
					}
					told[h] = was
				})
				if done {
					return
				}
				between(i)
			}
		}
		pass(at(20, 0), func(i int) {
			if i%100 == 0 {
				mustMerge(t, r, deletion(r, fmt.Sprint("new", i), at(20, i+1)))
			}
		})
		if len(told) != n*3/4 || r.Len() != n/4 || len(mem.recs) != n/4 {
			t.Errorf("steps of %d: dropped %d, %d are left", step, len(told), r.Len())
		}
		for i := range n {
			if m := told[keyOf(r, fmt.Sprint(i)).Hash]; i%4 == 1 && m != MarkOf(at(10, i), true) || i%4 == 3 && m != 0 {
				t.Fatalf("%d: %x", i, m)
			}
		}
		r.Flush(at(30, 0))
		pass(at(31, 0), func(int) {})
		if len(told) != 0 {
			t.Errorf("told of %d that a flush had killed", len(told))
		}
		if st := r.Stats(); st.Items != 0 || st.Tombstones != 0 || r.usage() > empty+segments*(8<<10)+1<<20 {
			t.Errorf("%+v is left; at first %d", st, empty)
		}
		audit(t, r)
	}
}

// Dead entries go along with the index, freed bytes are of one replica only.
func TestInstallOfTombstones(t *testing.T) {
	r := gossiping(newMemory())
	for i := range 3000 {
		text := fmt.Sprint(i)
		c := *put(keyOf(r, text), at(10, i), "value")
		c.Item.Expires = since2020(int64(20 + i%2))
		mustMerge(t, r, c)
		switch i % 8 {
		case 0:
			mustMerge(t, r, deletion(r, text, at(11, i)))
		case 1:
			mustMerge(t, r, lost(r, text, at(10, i)))
		}
	}
	before := snapshot(t, r)
	cut, err := r.Cut()
	if err != nil {
		t.Fatal(err)
	}
	r.Free(since2020(20), 1<<20)
	var whileOpen bytes.Buffer
	if _, err := cut.WriteTo(&whileOpen); err != nil {
		t.Fatal(err)
	}
	cut.Close()
	if !bytes.Equal(before, whileOpen.Bytes()) || !bytes.Equal(before, snapshot(t, r)) {
		t.Error("what was freed is in the cut")
	}
	mem := newMemory()
	peer := gossiping(mem)
	mustMerge(t, peer, *put(keyOf(peer, "0"), at(10, 0), "value"))
	mustInstall(t, peer, before)
	if peer.Digest() != r.Digest() || peer.Len() != 3000*3/4 || len(mem.recs) != 0 {
		t.Errorf("%d items, %d records", peer.Len(), len(mem.recs))
	}
	mustMiss(t, peer, keyOf(peer, "0"))

	plain := Open(Options{Backend: newMemory()})
	if err := plain.Install(bytes.NewReader(before)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a replica without tombstones took them: %v", err)
	}
	grave := entry{hash: attune.KeyHash{1, 2}}
	grave.bury(MarkOf(9, true))
	mustInstall(t, peer, index(5, grave))
	for name, change := range map[string]func(e *entry){
		"version":    func(e *entry) { e.version = 0 },
		"stored":     func(e *entry) { e.stored = 9 },
		"cas":        func(e *entry) { e.cas = 1 },
		"flags":      func(e *entry) { e.flags = 2 },
		"size":       func(e *entry) { e.size = 1 },
		"expires":    func(e *entry) { e.meta |= 5 << timeShift },
		"key length": func(e *entry) { e.meta |= 5 << keyShift },
		"fetched":    func(e *entry) { e.meta |= metaFetched },
		"stale":      func(e *entry) { e.meta |= metaStale },
	} {
		e := grave
		change(&e)
		if err := peer.Install(bytes.NewReader(index(5, e))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s of a dead entry: %v", name, err)
		}
	}
}

func FuzzInstallOfTombstones(f *testing.F) {
	r := gossiping(newMemory())
	mustMerge(f, r, whole(r, "live", at(10, 0), at(9, 0)))
	mustMerge(f, r, deletion(r, "deleted", at(10, 1)))
	mustMerge(f, r, lost(r, "evicted", at(10, 2)))
	f.Add(snapshot(f, r))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if len(stream) < 4 {
			return
		}
		r := gossiping(newMemory())
		if err := r.Install(bytes.NewReader(summed(stream))); err != nil {
			if r.Stats().Tombstones != 0 || r.Len() != 0 {
				t.Fatal("a failed Install left something:", err)
			}
			return
		}
		audit(t, r)
		again := gossiping(newMemory())
		mustInstall(t, again, snapshot(t, r))
		if !maps.Equal(dump(again), dump(r)) || again.Digest() != r.Digest() {
			t.Fatal("written out and installed again it is another index")
		}
	})
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
						_, _, _, _ = r.Merge(&victim, true)
					}
				}
				if _, _, applied, _ := r.Merge(&c, guard); applied {
					if err := r.Settle(ctx, &c); err != nil {
						gone := lost(r, string(key.Text), v)
						_, _, _, _ = r.Merge(&gone, true)
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
		_, _, _, _ = r.Merge(&c, false)
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
