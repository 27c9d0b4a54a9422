//go:build race

package gossip

// raceEnabled: the race detector makes sync.Pool drop things at random.
const raceEnabled = true
