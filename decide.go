package attune

import "strconv"

// relativeLimit is the exptime, in seconds, above which it is a moment and not
// a duration: 30 days.
const relativeLimit = 60 * 60 * 24 * 30

// longDead is the Expires of an item that was stored already expired.
const longDead = 1

// Deadline turns an exptime as on the wire, in seconds, into an [Item.Expires]:
// 0 is never, a negative one is dead already, one of up to 30 days counts from
// now (unix milliseconds), a larger one is unix time.
func Deadline(exptime, now int64) int64 {
	switch {
	case exptime == 0:
		return 0
	case exptime < 0:
		return longDead
	case exptime <= relativeLimit:
		return now + exptime*1000
	}
	const last = 1<<63 - 1
	return min(exptime, last/1000) * 1000
}

// None reports whether the decision was to change nothing.
func (c *Change) None() bool {
	return c.Prior == 0 && c.Item.Version == 0 && !c.Item.Deleted && c.Key.Text == nil && c.Key.Hash == KeyHash{}
}

// NeedsValue reports whether Decide needs the item's bytes.
func (op *Op) NeedsValue() bool {
	switch op.Verb {
	case Append, Prepend, Incr, Decr:
		return true
	}
	return op.Mode.Has(WantValue)
}

// Blind reports whether the decision is the same whatever the item is, so that
// it need not be looked up.
func (op *Op) Blind() bool {
	return op.Verb == Set && op.Mode&(IfCAS|Invalidate) == 0
}

// ReadOnly reports whether the op can never change anything.
func (op *Op) ReadOnly() bool {
	return op.Verb == Get && op.Mode&(Lease|Retime|Vivify) == 0
}

// Stamped completes a result that describes the item a change made, once the
// change has its version.
func (r *Result) Stamped(c *Change) {
	if r.Item.Version == 0 && !c.Item.Deleted {
		r.Item.Version, r.Item.Stored, r.Item.CAS = c.Item.Version, c.Item.Stored, c.Item.CAS
	}
}

// Decide says what op does to the item cur at the moment now (unix
// milliseconds), and what the client is told. It is pure: it reads no clock and
// keeps and modifies nothing it is given, except that a value it must build
// (digits of a counter, both parts of an append) is put into buf[:0] if it fits
// there, and into memory of its own otherwise.
//
// cur is the item as indexed, with its Value if op.NeedsValue: it may be
// expired, a tombstone, or zero for a key without entry. A Change that is None
// means nothing changes. Flush is not about one key and must not be given.
//
// The Change has no version yet; see [Change.Stamp]. Its Item.Stored and
// Item.CAS are 0 where they follow from that version. Where the Result describes
// an item as it is after the change, [Result.Stamped] completes it.
func (op *Op) Decide(cur *Item, now int64, buf []byte) (Change, Result) {
	d := decision{op: op, cur: cur, now: now, live: cur.Live(now)}
	switch op.Verb {
	case Get:
		return d.get()
	case Touch:
		return d.touch()
	case Delete:
		return d.delete()
	case Incr, Decr:
		return d.count(buf)
	case Flush:
		panic("attune: Decide on Flush, which is not about one key")
	}
	return d.store(buf)
}

// decision is the state of one Decide.
type decision struct {
	op   *Op
	cur  *Item
	now  int64
	live bool
}

// change begins a Change of the key into it.
func (d *decision) change(it Item) Change {
	prior := d.cur.Version
	switch {
	case d.op.Blind():
		prior = AnyVersion
	case d.cur.Deleted:
		prior = 0
	}
	it.Version = 0
	it.Fetched, it.Accessed = false, 0
	if d.op.Mode.Has(ChooseCAS) && !it.Deleted {
		it.CAS = d.op.CAS
	}
	return Change{Key: d.op.Key, Item: it, Prior: prior}
}

