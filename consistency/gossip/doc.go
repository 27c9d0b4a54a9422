// Package gossip is the engine in which a node answers for itself: a write is
// acknowledged when it took effect here, a read needs no barrier, and of two
// versions the newest wins. It serves the level eventual of one controller;
// spreading changes to peers is not part of it yet.
//
//	clock.go   hybrid logical clock: the versions, and the time expiry goes by
//	engine.go  Open, Close, and the goroutine that sweeps and flushes
//	write.go   Write: decide, stamp, apply, make room
//	room.go    eviction, to stay within the replica's memory limit
//
// One incr: Write reads the item from the replica, [attune.Op.Decide] makes of
// both a change that names the version it was decided on, the clock stamps it,
// and Replica.Apply accepts it unless the key moved on; then it is decided
// again. With a backend outside this process the reply waits in Replica.Settle
// until the bytes are there. At last the replica proposes victims while it is
// over its limit.
package gossip
