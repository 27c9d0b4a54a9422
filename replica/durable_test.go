package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
)

// files is a store that outlives the process, as far as the replica can tell. It
// refuses some Puts.
type files struct {
	*store
	refuse atomic.Int64
}

var errRefused = fmt.Errorf("%w, for now", kvadapter.ErrFull)

func (f *files) Put(ctx context.Context, key attune.Key, rec kvadapter.Record) error {
	if f.refuse.Add(-1) >= 0 {
		return errRefused
	}
	if len(key.Text) == 0 {
		return errors.New("a record without its text")
	}
	return f.store.Put(ctx, key, rec)
}

func (f *files) Load(h attune.KeyHash, buf []byte) ([]byte, kvadapter.Record, bool) {
	return (&memory{store: f.store}).Load(h, buf)
}

func (f *files) Scan(ctx context.Context, fn func(key []byte, stamp kvadapter.Stamp, size int) bool) error {
	return (&memory{store: f.store}).Scan(ctx, fn)
}

func (f *files) Sync(context.Context) error { return nil }

func durableReplica() (*Replica, *files) {
	f := &files{store: newStore()}
	return Open(Options{Backend: f, Gen: 1, Seed: 1}), f
}

// change is a set of a key, or a removal if value is "".
func changeOf(r *Replica, text string, v attune.Version, value string) attune.Change {
	c := attune.Change{Key: attune.Key{Text: []byte(text), Hash: r.Hash([]byte(text))}, Prior: attune.AnyVersion}
	if value == "" {
		c.Item.Deleted = true
	} else {
		c.Item.Value, c.Item.Size = []byte(value), len(value)
	}
	c.Stamp(v)
	return c
}

func applyTo(t *testing.T, r *Replica, c attune.Change) *attune.Change {
	t.Helper()
	if applied, err := r.Apply(&c); !applied || err != nil {
		t.Fatal(applied, err)
	}
	return &c
}

func TestPersistGivesUpNothing(t *testing.T) {
	r, f := durableReplica()
	c := applyTo(t, r, changeOf(r, "k", 1, "value"))
	f.refuse.Store(2)
	for range 2 {
		if err := r.Persist(t.Context(), c.Key.Hash, c.Item.Version); !errors.Is(err, errRefused) {
			t.Error(err)
		}
		if it, err := r.Get(t.Context(), c.Key, nil, false); err != nil || string(it.Value) != "value" {
			t.Errorf("while it is not taken: %q, %v", it.Value, err)
		}
	}
	persist(t, r, c)
	if _, rec, ok := f.Load(c.Key.Hash, nil); !ok || string(rec.Value) != "value" {
		t.Errorf("after two failures the store has %q", rec.Value)
	}
	if n := r.Stats().Staged; n != 0 {
		t.Errorf("%d keys are on the stage", n)
	}
	// Not even when it must end: the bytes stay to be read.
	c = applyTo(t, r, changeOf(r, "other", 2, "more"))
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	if err := r.Persist(ctx, c.Key.Hash, c.Item.Version); !errors.Is(err, enough) {
		t.Error(err)
	}
	if it, err := r.Get(t.Context(), c.Key, nil, false); err != nil || string(it.Value) != "more" {
		t.Errorf("given up: %q, %v", it.Value, err)
	}
}

// persist brings the bytes of an applied change to the store.
func persist(t *testing.T, r *Replica, c *attune.Change) {
	t.Helper()
	if err := r.Persist(t.Context(), c.Key.Hash, c.Item.Version); err != nil {
		t.Error(err)
	}
}

// TestImportWaitsForRoomInADurableStore: what is given up there, nobody may have.
func TestImportWaitsForRoomInADurableStore(t *testing.T) {
	a := Open(Options{Backend: embedded(t), Gen: 1, Seed: 1})
	for i := range 10 {
		applyTo(t, a, changeOf(a, fmt.Sprint("k", i), attune.Version(i+1), "value"))
	}
	r, store := durableReplica()
	mustInstall(t, r, snapshot(t, a))
	stream := export(t, a)
	store.refuse.Store(3)
	if n, err := r.Import(t.Context(), bytes.NewReader(stream)); n != 10 || err != nil || store.refuse.Load() >= 0 {
		t.Errorf("%d of 10 are there: %v", n, err)
	}
	for i := range 10 {
		mustGet(t, r, keyOf(r, fmt.Sprint("k", i)), "value")
	}
	// No longer than somebody wants it.
	r, store = durableReplica()
	mustInstall(t, r, snapshot(t, a))
	store.refuse.Store(1 << 30)
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(2*roomRetry, func() { cancel(enough) })
	if _, err := r.Import(ctx, bytes.NewReader(stream)); !errors.Is(err, enough) {
		t.Error(err)
	}
}

