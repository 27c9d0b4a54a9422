package attune

import (
	"math"
	"strconv"
)

// longestTTL is the largest exptime, in seconds, that counts from now: 30 days.
// A larger one is unix time.
const longestTTL = 60 * 60 * 24 * 30

// Deadline turns an exptime as it is on the wire, in seconds, into an
// [Item.Expires] in unix milliseconds: 0 is never, a negative one is dead
// already, one of up to 30 days counts from now (unix milliseconds), and a
// larger one is unix time.
func Deadline(exptime, now int64) int64 {
	switch {
	case exptime == 0:
		return 0
	case exptime < 0:
		return 1
	case exptime <= longestTTL:
		return now + exptime*1000
	default:
		return min(exptime, math.MaxInt64/1000) * 1000
	}
}

// None reports whether c is the Change of a decision that changes nothing. Any
// other names a key.
func (c *Change) None() bool { return c.Key.Text == nil && c.Key.Hash == KeyHash{} }

// Stamped completes r once c, which was decided together with it and is not
// None, has its version: the item a reply describes then shows its unique.
func (r *Result) Stamped(c *Change) {
	r.Item.Version, r.Item.Stored, r.Item.CAS = c.Item.Version, c.Item.Stored, c.Item.CAS
}

// NeedsValue reports whether [Op.Decide] needs the item's Value, and not only
// what an index knows.
func (op *Op) NeedsValue() bool {
	switch op.Verb {
	case Append, Prepend, Incr, Decr:
		return true
	}
	return op.Mode.Has(WantValue)
}

// Blind reports whether [Op.Decide] decides the same whatever the item is. Its
// Change then has [AnyVersion] as Prior, and nobody needs to look the item up.
func (op *Op) Blind() bool { return op.Verb == Set && !op.Mode.Has(IfCAS) }

// Decide says what op does to its key, and what the client is told, given the
// item cur at the moment now (unix milliseconds). It is a pure function: it
// modifies nothing it is given but buf, and reads no clock.
//
// cur is the item as indexed, with its Value if op.NeedsValue. An expired item,
// a tombstone and the zero Item all count as absent. cur may be nil if op.Blind.
//
// The Change is None if nothing changes: a hit, a miss, a refusal. Otherwise it
// is still to be stamped, and its Item has new bytes exactly if Stored is 0; if
// not, Value is nil and the bytes stay what they are. A Value may be op's, so it
// is valid as long as op is, or be in buf: a value that must be built (a
// counter's digits, an append) is put there if its capacity suffices, else into
// memory of its own. buf must not overlap cur.Value.
//
// The Result describes the item as it is after the Change, which
// [Result.Stamped] completes. Only a Get with WantValue has a Value, never nil,
// which is cur's; it has none if IfMatch holds. Decide knows no size limit:
// whoever has one compares it with Change.Item.Size.
//
// Decide panics on Flush, which is not about one key: engines carry it out
// themselves.
func (op *Op) Decide(cur *Item, now int64, buf []byte) (c Change, r Result) {
	var item *Item // cur as far as it counts; nil is absent
	if !op.Blind() && cur.Live(now) {
		item = cur
	}
	changes := false
	switch op.Verb {
	case Get:
		changes = op.get(item, now, &c.Item, &r)
	case Set, Add, Replace:
		changes = op.store(item, now, &c.Item, &r)
	case Append, Prepend:
		changes = op.extend(item, now, buf, &c.Item, &r)
	case Delete:
		changes = op.remove(item, now, &c.Item, &r)
	case Incr, Decr:
		changes = op.count(item, now, buf, &c.Item, &r)
	case Touch:
		if item == nil {
			r.Status = NotFound
			break
		}
		c.Item = item.unread()
		c.Item.Expires = Deadline(op.Exptime, now)
		r.Status = Touched
		changes = true
	default:
		panic("attune: Decide: not a verb about one key: " + strconv.Itoa(int(op.Verb)))
	}
	if !changes {
		return c, r
	}
	c.Key = op.Key
	switch {
	case op.Blind():
		c.Prior = AnyVersion
	case !cur.Deleted:
		c.Prior = cur.Version // also of one that expired, which is replaced
	}
	if op.Verb != Get { // what a read shows is partly from before
		r.Item = c.Item
		r.Item.Value = nil
	}
	return c, r
}

