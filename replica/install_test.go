package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"runtime"
	"testing"

	"testing/iotest"

	"github.com/attunekv/attune"
)

// small is a history of a few dozen entries, of all kinds.
func small() *history {
	h := newHistory(1, 50)
	h.steps(nil, 300)
	h.r.Flush(h.last - 100)
	return h
}

// Any byte that changes, and any that is missing, is an error, after which
// nothing has changed.
func TestInstallTakesAllOrNothing(t *testing.T) {
	stream := snapshot(t, small().r)
	other := newHistory(2, 80)
	other.steps(t, 300)
	r := other.r
	want, floor := dump(r), r.Floor()
	check := func(what string, i int, err error) {
		t.Helper()
		if err == nil {
			t.Fatalf("%s %d is no error", what, i)
		}
		if r.Floor() != floor {
			t.Fatalf("%s %d changed the floor", what, i)
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range stream {
		bad := bytes.Clone(stream)
		bad[i] ^= byte(1 + rng.IntN(255))
		check("a change of byte", i, r.Install(bytes.NewReader(bad)))
		err := r.Install(iotest.OneByteReader(bytes.NewReader(stream[:i])))
		check("an end before byte", i, err)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	}
	broken := errors.New("connection reset")
	if err := r.Install(io.MultiReader(bytes.NewReader(stream[:len(stream)-1]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Error(err)
	}
	if !maps.Equal(dump(r), want) {
		t.Error("the index has changed")
	}
	audit(t, r)
	mustInstall(t, r, stream)
}

// index is a stream of entries as they come, whose sums are right.
func index(floor uint64, entries ...entry) []byte {
	b := le.AppendUint64([]byte{indexFormat}, floor)
	for _, e := range entries {
		var enc [entryLen]byte
		e.encode(&enc)
		le.PutUint64(enc[40:], e.meta)
		b = append(le.AppendUint32(b, 1), enc[:]...)
	}
	b = le.AppendUint64(le.AppendUint32(b, 0), uint64(len(entries)))
	return summed(append(b, 0, 0, 0, 0))
}

// summed makes the last four bytes the checksum of the rest.
func summed(b []byte) []byte {
	end := len(b) - 4
	return le.AppendUint32(b[:end:end], crc32.Checksum(b[:end], castagnoli))
}

func TestInstallRefusesWhatNoIndexHolds(t *testing.T) {
	good := entry{hash: attune.KeyHash{1, 2}, version: 9, stored: 8, meta: maxKey << keyShift, size: maxValue}
	with := func(change func(e *entry)) []byte {
		e := good
		change(&e)
		return index(5, e)
	}
	future, block, count := index(5, good), index(5, good), index(5, good)
	future[0]++
	le.PutUint32(block[9:], 1<<31)
	le.PutUint64(count[len(count)-12:], 2)
	for name, stream := range map[string][]byte{
		"no version":        with(func(e *entry) { e.version = 0 }),
		"state":             with(func(e *entry) { e.meta |= 1 << 3 }),
		"fetched":           with(func(e *entry) { e.meta |= metaFetched }),
		"key length":        with(func(e *entry) { e.meta = (maxKey + 1) << keyShift }),
		"size":              with(func(e *entry) { e.size++ }),
		"twice the same":    index(5, good, entry{hash: attune.KeyHash{1, 3}, version: 1}, good),
		"a future format":   summed(future),
		"an endless block":  summed(block),
		"another count":     summed(count),
		"entries past last": summed(append(index(5)[:9], count[9:]...)),
	} {
		r := Open(Options{Backend: newMemory()})
		if err := r.Install(bytes.NewReader(stream)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if r.Len() != 0 || r.Floor() != 0 {
			t.Errorf("%s: %d entries, floor %d", name, r.Len(), r.Floor())
		}
	}
	r := Open(Options{Backend: newMemory()})
	good.use(maxTime) // a clock far ahead
	mustInstall(t, r, index(5, good))
	if s := r.segment(good.hash); s.at(0).usedAt() > r.now() {
		t.Error("an item was used in the future")
	}
}

func FuzzInstall(f *testing.F) {
	e := entry{hash: attune.KeyHash{1, 2}, version: 9, stored: 8, meta: 10<<keyShift | 77<<timeShift, size: 10}
	f.Add(index(0))
	f.Add(index(8, e))
	f.Add(index(8, e, entry{hash: attune.KeyHash{1 << 63, 2}, version: 1}))
	f.Add(snapshot(f, small().r))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if len(stream) < 4 {
			return
		}
		r := Open(Options{Backend: newMemory()})
		mustApply(t, r, put(keyOf(r, "k"), 1, "v"))
		if err := r.Install(bytes.NewReader(summed(stream))); err != nil {
			if r.Len() != 1 || r.Floor() != 0 {
				t.Fatal("a failed Install left something:", err)
			}
			return
		}
		audit(t, r)
		again := Open(Options{Backend: newMemory()})
		mustInstall(t, again, snapshot(t, r))
		if !maps.Equal(dump(again), dump(r)) || again.Digest() != r.Digest() {
			t.Fatal("written out and installed again it is another index")
		}
	})
}

// Readers see one index or the next, never some of each, and no value that is
// not the version's.
func TestInstallIsOneMoment(t *testing.T) {
	const keys, generations = 1000, 40
	ctx := context.Background()
	var streams [][]byte
	src := Open(Options{Backend: newMemory()})
	for g := range generations {
		for i := range keys {
			v := attune.Version(g*keys + i + 1)
			mustApply(t, src, put(keyOf(src, fmt.Sprint("key", i)), v, fmt.Sprint("value", v)))
		}
		streams = append(streams, snapshot(t, src))
	}
	r := Open(Options{Backend: newMemory()})
	mustInstall(t, r, streams[0])
	stop, stopped := make(chan struct{}), make(chan struct{})
	for w := range 2 {
		go func() {
			defer func() { stopped <- struct{}{} }()
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			newest := 0
			for {
				select {
				case <-stop:
					return
				default:
				}
				key := keyOf(r, fmt.Sprint("key", rng.IntN(keys)))
				it, err := r.Get(ctx, key, nil, true)
				if errors.Is(err, ErrGone) {
					it.Value = fmt.Append(nil, "value", it.Stored)
					err = r.Restore(ctx, key, it)
				}
				if err != nil || string(it.Value) != fmt.Sprint("value", it.Stored) {
					t.Errorf("%q, %v at %d", it.Value, err, it.Stored)
					return
				}
				if g := int(it.Version-1) / keys; g < newest {
					t.Errorf("%s is of index %d, after one was of %d", key.Text, g, newest)
					return
				} else {
					newest = g
				}
			}
		}()
	}
	for _, stream := range streams[1:] {
		if err := r.Install(bytes.NewReader(stream)); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-stopped
	<-stopped
	audit(t, r)
}

// Bytes in memory of a key the new index does not know would stay for ever.
func TestInstallForgetsBytesOfNoKey(t *testing.T) {
	mem := newMemory()
	r := Open(Options{Backend: mem, Gen: 1})
	peer := Open(Options{Backend: newMemory(), Gen: 1})
	for i := range 1000 {
		c := put(keyOf(r, fmt.Sprint("key", i)), attune.Version(i+1), "value")
		mustApply(t, r, c)
		if i%4 == 0 {
			mustApply(t, peer, c)
		}
	}
	mustApply(t, peer, put(keyOf(peer, "key4"), 5000, "newer"))
	mustInstall(t, r, snapshot(t, peer))
	if n := len(mem.recs); n != 250 || r.Len() != 250 {
		t.Errorf("%d records for %d items, want 250", n, r.Len())
	}
	mustGet(t, r, keyOf(r, "key0"), "value")
	if _, err := r.Get(context.Background(), keyOf(r, "key4"), nil, false); !errors.Is(err, ErrGone) {
		t.Error("older bytes:", err)
	}
	mustInstall(t, r, snapshot(t, Open(Options{Backend: newMemory()})))
	if mem.Used() != 0 || r.Len() != 0 {
		t.Errorf("an empty index, and %d bytes in use for %d items", mem.Used(), r.Len())
	}
}

// An index comes while a Put is under way. Whatever it says of the key, the Put
// and its Settle end, what was staged is served if it is still the item, and
// nothing stays on the stage.
func TestInstallWhileBytesAreOnTheirWay(t *testing.T) {
	ctx := context.Background()
	for name, change := range map[string]func(peer *Replica, key attune.Key){
		"same":    func(*Replica, attune.Key) {},
		"touched": func(p *Replica, key attune.Key) { touch(t, p, key, 15) },
		"deleted": func(p *Replica, key attune.Key) {
			gone := attune.Change{Key: key, Item: attune.Item{Deleted: true}, Prior: attune.AnyVersion}
			gone.Stamp(20)
			mustApply(t, p, &gone)
		},
		"newer": func(p *Replica, key attune.Key) { mustApply(t, p, put(key, 20, "newer")) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newSlowly()
			r := Open(Options{Backend: b})
			key := keyOf(r, "k")
			peer := Open(Options{Backend: newMemory()})
			c := put(key, 10, "staged")
			mustApply(t, peer, c)
			change(peer, key)
			_, _ = r.Apply(c)
			settled := make(chan error)
			go func() { settled <- r.Settle(ctx, c) }()
			<-b.begin
			mustInstall(t, r, snapshot(t, peer))
			restored := make(chan error, 1)
			switch name {
			case "same", "touched":
				mustGet(t, r, key, "staged")
			case "deleted":
				mustMiss(t, r, key)
			case "newer":
				it, err := r.Get(ctx, key, nil, false)
				if !errors.Is(err, ErrGone) || it.Stored != 20 {
					t.Fatal(it, err)
				}
				it.Value = []byte("newer")
				go func() { restored <- r.Restore(ctx, key, it) }()
				eventually(func() bool { // staged behind what is under way
					got, err := r.Get(ctx, key, nil, false)
					return err == nil && string(got.Value) == "newer"
				})
			}
			b.end <- nil
			if name == "newer" {
				if rec := <-b.begin; rec.Stamp.Version != 20 {
					t.Fatal("sent", rec.Stamp)
				}
				b.end <- nil
				if err := <-restored; err != nil {
					t.Error(err)
				}
				mustGet(t, r, key, "newer")
			}
			if err := <-settled; err != nil {
				t.Error(err)
			}
			if n := r.Stats().Staged; n != 0 {
				t.Errorf("%d keys are still staged", n)
			}
			if name == "deleted" { // and the log goes on
				go func() { <-b.begin; b.end <- nil }()
				mustApply(t, r, put(key, 30, "again"))
				mustGet(t, r, key, "again")
			}
		})
	}
}

// An index that is older than what is staged breaks a promise; still nobody
// waits for ever.
func TestSettleEndsAfterAnOlderIndex(t *testing.T) {
	ctx := context.Background()
	b := newSlowly()
	r, peer := Open(Options{Backend: b}), Open(Options{Backend: newMemory()})
	key := keyOf(r, "k")
	mustApply(t, peer, put(key, 10, "older"))
	c := put(key, 20, "staged")
	_, _ = r.Apply(c)
	mustInstall(t, r, snapshot(t, peer))
	restored := make(chan error)
	go func() { restored <- r.Restore(ctx, key, attune.Item{Stored: 10, Value: []byte("older")}) }()
	if rec := <-b.begin; rec.Stamp.Version != 20 {
		t.Error("what is staged went back to", rec.Stamp)
	}
	b.end <- nil
	if err := <-restored; err != nil {
		t.Error(err)
	}
	if err := r.Settle(ctx, c); err != nil {
		t.Error(err)
	}
	if n := r.Stats().Staged; n != 0 {
		t.Errorf("%d keys are still staged", n)
	}
}

func touch(t *testing.T, r *Replica, key attune.Key, v attune.Version) {
	t.Helper()
	it := r.Peek(key, false)
	c := attune.Change{Key: key, Item: it, Prior: it.Version}
	c.Stamp(v)
	mustApply(t, r, &c)
}

// eventually waits for a condition; the test's own timeout is the limit.
func eventually(ok func() bool) {
	for !ok() {
		runtime.Gosched()
	}
}

func BenchmarkInstall(b *testing.B) {
	const n = 1_000_000
	src, _ := benchmarkKeys(b, n)
	stream := snapshot(b, src)
	b.ResetTimer()
	for b.Loop() {
		b.StopTimer()
		r := Open(Options{Backend: nothing{newMemory()}})
		b.StartTimer()
		if err := r.Install(bytes.NewReader(stream)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/entry")
}

// What a Cut that is open costs the changes: at worst each copies a page.
func BenchmarkApplyUnderCut(b *testing.B) {
	r, keys := benchmarkKeys(b, 1_000_000)
	v := attune.Version(len(keys))
	c := attune.Change{Prior: attune.AnyVersion}
	i := 0
	var cut *Cut
	for n := 0; b.Loop(); n++ {
		if n%8000 == 0 { // as many as there are pages
			if cut != nil {
				cut.Close()
			}
			cut, _ = r.Cut()
		}
		v++
		c.Key, c.Item = keys[i], attune.Item{}
		c.Stamp(v)
		_, _ = r.Apply(&c)
		if i += 7919; i >= len(keys) {
			i -= len(keys)
		}
	}
	cut.Close()
}

// Dead entries go along with the index, freed bytes are of one replica only.
func TestInstallOfTombstones(t *testing.T) {
	r := gossiping(newMemory())
	for i := range 3000 {
		text := fmt.Sprint(i)
		c := *put(keyOf(r, text), at(10, i), "value")
		c.Item.Expires = since2020(int64(20 + i%2))
		mustMerge(t, r, c)
		switch i % 8 {
		case 0:
			mustMerge(t, r, deletion(r, text, at(11, i)))
		case 1:
			mustMerge(t, r, lost(r, text, at(10, i)))
		}
	}
	before := snapshot(t, r)
	cut, err := r.Cut()
	if err != nil {
		t.Fatal(err)
	}
	r.Free(since2020(20), 1<<20)
	var whileOpen bytes.Buffer
	if _, err := cut.WriteTo(&whileOpen); err != nil {
		t.Fatal(err)
	}
	cut.Close()
	if !bytes.Equal(before, whileOpen.Bytes()) || !bytes.Equal(before, snapshot(t, r)) {
		t.Error("what was freed is in the cut")
	}
	mem := newMemory()
	peer := gossiping(mem)
	mustMerge(t, peer, *put(keyOf(peer, "0"), at(10, 0), "value"))
	mustInstall(t, peer, before)
	if peer.Digest() != r.Digest() || peer.Len() != 3000*3/4 || len(mem.recs) != 0 {
		t.Errorf("%d items, %d records", peer.Len(), len(mem.recs))
	}
	mustMiss(t, peer, keyOf(peer, "0"))

	plain := Open(Options{Backend: newMemory()})
	if err := plain.Install(bytes.NewReader(before)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a replica without tombstones took them: %v", err)
	}
	grave := entry{hash: attune.KeyHash{1, 2}}
	grave.bury(MarkOf(9, true))
	mustInstall(t, peer, index(5, grave))
	for name, change := range map[string]func(e *entry){
		"version":    func(e *entry) { e.version = 0 },
		"stored":     func(e *entry) { e.stored = 9 },
		"cas":        func(e *entry) { e.cas = 1 },
		"flags":      func(e *entry) { e.flags = 2 },
		"size":       func(e *entry) { e.size = 1 },
		"expires":    func(e *entry) { e.meta |= 5 << timeShift },
		"key length": func(e *entry) { e.meta |= 5 << keyShift },
		"fetched":    func(e *entry) { e.meta |= metaFetched },
		"stale":      func(e *entry) { e.meta |= metaStale },
	} {
		e := grave
		change(&e)
		if err := peer.Install(bytes.NewReader(index(5, e))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s of a dead entry: %v", name, err)
		}
	}
}

func FuzzInstallOfTombstones(f *testing.F) {
	r := gossiping(newMemory())
	mustMerge(f, r, whole(r, "live", at(10, 0), at(9, 0)))
	mustMerge(f, r, deletion(r, "deleted", at(10, 1)))
	mustMerge(f, r, lost(r, "evicted", at(10, 2)))
	f.Add(snapshot(f, r))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if len(stream) < 4 {
			return
		}
		r := gossiping(newMemory())
		if err := r.Install(bytes.NewReader(summed(stream))); err != nil {
			if r.Stats().Tombstones != 0 || r.Len() != 0 {
				t.Fatal("a failed Install left something:", err)
			}
			return
		}
		audit(t, r)
		again := gossiping(newMemory())
		mustInstall(t, again, snapshot(t, r))
		if !maps.Equal(dump(again), dump(r)) || again.Digest() != r.Digest() {
			t.Fatal("written out and installed again it is another index")
		}
	})
}
