// Package kvadapter keeps bytes for a controller. Versions are kept elsewhere,
// by the replica above, which stamps each record with the version that wrote it
// and believes a record it reads back only if the stamp is the one it expects.
// So a store may forget, restart empty, or come back with what it held last
// week, and is never believed.
//
// [Backend] is the interface; [Batcher], [BatchWriter], [Bounded], [Scanner], [Lister],
// [Counter], [Statter], [Fleet], [Memory], [Loader], [Syncer] and [Mender] are what some
// backends can do besides. [Open] makes one of its name:
//
//	embedded    the memory of this process
//	memcached   one or many memcached servers, through gomemcache
//	pebble      files on this machine, through Pebble: see pebble.go; pebble_events.go for
//	            full disks and damaged files, pebble_seal.go for a damaged list of files
//
// Package storetest holds every backend to the interface. A new backend is a
// file here, a case in Open, and a test that passes that suite.
//
// # One record
//
// A set reaches the replica, which stages or makes the call: Put with the key,
// its hash, and a [Record]. The memcached backend sends stamp and value as one
// item to the server the key belongs to, together with what others put there. The
// embedded one finds the key's shard by its hash, writes the record over the one
// before it if it fits the same chunk, else into a chunk of its size, and links that
// into the shard's table. A get goes the same way, and appends the value to the
// buffer it was given.
//
// # The embedded store
//
// It is written here because the replica promises that an item is readable until
// the replica itself says otherwise, and no cache library lets its caller be the
// one to say. freecache and bigcache keep a ring that overwrites the oldest when
// it is full; bigcache also lets one of two keys with the same hash replace the
// other, and freecache refuses entries over a 1024th of its size. ristretto may
// drop a Set. otter and theine evict by a policy of their own, and hold each
// record as objects of the Go heap: several times the overhead for a small one,
// and work for the garbage collector that grows with the number of items.
//
// Memory is pages of 40 KiB cut into chunks of one size (embedded_pages.go). A
// record is one chunk, or several if it is long; a value of [Large] or more is
// kept as the slice it came in (embedded_record.go). Chunks are named by 32-bit
// handles, linked into hash tables that grow and shrink by one bucket at a time
// (embedded_table.go). The garbage collector sees a few thousand pages without
// pointers, however many records there are. A record of an 11-byte key and 100
// bytes costs 140 bytes in all.
//
// Chunks of one size are of no use to another, and deleted records leave holes.
// When holes cost more than [Memory] allows, the sparsest pages are emptied:
// their records move to other pages of the size, and the page serves any size or
// goes back to the heap (embedded_drain.go). The Put or Delete that exceeded the
// bound does it, and stops after a few hundred chunks.
package kvadapter
