package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

func TestVerbs(t *testing.T) {
	backends(t, func(t *testing.T, backend kvadapter.Backend) {
		n := open(t, backend, 0)
		n.wantMiss("k")
		n.wantStatus(n.set("k", "10"), attune.Stored)
		n.want("k", "10")
		n.wantStatus(n.do(n.op(attune.Add, "k", "no")), attune.NotStored)
		n.wantStatus(n.do(n.op(attune.Append, "k", "0")), attune.Stored)
		incr := n.op(attune.Incr, "k", "")
		incr.Delta = 5
		res := n.do(incr)
		n.wantStatus(res, attune.Counted)
		if res.Number != 105 {
			t.Errorf("incr gave %d", res.Number)
		}
		n.want("k", "105")

		cas := n.op(attune.Set, "k", "new")
		cas.Mode, cas.Compare = attune.IfCAS, res.Item.CAS
		n.wantStatus(n.do(cas), attune.Stored)
		n.wantStatus(n.do(cas), attune.Exists)
		n.want("k", "new")

		before := n.get("k").Item
		touch := n.op(attune.Touch, "k", "")
		touch.Exptime = 100
		n.wantStatus(n.do(touch), attune.Touched)
		after := n.get("k").Item
		if after.CAS != before.CAS || after.Version <= before.Version || after.Expires < n.Now()+99_000 {
			t.Errorf("touch made %+v of %+v", after, before)
		}
		n.wantStatus(n.do(n.op(attune.Delete, "k", "")), attune.Deleted)
		n.wantMiss("k")
		n.wantStatus(n.do(n.op(attune.Delete, "k", "")), attune.NotFound)
		n.wantStatus(n.do(n.op(attune.Append, "k", "x")), attune.NotStored)
	})
}

// What is set is what is shown, also where the Result describes a write.
func TestResultDescribesTheItem(t *testing.T) {
	backends(t, func(t *testing.T, backend kvadapter.Backend) {
		n := open(t, backend, 0)
		op := n.op(attune.Set, "k", "value")
		op.Flags, op.Exptime = 77, 60
		stored := n.do(op).Item
		got := n.get("k").Item
		if stored.CAS == 0 || got.CAS != stored.CAS || got.Flags != 77 || got.Size != 5 || got.Expires != stored.Expires {
			t.Errorf("stored %+v, got %+v", stored, got)
		}
		if got.Fetched {
			t.Error("the first get sees itself")
		}
		if again := n.get("k").Item; !again.Fetched {
			t.Error("the second get does not see the first")
		}
	})
}

func TestOneBatchKeepsTheOrderOfAKey(t *testing.T) {
	backends(t, func(t *testing.T, backend kvadapter.Backend) {
		n := open(t, backend, 0)
		var ops []attune.Op
		for i := range 200 {
			op := n.op(attune.Append, fmt.Sprint("k", i%7), fmt.Sprint(i, " "))
			op.Mode = attune.Vivify
			ops = append(ops, op)
		}
		res := make([]attune.Result, len(ops))
		n.Write(context.Background(), ops, res)
		for k := range 7 {
			want := ""
			for i := k; i < 200; i += 7 {
				n.wantStatus(res[i], attune.Stored)
				want += fmt.Sprint(i, " ")
			}
			n.want(fmt.Sprint("k", k), want)
		}
	})
}

func TestABatchWaitsTogether(t *testing.T) {
	f := newRemote()
	f.delay = 2 * time.Millisecond
	n := open(t, f, 0)
	var ops []attune.Op
	for i := range 64 {
		ops = append(ops, n.op(attune.Set, fmt.Sprint(i), "v"))
	}
	n.Write(context.Background(), ops, make([]attune.Result, len(ops)))
	if f.most < 2 || f.most > lanes {
		t.Errorf("%d calls at a time, want 2 to %d", f.most, lanes)
	}
}

