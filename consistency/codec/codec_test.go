package codec_test

import (
	"errors"
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/codec"
)

// now and base are what a leader's clock says and issues at one moment.
const (
	now  = int64(1_790_000_000_000)
	base = attune.Version(now-1577836800000) << 22
)

// fill draws every field of v, also one that was added since: a codec that does
// not know it is found out.
func fill(t *rapid.T, v reflect.Value, name string) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), v.Type().Field(i).Name)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i), name)
		}
	case reflect.Slice:
		v.SetBytes(rapid.OneOf(rapid.Just([]byte(nil)), rapid.SliceOfN(rapid.Byte(), 0, 200)).Draw(t, name))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, name))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.OneOf(rapid.Just[int64](0), rapid.Int64(), rapid.Int64Range(now-1e6, now+1e9)).Draw(t, name))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(rapid.OneOf(rapid.SampledFrom([]uint64{0, 1, math.MaxUint64}), rapid.Uint64()).Draw(t, name) & (1<<v.Type().Bits() - 1))
	case reflect.Interface:
		if rapid.Bool().Draw(t, name) {
			v.Set(reflect.ValueOf(errors.New(rapid.String().Draw(t, name))))
		}
	default:
		t.Fatalf("field %s is a %s: teach this test and the codec", name, v.Kind())
	}
}

func drawn[T any](t *rapid.T, name string) T {
	var v T
	fill(t, reflect.ValueOf(&v).Elem(), name)
	return v
}

// change draws a stamped change as the log has it.
func change(t *rapid.T, v attune.Version) attune.Change {
	c := drawn[attune.Change](t, "change")
	c.Prior = rapid.SampledFrom([]attune.Version{0, attune.AnyVersion, c.Prior, v - 1, v}).Draw(t, "prior")
	if c.Key.Text != nil {
		c.Key.Hash = attune.KeyHash{} // readers compute it
	}
	it := &c.Item
	it.Fetched, it.Accessed = false, 0 // one replica's own
	it.Version = v
	switch {
	case it.Deleted:
		*it = attune.Item{Version: v, Deleted: true}
	case it.Value != nil:
		it.Stored, it.Size = v, len(it.Value)
	case it.Stored == v:
		it.Stored--
		fallthrough
	default:
		it.Size &= math.MaxInt32
	}
	it.CAS = rapid.SampledFrom([]uint64{it.CAS, uint64(it.Version), uint64(it.Stored)}).Draw(t, "cas")
	if it.Deleted {
		it.CAS = 0
	}
	return c
}

func op(t *rapid.T) attune.Op {
	op := drawn[attune.Op](t, "op")
	op.Verb %= attune.Flush + 1
	op.Mode &= attune.IfMatch<<1 - 1
	op.Key.Hash = attune.KeyHash{} // the receiver computes it
	if len(op.Key.Text) == 0 {
		op.Key.Text = nil
	}
	return op
}

func result(t *rapid.T) attune.Result {
	r := drawn[attune.Result](t, "result")
	r.Status %= attune.Failed + 1
	it := &r.Item
	it.Size &= math.MaxInt32
	if rapid.Bool().Draw(t, "plain") {
		it.Stored, it.CAS = it.Version, uint64(it.Version)
	}
	return r
}

// records reads a whole entry.
func records(data []byte) (codec.Header, []codec.Record, error) {
	rd, err := codec.Open(data)
	if err != nil {
		return codec.Header{}, nil, err
	}
	var all []codec.Record
	var rec codec.Record
	for rd.Next(&rec) {
		all = append(all, rec)
	}
	return rd.Header, all, rd.Err()
}

func build(b *codec.Builder, h codec.Header, recs []codec.Record) []byte {
	b.Begin(h)
	for i := range recs {
		if r := &recs[i]; r.Kind == codec.KindChange {
			b.Change(&r.Change)
		} else {
			b.Mark(r.Kind, r.Version, r.At)
		}
	}
	return b.Bytes()
}

