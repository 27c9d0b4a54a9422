//go:build !linux

package rawio

import "net"

// Conn returns c: elsewhere system calls are a library's to make.
func Conn(c net.Conn) net.Conn { return c }

// Unwrap returns c.
func Unwrap(c net.Conn) net.Conn { return c }
