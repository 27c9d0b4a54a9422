package kvadapter_test

import (
	"context"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/kvadapter/storetest"
)

func openEmbedded(t *testing.T) kvadapter.Backend {
	t.Helper()
	b, err := kvadapter.Open("embedded")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEmbeddedConforms(t *testing.T) {
	storetest.Run(t, openEmbedded, storetest.Options{})
}

// TestEmbeddedDoesNotAllocate: what a cache does all day, with room in the
// buffer, leaves nothing to the garbage collector.
func TestEmbeddedDoesNotAllocate(t *testing.T) {
	ctx, s := context.Background(), openEmbedded(t)
	key, other := storetest.Key("k"), storetest.Key("other") // keeps the page in use
	rec := kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1, Version: 1}, Value: storetest.Value(100, 1)}
	long := kvadapter.Record{Stamp: rec.Stamp, Value: storetest.Value(5000, 1)}
	buf := make([]byte, 0, 8192)
	for name, fn := range map[string]func() error{
		"get": func() error { _, err := s.Get(ctx, key, buf); return err },
		"put": func() error { return s.Put(ctx, key, rec) },
		"replace": func() error {
			if err := s.Put(ctx, key, long); err != nil {
				return err
			}
			return s.Put(ctx, key, rec)
		},
		"delete by hash and put": func() error {
			if err := s.Delete(ctx, attune.Key{Hash: key.Hash}); err != nil {
				return err
			}
			return s.Put(ctx, key, rec)
		},
	} {
		for _, first := range []error{s.Put(ctx, other, rec), s.Put(ctx, other, long), s.Put(ctx, key, rec)} {
			if first != nil {
				t.Fatal(first)
			}
		}
		if n := testing.AllocsPerRun(100, func() {
			if err := fn(); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
