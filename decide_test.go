package attune

import (
	"bytes"
	"math"
	"testing"
)

func TestDeadline(t *testing.T) {
	const now = 1_790_000_000_123
	for _, c := range []struct{ exptime, want int64 }{
		{0, 0},
		{-1, 1},
		{math.MinInt64, 1},
		{1, now + 1000},
		{2592000, now + 2592000_000},
		{2592001, 2592001_000}, // in January 1970
		{1_790_000_100, 1_790_000_100_000},
		{math.MaxUint32, math.MaxUint32 * 1000},
		{math.MaxInt64, math.MaxInt64 / 1000 * 1000},
	} {
		if got := Deadline(c.exptime, now); got != c.want {
			t.Errorf("Deadline(%d) is %d, want %d", c.exptime, got, c.want)
		}
	}
}

// TestDecidePrior: a change names the version it was decided on.
func TestDecidePrior(t *testing.T) {
	const now = 1000
	for name, c := range map[string]struct {
		cur  Item
		op   Op
		want Version
	}{
		"blind":            {Item{Version: 7}, Op{Verb: Set}, AnyVersion},
		"blind and absent": {Item{}, Op{Verb: Set}, AnyVersion},
		"present":          {Item{Version: 7, CAS: 5}, Op{Verb: Set, Mode: IfCAS, Compare: 5}, 7},
		"absent":           {Item{}, Op{Verb: Add}, 0},
		"deleted":          {Item{Version: 7, Deleted: true}, Op{Verb: Add}, 0},
		"expired":          {Item{Version: 7, Expires: now}, Op{Verb: Add}, 7},
	} {
		c.op.Key.Text = []byte("k")
		if change, _ := c.op.Decide(&c.cur, now, nil); change.Prior != c.want {
			t.Errorf("%s: prior is %d, want %d", name, change.Prior, c.want)
		}
	}
}

// TestDecideBefore: a result tells the exptime of before, too, because meta's t
// may be written on either side of the flag that changes it.
func TestDecideBefore(t *testing.T) {
	const now = 1000
	cur := Item{Version: 7, Stored: 7, CAS: 7, Value: []byte("1"), Size: 1, Expires: 5000}
	for _, op := range []Op{
		{Verb: Get, Mode: Lease | Retime, Exptime: 9},
		{Verb: Incr, Mode: Retime, Exptime: 9},
	} {
		_, res := op.Decide(&cur, now, nil)
		if res.Before != 5000 || res.Item.Expires != 10_000 {
			t.Errorf("%v: %d before, %d after", op.Verb, res.Before, res.Item.Expires)
		}
		op.Mode |= Vivify
		op.VivifyTTL = 3
		_, res = op.Decide(&Item{}, now, nil)
		if !res.Absent || res.Before != 0 || res.Item.Expires != 4000 {
			t.Errorf("%v: created is %v, %d before, %d after", op.Verb, res.Absent, res.Before, res.Item.Expires)
		}
	}
}

// TestDecideNeverShowsNil: nil is a value nobody asked for, not an empty one.
func TestDecideNeverShowsNil(t *testing.T) {
	op := Op{Verb: Get, Mode: WantValue}
	if _, res := op.Decide(&Item{Version: 7}, 0, nil); res.Status != Hit || res.Item.Value == nil {
		t.Errorf("an empty item reads as %+v", res)
	}
	op.Mode = 0
	if _, res := op.Decide(&Item{Version: 7, Value: []byte("a")}, 0, nil); res.Item.Value != nil {
		t.Errorf("nobody asked for %q", res.Item.Value)
	}
}

// TestDecideBuildsInBuffer: a value that must be built is built where the caller
// says if there is room, and the item's own bytes stay as they are.
func TestDecideBuildsInBuffer(t *testing.T) {
	value := append(make([]byte, 0, 64), "10"...)
	cur := Item{Version: 7, Stored: 7, Value: value, Size: 2}
	for _, op := range []*Op{
		{Verb: Append, Value: []byte("1")},
		{Verb: Prepend, Value: []byte("1")},
		{Verb: Incr, Delta: 90},
	} {
		for _, room := range []int{2, 3} {
			buf := make([]byte, 0, room)
			c, _ := op.Decide(&cur, 0, buf)
			if in := &c.Item.Value[0] == &buf[:1][0]; in != (room == 3) {
				t.Errorf("%v, room for %d: built in the buffer is %v", op.Verb, room, in)
			}
		}
	}
	if got := value[:cap(value)]; !bytes.HasPrefix(got, []byte("10\x00")) {
		t.Errorf("the item's value became %q", got)
	}
}

func TestDecideRefusesFlush(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("Decide answered a flush")
		}
	}()
	(&Op{Verb: Flush}).Decide(&Item{}, 0, nil)
}

// benchmarked are the decisions a busy node makes. None may allocate.
var benchmarked = []struct {
	name string
	op   Op
}{
	{"Get", Op{Verb: Get, Mode: WantValue}},
	{"Set", Op{Verb: Set, Value: []byte("value")}},
	{"Add", Op{Verb: Add, Value: []byte("value")}},
	{"CAS", Op{Verb: Set, Mode: IfCAS, Compare: 7, Value: []byte("value")}},
	{"Delete", Op{Verb: Delete}},
	{"Touch", Op{Verb: Touch, Exptime: 100}},
	{"Incr", Op{Verb: Incr, Delta: 1}},
	{"Append", Op{Verb: Append, Value: []byte("value")}},
	{"MetaGet", Op{Verb: Get, Mode: WantValue | Lease | Recache, RecacheTTL: 30}},
	{"MetaGetWins", Op{Verb: Get, Mode: WantValue | Lease | Recache, RecacheTTL: 300}},
}

var benchmarkedItem = Item{Version: 7, Stored: 7, CAS: 7, Value: []byte("12345"), Size: 5, Expires: 100_000}

func TestDecideAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, 64)
	for _, b := range benchmarked {
		b.op.Key.Text = []byte("key")
		if n := testing.AllocsPerRun(100, func() { b.op.Decide(&benchmarkedItem, 1000, buf) }); n != 0 {
			t.Errorf("%s allocates %v times", b.name, n)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	buf := make([]byte, 0, 64)
	for _, bench := range benchmarked {
		b.Run(bench.name, func(b *testing.B) {
			bench.op.Key.Text = []byte("key")
			b.ReportAllocs()
			for b.Loop() {
				c, res := bench.op.Decide(&benchmarkedItem, 1000, buf)
				if res.Status == None || c.Prior == 1 {
					b.Fatal(res)
				}
			}
		})
	}
}
