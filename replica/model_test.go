package replica

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// model is what a replica means: a map, and a floor.
type model struct {
	items map[string]attune.Item
	floor attune.Version
}

func (m *model) get(text string) attune.Item {
	if it := m.items[text]; it.Version > m.floor {
		return it
	}
	return attune.Item{}
}

func (m *model) apply(c *attune.Change) bool {
	text := string(c.Key.Text)
	have := m.get(text).Version
	raw := m.items[text].Version
	exact := c.Item.Deleted && raw != 0 && c.Prior == raw
	if c.Item.Version <= m.floor || c.Item.Version <= raw || !exact && c.Prior != attune.AnyVersion && c.Prior != have {
		return false
	}
	if delete(m.items, text); !c.Item.Deleted {
		m.items[text] = c.Item
	}
	return true
}

func TestReplicaIsAMap(t *testing.T) {
	for _, kind := range []string{"memory", "remote"} {
		t.Run(kind, func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { checkModel(t, kind) }) })
	}
}

func checkModel(t *rapid.T, kind string) {
	var backend kvadapter.Backend = &remote{store: newStore()}
	if kind == "memory" {
		backend = newMemory()
	}
	r := Open(Options{Backend: backend, Gen: 7, Seed: 99})
	m := &model{items: map[string]attune.Item{}}
	ctx := context.Background()
	last := attune.Version(100)
	texts := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "key with blank", "\x00\xff"})
	version := func() attune.Version { // mostly newer, as a clock's are
		if rapid.IntRange(0, 9).Draw(t, "old") == 0 {
			return attune.Version(rapid.Uint64Range(1, uint64(last)).Draw(t, "version"))
		}
		last += attune.Version(rapid.Uint64Range(1, 3).Draw(t, "step"))
		return last
	}
	t.Repeat(map[string]func(*rapid.T){
		"change": func(t *rapid.T) {
			text := texts.Draw(t, "key")
			key := keyOf(r, text)
			cur := m.get(text)
			c := attune.Change{Key: key, Prior: rapid.SampledFrom([]attune.Version{
				cur.Version, cur.Version, cur.Version, m.items[text].Version, attune.AnyVersion, 0, 17,
			}).Draw(t, "prior")}
			switch kind := rapid.IntRange(0, 4).Draw(t, "kind"); {
			case kind == 0:
				c.Item.Deleted = true
			case kind == 1 && c.Prior == cur.Version && cur.Version != 0:
				c.Item = cur
				c.Item.Value = nil
				c.Item.Expires = since2020(rapid.Int64Range(2, 1e12).Draw(t, "expires"))
				c.Item.Leased = rapid.Bool().Draw(t, "leased")
			default:
				c.Item.Value = rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "value")
				if rapid.IntRange(0, 20).Draw(t, "large") == 0 {
					c.Item.Value = make([]byte, kvadapter.Large+len(c.Item.Value))
				}
				c.Item.Size = len(c.Item.Value)
				c.Item.Flags = rapid.Uint32().Draw(t, "flags")
				c.Item.Stale = rapid.Bool().Draw(t, "stale")
			}
			c.Stamp(version())
			want := m.apply(&c)
			if want && !c.Item.Deleted && c.Item.Value == nil {
				it := m.items[text]
				it.Value = cur.Value
				m.items[text] = it
			}
			got, err := r.Apply(&c)
			if got != want || err != nil {
				t.Fatalf("Apply(%+v) = %v, %v over %+v, floor %d", c, got, err, cur, m.floor)
			}
			if got {
				if err := r.Settle(ctx, &c); err != nil {
					t.Fatal(err)
				}
			}
		},
		"flush": func(t *rapid.T) {
			if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
				m.floor = max(m.floor, version())
				r.Flush(m.floor)
			}
		},
		"sweep": func(t *rapid.T) {
			for _, c := range r.Dead(0, rapid.IntRange(1, 20).Draw(t, "n"), nil) {
				c.Stamp(version())
				if applied, _ := r.Apply(&c); applied {
					for text := range m.items {
						if r.Hash([]byte(text)) == c.Key.Hash {
							if m.items[text].Version > m.floor {
								t.Fatalf("%q was swept alive", text)
							}
							delete(m.items, text)
						}
					}
				}
			}
		},
		"": func(t *rapid.T) {
			text := texts.Draw(t, "key")
			want := m.get(text)
			it, err := r.Get(ctx, keyOf(r, text), nil, rapid.Bool().Draw(t, "bump"))
			if err != nil {
				t.Fatal(err)
			}
			it.Fetched, it.Accessed = false, 0
			if fmt.Sprint(it) != fmt.Sprint(want) {
				t.Fatalf("%q:\ngot  %+v\nwant %+v", text, it, want)
			}
			if r.Len() != len(m.items) {
				t.Fatalf("%d items, want %d", r.Len(), len(m.items))
			}
		},
	})
}

