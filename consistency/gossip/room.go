package gossip

import "github.com/attunekv/attune"

// makeRoom evicts until the replica is within its limit, but not the item
// named, which was just written. It reports false if only that is left.
func (e *Engine) makeRoom(keep attune.KeyHash, now int64) bool {
	for e.replica.Over() {
		victim, ok := e.replica.Victim(keep)
		if !ok {
			return false
		}
		e.remove(&victim, now)
	}
	return true
}

// trim makes room for what came from others. Who made it does so, too, mostly at
// once, with the same limit; so this is for what is still too much a tick later.
func (e *Engine) trim() {
	over := e.replica.Over()
	if over && e.over {
		e.makeRoom(attune.KeyHash{}, e.Now())
		over = false
	}
	e.over = over
}

// evict removes exactly version v of a key, if it is still there.
func (e *Engine) evict(h attune.KeyHash, v attune.Version, now int64) {
	e.remove(&attune.Change{Key: attune.Key{Hash: h}, Item: attune.Item{Deleted: true}, Prior: v}, now)
}
