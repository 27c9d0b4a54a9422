package replica

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

func embedded(t testing.TB) kvadapter.Backend {
	t.Helper()
	b, err := kvadapter.Open("embedded")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func export(t testing.TB, r *Replica) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := r.Export(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A replica joins while another is written to: index, log and bytes arrive as
// they can, and in the end every item is readable.
func TestReplicaJoinsWhileWritesGoOn(t *testing.T) {
	for name, backend := range map[string]kvadapter.Backend{
		"embedded": embedded(t),
		"remote":   &remote{store: newStore()},
	} {
		t.Run(name, func(t *testing.T) { join(t, backend) })
	}
}

func join(t *testing.T, backend kvadapter.Backend) {
	const keys = 3000
	ctx := context.Background()
	a := Open(Options{Backend: embedded(t), Gen: 5, Seed: 6})
	b := Open(Options{Backend: backend, Gen: 5, Seed: 6})
	rng := rand.New(rand.NewPCG(1, 2))
	var last attune.Version
	change := func() *attune.Change {
		i := rng.IntN(keys)
		key := keyOf(a, fmt.Sprint("key", i))
		last++
		n := rng.IntN(300)
		if i%100 == 0 {
			n += kvadapter.Large
		}
		c := put(key, last, string(bytes.Repeat([]byte{byte(last)}, n)))
		switch it := a.Peek(key, false); {
		case rng.IntN(6) == 0:
			c = &attune.Change{Key: key, Item: attune.Item{Deleted: true}, Prior: attune.AnyVersion}
			c.Stamp(last)
		case it.Version != 0 && rng.IntN(3) == 0:
			c = &attune.Change{Key: key, Item: it, Prior: it.Version}
			c.Stamp(last)
		}
		return c
	}
	for range 3 * keys {
		mustApply(t, a, change())
	}
	cut, err := a.Cut()
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()

	log := make(chan *attune.Change, 1<<16)
	exported, applied := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(log)
		for n := 0; n < 1000 || !ended(exported); n++ {
			c := change()
			mustApply(t, a, c)
			log <- c
		}
	}()
	indexes, index := io.Pipe()
	go func() {
		_, err := cut.WriteTo(index)
		_ = index.CloseWithError(err)
	}()
	if err := b.Install(indexes); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(applied)
		for c := range log {
			mustApply(t, b, c)
		}
	}()
	rd, w := io.Pipe()
	go func() {
		_ = w.CloseWithError(a.Export(ctx, w))
		close(exported)
	}()
	n, err := b.Import(ctx, rd)
	if err != nil {
		t.Fatal(err)
	}
	<-exported
	<-applied
	if n == 0 { // how many depends on how fast the log is
		t.Errorf("%d records were kept", n)
	}
	if a.Digest() != b.Digest() {
		t.Error("the indexes differ")
	}
	for i := range keys {
		key := keyOf(a, fmt.Sprint("key", i))
		want, err := a.Get(ctx, key, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		got, err := b.Get(ctx, key, nil, false)
		if err != nil || got.Version != want.Version || !bytes.Equal(got.Value, want.Value) {
			t.Fatalf("%s: version %d of %d bytes, %v; want %d of %d", key.Text, got.Version, len(got.Value), err, want.Version, len(want.Value))
		}
	}
	if n := b.Stats(); n.Staged != 0 {
		t.Errorf("%d keys are still staged", n.Staged)
	}
	audit(t, b)
}

func ended(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Import keeps what the index names and the backend lacks, and nothing else.
func TestImportKeepsWhatIsMissing(t *testing.T) {
	ctx := context.Background()
	a := Open(Options{Backend: newMemory(), Gen: 1})
	for i, v := range []string{"here", "missing", "stale", "newer", "gone", "resized", "", string(make([]byte, kvadapter.Large))} {
		mustApply(t, a, put(keyOf(a, fmt.Sprint(i)), attune.Version(i+1), v))
	}
	for _, kind := range []string{"memory", "remote"} {
		t.Run(kind, func(t *testing.T) {
			st := newStore()
			var backend kvadapter.Backend = &remote{store: st}
			if kind == "memory" {
				backend = &memory{store: st}
			}
			b := Open(Options{Backend: backend, Gen: 1})
			mustInstall(t, b, snapshot(t, a))
			record := func(i int, v attune.Version, value string) {
				_ = st.Put(ctx, keyOf(b, fmt.Sprint(i)), kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1, Version: v}, Value: []byte(value)})
			}
			record(0, 1, "here")
			record(2, 1, "stale")
			record(5, 6, "resized, behind its back")
			mustApply(t, b, put(keyOf(b, "3"), 100, "newest"))
			gone := attune.Change{Key: keyOf(b, "4"), Item: attune.Item{Deleted: true}, Prior: attune.AnyVersion}
			gone.Stamp(101)
			mustApply(t, b, &gone)

			rd := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(export(t, a)), bytes.NewReader([]byte("what follows"))), recordBuffer)
			n, err := b.Import(ctx, rd)
			if err != nil || n != 5 {
				t.Errorf("Import = %d, %v, want 5", n, err)
			}
			if rest, _ := io.ReadAll(rd); string(rest) != "what follows" {
				t.Errorf("left of the reader: %q", rest)
			}
			for i, v := range []string{"here", "missing", "stale", "newest", "", "resized", "", string(make([]byte, kvadapter.Large))} {
				if key := keyOf(b, fmt.Sprint(i)); i == 4 {
					mustMiss(t, b, key)
				} else {
					mustGet(t, b, key, v)
				}
			}
			if n, err := b.Import(ctx, bytes.NewReader(export(t, a))); n != 0 || err != nil {
				t.Errorf("again: %d, %v", n, err)
			}
			if b.Stats().Gone != 0 {
				t.Error("counted as reads that found nothing")
			}
		})
	}
	if err := Open(Options{Backend: &remote{store: newStore()}}).Export(ctx, io.Discard); !errors.Is(err, ErrNoScan) {
		t.Error(err)
	}
	full := errors.New("disk full")
	if err := a.Export(ctx, failing{full}); !errors.Is(err, full) {
		t.Error(err)
	}
}

