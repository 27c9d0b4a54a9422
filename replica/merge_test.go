package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// at is a version of a millisecond.
func at(ms uint64, n int) attune.Version { return attune.Version(ms<<timeShift | uint64(n)) }

// valueOf is the value that a version wrote, or would have: of any length, also
// none, so that a value in the wrong place is seen.
func valueOf(text string, stored attune.Version) []byte {
	x := uint64(stored) * 0x9e3779b97f4a7c15
	n := int(x>>60) * 3
	if x>>52&0xff == 0 {
		n += kvadapter.Large
	}
	return bytes.Repeat(fmt.Append(nil, text, uint64(stored)), n)[:n]
}

// whole is a change as a peer sends it that has the bytes of stored.
func whole(r *Replica, text string, v, stored attune.Version) attune.Change {
	value := valueOf(text, stored)
	return attune.Change{
		Key: keyOf(r, text), Prior: attune.AnyVersion,
		Item: attune.Item{Version: v, Stored: stored, CAS: uint64(stored), Value: value, Size: len(value)},
	}
}

// touched is one as a peer sends it that only touched.
func touched(r *Replica, text string, v, stored attune.Version) attune.Change {
	c := whole(r, text, v, stored)
	c.Item.Value = nil
	return c
}

func deletion(r *Replica, text string, v attune.Version) attune.Change {
	return attune.Change{Key: keyOf(r, text), Prior: attune.AnyVersion, Item: attune.Item{Deleted: true, Version: v}}
}

// lost is the eviction of exactly v.
func lost(r *Replica, text string, v attune.Version) attune.Change {
	return attune.Change{Key: keyOf(r, text), Prior: v, Item: attune.Item{Deleted: true, Version: v}}
}

func gossiping(backend kvadapter.Backend) *Replica {
	return Open(Options{Backend: backend, Gen: 7, Seed: 99, Tombstones: true})
}

// kinds are the backends that merging differs by.
var kinds = map[string]func() kvadapter.Backend{
	"memory": func() kvadapter.Backend { return newMemory() },
	"remote": func() kvadapter.Backend { return &remote{store: newStore()} },
	"embedded": func() kvadapter.Backend {
		b, err := kvadapter.Open("embedded")
		if err != nil {
			panic(err)
		}
		return b
	},
}

func TestMarks(t *testing.T) {
	marks := []Mark{0, MarkOf(1, false), MarkOf(1, true), MarkOf(2, false), MarkOf(1<<62, false), MarkOf(1<<62, true)}
	for i, a := range marks {
		for j, b := range marks {
			if a.Newer(b) != (i > j) {
				t.Errorf("%x newer than %x: %v", a, b, a.Newer(b))
			}
		}
	}
	if m := MarkOf(77, true); m.Version() != 77 || !m.Evicted() || MarkOf(77, false).Evicted() || MarkOf(77, false).Version() != 77 {
		t.Error(m)
	}
}

