// Package testbed runs clusters that may be mistreated: controllers and memcacheds,
// each a process of its own, and between the peer ports of the controllers a
// [Network] that can be cut and made slow, lossy or forgetful of order.
//
// [Start] starts a cluster and returns once all of it serves. Whoever started it
// closes it; on Linux the end of this process, however it comes, ends the others.
// What a process did that it should not, such as to panic or to end by itself, is an
// error of [Cluster.Close].
//
// It imports the standard library alone, so that tests of any package may use it.
package testbed