// unread is the item as a Change has it that moves no bytes: without them, and
// without what one replica alone remembers.
func (it *Item) unread() Item {
	kept := *it
	kept.Value = nil
	kept.Version = 0
	kept.Fetched, kept.Accessed = false, 0
	return kept
}

// chosen is the unique an item gets when it gets a new one: 0, the version, if
// the client did not choose it.
func (op *Op) chosen() uint64 {
	if op.Mode.Has(ChooseCAS) {
		return op.CAS
	}
	return 0
}

// differs reports whether IfCAS refuses to go on from item.
func (op *Op) differs(item *Item) bool { return op.Mode.Has(IfCAS) && op.Compare != item.CAS }

// get decides get, gat and mg. A new exptime and a lease are no new value, so
// the item keeps its unique, even from a client that chose one: that is for an
// item the read creates.
func (op *Op) get(item *Item, now int64, to *Item, r *Result) (changes bool) {
	switch {
	case item != nil:
		r.Item = *item
		r.Before = item.Expires
		if op.Mode.Has(Retime) {
			r.Item.Expires = Deadline(op.Exptime, now)
			changes = true
		}
		if op.Mode.Has(Lease) {
			r.Stale, r.Taken = item.Stale, item.Leased
			if !item.Leased && (item.Stale || op.ages(item, now)) {
				r.Won, r.Item.Leased = true, true
				changes = true
			}
		}
		if changes {
			*to = r.Item.unread()
		}
	case op.Mode.Has(Vivify):
		*to = Item{Value: []byte{}, Expires: Deadline(op.VivifyTTL, now), CAS: op.chosen(), Leased: true}
		r.Item = *to
		r.Item.Accessed = now / 1000
		r.Absent, r.Won = true, true
		changes = true
	default:
		r.Status = Miss
		return false
	}
	r.Status = Hit
	switch {
	case !op.Mode.Has(WantValue), op.Mode.Has(IfMatch) && r.Item.CAS == op.Compare && op.Compare != 0:
		r.Item.Value = nil
	case r.Item.Value == nil:
		r.Item.Value = []byte{}
	}
	return changes
}

// ages reports whether item has less than RecacheTTL left. As in memcached,
// whose clock ticks in seconds, one stored with n seconds to live does not have
// less than n at once: the time left is rounded up, as it is for flag t. It is
// the time left before the read itself prolongs it, or R could not be used
// together with T.
func (op *Op) ages(item *Item, now int64) bool {
	return op.Mode.Has(Recache) && item.Expires != 0 && item.Expires <= Deadline(op.RecacheTTL, now)-1000
}

// store decides set, cas, add, replace and ms without append. Whatever it
// stores is fresh: neither stale nor leased.
func (op *Op) store(item *Item, now int64, to *Item, r *Result) bool {
	expires, stale, leased := Deadline(op.Exptime, now), false, false
	switch {
	case op.Verb == Add:
		if item != nil {
			r.Status = NotStored
			return false
		}
	case op.Mode.Has(IfCAS): // set and replace are both cas then
		switch {
		case item == nil:
			r.Status = NotFound
			return false
		case op.Compare == item.CAS:
		case op.Mode.Has(Invalidate) && op.Compare != 0 && op.Compare < item.CAS:
			// Made from an older value than the one that was invalidated, so it is
			// better than what is there and still not good: who holds the lease
			// keeps it, and the time the stale item has to live is not prolonged.
			expires, stale, leased = item.Expires, true, item.Leased
		default:
			r.Status = Exists
			return false
		}
	case op.Verb == Replace && item == nil:
		r.Status = NotStored
		return false
	}
	*to = Item{
		Value: op.Value, Size: len(op.Value), Flags: op.Flags, Expires: expires,
		CAS: op.chosen(), Stale: stale, Leased: leased,
	}
	r.Status = Stored
	return true
}