// What is merged over what, decided here and elsewhere. Every case starts with
// one key in one state, under a floor of 5 and a cut of 8.
func TestMergeComparesMarks(t *testing.T) {
	evicted := MarkOf(20, true)
	states := map[string]struct {
		mark  Mark
		build func(r *Replica)
	}{
		"nothing": {0, func(*Replica) {}},
		"flushed": {0, func(r *Replica) { mustMerge(t, r, whole(r, "k", 5, 5)) }},
		"live":    {20, func(r *Replica) { mustMerge(t, r, whole(r, "k", 20, 20)) }},
		"deleted": {20, func(r *Replica) { mustMerge(t, r, deletion(r, "k", 20)) }},
		"evicted": {evicted, func(r *Replica) { mustMerge(t, r, lost(r, "k", 20)) }},
		"freed": {20, func(r *Replica) {
			c := whole(r, "k", 20, 20)
			c.Item.Expires = since2020(1)
			mustMerge(t, r, c)
			r.Free(since2020(2), 1000)
		}},
		"old and dead": {7, func(r *Replica) { mustMerge(t, r, deletion(r, "k", 7)) }},
		"old and live": {7, func(r *Replica) { mustMerge(t, r, whole(r, "k", 7, 7)) }},
	}
	const here, elsewhere, both, never = 1, 2, 3, 0
	r := gossiping(newMemory()) // for the hash
	set := func(v, prior attune.Version) attune.Change {
		c := whole(r, "k", v, v)
		c.Item.Value, c.Item.Size, c.Prior = []byte("v"), 1, prior
		return c
	}
	retime := func(v attune.Version) attune.Change {
		c := touched(r, "k", v, 20)
		c.Prior = 20
		return c
	}
	remove := func(v, prior attune.Version) attune.Change {
		c := deletion(r, "k", v)
		c.Prior = prior
		return c
	}
	const any = attune.AnyVersion
	for _, test := range []struct {
		state string
		c     attune.Change
		by    int // who may
	}{
		{"nothing", set(30, any), both},
		{"nothing", set(30, 0), both},
		{"nothing", set(30, 20), elsewhere},
		{"nothing", set(9, 0), both},
		{"nothing", set(8, 0), never}, // under the cut
		{"nothing", set(5, 0), never}, // under the floor
		{"nothing", remove(30, any), both},
		{"nothing", lost(r, "k", 30), elsewhere},
		{"nothing", lost(r, "k", 8), never},
		{"flushed", set(30, any), both},
		{"flushed", set(30, 0), both},
		{"flushed", set(30, 5), elsewhere},
		{"flushed", set(8, 0), never},
		{"flushed", lost(r, "k", 5), never},
		{"live", set(30, any), both},
		{"live", set(30, 20), both},
		{"live", set(30, 0), elsewhere},
		{"live", set(30, 19), elsewhere},
		{"live", set(20, any), never},
		{"live", set(19, any), never},
		{"live", retime(30), both},
		{"live", remove(30, 20), both},
		{"live", remove(30, 0), elsewhere},
		{"live", remove(19, any), never},
		{"live", lost(r, "k", 20), both},
		{"live", lost(r, "k", 19), never},
		{"live", lost(r, "k", 21), elsewhere},
		{"deleted", set(30, 0), both},
		{"deleted", set(30, any), both},
		{"deleted", set(30, 20), elsewhere},
		{"deleted", set(19, any), never},
		{"deleted", remove(30, any), both},
		{"deleted", remove(20, any), never},
		{"deleted", lost(r, "k", 21), elsewhere},
		{"evicted", set(30, 0), both},
		{"evicted", set(30, any), both},
		{"evicted", set(30, 20), elsewhere},
		{"evicted", set(20, any), never}, // what was evicted
		{"evicted", retime(30), elsewhere},
		{"evicted", lost(r, "k", 20), never},
		{"freed", set(30, 20), both},
		{"freed", set(30, 0), elsewhere},
		{"freed", set(30, any), both},
		{"freed", retime(30), elsewhere},
		{"freed", remove(30, 20), both},
		{"freed", lost(r, "k", 20), both},
		{"old and dead", set(8, 0), never}, // as if it were dropped
		{"old and dead", set(9, 0), both},
		{"old and live", set(8, 7), both},
		{"old and live", lost(r, "k", 7), both},
		{"old and live", set(7, any), never},
	} {
		for by, guard := range map[int]bool{here: true, elsewhere: false} {
			state := states[test.state]
			mem := newMemory()
			r := gossiping(mem)
			state.build(r)
			r.Flush(5)
			r.SetCollected(8)
			was, is, applied, err := r.Merge(&test.c, guard, 0)
			after := state.mark
			if want := test.by&by != 0; want != applied {
				t.Errorf("%s: Merge(%+v of %d, %v) = %v", test.state, test.c.Item, test.c.Prior, guard, applied)
				continue
			} else if want {
				after = MarkOf(test.c.Item.Version, evicts(&test.c))
			}
			if was != state.mark || is != after || r.MarkOf(test.c.Key.Hash) != after || err != nil {
				t.Errorf("%s: Merge(%+v of %d, %v): from %x to %x, %v", test.state, test.c.Item, test.c.Prior, guard, was, is, err)
			}
			// What died takes no memory.
			if test.c.Item.Deleted && applied && len(mem.recs) != 0 {
				t.Errorf("%s: Merge(%+v): bytes are left", test.state, test.c.Item)
			}
			audit(t, r)
		}
	}
}

