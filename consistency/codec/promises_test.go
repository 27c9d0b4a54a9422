package codec_test

import (
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/codec"
)

// set is a stamped blind set, as an entry of its own has it.
func set(key string, value int) *attune.Change {
	return stamped(attune.Change{
		Key:  attune.Key{Text: []byte(key)},
		Item: attune.Item{Value: make([]byte, value), Size: value}, Prior: attune.AnyVersion,
	}, base)
}

func stamped(c attune.Change, v attune.Version) *attune.Change {
	c.Stamp(v)
	return &c
}

// touched is an item that was written a minute ago and touched now.
func touched(it attune.Item) attune.Item {
	it.Stored = base - 60_000<<22
	it.CAS = uint64(it.Stored)
	it.Size = 100
	return it
}

// TestSizes keeps small what is sent most. The sizes are exact: a format that
// grows or shrinks is another format.
func TestSizes(t *testing.T) {
	const key = "0123456789"
	text := attune.Key{Text: []byte(key)}
	prior := base - 60_000<<22
	for _, c := range []struct {
		name   string
		change *attune.Change
		bytes  int
	}{
		{"set, 10 byte key, 100 byte value", set(key, 100), 124},
		{"and it expires in an hour, with flags", func() *attune.Change {
			c := set(key, 100)
			c.Item.Expires, c.Item.Flags = now+3_600_000, 2
			return c
		}(), 130},
		{"cas", func() *attune.Change { c := set(key, 100); c.Prior = prior; return c }(), 130},
		{"delete", stamped(attune.Change{Key: text, Item: attune.Item{Deleted: true}, Prior: prior}, base), 29},
		{"touch", stamped(attune.Change{Key: text, Item: touched(attune.Item{Expires: now + 3_600_000}), Prior: prior}, base), 41},
		{"invalidate", stamped(attune.Change{Key: text, Item: attune.Item{Stored: prior, Size: 100, Stale: true}, Prior: prior}, base), 46},
		{"eviction", stamped(attune.Change{Key: attune.Key{Hash: attune.KeyHash{1, 2}}, Item: attune.Item{Deleted: true}, Prior: prior}, base), 34},
	} {
		var b codec.Builder
		b.Begin(codec.Header{Batch: 1000, Time: now, Base: base})
		if b.Change(c.change); b.Len() != c.bytes {
			t.Errorf("entry, %s: %d bytes, want %d", c.name, b.Len(), c.bytes)
		}
	}
	for _, c := range []struct {
		name  string
		op    attune.Op
		bytes int
	}{
		{"set", attune.Op{Verb: attune.Set, Key: text, Value: make([]byte, 100)}, 117},
		{"set with exptime", attune.Op{Verb: attune.Set, Key: text, Value: make([]byte, 100), Exptime: 3600}, 119},
		{"delete", attune.Op{Verb: attune.Delete, Key: text}, 16},
		{"incr", attune.Op{Verb: attune.Incr, Key: text, Delta: 1}, 18},
	} {
		if n := len(codec.AppendOps(nil, []attune.Op{c.op})); n != c.bytes {
			t.Errorf("op, %s: %d bytes, want %d", c.name, n, c.bytes)
		}
	}
	item := attune.Item{Size: 100, Version: base, Stored: base, CAS: uint64(base)}
	for _, c := range []struct {
		name  string
		res   attune.Result
		bytes int
	}{
		{"stored", attune.Result{Status: attune.Stored, Item: item}, 14},
		{"counted", attune.Result{Status: attune.Counted, Item: item, Number: 7}, 16},
		{"deleted", attune.Result{Status: attune.Deleted, Item: attune.Item{Version: base, Deleted: true}}, 15},
		{"not found", attune.Result{Status: attune.NotFound}, 4},
	} {
		if n := len(codec.AppendResults(nil, []attune.Result{c.res})); n != c.bytes {
			t.Errorf("result, %s: %d bytes, want %d", c.name, n, c.bytes)
		}
	}
}

func TestOtherVersionsAreNamed(t *testing.T) {
	data := []byte{200, 0, 0, 0, 0, 0}
	_, entry := codec.Open(data)
	_, ops := codec.DecodeOps(data, nil)
	for name, err := range map[string]error{"entry": entry, "ops": ops, "results": codec.DecodeResults(data, nil)} {
		if !errors.Is(err, codec.ErrFormat) || errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
	_, entry = codec.Open(nil)
	_, ops = codec.DecodeOps(nil, nil)
	for name, err := range map[string]error{"entry": entry, "ops": ops, "results": codec.DecodeResults(nil, nil)} {
		if !errors.Is(err, codec.ErrCorrupt) {
			t.Errorf("no %s: %v, want ErrCorrupt", name, err)
		}
	}
}

// TestACountIsNotBelieved has a megabyte that claims to be a quarter million ops
// and is none: in memory they would be forty.
func TestACountIsNotBelieved(t *testing.T) {
	data := binary.AppendUvarint([]byte{1}, 1<<18)
	for range 1 << 20 {
		data = append(data, 0xff)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := codec.DecodeOps(data, nil)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("error %v", err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
	huge := binary.AppendUvarint([]byte{1}, math.MaxUint64)
	if _, err := codec.DecodeOps(huge, nil); !errors.Is(err, codec.ErrCorrupt) {
		t.Errorf("error %v", err)
	}
}

// TestKeysAreNeverCut: the same cut key in all replicas would go unnoticed.
func TestKeysAreNeverCut(t *testing.T) {
	long := attune.Key{Text: make([]byte, 256)}
	for name, f := range map[string]func(){
		"ops":   func() { codec.AppendOps(nil, []attune.Op{{Key: long}}) },
		"entry": func() { new(codec.Builder).Change(&attune.Change{Key: long}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: a key of %d bytes was encoded", name, len(long.Text))
				}
			}()
			f()
		}()
	}
}

// TestAppendingToWhatWasDecodedLeavesTheRest alone.
func TestAppendingToWhatWasDecodedLeavesTheRest(t *testing.T) {
	var b codec.Builder
	b.Begin(codec.Header{Time: now, Base: base})
	b.Change(set("a", 3))
	b.Change(set("b", 3))
	data := b.Bytes()
	want := string(data)
	_, recs, err := records(data)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(recs[0].Change.Key.Text, "overwritten"...)
	_ = append(recs[0].Change.Item.Value, "overwritten"...)
	if string(data) != want {
		t.Error("appending to a value changed the entry")
	}
}

func TestNothingIsAllocatedPerRecord(t *testing.T) {
	const n = 64
	changes, ops, res := batch(n)
	var b codec.Builder
	var rec codec.Record
	b.Begin(codec.Header{Batch: 1, Time: now, Base: base})
	for i := range changes {
		b.Change(&changes[i])
	}
	entry := b.Bytes()
	encodedOps, encodedRes := codec.AppendOps(nil, ops), codec.AppendResults(nil, res)
	buf := make([]byte, 0, len(encodedOps)+len(encodedRes))
	for name, f := range map[string]func(){
		"Builder": func() {
			b.Begin(codec.Header{Batch: 1, Time: now, Base: base})
			for i := range changes {
				b.Change(&changes[i])
			}
		},
		"Reader": func() {
			rd, err := codec.Open(entry)
			if err != nil {
				t.Fatal(err)
			}
			for rd.Next(&rec) {
			}
		},
		"AppendOps":     func() { codec.AppendOps(buf, ops) },
		"AppendResults": func() { codec.AppendResults(buf, res) },
		"DecodeOps": func() {
			if got, err := codec.DecodeOps(encodedOps, ops[:0]); err != nil || len(got) != n {
				t.Fatal(err)
			}
		},
		"DecodeResults": func() {
			if err := codec.DecodeResults(encodedRes, res); err != nil {
				t.Fatal(err)
			}
		},
	} {
		if allocs := testing.AllocsPerRun(100, f); allocs != 0 {
			t.Errorf("%s: %v allocations for %d", name, allocs, n)
		}
	}
}
