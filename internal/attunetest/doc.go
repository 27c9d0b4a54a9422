// Package attunetest is what the tests of several packages share: a real
// memcached that a test may mistreat, and small waits and addresses.
//
// [StartMemcached] finds the program, picks a free port and returns once that
// very process serves on it. The test's end kills it; on Linux so does the end
// of the test's process, however it ends. No code but tests imports this
// package, and it imports the standard library alone, so that any of them can.
package attunetest
