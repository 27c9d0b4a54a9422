package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"

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
			was, is, applied, err := r.Merge(&test.c, guard)
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
	if _, is, applied, err := r.Merge(&c, true); !errors.Is(err, kvadapter.ErrFull) || !applied || is != 30 {
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

// grave is a replica with tombstones as a map: what is known of every key, and
// what bytes a backend that forgets nothing would still need to have.
type grave struct {
	memory bool
	keys   map[string]*known
	floor  attune.Version
	cut    attune.Version
}

type known struct {
	item  attune.Item // Deleted if dead
	mark  Mark
	freed bool
	bytes bool // the backend has those of item.Stored, for sure
}

func (g *grave) live(text string) *known {
	if k := g.keys[text]; k != nil && k.item.Version > g.floor {
		return k
	}
	return nil
}

func (k *known) collectable(cut attune.Version) bool {
	x := k.item.Expires
	return k.item.Version <= cut && (k.item.Deleted || x != 0 && x-epoch <= int64(cut>>timeShift))
}

func (g *grave) merge(text string, c *attune.Change, guard bool) (was, is Mark, applied bool) {
	k := g.live(text)
	if k != nil {
		was = k.mark
	}
	evicts := c.Item.Deleted && c.Item.Version == c.Prior
	to := MarkOf(c.Item.Version, evicts)
	touch := !c.Item.Deleted && c.Item.Value == nil && (c.Item.Size > 0 || c.Item.Stored != c.Item.Version)
	switch {
	case c.Item.Version <= g.floor:
		return was, was, false
	case c.Item.Version <= g.cut && (k == nil || k.collectable(g.cut)):
		return was, was, false
	case k != nil && !to.Newer(k.mark):
		return was, was, false
	}
	if guard {
		absent := k == nil || k.item.Deleted
		exact := !absent && c.Prior == k.item.Version && !(touch && k.freed)
		if c.Prior != attune.AnyVersion && !(absent && c.Prior == 0) && !exact {
			return was, was, false
		}
	}
	next := &known{item: c.Item, mark: to}
	next.item.Value = nil
	if !c.Item.Deleted {
		raw := g.keys[text]
		next.bytes = !touch || raw != nil && raw.bytes && raw.item.Stored == c.Item.Stored
	}
	g.keys[text] = next
	return was, to, true
}

func TestMergingReplicaIsAMap(t *testing.T) {
	for kind, open := range kinds {
		t.Run(kind, func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { checkGrave(t, open()) }) })
	}
}

