package controller

import (
	"net"
	"slices"
	"sync"
	"time"

	"github.com/attunekv/attune/protocol"
)

// discovery is what `config get cluster` told last, in a cluster.
type discovery struct {
	mu      sync.Mutex // guards the rest
	version int64
	servers []protocol.Server
}

// config answers `config get cluster`: where the controllers are that serve clients,
// for clients that keep their list of servers by it.
func (s *session) config(r *protocol.Request) {
	version, servers := s.node.servers(s.local)
	s.out.grew(r.AppendConfig(s.out.buf, version, servers))
}

// servers lists the controllers that are ready. While none is, as without a quorum,
// the last list stands: elsewhere clients would find nothing better. The version is in
// seconds of unix time, so that it grows through restarts and, by and large, from one
// controller to another: a client takes no list that is older than its own. asked is
// the address at which the client has reached this controller.
func (n *Node) servers(asked string) (version int64, servers []protocol.Server) {
	c := n.cluster.Load()
	if c == nil {
		for _, a := range n.Addrs() {
			servers = appendServer(servers, a, asked)
		}
		return n.started.Unix(), servers[:min(len(servers), 1)]
	}
	for _, m := range c.Members() {
		if m.Ready {
			servers = appendServer(servers, m.Listen, m.Peer)
		}
	}
	d := &n.discovery
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(servers) > 0 && !slices.Equal(servers, d.servers) {
		d.version, d.servers = max(time.Now().Unix(), d.version+1), servers
	}
	return d.version, d.servers
}

// appendServer appends where a controller that listens at addr is reached; nowhere, by
// others, if that is a unix socket.
func appendServer(servers []protocol.Server, addr, elsewhere string) []protocol.Server {
	network, _ := splitAddr(addr)
	host, port, err := reached(addr, elsewhere)
	if network == "unix" || err != nil {
		return servers
	}
	return append(servers, protocol.Server{Host: host, Port: port})
}

// reached splits an address that a controller listens on. If that is every address of
// its machine, the host is that of elsewhere, at which it is known to be reached.
func reached(addr, elsewhere string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		host, _, err = net.SplitHostPort(elsewhere)
	}
	return host, port, err
}
