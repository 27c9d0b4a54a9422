package kvadapter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/zeebo/xxh3"
	"go.uber.org/zap"

	"github.com/attunekv/attune"
)

// TestPebbleLosesNoSyncedRecordToPowerLoss has the power fail at any moment, of a
// disk that keeps nothing, or anything, of what was not synced.
func TestPebbleLosesNoSyncedRecordToPowerLoss(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			disk := vfs.NewCrashableMem()
			synced := map[string]int{} // the newest version that must be there
			newest := map[string]int{} // the newest that may be
			for life := range 4 {
				s, err := openPebble(pebbleOptions{dir: "/d/bytes", cache: 1 << 20, fs: disk}, zap.NewNop())
				if err != nil {
					t.Fatal(err)
				}
				if n := s.Damages(); n != 0 {
					t.Fatalf("life %d: the loss of power is taken for %d damages", life, n)
				}
				for name, version := range synced {
					if got := versionIn(t, s, name); got < version || got > newest[name] {
						t.Fatalf("life %d: %s has version %d, want %d to %d", life, name, got, version, newest[name])
					}
				}
				put := map[string]bool{} // since the crash: what was lost in it cannot be synced
				for i := range 400 {
					name := fmt.Sprint("k", rng.IntN(50))
					newest[name]++
					put[name] = true
					value := bytes.Repeat([]byte{byte(newest[name])}, rng.IntN(3000))
					rec := Record{Stamp{1, attune.Version(newest[name])}, value}
					if err := s.Put(t.Context(), testPebbleKey(name), rec); err != nil {
						t.Fatal(err)
					}
					if i%100 == 99 && rng.IntN(2) == 0 {
						if err := s.Sync(t.Context()); err != nil {
							t.Fatal(err)
						}
						for name := range put {
							synced[name] = newest[name]
						}
					}
				}
				crashed := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				disk = crashed
			}
		})
	}
}

func testPebbleKey(name string) attune.Key {
	h := xxh3.HashString128(name)
	return attune.Key{Text: []byte(name), Hash: attune.KeyHash{h.Hi, h.Lo}}
}

func versionIn(t *testing.T, s *pebbleStore, name string) int {
	t.Helper()
	rec, err := s.Get(t.Context(), testPebbleKey(name), nil)
	if errors.Is(err, ErrNotFound) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range rec.Value {
		if b != byte(rec.Stamp.Version) {
			t.Fatalf("%s: version %d with the bytes of another", name, rec.Stamp.Version)
		}
	}
	return int(rec.Stamp.Version)
}

func TestPebbleSyncEndsWithItsContext(t *testing.T) {
	s, err := openPebble(pebbleOptions{dir: "/d/bytes", cache: 1 << 20, fs: vfs.NewMem()}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	// Either it was quicker, or it gives the cause.
	if err := s.Sync(ctx); err != nil && !errors.Is(err, reason) {
		t.Errorf("Sync: %v, want the cause", err)
	}
}

func FuzzPebbleRecord(f *testing.F) {
	b := make([]byte, pebbleHead+3+5)
	encodePebble(b, Record{Stamp{1, 2}, []byte("value")}, []byte("key"))
	f.Add(b)
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{pebbleFormat}, 20))
	f.Fuzz(func(t *testing.T, raw []byte) {
		stamp, text, value, ok := decodePebble(raw)
		if !ok {
			return
		}
		again := make([]byte, pebbleHead+len(text)+len(value))
		encodePebble(again, Record{stamp, value}, text)
		if !bytes.Equal(again, raw) {
			t.Errorf("%x is read, and written as %x", raw, again)
		}
	})
}