// No increment is lost, and each is answered with a number of its own.
func TestIncrIsExact(t *testing.T) {
	backends(t, func(t *testing.T, backend kvadapter.Backend) {
		n := open(t, backend, 0)
		n.set("k", "0")
		const workers, each = 8, 100
		var seen sync.Map
		var wait sync.WaitGroup
		for range workers {
			wait.Go(func() {
				op := n.op(attune.Incr, "k", "")
				op.Delta = 1
				for range each {
					res := n.do(op)
					n.wantStatus(res, attune.Counted)
					if _, again := seen.LoadOrStore(res.Number, true); again {
						t.Errorf("%d was given twice", res.Number)
					}
				}
			})
		}
		wait.Wait()
		n.want("k", strconv.Itoa(workers*each))
	})
}

// Of all who compare with the same unique exactly one wins.
func TestCASHasOneWinner(t *testing.T) {
	backends(t, func(t *testing.T, backend kvadapter.Backend) {
		n := open(t, backend, 0)
		unique := n.set("k", "v").Item.CAS
		for range 30 {
			var wait sync.WaitGroup
			var next atomic.Uint64
			for range 6 {
				wait.Go(func() {
					op := n.op(attune.Set, "k", "w")
					op.Mode, op.Compare = attune.IfCAS, unique
					if res := n.do(op); res.Status == attune.Stored {
						if !next.CompareAndSwap(0, res.Item.CAS) {
							t.Error("two winners")
						}
					} else if res.Status != attune.Exists {
						t.Error(res)
					}
				})
			}
			wait.Wait()
			if unique = next.Load(); unique == 0 {
				t.Fatal("no winner")
			}
		}
	})
}

// Readers and writers of every kind at once: values are never mixed up, and
// what was acknowledged last is what is read.
func TestConcurrentVerbs(t *testing.T) {
	backends(t, func(t *testing.T, backend kvadapter.Backend) {
		n := open(t, backend, 0)
		end := time.Now().Add(200 * time.Millisecond)
		var wait sync.WaitGroup
		for w := range 6 {
			wait.Go(func() {
				own := fmt.Sprint("own", w)
				for i := 0; time.Now().Before(end); i++ {
					value := fmt.Sprint("shared ", w, " ", i, strings.Repeat(".", rand.N(50)))
					n.wantStatus(n.set("shared", value), attune.Stored)
					if got := string(n.get("shared").Item.Value); !strings.HasPrefix(got, "shared ") {
						t.Errorf("shared = %q", got)
					}
					n.set(own, value)
					n.want(own, value)
					if i%3 == 0 {
						n.wantStatus(n.do(n.op(attune.Delete, own, "")), attune.Deleted)
						n.wantMiss(own)
					}
				}
			})
		}
		wait.Wait()
		n.set("shared", "last")
		n.want("shared", "last")
		if staged := n.replica.Stats().Staged; staged != 0 {
			t.Errorf("%d keys still staged", staged)
		}
	})
}

func TestBackendThatFails(t *testing.T) {
	f := newRemote()
	n := open(t, f, 0)
	n.set("k", "old")
	f.err = fmt.Errorf("backend 127.0.0.1:1: %w", kvadapter.ErrUnavailable)

	// A write fails, and the value it was to replace is not served any more:
	// it may have happened.
	res := n.set("k", "new")
	n.wantStatus(res, attune.Failed)
	if !errors.Is(res.Err, kvadapter.ErrUnavailable) {
		t.Error(res.Err)
	}
	f.err = nil
	n.wantMiss("k")

	// A read fails and leaves the item alone.
	n.set("k", "v")
	f.err = kvadapter.ErrUnavailable
	n.wantStatus(n.get("k"), attune.Failed)
	incr := n.op(attune.Incr, "k", "")
	n.wantStatus(n.do(incr), attune.Failed)
	f.err = nil
	n.want("k", "v")

	// Deleting needs the index only.
	f.err = kvadapter.ErrUnavailable
	n.wantStatus(n.do(n.op(attune.Delete, "k", "")), attune.Deleted)
	f.err = nil
	n.wantMiss("k")

	for err, want := range map[error]attune.Status{
		kvadapter.ErrTooLarge: attune.TooLarge, kvadapter.ErrFull: attune.OutOfMemory,
	} {
		n.set("k", "v")
		f.put = fmt.Errorf("backend: %w", err)
		n.wantStatus(n.set("k", "w"), want)
		f.put = nil
		n.wantMiss("k")
	}
}

