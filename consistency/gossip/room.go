package gossip

import "github.com/attunekv/attune"

// roomTries is how many victims in a row may be the item to be kept before the
// engine believes that there is no other.
const roomTries = 64

// makeRoom evicts until the replica is within its limit, but not the item
// named, which was just written. It reports false if only that is left.
func (e *Engine) makeRoom(keep attune.KeyHash, now int64) bool {
	for kept := 0; e.replica.Over(); {
		victim, ok := e.replica.Victim()
		if !ok {
			return false
		}
		if victim.Key.Hash == keep {
			if kept++; kept > roomTries || e.replica.Len() == 1 {
				return false
			}
			continue
		}
		e.remove(&victim, now)
	}
	return true
}

// evict removes exactly version v of a key, if it is still there.
func (e *Engine) evict(h attune.KeyHash, v attune.Version, now int64) {
	e.remove(&attune.Change{Key: attune.Key{Hash: h}, Item: attune.Item{Deleted: true}, Prior: v}, now)
}