// A Large value is the backend's once it is handed over: the buffer the next
// record is read into must be another.
func TestImportHandsLargeValuesOver(t *testing.T) {
	a := Open(Options{Backend: newMemory()})
	sizes := []int{kvadapter.Large - 1, kvadapter.Large, kvadapter.Large + 1, 3 * kvadapter.Large}
	for i := range 20 {
		key := keyOf(a, fmt.Sprint(i))
		mustApply(t, a, put(key, attune.Version(i+1), string(bytes.Repeat([]byte{byte(i)}, sizes[i%4]))))
	}
	b := Open(Options{Backend: embedded(t)})
	mustInstall(t, b, snapshot(t, a))
	if n, err := b.Import(context.Background(), bytes.NewReader(export(t, a))); n != 20 || err != nil {
		t.Fatal(n, err)
	}
	for i := range 20 {
		mustGet(t, b, keyOf(b, fmt.Sprint(i)), string(bytes.Repeat([]byte{byte(i)}, sizes[i%4])))
	}
}

// Any byte that changes, and any that is missing, is an error, and nothing wrong
// was kept.
func TestImportOfCorruptStreams(t *testing.T) {
	ctx := context.Background()
	a := Open(Options{Backend: newMemory()})
	for i := range 20 {
		mustApply(t, a, put(keyOf(a, fmt.Sprint("key", i)), attune.Version(i+1), fmt.Sprint("value", i)))
	}
	index, stream := snapshot(t, a), export(t, a)
	rng := rand.New(rand.NewPCG(1, 1))
	check := func(what string, i int, bad []byte) {
		t.Helper()
		b := Open(Options{Backend: newMemory()})
		mustInstall(t, b, index)
		n, err := b.Import(ctx, bytes.NewReader(bad))
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%s %d: %v", what, i, err)
		}
		found := int64(0)
		for i := range 20 {
			it, err := b.Get(ctx, keyOf(b, fmt.Sprint("key", i)), nil, false)
			if errors.Is(err, ErrGone) {
				continue
			}
			if found++; err != nil || string(it.Value) != fmt.Sprint("value", i) {
				t.Fatalf("%s %d: key %d is %q, %v", what, i, i, it.Value, err)
			}
		}
		if found != n {
			t.Fatalf("%s %d: %d records were kept, of %d", what, i, found, n)
		}
	}
	for i := range stream {
		bad := bytes.Clone(stream)
		bad[i] ^= byte(1 + rng.IntN(255))
		check("a change of byte", i, bad)
		check("an end before byte", i, stream[:i])
	}
}

