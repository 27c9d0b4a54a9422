package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func keyOf(r *Replica, text string) attune.Key {
	return attune.Key{Text: []byte(text), Hash: r.Hash([]byte(text))}
}

// put is a blind change with new bytes, stamped.
func put(key attune.Key, v attune.Version, value string) *attune.Change {
	c := &attune.Change{Key: key, Item: attune.Item{Value: []byte(value), Size: len(value)}, Prior: attune.AnyVersion}
	c.Stamp(v)
	return c
}

func mustApply(t testing.TB, r *Replica, c *attune.Change) {
	t.Helper()
	applied, err := r.Apply(c)
	if !applied || err != nil {
		t.Fatalf("Apply = %v, %v", applied, err)
	}
	if err := r.Settle(context.Background(), c); err != nil {
		t.Fatal(err)
	}
}

func mustGet(t testing.TB, r *Replica, key attune.Key, want string) attune.Item {
	t.Helper()
	it, err := r.Get(context.Background(), key, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if it.Version == 0 {
		t.Fatalf("%s is absent, want %q", key.Text, want)
	}
	if string(it.Value) != want || it.Size != len(want) {
		t.Fatalf("%s = %.40q (size %d), want %.40q", key.Text, it.Value, it.Size, want)
	}
	return it
}

func mustMiss(t testing.TB, r *Replica, key attune.Key) {
	t.Helper()
	if it, err := r.Get(context.Background(), key, nil, false); err != nil || it.Version != 0 {
		t.Fatalf("%s = %+v, %v, want absent", key.Text, it, err)
	}
}

func TestEntryIsOneCacheLine(t *testing.T) {
	if n := unsafe.Sizeof(entry{}); n != 64 {
		t.Fatalf("an entry takes %d bytes", n)
	}
}

func TestEntryKeepsEveryField(t *testing.T) {
	const now = 1700000000123
	for _, it := range []attune.Item{
		{Version: 9, Stored: 8, CAS: 7, Size: 1 << 27, Flags: ^uint32(0), Expires: now + 999},
		{Version: ^attune.Version(0) - 1, Stored: 1, CAS: ^uint64(0), Stale: true},
		{Version: 1, Stored: 1, CAS: 1, Leased: true, Expires: epoch + maxTime},
	} {
		var e entry
		e.set(&it, 250)
		e.use(since(now))
		e.meta |= metaFetched
		it.Fetched, it.Accessed = true, now/1000
		if got := e.item(); fmt.Sprint(got) != fmt.Sprint(it) {
			t.Errorf("got  %+v\nwant %+v", got, it)
		}
		if e.keyLen() != 250 {
			t.Errorf("key length %d", e.keyLen())
		}
		e.set(&attune.Item{Version: 10}, 3)
		if e.usedAt() != since(now) || e.meta&metaFetched == 0 || e.keyLen() != 3 || e.expires() != 0 {
			t.Errorf("after set: %+v", e)
		}
	}
	// Times out of range are dead, or as good as never.
	var e entry
	e.set(&attune.Item{Expires: 1}, 0)
	if !e.expired(since(now)) {
		t.Error("an exptime before 2020 is not dead")
	}
	e.set(&attune.Item{Expires: 1 << 62}, 0)
	if e.expired(since(now)) {
		t.Error("an exptime far off is dead")
	}
}

func TestApplyComparesVersions(t *testing.T) {
	const floor = 50
	type state struct{ have, version, prior attune.Version }
	for _, deleted := range []bool{false, true} {
		for st, want := range map[state]bool{
			{0, 100, 0}:                  true,
			{0, 100, attune.AnyVersion}:  true,
			{0, 100, 70}:                 false, // removed meanwhile
			{0, 40, 0}:                   false, // before the flush
			{70, 100, 70}:                true,
			{70, 100, 69}:                false,
			{70, 100, 0}:                 false, // added meanwhile
			{70, 100, attune.AnyVersion}: true,
			{70, 70, attune.AnyVersion}:  false, // the same again
			{70, 60, attune.AnyVersion}:  false, // newer wins
			{30, 100, 0}:                 true,  // flushed is absent
			{30, 100, attune.AnyVersion}: true,
			{30, 100, 30}:                deleted, // a flushed item is never carried over
			{30, 100, 29}:                false,
			{30, 45, attune.AnyVersion}:  false,
		} {
			r := Open(Options{Backend: newMemory()})
			key := keyOf(r, "k")
			if st.have != 0 {
				mustApply(t, r, put(key, st.have, "old"))
			}
			r.Flush(floor)
			r.Flush(floor - 10) // never sinks
			c := put(key, st.version, "new")
			c.Prior, c.Item.Deleted = st.prior, deleted
			got, err := r.Apply(c)
			if got != want || err != nil {
				t.Errorf("deleted=%v %+v: %v, %v", deleted, st, got, err)
			}
			if again, _ := r.Apply(c); again && !deleted {
				t.Errorf("%+v: applied twice", st)
			}
			switch {
			case got && deleted || !got && st.have <= floor:
				mustMiss(t, r, key)
			case got:
				mustGet(t, r, key, "new")
			default:
				mustGet(t, r, key, "old")
			}
		}
	}
}

func TestTouchMovesNoBytes(t *testing.T) {
	for name, backend := range backends() {
		t.Run(name, func(t *testing.T) {
			r := Open(Options{Backend: backend, Gen: 3})
			key := keyOf(r, "k")
			mustApply(t, r, put(key, 10, "value"))
			it := r.Peek(key, false)
			it.Expires = 1800000000000
			c := &attune.Change{Key: key, Item: it, Prior: it.Version}
			c.Stamp(20)
			mustApply(t, r, c)
			got := mustGet(t, r, key, "value")
			if got.Version != 20 || got.Stored != 10 || got.CAS != 10 || got.Expires != 1800000000000 {
				t.Errorf("%+v", got)
			}
			if st := r.Stats(); st.Stored != 1 || st.Items != 1 || st.Bytes != 6 || st.Staged != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func backends() map[string]kvadapter.Backend {
	return map[string]kvadapter.Backend{"memory": newMemory(), "remote": &remote{store: newStore()}}
}

func TestBumpShowsTheStateBefore(t *testing.T) {
	r := Open(Options{Backend: newMemory()})
	key := keyOf(r, "k")
	mustApply(t, r, put(key, 1, "v"))
	if it := r.Peek(key, false); it.Fetched {
		t.Error("fetched before any read")
	}
	if it, _ := r.Get(context.Background(), key, nil, true); it.Fetched {
		t.Error("the first read sees its own mark")
	}
	if it := r.Peek(key, true); !it.Fetched || time.Now().Unix()-it.Accessed > 1 {
		t.Errorf("%+v", it)
	}
	mustApply(t, r, put(key, 2, "w"))
	if it := r.Peek(key, false); it.Fetched {
		t.Error("new bytes count as fetched")
	}
}

func TestValuesAppendToTheBuffer(t *testing.T) {
	for name, backend := range backends() {
		t.Run(name, func(t *testing.T) {
			r := Open(Options{Backend: backend})
			small, large, empty := keyOf(r, "small"), keyOf(r, "large"), keyOf(r, "empty")
			big := bytes.Repeat([]byte("x"), kvadapter.Large)
			mustApply(t, r, put(small, 1, "abc"))
			mustApply(t, r, put(empty, 2, ""))
			c := put(large, 3, "")
			c.Item.Value, c.Item.Size = big, len(big)
			mustApply(t, r, c)
			buf := make([]byte, 5, 64)
			it, err := r.Get(context.Background(), small, buf, false)
			if err != nil || &it.Value[0] != &buf[0] || string(it.Value) != "abc" {
				t.Errorf("%q, %v", it.Value, err)
			}
			it, err = r.Get(context.Background(), large, buf, false)
			if err != nil || &it.Value[0] != &big[0] {
				t.Errorf("a large value was copied, %v", err)
			}
			mustGet(t, r, empty, "")
		})
	}
}

func TestLostBytesAreGone(t *testing.T) {
	mem, rem := newMemory(), &remote{store: newStore()}
	for backend, st := range map[kvadapter.Backend]*store{mem: mem.store, rem: rem.store} {
		r := Open(Options{Backend: backend, Gen: 1})
		key := keyOf(r, "k")
		mustApply(t, r, put(key, 10, "v"))
		st.forget(key.Hash)
		it, err := r.Get(context.Background(), key, nil, false)
		if !errors.Is(err, ErrGone) || it.Version != 10 || it.Value != nil {
			t.Fatalf("%+v, %v", it, err)
		}
		// A record of another version, or of another generation, is no better.
		for _, stamp := range []kvadapter.Stamp{{Gen: 1, Version: 9}, {Gen: 2, Version: 10}} {
			_ = st.Put(context.Background(), key, kvadapter.Record{Stamp: stamp, Value: []byte("stale")})
			if _, err := r.Get(context.Background(), key, nil, false); !errors.Is(err, ErrGone) {
				t.Fatalf("bytes stamped %v: %v", stamp, err)
			}
			var items [2]attune.Item
			var errs [2]error
			r.getMulti(context.Background(), []attune.Key{key, key}, items[:], errs[:], false)
			if !errors.Is(errs[0], ErrGone) || !errors.Is(errs[1], ErrGone) {
				t.Fatal(errs)
			}
		}
		// The engine's answer removes exactly that version.
		gone := removal(&entry{hash: key.Hash, version: 10})
		gone.Stamp(11)
		mustApply(t, r, &gone)
		mustMiss(t, r, key)
		if st := r.Stats(); st.Gone != 7 || st.Strange != 6 {
			t.Errorf("%d reads counted as gone, %d because of other bytes", st.Gone, st.Strange)
		}
	}
}

func TestMemoryThatRefuses(t *testing.T) {
	mem := newMemory()
	r := Open(Options{Backend: mem})
	key := keyOf(r, "k")
	mustApply(t, r, put(key, 1, "old"))
	mem.refuse = kvadapter.ErrTooLarge
	if applied, err := r.Apply(put(key, 2, "new")); !applied || !errors.Is(err, kvadapter.ErrTooLarge) {
		t.Fatal(applied, err)
	}
	if _, err := r.Get(context.Background(), key, nil, false); !errors.Is(err, ErrGone) {
		t.Fatal("the old bytes were served for the new version:", err)
	}
}

func TestReadingMany(t *testing.T) {
	for name, backend := range backends() {
		t.Run(name, func(t *testing.T) {
			r := Open(Options{Backend: backend})
			var keys []attune.Key
			for i := range 50 {
				key := keyOf(r, fmt.Sprint("key", i))
				keys = append(keys, key, key)
				if i%3 != 0 {
					mustApply(t, r, put(key, attune.Version(i+1), fmt.Sprint("value", i)))
				}
			}
			items, errs := make([]attune.Item, len(keys)), make([]error, len(keys))
			r.getMulti(context.Background(), keys, items, errs, true)
			for i := range keys {
				want := ""
				if i/2%3 != 0 {
					want = fmt.Sprint("value", i/2)
				}
				if errs[i] != nil || string(items[i].Value) != want {
					t.Errorf("%s = %q, %v", keys[i].Text, items[i].Value, errs[i])
				}
			}
			if it := r.Peek(keys[2], false); !it.Fetched {
				t.Error("not bumped")
			}
		})
	}
	down := &remote{store: newStore()}
	r := Open(Options{Backend: down})
	a, b := keyOf(r, "a"), keyOf(r, "b")
	mustApply(t, r, put(a, 1, "v"))
	down.failOnce = 1
	items, errs := make([]attune.Item, 2), make([]error, 2)
	r.getMulti(context.Background(), []attune.Key{a, b}, items, errs, false)
	if !errors.Is(errs[0], kvadapter.ErrUnavailable) || errs[1] != nil {
		t.Errorf("a dead backend: %v; a key it does not need to be asked for has no error", errs)
	}
}

// Bytes lost of many keys are found out in the one round trip.
func TestLostBytesOfManyAreAskedForOnce(t *testing.T) {
	f := &remote{store: newStore()}
	r := Open(Options{Backend: f})
	keys := make([]attune.Key, 20)
	for i := range keys {
		keys[i] = keyOf(r, fmt.Sprint(i))
		mustApply(t, r, put(keys[i], attune.Version(i+1), "v"))
		f.forget(keys[i].Hash)
	}
	items, errs := make([]attune.Item, len(keys)), make([]error, len(keys))
	r.getMulti(context.Background(), keys, items, errs, false)
	for i := range keys {
		if !errors.Is(errs[i], ErrGone) || items[i].Version != attune.Version(i+1) {
			t.Errorf("key %d: %+v, %v", i, items[i], errs[i])
		}
	}
	if f.gets.Load() != 0 || f.multis.Load() != 1 {
		t.Errorf("%d Get, %d GetMulti", f.gets.Load(), f.multis.Load())
	}
}

// Who appends to a record in a shared store leaves its stamp as it was.
func TestBytesOfAnotherSizeAreGone(t *testing.T) {
	f := &remote{store: newStore()}
	r := Open(Options{Backend: f, Gen: 1})
	key := keyOf(r, "k")
	mustApply(t, r, put(key, 10, "value"))
	longer := kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1, Version: 10}, Value: []byte("value and more")}
	_ = f.Put(context.Background(), key, longer)
	if it, err := r.Get(context.Background(), key, nil, false); !errors.Is(err, ErrGone) {
		t.Errorf("got %q, %v", it.Value, err)
	}
}

// A set that was stamped before a delete and applied after it, while the
// deletion is still on its way to the backend: taken for older than what is
// settled, its bytes would never be sent, and it would be acknowledged.
func TestWhatIsStagedOnlyGetsNewer(t *testing.T) {
	f := &remote{store: newStore()}
	r := Open(Options{Backend: f})
	ctx, key := context.Background(), keyOf(r, "k")
	mustApply(t, r, put(key, 10, "old"))
	gone := removal(&entry{hash: key.Hash, version: 10})
	gone.Key.Text = key.Text
	gone.Stamp(30)
	if applied, _ := r.Apply(&gone); !applied {
		t.Fatal("not deleted")
	}
	for _, late := range []attune.Version{20, 30} {
		if applied, _ := r.Apply(put(key, late, "late")); applied {
			t.Fatalf("version %d was staged behind the deletion at 30", late)
		}
	}
	newer := put(key, 31, "newer")
	if applied, _ := r.Apply(newer); !applied {
		t.Fatal("a newer version was refused")
	}
	for _, c := range []*attune.Change{&gone, newer} {
		if err := r.Settle(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	mustGet(t, r, key, "newer")
	// Nothing is staged any more, so nothing can be mixed up.
	last := removal(&entry{hash: key.Hash, version: 31})
	last.Key.Text = key.Text
	last.Stamp(40)
	mustApply(t, r, &last)
	mustApply(t, r, put(key, 35, "late"))
	mustGet(t, r, key, "late")
}

func TestScan(t *testing.T) {
	r := Open(Options{Backend: newMemory()})
	want := map[string]int{}
	for i := range 100 {
		text := fmt.Sprint("key", i)
		mustApply(t, r, put(keyOf(r, text), attune.Version(i+1), text[:i%5]))
		if i >= 10 {
			want[text] = i % 5
		}
	}
	r.Flush(10)
	got := map[string]int{}
	if err := r.Scan(context.Background(), func(key []byte, it attune.Item) bool {
		got[string(key)] = it.Size
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if err := Open(Options{Backend: &remote{store: newStore()}}).Scan(context.Background(), nil); !errors.Is(err, ErrNoScan) {
		t.Error(err)
	}
}

// overwriting is a remote in which a key is written again each time before its bytes come.
type overwriting struct {
	*remote
	write func()
	left  int
}

func (o *overwriting) Get(ctx context.Context, key attune.Key, buf []byte) (kvadapter.Record, error) {
	rec, err := o.remote.Get(ctx, key, buf)
	if o.left > 0 {
		o.left--
		o.write()
	}
	return rec, err
}

// A key that others write all the time can be read nevertheless, but one for which there
// never is time is an error, and no loop for good.
func TestGetOfWhatIsOverwritten(t *testing.T) {
	ctx := context.Background()
	b := &overwriting{remote: &remote{store: newStore()}}
	r := Open(Options{Backend: b})
	key, v := keyOf(r, "k"), attune.Version(0)
	b.write = func() {
		v++
		mustApply(t, r, put(key, v, fmt.Sprint("value", v)))
	}
	b.write()
	b.left = 20
	mustGet(t, r, key, "value21")
	b.left = 1000
	if _, err := r.Get(ctx, key, nil, false); !errors.Is(err, ErrBusy) || b.left != 1000-maxReads {
		t.Errorf("%v, and it was written %d times", err, 1000-b.left)
	}
}
