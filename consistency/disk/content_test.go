package disk_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/attunekv/attune/consistency/disk"
)

// failing writes so many bytes, and then fails.
type failing struct{ room int }

var errFull = errors.New("full")

func (f *failing) Write(b []byte) (int, error) {
	if len(b) > f.room {
		return 0, errFull
	}
	f.room -= len(b)
	return len(b), nil
}

func TestContent(t *testing.T) {
	rest := func(w io.Writer) error { _, err := io.WriteString(w, "rest"); return err }
	var b bytes.Buffer
	size, err := disk.WriteContent(&b, []byte("head"), strings.NewReader("index"), rest)
	if err != nil || size != int64(b.Len()) {
		t.Fatalf("%d of %d bytes, %v", size, b.Len(), err)
	}
	whole := b.Bytes()
	r := bytes.NewReader(whole)
	head, err := disk.ReadHead(r, 4)
	if behind, _ := io.ReadAll(r); err != nil || string(head) != "head" || string(behind) != "indexrest" {
		t.Errorf("%q, then %q, %v", head, behind, err)
	}
	if _, err := disk.ReadHead(bytes.NewReader(whole), 3); err == nil {
		t.Error("a head that is too long was read")
	}
	for n := range 8 {
		if _, err := disk.ReadHead(bytes.NewReader(whole[:n]), 4); err == nil {
			t.Errorf("a head was read from %d bytes", n)
		}
	}
	for room := range len(whole) {
		if _, err := disk.WriteContent(&failing{room}, []byte("head"), strings.NewReader("index"), rest); !errors.Is(err, errFull) {
			t.Errorf("with room for %d bytes: %v", room, err)
		}
	}
}
