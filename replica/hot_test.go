package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// openHot is a replica with a cache of hot values over a store that counts. The
// cache takes in no more than one that was full.
func openHot(bytes int64) (*Replica, *remote) {
	b := &remote{store: newStore()}
	return choosy(Open(Options{Backend: b, Gen: 1, HotCache: bytes})), b
}

func choosy(r *Replica) *Replica {
	if h := r.hot.Load(); h != nil {
		h.evicted.full.Store(true)
	}
	return r
}

func TestEveryValueIsHotWhileThereIsRoom(t *testing.T) {
	const bound = 100 * (100 + hotOverhead)
	b := &remote{store: newStore()}
	r := Open(Options{Backend: b, Gen: 1, HotCache: bound})
	value := strings.Repeat("v", 100)
	var v attune.Version
	// asked writes n keys, and is how often the store was asked when each is read.
	asked := func(n int) (asked int64) {
		for range n {
			v++
			key := keyOf(r, fmt.Sprint(v))
			mustApply(t, r, put(key, v, value))
			asked += b.read(t, r, key, value)
		}
		return asked
	}
	if n := asked(90); n != 0 {
		t.Errorf("%d of 90 values were not hot from the start", n)
	}
	asked(90)
	if n := asked(90); n != 90 || r.Stats().HotEvicted == 0 {
		t.Errorf("full, %d of 90 values read once were not hot; %d evicted", n, r.Stats().HotEvicted)
	}
	r.Resize(0, 10*bound)
	if n := asked(90); n != 0 {
		t.Errorf("larger, %d of 90 values were not hot", n)
	}
	// Nor need it have been written here while the cache was there.
	r.Resize(0, 0)
	v++
	key := keyOf(r, "before")
	mustApply(t, r, put(key, v, value))
	r.Resize(0, bound)
	for i, want := range []int64{1, 0} {
		if got := b.read(t, r, key, value); got != want {
			t.Errorf("read %d asked the store %d times, want %d", i+1, got, want)
		}
	}
}

// read reads a key, as a client does, and reports how often the store was asked.
func (f *remote) read(t testing.TB, r *Replica, key attune.Key, want string) (asked int64) {
	t.Helper()
	before := f.gets.Load()
	it, err := r.Get(context.Background(), key, nil, true)
	if err != nil || string(it.Value) != want {
		t.Fatalf("%s = %.40q, %v, want %.40q", key.Text, it.Value, err, want)
	}
	return f.gets.Load() - before
}

func TestValueReadAgainIsHot(t *testing.T) {
	r, b := openHot(1 << 20)
	key := keyOf(r, "k")
	mustApply(t, r, put(key, 1, "one"))
	for i, want := range []int64{1, 1, 0, 0} {
		if got := b.read(t, r, key, "one"); got != want {
			t.Errorf("read %d asked the store %d times, want %d", i+1, got, want)
		}
	}
	// What replaces it is hot by being written; a value never read is not.
	mustApply(t, r, put(key, 2, "two"))
	if b.read(t, r, key, "two") != 0 {
		t.Error("the value that replaced a hot one is not")
	}
	cold := keyOf(r, "cold")
	mustApply(t, r, put(cold, 3, "cold"))
	// Reads that are no use, such as those of an export, change nothing.
	for range 3 {
		mustGet(t, r, cold, "cold")
	}
	if b.read(t, r, cold, "cold") != 1 {
		t.Error("what no client had read was hot")
	}
	if st := r.Stats(); st.HotHits != 3 || st.HotMisses != 6 || st.HotBytes == 0 || st.HotEvicted != 0 {
		t.Errorf("%+v", st)
	}
}

// A touch moves no bytes, so they stay hot under their own version.
func TestTouchedValueStaysHot(t *testing.T) {
	r, b := openHot(1 << 20)
	key := keyOf(r, "k")
	mustApply(t, r, put(key, 1, "one"))
	b.read(t, r, key, "one")
	b.read(t, r, key, "one")
	it := r.Peek(key, false)
	it.Version, it.Expires = 2, epoch+1000
	mustApply(t, r, &attune.Change{Key: key, Item: it, Prior: 1})
	if b.read(t, r, key, "one") != 0 {
		t.Error("a touch made the value cold")
	}
	if it := r.Peek(key, false); it.Version != 2 || it.Expires != epoch+1000 {
		t.Errorf("the index says %+v", it)
	}
}

