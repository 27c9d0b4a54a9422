//go:build !linux

package cluster

import (
	"net"
	"time"
)

// setUserTimeout does nothing where the kernel has no such word: there a peer
// that vanished while something is on its way to it is noticed later.
func setUserTimeout(*net.TCPConn, time.Duration) {}
