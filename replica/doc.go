// Package replica is one node's copy of a shard: versions here, bytes there.
//
// For every key it keeps an index entry of one cache line (hash, versions, cas
// unique, flags, expiry, size, recency), and leaves the bytes to a
// [kvadapter.Backend], stamped with the version that wrote them. A backend that
// restarted, evicted, hung or came back with old bytes is therefore noticed:
// bytes whose stamp is not the indexed one are never an answer.
//
// The parts:
//
//	replica.go  Open, Peek, Get; Here, Lacks, Bring: reading in steps that do not wait
//	apply.go    Apply and Flush: versions are compared, nothing is decided
//	merge.go    Merge, MergeAll, Mark: Apply where changes come in any order;
//	            Each, Fetch: what a peer may lack
//	collect.go  Collect, Free: what is no longer needed of the dead
//	settle.go   bytes on their way to a backend that is not in this process
//	hot.go      bytes from such a backend that are read often
//	durable.go  what is different if bytes outlive this process
//	evict.go    Over, Victim, Dead: what should go, as Changes to be stamped
//	index.go    the index: 256 segments of dense pages
//	cut.go      Cut: the index of one moment, written out while it changes
//	install.go  Install: a peer's index in place of this one; Digest compares them
//	save.go     Save: all items of one moment, taken while they change
//	export.go   Export, Import, Restore: bytes from replica to replica
//	watch.go    NewWatch: what takes effect here, for who looks on; look.go: Look, all of one key
//	stats.go    counters; scan.go lists items
//
// One set: the engine stamps a [attune.Change] and calls Apply, which locks the
// key's segment, compares versions and publishes the entry. If the backend is a
// [kvadapter.Memory] its Put happens under the same lock, so bytes and index
// change together. Otherwise the bytes are staged beside the index, readable at
// once, and Settle waits until the backend has them.
//
// One get: Get finds the entry, takes the bytes from the stage, the cache of hot
// ones or the backend, and compares stamps. If they differ and the index has not
// moved on meanwhile, the bytes are lost and the answer is [ErrGone]: the engine
// gets them from a peer, or removes exactly that version and reports a miss.
//
// One new replica of an engine with peers: an old one Cuts its index, where its
// log is then, and writes it; the new one Installs it and applies the log from
// there. The bytes follow, by Export and Import, or singly by Restore, and may
// come from later than the Cut: what the index does not name yet is passed over,
// and the log brings it. Once all of an Export was imported, and the log applied
// as far as it was at the end of that, no bytes are missing that the exporter had.
//
// A replica drops an entry only by a Change, also for expiry and eviction:
// Victim and Dead merely propose. There are no tombstones: a delete removes the
// entry. With a single controller nothing acknowledged before a deletion comes
// back, as its clock issues each version once; a change stamped before and
// applied after it is concurrent with it, and may win. An engine with peers must
// apply changes in one order everywhere, as a log has them, or remember a
// deletion's version until all have seen it.
//
// # Tombstones
//
// With [Options.Tombstones] it is remembered, and Merge takes the place of
// Apply. Replicas hear of changes in different orders, more than once, and of
// some only in a bulk of all that they lack. So what becomes of a key must follow
// from the changes alone: every entry has a [Mark], and the newest wins. There
// are four ways to go:
//
//   - A delete has a version of its own, and its entry stays, dead.
//   - An eviction, for room or because the bytes are lost, is no write, and must
//     never beat one. It says that exactly one version is dead: the entry keeps
//     that version, marked. Replicas that evict the same version each for itself
//     have the same entry.
//   - An expired item needs no change: its expiry is on all replicas, and each
//     frees the bytes when its clock is there. The entry stays what it was, for if
//     it went, an older version could come back from where it is still held.
//   - A flush is one version, the floor, below which nothing counts; entries below
//     it are no entries, and go whenever they are met.
//
// Dead entries are dropped by a cut: the engines agree on a version up to which
// all replicas have everything. Then [Replica.Collect] drops what is dead up to
// there, by the cut alone and no clock, and what still comes with such a version
// for a key without an entry can only be of the dead, and is refused. Until then
// they cost a cache line each, and evicting items gives back their bytes only.
//
// The index may know of items that have no bytes here: it heard of them by their
// hash, or of a touch of a version that never came. Reading them is ErrGone, and
// Restore brings the bytes.
package replica
