package protocol_test

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/protocol"
)

// TestTextLongLines closes on a line too long to be a command, wherever it is
// cut, and on none that is not.
func TestTextLongLines(t *testing.T) {
	pad := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct {
		name, sent string
		closes     bool
	}{
		{"longest", pad(protocol.MaxLine-1) + "\n", false},
		{"too long", pad(protocol.MaxLine) + "\n", true},
		{"without end", pad(protocol.MaxLine), true},
		{"longest without end", pad(protocol.MaxLine - 1), false},
		{"meta too long", "mg k O" + pad(protocol.MaxLine), true},
		{"blanks before the first key", "get " + strings.Repeat(" ", protocol.MaxLine) + "k\r\n", true},
		{"digits before the first key", "gat " + strings.Repeat("1", protocol.MaxLine) + " k\r\n", true},
		{"blanks between keys", "get a" + strings.Repeat(" ", 3*protocol.MaxLine) + "b\r\n", false},
		{"many keys", "get" + strings.Repeat(" key", protocol.MaxLine) + "\r\n", false},
		{"key without end", "get " + pad(3*protocol.MaxLine), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkSplits(t, []byte(c.sent), 100, 5, anyResult)
			s := newTextSession(100, anyResult())
			s.feed(t, []byte(c.sent))
			if s.closed != c.closes {
				t.Errorf("closed: %v, want %v", s.closed, c.closes)
			}
		})
	}
}

// TestTextReadOfManyKeys reads a line far longer than the buffer it passes.
func TestTextReadOfManyKeys(t *testing.T) {
	const keys = 100_000
	line := []byte("gets")
	for i := range keys {
		line = append(line, " key:"+strconv.Itoa(i)...)
	}
	line = append(line, "\r\nmn\r\n"...)
	next := 0
	s := newTextSession(100, nil)
	s.result = func(op *attune.Op) attune.Result {
		if want := "key:" + strconv.Itoa(next); string(op.Key.Text) != want {
			t.Fatalf("key %q, want %q", op.Key.Text, want)
		}
		next++
		return attune.Result{Status: attune.Miss}
	}
	most := 0
	for len(line) > 0 {
		n := min(len(line), 100)
		s.feed(t, line[:n])
		line = line[n:]
		most = max(most, len(s.in))
	}
	if next != keys {
		t.Errorf("%d keys, want %d", next, keys)
	}
	if got := string(s.replies); got != "END\r\nMN\r\n" {
		t.Errorf("replied %q", got)
	}
	if most > protocol.MaxKey {
		t.Errorf("%d bytes had to be kept, want at most a key", most)
	}
}

// TestTextUndoOnlyTakesBackItsOwn: an error in the first key of a read has
// nothing to take back, and the reply before it must not be taken instead.
func TestTextUndoOnlyTakesBackItsOwn(t *testing.T) {
	long := strings.Repeat("k", protocol.MaxKey+1)
	for sent, undo := range map[string]bool{
		"get " + long + "\r\n":            false,
		"get " + long + " a\r\n":          false,
		"get a " + long + "\r\n":          true,
		"gats 0 a b " + long + " c\r\n":   true,
		"get a\r\nget " + long + " b\r\n": false,
	} {
		s := newTextSession(100, func(*attune.Op) attune.Result { return attune.Result{Status: attune.Miss} })
		s.feed(t, []byte(sent))
		if got := strings.Contains(strings.Join(s.log, "\n"), "(undo)"); got != undo {
			t.Errorf("%.20q: undo %v, want %v", sent, got, undo)
		}
		if !bytes.HasSuffix(s.replies, []byte("CLIENT_ERROR bad command line format\r\n")) {
			t.Errorf("%.20q: replied %q", sent, s.replies)
		}
	}
}

func TestTextNoFlush(t *testing.T) {
	s := newTextSession(100, func(*attune.Op) attune.Result {
		t.Error("flushed")
		return attune.Result{Status: attune.Flushed}
	})
	s.parser.NoFlush = true
	s.feed(t, []byte("flush_all\r\nflush_all 10\r\nflush_all x\r\nflush_all noreply\r\n"))
	if want := strings.Repeat("CLIENT_ERROR flush_all not allowed\r\n", 3); string(s.replies) != want {
		t.Errorf("replied %q, want %q", s.replies, want)
	}
}

