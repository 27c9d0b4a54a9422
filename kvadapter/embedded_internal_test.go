package kvadapter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"github.com/attunekv/attune"
)

func testKey(text []byte) attune.Key {
	h := xxh3.Hash128Seed(text, 1)
	return attune.Key{Text: text, Hash: attune.KeyHash{h.Hi, h.Lo}}
}

func numbered(i int) attune.Key { return testKey(fmt.Appendf(nil, "key%08d", i)) }

// TestEmbeddedAgainstMap drives the store and a map with the same calls. Bursts
// of one size make the free chunks that a later burst of another needs.
func TestEmbeddedAgainstMap(t *testing.T) {
	ctx := context.Background()
	rapid.Check(t, func(t *rapid.T) {
		s := newEmbedded()
		model := map[int]Record{}
		keyOf := func(i int) attune.Key {
			return testKey(append([]byte(fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, i*7%240)...))
		}
		size := rapid.OneOf(rapid.IntRange(0, 400), rapid.IntRange(0, Large+10), rapid.SampledFrom([]int{1700, maxChunk, 3 * maxChunk, 70000}))
		version := attune.Version(0)
		put := func(i, n int, gen uint32) {
			version++
			rec := Record{Stamp{gen, version}, bytes.Repeat([]byte{byte(version)}, n)}
			if err := s.Put(ctx, keyOf(i), rec); err != nil {
				t.Fatal(err)
			}
			model[i] = rec
		}
		drop := func(i int, text bool) {
			key := keyOf(i)
			if !text {
				key.Text = nil
			}
			if err := s.Delete(ctx, key); err != nil {
				t.Fatal(err)
			}
			delete(model, i)
		}
		index := rapid.IntRange(0, 3000)
		var buf []byte
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				put(index.Draw(t, "key"), size.Draw(t, "size"), rapid.Uint32Range(1, 3).Draw(t, "gen"))
			},
			"put many": func(t *rapid.T) {
				from, n := index.Draw(t, "from"), size.Draw(t, "size")
				for i := range min(1+4<<20/(n+1), 1000) {
					put(from+i, n, 1)
				}
			},
			"delete": func(t *rapid.T) {
				drop(index.Draw(t, "key"), rapid.Bool().Draw(t, "by text"))
			},
			"delete most": func(t *rapid.T) {
				keep := rapid.Uint64Range(2, 20).Draw(t, "keep one in")
				rng := rand.New(rand.NewPCG(keep, 1))
				for i := range 4000 {
					if _, ok := model[i]; ok && rng.Uint64N(keep) != 0 {
						drop(i, false)
					}
				}
			},
			"get": func(t *rapid.T) {
				i := index.Draw(t, "key")
				rec, err := s.Get(ctx, keyOf(i), buf)
				want, ok := model[i]
				if !ok {
					if !errors.Is(err, ErrNotFound) {
						t.Fatalf("get of none: %v, %v", rec.Stamp, err)
					}
					return
				}
				if err != nil || rec.Stamp != want.Stamp || !bytes.Equal(rec.Value, want.Value) {
					t.Fatalf("get: %v, %d bytes, %v; want %v, %d bytes", rec.Stamp, len(rec.Value), err, want.Stamp, len(want.Value))
				}
				if len(rec.Value) < Large {
					buf = rec.Value
				}
			},
			"": func(t *rapid.T) {
				if taken := s.taken.Load(); taken > s.bound() {
					t.Fatalf("%d bytes taken, %d used", taken, s.used.Load())
				}
				if err := s.audit(); err != nil {
					t.Fatal(err)
				}
			},
		})
		for i, want := range model {
			rec, err := s.Get(ctx, keyOf(i), nil)
			if err != nil || rec.Stamp != want.Stamp || !bytes.Equal(rec.Value, want.Value) {
				t.Fatalf("in the end: %v, %v", rec.Stamp, err)
			}
		}
		for i := range model {
			drop(i, true)
		}
		if used := s.Used(); used != 0 {
			t.Fatalf("empty, and %d bytes used", used)
		}
	})
}

// heap is the live heap in bytes.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // the first may have begun before the last release
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.MSpanInuse)
}