func TestBackendThatForgets(t *testing.T) {
	f := newRemote()
	n := open(t, f, 0)
	n.set("a", "1")
	n.set("b", "2")
	f.recs = map[attune.KeyHash]kvadapter.Record{}
	n.wantMiss("a")
	n.wantStatus(n.do(n.op(attune.Append, "b", "x")), attune.NotStored)
	if st := n.replica.Stats(); st.Items != 0 || st.Gone != 2 {
		t.Errorf("%+v", st)
	}
	n.set("a", "3")
	n.want("a", "3")
}

func TestWriteHonoursItsContext(t *testing.T) {
	f := newRemote()
	n := open(t, f, 0)
	late := errors.New("late")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(late)
	res := make([]attune.Result, 1)
	n.Write(ctx, []attune.Op{n.op(attune.Set, "k", "v")}, res)
	if n.wantStatus(res[0], attune.Failed); !errors.Is(res[0].Err, late) {
		t.Error(res[0].Err)
	}
	n.wantMiss("k")

	// What is not begun costs nothing: the old value stays.
	n.set("k", "old")
	n.Write(ctx, []attune.Op{n.op(attune.Set, "k", "v")}, res)
	n.wantStatus(res[0], attune.Failed)
	n.want("k", "old")
}

// A set that is stamped first and applied last is not taken for one that came
// just before: the newer version may be that of an add, which succeeded because
// there was no item.
func TestASetOvertakenGoesAgain(t *testing.T) {
	n := open(t, embedded(t), 0)
	set, add := n.op(attune.Set, "k", "set"), n.op(attune.Add, "k", "add")
	now := n.Now()
	late, _ := set.Decide(nil, now, nil)
	late.Stamp(n.clock.next(now, late.Prior))
	n.wantStatus(n.do(add), attune.Stored)
	if applied, err := n.replica.Apply(&late); applied || err != nil {
		t.Fatalf("a set stamped before the add and applied after it: %v %v", applied, err)
	}
	n.wantStatus(n.do(set), attune.Stored)
	n.want("k", "set")
}

// The limit holds while items of all sizes come and go, and what was just
// acknowledged is there.
func TestMemoryLimitHolds(t *testing.T) {
	limit := 8 << 20
	if raceEnabled {
		limit /= 2
	}
	n := open(t, embedded(t), int64(limit))
	for _, size := range []int{100, 5000, 200_000, 10} {
		value := strings.Repeat("v", size)
		for i := range 3 * limit / (size + 400) {
			text := fmt.Sprint(size, " ", i)
			n.wantStatus(n.set(text, value), attune.Stored)
			if st := n.replica.Stats(); i%500 == 0 && st.UsedBytes > int64(limit) {
				t.Fatalf("%d bytes used of %d", st.UsedBytes, limit)
			}
			if i%100 == 0 {
				n.want(text, value)
			}
		}
		st := n.replica.Stats()
		t.Logf("values of %d: %d items, %d %% of the limit are keys and values, index %d KiB",
			size, st.Items, 100*st.Bytes/int64(limit), st.IndexBytes>>10)
		if st.Evicted == 0 {
			t.Error("nothing was evicted")
		}
	}
}

func TestItemThatCannotFit(t *testing.T) {
	const limit = 4 << 20
	n := open(t, embedded(t), limit)
	n.set("other", "v")
	n.set("k", "old")
	res := n.do(attune.Op{Verb: attune.Set, Key: n.key("k"), Value: make([]byte, limit+1)})
	n.wantStatus(res, attune.OutOfMemory)
	n.wantMiss("k")
	n.want("other", "v") // nobody made room for what cannot fit

	// The value fits, but not with what the index needs.
	res = n.do(attune.Op{Verb: attune.Set, Key: n.key("k"), Value: make([]byte, limit-100)})
	n.wantStatus(res, attune.OutOfMemory)
	n.wantMiss("k")
	n.set("k", "v")
	n.want("k", "v")
}

