//go:build unix

package client

import (
	"net"
	"syscall"
)

// alive reports whether an idle connection is open and silent. A read that would
// have to wait says so. An end of file is a server that closed; a byte is a
// reply that nobody asked for, after which the stream makes no sense.
func alive(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return true // a wrapper, TLS for one, may have bytes of its own to read
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	silent := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, err := syscall.Read(int(fd), b[:])
		silent = err == syscall.EAGAIN
		return true
	})
	return err == nil && silent
}
