package replica

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/attunekv/attune"
)

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
			if _, _, applied, _ := r.Merge(&touch, true, 0); applied {
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
	_, _, _, _ = r.Merge(&two, false, 0)
	first, second := make(chan error), make(chan error)
	go func() { first <- r.Settle(context.Background(), &two) }()
	if rec := <-b.begin; rec.Stamp.Version != 2 {
		t.Fatal(rec)
	}
	if _, _, applied, _ := r.Merge(&three, false, 0); !applied {
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
	_, _, _, _ = r.Merge(&two, false, 0)
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