// A value of Large or more is handed over, a smaller one is copied.
func TestWhoOwnsTheValue(t *testing.T) {
	backends(t, func(t *testing.T, backend kvadapter.Backend) {
		n := open(t, backend, 0)
		small := []byte("small")
		n.do(attune.Op{Verb: attune.Set, Key: n.key("small"), Value: small})
		copy(small, "SMALL")
		n.want("small", "small")
		large := bytes.Repeat([]byte("x"), 3*kvadapter.Large)
		n.do(attune.Op{Verb: attune.Set, Key: n.key("large"), Value: large})
		n.want("large", string(large))
		n.do(attune.Op{Verb: attune.Append, Key: n.key("large"), Value: []byte("y")})
		n.want("large", string(large)+"y")
	})
}

func TestNoAllocations(t *testing.T) {
	n := open(t, embedded(t), 0)
	ctx := context.Background()
	counter := n.op(attune.Set, "n", "1000")
	n.do(counter)
	incr, touch, set := n.op(attune.Incr, "n", ""), n.op(attune.Touch, "n", ""), n.op(attune.Set, "k", "value")
	incr.Delta = 1
	res := make([]attune.Result, 1)
	for name, op := range map[string]attune.Op{"incr": incr, "touch": touch, "set": set} {
		ops := []attune.Op{op}
		n.Write(ctx, ops, res)
		if per := testing.AllocsPerRun(1000, func() { n.Write(ctx, ops, res) }); per != 0 && !raceEnabled {
			t.Errorf("%s: %v allocations", name, per)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	n := open(b, embedded(b), 0)
	ctx := context.Background()
	value := strings.Repeat("v", 100)
	const keys = 100_000
	for verb, name := range map[attune.Verb]string{attune.Set: "set", attune.Touch: "touch", attune.Incr: "incr", attune.Add: "add"} {
		b.Run(name, func(b *testing.B) {
			ops := make([]attune.Op, keys)
			for i := range ops {
				ops[i] = n.op(attune.Set, fmt.Sprint(name, i), value)
				if verb == attune.Incr {
					ops[i].Value = []byte("1000")
				}
			}
			res := make([]attune.Result, keys)
			n.Write(ctx, ops, res)
			for i := range ops {
				ops[i].Verb, ops[i].Delta = verb, 1
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				n.Write(ctx, ops[i:i+1], res[i:i+1])
				if i += 7919; i >= keys {
					i -= keys
				}
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	n := open(b, embedded(b), 0)
	const keys = 100_000
	all := make([]attune.Key, keys)
	for i := range all {
		text := fmt.Sprint("k", i)
		n.set(text, strings.Repeat("v", 100))
		all[i] = n.key(text)
	}
	buf := make([]byte, 0, 128)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if it, err := n.replica.Get(context.Background(), all[i], buf, true); err != nil || len(it.Value) != 100 {
			b.Fatal(it, err)
		}
		if i += 7919; i >= keys {
			i -= keys
		}
	}
}

// A full cache: every set evicts.
func BenchmarkWriteFull(b *testing.B) {
	n := open(b, embedded(b), 32<<20)
	ctx := context.Background()
	value := []byte(strings.Repeat("v", 100))
	res := make([]attune.Result, 1)
	ops := make([]attune.Op, 1)
	text := make([]byte, 0, 20)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		text = strconv.AppendInt(text[:0], int64(i), 10)
		ops[0] = attune.Op{Verb: attune.Set, Key: attune.Key{Text: text, Hash: n.replica.Hash(text)}, Value: value}
		n.Write(ctx, ops, res)
	}
	b.ReportMetric(float64(n.replica.Stats().Evicted)/float64(b.N), "evicted/op")
}
