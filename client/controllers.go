package client

import (
	"net"
	"strings"
	"sync/atomic"

	"github.com/bradfitz/gomemcache/memcache"
)

// controllers is the list of controllers and which of them is current. It is
// the selector gomemcache asks for a key's server, and also the server it
// answers: one address for all, so that gomemcache's pool, which is keyed by
// address, does not hold on to connections of a controller that was left.
type controllers struct {
	addrs   []string
	current atomic.Uint32 // an index into addrs
}

var (
	_ memcache.ServerSelector = (*controllers)(nil)
	_ net.Addr                = (*controllers)(nil)
)

func (cs *controllers) Network() string { return "attune" }
func (cs *controllers) String() string  { return strings.Join(cs.addrs, ",") }

// PickServer implements memcache.ServerSelector.
func (cs *controllers) PickServer(string) (net.Addr, error) {
	if len(cs.addrs) == 0 {
		return nil, memcache.ErrNoServers
	}
	return cs, nil
}

// Each implements memcache.ServerSelector. One controller stands for all: a
// flush_all reaches every replica from any of them, and a second one would only
// kill what was written since the first.
func (cs *controllers) Each(f func(net.Addr) error) error {
	if len(cs.addrs) == 0 {
		return memcache.ErrNoServers
	}
	return f(cs)
}

// failed makes the controller after at the current one. Many requests to one
// controller fail together, and only the first of them moves it: the others find
// that at is no longer current.
func (cs *controllers) failed(at uint32) {
	cs.current.CompareAndSwap(at, cs.after(at))
}

func (cs *controllers) after(at uint32) uint32 { return (at + 1) % uint32(len(cs.addrs)) }

// endpoint splits a controller's address into what net.Dial wants: a path, with
// or without "unix:" before it, is a unix socket.
func endpoint(addr string) (network, address string) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "unix", path
	}
	if strings.Contains(addr, "/") {
		return "unix", addr
	}
	return "tcp", addr
}
