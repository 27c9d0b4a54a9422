package cluster

import (
	"time"

	"go.uber.org/zap"
)

// followEvery is how often this machine's address is looked at.
const followEvery = time.Second

// mover is what the goroutine of join knows of a change of address.
type mover struct {
	adrift bool      // gossip was closed, and could not be opened again
	since  time.Time // of the last change; zero when it is over
}

// follow has this node gossip from another address if the one that others were told
// is this machine's no more, as when a container was taken from its network and
// connected again. memberlist cannot change the address of a node that runs, so it is
// started anew. To others this stays the same node, with its name and its id: they
// believe the new address when they have missed the old one.
//
// Only an address that was chosen here can be chosen again, not one that was set. True:
// this node has moved, and should look for the others.
func (c *Cluster) follow(m *mover) (moved bool) {
	if !m.since.IsZero() && time.Since(m.since) > contestedFor {
		m.since = time.Time{}
		// Those who died meanwhile the new memberlist has never heard of.
		c.members.mournOthers(c.list.Load().Members())
	}
	was := c.place.Load().ip
	if !c.bound.IP.IsUnspecified() || c.o.GossipAdvertise != "" || !m.adrift && ours(was) {
		return false
	}
	now, _, err := c.transport.FinalAdvertiseAddr("", 0)
	if err != nil || !m.adrift && now.Equal(was) {
		return false // it has none yet
	}
	c.log.Warn("this machine has another address than before: telling the others", zap.Stringer("was", was), zap.Stringer("is", now))
	m.adrift = true
	c.list.Load().Shutdown()
	if err := c.openGossip(); err != nil {
		c.log.Error("gossip is closed until this succeeds; trying again", zap.Error(err))
		return false
	}
	m.adrift, m.since = false, time.Now()
	c.seeds.mu.Lock()
	c.seeds.contested = m.since.Add(contestedFor) // so look asks also those that were known before
	c.seeds.mu.Unlock()
	c.linksMu.RLock()
	defer c.linksMu.RUnlock()
	for _, l := range c.links {
		l.again() // connections from the old address are dead
	}
	return true
}
