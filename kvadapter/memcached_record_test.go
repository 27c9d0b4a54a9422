package kvadapter

import (
	"bytes"
	"strings"
	"testing"

	"github.com/attunekv/attune"
)

func TestMemcachedKey(t *testing.T) {
	hash := attune.KeyHash{0x0123456789abcdef, 0xfedcba9876543210}
	const hashed = "\xff0123456789abcdeffedcba9876543210"
	for _, test := range []struct{ text, want string }{
		{"a", "a"},
		{"user:1:é", "user:1:é"},
		{"\x80\xfe", "\x80\xfe"},
		{"a\xff", "a\xff"},
		{strings.Repeat("k", 250), strings.Repeat("k", 250)},
		{"", hashed},
		{"a b", hashed},
		{"a\r\nflush_all", hashed},
		{"\x00", hashed},
		{"a\x7f", hashed},
		{"\xff", hashed},
		{hashed, hashed},
		{strings.Repeat("k", 251), hashed},
	} {
		if got := memcachedKey(attune.Key{Text: []byte(test.text), Hash: hash}); got != test.want {
			t.Errorf("%q is stored under %q, want %q", test.text, got, test.want)
		}
	}
}

func TestMemcachedRecordLayout(t *testing.T) {
	rec := Record{Stamp: Stamp{Gen: 0x04030201, Version: 0x0c0b0a0908070605}, Value: []byte("v")}
	want := []byte("\xa7\x54\x01\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0cv")
	if got := appendMemcachedRecord(nil, []byte("k"), rec); !bytes.Equal(got, want) {
		t.Fatalf("got %x, want %x: records already stored would be lost", got, want)
	}
	want = []byte("\xa7\x54\x02\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x03\x00\x00\x00a bv")
	if got := appendMemcachedRecord(nil, []byte("a b"), rec); !bytes.Equal(got, want) || len(got) != memcachedOverhead([]byte("a b"))+1 {
		t.Fatalf("got %x, want %x: records already stored would be lost", got, want)
	}
}

// FuzzMemcachedRecord checks that any bytes either are no record, or are exactly
// the ones that their record is written as.
func FuzzMemcachedRecord(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("a plain value of another client"))
	for _, text := range []string{"", "k", "a b", strings.Repeat("k", 300)} {
		f.Add(appendMemcachedRecord(nil, []byte(text), Record{Stamp: Stamp{Gen: 7, Version: 9}}))
		f.Add(appendMemcachedRecord(nil, []byte(text), Record{Stamp: Stamp{Gen: 7, Version: 9}, Value: []byte("value")}))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, rec, ok := parseMemcachedRecord(raw)
		if !ok {
			return
		}
		if rec.Value == nil {
			t.Fatal("a record without a value")
		}
		if text == nil {
			text = []byte("k")
		}
		if again := appendMemcachedRecord(nil, text, rec); !bytes.Equal(again, raw) {
			t.Fatalf("read %x, wrote %x", raw, again)
		}
	})
}
