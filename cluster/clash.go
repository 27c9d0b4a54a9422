package cluster

import (
	"fmt"
	"time"

	"go.uber.org/zap"
)

// clash looks into a node that gossips with this node's name from another
// address. It may be gone: then it is this node before its restart, which the
// others will believe dead soon. Or it runs: then the younger of the two must
// stop, and as both ask each other for their age, both know who that is, without
// comparing clocks.
func (c *Cluster) clash(peer, gossip string) {
	s := &c.seeds
	s.mu.Lock()
	defer s.mu.Unlock()
	// Others do not know this node while they believe in that one, so it has to
	// tell them more often than usual.
	s.contested = time.Now().Add(contestedFor)
	if s.asking || c.ctx.Err() != nil {
		return
	}
	s.asking = true
	// This is a goroutine of memberlist, which Close does not wait for; it takes
	// the same lock before it waits for ours.
	c.wg.Go(func() {
		c.compare(peer, gossip)
		s.mu.Lock()
		s.asking = false
		s.mu.Unlock()
	})
}

// compare asks who answers at an address, and stops the younger.
func (c *Cluster) compare(peer, gossip string) {
	conn, other, err := c.greet(c.ctx, peer, 0, Calls)
	if err != nil {
		c.log.Debug("a node of this name was here before", zap.String("peer", peer), zap.Error(err))
		return
	}
	conn.Close()
	if other.name != c.o.Name || other.nonce == c.nonce {
		return // another took that address since, or it is an address of ours
	}
	age := c.age()
	if age > other.age || age == other.age && c.nonce > other.nonce {
		c.warnings.error(peer, "another node has this node's name: it must stop, or be started with a name of its own", zap.String("name", c.o.Name))
		return
	}
	c.die(fmt.Errorf("the name %q is used by another node that runs, with peer address %s and gossip address %s: give every node its own --name, or stop that one", c.o.Name, peer, gossip))
}