func TestEntriesComeBack(t *testing.T) {
	var b codec.Builder // one for all, as a leader has it
	rapid.Check(t, func(t *rapid.T) {
		h := drawn[codec.Header](t, "header")
		recs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) codec.Record {
			r := codec.Record{Kind: codec.Kind(rapid.IntRange(0, 3).Draw(t, "kind"))}
			r.Version = h.Base + attune.Version(rapid.OneOf(rapid.Uint64Range(0, 300), rapid.Uint64()).Draw(t, "delta"))
			switch r.Kind {
			case codec.KindChange:
				r.Change = change(t, r.Version)
			case codec.KindFlushAt:
				r.At = rapid.Int64().Draw(t, "at")
			}
			return r
		}), 0, 5).Draw(t, "records")

		data := build(&b, h, recs)
		if b.Len() != len(data) || b.Count() != len(recs) {
			t.Fatalf("Len %d, Count %d of %d bytes, %d records", b.Len(), b.Count(), len(data), len(recs))
		}
		kept := string(data)
		gotHeader, got, err := records(data)
		if err != nil || gotHeader != h {
			t.Fatalf("header %+v, error %v, want %+v", gotHeader, err, h)
		}
		if len(got) != len(recs) || len(recs) > 0 && !reflect.DeepEqual(got, recs) {
			t.Fatalf("got  %+v\nwant %+v", got, recs)
		}
		b.Begin(codec.Header{Batch: 1, Time: now, Base: base})
		b.Mark(codec.KindFlush, base, 0)
		if string(data) != kept {
			t.Fatal("an entry changed when the Builder made the next")
		}
		for n := range len(data) { // cut off anywhere
			if _, some, err := records(data[:n]); err == nil && len(some) >= len(recs) {
				t.Fatalf("%d of %d bytes have all records", n, len(data))
			}
		}
	})
}

func TestOpsComeBack(t *testing.T) {
	var into []attune.Op
	rapid.Check(t, func(t *rapid.T) {
		ops := rapid.SliceOfN(rapid.Custom(op), 0, 5).Draw(t, "ops")
		data := codec.AppendOps([]byte("before"), ops)
		if string(data[:6]) != "before" {
			t.Fatal("what was in the buffer is gone")
		}
		data = data[6:]
		var err error
		into, err = codec.DecodeOps(data, into[:0])
		if err != nil {
			t.Fatal(err)
		}
		if len(into) != len(ops) || len(ops) > 0 && !reflect.DeepEqual(into, ops) {
			t.Fatalf("got  %+v\nwant %+v", into, ops)
		}
		for n := range len(data) {
			if _, err := codec.DecodeOps(data[:n], nil); !errors.Is(err, codec.ErrCorrupt) {
				t.Fatalf("%d of %d bytes: %v", n, len(data), err)
			}
		}
		if _, err := codec.DecodeOps(append(data, 0), nil); !errors.Is(err, codec.ErrCorrupt) {
			t.Fatalf("a byte too many: %v", err)
		}
	})
}

func TestDecodeOpsAppends(t *testing.T) {
	data := codec.AppendOps(nil, []attune.Op{{Verb: attune.Touch, Key: attune.Key{Text: []byte("b")}}})
	ops, err := codec.DecodeOps(data, []attune.Op{{Verb: attune.Delete}})
	if err != nil || len(ops) != 2 || ops[0].Verb != attune.Delete || ops[1].Verb != attune.Touch {
		t.Fatalf("%+v, %v", ops, err)
	}
}

func TestResultsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		res := rapid.SliceOfN(rapid.Custom(result), 0, 5).Draw(t, "results")
		data := codec.AppendResults([]byte("before"), res)[6:]
		got := make([]attune.Result, len(res))
		for i := range got {
			got[i] = attune.Result{Status: attune.Failed, Won: true, Item: attune.Item{Stale: true, Value: []byte("old")}}
		}
		if err := codec.DecodeResults(data, got); err != nil {
			t.Fatal(err)
		}
		for i := range res {
			if (got[i].Err == nil) != (res[i].Err == nil) || got[i].Err != nil && got[i].Err.Error() != res[i].Err.Error() {
				t.Fatalf("error %v, want %v", got[i].Err, res[i].Err)
			}
			got[i].Err, res[i].Err = nil, nil
			if !reflect.DeepEqual(got[i], res[i]) {
				t.Fatalf("got  %+v\nwant %+v", got[i], res[i])
			}
		}
		for n := range len(data) {
			if err := codec.DecodeResults(data[:n], got); !errors.Is(err, codec.ErrCorrupt) {
				t.Fatalf("%d of %d bytes: %v", n, len(data), err)
			}
		}
		if err := codec.DecodeResults(append(data, 0), got); !errors.Is(err, codec.ErrCorrupt) {
			t.Fatalf("a byte too many: %v", err)
		}
		if err := codec.DecodeResults(data, make([]attune.Result, len(res)+1)); !errors.Is(err, codec.ErrCorrupt) {
			t.Fatalf("a result too few: %v", err)
		}
	})
}