// As over any other store, what replaces a hot value is hot.
func TestPersistedValueStaysHot(t *testing.T) {
	r := Open(Options{Backend: &files{store: newStore()}, Gen: 1, Seed: 1, HotCache: 1 << 20})
	write := func(v attune.Version, value string) {
		persist(t, r, applyTo(t, r, changeOf(r, "k", v, value)))
	}
	key := keyOf(r, "k")
	for v, value := range []string{"one", "two", "three"} {
		write(attune.Version(v+1), value)
		if v == 0 { // it takes two reads to be hot
			for range 2 {
				if _, err := r.Get(t.Context(), key, nil, true); err != nil {
					t.Fatal(err)
				}
			}
		}
		if rec, ok := r.hot.Load().get(key.Hash); !ok || string(rec.Value) != value {
			t.Errorf("hot is %q (%v), want %q", rec.Value, ok, value)
		}
	}
	write(4, "")
	if rec, ok := r.hot.Load().get(key.Hash); ok {
		t.Errorf("deleted, and %q takes its room", rec.Value)
	}
}

func TestExportHasWhatIsOnTheStage(t *testing.T) {
	r, _ := durableReplica()
	for i := range 10 {
		c := applyTo(t, r, changeOf(r, fmt.Sprint("k", i), attune.Version(i+1), "value"))
		if i%2 == 0 {
			persist(t, r, c)
		}
	}
	var index, data bytes.Buffer
	cut, err := r.Cut()
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	if _, err := cut.WriteTo(&index); err != nil {
		t.Fatal(err)
	}
	if err := r.Export(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	to, f := durableReplica()
	if err := to.Install(&index); err != nil {
		t.Fatal(err)
	}
	if n, err := to.Import(t.Context(), &data); n != 10 || err != nil || len(f.recs) != 10 {
		t.Errorf("%d of 10 came over, %d are in the store: %v", n, len(f.recs), err)
	}
}

// TestReclaimDeletesWhatTheIndexDoesNotName, and nothing else: what a life before
// left, another generation, and what is evicted.
func TestReclaimDeletesWhatTheIndexDoesNotName(t *testing.T) {
	r, f := durableReplica()
	put := func(text string, gen uint32, v attune.Version) {
		key := attune.Key{Text: []byte(text), Hash: r.Hash([]byte(text))}
		if err := f.Put(t.Context(), key, kvadapter.Record{Stamp: kvadapter.Stamp{Gen: gen, Version: v}, Value: []byte("left")}); err != nil {
			t.Fatal(err)
		}
	}
	put("unknown", 1, 1)
	put("foreign", 2, 1)
	put("older", 1, 1)
	applyTo(t, r, changeOf(r, "older", 5, "newer")) // on the stage
	kept := applyTo(t, r, changeOf(r, "kept", 6, "value"))
	persist(t, r, kept)
	gone := applyTo(t, r, changeOf(r, "evicted", 7, "value"))
	persist(t, r, gone)

	ctx, cancel := context.WithCancel(t.Context())
	var asked atomic.Int64
	done := make(chan error)
	go func() { done <- r.Reclaim(ctx, func(context.Context) error { asked.Add(1); return nil }) }()
	has := func(text string) bool {
		_, _, ok := f.Load(r.Hash([]byte(text)), nil)
		return ok
	}
	attunetest.Eventually(t, "what was left is deleted", func() bool { return !has("unknown") && !has("foreign") })
	evict := attune.Change{Key: attune.Key{Hash: gone.Key.Hash}, Item: attune.Item{Deleted: true}, Prior: 7}
	evict.Stamp(8)
	applyTo(t, r, evict)
	attunetest.Eventually(t, "what is evicted is deleted", func() bool { return !has("evicted") })
	if !has("kept") || !has("older") {
		t.Error("what is named, or about to be replaced, is deleted")
	}
	if asked.Load() < 2 {
		t.Error("deleted before the index was settled")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// What is evicted while a Save is open is in it, though its bytes are reclaimed before
// they were taken.
func TestSaveOfWhatIsReclaimed(t *testing.T) {
	r, f := durableReplica()
	for v, text := range []string{"evicted", "kept"} {
		c := applyTo(t, r, changeOf(r, text, attune.Version(v+1), "value"))
		persist(t, r, c)
	}
	save, err := r.Save(epoch, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer save.Close()
	evict := attune.Change{Key: attune.Key{Hash: r.Hash([]byte("evicted"))}, Item: attune.Item{Deleted: true}, Prior: 1}
	evict.Stamp(9)
	applyTo(t, r, evict)
	if err := r.SweepStore(t.Context(), func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := f.Load(evict.Key.Hash, nil); ok {
		t.Fatal("its bytes were not reclaimed")
	}
	got := make(map[string]string)
	if err := save.Each(t.Context(), func(key []byte, it attune.Item) error {
		got[string(key)] = string(it.Value)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got["evicted"] != "value" || got["kept"] != "value" || save.Missing() != 0 {
		t.Errorf("saved %q, %d missing", got, save.Missing())
	}
}
