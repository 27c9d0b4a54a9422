package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/attunekv/attune/kvadapter"
)

// putOddKeys puts keys that a store may have to keep in another form. It returns how
// large their values are.
func (s *suite) putOddKeys() map[string]int {
	sizes := map[string]int{}
	for c := range 256 {
		sizes[s.prefix+string([]byte{byte(c)})] = c
		sizes[string([]byte{byte(c)})+s.prefix] = c + 1000
		sizes[s.prefix+"%"+fmt.Sprintf("%02x", c)] = c + 300
	}
	sizes[s.prefix+string(bytes.Repeat([]byte{0xff}, 250-len(s.prefix)))] = 1
	sizes[s.prefix+string(bytes.Repeat([]byte{' '}, 250-len(s.prefix)))] = 2
	for text, size := range sizes {
		s.put(Key(text), record(size, uint64(size)))
	}
	return sizes
}

func (s *suite) scanKeys() {
	scanner, ok := s.b.(kvadapter.Scanner)
	if !ok {
		s.Skip("cannot list what it holds")
	}
	want := s.putOddKeys()
	err := scanner.Scan(s.Context(), func(key []byte, stamp kvadapter.Stamp, size int) bool {
		if n, ok := want[string(key)]; ok {
			if rec := record(n, uint64(n)); stamp != rec.Stamp || size != n {
				s.Errorf("%q is listed with stamp %v and %d bytes, want %v and %d", key, stamp, size, rec.Stamp, n)
			}
			delete(want, string(key))
		} else if bytes.Contains(key, []byte(s.prefix)) {
			s.Errorf("%q is listed, and was not put, or again", key)
		}
		return true
	})
	if err != nil {
		s.Fatal(err)
	}
	for text := range want {
		s.Errorf("%q is not listed", text)
	}
}

// listKeys is about Keys, which lists those that Scan does.
func (s *suite) listKeys() {
	lister, ok := s.b.(kvadapter.Lister)
	if !ok {
		s.Skip("lists keys with their records only")
	}
	want := s.putOddKeys()
	for i := range 1000 {
		key := s.key("%d", i)
		s.put(key, record(100, uint64(i)))
		want[string(key.Text)] = 100
	}
	for i := range 100 {
		key := s.key("%d", i*3)
		s.delete(key)
		delete(want, string(key.Text))
	}
	err := lister.Keys(s.Context(), func(key []byte) bool {
		if _, ok := want[string(key)]; ok {
			delete(want, string(key))
		} else if bytes.Contains(key, []byte(s.prefix)) {
			s.Errorf("%q is listed, and was not put, or again", key)
		}
		return true
	})
	if err != nil {
		s.Fatal(err)
	}
	for text := range want {
		s.Errorf("%q is not listed", text)
	}
	calls := 0
	err = lister.Keys(s.Context(), func([]byte) bool { calls++; return calls < 3 })
	if err != nil || calls != 3 {
		s.Errorf("stopped at the third: %d calls, %v", calls, err)
	}
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(s.Context())
	if err := lister.Keys(ctx, func([]byte) bool { cancel(reason); return true }); !errors.Is(err, reason) {
		s.Errorf("Keys: %v, want the cause", err)
	}
}

