// Package attune holds the words every other package shares: what a client
// asked ([Op]), what replicas do about it ([Change]), what the client is told
// ([Result]), and the [Item] and [Version] all three speak of.
//
// Two ideas keep the system small. A consistency level is two answers: when
// may a write be acknowledged, and what must a replica have reached before it
// answers a read. And an operation is decided once, by [Op.Decide], into a
// Change that names the version it was decided on; replicas compare versions
// and never decide again. So the log and gossip carry the same Change into the
// same replica, and every memcache verb is one pure function.
//
// A command travels top to bottom, once:
//
//	controller   reads the socket, calls protocol to make an Op of the bytes
//	consistency  Engine.Write decides the Op and orders the Change,
//	             or Engine.Barrier says when a read may be answered here
//	replica      compares versions, keeps the index entry
//	kvadapter    keeps the bytes
//
// This package imports only the standard library, starts nothing, and reads no
// clock.
package attune