// Whatever the cache keeps, the index says what there is.
func TestHotBytesOfAnotherVersionAreNoAnswer(t *testing.T) {
	one := kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1, Version: 1}, Value: []byte("one")}
	for name, become := range map[string]func(r *Replica, key attune.Key) (want string){
		"overwritten": func(r *Replica, key attune.Key) string {
			mustApply(t, r, put(key, 2, "two"))
			return "two"
		},
		"deleted": func(r *Replica, key attune.Key) string {
			mustApply(t, r, &attune.Change{Key: key, Item: attune.Item{Deleted: true, Version: 2}, Prior: attune.AnyVersion})
			return ""
		},
		"deleted and written": func(r *Replica, key attune.Key) string {
			mustApply(t, r, &attune.Change{Key: key, Item: attune.Item{Deleted: true, Version: 2}, Prior: attune.AnyVersion})
			mustApply(t, r, put(key, 3, "tri"))
			return "tri"
		},
		"evicted": func(r *Replica, key attune.Key) string {
			mustApply(t, r, &attune.Change{Key: attune.Key{Hash: key.Hash}, Item: attune.Item{Deleted: true, Version: 2}, Prior: 1})
			return ""
		},
		"flushed": func(r *Replica, _ attune.Key) string {
			r.Flush(1)
			return ""
		},
		"flushed and written": func(r *Replica, key attune.Key) string {
			r.Flush(1)
			mustApply(t, r, put(key, 2, "two"))
			return "two"
		},
		"installed from a peer": func(r *Replica, key attune.Key) string {
			mustInstall(t, r, snapshot(t, Open(Options{Backend: newMemory(), Gen: 1})))
			return ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, b := openHot(1 << 20)
			key := keyOf(r, "k")
			mustApply(t, r, put(key, 1, "one"))
			b.read(t, r, key, "one")
			b.read(t, r, key, "one")
			want := become(r, key)
			// A reader that was slow adds what it found long ago.
			r.hot.Load().add(key.Hash, one)
			for range 3 {
				b.read(t, r, key, want)
			}
		})
	}
}

func TestHotBytesOfAnotherGenerationOrSizeAreNoAnswer(t *testing.T) {
	for _, rec := range []kvadapter.Record{
		{Stamp: kvadapter.Stamp{Gen: 2, Version: 1}, Value: []byte("ONE")},
		{Stamp: kvadapter.Stamp{Gen: 1, Version: 1}, Value: []byte("one and more")},
	} {
		r, b := openHot(1 << 20)
		key := keyOf(r, "k")
		mustApply(t, r, put(key, 1, "one"))
		r.hot.Load().add(key.Hash, rec)
		if b.read(t, r, key, "one") != 1 {
			t.Errorf("%v: the store was not asked", rec)
		}
	}
}

func TestHotCacheKeepsItsBound(t *testing.T) {
	const bound = 1 << 20
	r, b := openHot(bound)
	large := strings.Repeat("x", bound/hotShare+1)
	var keys []attune.Key
	v := attune.Version(0)
	for i := range 20_000 {
		key := keyOf(r, fmt.Sprint(i))
		keys = append(keys, key)
		v++
		mustApply(t, r, put(key, v, strings.Repeat("v", 100)))
	}
	for range 3 {
		for _, key := range keys {
			b.read(t, r, key, strings.Repeat("v", 100))
			if st := r.hot.Load().cache.WeightedSize(); st > bound {
				t.Fatalf("%d bytes, want %d at most", st, bound)
			}
		}
	}
	st := r.Stats()
	if st.HotEvicted == 0 || st.HotBytes < bound*9/10 {
		t.Errorf("%d bytes of %d, %d evicted", st.HotBytes, bound, st.HotEvicted)
	}
	// A value over the share of one is never in, also if a shorter one was.
	key := keyOf(r, "large")
	for _, value := range []string{"short", large} {
		v++
		mustApply(t, r, put(key, v, value))
		for range 3 {
			b.read(t, r, key, value)
		}
	}
	if b.read(t, r, key, large) != 1 {
		t.Error("a value of more than its share is hot")
	}
	if _, kept := r.hot.Load().get(key.Hash); kept {
		t.Error("the bytes it replaced are kept")
	}
}

