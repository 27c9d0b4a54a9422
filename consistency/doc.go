// Package consistency holds the promise a cluster makes to its clients: the
// [Level], and the [Engine] that keeps one.
//
// A level is two answers: when may a write be acknowledged, and what must this
// node's replica have reached before it answers a read.
//
//	             a write is acknowledged when          a read waits for
//	eventual     it took effect here                   nothing
//	causal       so, and is queued to peers with       nothing: a connection stays on one
//	             what it depends on                    replica, which only moves forward
//	sequential   a quorum has it and it is applied     this connection's own writes, and the
//	             where it was decided                  newest it has seen; at first also a
//	                                                   read index, if one is to be had soon
//	linearizable so                                    a read index confirmed after it began
//
// [Open] serves linearizable and sequential by package ordered, in one log; they
// differ in how reads are answered, so controllers of both may be in one cluster.
// It serves eventual by package gossip, on one controller alone in this version,
// and causal not at all.
//
// One write: the controller hands Engine.Write what a connection has pipelined;
// the engine decides each op on what the replica holds, or has it decided where
// that is done, stamps the change with a version, applies it, and fills in the
// results. One read: Engine.Barrier, then the replica itself. A read that may
// change the item goes through Write like a write, and one that finds its bytes
// lost (replica.ErrGone) through Recover. An engine that must hear from others
// first answers later, so that a connection waiting for it costs no goroutine:
// see [Engine].
//
// What only engines have whose replicas agree is in [Group]: who leads, how far
// the log is, and going on without a quorum.
//
// The engines do not import this package, so that Open can import them: an
// adapter per engine in open.go is what implements [Engine].
package consistency