func TestImportFails(t *testing.T) {
	a := Open(Options{Backend: newMemory()})
	for i := range 20 {
		mustApply(t, a, put(keyOf(a, fmt.Sprint("key", i)), attune.Version(i+1), fmt.Sprint("value", i)))
	}
	stream := export(t, a)
	mem := newMemory()
	b := Open(Options{Backend: mem})
	mustInstall(t, b, snapshot(t, a))
	mem.refuse = kvadapter.ErrTooLarge
	if n, err := b.Import(context.Background(), bytes.NewReader(stream)); n != 0 || err != nil {
		t.Errorf("one record too large: %d, %v; the others are still of use", n, err)
	}
	mem.refuse = kvadapter.ErrFull
	if n, err := b.Import(context.Background(), bytes.NewReader(stream)); n != 0 || !errors.Is(err, kvadapter.ErrFull) {
		t.Errorf("full: %d, %v", n, err)
	}
	// A store outside this process that has no room for one may have some for another.
	some := &remote{store: newStore()}
	some.refuse = kvadapter.ErrFull
	c := Open(Options{Backend: some})
	mustInstall(t, c, snapshot(t, a))
	if n, err := c.Import(context.Background(), bytes.NewReader(stream)); n != 0 || err != nil {
		t.Errorf("full, elsewhere: %d, %v", n, err)
	}
	late := errors.New("late")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(late)
	if _, err := b.Import(ctx, bytes.NewReader(stream)); !errors.Is(err, late) {
		t.Error(err)
	}
	down := &remote{store: newStore(), failOnce: 1}
	b = Open(Options{Backend: down})
	mustInstall(t, b, snapshot(t, a))
	if _, err := b.Import(context.Background(), bytes.NewReader(stream)); !errors.Is(err, kvadapter.ErrUnavailable) {
		t.Error(err)
	}
}

func TestRestore(t *testing.T) {
	ctx := context.Background()
	for name, backend := range backends() {
		t.Run(name, func(t *testing.T) {
			r := Open(Options{Backend: backend})
			key := keyOf(r, "k")
			item := func(stored attune.Version, value string) attune.Item {
				return attune.Item{Stored: stored, Value: []byte(value)}
			}
			forget := func() {
				if m, ok := backend.(*memory); ok {
					m.forget(key.Hash)
				} else {
					backend.(*remote).forget(key.Hash)
				}
			}
			mustApply(t, r, put(key, 10, "value"))
			touch(t, r, key, 11)
			forget()
			for _, it := range []attune.Item{item(9, "older"), item(11, "value"), item(10, "of another size")} {
				if err := r.Restore(ctx, key, it); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Get(ctx, key, nil, false); !errors.Is(err, ErrGone) {
					t.Fatalf("%q of version %d was kept: %v", it.Value, it.Stored, err)
				}
			}
			if err := r.Restore(ctx, key, item(10, "value")); err != nil {
				t.Fatal(err)
			}
			mustGet(t, r, key, "value")
			mustApply(t, r, put(key, 12, "newer"))
			if err := r.Restore(ctx, key, item(10, "value")); err != nil {
				t.Fatal(err)
			}
			mustGet(t, r, key, "newer")
			r.Flush(12)
			forget()
			if err := r.Restore(ctx, key, item(12, "newer")); err != nil {
				t.Fatal(err)
			}
			mustMiss(t, r, key)
			if n := r.Stats().Staged; n != 0 {
				t.Errorf("%d keys are still staged", n)
			}
		})
	}
}

