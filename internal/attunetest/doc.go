// Package attunetest is what the tests of several packages share: servers that a
// test may mistreat, and small waits and addresses.
//
// [StartMemcached] runs a real memcached, [StartCluster] a cluster of controllers
// of this tree, each a process of its own behind a [Network] that can be cut and
// made slow, lossy or forgetful of order. They return once the very processes
// serve. The test's end kills them; on Linux so does the end of the test's process,
// however it ends. Package history records what clients of a cluster saw and judges
// it.
//
// No code but tests imports this package, and it imports the standard library
// alone, so that any of them can.
package attunetest
