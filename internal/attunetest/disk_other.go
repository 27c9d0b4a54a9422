//go:build !linux

package attunetest

import "testing"

// SmallDisk skips the test: nothing is mounted here.
func SmallDisk(t testing.TB, _ int) string {
	t.Skip("small file systems are mounted on Linux only")
	return ""
}
