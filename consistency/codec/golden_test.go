package codec_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/codec"
)

var update = flag.Bool("update", false, "rewrite testdata/golden.txt; members of two versions then cannot talk unless a format's version is another")

// sample is one thing of each sort, in its encoding.
type sample struct {
	name string
	data []byte
}

func entries() []sample {
	key := attune.Key{Text: []byte("key")}
	hash := attune.Key{Hash: attune.KeyHash{0x0102030405060708, 0x1112131415161718}}
	kept := attune.Item{Size: 300, Stored: base - 5, CAS: uint64(base) - 5}
	var out []sample
	entry := func(name string, f func(b *codec.Builder)) {
		var b codec.Builder
		b.Begin(codec.Header{Batch: 7, Time: now, Base: base})
		f(&b)
		out = append(out, sample{"entry " + name, b.Bytes()})
	}
	one := func(name string, c attune.Change) {
		entry(name, func(b *codec.Builder) { b.Change(stamped(c, base+2)) })
	}
	entry("empty", func(*codec.Builder) {})
	one("set", attune.Change{Key: key, Item: attune.Item{Value: []byte("value")}, Prior: attune.AnyVersion})
	one("set empty", attune.Change{Key: key, Item: attune.Item{Value: []byte{}}})
	one("all of an item", attune.Change{Key: key, Prior: base - 9, Item: attune.Item{
		Value: []byte("value"), Flags: 70000, Expires: now + 60_000, CAS: 42, Stale: true, Leased: true,
	}})
	one("dead at once", attune.Change{Key: key, Item: attune.Item{Value: []byte("v"), Expires: 1}})
	one("touch", attune.Change{Key: key, Prior: base - 9, Item: kept})
	invalid := kept
	invalid.Stale, invalid.CAS = true, 0
	one("invalidate", attune.Change{Key: key, Prior: base - 9, Item: invalid})
	one("delete", attune.Change{Key: key, Prior: base - 9, Item: attune.Item{Deleted: true}})
	one("evict", attune.Change{Key: hash, Prior: base - 9, Item: attune.Item{Deleted: true}})
	one("touch by hash", attune.Change{Key: hash, Prior: base - 9, Item: kept})
	entry("marks", func(b *codec.Builder) {
		b.Mark(codec.KindFormed, base, 0)
		b.Mark(codec.KindFlush, base+1, 0)
		b.Mark(codec.KindFlushAt, base+2, now+1000)
		b.Mark(codec.KindFlushAt, base+3, 0)
		b.Change(stamped(attune.Change{Key: key, Item: attune.Item{Value: []byte("v")}}, base+200))
	})
	return out
}

func opLists() []sample {
	key := attune.Key{Text: []byte("key")}
	list := func(name string, ops ...attune.Op) sample { return sample{"ops " + name, codec.AppendOps(nil, ops)} }
	return []sample{
		list("none"),
		list("set and delete", attune.Op{Verb: attune.Set, Key: key, Value: []byte("value")}, attune.Op{Verb: attune.Delete, Key: key}),
		list("set empty", attune.Op{Verb: attune.Set, Key: key, Value: []byte{}}),
		list("flush", attune.Op{Verb: attune.Flush, Exptime: 10}),
		list("all of an op", attune.Op{
			Verb: attune.Decr, Mode: attune.IfMatch | attune.WantValue, Flags: 70000, Key: key, Value: []byte("value"), Exptime: -1,
			VivifyTTL: 300, RecacheTTL: 30, Compare: uint64(base), CAS: 42, Delta: 1, Initial: 1<<64 - 1,
		}),
	}
}

func resultLists() []sample {
	list := func(name string, res ...attune.Result) sample {
		return sample{"results " + name, codec.AppendResults(nil, res)}
	}
	item := attune.Item{Size: 100, Version: base, Stored: base, CAS: uint64(base)}
	return []sample{
		list("none"),
		list("stored and missed", attune.Result{Status: attune.Stored, Item: item}, attune.Result{Status: attune.Miss}),
		list("deleted", attune.Result{Status: attune.Deleted, Item: attune.Item{Version: base, Deleted: true}}),
		list("hit, empty", attune.Result{Status: attune.Hit, Item: attune.Item{Value: []byte{}, Version: base, Stored: base - 1, CAS: uint64(base - 1)}}),
		list("failed", attune.Result{Status: attune.Failed, Err: errors.New("no quorum")}),
		list("all of a result", attune.Result{
			Status: attune.Counted, Number: 11, Before: now, Absent: true, Won: true, Stale: true, Taken: true, Err: errors.New("why"),
			Item: attune.Item{
				Value: []byte("11"), Size: 300, Flags: 70000, Expires: now + 1, Version: base, Stored: base - 1, CAS: 42,
				Deleted: true, Stale: true, Leased: true, Fetched: true, Accessed: now / 1000,
			},
		}),
	}
}

// TestFormatsStay compares with what was written once. Controllers of two
// versions meet while a cluster is upgraded, so a change here needs another
// version of the format.
func TestFormatsStay(t *testing.T) {
	const file = "testdata/golden.txt"
	var got []byte
	for _, list := range [][]sample{entries(), opLists(), resultLists()} {
		for _, s := range list {
			got = fmt.Appendf(got, "%s\n  %s\n", s.name, hex.EncodeToString(s.data))
		}
	}
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	g, w := bytes.Split(got, []byte("\n")), bytes.Split(want, []byte("\n"))
	for i := range min(len(g), len(w)) {
		if !bytes.Equal(g[i], w[i]) {
			t.Errorf("%s, line %d (%s):\ngot  %s\nwant %s", file, i+1, w[max(i-1, 0)], g[i], w[i])
		}
	}
	if len(g) != len(w) {
		t.Errorf("%d lines, want %d", len(g), len(w))
	}
}
