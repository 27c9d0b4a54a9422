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
//	             where it was decided                  newest it has seen
//	linearizable so                                    a read index confirmed after it began
//
// [Open] serves eventual, by package gossip; the others need a cluster, which
// this version does not have.
//
// One write: the controller hands Engine.Write what a connection has pipelined;
// the engine decides each op on what the replica holds, stamps the change with a
// version, applies it, and fills in the results. One read: Engine.Barrier, then
// the replica itself. A read that finds its bytes lost (replica.ErrGone), or that
// may change the item, goes through Write like a write.
//
// The engines do not import this package, so that Open can import them: an
// adapter per engine in open.go is what implements [Engine].
package consistency
