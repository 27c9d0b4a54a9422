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
