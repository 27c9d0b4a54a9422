package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// listing is a store elsewhere that can list what it holds: as it was when the
// listing began, so what is told of a key is mostly old.
type listing struct{ *remote }

var _ kvadapter.Scanner = listing{}

func (l listing) Scan(ctx context.Context, fn func(key []byte, stamp kvadapter.Stamp, size int) bool) error {
	return (&memory{store: l.store}).Scan(ctx, fn)
}

// saveKinds are replicas as Save finds them.
func saveKinds(t *testing.T, test func(t *testing.T, open func() *Replica)) {
	embedded := func() kvadapter.Backend {
		b, err := kvadapter.Open("embedded")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	elsewhere := func() kvadapter.Backend { return listing{&remote{store: newStore()}} }
	for name, backend := range map[string]func() kvadapter.Backend{"embedded": embedded, "elsewhere": elsewhere} {
		for _, tombs := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/tombstones=%v", name, tombs), func(t *testing.T) {
				test(t, func() *Replica {
					return Open(Options{Backend: backend(), Gen: 7, Seed: 99, Tombstones: tombs})
				})
			})
		}
	}
}

// do applies a change as an engine would, and waits for the store.
func do(t testing.TB, r *Replica, c attune.Change) {
	var applied bool
	var err error
	if r.tombs {
		_, _, applied, err = r.Merge(&c, false, 0)
	} else {
		applied, err = r.Apply(&c)
	}
	if err == nil && applied {
		err = r.Settle(context.Background(), &c)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// crowded are keys of the last two segments, which are so taken in several steps.
var crowded = sync.OnceValue(func() (texts []string) {
	r := Open(Options{Seed: 99})
	for i := 0; len(texts) < 400; i++ {
		if text := fmt.Sprint("key", i); r.Hash([]byte(text))[0]>>56 >= segments-2 {
			texts = append(texts, text)
		}
	}
	return texts
})

// mutator changes a replica at random.
type mutator struct {
	t    testing.TB
	r    *Replica
	rnd  *rand.Rand
	keys []string
	ms   uint64
}

func (m *mutator) version() attune.Version { m.ms++; return at(m.ms, 0) }

func (m *mutator) set(text string) { do(m.t, m.r, m.change(text)) }

// change stores a new value.
func (m *mutator) change(text string) attune.Change {
	v := m.version()
	c := attune.Change{Key: keyOf(m.r, text), Item: attune.Item{Version: v, Stored: v, CAS: uint64(v)}, Prior: attune.AnyVersion}
	c.Item.Value = fmt.Appendf(nil, "%*s=%d", m.rnd.IntN(40), text, m.ms)
	if m.rnd.IntN(200) == 0 {
		c.Item.Value = bytes.Repeat(c.Item.Value, 1+kvadapter.Large/len(c.Item.Value))
	}
	c.Item.Size, c.Item.Flags = len(c.Item.Value), m.rnd.Uint32()
	if m.rnd.IntN(4) == 0 {
		c.Item.Expires = since2020(int64(m.ms) + m.rnd.Int64N(500))
	}
	return c
}

func (m *mutator) step() {
	text := m.keys[m.rnd.IntN(len(m.keys))]
	cur := m.r.Peek(keyOf(m.r, text), false)
	switch n := m.rnd.IntN(20); {
	case n < 9:
		m.set(text)
	case n < 12:
		do(m.t, m.r, deletion(m.r, text, m.version()))
	case n < 15 && cur.Live(since2020(int64(m.ms))): // touched
		it := cur
		it.Version, it.Expires, it.Accessed, it.Fetched = m.version(), 0, 0, false
		do(m.t, m.r, attune.Change{Key: keyOf(m.r, text), Item: it, Prior: attune.AnyVersion})
	case n < 16 && cur.Version != 0 && m.r.tombs:
		do(m.t, m.r, lost(m.r, text, cur.Version))
	case n < 16 && cur.Version != 0:
		do(m.t, m.r, attune.Change{Key: attune.Key{Hash: keyOf(m.r, text).Hash}, Item: attune.Item{Deleted: true, Version: m.version()}, Prior: cur.Version})
	case n < 17 && m.r.tombs:
		m.r.Free(since2020(int64(m.ms)), 100)
		m.r.Collect(at(m.ms/2, 0), 100, func(attune.KeyHash, Mark) {})
	case n < 17:
		for _, c := range m.r.Dead(since2020(int64(m.ms)), 100, nil) {
			c.Item.Version = m.version()
			do(m.t, m.r, c)
		}
	case n == 19 && m.rnd.IntN(100) == 0:
		m.r.Flush(at(m.ms-uint64(m.rnd.IntN(50)), 1<<10))
	}
}

// content is what a client would read of all keys at now.
func (m *mutator) content(now int64) map[string]attune.Item {
	all := make(map[string]attune.Item)
	for _, text := range m.keys {
		it, err := m.r.Get(context.Background(), keyOf(m.r, text), nil, false)
		if err != nil {
			m.t.Fatal(err)
		}
		if it.Live(now) {
			it.Value = bytes.Clone(it.Value)
			it.Fetched, it.Accessed = false, 0
			all[text] = it
		}
	}
	return all
}

// What is saved is the moment, to the item, whatever changes while it is taken.
func TestSaveIsOneMoment(t *testing.T) {
	saveKinds(t, func(t *testing.T, open func() *Replica) {
		for seed := range uint64(4) {
			m := &mutator{t: t, r: open(), rnd: rand.New(rand.NewPCG(seed, 1)), keys: crowded(), ms: 1000}
			for range 1500 {
				m.step()
			}
			if seed%2 == 1 {
				m.r.Flush(at(m.ms-300, 0))
			}
			var unsettled []*attune.Change // on their way to a store
			for i := 0; m.r.memory == nil && i < 50; i++ {
				c := m.change(m.keys[i])
				if m.r.tombs {
					_, _, _, _ = m.r.Merge(&c, false, 0)
				} else {
					_, _ = m.r.Apply(&c)
				}
				unsettled = append(unsettled, &c)
			}
			now := since2020(int64(m.ms))
			want := m.content(now)
			sv, err := m.r.Save(now, 64<<20)
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]bool)
			for range m.rnd.IntN(300) {
				m.step()
			}
			err = sv.Each(t.Context(), func(key []byte, it attune.Item) error {
				text := string(key)
				w, ok := want[text]
				it.Fetched, it.Accessed = false, 0
				if !ok || !bytes.Equal(it.Value, w.Value) || it.Flags != w.Flags || it.Expires != w.Expires || it.Version != w.Version || it.CAS != w.CAS {
					t.Fatalf("seed %d: %s is saved as %.60q %+v, at the moment it was %v %.60q %+v", seed, text, it.Value, it.Version, ok, w.Value, w.Version)
				}
				if got[text] && m.r.memory != nil {
					t.Fatalf("seed %d: %s comes twice", seed, text)
				}
				got[text] = true
				for _, err := range settleAll(t.Context(), m.r, unsettled) {
					if err != nil {
						t.Fatal(err)
					}
				}
				unsettled = nil
				for i := 0; len(got) == 1 && i < len(m.keys); i += 3 {
					do(t, m.r, deletion(m.r, m.keys[i], m.version()))
				}
				for range m.rnd.IntN(8) {
					m.step()
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(want) {
				t.Fatalf("seed %d: %d items were saved of %d", seed, len(got), len(want))
			}
			if n := sv.Missing(); n != 0 {
				t.Fatalf("seed %d: %d items are said to be missing", seed, n)
			}
			sv.Close()
			if held := sv.held.Load(); held != 0 && m.r.memory != nil {
				t.Fatalf("seed %d: %d bytes are still counted", seed, held)
			}
			m.step()
		}
	})
}

// One writer counts up through the keys in order: at any moment they are a run of
// one number, and then of the one before.
func TestSaveWhileOthersWrite(t *testing.T) {
	const keys = 1000
	saveKinds(t, func(t *testing.T, open func() *Replica) {
		r := open()
		var stop atomic.Bool
		var clock atomic.Uint64
		clock.Store(1000)
		write := func(text string, n int) {
			v := at(clock.Add(1), 0)
			c := attune.Change{Key: keyOf(r, text), Prior: attune.AnyVersion}
			c.Item = attune.Item{Value: fmt.Append(nil, n), Version: v, Stored: v, CAS: uint64(v)}
			c.Item.Size = len(c.Item.Value)
			do(t, r, c)
		}
		for i := range keys {
			write(fmt.Sprint(i), 0)
		}
		var writers sync.WaitGroup
		writers.Go(func() {
			for n := 1; !stop.Load(); n++ {
				for i := range keys {
					write(fmt.Sprint(i), n)
				}
			}
		})
		writers.Go(func() { // of keys that come and go
			for n := 0; !stop.Load(); n++ {
				text := fmt.Sprint("other", n%keys)
				write(text, n)
				do(t, r, deletion(r, text, at(clock.Add(1), 0)))
			}
		})
		for range 5 {
			sv, err := r.Save(since2020(1), 64<<20)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Save(0, 1); !errors.Is(err, ErrSaving) {
				t.Errorf("a second one: %v", err)
			}
			saved := make(map[string]int)
			if err := sv.Each(t.Context(), func(key []byte, it attune.Item) error {
				var n int
				_, err := fmt.Sscan(string(it.Value), &n)
				saved[string(key)] = n
				return err
			}); err != nil {
				t.Fatal(err)
			}
			sv.Close()
			first := saved["0"]
			for i := range keys {
				n, ok := saved[fmt.Sprint(i)]
				if !ok || n != first && n != first-1 || n == first && i > 0 && saved[fmt.Sprint(i-1)] != first {
					t.Fatalf("key %d is %d (saved: %v), key 0 is %d", i, n, ok, first)
				}
			}
		}
		stop.Store(true)
		writers.Wait()
	})
}

func TestSaveEndsWhenItCannotGoOn(t *testing.T) {
	saveKinds(t, func(t *testing.T, open func() *Replica) {
		m := &mutator{t: t, r: open(), rnd: rand.New(rand.NewPCG(1, 1)), keys: crowded(), ms: 1000}
		for _, text := range m.keys {
			m.set(text)
		}
		each := func(limit int64, during func()) error {
			sv, err := m.r.Save(0, limit)
			if err != nil {
				t.Fatal(err)
			}
			defer sv.Close()
			return sv.Each(t.Context(), func([]byte, attune.Item) error {
				during()
				return nil
			})
		}
		if err := each(2000, m.step); !errors.Is(err, ErrSaveBehind) {
			t.Errorf("with all that is written and no room for it: %v", err)
		}
		var index bytes.Buffer
		cut, err := m.r.Cut()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cut.WriteTo(&index); err != nil {
			t.Fatal(err)
		}
		cut.Close()
		install := sync.OnceFunc(func() {
			if err := m.r.Install(&index); err != nil {
				t.Fatal(err)
			}
		})
		if err := each(1<<20, func() { install(); m.step() }); !errors.Is(err, ErrSaveReplaced) {
			t.Errorf("with another index: %v", err)
		}
		if err := each(1<<20, func() {}); err != nil {
			t.Errorf("after all that: %v", err)
		}
	})
	r := Open(Options{Backend: &remote{store: newStore()}})
	if _, err := r.Save(0, 1); !errors.Is(err, ErrNoScan) {
		t.Errorf("of a store that does not list: %v", err)
	}
}

// Bytes that nobody has brought here yet are told of.
func TestSaveTellsWhatIsMissing(t *testing.T) {
	saveKinds(t, func(t *testing.T, open func() *Replica) {
		m := &mutator{t: t, r: open(), rnd: rand.New(rand.NewPCG(1, 1)), keys: crowded()[:10], ms: 1000}
		for _, text := range m.keys {
			m.set(text)
		}
		if err := m.r.backend.Delete(t.Context(), keyOf(m.r, m.keys[3])); err != nil {
			t.Fatal(err)
		}
		sv, err := m.r.Save(0, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer sv.Close()
		n := 0
		if err := sv.Each(t.Context(), func([]byte, attune.Item) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		if n != 9 || sv.Missing() != 1 {
			t.Errorf("%d saved, %d missing, of 10 of which one is lost", n, sv.Missing())
		}
		// Who finds it elsewhere gives it, as it was at the moment.
		lost := keyOf(m.r, m.keys[3])
		was := m.r.Peek(lost, false)
		m.set(m.keys[3])
		m.set(m.keys[4])
		var keys []attune.Key
		for _, text := range append(m.keys, "a stranger's") {
			keys = append(keys, keyOf(m.r, text))
		}
		lacking, items, err := sv.Lacking(t.Context(), keys)
		if err != nil || len(lacking) != 1 || lacking[0].Hash != lost.Hash || items[0].Stored != was.Stored || items[0].Size != was.Size {
			t.Fatalf("lacking %v, %+v, %v; want %+v", lacking, items, err, was)
		}
		items[0].Value = []byte("found")
		given := ""
		err = sv.Give(lacking[0], items[0], func(key []byte, it attune.Item) error { given = string(key) + string(it.Value); return nil })
		if err != nil || given != m.keys[3]+"found" || sv.Missing() != 0 {
			t.Errorf("given %q, %v; %d missing", given, err, sv.Missing())
		}
		if again, _, err := sv.Lacking(t.Context(), keys); len(again) != 0 || err != nil {
			t.Errorf("lacking %v, %v, though all were given", again, err)
		}
	})
}