// extend decides append and prepend, which keep flags and exptime.
func (op *Op) extend(item *Item, now int64, buf []byte, to *Item, r *Result) bool {
	switch {
	case item == nil && !op.Mode.Has(Vivify):
		r.Status = NotStored
		return false
	case item == nil:
		*to = Item{Value: op.Value, Flags: op.Flags, Expires: Deadline(op.VivifyTTL, now)}
	case op.Compare != 0 && op.differs(item):
		r.Status = Exists
		return false
	default:
		head, tail := item.Value, op.Value
		if op.Verb == Prepend {
			head, tail = tail, head
		}
		value := append(room(buf, len(head)+len(tail)), head...)
		*to = Item{Value: append(value, tail...), Flags: item.Flags, Expires: item.Expires}
	}
	to.Size = len(to.Value)
	to.CAS = op.chosen()
	r.Status = Stored
	return true
}

// remove decides delete and md.
func (op *Op) remove(item *Item, now int64, to *Item, r *Result) bool {
	switch {
	case item == nil:
		r.Status = NotFound
		return false
	case op.differs(item):
		r.Status = Exists
		return false
	}
	r.Status = Deleted
	if op.Mode&(Clear|Invalidate) == 0 {
		*to = Item{Deleted: true}
		return true
	}
	*to = item.unread()
	if op.Mode.Has(Clear) {
		// The item is a new one but for its unique, so it has no exptime unless
		// the client gives one.
		*to = Item{Value: []byte{}, Flags: op.Flags, CAS: item.CAS}
	}
	if op.Mode.Has(Invalidate) {
		to.Stale, to.Leased = true, false
		to.CAS = 0
	}
	if op.Mode.Has(Retime) {
		to.Expires = Deadline(op.Exptime, now)
	}
	if op.Mode.Has(ChooseCAS) {
		to.CAS = op.CAS
	}
	return true
}

// count decides incr, decr and ma.
func (op *Op) count(item *Item, now int64, buf []byte, to *Item, r *Result) bool {
	switch {
	case item == nil && !op.Mode.Has(Vivify):
		r.Status = NotFound
		return false
	case item == nil:
		to.Expires = Deadline(op.VivifyTTL, now)
		r.Number, r.Absent = op.Initial, true
	default:
		n, ok := decimal(item.Value)
		switch {
		// In memcached's order: an empty value is no number whatever its unique
		// is, one that must be read to be refused is compared first.
		case len(item.Value) > 0 && op.Compare != 0 && op.differs(item):
			r.Status = Exists
			return false
		case !ok:
			r.Status = NonNumeric
			return false
		case op.Verb == Incr:
			n += op.Delta
		default:
			n -= min(n, op.Delta)
		}
		*to = item.unread()
		to.Stored = 0
		if op.Mode.Has(Retime) {
			to.Expires = Deadline(op.Exptime, now)
		}
		r.Number, r.Before = n, item.Expires
	}
	to.CAS = op.chosen()

	var digits [20]byte // of the largest number
	number := strconv.AppendUint(digits[:0], r.Number, 10)
	if len(number) > to.Size {
		// One that outgrows its value becomes a new item in memcached, and that
		// is fresh; a shorter one is written over the old, which is not.
		to.Size = len(number)
		to.Stale, to.Leased = false, false
	}
	value := append(room(buf, to.Size), number...)
	for len(value) < to.Size {
		value = append(value, ' ')
	}
	to.Value = value
	r.Status = Counted
	return true
}

// room returns an empty slice with capacity for n bytes, in buf if it has it. It
// is never nil: an empty value is still one.
func room(buf []byte, n int) []byte {
	if buf == nil || n > cap(buf) {
		return make([]byte, 0, n)
	}
	return buf[:0]
}

// decimal reads a counter the way C's strtoull and memcached's check after it
// do: blanks, a sign, digits; then the end, or a blank or NUL and anything. A
// negative number is accepted where it wraps to less than 2^63.
func decimal(v []byte) (n uint64, ok bool) {
	i := 0
	for i < len(v) && blank(v[i]) {
		i++
	}
	negative := i < len(v) && v[i] == '-'
	if negative || i < len(v) && v[i] == '+' {
		i++
	}
	first := i
	for ; i < len(v) && '0' <= v[i] && v[i] <= '9'; i++ {
		digit := uint64(v[i] - '0')
		if n > (math.MaxUint64-digit)/10 {
			return 0, false
		}
		n = n*10 + digit
	}
	if i == first || i < len(v) && v[i] != 0 && !blank(v[i]) {
		return 0, false
	}
	if negative {
		n = -n
		return n, int64(n) >= 0
	}
	return n, true
}

func blank(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }
