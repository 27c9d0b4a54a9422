//go:build amd64 || arm64

package prefetch

import "unsafe"

// Line asks for the cache line at p. It never faults, whatever p is.
//
//go:noescape
func Line(p unsafe.Pointer)
