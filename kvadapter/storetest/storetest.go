// Package storetest holds every kvadapter.Backend to its interface. A backend's
// own test calls [Run] with a way to open it; what a backend promises beyond
// the interface, it tests itself.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"sync"
	"testing"

	"encoding/binary"
	"github.com/zeebo/xxh3"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// Options says what may be asked of a backend.
type Options struct {
	// MaxValue is the longest value the backend must take, in bytes. 0 means
	// 1 MiB, what a memcache client may store by default.
	MaxValue int
}

// Key is the key of a text, hashed as the suite hashes all its keys.
func Key(text string) attune.Key {
	h := xxh3.Hash128Seed([]byte(text), 1)
	return attune.Key{Text: []byte(text), Hash: attune.KeyHash{h.Hi, h.Lo}}
}

// Value is n bytes that no other seed makes.
func Value(n int, seed uint64) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], (seed+1)*0x9e3779b97f4a7c15+uint64(i)*0xd6e8feb86659fd93)
	}
	return b[:n:n]
}

// Run checks a backend. Each subtest opens it anew and closes it; open may hand
// out one that still holds what other tests put, as a server would.
func Run(t *testing.T, open func(t *testing.T) kvadapter.Backend, o Options) {
	if o.MaxValue == 0 {
		o.MaxValue = 1 << 20
	}
	for _, sub := range []struct {
		name string
		fn   func(*suite)
	}{
		{"what is put is got, of any size", (*suite).sizes},
		{"a put replaces a record of any other size", (*suite).replace},
		{"any bytes make a key", (*suite).keys},
		{"what was not put, or deleted, is not found", (*suite).notFound},
		{"stamps are kept and not compared", (*suite).stamps},
		{"small values are copied, large ones never change", (*suite).ownership},
		{"a small value lands in the buffer given", (*suite).buffers},
		{"a done context is refused with its cause", (*suite).contexts},
		{"concurrent puts leave one of them, whole", (*suite).concurrent},
		{"many are fetched as one by one", (*suite).multi},
		{"many are written as one by one", (*suite).writeMulti},
		{"a scan lists each record once", (*suite).scan},
		{"any key is listed by its text", (*suite).scanKeys},
		{"lists the keys alone", (*suite).listKeys},
		{"a counter counts what is put", (*suite).count},
		{"memory deletes by hash and counts what it holds", (*suite).memory},
		{"a loader finds text and record by the hash", (*suite).load},
		{"figures have proper names", (*suite).stats},
	} {
		t.Run(sub.name, func(t *testing.T) {
			s := &suite{T: t, b: open(t), o: o, prefix: fmt.Sprintf("%016x:", rand.Uint64())}
			t.Cleanup(func() {
				if err := s.b.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			sub.fn(s)
		})
	}
}

type suite struct {
	*testing.T
	b      kvadapter.Backend
	o      Options
	prefix string // keeps this run's keys from those of another on one server
}

func (s *suite) key(format string, args ...any) attune.Key {
	return Key(s.prefix + fmt.Sprintf(format, args...))
}

func (s *suite) put(key attune.Key, rec kvadapter.Record) {
	s.Helper()
	if err := s.b.Put(s.Context(), key, rec); err != nil {
		s.Fatalf("Put %q (%d bytes): %v", key.Text, len(rec.Value), err)
	}
}

func (s *suite) delete(key attune.Key) {
	s.Helper()
	if err := s.b.Delete(s.Context(), key); err != nil {
		s.Fatalf("Delete %q: %v", key.Text, err)
	}
}

func (s *suite) want(key attune.Key, want kvadapter.Record) {
	s.Helper()
	got, err := s.b.Get(s.Context(), key, nil)
	if err != nil {
		s.Fatalf("Get %q: %v", key.Text, err)
	}
	same(s.T, key, got, want)
}

func (s *suite) wantNone(key attune.Key) {
	s.Helper()
	if rec, err := s.b.Get(s.Context(), key, nil); !errors.Is(err, kvadapter.ErrNotFound) {
		s.Fatalf("Get %q: %d bytes, stamp %v, error %v; want ErrNotFound", key.Text, len(rec.Value), rec.Stamp, err)
	}
}

func same(t *testing.T, key attune.Key, got, want kvadapter.Record) {
	t.Helper()
	if got.Stamp != want.Stamp {
		t.Fatalf("%q: stamp %v, want %v", key.Text, got.Stamp, want.Stamp)
	}
	if !bytes.Equal(got.Value, want.Value) {
		t.Fatalf("%q: other bytes than were put: %d of them, want %d", key.Text, len(got.Value), len(want.Value))
	}
}

func record(n int, version uint64) kvadapter.Record {
	return kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 7, Version: attune.Version(version)}, Value: Value(n, version)}
}

