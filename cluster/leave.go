package cluster

import (
	"context"
	"encoding/binary"
	"sync"
	"time"
)

// That a node left, and did not fail, it says itself, to each of the others: memberlist
// keeps to itself which of the two it was. Who is cut off then hears it from the others
// later, in what is exchanged with the lists of members, for as long as one of them
// remembers it. Who has started since has never heard of that node at all.

// Leave tells the others that this node goes on purpose, so that nobody waits to
// see whether it is dead. Only Close should follow. It returns when those heard that can
// be reached, or with an error when ctx ends.
func (c *Cluster) Leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tcpTimeout)
	defer cancel()
	end, _ := ctx.Deadline()
	var wg sync.WaitGroup
	for _, m := range c.Members() {
		if m.Alive && !m.Self {
			wg.Go(func() { _, _ = c.call(ctx, m.ID, callLeave, nil) }) // else it takes this one for failed, until it hears of it
		}
	}
	err := c.list.Load().Leave(max(time.Until(end), time.Millisecond))
	wg.Wait()
	return err
}

// leaves is told by a node that it goes.
func (c *Cluster) leaves(_ context.Context, from uint64, _ []byte) ([]byte, error) {
	c.members.leave(from, time.Now())
	return nil, nil
}

// leave notes that a node said at some time that it leaves.
func (m *members) leave(id uint64, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.byID[id]
	if r == nil || r.left() || !at.After(r.bye) {
		return
	}
	if r.bye = at; r.left() {
		m.changedLocked()
	}
}

// leavers are those that left, as nodes exchange them: each id u64 and for how many
// milliseconds it has been gone, u64.
func (m *members) leavers() (b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, r := range m.byID {
		if r.left() {
			b = binary.LittleEndian.AppendUint64(b, id)
			b = binary.LittleEndian.AppendUint64(b, uint64(time.Since(r.bye).Milliseconds()))
		}
	}
	return b
}

// heardOfLeavers takes what another node's leavers returned. Who was seen alive here
// since has come back.
func (m *members) heardOfLeavers(b []byte) {
	for c := (cursor{b: b}); len(c.b) > 0; {
		id, ago := c.u64(), c.u64()
		if c.short || ago > uint64(forgetAfter.Milliseconds()) {
			return
		}
		m.leave(id, time.Now().Add(-time.Duration(ago)*time.Millisecond))
	}
}