// TestEmbeddedGivesMemoryBack changes what the store is filled with, at random
// and without a word, and holds it to what Memory.Used promises: by its own
// account after every call, and by the heap's now and then.
func TestEmbeddedGivesMemoryBack(t *testing.T) {
	ctx := context.Background()
	before := heap()
	s := newEmbedded()
	if empty := heap() - before; empty > 512<<10 {
		t.Errorf("an empty store takes %d bytes", empty)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, Large)
	var most int64
	step := func(what string, fn func() error) {
		t.Helper()
		moved := s.drain.moved
		if err := fn(); err != nil {
			t.Fatal(err)
		}
		if taken := s.taken.Load(); taken > s.bound() {
			t.Fatalf("%s: %d bytes taken for %d used", what, taken, s.used.Load())
		}
		most = max(most, s.drain.moved-moved)
	}
	settle := func(what string) {
		t.Helper()
		if taken := heap() - before; taken > s.bound() {
			t.Errorf("%s: heap %d for %d used", what, taken, s.used.Load())
		}
		if err := s.audit(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Logf("%-28s %9d used, %9d taken, %9d heap, %d chunks moved so far", what, s.used.Load(), s.taken.Load(), heap()-before, s.drain.moved)
	}
	put := func(what string, i, n int) {
		step(what, func() error { return s.Put(ctx, numbered(i), Record{Stamp{1, 1}, value[:n]}) })
	}
	drop := func(what string, from, to int, share float64) {
		for _, i := range rng.Perm(to - from) {
			if rng.Float64() < share {
				step(what, func() error { return s.Delete(ctx, numbered(from+i)) })
			}
		}
	}
	const small = 64 << 20 / 136
	for i := range small {
		put("64 MB of 100 bytes", i, 100)
	}
	settle("64 MB of 100 bytes")
	drop("nine in ten deleted", 0, small, 0.9)
	settle("nine in ten deleted")
	for i := range 56 << 20 / 2100 {
		put("56 MB of 2 KB", small+i, 2048)
	}
	settle("56 MB of 2 KB")
	for i := range 56 << 20 / 2100 {
		put("all overwritten, any size", small+i, rng.IntN(5000))
	}
	settle("all overwritten, any size")
	for i := range 300 {
		put("and some of 30 KB", 1<<25+i, 30000)
	}
	settle("and some of 30 KB")
	drop("nearly all deleted", 0, small+56<<20/2100, 0.99)
	settle("nearly all deleted")
	drop("the rest", 0, small+56<<20/2100, 1)
	drop("the rest", 1<<25, 1<<25+300, 1)
	settle("the rest")
	if s.Used() != 0 {
		t.Errorf("empty, and %d bytes used", s.Used())
	}
	if most >= maxMoves+pageSize/minChunk {
		t.Errorf("one call moved %d chunks", most)
	}
	t.Logf("at most %d chunks moved in one call", most)
	runtime.KeepAlive(s)
}

// TestEmbeddedWhileDraining has readers and writers at work on records that are
// being moved from under them.
func TestEmbeddedWhileDraining(t *testing.T) {
	ctx := context.Background()
	s := newEmbedded()
	const workers, each = 4, 3000
	sizes := []int{20, 100, 700, 1500, 5000, 9000}
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(9, uint64(w)))
			have := map[int]Record{} // of the keys that are this worker's alone
			var buf []byte
			verify := func(i int) bool {
				rec, err := s.Get(ctx, numbered(i), buf)
				want, ok := have[i]
				if ok != (err == nil) || rec.Stamp != want.Stamp || !bytes.Equal(rec.Value, want.Value) {
					t.Errorf("key %d: %v, %d bytes, %v; want %v, %d bytes", i, rec.Stamp, len(rec.Value), err, want.Stamp, len(want.Value))
					return false
				}
				buf = rec.Value
				return true
			}
			for _, n := range sizes {
				for i := w * each; i < (w+1)*each; i++ {
					if rng.IntN(2) == 0 {
						rec := Record{Stamp{uint32(rng.IntN(2)), attune.Version(rng.Uint64())}, bytes.Repeat([]byte{byte(i)}, n)}
						if err := s.Put(ctx, numbered(i), rec); err != nil {
							t.Error(err)
							return
						}
						have[i] = rec
					}
					if j := w*each + rng.IntN(each); !verify(j) {
						return
					}
				}
				for i := w * each; i < (w+1)*each; i++ {
					if rng.IntN(10) != 0 {
						if err := s.Delete(ctx, attune.Key{Hash: numbered(i).Hash}); err != nil {
							t.Error(err)
							return
						}
						delete(have, i)
					}
					if j := w*each + rng.IntN(each); !verify(j) {
						return
					}
				}
			}
		})
	}
	stop := make(chan struct{})
	scans := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				scans <- n
				return
			default:
			}
			n++
			if err := s.Scan(ctx, func([]byte, Stamp, int) bool { return true }); err != nil {
				t.Error(err)
			}
			s.Stats()
			// The pages of this class are emptied again and again, needed or not.
			s.drain.mu.Lock()
			for c := range s.classes {
				if n, ok := s.claim(uint8(c)); ok {
					s.empty(uint8(c), n)
				}
			}
			s.drain.mu.Unlock()
		}
	}()
	group.Wait()
	close(stop)
	if <-scans == 0 || s.drain.moved == 0 {
		t.Error("nothing happened meanwhile")
	}
	if err := s.audit(); err != nil {
		t.Fatal(err)
	}
}

