package shell

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	bare := func(s string) word { return word{s, false} }
	quoted := func(s string) word { return word{s, true} }
	for line, want := range map[string][]word{
		"":                        nil,
		"  \t ":                   nil,
		"get a  b":                {bare("get"), bare("a"), bare("b")},
		`set k "hello, world"`:    {bare("set"), bare("k"), quoted("hello, world")},
		`'a\n"b'`:                 {quoted(`a\n"b`)},
		`"a\n\r\t\0\\\"\'\x7F"`:   {quoted("a\n\r\t\x00\\\"'\x7f")},
		`\x00\xfF a\ b`:           {bare("\x00\xff"), bare("a b")},
		`"a"'b'c`:                 {quoted("abc")},
		`'' ""`:                   {quoted(""), quoted("")},
		`set k 'it'\''s' @f "@f"`: {bare("set"), bare("k"), quoted("it's"), bare("@f"), quoted("@f")},
		"ключ\tзначение":          {bare("ключ"), bare("значение")},
	} {
		got, err := split(line)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("split(%q) = %v, %v; want %v", line, got, err, want)
		}
	}
	for line, want := range map[string]string{
		`"a`: "quote", `'a"`: "quote", `a\`: "backslash", `\x1`: "hexadecimal", `\xg1`: "hexadecimal", `\é`: `\é`,
	} {
		if got, err := split(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("split(%q) = %v, %v; want an error about %s", line, got, err, want)
		}
	}
}

// quote writes s so that split reads it back, byte by byte.
func quote(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, `\x%02x`, s[i])
	}
	return `"` + b.String() + `"`
}

func FuzzWords(f *testing.F) {
	for _, s := range []string{"", `set k "a b" --ttl 5`, `'a\'`, `\x41\`, `"\n"'x'y`, "a\x00\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		// Any string can be written as a word.
		words, err := split(quote(line) + " '" + strings.ReplaceAll(line, "'", `'\''`) + "'")
		if err != nil || len(words) != 2 || words[0] != (word{line, true}) || words[1] != (word{line, true}) {
			t.Fatalf("%q came back as %v, %v", line, words, err)
		}
		// What a line splits into does not change by writing it differently.
		words, err = split(line)
		if err != nil {
			return
		}
		var rewritten []string
		for _, w := range words {
			rewritten = append(rewritten, quote(w.text))
		}
		again, err := split(strings.Join(rewritten, "\t"))
		if err != nil || len(again) != len(words) {
			t.Fatalf("%q: %v, then %v, %v", line, words, again, err)
		}
		for i := range words {
			if words[i].text != again[i].text {
				t.Fatalf("%q: %v, then %v", line, words, again)
			}
		}
	})
}
