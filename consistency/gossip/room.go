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

// trimLeast is how many bytes trim makes room for at least.
const trimLeast = 64 << 10

// trim makes room for what came from others. Who made it does so, too, mostly at
// once, with the same limit; so this is for what is still too much a tick later. All
// may find that at the same time, and each has its own idea of what to evict: so each
// takes its share, and looks again the next time.
func (e *Engine) trim() {
	over := e.replica.Over()
	if over && e.over {
		excess := e.replica.Excess()
		rest := excess - max(excess/int64(max(len(*e.homes.live.Load()), 1)), trimLeast)
		for e.replica.Over() && e.replica.Excess() > rest {
			victim, ok := e.replica.Victim(attune.KeyHash{})
			if !ok {
				break
			}
			e.remove(&victim, 0)
		}
	}
	e.over = over
}

// evict removes exactly version v of a key, if it is still there.
func (e *Engine) evict(h attune.KeyHash, v attune.Version, now int64) {
	e.remove(&attune.Change{Key: attune.Key{Hash: h}, Item: attune.Item{Deleted: true}, Prior: v}, now)
}