// TestEmbeddedScanMeetsAllWhileTableMoves lets the table grow and shrink under
// a scan: records that stay are listed once, whatever comes and goes.
func TestEmbeddedScanMeetsAllWhileTableMoves(t *testing.T) {
	ctx := context.Background()
	s := newEmbedded()
	const stay, pass = 40_000, 160_000
	for i := range stay {
		if err := s.Put(ctx, numbered(i), Record{Stamp{1, 1}, nil}); err != nil {
			t.Fatal(err)
		}
	}
	seen := make([]int, stay)
	passing, step := 0, 1
	err := s.Scan(ctx, func(key []byte, _ Stamp, _ int) bool {
		var i int
		if _, err := fmt.Sscanf(string(key), "key%d", &i); err != nil {
			t.Error(err)
		}
		if i < stay {
			seen[i]++
		}
		// Between two of those: a handful of others, up to all of them and down again.
		for range 8 {
			other := numbered(stay + passing)
			if step > 0 {
				if err := s.Put(ctx, other, Record{Stamp{1, 1}, nil}); err != nil {
					t.Error(err)
				}
			} else if err := s.Delete(ctx, other); err != nil {
				t.Error(err)
			}
			if passing += step; passing == pass || passing == 0 {
				step = -step
			}
			passing = max(passing, 0)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range seen {
		if n != 1 {
			t.Fatalf("record %d is listed %d times", i, n)
		}
	}
}

// TestEmbeddedMovesEveryKind empties pages of all classes by hand: short
// records, those of many parts, and those whose value is elsewhere.
func TestEmbeddedMovesEveryKind(t *testing.T) {
	ctx := context.Background()
	s := newEmbedded()
	bank := make([]byte, 2*Large) // of which each value is some stretch
	rng := rand.NewChaCha8([32]byte{})
	_, _ = rng.Read(bank) // cannot fail
	record := func(i int) Record {
		n := []int{1, 4000, 5, Large}[i%4]
		return Record{Stamp{uint32(i / 4 % 2), attune.Version(i)}, bank[i%Large:][:n+i%5]}
	}
	const n = 24000
	for i := range n {
		if err := s.Put(ctx, numbered(i), record(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		if i%3 != 0 {
			if err := s.Delete(ctx, numbered(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	moved := map[uint8]bool{} // by flags
	s.drain.mu.Lock()
	for c := range s.classes {
		for {
			page, ok := s.claim(uint8(c))
			if !ok {
				break
			}
			for _, r := range s.drain.found {
				if b := s.chunk(r.h); b[offKind] != kindPart {
					moved[b[offFlags]] = true
				}
			}
			s.empty(uint8(c), page)
		}
	}
	s.drain.mu.Unlock()
	for _, flags := range []uint8{0, flagParts, flagLarge, flagGen, flagGen | flagParts, flagGen | flagLarge} {
		if !moved[flags] {
			t.Errorf("no record with flags %b was moved", flags)
		}
	}
	if err := s.audit(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		rec, err := s.Get(ctx, numbered(i), nil)
		if i%3 != 0 {
			if !errors.Is(err, ErrNotFound) {
				t.Fatalf("deleted %d: %v", i, err)
			}
		} else if want := record(i); err != nil || rec.Stamp != want.Stamp || !bytes.Equal(rec.Value, want.Value) {
			t.Fatalf("record %d: %v, %d bytes, %v", i, rec.Stamp, len(rec.Value), err)
		}
	}
}

// TestEmbeddedOutOfHandles: with no page number left a Put that needs one is
// refused, whatever it had of chunks returned; so is a move, and the page that
// was to be emptied is used again.
func TestEmbeddedOutOfHandles(t *testing.T) {
	ctx := context.Background()
	s := newEmbedded()
	put := func(i, n int) error { return s.Put(ctx, numbered(i), Record{Stamp{1, 1}, make([]byte, n)}) }
	const page = pageSize / 136 // records of 100 bytes and such a key
	for i := range 2 * page {
		if err := put(i, 100); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(1000, pageSize/2); err != nil { // half a page of the greatest chunks
		t.Fatal(err)
	}
	first := s.first
	s.first = topLeaves
	if err := put(2000, 100); !errors.Is(err, ErrFull) {
		t.Errorf("a chunk more: %v, want ErrFull", err)
	}
	if err := put(2000, Large-1); !errors.Is(err, ErrFull) {
		t.Errorf("more parts than are free: %v, want ErrFull", err)
	}
	if err := put(1, 300); !errors.Is(err, ErrFull) {
		t.Errorf("a greater record: %v, want ErrFull", err)
	}
	if _, err := s.Get(ctx, numbered(1), nil); err != nil {
		t.Errorf("after a Put was refused: %v", err)
	}
	// A page is claimed, then the free chunks it counted on are taken.
	for i := range page {
		if err := s.Delete(ctx, numbered(2*i)); err != nil {
			t.Fatal(err)
		}
	}
	c := s.classFor(offKey + len(numbered(0).Text) + 100)
	s.drain.mu.Lock()
	n, ok := s.claim(c)
	if !ok {
		t.Fatal("half of two pages is free, and none can be emptied")
	}
	taken := 0
	for put(3000+taken, 100) == nil {
		taken++
	}
	if err := s.Delete(ctx, numbered(1)); err != nil {
		t.Fatal(err)
	}
	s.empty(c, n)
	s.drain.mu.Unlock()
	s.first = first
	if taken == 0 {
		t.Error("no chunk was free on the other page")
	}
	if err := s.audit(); err != nil {
		t.Fatal(err)
	}
	for i := range 2 * page {
		if err := put(5000+i, 100); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.audit(); err != nil {
		t.Fatal(err)
	}
}

// TestEmbeddedKeepsOldGenerations: records of another generation than the
// shard's first carry their own, and the first is taken anew once a shard is
// empty.
func TestEmbeddedKeepsOldGenerations(t *testing.T) {
	ctx := context.Background()
	s := newEmbedded()
	cost := func(gen uint32) int64 {
		start := s.Used()
		if err := s.Put(ctx, testKey([]byte("1234")), Record{Stamp{gen, 1}, make([]byte, 100)}); err != nil {
			t.Fatal(err)
		}
		return s.Used() - start
	}
	first := cost(1)
	if more := cost(2); more == 0 {
		t.Error("a second generation costs nothing: it cannot be kept")
	}
	if err := s.Delete(ctx, testKey([]byte("1234"))); err != nil {
		t.Fatal(err)
	}
	if again := cost(2); again != first {
		t.Errorf("in an empty shard it costs %d, want %d", again, first)
	}
}

func TestEmbeddedRefusesKeys(t *testing.T) {
	s := newEmbedded()
	for _, n := range []int{0, maxKey + 1, 255, 256} {
		if err := s.Put(context.Background(), testKey(make([]byte, n)), Record{}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("a key of %d bytes: %v, want ErrTooLarge", n, err)
		}
	}
}

// TestClassSteps: what rounding up to a class may waste.
func TestClassSteps(t *testing.T) {
	var p pool
	p.init()
	for n := minChunk; n <= maxChunk; n++ {
		size := p.classes[p.classFor(n)].size
		if size < n || size-n > max(7, n/8+8) {
			t.Errorf("%d bytes take a chunk of %d", n, size)
		}
	}
	for c := range p.classes {
		cl := &p.classes[c]
		if waste := pageSize - cl.size*cl.perPage; waste*80 > pageSize {
			t.Errorf("pages of %d-byte chunks leave %d bytes unused", cl.size, waste)
		}
	}
	if slack := len(p.classes) * pageCost; slack > 2<<20-256<<10 {
		t.Errorf("%d classes may strand %d bytes", len(p.classes), slack)
	}
}
