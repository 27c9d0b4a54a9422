// Command peers loads the systems that attune's ordered engine is measured
// against: etcd, and redis with WAIT. It prints what `attune bench` prints, so
// that the figures can stand side by side. It is a module of its own to keep
// etcd's client out of attune's.
//
// The loop is closed. What a request is, and what its answer promises:
//
//   - etcd put: in the logs of a majority.
//   - etcd get: linearizable, the default of etcd's client.
//   - etcd serializable-get: what the member asked has, perhaps old.
//   - redis set: SET, answered when WAIT 1 0 is: at least one replica has it too.
//     With a pipeline the batch shares one WAIT. This promises less than a
//     majority's log does: a failover may pick a replica that lacks the write.
//   - redis get: GET at the primary.
//
// A redis load has --conns connections with --pipeline requests in flight on
// each. etcd's client has no pipelines but many requests in flight on a gRPC
// connection: conns times pipeline goroutines share --channels of these to each
// member.
//
// run.sh starts the servers and three controllers on loopback, and loads them in turns.
// twemproxy.sh and alone.sh are apart from this: they compare attune over memcacheds with
// twemproxy over memcacheds, and three controllers with one, by `attune bench` alone.
// common.sh is what all need.
package main
