// Package attunetest is what the tests of several packages share: servers that a
// test may mistreat, and small waits and addresses.
//
// [StartMemcached] runs a real memcached, [StartCluster] a cluster of controllers
// of this tree. They are those of package testbed, whose failures fail the test, and
// whom the test's end kills. Package history records what clients of a cluster saw
// and judges it.
//
// No code but tests imports this package, and it imports the standard library
// and testbed alone, so that any of them can.
package attunetest
