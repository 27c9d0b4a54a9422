//go:build race

package gossip

// raceEnabled: the race detector makes sync.Pool drop things at random, and all of it
// ten times slower.
const raceEnabled = true
