package gossip

import (
	"errors"

	"github.com/attunekv/attune"
)

// Home is the name of the member that now decides ops on a key which look at what is
// there first, such as an incr.
func (e *Engine) Home(key attune.KeyHash) string {
	return e.nameOf(homeOf(*e.homes.live.Load(), e.core.id, key, nil))
}

// Origin is the name of the member that issued a version; "" if that is none of those
// known, or if the ten bits that a version tells of it fit two of them.
func (e *Engine) Origin(v attune.Version) string {
	const bits = 1<<nodeBits - 1
	k := e.core
	k.mu.Lock()
	defer k.mu.Unlock()
	name := ""
	if uint64(v)&bits == k.id&bits {
		name = e.o.Node
	}
	for id, p := range k.peers {
		if uint64(v)&bits != id&bits {
			continue
		}
		if name != "" {
			return ""
		}
		name = p.name
	}
	return name
}

// nameOf is a member's name, "" if it is none any more.
func (e *Engine) nameOf(id uint64) string {
	if id == e.core.id {
		return e.o.Node
	}
	return e.core.nameOf(id)
}

func (k *core) nameOf(id uint64) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.peers[id]; p != nil {
		return p.name
	}
	return ""
}

// LeaveForGood has Close take the time that it needs, as this member never comes back.
// Errors: why it must not leave now.
func (e *Engine) LeaveForGood() error {
	k := e.core
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.peers {
		if p.alive && p.ready {
			e.forGood.Store(true)
			return nil
		}
	}
	return errors.New("no other controller serves: the data would be gone; to stop this one, send SIGTERM")
}
