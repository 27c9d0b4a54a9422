package attune

import (
	"bytes"
	"fmt"
	"math/big"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// model is a memcached of few words: protocol.txt, sentence by sentence, over a
// map. It shares no code with Decide and knows no versions: it is told the
// unique a change gets.
type model struct {
	now   int64 // unix milliseconds
	items map[string]modelItem
}

type modelItem struct {
	value string
	flags uint32
	dies  int64 // unix milliseconds, 0 never
	cas   uint64
	stale bool // X
	token bool // somebody was sent W
}

// modelReply is what a client can tell from a reply.
type modelReply struct {
	status  Status
	item    modelItem // as after the command
	value   bool      // the reply has the value
	was     int64     // when the item was to die before the command
	number  uint64
	created bool
	w, x, z bool
}

func (m *model) dies(exptime int64) int64 {
	if exptime < 0 {
		return 1
	}
	if exptime == 0 {
		return 0
	}
	if exptime > 2592000 {
		return exptime * 1000
	}
	return m.now + exptime*1000
}

func (m *model) find(key string) (modelItem, bool) {
	it, ok := m.items[key]
	if ok && it.dies != 0 && it.dies <= m.now {
		delete(m.items, key)
		return modelItem{}, false
	}
	return it, ok
}

var modelNumber = regexp.MustCompile(`(?s)^[ \t\n\v\f\r]*([+-]?)([0-9]+)(?:[ \t\n\v\f\r\x00].*)?$`)

func modelParse(value string) (uint64, bool) {
	m := modelNumber.FindStringSubmatch(value)
	if m == nil {
		return 0, false
	}
	n, _ := new(big.Int).SetString(m[2], 10)
	two64 := new(big.Int).Lsh(big.NewInt(1), 64)
	if n.Cmp(two64) >= 0 {
		return 0, false
	}
	if m[1] == "-" && n.Sign() > 0 {
		n.Sub(two64, n)
		if n.Bit(63) == 1 {
			return 0, false
		}
	}
	return n.Uint64(), true
}

// do executes op; unique is what a change without E gets.
func (m *model) do(op *Op, unique uint64) modelReply {
	key := string(op.Key.Text)
	it, found := m.find(key)
	has := op.Mode.Has
	if has(ChooseCAS) && op.CAS != 0 {
		unique = op.CAS
	}
	save := func(status Status, it modelItem) modelReply {
		m.items[key] = it
		return modelReply{status: status, item: it}
	}
	fresh := modelItem{value: string(op.Value), flags: op.Flags, dies: m.dies(op.Exptime), cas: unique}
	switch op.Verb {
	case Get:
		return m.get(op, it, found, unique)
	case Set:
		if !has(IfCAS) {
			return save(Stored, fresh)
		}
		return m.cas(op, it, found, fresh)
	case Replace:
		if has(IfCAS) {
			return m.cas(op, it, found, fresh)
		}
		if !found {
			return modelReply{status: NotStored}
		}
		return save(Stored, fresh)
	case Add:
		if found {
			return modelReply{status: NotStored}
		}
		return save(Stored, fresh)
	case Append, Prepend:
		if !found {
			if !has(Vivify) {
				return modelReply{status: NotStored}
			}
			fresh.dies = m.dies(op.VivifyTTL)
			return save(Stored, fresh)
		}
		if has(IfCAS) && op.Compare != 0 && op.Compare != it.cas {
			return modelReply{status: Exists}
		}
		joined := it.value + string(op.Value)
		if op.Verb == Prepend {
			joined = string(op.Value) + it.value
		}
		return save(Stored, modelItem{value: joined, flags: it.flags, dies: it.dies, cas: unique})
	case Touch:
		if !found {
			return modelReply{status: NotFound}
		}
		it.dies = m.dies(op.Exptime)
		return save(Touched, it)
	case Delete:
		return m.remove(op, it, found, unique)
	case Incr, Decr:
		return m.count(op, it, found, unique)
	}
	panic("unknown verb")
}

func (m *model) cas(op *Op, it modelItem, found bool, fresh modelItem) modelReply {
	if !found {
		return modelReply{status: NotFound}
	}
	if op.Compare != it.cas {
		late := op.Mode.Has(Invalidate) && op.Compare > 0 && op.Compare < it.cas
		if !late {
			return modelReply{status: Exists}
		}
		fresh.dies = it.dies
		fresh.stale = true
		fresh.token = it.token
	}
	m.items[string(op.Key.Text)] = fresh
	return modelReply{status: Stored, item: fresh}
}

func (m *model) get(op *Op, it modelItem, found bool, unique uint64) (r modelReply) {
	key := string(op.Key.Text)
	has := op.Mode.Has
	if !found && !has(Vivify) {
		return modelReply{status: Miss}
	}
	r.status = Hit
	if found {
		r.was = it.dies
		if has(Lease) {
			r.x = it.stale
			r.z = it.token
			if !it.token && it.stale {
				r.w = true
			}
			if !it.token && has(Recache) && it.dies != 0 {
				// In whole seconds, as t would show them.
				left := (it.dies - m.now + 999) / 1000
				limit := op.RecacheTTL
				if limit > 2592000 {
					left = (it.dies + 999) / 1000
				}
				if left < limit {
					r.w = true
				}
			}
			if r.w {
				it.token = true
			}
		}
		if has(Retime) {
			it.dies = m.dies(op.Exptime)
		}
	} else {
		it = modelItem{dies: m.dies(op.VivifyTTL), cas: unique, token: true}
		r.created = true
		r.w = true
	}
	m.items[key] = it
	r.item = it
	r.value = has(WantValue)
	if has(IfMatch) && op.Compare != 0 && op.Compare == it.cas {
		r.value = false
	}
	return r
}

func (m *model) remove(op *Op, it modelItem, found bool, unique uint64) modelReply {
	key := string(op.Key.Text)
	if !found {
		return modelReply{status: NotFound}
	}
	if op.Mode.Has(IfCAS) && op.Compare != it.cas {
		return modelReply{status: Exists}
	}
	invalidate, empty := op.Mode.Has(Invalidate), op.Mode.Has(Clear)
	if !invalidate && !empty {
		delete(m.items, key)
		return modelReply{status: Deleted}
	}
	if empty {
		it = modelItem{flags: op.Flags, cas: it.cas}
		if op.Mode.Has(Retime) {
			it.dies = m.dies(op.Exptime)
		}
		if op.Mode.Has(ChooseCAS) {
			it.cas = unique
		}
	}
	if invalidate {
		it.stale = true
		it.token = false
		it.cas = unique
		if op.Mode.Has(Retime) {
			it.dies = m.dies(op.Exptime)
		}
	}
	m.items[key] = it
	return modelReply{status: Deleted, item: it}
}

func (m *model) count(op *Op, it modelItem, found bool, unique uint64) (r modelReply) {
	if !found {
		if !op.Mode.Has(Vivify) {
			return modelReply{status: NotFound}
		}
		r.number = op.Initial
		r.created = true
		it = modelItem{value: fmt.Sprint(op.Initial), dies: m.dies(op.VivifyTTL), cas: unique}
	} else {
		if it.value == "" {
			return modelReply{status: NonNumeric}
		}
		if op.Mode.Has(IfCAS) && op.Compare != 0 && op.Compare != it.cas {
			return modelReply{status: Exists}
		}
		n, ok := modelParse(it.value)
		if !ok {
			return modelReply{status: NonNumeric}
		}
		if op.Verb == Incr {
			n = n + op.Delta
		} else if op.Delta > n {
			n = 0
		} else {
			n = n - op.Delta
		}
		r.was = it.dies
		r.number = n
		digits := fmt.Sprint(n)
		if len(digits) > len(it.value) {
			it.value = digits
			it.stale = false
			it.token = false
		} else {
			it.value = digits + strings.Repeat(" ", len(it.value)-len(digits))
		}
		it.cas = unique
		if op.Mode.Has(Retime) {
			it.dies = m.dies(op.Exptime)
		}
	}
	m.items[string(op.Key.Text)] = it
	r.status = Counted
	r.item = it
	return r
}

// shelf is what a replica and its store are to Decide: items by key, expired
// ones and tombstones included, and the bytes of the version named by Stored.
type shelf struct {
	items map[string]Item
	last  Version
}

// cur is a copy whose bytes are its own, so that a test sees them modified.
func (s *shelf) cur(key string) Item {
	it := s.items[key]
	it.Value = bytes.Clone(it.Value)
	return it
}

// apply does what every replica does with a stamped change, and says why it
// should not have had to.
func (s *shelf) apply(c *Change) error {
	key := string(c.Key.Text)
	cur := s.items[key]
	held := cur.Version
	if cur.Deleted {
		held = 0
	}
	switch it := c.Item; {
	case c.Prior != AnyVersion && c.Prior != held:
		return fmt.Errorf("prior is %d, the item's version %d", c.Prior, held)
	case it.Version <= cur.Version:
		return fmt.Errorf("version %d after %d", it.Version, cur.Version)
	case it.Deleted && !reflect.DeepEqual(it, Item{Deleted: true, Version: it.Version}):
		return fmt.Errorf("a tombstone with more than a version: %+v", it)
	case it.Fetched || it.Accessed != 0:
		return fmt.Errorf("a change with what one replica alone remembers: %+v", it)
	case it.Deleted:
	case it.Stored == it.Version:
		if it.Value == nil || len(it.Value) != it.Size {
			return fmt.Errorf("new bytes, but %q of size %d", it.Value, it.Size)
		}
	case it.Value != nil || it.Stored != cur.Stored || it.Size != cur.Size:
		return fmt.Errorf("no new bytes, yet %+v over %+v", it, cur)
	default:
		c.Item.Value = cur.Value
	}
	it := c.Item
	it.Value = bytes.Clone(it.Value)
	s.items[key] = it
	return nil
}

var modelKeys = []string{"a", "b", "c"}

// drawOp makes any op that a dialect could, and some that none does. No unique in
// it is one that is still to be issued: nobody can know that.
func drawOp(t *rapid.T, now int64, uniques []uint64) *Op {
	seconds := rapid.OneOf(
		rapid.Int64Range(0, 40),
		rapid.SampledFrom([]int64{-1, 0, 1, 2592000, 2592001, now/1000 - 5, now/1000 + 5, now/1000 + 2592001, 4294967295}),
	)
	unique := rapid.OneOf(rapid.SampledFrom(append(uniques, 0)), rapid.Uint64Range(0, 60))
	value := rapid.OneOf(
		rapid.SampledFrom([]string{"", "0", "9", "10", "x", "18446744073709551615", "18446744073709551616", " 7", "+3 z", "-0", "-2", "-18446744073709551615", "1\x00", "  "}),
		rapid.StringMatching(`[ 0-9+-]{0,4}`),
		rapid.StringN(0, 30, 60),
	)
	op := &Op{
		Verb:       Verb(rapid.IntRange(int(Get), int(Touch)).Draw(t, "verb")),
		Mode:       Mode(rapid.Uint16Range(0, uint16(IfMatch)<<1-1).Draw(t, "mode")),
		Flags:      rapid.SampledFrom([]uint32{0, 1, 1<<32 - 1}).Draw(t, "flags"),
		Key:        Key{Text: []byte(rapid.SampledFrom(modelKeys).Draw(t, "key"))},
		Value:      []byte(value.Draw(t, "value")),
		Exptime:    seconds.Draw(t, "exptime"),
		VivifyTTL:  seconds.Draw(t, "vivify"),
		RecacheTTL: seconds.Draw(t, "recache"),
		Compare:    unique.Draw(t, "compare"),
		CAS:        unique.Draw(t, "cas"),
		Delta:      rapid.SampledFrom([]uint64{0, 1, 5, 95, 1<<64 - 1}).Draw(t, "delta"),
		Initial:    rapid.SampledFrom([]uint64{0, 8, 1<<64 - 1}).Draw(t, "initial"),
	}
	if rapid.Bool().Draw(t, "plain") { // half of them as classic commands are
		op.Mode &= WantValue | IfCAS
	}
	return op
}

// cloneOp is op with memory of its own.
func cloneOp(op *Op) *Op {
	o := *op
	o.Key.Text, o.Value = bytes.Clone(op.Key.Text), bytes.Clone(op.Value)
	return &o
}

// described turns a Result and the item it left into what the model says.
func described(res *Result) modelReply {
	r := modelReply{
		status: res.Status, was: res.Before, number: res.Number, created: res.Absent,
		value: res.Item.Value != nil, w: res.Won, x: res.Stale, z: res.Taken,
	}
	if !res.Item.Deleted {
		r.item = modelled(&res.Item)
	}
	return r
}

func modelled(it *Item) modelItem {
	return modelItem{
		value: string(it.Value), flags: it.Flags, dies: it.Expires,
		cas: it.CAS, stale: it.Stale, token: it.Leased,
	}
}

// TestDecideIsTheModel runs random commands on few keys while the clock moves,
// and asks after each whether client and store have what the model has.
func TestDecideIsTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{now: 1_790_000_000_123, items: map[string]modelItem{}}
		s := &shelf{items: map[string]Item{}, last: 1000}
		for range rapid.IntRange(1, 60).Draw(t, "ops") {
			m.now += rapid.SampledFrom([]int64{0, 0, 1, 400, 999, 1000, 5000, 35000}).Draw(t, "pass")
			var uniques []uint64
			for _, key := range modelKeys {
				if it := s.items[key]; it.CAS != 0 {
					uniques = append(uniques, it.CAS, it.CAS, it.CAS-1)
				}
			}
			op := drawOp(t, m.now, uniques)
			s.last += Version(rapid.IntRange(1, 3).Draw(t, "tick"))
			c, res := decidePurely(t, op, s, m.now)
			before := s.items[string(op.Key.Text)]
			if !c.None() {
				c.Stamp(s.last)
				if err := s.apply(&c); err != nil {
					t.Fatalf("%+v: %v", op, err)
				}
				res.Stamped(&c)
			}
			if op.Verb == Get && op.Mode&(Retime|Vivify|Lease) == 0 && !c.None() {
				t.Fatalf("%+v: a read changed %+v", op, c)
			}
			want := m.do(op, uint64(s.last))
			got := described(&res)
			if !got.value { // the model's item has it all the same
				want.item.value = ""
			}
			if got != want {
				t.Fatalf("%+v on %+v at %d:\n got %+v\nwant %+v", op, before, m.now, got, want)
			}
			if size := len(m.items[string(op.Key.Text)].value); got.item != (modelItem{}) && res.Item.Size != size {
				t.Fatalf("%+v: size %d, want %d", op, res.Item.Size, size)
			}
			for _, key := range modelKeys {
				want, found := m.find(key)
				it := s.items[key]
				if it.Live(m.now) != found {
					t.Fatalf("%+v: %s is %+v, should be there: %v", op, key, it, found)
				}
				if found && modelled(&it) != want {
					t.Fatalf("%+v: %s is %+v, want %+v", op, key, it, want)
				}
			}
		}
	})
}

