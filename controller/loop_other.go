//go:build !linux

package controller

import "net"

// loop exists on Linux only; elsewhere every connection has a goroutine.
type loop struct{ done chan struct{} }

func newLoops(*Node) ([]*loop, error) { return nil, nil }

func (*loop) add(net.Conn, *connInfo, func()) error { panic("no event loop on this system") }
func (*loop) wake()                                 {}