// What one replica alone remembers follows the item, and not the entry.
func TestMergingKeepsAccount(t *testing.T) {
	mem := newMemory()
	r := gossiping(mem)
	key := keyOf(r, "a key")
	mustMerge(t, r, *put(key, 10, "value"))
	r.Peek(key, true)
	touch := *put(key, 11, "value")
	touch.Key.Text, touch.Item.Value, touch.Item.Stored = nil, nil, 10
	mustMerge(t, r, touch)
	if it := mustGet(t, r, key, "value"); !it.Fetched || r.Stats().Bytes != int64(len("a keyvalue")) {
		t.Errorf("touched: %+v, %+v", it, r.Stats())
	}
	other := touch // of what never came
	other.Item.Version, other.Item.Stored = 13, 12
	mustMerge(t, r, other)
	if it := r.Peek(key, false); it.Fetched || len(mem.recs) != 0 {
		t.Errorf("%+v, %d records", it, len(mem.recs))
	}
	mustMerge(t, r, *put(key, 20, "other value"))
	r.Peek(key, true)
	mustMerge(t, r, lost(r, "a key", 20))
	mustMerge(t, r, *put(key, 21, "x"))
	if r.Peek(key, false).Fetched {
		t.Error("what was never read is fetched")
	}
	mustMerge(t, r, lost(r, "a key", 21))
	if st := r.Stats(); st.Stored != 3 || st.Evicted != 2 || st.EvictedUnfetched != 1 || st.Expired != 0 {
		t.Errorf("%+v", st)
	}
	mem.refuse = kvadapter.ErrFull
	c := *put(key, 30, "refused")
	if _, is, applied, err := r.Merge(&c, true, 0); !errors.Is(err, kvadapter.ErrFull) || !applied || is != 30 {
		t.Error(is, applied, err)
	}
	audit(t, r)
}

// An open Cut does not see what is merged.
func TestCutWhileMerging(t *testing.T) {
	r := gossiping(newMemory())
	fill := func(ms uint64) {
		for i := range 5000 {
			text := fmt.Sprint(i)
			switch i % 3 {
			case 0:
				mustMerge(t, r, deletion(r, text, at(ms, i)))
			case 1:
				mustMerge(t, r, *put(keyOf(r, text), at(ms, i), "v"))
			default:
				mustMerge(t, r, lost(r, text, at(ms, i)))
			}
		}
	}
	fill(10)
	before := snapshot(t, r)
	cut, err := r.Cut()
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	fill(20)
	r.SetCollected(at(30, 0))
	for !r.Collect(at(30, 0), 1000, func(attune.KeyHash, Mark) {}) {
	}
	var b bytes.Buffer
	if _, err := cut.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	old, now := gossiping(newMemory()), gossiping(newMemory())
	mustInstall(t, old, before)
	mustInstall(t, now, b.Bytes())
	if old.Digest() != now.Digest() {
		t.Error("the cut has changed")
	}
}

func mustMerge(t testing.TB, r *Replica, c attune.Change) {
	t.Helper()
	_, _, applied, err := r.Merge(&c, false, 0)
	if !applied || err != nil {
		t.Fatalf("Merge(%+v) = %v, %v", c.Item, applied, err)
	}
	if err := r.Settle(context.Background(), &c); err != nil {
		t.Fatal(err)
	}
}
