package kvadapter

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
)

// TestMemcachedListInParts lists more keys than a list may hold, which change while
// it is listed again: those that are there throughout are listed once.
func TestMemcachedListInParts(t *testing.T) {
	for _, items := range []int{0, 1, 10, 1000, 6000} {
		const bound = 2000
		list, seen, parts := memcachedList{bound: bound}, make(map[string]int), 0
		for more := true; more; more = list.next() {
			list.begin()
			for _, i := range rand.Perm(items) {
				list.add(fmt.Appendf(nil, "key-%d", i), uint32(i))
			}
			for i := range items / 2 {
				list.add(fmt.Appendf(nil, "part %d key %d", parts, i), 0)
			}
			if len(list.entries) > bound {
				t.Fatalf("%d bytes of keys, want %d at most", len(list.entries), bound)
			}
			for rest := list.entries; len(rest) > 0; {
				var entry []byte
				entry, rest = cutListEntry(rest)
				seen[string(entry[listHead:])]++
			}
			parts++
		}
		for i := range items {
			if n := seen[fmt.Sprintf("key-%d", i)]; n != 1 {
				t.Fatalf("key-%d of %d is listed %d times in %d parts", i, items, n, parts)
			}
		}
		if items > 1000 && parts < items*10/bound {
			t.Errorf("%d items in %d parts: nothing is tested", items, parts)
		}
	}
}

// TestMemcachedListOfEqualSums has keys that no range parts: they are listed, bound
// or not.
func TestMemcachedListOfEqualSums(t *testing.T) {
	list, seen, parts := memcachedList{bound: 10}, 0, 0
	for more := true; more; more = list.next() {
		list.begin()
		for range 10 {
			list.add([]byte("a key"), 1)
		}
		seen += len(list.entries) / (listHead + 5)
		parts++
	}
	if seen != 10 || parts > 64 {
		t.Errorf("%d listed in %d parts, want 10", seen, parts)
	}
}

// FuzzMemcachedListLine checks that a line is read as the key that it quotes, or not.
func FuzzMemcachedListLine(f *testing.F) {
	f.Add([]byte("key=a%20b exp=-1 la=1700000000 cas=1 fetch=no cls=1 size=63"))
	f.Add([]byte("key=%FF00 size=1 flags=7"))
	f.Add([]byte("key=%"))
	f.Add([]byte("key= size=1"))
	f.Add([]byte("END"))
	f.Fuzz(func(t *testing.T, line []byte) {
		before := bytes.Clone(line)
		name, _, ok := parseListLine(line)
		if !bytes.Equal(line, before) {
			t.Fatal("the line has changed")
		}
		if !ok {
			return
		}
		if len(name) == 0 || len(name) > 250 {
			t.Fatalf("a key of %d bytes", len(name))
		}
		quoted, _, _ := strings.Cut(strings.TrimPrefix(string(line), "key="), " ")
		if want, err := url.PathUnescape(quoted); err != nil || want != string(name) {
			t.Fatalf("%q is read as %q, want %q, %v", quoted, name, want, err)
		}
	})
}

// FuzzMemcachedOutcomes checks that each command has the outcome that its own line
// says, whatever a server answers.
func FuzzMemcachedOutcomes(f *testing.F) {
	f.Add([]byte("STORED\r\nDELETED\r\nSTORED\r\nNOT_FOUND\r\n"), uint8(0b1010))
	f.Add([]byte("STORED\r\nSERVER_ERROR object too large for cache\r\nSTORED\r\n"), uint8(0))
	f.Add([]byte("SERVER_ERROR out of memory storing object\r\nERROR\r\n"), uint8(0))
	f.Add([]byte("STORED"), uint8(0))
	f.Fuzz(func(t *testing.T, answers []byte, deletes uint8) {
		s := newMemcachedServer("server:11211", memcachedTimeout, 1)
		unset := errors.New("no outcome yet")
		var batch []*memcachedWriteSeat
		for i := range 8 {
			batch = append(batch, &memcachedWriteSeat{load: memcachedWrite{deletes: deletes>>i&1 != 0}, err: unset})
		}
		rest, err := s.readOutcomes(bufio.NewReader(bytes.NewReader(answers)), batch)
		if (err == nil) != (len(rest) == 0) {
			t.Fatalf("%d without an answer, %v", len(rest), err)
		}
		for _, w := range rest {
			if w.err != unset {
				t.Fatal("an outcome without an answer")
			}
		}
		lines := bytes.Split(answers, []byte{'\n'})
		for i, w := range batch[:len(batch)-len(rest)] {
			line := strings.TrimRight(string(lines[i]), "\r")
			switch {
			case w.err == nil && !w.load.deletes && line == "STORED":
			case w.err == nil && w.load.deletes && (line == "DELETED" || line == "NOT_FOUND"):
			case errors.Is(w.err, ErrTooLarge) && !w.load.deletes && strings.Contains(line, "too large"):
			case errors.Is(w.err, ErrFull) && !w.load.deletes && strings.Contains(line, "out of memory"):
			default:
				t.Fatalf("%q comes to %v", line, w.err)
			}
		}
	})
}