func since2020(ms int64) int64 { return epoch + ms }

// The index against a map, with few distinct bucket bits so that chains grow,
// and sizes that go up and down.
func TestSegmentIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &segment{heads: make([]uint32, minHeads)}
		m := map[attune.KeyHash]attune.Version{}
		mask := uint64(rapid.SampledFrom([]int{0, 3, 255, 1<<20 - 1}).Draw(t, "mask"))
		var v attune.Version
		for range rapid.IntRange(1, 6).Draw(t, "phases") {
			grow := rapid.Bool().Draw(t, "grow")
			for n := range rapid.IntRange(0, 600).Draw(t, "steps") {
				v++
				x := uint64(v) * 0x9e3779b97f4a7c15
				if grow {
					h := attune.KeyHash{uint64(v), x & mask}
					s.insert(h).version = v
					m[h] = v
				} else {
					for h := range m {
						_, i := s.find(h)
						s.remove(i)
						delete(m, h)
						break
					}
				}
				if n%64 == 0 {
					checkSegment(t, s, m)
				}
			}
			checkSegment(t, s, m)
		}
	})
}

func checkSegment(t *rapid.T, s *segment, m map[attune.KeyHash]attune.Version) {
	if int(s.n) != len(m) {
		t.Fatalf("%d entries, want %d", s.n, len(m))
	}
	for h, v := range m {
		if e, _ := s.find(h); e == nil || e.version != v {
			t.Fatalf("%v: %+v, want version %d", h, e, v)
		}
	}
	linked := 0
	for _, link := range s.heads {
		for ; link != 0; link = s.at(link - 1).next {
			linked++
		}
	}
	if linked != len(m) {
		t.Fatalf("%d entries linked, want %d", linked, len(m))
	}
	if len(s.heads) < len(m) && len(m) > minHeads || len(s.heads) > minHeads && len(s.heads) > len(m)*5/4+1 {
		t.Fatalf("%d buckets for %d entries", len(s.heads), len(m))
	}
	if len(s.pages) > len(m)/pageLen+2 {
		t.Fatalf("%d pages for %d entries", len(s.pages), len(m))
	}
}

// slowly is a backend whose Put and WriteMulti wait for the test.
type slowly struct {
	*remote
	begin chan kvadapter.Record
	end   chan error
	ends  chan []error
}

func (s *slowly) WriteMulti(ctx context.Context, writes []kvadapter.Write, errs []error) {
	for _, w := range writes {
		s.begin <- w.Record
	}
	for i := range copy(errs, <-s.ends) {
		if errs[i] == nil {
			_ = s.store.Put(ctx, writes[i].Key, writes[i].Record)
		}
	}
}

