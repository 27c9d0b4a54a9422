package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"
)

const (
	// lookEvery is how often nodes that should be there are looked for, and
	// lookSoon how often while fewer are known than expected.
	lookEvery    = 15 * time.Second
	lookSoon     = time.Second
	contestedFor = 5 * time.Second

	resolveTimeout = 2 * time.Second
)

// seeds is what came of looking for the nodes named in Join.
type seeds struct {
	mu        sync.Mutex
	looked    bool            // Join was resolved at least once
	others    bool            // it names another node than this, or one that does not resolve
	reached   bool            // one of those has answered
	asked     map[string]bool // addresses being joined
	contested time.Time       // until then another node has this one's name
	asking    bool            // compare runs
	clashes   int             // how often two nodes were found with one name
	clash     string          // the last of that, in words
}

// clashed notes that two nodes have one name.
func (s *seeds) clashed(one, other *memberlist.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clashes++
	s.clash = fmt.Sprintf("two controllers are called %s, with the gossip addresses %s and %s: give each its own --name; if one of them has ended, try again in a few seconds", one.Name, one.Address(), other.Address())
}

// awaited reports whether a node named in Join has yet to be reached.
func (s *seeds) awaited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.looked || s.others && !s.reached
}

// join looks for other nodes until Close: those named in Join and those that
// were known once. memberlist does neither after it forgot a dead node.
func (c *Cluster) join() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	address := time.NewTicker(followEvery)
	defer address.Stop()
	var m mover
	for {
		select {
		case <-timer.C:
		case <-address.C:
			if !c.follow(&m) {
				continue
			}
		case <-c.ctx.Done():
			return
		}
		contested := c.look()
		c.members.forget()
		wait := lookEvery
		if alive, _ := c.members.addresses(); contested || len(alive) == 0 || len(alive)+1 < c.o.Expect || c.seeds.awaited() {
			wait = lookSoon
		}
		timer.Reset(wait)
	}
}

// look asks every address in turn that may have a node nobody here knows, and
// waits for none of them.
func (c *Cluster) look() (contested bool) {
	named, unresolved := c.resolve()
	alive, dead := c.members.addresses()
	s := &c.seeds
	s.mu.Lock()
	contested = time.Now().Before(s.contested)
	first := !s.looked
	s.looked, s.others = true, unresolved || len(named) > 0
	if slices.ContainsFunc(named, func(a string) bool { return slices.Contains(alive, a) }) {
		s.reached = true
	}
	s.mu.Unlock()
	if first {
		c.members.changed() // Settle may go on
	}
	for _, addr := range named {
		if contested || !slices.Contains(alive, addr) {
			c.ask(addr, true)
		}
	}
	for _, addr := range dead {
		if !slices.Contains(named, addr) && !c.here(addr) {
			c.ask(addr, false)
		}
	}
	if contested {
		for _, addr := range alive {
			if !slices.Contains(named, addr) {
				c.ask(addr, false)
			}
		}
	}
	return contested
}

// ask exchanges members with whoever gossips at an address.
func (c *Cluster) ask(addr string, named bool) {
	s := &c.seeds
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[addr] {
		return
	}
	if s.asked == nil {
		s.asked = make(map[string]bool)
	}
	s.asked[addr] = true
	c.wg.Go(func() {
		err := c.exchange(addr, named)
		s.mu.Lock()
		delete(s.asked, addr)
		s.mu.Unlock()
		if err != nil && c.ctx.Err() == nil {
			c.log.Debug("no node there", zap.String("gossip", addr), zap.Error(err))
		}
	})
}

// exchange is ask, and returns when it is done. Whoever is named may be who a founder
// waits for.
func (c *Cluster) exchange(addr string, named bool) error {
	_, err := c.list.Load().Join([]string{addr})
	// It may have been this node itself, under an address it does not know: then it
	// has not met anybody.
	alive, _ := c.members.addresses()
	s := &c.seeds
	s.mu.Lock()
	fresh := named && err == nil && len(alive) > 0 && !s.reached
	s.reached = s.reached || fresh
	s.mu.Unlock()
	if fresh {
		c.members.changed()
	}
	return err
}

// resolve returns all addresses of the nodes named in Join but those of this
// node, and whether a name has none at present.
func (c *Cluster) resolve() (addrs []string, unresolved bool) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(c.ctx, resolveTimeout)
	defer cancel()
	for _, seed := range c.o.Join {
		wg.Go(func() {
			found, err := c.lookup(ctx, seed)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				unresolved = true
				if c.ctx.Err() == nil {
					c.warnings.warn(seed, "cannot resolve an address to join", zap.Error(err))
				}
			}
			for _, a := range found {
				if !c.here(a) && !slices.Contains(addrs, a) {
					addrs = append(addrs, a)
				}
			}
		})
	}
	wg.Wait()
	return addrs, unresolved
}

// lookup returns the addresses of one seed, ip:port each. A seed without port
// has the one this node gossips on.
func (c *Cluster) lookup(ctx context.Context, seed string) ([]string, error) {
	host, port, err := net.SplitHostPort(seed)
	if err != nil {
		_, own, _ := net.SplitHostPort(c.place.Load().gossip)
		if host, port, err = net.SplitHostPort(net.JoinHostPort(seed, own)); err != nil {
			return nil, err
		}
	}
	number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, ip := range ips {
		addrs = append(addrs, net.JoinHostPort(canonical(ip), strconv.Itoa(number)))
	}
	return addrs, nil
}

// here reports whether an address is known to be that of this node's gossip: what
// it tells others, or its port on an address that it listens on. Another address of the
// loopback network may be another node's.
func (c *Cluster) here(addr string) bool {
	if addr == c.place.Load().gossip {
		return true
	}
	a, err := netip.ParseAddrPort(addr)
	if err != nil || int(a.Port()) != c.bound.Port {
		return false
	}
	ip := net.IP(a.Addr().AsSlice())
	if c.bound.IP.IsUnspecified() {
		return ip.IsLoopback() || ours(ip)
	}
	// The name localhost mostly has two addresses, and nobody listens on the other one.
	return ip.Equal(c.bound.IP) || localhost(ip) && localhost(c.bound.IP)
}

// localhost reports whether an address is one of those that the name localhost has.
func localhost(ip net.IP) bool { return ip.Equal(net.IPv6loopback) || ip.Equal(net.IPv4(127, 0, 0, 1)) }

// ours reports whether this machine has an address.
func ours(ip net.IP) bool {
	local, _ := net.InterfaceAddrs()
	return slices.ContainsFunc(local, func(l net.Addr) bool {
		n, ok := l.(*net.IPNet)
		return ok && n.IP.Equal(ip)
	})
}

// canonical writes an address as memberlist does, so that they can be compared.
func canonical(ip netip.Addr) string { return net.IP(ip.Unmap().AsSlice()).String() }