func checkGrave(t *rapid.T, backend kvadapter.Backend) {
	r := gossiping(backend)
	g := &grave{memory: r.memory != nil, keys: map[string]*known{}}
	ctx := context.Background()
	all := []string{"a", "b", "c", "d", "e", "key with blank", "\x00\xff"}
	texts := rapid.SampledFrom(all)
	clock, n := uint64(100), 0
	version := func() attune.Version {
		if rapid.IntRange(0, 3).Draw(t, "old") == 0 {
			return at(rapid.Uint64Range(1, clock).Draw(t, "ms"), rapid.IntRange(0, 3).Draw(t, "n"))
		}
		clock += rapid.Uint64Range(0, 3).Draw(t, "step")
		n++
		return at(clock, n)
	}
	draw := func() (string, attune.Change) {
		text := texts.Draw(t, "key")
		v := version()
		k := g.keys[text]
		var c attune.Change
		switch kind := rapid.IntRange(0, 6).Draw(t, "kind"); {
		case kind == 0:
			c = deletion(r, text, v)
		case kind == 1:
			c = lost(r, text, v)
			if k != nil && rapid.Bool().Draw(t, "exact") {
				c = lost(r, text, k.item.Version)
			}
			if rapid.Bool().Draw(t, "blind") {
				c.Key.Text = nil
			}
			return text, c
		case kind == 2:
			c = touched(r, text, v, at(rapid.Uint64Range(1, uint64(v>>timeShift)).Draw(t, "stored"), 0))
		case kind == 3 && k != nil && !k.item.Deleted:
			c = touched(r, text, v, k.item.Stored)
		case kind == 4:
			c = whole(r, text, v, at(rapid.Uint64Range(1, uint64(v>>timeShift)).Draw(t, "stored"), 0))
		default:
			c = whole(r, text, v, v)
		}
		if !c.Item.Deleted && rapid.Bool().Draw(t, "mortal") {
			c.Item.Expires = since2020(int64(clock) + rapid.Int64Range(-20, 20).Draw(t, "expires"))
		}
		c.Prior = attune.AnyVersion
		if rapid.Bool().Draw(t, "conditional") {
			c.Prior = 0
			if k := g.live(text); k != nil && !k.item.Deleted {
				c.Prior = k.item.Version
			}
			if c.Prior == c.Item.Version && c.Item.Deleted { // not an eviction
				c.Prior = 0
			}
		}
		return text, c
	}
	settle := func(c *attune.Change) {
		if err := r.Settle(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	drop := func(h attune.KeyHash, was Mark) {
		for _, text := range all {
			k := g.keys[text]
			if r.Hash([]byte(text)) != h || k == nil {
				continue
			}
			if k.mark != was || k.item.Version <= g.floor || !k.collectable(g.cut) {
				t.Fatalf("%q was dropped: %+v, told as %x", text, k, was)
			}
			delete(g.keys, text)
			return
		}
		t.Fatalf("%x was dropped and was not there", h)
	}
	t.Repeat(map[string]func(*rapid.T){
		"merge": func(t *rapid.T) {
			text, c := draw()
			guard := rapid.Bool().Draw(t, "guard")
			before := fmt.Sprintf("%+v, floor %d, cut %d", g.keys[text], g.floor, g.cut)
			wantWas, wantIs, want := g.merge(text, &c, guard)
			was, is, applied, err := r.Merge(&c, guard)
			if was != wantWas || is != wantIs || applied != want || err != nil {
				t.Fatalf("Merge(%+v, %v) = %x, %x, %v, %v; want %x, %x, %v\nover %s",
					c.Item, guard, was, is, applied, err, wantWas, wantIs, want, before)
			}
			if applied {
				settle(&c)
			}
		},
		"merge all": func(t *rapid.T) {
			var cs []attune.Change
			var keys []string
			for range rapid.IntRange(0, 5).Draw(t, "changes") {
				text, c := draw()
				cs, keys = append(cs, c), append(keys, text)
			}
			var applied []int
			next := 0
			r.MergeAll(cs, func(i int, was, is Mark, ok bool, err error) {
				wantWas, wantIs, want := g.merge(keys[i], &cs[i], false)
				if i != next || was != wantWas || is != wantIs || ok != want || err != nil {
					t.Fatalf("change %d: %x, %x, %v, %v; want %d: %x, %x, %v", i, was, is, ok, err, next, wantWas, wantIs, want)
				}
				if next++; ok {
					applied = append(applied, i)
				}
			})
			if next != len(cs) {
				t.Fatalf("told of %d changes of %d", next, len(cs))
			}
			for _, i := range applied {
				settle(&cs[i])
			}
		},
		"flush": func(t *rapid.T) {
			if rapid.IntRange(0, 4).Draw(t, "really") == 0 {
				g.floor = max(g.floor, version())
				r.Flush(g.floor)
			}
		},
		"collect": func(t *rapid.T) {
			if rapid.IntRange(0, 2).Draw(t, "really") > 0 {
				return
			}
			before := g.cut
			g.cut = max(g.cut, version())
			r.SetCollected(g.cut)
			for !r.Collect(g.cut, rapid.IntRange(1, 300).Draw(t, "n"), drop) {
			}
			for text, k := range g.keys {
				if k.item.Version <= g.floor {
					delete(g.keys, text)
				} else if g.cut > before && k.collectable(g.cut) {
					t.Fatalf("%q was left: %+v", text, k)
				}
			}
		},
		"free": func(t *rapid.T) {
			now := since2020(int64(clock))
			r.Free(now, 1<<20)
			for text, k := range g.keys {
				if k.item.Version <= g.floor {
					delete(g.keys, text)
				} else if x := k.item.Expires; x != 0 && x <= now {
					k.freed, k.bytes = true, false
				}
			}
		},
		"evict": func(t *rapid.T) {
			c, ok := r.Victim(attune.KeyHash{})
			live := map[attune.KeyHash]*known{}
			for text := range g.keys {
				k := g.live(text)
				if k == nil {
					g.keys[text].bytes = false
					continue
				}
				if k.item.Deleted {
					continue
				}
				// Free may have told of the time since.
				if x := k.item.Expires; x != 0 && uint64(x-epoch) <= r.freed.Load() {
					k.freed, k.bytes = true, false
				}
				if !k.freed {
					live[r.Hash([]byte(text))] = k
				}
			}
			if ok != (len(live) > 0) {
				t.Fatalf("a victim: %v, of %d", ok, len(live))
			}
			if !ok {
				return
			}
			k := live[c.Key.Hash]
			if k == nil || !evicts(&c) || c.Prior != k.item.Version {
				t.Fatalf("victim %+v is %+v", c, k)
			}
			refused := k.collectable(g.cut)
			_, is, applied, _ := r.Merge(&c, true)
			if applied == refused || applied && is != MarkOf(k.item.Version, true) {
				t.Fatalf("evicted: %v, %x; %+v", applied, is, k)
			}
			if applied {
				k.item, k.mark, k.bytes = c.Item, is, false
			}
		},
		"": func(t *rapid.T) { g.check(t, r, texts.Draw(t, "key")) },
	})
	audit(t, r)
}

// check compares all that a replica tells of a key.
func (g *grave) check(t *rapid.T, r *Replica, text string) {
	key := keyOf(r, text)
	k := g.live(text)
	var mark Mark
	var want attune.Item
	freed := false
	if k != nil {
		mark = k.mark
		freed = k.freed
		if want = k.item; want.Deleted {
			want = attune.Item{}
		}
	}
	if got := r.MarkOf(key.Hash); got != mark {
		t.Fatalf("%q is %x, want %x", text, got, mark)
	}
	it := r.Peek(key, rapid.Bool().Draw(t, "bump"))
	it.Fetched, it.Accessed = false, 0
	shown := want
	if freed {
		shown.Size, shown.Expires = 0, 1
	}
	if fmt.Sprint(it) != fmt.Sprint(shown) {
		t.Fatalf("%q is\n%+v, want\n%+v", text, it, shown)
	}
	got, err := r.Get(context.Background(), key, nil, false)
	switch {
	case want.Version == 0 || freed:
		if err != nil || len(got.Value) != 0 || got.Version != want.Version || got.Live(epoch) {
			t.Fatalf("%q: got %+v, %v of what is dead", text, got, err)
		}
	case err == nil:
		if !bytes.Equal(got.Value, valueOf(text, want.Stored)) || g.memory && !k.bytes {
			t.Fatalf("%q: got %q of %+v", text, got.Value, k)
		}
	case !errors.Is(err, ErrGone) || k.bytes:
		t.Fatalf("%q: %v of %+v", text, err, k)
	}
	n := 0
	r.Fetch(key64(key.Hash), nil, func(h Held) {
		n++
		c := h.Change()
		item := want
		if k.item.Deleted {
			item = attune.Item{Deleted: true, Version: k.item.Version}
		}
		item.Value = h.Item.Value
		if fmt.Sprint(h.Item) != fmt.Sprint(item) || MarkOf(c.Item.Version, evicts(&c)) != mark || h.Mark != mark {
			t.Fatalf("%q is held as %+v, want %+v", text, h, item)
		}
		has := k.bytes && !k.freed && g.memory
		if has != (h.Item.Value != nil) || has && (string(h.Key.Text) != text || !bytes.Equal(h.Item.Value, valueOf(text, item.Stored))) {
			t.Fatalf("%q is held with %q = %q, of %+v", text, h.Key.Text, h.Item.Value, k)
		}
	})
	if (n == 1) != (k != nil) || n > 1 {
		t.Fatalf("%q is held %d times: %+v", text, n, k)
	}
	entries := 0
	for i := range Segments {
		r.Each(i, func(h attune.KeyHash, m Mark) {
			if entries++; m != r.segs[i].marked(h) {
				t.Fatalf("%x: %x", h, m)
			}
		})
	}
	for text := range g.keys {
		if g.live(text) != nil {
			entries--
		}
	}
	if entries != 0 {
		t.Fatalf("%d entries too many", entries)
	}
}

// marked is the mark of h under the lock that Each holds.
func (s *segment) marked(h attune.KeyHash) Mark {
	e, _ := s.find(h)
	return e.mark(0)
}

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
				_, _, applied, err := r.Merge(&mine[i], false)
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
