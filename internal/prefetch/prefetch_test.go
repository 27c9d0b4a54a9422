package prefetch

import (
	"testing"
	"unsafe"
)

// A prefetch is a hint: it changes nothing, and no address is a wrong one.
func TestLineNeverFaults(t *testing.T) {
	b := [2]byte{1, 2}
	Line(unsafe.Pointer(&b))
	Line(nil)
	if b != [2]byte{1, 2} {
		t.Error(b)
	}
}
