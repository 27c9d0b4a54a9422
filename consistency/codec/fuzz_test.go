package codec_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/attunekv/attune/consistency/codec"
)

// The three fuzz targets hold that any bytes are refused, or are what encoding
// gives for what they were decoded to.

func FuzzEntry(f *testing.F)   { fuzz(f, "entry", entries()) }
func FuzzOps(f *testing.F)     { fuzz(f, "ops", opLists()) }
func FuzzResults(f *testing.F) { fuzz(f, "results", resultLists()) }

func fuzz(f *testing.F, form string, seeds []sample) {
	for _, s := range seeds {
		f.Add(s.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		again, err := recode[form](data)
		switch {
		case err == nil:
			if !bytes.Equal(again, data) {
				t.Fatalf("%x\nencoded again: %x", data, again)
			}
		case !errors.Is(err, codec.ErrCorrupt) && !errors.Is(err, codec.ErrFormat):
			t.Fatal(err)
		}
	})
}
