package codec_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/codec"
)

// recode decodes data of a form and encodes what came of it.
var recode = map[string]func(data []byte) (again []byte, err error){
	"entry": func(data []byte) ([]byte, error) {
		h, recs, err := records(data)
		if err != nil {
			return nil, err
		}
		return build(new(codec.Builder), h, recs), nil
	},
	"ops": func(data []byte) ([]byte, error) {
		ops, err := codec.DecodeOps(data, nil)
		if err != nil {
			return nil, err
		}
		return codec.AppendOps(nil, ops), nil
	},
	"results": func(data []byte) ([]byte, error) {
		n := 0
		if len(data) > 1 {
			n = int(data[1])
		}
		res := make([]attune.Result, n)
		if err := codec.DecodeResults(data, res); err != nil {
			return nil, err
		}
		return codec.AppendResults(nil, res), nil
	},
}

// TestWhatIsRefused has pairs of lines that differ in one thing: the first is
// accepted, the second is not, for the reason named.
func TestWhatIsRefused(t *testing.T) {
	const header = "01 07 80b083c59868 00 "
	for _, c := range []struct{ form, why, good, bad string }{
		{"entry", "a batch in two bytes that fits one", header, "01 8700 80b083c59868 00"},
		{"entry", "a zero in two bytes", header, "01 07 80b083c59868 8000"},
		{"entry", "a number of more than 64 bits", "01 ffffffffffffffffff01 00 00", "01 ffffffffffffffffff02 00 00"},
		{"entry", "a mark with bits of a change", header + "01 00", header + "05 00"},
		{"entry", "both bits of Prior", header + "4c 00 016b 0176", header + "cc 00 016b 00 0176"},
		{"entry", "a Prior given as 0", header + "8c 05 016b 04 0176", header + "8c 05 016b 8580808090ccdeac0c 0176"},
		{"entry", "a Prior given that is AnyVersion", header + "8c 05 016b 04 0176", header + "8c 05 016b 8680808090ccdeac0c 0176"},
		{"entry", "a deletion with a value", header + "14 00 016b", header + "1c 00 016b"},
		{"entry", "a deletion with details", header + "14 00 016b", header + "34 00 016b"},
		{"entry", "details without any", header + "2c 00 016b 08 0176", header + "2c 00 016b 00 0176"},
		{"entry", "a detail that nobody knows", header + "2c 00 016b 18 0176", header + "2c 00 016b 28 0176"},
		{"entry", "an expiry given as never", header + "2c 00 016b 01 fdaf83c59868 0176", header + "2c 00 016b 01 ffaf83c59868 0176"},
		{"entry", "flags given as 0", header + "2c 00 016b 02 01 0176", header + "2c 00 016b 02 00 0176"},
		{"entry", "flags of more than 32 bits", header + "2c 00 016b 02 ffffffff0f 0176", header + "2c 00 016b 02 8080808010 0176"},
		{"entry", "a cas unique given that is Stored", header + "2c 00 016b 04 8180808090ccdeac0c 0176", header + "2c 00 016b 04 8080808090ccdeac0c 0176"},
		{"entry", "bytes elsewhere that are of this version", header + "04 00 016b 01 00", header + "04 00 016b 00 00"},
		{"entry", "a size of more than 31 bits", header + "04 00 016b 01 ffffffff07", header + "04 00 016b 01 8080808008"},
		{"entry", "a value longer than what is there", header + "0c 00 016b 0176", header + "0c 00 016b 0276"},
		{"entry", "a key longer than what is there", header + "14 00 016b", header + "14 00 026b"},

		{"ops", "a verb that nobody knows", "01 01 0a 00 00 00", "01 01 0b 00 00 00"},
		{"ops", "a mode that nobody knows", "01 01 00 8008 00 00", "01 01 00 8010 00 00"},
		{"ops", "a field that nobody knows", "01 01 00 00 8002 00 01", "01 01 00 00 8004 00 01"},
		{"ops", "a field given as 0", "01 01 00 00 04 00 01", "01 01 00 00 04 00 00"},
		{"ops", "flags of more than 32 bits", "01 01 00 00 02 00 ffffffff0f", "01 01 00 00 02 00 8080808010"},
		{"ops", "more ops than bytes", "01 01 00 00 00 00", "01 02 00 00 00 00"},

		{"results", "a status that nobody knows", "01 01 0e 00", "01 01 0f 00"},
		{"results", "a field that nobody knows", "01 01 00 808010", "01 01 00 808020"},
		{"results", "a field given as 0", "01 01 00 01 01", "01 01 00 01 00"},
		{"results", "flags of more than 32 bits", "01 01 00 04 ffffffff0f", "01 01 00 04 8080808010"},
		{"results", "a size of more than 31 bits", "01 01 00 01 ffffffff07", "01 01 00 01 8080808008"},
		{"results", "a Stored given that is Version", "01 01 00 12 05 04", "01 01 00 12 05 05"},
		{"results", "a cas unique given that is Stored", "01 01 00 22 05 04", "01 01 00 22 05 05"},
		{"results", "an error longer than what is there", "01 01 0e 8004 0177", "01 01 0e 8004 0277"},
	} {
		t.Run(c.form+"/"+c.why, func(t *testing.T) {
			good, bad := unhex(t, c.good), unhex(t, c.bad)
			if again, err := recode[c.form](good); err != nil || !bytes.Equal(again, good) {
				t.Errorf("%s: error %v; encoded again: %x", c.good, err, again)
			}
			if again, err := recode[c.form](bad); !errors.Is(err, codec.ErrCorrupt) {
				t.Errorf("%s: error %v, want ErrCorrupt; encoded again: %x", c.bad, err, again)
			}
		})
	}
}

func unhex(t *testing.T, s string) []byte {
	data, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestDamageIsNoticedOrMeansSomethingElse never a panic, and never what would
// have been written otherwise.
func TestDamageIsNoticedOrMeansSomethingElse(t *testing.T) {
	for form, samples := range map[string][]sample{"entry": entries(), "ops": opLists(), "results": resultLists()} {
		t.Run(form, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				data := bytes.Clone(rapid.SampledFrom(samples).Draw(t, "sample").data)
				for range rapid.IntRange(1, 3).Draw(t, "times") {
					at := rapid.IntRange(0, len(data)-1).Draw(t, "at")
					switch b := rapid.Byte().Draw(t, "byte"); rapid.IntRange(0, 3).Draw(t, "how") {
					case 0:
						data[at] = b
					case 1:
						data[at] ^= 1 << (b & 7)
					case 2:
						data = slices.Insert(data, at, b)
					case 3:
						data = data[:at+1]
					}
				}
				again, err := recode[form](data)
				if err == nil && !bytes.Equal(again, data) {
					t.Fatalf("%x\nencoded again: %x", data, again)
				}
				if err != nil && !errors.Is(err, codec.ErrCorrupt) && !errors.Is(err, codec.ErrFormat) {
					t.Fatal(err)
				}
			})
		})
	}
}
