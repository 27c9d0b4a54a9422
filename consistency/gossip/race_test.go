//go:build race

package gossip

// raceEnabled: the race detector makes sync.Pool drop things at random, and all of it
// ten times slower. A test that leaves something out for it is named in the Makefile,
// at WITHOUT_RACE, too.
const raceEnabled = true