// TestTextBinaryIsDecidedOnce: only the first byte of a connection chooses.
func TestTextBinaryIsDecidedOnce(t *testing.T) {
	s := newTextSession(100, nil)
	s.feed(t, []byte("version\r\n\x80\x0b\r\nversion\r\n"))
	if want := "VERSION 1.2.3\r\nERROR\r\nVERSION 1.2.3\r\n"; string(s.replies) != want {
		t.Errorf("replied %q, want %q", s.replies, want)
	}
}

func TestTextAppendError(t *testing.T) {
	for sent, want := range map[string]string{
		"get k\r\n":              "SERVER_ERROR too many   connections\r\n",
		"delete k\r\n":           "SERVER_ERROR too many   connections\r\n",
		"delete k noreply\r\n":   "",
		"md k q\r\n":             "SERVER_ERROR too many   connections\r\n",
		"shutdown now noreply\n": "",
	} {
		var p protocol.Parser
		var r protocol.Request
		if _, err := p.Next([]byte(sent), &r); err != nil {
			t.Fatal(err)
		}
		if got := string(r.AppendError(nil, "too many \r\nconnections")); got != want {
			t.Errorf("%q: %q, want %q", sent, got, want)
		}
	}
}

// TestTextReplyWithoutResult: a result nobody filled in is an error to the
// client, not silence, which would leave it waiting.
func TestTextReplyWithoutResult(t *testing.T) {
	for _, sent := range []string{"get k\r\n", "delete k\r\n", "mg k v\r\n", "ma k q\r\n", "me k\r\n"} {
		var p protocol.Parser
		var r protocol.Request
		if _, err := p.Next([]byte(sent), &r); err != nil {
			t.Fatal(err)
		}
		got, value := r.AppendHead(nil, &attune.Result{}, textNow)
		if want := "SERVER_ERROR no result\r\n"; string(got) != want || value != nil {
			t.Errorf("%q: %q and %q, want %q", sent, got, value, want)
		}
	}
}

// TestTextRequestsAreReused: nothing of a request shows in the next one that is
// parsed into the same memory.
func TestTextRequestsAreReused(t *testing.T) {
	var p protocol.Parser
	p.MaxItem = 10
	var used protocol.Request
	for _, sent := range []string{
		"mg Zm9v b k v q C5 E6 N7 R8 T9\r\n", "ms k 20 F7 q\r\n", "gats 10 a\r\n", "\r\n", "set k 1 2 20\r\n",
		"stats a b c\r\n", "set k 1 2 3 noreply\r\n", "delete k\r\n", "get k\r\n", "\n", "mg k\r\n", "quit\r\n",
	} {
		var fresh protocol.Request
		state := p
		if _, err := p.Next([]byte(sent), &used); err != nil {
			t.Fatal(err)
		}
		if _, err := state.Next([]byte(sent), &fresh); err != nil {
			t.Fatal(err)
		}
		if got, want := describe(&used), describe(&fresh); got != want {
			t.Errorf("%q: %s, want %s", sent, got, want)
		}
		res := attune.Result{Status: attune.Hit, Item: attune.Item{Value: []byte("v"), Size: 1, CAS: 5}}
		got, _ := used.AppendHead(nil, &res, textNow)
		want, _ := fresh.AppendHead(nil, &res, textNow)
		if !bytes.Equal(got, want) || used.Meta() != fresh.Meta() || used.Body != fresh.Body || used.Skip != fresh.Skip {
			t.Errorf("%q: replied %q, want %q", sent, got, want)
		}
	}
}

// TestTextCloseIsErrClose: sessions compare the error.
func TestTextCloseIsErrClose(t *testing.T) {
	var p protocol.Parser
	var r protocol.Request
	_, err := p.Next([]byte("GET / HTTP/1.0\r\n\r\n"), &r)
	if !errors.Is(err, protocol.ErrClose) || r.Kind != protocol.Quit {
		t.Errorf("%v, kind %d", err, r.Kind)
	}
	if out := r.AppendReply(nil); len(out) > 0 {
		t.Errorf("replied %q", out)
	}
}
