package attune

// Verb says what an Op does. Dialects differ in how they spell it, not in what
// it means.
type Verb uint8

const (
	// Get reads an item. With Lease set in Mode it also follows meta's lease
	// flags, and with Retime it is gat: a touch that returns the item.
	Get Verb = iota
	Set
	Add
	Replace
	Append
	Prepend
	Delete
	Incr
	Decr
	Touch
	// Flush kills every item written before Exptime comes (at once if 0).
	Flush
)

// Mode refines a Verb. Each bit names the field it makes valid.
type Mode uint16

const (
	// WantValue: a Get's result needs the value's bytes, not only its description.
	WantValue Mode = 1 << iota
	// IfCAS: fail with Exists unless the item's cas unique is Compare. Set and
	// Replace are cas then, and fail with NotFound if there is no item. Append,
	// Prepend, Incr and Decr take a Compare of 0 for none. Add ignores it.
	IfCAS
	// ChooseCAS: the item's new cas unique, if it gets one, is CAS (meta flag E).
	// A CAS of 0 chooses nothing.
	ChooseCAS
	// Retime: set the item's exptime from Exptime (gat; meta flag T on mg, md, ma).
	Retime
	// Vivify: on a miss create the item, with exptime VivifyTTL: empty for Get,
	// with Value and Flags for Append and Prepend, Initial for Incr and Decr (meta
	// flag N; binary incr with an exptime other than all ones).
	Vivify
	// Lease: the read takes part in meta's anti-stampede protocol: the first to
	// read a stale item, or one created by Vivify, or one with less than
	// RecacheTTL seconds left, wins; the others learn that somebody did.
	Lease
	// Recache: with Lease, RecacheTTL is valid (meta flag R).
	Recache
	// Invalidate: md marks the item stale instead of deleting it; ms with a
	// Compare lower than the item's cas unique stores, and stays stale (I).
	Invalidate
	// Clear: md keeps the item and its cas unique, with an empty value and what
	// Flags and, with Retime, Exptime say (x).
	Clear
	// NoBump: do not count the read as a use (mg without h, l, t: still counts;
	// set only where the dialect says so).
	NoBump
	// IfMatch is meta mg's C: a hit whose cas unique is Compare needs no value.
	IfMatch
)

// Op is one thing a client asked of one key. Its slices belong to the caller
// and must stay as they are until the Op's Result is read.
type Op struct {
	Verb       Verb
	Mode       Mode
	Flags      uint32 // the client's: Set, Add, Replace, Append with Vivify, Clear
	Key        Key
	Value      []byte
	Exptime    int64  // seconds as on the wire: see Deadline
	VivifyTTL  int64  // seconds as on the wire
	RecacheTTL int64  // seconds
	Compare    uint64 // with IfCAS, IfMatch
	CAS        uint64 // with ChooseCAS
	Delta      uint64 // Incr, Decr
	Initial    uint64 // Incr, Decr with Vivify
}

// Has reports whether all bits of m are set.
func (m Mode) Has(bits Mode) bool { return m&bits == bits }