func (s *slowly) Put(ctx context.Context, key attune.Key, rec kvadapter.Record) error {
	s.begin <- rec
	select {
	case err := <-s.end:
		if err == nil {
			_ = s.store.Put(ctx, key, rec)
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func newSlowly() *slowly {
	return &slowly{&remote{store: newStore()}, make(chan kvadapter.Record), make(chan error), make(chan []error)}
}

// A burst on one key is two sends: the first, and the newest by then.
func TestSettleSendsTheNewest(t *testing.T) {
	b := newSlowly()
	r := Open(Options{Backend: b})
	key := keyOf(r, "k")
	const writers = 10
	done := make(chan error)
	for v := attune.Version(1); v <= writers; v++ {
		c := put(key, v, fmt.Sprint("v", v))
		if applied, _ := r.Apply(c); !applied {
			t.Fatal("not applied")
		}
		go func() { done <- r.Settle(context.Background(), c) }()
		if v == 1 {
			if rec := <-b.begin; rec.Stamp.Version != 1 {
				t.Fatal(rec)
			}
		}
	}
	mustGet(t, r, key, "v10") // staged, though the backend has nothing yet
	b.end <- nil
	if rec := <-b.begin; rec.Stamp.Version != writers {
		t.Fatalf("sent %d second", rec.Stamp.Version)
	}
	b.end <- nil
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	mustGet(t, r, key, "v10")
	if n := r.Stats().Staged; n != 0 {
		t.Errorf("%d keys still staged", n)
	}
}

// A failed send fails every write that is in it or older, also one that asks
// only later, and none that is newer.
func TestSettleFails(t *testing.T) {
	b := newSlowly()
	r := Open(Options{Backend: b})
	key := keyOf(r, "k")
	one, two, three := put(key, 1, "1"), put(key, 2, "2"), put(key, 3, "3")
	_, _ = r.Apply(one)
	_, _ = r.Apply(two)
	first := make(chan error)
	go func() { first <- r.Settle(context.Background(), one) }()
	if rec := <-b.begin; rec.Stamp.Version != 2 {
		t.Fatal(rec)
	}
	_, _ = r.Apply(three)
	b.end <- kvadapter.ErrUnavailable
	if err := <-first; !errors.Is(err, kvadapter.ErrUnavailable) {
		t.Error(err)
	}
	if err := r.Settle(context.Background(), two); !errors.Is(err, kvadapter.ErrUnavailable) {
		t.Error("the later asker:", err)
	}
	go func() { first <- r.Settle(context.Background(), three) }()
	<-b.begin
	b.end <- nil
	if err := <-first; err != nil {
		t.Error(err)
	}
	mustGet(t, r, key, "3")
}

// Of many that are settled together each has its own outcome, a key that is there twice
// is sent once, and what another is sending is waited for.
func TestSettleAll(t *testing.T) {
	b := newSlowly()
	r := Open(Options{Backend: b})
	if !r.Batches() {
		t.Fatal("the store does not take many at a time")
	}
	var all []Unsettled
	for i, text := range []string{"a", "b", "a", "c"} {
		c := put(keyOf(r, text), attune.Version(i+1), fmt.Sprint(i+1))
		if ok, _ := r.Apply(c); !ok {
			t.Fatal("not applied")
		}
		all = append(all, Unsettled{c.Key.Hash, c.Item.Version})
	}
	c := put(keyOf(r, "c"), 5, "5")
	other := make(chan error)
	go func() { other <- r.SettleVersion(context.Background(), all[3].Hash, all[3].Version) }()
	if rec := <-b.begin; rec.Stamp.Version != 4 {
		t.Fatal(rec)
	}
	_, _ = r.Apply(c)
	all[3].Version = 5

	errs, done := make([]error, len(all)), make(chan struct{})
	go func() { defer close(done); r.SettleAll(context.Background(), all, errs) }()
	for _, want := range []attune.Version{3, 2} { // the newest of a, and b
		if rec := <-b.begin; rec.Stamp.Version != want {
			t.Fatalf("version %d goes to the store, want %d", rec.Stamp.Version, want)
		}
	}
	b.ends <- []error{nil, kvadapter.ErrUnavailable}
	b.end <- nil
	if err := <-other; err != nil {
		t.Error(err)
	}
	if rec := <-b.begin; rec.Stamp.Version != 5 {
		t.Fatalf("sent %d last, want the newest of c", rec.Stamp.Version)
	}
	b.end <- nil
	<-done
	for i, err := range errs {
		if failed := i == 1; failed != errors.Is(err, kvadapter.ErrUnavailable) || !failed && err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	mustGet(t, r, keyOf(r, "a"), "3")
	mustGet(t, r, keyOf(r, "c"), "5")
	if n := r.Stats().Staged; n != 0 {
		t.Errorf("%d keys still staged", n)
	}
}

// The caller whose time is up does not take the others down with it.
func TestSettleHandsOver(t *testing.T) {
	b := newSlowly()
	r := Open(Options{Backend: b})
	key := keyOf(r, "k")
	one, two := put(key, 1, "1"), put(key, 2, "2")
	_, _ = r.Apply(one)
	_, _ = r.Apply(two)
	late := errors.New("late")
	ctx, cancel := context.WithCancelCause(context.Background())
	results := make(chan error)
	go func() { results <- r.Settle(ctx, one) }()
	<-b.begin
	go func() { results <- r.Settle(context.Background(), two) }()
	time.Sleep(time.Millisecond)
	cancel(late)
	if err := <-results; !errors.Is(err, late) {
		t.Error(err)
	}
	<-b.begin
	b.end <- nil
	if err := <-results; err != nil {
		t.Error(err)
	}
	mustGet(t, r, key, "2")
	if n := r.Stats().Staged; n != 0 {
		t.Errorf("%d keys still staged", n)
	}
}