// sizesUpTo is lengths where something may change: every short one, and those
// around powers of two, Large among them.
func sizesUpTo(limit int) []int {
	var sizes []int
	for n := range 320 {
		sizes = append(sizes, n)
	}
	for p := 512; p <= limit; p *= 2 {
		for _, d := range []int{-300, -64, -25, -9, -8, -1, 0, 1, 7, 8, 100} {
			if p+d <= limit {
				sizes = append(sizes, p+d)
			}
		}
		if p <= kvadapter.Large {
			sizes = append(sizes, p+p/3, p+p/2)
		}
	}
	return sizes
}

func (s *suite) sizes() {
	for _, n := range sizesUpTo(s.o.MaxValue) {
		s.put(s.key("%d", n), record(n, uint64(n)))
		s.want(s.key("%d", n), record(n, uint64(n)))
	}
	for _, n := range sizesUpTo(min(s.o.MaxValue, 2*kvadapter.Large)) {
		s.want(s.key("%d", n), record(n, uint64(n)))
	}
}

func (s *suite) replace() {
	sizes := []int{0, 1, 7, 8, 100, 101, 1000, 2000, 2500, 4096, 20000, kvadapter.Large - 1, kvadapter.Large, 50000, s.o.MaxValue}
	key := s.key("k")
	neighbour := s.key("neighbour")
	s.put(neighbour, record(500, 5))
	version := uint64(10)
	for _, from := range sizes {
		for _, to := range sizes {
			s.put(key, record(from, version))
			s.put(key, record(to, version+1))
			s.want(key, record(to, version+1))
			version += 2
		}
	}
	s.want(neighbour, record(500, 5))
}