// decidePurely is Decide, called in every way that must make no difference.
func decidePurely(t *rapid.T, op *Op, s *shelf, now int64) (Change, Result) {
	key := string(op.Key.Text)
	cur := s.cur(key)
	asked, given := cloneOp(op), s.cur(key)
	c, res := op.Decide(&cur, now, nil)
	same := func(how string, c2 Change, res2 Result) {
		if !reflect.DeepEqual(c, c2) || !reflect.DeepEqual(res, res2) {
			t.Fatalf("%+v decided differently %s:\n%+v %+v\n%+v %+v", op, how, c, res, c2, res2)
		}
	}
	if !reflect.DeepEqual(op, asked) || !reflect.DeepEqual(cur, given) {
		t.Fatalf("Decide modified what it was given: %+v %+v", op, cur)
	}
	c2, res2 := op.Decide(&cur, now, nil)
	same("a second time", c2, res2)
	buf := bytes.Repeat([]byte{'#'}, rapid.IntRange(0, 80).Draw(t, "buf"))
	c2, res2 = op.Decide(&cur, now, buf)
	same("with a buffer", c2, res2)
	if !reflect.DeepEqual(cur, given) {
		t.Fatalf("Decide wrote into the item's value: %+v", cur)
	}
	if !op.NeedsValue() {
		bare := cur
		bare.Value = nil
		c2, res2 = op.Decide(&bare, now, nil)
		same("without the value", c2, res2)
	}
	if op.Blind() {
		c2, res2 = op.Decide(nil, now, nil)
		same("blind", c2, res2)
	} else if c.Prior == AnyVersion {
		t.Fatalf("%+v is not blind, its change is", op)
	}
	if !cur.Live(now) {
		// Absent is absent, whatever is left of the item; only Prior tells.
		c2, res2 = op.Decide(&Item{}, now, nil)
		c2.Prior = c.Prior
		same("without any trace", c2, res2)
	}
	return c, res
}
