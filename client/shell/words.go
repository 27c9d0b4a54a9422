package shell

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// word is one argument. A quoted one is a value or a key as it stands: never an
// option, never a file name.
type word struct {
	text   string
	quoted bool // any part of it was
}

var errQuote = errors.New("a quote is not closed")

// split makes words of a line. Blanks separate them, except in quotes:
//
//	'...'    as it stands
//	"..."    with escapes: \n \r \t \0 \\ \" \' \xHH and backslash blank
//
// A bare word may have the same escapes. Any other escape is an error, rather
// than a guess that ends up in somebody's data.
func split(line string) ([]word, error) {
	var words []word
	var b strings.Builder
	var w word
	started := false // a word was: it may be empty, if quoted
	var quote byte   // the open quote, or 0
	for i := 0; i < len(line); i++ {
		ch := line[i]
		switch {
		case quote == 0 && (ch == ' ' || ch == '\t'):
			if started {
				w.text = b.String()
				words = append(words, w)
			}
			b.Reset()
			w, started = word{}, false
			continue
		case quote == 0 && (ch == '\'' || ch == '"'):
			quote, w.quoted = ch, true
		case quote != 0 && ch == quote:
			quote = 0
		case ch == '\\' && quote != '\'':
			decoded, n, err := unescape(line[i+1:])
			if err != nil {
				return nil, err
			}
			b.WriteByte(decoded)
			i += n
		default:
			b.WriteByte(ch)
		}
		started = true
	}
	if quote != 0 {
		return nil, errQuote
	}
	if started {
		w.text = b.String()
		words = append(words, w)
	}
	return words, nil
}

// unescape returns the byte that s, what follows a backslash, begins with, and
// how long that is.
func unescape(s string) (decoded byte, n int, err error) {
	if s == "" {
		return 0, 0, errors.New(`the line ends in a backslash`)
	}
	switch s[0] {
	case 'n':
		return '\n', 1, nil
	case 'r':
		return '\r', 1, nil
	case 't':
		return '\t', 1, nil
	case '0':
		return 0, 1, nil
	case '\\', '"', '\'', ' ':
		return s[0], 1, nil
	case 'x':
		if len(s) >= 3 {
			if v, err := strconv.ParseUint(s[1:3], 16, 8); err == nil {
				return byte(v), 3, nil
			}
		}
		return 0, 0, errors.New(`\x wants two hexadecimal digits`)
	}
	return 0, 0, fmt.Errorf(`unknown escape \%c: use \\ for a backslash, or '...'`, []rune(s)[0])
}