func (s *suite) keys() {
	var keys []attune.Key
	for c := range 256 {
		keys = append(keys, Key(string([]byte{byte(c)})), Key(s.prefix+string([]byte{byte(c)})+"x"))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for n := 1; n <= 250; n++ {
		text := make([]byte, n)
		for i := range text {
			text[i] = byte(rng.Uint32())
		}
		if n > 2 { // shorter ones are among the above
			keys = append(keys, Key(string(text)))
		}
		keys = append(keys, Key(string(append(bytes.Repeat([]byte{'a'}, n-1), 'b'))))
	}
	seen := map[string]bool{}
	for i, key := range keys {
		if seen[string(key.Text)] {
			continue
		}
		seen[string(key.Text)] = true
		s.put(key, record(20, uint64(i)))
	}
	clear(seen)
	for i, key := range keys {
		if !seen[string(key.Text)] {
			s.want(key, record(20, uint64(i)))
		}
		seen[string(key.Text)] = true
	}
	for _, key := range keys {
		s.delete(key)
		s.wantNone(key)
	}
}

func (s *suite) notFound() {
	s.wantNone(s.key("never"))
	s.delete(s.key("never"))
	for _, n := range []int{0, 100, 3000, kvadapter.Large} {
		key := s.key("%d", n)
		s.put(key, record(n, 1))
		s.delete(key)
		s.wantNone(key)
		s.delete(key)
		s.put(key, record(n, 2))
		s.want(key, record(n, 2))
	}
}

func (s *suite) stamps() {
	// In no order: a backend that compared versions would keep the wrong one.
	stamps := []kvadapter.Stamp{
		{}, {Gen: math.MaxUint32, Version: math.MaxUint64}, {Version: 1}, {Gen: 1},
		{Gen: 2, Version: 1 << 63}, {Gen: 1, Version: 5}, {Gen: 1, Version: 4},
	}
	for _, n := range []int{0, 30, 5000, kvadapter.Large + 5} {
		for i, stamp := range stamps {
			rec := kvadapter.Record{Stamp: stamp, Value: Value(n, uint64(i))}
			s.put(s.key("one %d", n), rec)
			s.want(s.key("one %d", n), rec)
			s.put(s.key("%d %d", n, i), rec)
		}
		for i, stamp := range stamps {
			s.want(s.key("%d %d", n, i), kvadapter.Record{Stamp: stamp, Value: Value(n, uint64(i))})
		}
	}
}

func (s *suite) ownership() {
	for _, n := range []int{1, 100, 3000, kvadapter.Large - 1} {
		key := s.key("%d", n)
		rec := record(n, 3)
		s.put(key, rec)
		clear(rec.Value) // the caller's again
		s.want(key, record(n, 3))
		got, err := s.b.Get(s.Context(), key, nil)
		if err != nil {
			s.Fatal(err)
		}
		clear(got.Value) // likewise
		s.want(key, record(n, 3))
	}
	for _, n := range []int{kvadapter.Large, min(300000, s.o.MaxValue)} {
		key := s.key("%d", n)
		s.put(key, record(n, 4))
		got, err := s.b.Get(s.Context(), key, nil)
		if err != nil {
			s.Fatal(err)
		}
		s.put(key, record(n, 5))
		s.delete(key)
		s.put(s.key("other"), record(n, 6))
		same(s.T, key, got, record(n, 4))
	}
}

func (s *suite) buffers() {
	for _, n := range []int{1, 100, 3000, kvadapter.Large - 1} {
		key := s.key("%d", n)
		s.put(key, record(n, 1))
		for _, room := range []int{0, 1, n - 1, n, n + 1000} {
			buf := bytes.Repeat([]byte{'x'}, room) // what stood there before
			got, err := s.b.Get(s.Context(), key, buf)
			if err != nil {
				s.Fatal(err)
			}
			same(s.T, key, got, record(n, 1))
			if room >= n && &got.Value[0] != &buf[:1][0] {
				s.Errorf("a value of %d bytes is not in the buffer of %d", n, room)
			}
		}
	}
	key := s.key("empty")
	s.put(key, record(0, 1))
	if got, err := s.b.Get(s.Context(), key, nil); err != nil || got.Value == nil {
		s.Errorf("an empty value is got as %v, %v; want bytes, if none", got.Value, err)
	}
}

func (s *suite) contexts() {
	key := s.key("k")
	s.put(key, record(10, 1))
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(s.Context())
	cancel(reason)
	if _, err := s.b.Get(ctx, key, nil); !errors.Is(err, reason) {
		s.Errorf("Get: %v, want the cause", err)
	}
	if err := s.b.Put(ctx, key, record(10, 2)); !errors.Is(err, reason) {
		s.Errorf("Put: %v, want the cause", err)
	}
	if err := s.b.Delete(ctx, key); !errors.Is(err, reason) {
		s.Errorf("Delete: %v, want the cause", err)
	}
	s.want(key, record(10, 1))
}

// concurrent lets writers of all sizes meet on few keys. A value is made from
// its version, so a reader can tell one that was never put.
func (s *suite) concurrent() {
	const writers, rounds, keys = 6, 150, 4
	sizes := []int{0, 10, 90, 1000, 2500, 9000, kvadapter.Large, 40000}
	check := func(rec kvadapter.Record) error {
		version := uint64(rec.Stamp.Version)
		if n := sizes[version%uint64(len(sizes))]; !bytes.Equal(rec.Value, Value(n, version)) {
			return fmt.Errorf("version %d got with %d bytes that were not put with it", version, len(rec.Value))
		}
		return nil
	}
	var group sync.WaitGroup
	errs := make(chan error, 2*writers)
	for w := range writers {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(w)))
			var buf []byte
			for i := range rounds {
				key := s.key("%d", rng.IntN(keys))
				version := uint64(w*rounds+i)*8 + rng.Uint64N(8)
				if err := s.b.Put(s.Context(), key, record(sizes[version%8], version)); err != nil {
					errs <- err
					return
				}
				if rng.IntN(10) == 0 {
					if err := s.b.Delete(s.Context(), key); err != nil {
						errs <- err
						return
					}
				}
				rec, err := s.b.Get(s.Context(), s.key("%d", rng.IntN(keys)), buf)
				if errors.Is(err, kvadapter.ErrNotFound) {
					continue
				}
				if err == nil {
					err = check(rec)
				}
				if err != nil {
					errs <- err
					return
				}
				if len(rec.Value) < kvadapter.Large {
					buf = rec.Value
				}
			}
		})
	}
	group.Wait()
	close(errs)
	for err := range errs {
		s.Error(err)
	}
	for k := range keys {
		s.put(s.key("%d", k), record(sizes[0], 8000))
		s.want(s.key("%d", k), record(sizes[0], 8000))
	}
}

func (s *suite) writeMulti() {
	writer, ok := s.b.(kvadapter.BatchWriter)
	if !ok {
		s.Skip("writes one by one only")
	}
	writer.WriteMulti(s.Context(), nil, nil) // of none
	sizes := []int{0, 1, 100, 3000, kvadapter.Large, s.o.MaxValue / 4}
	var writes []kvadapter.Write
	for i := range 100 {
		w := kvadapter.Write{Key: s.key("%d", i), Record: record(sizes[i%len(sizes)], uint64(i))}
		if i%4 != 0 {
			s.put(w.Key, record(sizes[(i+1)%len(sizes)], 1000)) // to be replaced
		}
		if i%3 == 0 {
			w.Record, w.Delete = kvadapter.Record{}, true
		}
		writes = append(writes, w)
	}
	errs := make([]error, len(writes))
	for i := range errs {
		errs[i] = errors.New("left over")
	}
	writer.WriteMulti(s.Context(), writes, errs)
	for i, w := range writes {
		if errs[i] != nil {
			s.Errorf("%q: %v", w.Key.Text, errs[i])
		} else if w.Delete {
			s.wantNone(w.Key)
		} else {
			s.want(w.Key, w.Record)
		}
	}
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(s.Context())
	cancel(reason)
	for i := range writes {
		writes[i].Delete = !writes[i].Delete
	}
	writer.WriteMulti(ctx, writes, errs)
	for i, err := range errs {
		if !errors.Is(err, reason) {
			s.Fatalf("WriteMulti: %v, want the cause", err)
		}
		if !writes[i].Delete {
			s.wantNone(writes[i].Key)
		}
	}
}

