package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

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
			was, is, applied, err := r.Merge(&c, guard, 0)
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
			_, is, applied, _ := r.Merge(&c, true, 0)
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