// The keys in use stay when others are read once or twice in passing.
func TestScanDoesNotDisplaceTheHot(t *testing.T) {
	r, b := openHot(100 * (100 + hotOverhead))
	value := strings.Repeat("v", 100)
	var v attune.Version
	set := func(text string) attune.Key {
		v++
		key := keyOf(r, text)
		mustApply(t, r, put(key, v, value))
		return key
	}
	var used []attune.Key
	for i := range 50 {
		used = append(used, set(fmt.Sprint("used", i)))
	}
	for range 20 {
		for _, key := range used {
			b.read(t, r, key, value)
		}
	}
	asked := int64(0)
	for i := range 5000 {
		passing := set(fmt.Sprint("passing", i))
		b.read(t, r, passing, value)
		b.read(t, r, passing, value)
		asked += b.read(t, r, used[rand.N(len(used))], value)
	}
	if asked > 500 {
		t.Errorf("%d of 5000 reads of 50 hot keys asked the store", asked)
	}
}

func TestLargeHotValueIsShared(t *testing.T) {
	r, b := openHot(16 << 20)
	key := keyOf(r, "k")
	value := bytes.Repeat([]byte("L"), kvadapter.Large)
	mustApply(t, r, put(key, 1, string(value)))
	b.read(t, r, key, string(value))
	b.read(t, r, key, string(value))
	buf := make([]byte, 0, 2*kvadapter.Large)
	one, _ := r.Get(context.Background(), key, buf, true)
	two, _ := r.Get(context.Background(), key, buf, true)
	if &one.Value[0] != &two.Value[0] || &one.Value[0] == &buf[:1][0] {
		t.Error("a large value was copied")
	}
}

func TestHotReadsDoNotAllocate(t *testing.T) {
	r, b := openHot(1 << 20)
	key := keyOf(r, "k")
	mustApply(t, r, put(key, 1, "one"))
	b.read(t, r, key, "one")
	b.read(t, r, key, "one")
	buf := make([]byte, 0, 64)
	var got Got
	ctx := context.Background()
	for name, read := range map[string]func(){
		"Get": func() { _, _ = r.Get(ctx, key, buf, true) },
		"Here": func() {
			if _, ok, _ := r.Here(key, &got, true); !ok {
				t.Fatal("not hot")
			}
		},
	} {
		if n := testing.AllocsPerRun(1000, read); math.Round(n) != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// What must be fetched first counts as read when it is, and what was fetched is an
// answer only while the index names it.
func TestHereAnswersWhatTheIndexNames(t *testing.T) {
	r, b := openHot(1 << 20)
	ctx := context.Background()
	key := keyOf(r, "k")
	here := func(got *Got, wantOK bool, want string, wantErr error) {
		t.Helper()
		if it, ok, err := r.Here(key, got, true); ok != wantOK || string(it.Value) != want || !errors.Is(err, wantErr) {
			t.Fatalf("%+v, %v, %v, want %q, %v, %v", it, ok, err, want, wantOK, wantErr)
		}
	}
	bring := func() *Got {
		t.Helper()
		got := new(Got)
		if !r.Lacks(key, got) {
			t.Fatal("nothing to fetch")
		}
		r.Bring(ctx, []attune.Key{key}, []*Got{got})
		return got
	}
	here(new(Got), true, "", nil) // absent
	mustApply(t, r, put(key, 1, "one"))
	here(new(Got), false, "", nil)
	if r.Peek(key, false).Fetched {
		t.Error("counted as read")
	}
	one := bring()
	if one.Size() != 3 {
		t.Errorf("asked for %d bytes", one.Size())
	}
	mustApply(t, r, put(key, 2, "two"))
	here(one, false, "", nil) // it was written meanwhile
	two := bring()
	here(two, true, "two", nil)
	here(two, true, "two", nil)
	if r.Lacks(key, new(Got)) {
		t.Error("read twice and not hot")
	}
	mustApply(t, r, put(key, 3, "new")) // replaces what is hot
	here(two, true, "new", nil)
	r.hot.Load().drop(key.Hash)
	b.forget(key.Hash)
	here(bring(), true, "", ErrGone)
	failed := new(Got)
	r.Lacks(key, failed)
	failed.Fail(kvadapter.ErrUnavailable)
	here(failed, true, "", kvadapter.ErrUnavailable)
	// Staged bytes are here at once.
	c := put(key, 4, "staged")
	if applied, err := r.Apply(c); !applied || err != nil {
		t.Fatal(applied, err)
	}
	here(new(Got), true, "staged", nil)
	if err := r.Settle(ctx, c); err != nil {
		t.Fatal(err)
	}
}