func (s *suite) scan() {
	scanner, ok := s.b.(kvadapter.Scanner)
	if !ok {
		s.Skip("cannot list what it holds")
	}
	sizes := []int{0, 1, 100, 3000, kvadapter.Large}
	want := map[string]kvadapter.Record{}
	for i := range 5000 {
		key, rec := s.key("%d", i), record(sizes[i%len(sizes)], uint64(i))
		rec.Stamp.Gen += uint32(i % 3)
		s.put(key, rec)
		want[string(key.Text)] = rec
	}
	for i := range 1000 {
		key := s.key("%d", i*3)
		s.delete(key)
		delete(want, string(key.Text))
	}
	seen := 0
	err := scanner.Scan(s.Context(), func(key []byte, stamp kvadapter.Stamp, size int) bool {
		rec, ok := want[string(key)]
		if !ok {
			if bytes.HasPrefix(key, []byte(s.prefix)) {
				s.Errorf("%q is listed again, or was deleted", key)
			}
			return true
		}
		if stamp != rec.Stamp || size != len(rec.Value) {
			s.Errorf("%q is listed with stamp %v and %d bytes, want %v and %d", key, stamp, size, rec.Stamp, len(rec.Value))
		}
		delete(want, string(key))
		// A caller may act on what it sees.
		if seen++; seen%100 == 0 {
			if err := s.b.Delete(s.Context(), Key(string(key))); err != nil {
				s.Error(err)
			}
		}
		return true
	})
	if err != nil {
		s.Fatal(err)
	}
	if len(want) != 0 {
		s.Errorf("%d records are not listed", len(want))
	}
	calls := 0
	err = scanner.Scan(s.Context(), func([]byte, kvadapter.Stamp, int) bool { calls++; return calls < 3 })
	if err != nil || calls != 3 {
		s.Errorf("stopped at the third: %d calls, %v", calls, err)
	}
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(s.Context())
	cancel(reason)
	if err := scanner.Scan(ctx, func([]byte, kvadapter.Stamp, int) bool { return true }); !errors.Is(err, reason) {
		s.Errorf("Scan: %v, want the cause", err)
	}
}

func (s *suite) count() {
	counter, ok := s.b.(kvadapter.Counter)
	if !ok {
		s.Skip("does not count")
	}
	items := func() int64 {
		n, err := counter.Items(s.Context())
		if err != nil {
			s.Fatal(err)
		}
		return n
	}
	before := items()
	for i := range 100 {
		s.put(s.key("%d", i), record(10, 1))
		s.put(s.key("%d", i), record(20, 2))
	}
	for i := range 10 {
		s.delete(s.key("%d", i))
	}
	if n := items() - before; n != 90 {
		s.Errorf("90 more items are there, %d are counted", n)
	}
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(s.Context())
	cancel(reason)
	if _, err := counter.Items(ctx); !errors.Is(err, reason) {
		s.Errorf("Items: %v, want the cause", err)
	}
}

func (s *suite) load() {
	loader, ok := s.b.(kvadapter.Loader)
	if !ok {
		s.Skip("needs the text")
	}
	if text, _, ok := loader.Load(s.key("never").Hash, nil); ok || len(text) != 0 {
		s.Errorf("loaded %q, which was never put", text)
	}
	for i, n := range []int{0, 1, 100, 2000, 3000, 20000, kvadapter.Large - 1, kvadapter.Large, 50000} {
		key, rec := s.key("%d", n), record(n, uint64(i))
		rec.Stamp.Gen += uint32(i % 2)
		s.put(key, rec)
		for _, room := range []int{0, 10, len(key.Text) + n, len(key.Text) + n + 1000} {
			buf := bytes.Repeat([]byte{'x'}, room)
			text, got, ok := loader.Load(key.Hash, buf)
			if !ok || !bytes.Equal(text, key.Text) {
				s.Fatalf("loaded %q, %v; want %q", text, ok, key.Text)
			}
			same(s.T, key, got, rec)
			if got.Value == nil {
				s.Errorf("%q: an empty value is loaded as none", key.Text)
			}
			if room >= len(key.Text)+n && (&text[0] != &buf[0] || 0 < n && n < kvadapter.Large && &got.Value[0] != &buf[len(text)]) {
				s.Errorf("%q is not in the buffer of %d", key.Text, room)
			}
			clear(text)
			if n < kvadapter.Large {
				clear(got.Value) // the caller's
			}
		}
		s.want(key, rec)
		s.delete(key)
		if text, _, ok := loader.Load(key.Hash, nil); ok || len(text) != 0 {
			s.Errorf("loaded %q, which was deleted", text)
		}
	}
}