func (s *suite) multi() {
	batcher, ok := s.b.(kvadapter.Batcher)
	if !ok {
		s.Skip("fetches one by one only")
	}
	batcher.GetMulti(s.Context(), nil, nil, nil) // of none
	sizes := []int{0, 1, 100, 3000, kvadapter.Large, s.o.MaxValue / 4}
	var keys []attune.Key
	for i := range 100 {
		keys = append(keys, s.key("%d", i))
		if i%3 != 0 {
			s.put(keys[i], record(sizes[i%len(sizes)], uint64(i)))
		}
	}
	keys = append(keys, keys[1], keys[3], keys[1]) // asked for again
	recs, errs := make([]kvadapter.Record, len(keys)), make([]error, len(keys))
	for i := range keys { // what is in them from before must not stay
		recs[i], errs[i] = record(5, 99), errors.New("left over")
	}
	batcher.GetMulti(s.Context(), keys, recs, errs)
	for i, key := range keys {
		want, err := s.b.Get(s.Context(), key, nil)
		switch {
		case errors.Is(err, kvadapter.ErrNotFound):
			if !errors.Is(errs[i], kvadapter.ErrNotFound) || recs[i].Value != nil {
				s.Errorf("%q was never put, and has %d bytes, %v", key.Text, len(recs[i].Value), errs[i])
			}
		case err != nil:
			s.Fatal(err)
		case errs[i] != nil:
			s.Errorf("%q: %v", key.Text, errs[i])
		default:
			same(s.T, key, recs[i], want)
		}
	}
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(s.Context())
	cancel(reason)
	batcher.GetMulti(ctx, keys, recs, errs)
	for i, err := range errs {
		if !errors.Is(err, reason) || recs[i].Value != nil {
			s.Fatalf("GetMulti: %q, %v, want the cause", recs[i].Value, err)
		}
	}
}

func (s *suite) memory() {
	memory, ok := s.b.(kvadapter.Memory)
	if !ok {
		if err := s.b.Delete(s.Context(), attune.Key{Hash: s.key("k").Hash}); err != nil {
			s.Errorf("Delete without a text: %v", err)
		}
		return
	}
	start := memory.Used()
	sizes := []int{0, 10, 100, 1000, 3000, 20000, kvadapter.Large, 50000}
	var payload int64
	for i := range 2000 {
		key, rec := s.key("%d", i), record(sizes[i%len(sizes)], uint64(i))
		payload += int64(len(key.Text) + len(rec.Value))
		s.put(key, rec)
	}
	if used := memory.Used() - start; used < payload || used > payload*5/4 {
		s.Errorf("%d bytes of keys and values are said to cost %d", payload, used)
	}
	full := memory.Used()
	for i := range 2000 { // once more: nothing is added
		s.put(s.key("%d", i), record(sizes[i%len(sizes)], uint64(i+1)))
	}
	if used := memory.Used(); used != full {
		s.Errorf("put again, records cost %d instead of %d", used, full)
	}
	for i := range 2000 {
		key := s.key("%d", i)
		s.delete(attune.Key{Hash: key.Hash})
		s.wantNone(key)
		if i+1 < 2000 {
			if _, err := s.b.Get(s.Context(), s.key("%d", i+1), nil); err != nil {
				s.Fatalf("deleting %q by its hash took the next: %v", key.Text, err)
			}
		}
	}
	if used := memory.Used(); used != start {
		s.Errorf("empty again, %d bytes are in use; they were %d", used, start)
	}
}

func (s *suite) stats() {
	statter, ok := s.b.(kvadapter.Statter)
	if !ok {
		s.Skip("has no figures")
	}
	s.put(s.key("k"), record(10, 1))
	proper := regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	seen := map[string]bool{}
	for _, stat := range statter.Stats() {
		if !proper.MatchString(stat.Name) || seen[stat.Name] {
			s.Errorf("figure %q: want lower case, digits, underscores, and once", stat.Name)
		}
		seen[stat.Name] = true
	}
	if len(seen) == 0 {
		s.Error("a Statter without figures")
	}
}
