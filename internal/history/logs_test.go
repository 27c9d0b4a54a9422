package history_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/history"
	"github.com/attunekv/attune/internal/history/broken"
)

var simulated = []history.Workload{history.Registers, history.CASRegisters, history.Counters, history.Appends, history.Locks, history.Mixed, history.Flushes}

func TestCorrectStorePasses(t *testing.T) {
	for _, w := range simulated {
		for seed := range uint64(12) {
			h := broken.Logged(w, broken.Sound, seed, 6, 1500)
			for name, err := range map[string]error{
				"linearizable":  history.Linearizable(h, 20*time.Second, t.TempDir()),
				"fresh reads":   history.FreshReads(h),
				"version order": history.VersionOrder(h),
				"sequential":    history.Sequential(h, history.BySession),
			} {
				if err != nil {
					t.Fatalf("%s, seed %d: not %s: %v", w.Name, seed, name, err)
				}
			}
		}
	}
}

// A store whose replicas lag, and whose sessions do not go back, is sequentially
// consistent and no more.
func TestSequentialStore(t *testing.T) {
	stale := 0
	for _, w := range simulated {
		for seed := range uint64(12) {
			h := broken.Logged(w, broken.Lagging, seed, 6, 1000)
			if err := history.Sequential(h, history.BySession); err != nil {
				t.Fatalf("%s, seed %d: %v", w.Name, seed, err)
			}
			if w.Name == history.Registers.Name && history.Linearizable(h, 20*time.Second, t.TempDir()) == nil {
				t.Errorf("%s, seed %d: linearizable", w.Name, seed)
			}
			if history.FreshReads(h) != nil {
				stale++
				if history.Linearizable(h, 20*time.Second, t.TempDir()) == nil {
					t.Errorf("%s, seed %d: reads that are not fresh are linearizable", w.Name, seed)
				}
			}
		}
	}
	if stale == 0 {
		t.Error("no read is found stale by its version")
	}
}

// Every fault is found in most histories by those who are to find it.
func TestBrokenStoresAreFound(t *testing.T) {
	linear := func(h history.History) error { return history.Linearizable(h, 20*time.Second, t.TempDir()) }
	sequential := func(h history.History) error { return history.Sequential(h, history.BySession) }
	for _, c := range []struct {
		fault   broken.LogFault
		w       history.Workload
		name    string
		checker func(history.History) error
	}{
		{broken.Forgetful, history.Registers, "linearizable", linear},
		{broken.Forgetful, history.Registers, "sequential", sequential},
		{broken.Forgetful, history.Registers, "fresh reads", history.FreshReads},
		{broken.Losing, history.Registers, "linearizable", linear},
		{broken.Losing, history.CASRegisters, "linearizable", linear},
		{broken.Losing, history.Registers, "sequential", sequential},
		{broken.Losing, history.Appends, "linearizable", linear},
		{broken.Losing, history.Mixed, "linearizable", linear},
		{broken.Doubling, history.Counters, "linearizable", linear},
		{broken.Doubling, history.Appends, "linearizable", linear},
		{broken.Careless, history.CASRegisters, "linearizable", linear},
		{broken.Careless, history.CASRegisters, "sequential", sequential},
		{broken.Careless, history.Mixed, "linearizable", linear},
		{broken.Misordering, history.Registers, "version order", history.VersionOrder},
		{broken.Losing, history.Locks, "linearizable", linear},
		{broken.Losing, history.Flushes, "linearizable", linear},
	} {
		found := 0
		const seeds = 8
		for seed := range uint64(seeds) {
			if c.checker(broken.Logged(c.w, c.fault, seed, 6, 1000)) != nil {
				found++
			}
		}
		if found < seeds*3/4 {
			t.Errorf("fault %d in %s: %s finds it in %d of %d histories", c.fault, c.w.Name, c.name, found, seeds)
		}
	}
}