// kept is the current item with its bytes and unique, to be changed in other
// respects. Its value does not travel: replicas have it.
func (d *decision) kept() Item {
	it := *d.cur
	it.Value = nil
	return it
}

// after is a result that describes it as it is once the change took effect,
// and was read as cur says.
func (d *decision) after(status Status, c *Change) Result {
	it := c.Item
	it.Fetched, it.Accessed = d.cur.Fetched, d.cur.Accessed
	if !d.live {
		it.Fetched, it.Accessed = false, d.now/1000
	}
	return Result{Status: status, Item: it}
}

// shown is the current item as a reply may show it.
func (d *decision) shown() Item {
	it := *d.cur
	if !d.op.Mode.Has(WantValue) {
		it.Value = nil
	}
	return it
}

func (d *decision) get() (Change, Result) {
	op := d.op
	if !d.live {
		if !op.Mode.Has(Vivify) {
			return Change{}, Result{Status: Miss}
		}
		// Created empty, and its creator told to fill it.
		c := d.change(Item{Value: []byte{}, Expires: Deadline(op.VivifyTTL, d.now), Leased: true})
		res := d.after(Hit, &c)
		res.Absent, res.Won = true, true
		return c, res
	}
	it := d.kept()
	// Only an exptime or a lease is written, so the unique stays as it is even
	// if the client chose one: that is for items it creates.
	changed := false
	if op.Mode.Has(Retime) {
		it.Expires = Deadline(op.Exptime, d.now)
		changed = true
	}
	res := Result{Status: Hit, Item: d.shown()}
	res.Item.Expires = it.Expires
	if op.Mode.Has(Lease) {
		res.Stale, res.Taken = it.Stale, it.Leased
		recache := op.Mode.Has(Recache) && it.Expires != 0 && it.Expires < d.now+op.RecacheTTL*1000
		if !it.Leased && (it.Stale || recache) {
			res.Won = true
			it.Leased = true
			changed = true
		}
	}
	if !changed {
		return Change{}, res
	}
	c := d.change(it)
	c.Item.CAS = d.cur.CAS
	return c, res
}

func (d *decision) touch() (Change, Result) {
	if !d.live {
		return Change{}, Result{Status: NotFound}
	}
	it := d.kept()
	it.Expires = Deadline(d.op.Exptime, d.now)
	res := Result{Status: Touched, Item: d.shown()}
	res.Item.Expires = it.Expires
	return d.change(it), res
}

func (d *decision) delete() (Change, Result) {
	op := d.op
	switch {
	case !d.live:
		return Change{}, Result{Status: NotFound}
	case op.Mode.Has(IfCAS) && d.cur.CAS != op.Compare:
		return Change{}, Result{Status: Exists}
	case op.Mode&(Invalidate|Clear) == 0:
		return d.change(Item{Deleted: true}), Result{Status: Deleted}
	}
	it := d.kept()
	if op.Mode.Has(Clear) {
		// A new empty value under the old unique.
		it = Item{Value: []byte{}, Flags: op.Flags, CAS: d.cur.CAS, Expires: Deadline(op.Exptime, d.now)}
		if !op.Mode.Has(Retime) {
			it.Expires = 0
		}
	}
	if op.Mode.Has(Invalidate) {
		it.Stale, it.Leased = true, false
		it.CAS = 0 // a new one, so that the next winner's differs from all before
		if op.Mode.Has(Retime) {
			it.Expires = Deadline(op.Exptime, d.now)
		}
	}
	return d.change(it), Result{Status: Deleted}
}

