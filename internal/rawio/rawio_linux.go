package rawio

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read is read(2) of a non-blocking descriptor.
func Read(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return result(n, errno)
}

// Write is write(2) to a non-blocking descriptor.
func Write(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return result(n, errno)
}

// Poll is epoll_wait(2) that does not wait.
func Poll(epfd int, events []unix.EpollEvent) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	return result(n, errno)
}

func result(n uintptr, errno syscall.Errno) (int, syscall.Errno) {
	if errno != 0 {
		return -1, errno
	}
	return int(n), 0
}

// conn is a net.Conn whose Read and Write are those of this package.
type conn struct {
	net.Conn
	raw         syscall.RawConn
	reads, sent transfer
	read, write func(fd uintptr) bool // what is made of reads and sent
}

// transfer is a Read or a Write under way.
type transfer struct {
	b     []byte
	n     int
	errno syscall.Errno
}

// Conn returns a connection that does what c does, and is faster if c is a socket of
// package net. One goroutine at a time may read from it, and one write to it.
func Conn(c net.Conn) net.Conn {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return c
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return c
	}
	q := &conn{Conn: c, raw: raw}
	q.read = func(fd uintptr) bool {
		for {
			q.reads.n, q.reads.errno = Read(int(fd), q.reads.b)
			if q.reads.errno != unix.EINTR {
				return q.reads.errno != unix.EAGAIN
			}
		}
	}
	q.write = func(fd uintptr) bool {
		t := &q.sent
		for t.n < len(t.b) {
			n, errno := Write(int(fd), t.b[t.n:])
			switch errno {
			case 0:
				t.n += n
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				t.errno = errno
				return true
			}
		}
		return true
	}
	return q
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	c.reads = transfer{b: b}
	err := c.raw.Read(c.read)
	t := c.reads
	c.reads.b = nil
	switch {
	case err != nil:
		return 0, err
	case t.errno != 0:
		return 0, os.NewSyscallError("read", t.errno)
	case t.n == 0:
		return 0, io.EOF
	}
	return t.n, nil
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	c.sent = transfer{b: b}
	err := c.raw.Write(c.write)
	t := c.sent
	c.sent.b = nil
	if err == nil && t.errno != 0 {
		err = os.NewSyscallError("write", t.errno)
	}
	return t.n, err
}

// Unwrap is the connection that package net knows, for what only that can do.
func Unwrap(c net.Conn) net.Conn {
	if q, ok := c.(*conn); ok {
		return q.Conn
	}
	return c
}
