package cluster

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout ends a connection whose peer does not acknowledge what was sent
// to it for d. Keepalive does not see that: it is for idle connections.
func setUserTimeout(conn *net.TCPConn, d time.Duration) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return // closed already: the next use says so
	}
	raw.Control(func(fd uintptr) {
		// It cannot fail on a socket that is TCP, and if it did the connection
		// would merely notice later.
		_ = unix.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d/time.Millisecond))
	})
}
