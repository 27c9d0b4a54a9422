package attune

// Version orders the writes to a key across the cluster. Versions are issued by
// a hybrid logical clock: 42 bits of milliseconds since 2020-01-01 UTC, a
// 12-bit counter, a 10-bit node hash. A key's version only grows, also across
// restarts and through deletion. Zero means absent.
type Version uint64

// AnyVersion as [Change.Prior] makes a change blind: it applies over whatever
// is there, provided its own version is newer.
const AnyVersion = ^Version(0)

// KeyHash is 128 bits of keyed hash over a key's text: what an index keeps of a
// key. Two keys of one cluster never share it, for all practical purposes.
type KeyHash [2]uint64

// Key names an item. Text may be nil where a replica acts on its own index
// (expiry, eviction), which knows hashes only. Hash is filled in by the router,
// once per command.
type Key struct {
	Text []byte
	Hash KeyHash
}

// Item is one key's value and everything known of it.
type Item struct {
	// Value is nil when only the index was read; Size is right either way.
	// It is never modified in place by anybody who is handed an Item.
	Value []byte
	Size  int // of the value, in bytes

	Flags   uint32 // the client's, stored verbatim
	Expires int64  // unix milliseconds from which the item is dead; 0 is never

	// Version is that of the newest change to the key, a touch included.
	Version Version
	// Stored is the version of the change that wrote Value, and the stamp the
	// bytes carry in their store. A touch makes a new Version and keeps Stored,
	// so no bytes move. In a Change not stamped yet, 0 means "new bytes".
	Stored Version
	// CAS is the unique that clients are shown and compare. It equals Stored
	// unless the item was invalidated or cleared since, or a client chose it
	// (meta flag E).
	// A touch keeps it, as memcached does. In a Change not stamped yet, 0 means
	// "as Version".
	CAS uint64

	Deleted bool // a tombstone: a version and no value
	Stale   bool // invalidated (meta flag I), still served, marked X
	Leased  bool // some client was told to refresh it (meta flag W)

	// What this replica alone remembers, never replicated.
	Fetched  bool  // read since it was stored here
	Accessed int64 // unix seconds of the last read or write here
}

// Live reports whether the item may be served at now (unix milliseconds).
func (it *Item) Live(now int64) bool {
	return it.Version != 0 && !it.Deleted && (it.Expires == 0 || it.Expires > now)
}

// Change is a decided operation: what every replica does to one key.
type Change struct {
	Key  Key
	Item Item // Deleted for a delete, expiry or eviction
	// Prior is the Version the decision was made on: 0 for a key that was
	// absent or deleted, AnyVersion for a blind write. An expired item still in
	// the index is decided on as absent, yet Prior names its version.
	Prior Version
}

// Stamp gives the change its version, once, before it is applied or sent.
func (c *Change) Stamp(v Version) {
	c.Item.Version = v
	if c.Item.Deleted {
		return
	}
	if c.Item.Stored == 0 {
		c.Item.Stored = v
	}
	if c.Item.CAS == 0 {
		c.Item.CAS = uint64(v)
	}
}

// Status is the outcome of an Op.
type Status uint8

const (
	// None is the zero Status; no finished Op has it.
	None Status = iota
	// Hit: a read found the item, or a verb that returns the item succeeded.
	Hit
	// Miss: a read found nothing (classic: silence, meta: EN).
	Miss
	// Stored: a set, add, replace, append, prepend or cas took effect.
	Stored
	// NotStored: add found a live item, or replace, append, prepend found none.
	NotStored
	// Exists: the item's cas unique is not the one given.
	Exists
	// NotFound: cas, delete, touch, incr or decr found no live item.
	NotFound
	// Deleted: a delete took effect (meta: HD).
	Deleted
	// Touched: a touch took effect.
	Touched
	// Counted: incr or decr took effect; Result.Number is the new value.
	Counted
	// Flushed: flush_all took effect or is scheduled.
	Flushed
	// NonNumeric: incr or decr on a value that is not a decimal of 64 bits.
	NonNumeric
	// TooLarge: the value would exceed the item size limit.
	TooLarge
	// OutOfMemory: the store has no room for the item, even after eviction.
	OutOfMemory
	// Failed: Result.Err says why; the op may or may not have happened.
	Failed
)

// Changed reports whether an op with this outcome changed something, or may have:
// a Hit is counted among them, as one that retimes is.
func (s Status) Changed() bool {
	switch s {
	case Hit, Stored, Deleted, Touched, Counted, Flushed:
		return true
	}
	return false
}

// Result answers one Op.
type Result struct {
	Status Status
	// Item is the item as the reply describes it: as it is after the Op, except
	// that Fetched and Accessed are from before it. Item.Value is set only when
	// the Op wanted it, and is valid until the next call with the same Result.
	Item   Item
	Number uint64 // with Counted
	// Before is Item.Expires as it was before a Get, Incr or Decr: what meta's t
	// tells if it is written before the T or N that changes it.
	Before int64
	// Absent says that the item a Hit or Counted describes was just created by
	// the Op (meta flag N): a miss for the statistics.
	Absent bool
	// Won, Stale and Taken are the meta reply flags W, X and Z.
	Won, Stale, Taken bool
	Err               error // with Failed
}
