package codec_test

import (
	"fmt"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/codec"
)

// batch is n sets of 100 bytes, on each step of their way.
func batch(n int) (changes []attune.Change, ops []attune.Op, res []attune.Result) {
	for i := range n {
		key := attune.Key{Text: fmt.Appendf(nil, "key:%06d", i)}
		value := make([]byte, 100)
		c := attune.Change{Key: key, Item: attune.Item{Value: value, Size: len(value)}, Prior: attune.AnyVersion}
		c.Stamp(base + attune.Version(i))
		r := attune.Result{Status: attune.Stored, Item: c.Item}
		r.Item.Value = nil
		changes, res = append(changes, c), append(res, r)
		ops = append(ops, attune.Op{Verb: attune.Set, Key: key, Value: value})
	}
	return changes, ops, res
}

func BenchmarkEntry(b *testing.B) {
	changes, _, _ := batch(64)
	var bd codec.Builder
	build := func() {
		bd.Begin(codec.Header{Batch: 1, Time: now, Base: base})
		for i := range changes {
			bd.Change(&changes[i])
		}
	}
	build()
	data := bd.Bytes()
	b.Run("build", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			build()
			bd.Bytes()
		}
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		var rec codec.Record
		for b.Loop() {
			rd, err := codec.Open(data)
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for rd.Next(&rec) {
				n++
			}
			if n != len(changes) {
				b.Fatal(n, rd.Err())
			}
		}
	})
}

func BenchmarkOps(b *testing.B) {
	_, ops, _ := batch(64)
	data := codec.AppendOps(nil, ops)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		buf := data[:0:len(data)]
		for b.Loop() {
			buf = codec.AppendOps(buf[:0], ops)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		into := make([]attune.Op, 0, len(ops))
		for b.Loop() {
			var err error
			if into, err = codec.DecodeOps(data, into[:0]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkResults(b *testing.B) {
	_, _, res := batch(64)
	data := codec.AppendResults(nil, res)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		buf := data[:0:len(data)]
		for b.Loop() {
			buf = codec.AppendResults(buf[:0], res)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		into := make([]attune.Result, len(res))
		for b.Loop() {
			if err := codec.DecodeResults(data, into); err != nil {
				b.Fatal(err)
			}
		}
	})
}
