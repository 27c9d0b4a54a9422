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
//	Causal         whoever sees an effect sees its causes, and of each key the newest
//	Eventual       no connection goes back, and nothing is shown that nobody wrote
//	Chains         part of Causal, by what the values themselves say
//	Converged      all controllers hold the same in the end, and nothing newer is lost
//	Settled        what had gone from all controllers does not come back
//	KeptSets       what was acknowledged is still there
//	ExactCounter   no increment was lost or done twice, no result given twice
//	BoundedCounter no increment was done twice
//	OneWinner      no two cas of one version were stored
//
// The levels at which one leader orders all writes are judged by the first four of
// these; those at which replicas answer each for itself, and the newest version
// wins, by the next five. A [Survey] is what those controllers hold when all is
// quiet.
//
// A version is the item's cas unique, which attune hands out in one order for each
// key, and under one leader for all keys. So neither Sequential nor Causal is a
// search: the order of writes is known.
//
// A checker that is asked of a history a good store may produce never complains:
// the tests compare with brute force. What each of them may overlook is said at
// its function.
//
// It knows the store by its wire only, and takes no testing.T: it judges clusters in
// tests, and for whoever asks with a command.
package history
