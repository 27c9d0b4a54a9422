package kvadapter_test

import (
	"strings"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
)

// BenchmarkMemcached compares the adapter with bare gomemcache on one server: the
// price of stamps, key checks and figures.
func BenchmarkMemcached(b *testing.B) {
	_, addr := startMemcached(b)
	store := openMemcached(b, addr, "")
	plain := memcache.New(addr)
	plain.MaxIdleConns = 64
	defer plain.Close()
	key, rec := mkey("user:12345"), mrec(1, strings.Repeat("x", 100))
	mustPut(b, store, "user:12345", rec)

	for _, bench := range []struct {
		name string
		run  func(buf []byte) error
	}{
		{"get/attune", func(buf []byte) error { _, err := store.Get(b.Context(), key, buf); return err }},
		{"get/gomemcache", func([]byte) error { _, err := plain.Get("user:12345"); return err }},
		{"put/attune", func([]byte) error { return store.Put(b.Context(), key, rec) }},
		{"put/gomemcache", func([]byte) error {
			return plain.Set(&memcache.Item{Key: "user:12345", Value: rec.Value})
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, 0, 256)
			for b.Loop() {
				if err := bench.run(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(bench.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, 0, 256)
				for pb.Next() {
					if err := bench.run(buf); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
