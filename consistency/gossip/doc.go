// Package gossip is the engine in which a node answers for itself: a write is
// acknowledged when it took effect here, a read needs no barrier, and of two versions
// the newest wins. It serves the levels causal and eventual, of a cluster or of one
// controller alone.
//
//	engine.go      Open, Close, and the goroutine that sweeps and flushes
//	write.go       decide, commit, make room; room.go: eviction, within the memory limit
//	clock.go       hybrid logical clock: the versions, and the time expiry goes by
//
// The rest is what a cluster adds. Its heart is the core, one member as a state machine
// without goroutine, network and clock:
//
//	core.go        what a member has; commit: version, number, ring, sketch in one step
//	wire.go        frames; ring.go: the newest changes; dispatch.go: who takes which frame
//	spread.go      streams and digests to peers, resending, the clock's slew
//	deliver.go     changes from others, in turn, and held back until their causes are here;
//	               missing.go: asking for those that others overtook
//	reconcile*.go  finding out what a peer has and this one lacks, and taking it over
//	cut*.go        agreeing on what may be forgotten of the dead
//	acks.go        writes that wait for other members, or for the disk
//	persist.go     the journal: a member with a data-dir is the same after a restart
//	home.go        read-modify-write at the home of a key; forward.go: the way there
//	open.go        a core in the real world: entering a cluster, its goroutines
//	ready.go       from a newcomer to one that serves clients
//	store.go       a store outside this process: filled, tidied up, and what it has lost
//	status.go      what the operator sees
//	simnet.go      cores in a made-up world; simtime.go: what happens in it, and when;
//	               simstore.go: their stores; simulate.go: attune simulate
//
// One set: Engine.Submit has it decided in write.go; core.commit stamps it, applies it to
// the replica, and appends it to the ring; the client is answered. Within a millisecond
// core.flush sends it to the peers, whose core.deliver applies it and tells so in a
// digest. One incr: homes.write sends it to the key's home, which does the same there;
// the answer waits until the change has come back by its stream.
package gossip