// A change that comes while restored bytes are on their way goes after them.
func TestRestoreNeverOvertakes(t *testing.T) {
	ctx := context.Background()
	b := newSlowly()
	r := Open(Options{Backend: b})
	key := keyOf(r, "k")
	go func() { <-b.begin; b.end <- nil }()
	mustApply(t, r, put(key, 10, "lost"))
	b.forget(key.Hash)
	restored := make(chan error)
	go func() { restored <- r.Restore(ctx, key, attune.Item{Stored: 10, Value: []byte("lost")}) }()
	<-b.begin
	mustGet(t, r, key, "lost")
	c := put(key, 20, "new")
	if applied, _ := r.Apply(c); !applied {
		t.Fatal("not applied")
	}
	settled := make(chan error)
	go func() { settled <- r.Settle(ctx, c) }()
	b.end <- nil
	if err := <-restored; err != nil {
		t.Error(err)
	}
	if rec := <-b.begin; rec.Stamp.Version != 20 {
		t.Fatal("sent", rec.Stamp)
	}
	b.end <- nil
	if err := <-settled; err != nil {
		t.Error(err)
	}
	mustGet(t, r, key, "new")
	if rec := b.recs[key.Hash]; rec.Stamp.Version != 20 {
		t.Errorf("the backend has version %d", rec.Stamp.Version)
	}
}

func TestExportDoesNotAllocatePerRecord(t *testing.T) {
	measure := func(n int) (out, in float64) {
		a := Open(Options{Backend: embedded(t)})
		for i := range n {
			mustApply(t, a, put(keyOf(a, fmt.Sprint("key", i)), attune.Version(i+1), "a value of some length"))
		}
		var stream bytes.Buffer
		stream.Grow(n * 100)
		out = testing.AllocsPerRun(3, func() {
			stream.Reset()
			_ = a.Export(context.Background(), &stream)
		})
		in = testing.AllocsPerRun(3, func() {
			_, _ = a.Import(context.Background(), bytes.NewReader(stream.Bytes()))
		})
		return out, in
	}
	out, in := measure(5000)
	if out > 100 || in > 100 {
		t.Errorf("of 5000 records Export allocates %v times, Import %v", out, in)
	}
}

// cutRecords divides a stream: what comes before the records, each of them without its
// checksum, and what comes behind, without it.
func cutRecords(b []byte) (head []byte, recs [][]byte, end []byte) {
	head, b = b[:min(1, len(b))], b[min(1, len(b)):]
	for len(b) >= 13 && b[0] != 0 {
		n := 13 + int(b[0]) + int(le.Uint32(b[9:]))
		if n+4 > len(b) {
			break
		}
		recs, b = append(recs, b[:n]), b[n+4:]
	}
	if len(b) >= 13 && b[0] == 0 {
		b = b[:9]
	}
	return head, recs, b
}

// joinRecords is the reverse, with all sums and the count right.
func joinRecords(head []byte, recs [][]byte, end []byte) []byte {
	var out bytes.Buffer
	w := sumWriter{w: &out}
	own := len(head) == 1 && head[0] == recordFormatOwn
	add := func(b []byte) {
		_ = w.write(b)
		sum := w.crc
		_ = w.sum()
		if own {
			w.crc = crc32.Update(sum, castagnoli, le.AppendUint32(nil, sum))
		}
	}
	_ = w.write(head)
	for _, rec := range recs {
		add(rec)
	}
	if len(end) == 9 {
		end = le.AppendUint64([]byte{0}, uint64(len(recs)))
		add(end)
	} else {
		out.Write(end)
	}
	return out.Bytes()
}

