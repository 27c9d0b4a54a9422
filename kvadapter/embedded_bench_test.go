package kvadapter_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// benchKeys is how many records the benchmarks work on: more than caches hold.
const benchKeys = 1_000_000

// benchKey writes the i-th key, of 11 bytes, into buf.
func benchKey(buf *[11]byte, i int) attune.Key {
	copy(buf[:], "key")
	for at := len(buf) - 1; at >= 3; at-- {
		buf[at] = byte('0' + i%10)
		i /= 10
	}
	h := xxh3.Hash128Seed(buf[:], 1)
	return attune.Key{Text: buf[:], Hash: attune.KeyHash{h.Hi, h.Lo}}
}

func filled(b *testing.B, size int) kvadapter.Memory {
	s, err := kvadapter.Open("embedded")
	if err != nil {
		b.Fatal(err)
	}
	var buf [11]byte
	value := bytes.Repeat([]byte{'v'}, size)
	for i := range benchKeys {
		rec := kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1, Version: attune.Version(i)}, Value: value}
		if err := s.Put(context.Background(), benchKey(&buf, i), rec); err != nil {
			b.Fatal(err)
		}
	}
	return s.(kvadapter.Memory)
}

// each runs op on random keys, by all processors.
func each(b *testing.B, op func(key attune.Key, buf []byte) []byte) {
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
		var text [11]byte
		buf := make([]byte, 0, 256)
		for pb.Next() {
			buf = op(benchKey(&text, rng.IntN(benchKeys)), buf)
		}
	})
}

func BenchmarkEmbeddedGet(b *testing.B) {
	s, ctx := filled(b, 100), context.Background()
	each(b, func(key attune.Key, buf []byte) []byte {
		rec, err := s.Get(ctx, key, buf)
		if err != nil {
			b.Error(err)
		}
		return rec.Value
	})
}

// BenchmarkEmbeddedPut overwrites records of the same size.
func BenchmarkEmbeddedPut(b *testing.B) {
	s, ctx := filled(b, 100), context.Background()
	value := bytes.Repeat([]byte{'w'}, 100)
	each(b, func(key attune.Key, buf []byte) []byte {
		if err := s.Put(ctx, key, kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1}, Value: value}); err != nil {
			b.Error(err)
		}
		return buf
	})
}

// BenchmarkEmbeddedPutAnySize overwrites records of other sizes.
func BenchmarkEmbeddedPutAnySize(b *testing.B) {
	s, ctx := filled(b, 100), context.Background()
	value := bytes.Repeat([]byte{'w'}, 200)
	each(b, func(key attune.Key, buf []byte) []byte {
		if err := s.Put(ctx, key, kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1}, Value: value[:rand.IntN(200)]}); err != nil {
			b.Error(err)
		}
		return buf
	})
}

// BenchmarkEmbeddedReplace deletes a record and puts it again, as a full cache
// does for every item stored.
func BenchmarkEmbeddedReplace(b *testing.B) {
	s, ctx := filled(b, 100), context.Background()
	value := bytes.Repeat([]byte{'w'}, 100)
	each(b, func(key attune.Key, buf []byte) []byte {
		if err := s.Delete(ctx, attune.Key{Hash: key.Hash}); err != nil {
			b.Error(err)
		}
		if err := s.Put(ctx, key, kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1}, Value: value}); err != nil {
			b.Error(err)
		}
		return buf
	})
}

// resident is the process's memory in bytes, all that can be given back being so.
func resident(b *testing.B) int64 {
	debug.FreeOSMemory()
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip("no /proc: ", err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(statm), &size, &pages); err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// BenchmarkEmbeddedMemory measures what records cost: keys of 11 bytes, values
// of 100 and of 1000.
func BenchmarkEmbeddedMemory(b *testing.B) {
	for _, size := range []int{100, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			for b.Loop() {
				before := resident(b)
				s := filled(b, size)
				b.ReportMetric(float64(resident(b)-before)/benchKeys, "B-resident/record")
				b.ReportMetric(float64(s.Used())/benchKeys, "B-used/record")
				runtime.KeepAlive(s)
			}
		})
	}
}
