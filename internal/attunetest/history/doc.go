// Package history records what memcache clients see of a store, and decides
// whether a store that keeps its promises could have shown them that.
//
// A [Recorder] has clients execute a [Workload], one command at a time each, on
// all controllers, and writes down every command with the moments it was called
// and answered. What nobody knows the fate of is written down as [Unknown]: it
// may take effect at any later time, or never. The result is a [History].
//
// The checkers read histories and return an error that tells the story of what
// cannot have happened:
//
//	Linearizable   per key, by search (porcupine), with every command of a Workload
//	FreshReads     by versions alone, in n log n: no read is older than an
//	               acknowledged write, nor than an earlier read
//	VersionOrder   by versions: writes, over all keys, have them in the order of time
//	Sequential     one order of all writes, in which no client ever goes back
//	KeptSets       what was acknowledged is still there
//	ExactCounter   no increment was lost or done twice, no result given twice
//
// A version is the item's cas unique, which attune hands out in one order for
// all keys. So Sequential is not a search: the order of writes is known.
//
// A checker that is asked of a history a good store may produce never complains:
// the tests compare with brute force. What each of them may overlook is said at
// its function.
//
// Tests alone import this package. It knows the store by its wire only.
package history