// With lost writes, sums do not add up.
func TestSumsOfBrokenStores(t *testing.T) {
	for _, f := range []broken.LogFault{broken.Sound, broken.Losing, broken.Doubling} {
		wrong := 0
		for seed := range uint64(8) {
			h, final := counted(f, seed)
			if _, err := history.ExactCounter(h, "n", 0, final); err != nil {
				wrong++
			}
		}
		if f == broken.Sound && wrong > 0 || f != broken.Sound && wrong < 6 {
			t.Errorf("fault %d: found in %d of 8 histories", f, wrong)
		}
	}
}

// counted is a history of increments only, and what they make.
func counted(f broken.LogFault, seed uint64) (h history.History, final uint64) {
	r := rand.New(rand.NewPCG(seed, 9))
	s := broken.NewLog(broken.Sound, r)
	s.Do(0, history.Op{Kind: history.Set, Key: "n", Value: "0"})
	s.Fault = f
	for i := range int64(300) {
		op := history.Op{Kind: history.Incr, Key: "n", Delta: 1}
		e := history.Event{Client: int(i % 5), Op: op, Out: s.Do(0, op), Call: 2 * i, Return: 2*i + 1}
		if r.IntN(20) == 0 {
			e.Out, e.Return = history.Outcome{}, history.Forever
		}
		h = append(h, e)
	}
	value, _ := s.Read(s.Len(), "n")
	final, _ = strconv.ParseUint(value, 10, 64)
	return h, final
}

// TestSequentialAgainstBruteForce compares with a search over all orders, on
// histories of a few commands of which many are wrong. It must never complain of
// a right one; and with sets and gets whose versions are all known it must say
// just what the search says.
func TestSequentialAgainstBruteForce(t *testing.T) {
	rights, wrongs := 0, 0
	for seed := range uint64(6000) {
		r := rand.New(rand.NewPCG(seed, 3))
		full := seed%2 == 0
		h := scramble(r, full)
		right, err := history.Brute(h), history.Sequential(h, history.BySession)
		if right {
			rights++
		} else {
			wrongs++
		}
		if right && err != nil {
			t.Fatalf("seed %d: there is an order, but: %v\n%s", seed, err, history.Story(h))
		}
		if !right && err == nil && !full {
			t.Fatalf("seed %d: there is no order, but it passes:\n%s", seed, history.Story(h))
		}
	}
	if rights < 500 || wrongs < 500 {
		t.Errorf("%d right histories and %d wrong ones prove little", rights, wrongs)
	}
}

// scramble makes a history: a run of a store whose replicas lag, in which a read
// may have been replaced by another. Full ones have deletes, cas and unknowns.
func scramble(r *rand.Rand, full bool) history.History {
	f := broken.Lagging
	if r.IntN(2) == 0 {
		f = broken.Forgetful
	}
	s := broken.NewLog(f, r)
	var h history.History
	for i := range int64(5 + r.IntN(6)) {
		client := 1 + r.IntN(3)
		op := history.Op{Kind: history.Get, Key: string(rune('a' + r.IntN(2)))}
		switch n := r.IntN(8); {
		case n < 3:
			op.Kind, op.Value = history.Set, fmt.Sprintf("%d;", i)
		case n == 3 && full:
			op.Kind = history.Delete
		case n == 4 && full:
			op.Kind, op.Value = history.CAS, fmt.Sprintf("%d;", i)
			_, op.Compare = s.Read(max(0, s.Len()-r.IntN(3)), op.Key)
		}
		e := history.Event{Client: client, Session: client, Op: op, Out: s.Do(client, op), Call: i, Return: 1000}
		if full && op.Kind != history.Get && r.IntN(6) == 0 {
			e.Out, e.Return = history.Outcome{}, history.Forever
			e.Client, e.Session = 100+int(i), 100+int(i) // its client's only command
		}
		h = append(h, e)
	}
	return h
}