// records is a stream as it would be if all its sums were right: of damaged
// records that is what gets furthest.
func records(b []byte) []byte { return joinRecords(cutRecords(b)) }

// raw is the records of a stream with the sums that they have.
func raw(b []byte) (recs [][]byte) {
	at := 1
	_, all, _ := cutRecords(b)
	for _, rec := range all {
		recs = append(recs, b[at:at+len(rec)+4])
		at += len(rec) + 4
	}
	return recs
}

// TestImportNoticesRecordsThatAreNotInTheirPlace, at the record after them, though
// their own bytes and their number are right.
func TestImportNoticesRecordsThatAreNotInTheirPlace(t *testing.T) {
	a := Open(Options{Backend: newMemory()})
	for i := range 20 {
		mustApply(t, a, put(keyOf(a, fmt.Sprint("key", i)), attune.Version(i+1), fmt.Sprint("value", i)))
	}
	index, stream := snapshot(t, a), export(t, a)
	if whole := records(stream); !bytes.Equal(whole, stream) {
		t.Fatal("the test cannot read what Export writes")
	}
	for what, change := range map[string]func(recs [][]byte) [][]byte{
		"one is lost and another there twice": func(recs [][]byte) [][]byte { recs[5] = recs[6]; return recs },
		"two are exchanged":                   func(recs [][]byte) [][]byte { recs[5], recs[9] = recs[9], recs[5]; return recs },
		"the last two are exchanged":          func(recs [][]byte) [][]byte { recs[18], recs[19] = recs[19], recs[18]; return recs },
		"one is lost":                         func(recs [][]byte) [][]byte { return slices.Delete(recs, 5, 6) },
		"the last is lost":                    func(recs [][]byte) [][]byte { return recs[:19] },
	} {
		recs := change(raw(stream))
		bad := slices.Concat(stream[:1], slices.Concat(recs...))
		bad = le.AppendUint64(append(bad, 0), uint64(len(recs)))
		bad = append(bad, stream[len(stream)-4:]...)
		b := Open(Options{Backend: newMemory()})
		mustInstall(t, b, index)
		if _, err := b.Import(context.Background(), bytes.NewReader(bad)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestImportReadsFormat1, which states on disk may have.
func TestImportReadsFormat1(t *testing.T) {
	a := Open(Options{Backend: newMemory()})
	for i := range 20 {
		mustApply(t, a, put(keyOf(a, fmt.Sprint("key", i)), attune.Version(i+1), fmt.Sprint("value", i)))
	}
	_, recs, end := cutRecords(export(t, a))
	old := joinRecords([]byte{recordFormatOwn}, recs, end)
	b := Open(Options{Backend: newMemory()})
	mustInstall(t, b, snapshot(t, a))
	if n, err := b.Import(context.Background(), bytes.NewReader(old)); n != 20 || err != nil {
		t.Errorf("%d of 20 records: %v", n, err)
	}
}

func FuzzImport(f *testing.F) {
	a := Open(Options{Backend: newMemory()})
	f.Add(export(f, a))
	for i, v := range []string{"", "value", "long value"} {
		mustApply(f, a, put(keyOf(a, fmt.Sprint("key", i)), attune.Version(i+1), v))
		f.Add(export(f, a))
	}
	index := snapshot(f, a)
	f.Fuzz(func(t *testing.T, stream []byte) {
		ctx := context.Background()
		b := Open(Options{Backend: newMemory()})
		mustInstall(t, b, index)
		n, err := b.Import(ctx, bytes.NewReader(records(stream)))
		found := int64(0)
		for i := range 3 {
			it, e := b.Get(ctx, keyOf(b, fmt.Sprint("key", i)), nil, false)
			if e == nil && len(it.Value) == it.Size {
				found++
			} else if !errors.Is(e, ErrGone) {
				t.Fatal(it, e)
			}
		}
		if found != n {
			t.Fatalf("%d records are there, kept were %d (%v)", found, n, err)
		}
	})
}

func BenchmarkExport(b *testing.B) {
	const n = 300_000
	src := Open(Options{Backend: embedded(b)})
	for i := range n {
		mustApply(b, src, put(keyOf(src, fmt.Sprintf("key:%07d", i)), attune.Version(i+1), string(make([]byte, 100))))
	}
	b.ResetTimer()
	for b.Loop() {
		if err := src.Export(context.Background(), io.Discard); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/record")
}

func BenchmarkImport(b *testing.B) {
	const n = 300_000
	src := Open(Options{Backend: embedded(b)})
	for i := range n {
		mustApply(b, src, put(keyOf(src, fmt.Sprintf("key:%07d", i)), attune.Version(i+1), string(make([]byte, 100))))
	}
	index, stream := snapshot(b, src), export(b, src)
	b.ResetTimer()
	for b.Loop() {
		b.StopTimer()
		r := Open(Options{Backend: embedded(b)})
		mustInstall(b, r, index)
		b.StartTimer()
		if kept, err := r.Import(context.Background(), bytes.NewReader(stream)); kept != n || err != nil {
			b.Fatal(kept, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/record")
}

// crowd is a remote that counts how many Puts are under way at a time.
type crowd struct {
	*remote
	now, most atomic.Int64
}

func (c *crowd) Put(ctx context.Context, key attune.Key, rec kvadapter.Record) error {
	if n := c.now.Add(1); n > c.most.Load() {
		c.most.Store(n)
	}
	defer c.now.Add(-1)
	time.Sleep(time.Millisecond)
	return c.remote.Put(ctx, key, rec)
}

// A store outside this process is asked for many records in a round trip, and brought
// many at a time.
func TestTransfersTakeFewRoundTrips(t *testing.T) {
	ctx := context.Background()
	const n, big = 1000, 300 << 10
	from := &remote{store: newStore()}
	a := Open(Options{Backend: from, Gen: 1})
	for i := range n + 8 {
		value := fmt.Sprint("value", i)
		if i >= n {
			value = string(bytes.Repeat([]byte{byte(i)}, big)) // four are a batch
		}
		mustApply(t, a, put(keyOf(a, fmt.Sprint("key", i)), attune.Version(i+1), value))
	}
	var texts [][]byte
	for i := range n + 8 {
		texts = append(texts, fmt.Append(nil, "key", i))
	}
	var stream bytes.Buffer
	if err := a.ExportKeys(ctx, &stream, texts); err != nil {
		t.Fatal(err)
	}
	if from.gets.Load() > 0 || from.multis.Load() > n/recordBatch+4 {
		t.Errorf("export took %d gets and %d of many", from.gets.Load(), from.multis.Load())
	}
	to := &crowd{remote: &remote{store: newStore()}}
	b := Open(Options{Backend: to, Gen: 1})
	mustInstall(t, b, snapshot(t, a))
	if kept, err := b.Import(ctx, &stream); kept != n+8 || err != nil {
		t.Fatal(kept, err)
	}
	if to.gets.Load() > 0 || to.multis.Load() > n/recordBatch+4 || to.most.Load() < 16 {
		t.Errorf("import took %d gets and %d of many, and %d puts at a time", to.gets.Load(), to.multis.Load(), to.most.Load())
	}
	for i := range n {
		mustGet(t, b, keyOf(b, fmt.Sprint("key", i)), fmt.Sprint("value", i))
	}
	for i := n; i < n+8; i++ {
		mustGet(t, b, keyOf(b, fmt.Sprint("key", i)), string(bytes.Repeat([]byte{byte(i)}, big)))
	}
}