func (d *decision) store(buf []byte) (Change, Result) {
	op := d.op
	if !d.live {
		switch {
		case op.Mode.Has(IfCAS) && op.Verb == Set:
			return Change{}, Result{Status: NotFound}
		case op.Verb == Replace:
			return Change{}, Result{Status: NotStored}
		case op.Verb == Append || op.Verb == Prepend:
			if !op.Mode.Has(Vivify) {
				return Change{}, Result{Status: NotStored}
			}
			return d.stored(Item{Value: op.Value, Flags: op.Flags, Expires: Deadline(op.VivifyTTL, d.now)})
		}
		return d.stored(Item{Value: op.Value, Flags: op.Flags, Expires: Deadline(op.Exptime, d.now)})
	}
	if op.Verb == Add {
		return Change{}, Result{Status: NotStored}
	}
	it := Item{Value: op.Value, Flags: op.Flags, Expires: Deadline(op.Exptime, d.now)}
	if op.Mode.Has(IfCAS) && d.cur.CAS != op.Compare {
		if !op.Mode.Has(Invalidate) || op.Compare == 0 || op.Compare >= d.cur.CAS {
			return Change{}, Result{Status: Exists}
		}
		// Too late to be right, still better than what is there: served, and
		// marked as stale.
		it.Expires, it.Stale, it.Leased = d.cur.Expires, true, d.cur.Leased
	}
	if op.Verb == Append || op.Verb == Prepend {
		first, second := d.cur.Value, op.Value
		if op.Verb == Prepend {
			first, second = second, first
		}
		if n := len(first) + len(second); n > cap(buf) {
			buf = make([]byte, 0, n)
		}
		it.Value = append(append(buf[:0], first...), second...)
		it.Flags, it.Expires = d.cur.Flags, d.cur.Expires
	}
	return d.stored(it)
}

func (d *decision) stored(it Item) (Change, Result) {
	it.Size = len(it.Value)
	c := d.change(it)
	res := Result{Status: Stored, Item: c.Item}
	if !d.op.Mode.Has(WantValue) {
		res.Item.Value = nil
	}
	return c, res
}

func (d *decision) count(buf []byte) (Change, Result) {
	op := d.op
	it := Item{}
	number := op.Initial
	switch {
	case d.live:
		if op.Mode.Has(IfCAS) && d.cur.CAS != op.Compare && len(d.cur.Value) > 0 {
			return Change{}, Result{Status: Exists}
		}
		var ok bool
		if number, ok = decimal(d.cur.Value); !ok {
			return Change{}, Result{Status: NonNumeric}
		}
		switch {
		case op.Verb == Incr:
			number += op.Delta
		case op.Delta > number:
			number = 0
		default:
			number -= op.Delta
		}
		it = d.kept()
		it.Stored, it.CAS = 0, 0
		if op.Mode.Has(Retime) {
			it.Expires = Deadline(op.Exptime, d.now)
		}
	case op.Mode.Has(Vivify):
		it.Expires = Deadline(op.VivifyTTL, d.now)
	default:
		return Change{}, Result{Status: NotFound}
	}
	const digits = 20 // of the largest number
	if n := max(digits, it.Size); n > cap(buf) {
		buf = make([]byte, 0, n)
	}
	value := strconv.AppendUint(buf[:0], number, 10)
	// memcached writes a shorter number over a longer one and fills up with
	// blanks; clients have learnt to expect them.
	for len(value) < it.Size {
		value = append(value, ' ')
	}
	it.Value, it.Size = value, len(value)
	c := d.change(it)
	res := d.after(Counted, &c)
	res.Number = number
	if !op.Mode.Has(WantValue) {
		res.Item.Value = nil
	}
	return c, res
}

// decimal reads a counter as memcached does: blanks, digits, and then the end or
// another blank and whatever follows it.
func decimal(v []byte) (n uint64, ok bool) {
	i := 0
	for i < len(v) && blank(v[i]) {
		i++
	}
	if i < len(v) && v[i] == '+' {
		i++
	}
	start := i
	for ; i < len(v) && v[i] >= '0' && v[i] <= '9'; i++ {
		next := n*10 + uint64(v[i]-'0')
		if n > (1<<64-1)/10 || next < n*10 {
			return 0, false
		}
		n = next
	}
	return n, i > start && (i == len(v) || blank(v[i]))
}

func blank(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }
