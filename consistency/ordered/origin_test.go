package ordered

import (
	"testing"

	"github.com/attunekv/attune"
)

func TestReigns(t *testing.T) {
	var r reigns
	if got := r.origin(7); got != "" {
		t.Errorf("of nothing: %q", got)
	}
	r.led(2, "a")
	r.begin(2, 10)
	r.led(5, "c") // heard of before what is left of term 3 is applied
	r.begin(3, 20)
	r.begin(5, 30)
	r.begin(5, 35) // it began once
	for v, want := range map[attune.Version]string{
		10: "", // of a time before
		11: "a", 20: "a",
		21: "", 30: "", // nobody here has seen who led
		31: "c", 36: "c", 1000: "c",
	} {
		if got := r.origin(v); got != want {
			t.Errorf("version %d was issued by %q, want %q", v, got, want)
		}
	}
	r.led(3, "b") // it is heard at last
	if got := r.origin(25); got != "b" {
		t.Errorf("version 25 was issued by %q, want b", got)
	}
	for term := range uint64(3 * maxReigns) {
		r.begin(term+6, attune.Version(100+10*term))
		r.led(term+6, "x")
		if len(r.all) > maxReigns {
			t.Fatalf("%d terms are remembered", len(r.all))
		}
	}
	if old, new := r.origin(105), r.origin(100+10*3*maxReigns); old != "" || new != "x" {
		t.Errorf("%q %q", old, new)
	}
	r.led(1, "old") // older than all that are remembered, and there is no room
	if len(r.all) > maxReigns || r.origin(100+10*3*maxReigns) != "x" {
		t.Error("something old has driven out what is new")
	}
}
