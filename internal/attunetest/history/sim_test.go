package history

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// fault is what is wrong with a simulated store.
type fault int

const (
	none        fault = iota
	lagging           // reads are answered by replicas behind the leader, but no session goes back
	forgetful         // the same, and nobody minds the sessions
	losing            // some acknowledged writes never happen
	doubling          // some increments and appends happen twice
	careless          // cas does not compare
	misordering       // some versions are handed out late
)

// change is an entry of the simulated log.
type change struct {
	version uint64
	key     string // empty: flush
	it      item
}

// sim is a store of several replicas, one command at a time.
type sim struct {
	fault fault
	rand  *rand.Rand
	log   []change
	seen  map[int]int // by session: how much of the log it knows of
	last  uint64
}

// at returns the item of key after the first n changes.
func (s *sim) at(n int, key string) item {
	for i := n - 1; i >= 0; i-- {
		if s.log[i].key == "" {
			return item{}
		}
		if s.log[i].key == key {
			return s.log[i].it
		}
	}
	return item{}
}

func (s *sim) change(key string, it item) Outcome {
	s.last += 1 + s.rand.Uint64N(3)
	it.version = s.last
	if s.fault == misordering && s.rand.IntN(10) == 0 {
		it.version -= min(it.version-1, 5)
	}
	if s.fault == losing && s.rand.IntN(20) == 0 {
		return Outcome{Status: Stored, Version: it.version}
	}
	s.log = append(s.log, change{it.version, key, it})
	return Outcome{Status: Stored, Version: it.version}
}

func (s *sim) do(session int, op Op) Outcome {
	if op.Kind == Get {
		n := len(s.log)
		if s.fault == lagging {
			n = max(s.seen[session], n-s.rand.IntN(10))
		}
		if s.fault == forgetful {
			n = max(0, n-s.rand.IntN(10))
		}
		s.seen[session] = n
		if it := s.at(n, op.Key); it.present {
			return Outcome{Status: Hit, Value: it.value, Version: it.version}
		}
		return Outcome{Status: Miss}
	}
	defer func() { s.seen[session] = len(s.log) }()
	cur := s.at(len(s.log), op.Key)
	to := func(value string) Outcome { return s.change(op.Key, item{present: true, value: value}) }
	twice := func(f func() Outcome) Outcome {
		out := f()
		if s.fault == doubling && s.rand.IntN(20) == 0 {
			f()
		}
		return out
	}
	switch {
	case op.Kind == Set, op.Kind == Add && !cur.present, op.Kind == Replace && cur.present:
		return to(op.Value)
	case op.Kind == Flush:
		s.change("", item{})
		return Outcome{Status: Flushed}
	case op.Kind == Add, !cur.present && (op.Kind == Replace || op.Kind == Append || op.Kind == Prepend):
		return Outcome{Status: NotStored}
	case !cur.present:
		return Outcome{Status: NotFound}
	case op.Kind == CAS && cur.version != op.Compare && s.fault != careless:
		return Outcome{Status: Exists}
	case op.Kind == CAS:
		return to(op.Value)
	case op.Kind == Append:
		return twice(func() Outcome { return to(s.at(len(s.log), op.Key).value + op.Value) })
	case op.Kind == Prepend:
		return to(op.Value + cur.value)
	case op.Kind == Delete:
		s.change(op.Key, item{})
		return Outcome{Status: Deleted}
	}
	return twice(func() Outcome {
		n, _ := strconv.ParseUint(s.at(len(s.log), op.Key).value, 10, 64)
		if op.Kind == Incr {
			n += op.Delta
		} else {
			n -= min(n, op.Delta)
		}
		out := to(strconv.FormatUint(n, 10))
		out.Status, out.Number = Counted, n
		return out
	})
}

// simulate has clients execute a workload on a store with a fault.
func simulate(w Workload, f fault, seed uint64, clients, ops int) History {
	s := &sim{fault: f, rand: rand.New(rand.NewPCG(seed, 1)), seen: make(map[int]int)}
	var progress atomic.Int64
	type client struct {
		gen   *Gen
		id    int
		state int // 0 idle, 1 called, 2 done
		fate  int // of the command under way; below 3 its outcome gets lost
		text  bool
		e     Event
	}
	var (
		all  []*client
		h    History
		late []Event // commands of unknown outcome that happen later
		ids  int
	)
	for i := range clients {
		ids++
		all = append(all, &client{gen: newGen(&w, i, rand.New(rand.NewPCG(seed, uint64(i+2))), &progress), id: ids, text: i%4 == 3})
	}
	for now := int64(0); len(h) < ops; now++ {
		if len(late) > 0 && s.rand.IntN(40) == 0 {
			s.do(-1, late[0].Op)
			late = late[1:]
		}
		c := all[s.rand.IntN(len(all))]
		switch c.state {
		case 0:
			c.e = Event{Client: c.id, Session: c.id, Node: "sim", Op: c.gen.next(false), Call: now}
			c.fate = s.rand.IntN(100)
		case 1:
			if c.fate != 0 {
				c.e.Out = s.do(c.id, c.e.Op)
			}
		case 2:
			c.e.Return = now
			if c.fate < 3 {
				if c.fate == 0 && s.rand.IntN(2) == 0 {
					late = append(late, c.e)
				}
				c.e.Out, c.e.Return = Outcome{}, Forever
				ids++
				c.id = ids
			} else {
				progress.Add(1)
				if c.text && c.e.Op.Kind != Get {
					c.e.Out.Version = 0
				}
				c.gen.saw(c.e.Op, c.e.Out)
			}
			h = append(h, c.e)
		}
		c.state = (c.state + 1) % 3
	}
	for _, c := range all {
		if c.state != 0 {
			c.e.Out, c.e.Return = Outcome{}, Forever
			h = append(h, c.e)
		}
	}
	return h
}

var simulated = []Workload{Registers, CASRegisters, Counters, Appends, Locks, Mixed, Flushes}

func TestCorrectStorePasses(t *testing.T) {
	for _, w := range simulated {
		for seed := range uint64(12) {
			h := simulate(w, none, seed, 6, 1500)
			for name, err := range map[string]error{
				"linearizable":  Linearizable(h, 20*time.Second, t.TempDir()),
				"fresh reads":   FreshReads(h),
				"version order": VersionOrder(h),
				"sequential":    Sequential(h, BySession),
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
			h := simulate(w, lagging, seed, 6, 1000)
			if err := Sequential(h, BySession); err != nil {
				t.Fatalf("%s, seed %d: %v", w.Name, seed, err)
			}
			if w.Name == Registers.Name && Linearizable(h, 20*time.Second, t.TempDir()) == nil {
				t.Errorf("%s, seed %d: linearizable", w.Name, seed)
			}
			if FreshReads(h) != nil {
				stale++
				if Linearizable(h, 20*time.Second, t.TempDir()) == nil {
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
	linear := func(h History) error { return Linearizable(h, 20*time.Second, t.TempDir()) }
	sequential := func(h History) error { return Sequential(h, BySession) }
	for _, c := range []struct {
		fault   fault
		w       Workload
		name    string
		checker func(History) error
	}{
		{forgetful, Registers, "linearizable", linear},
		{forgetful, Registers, "sequential", sequential},
		{forgetful, Registers, "fresh reads", FreshReads},
		{losing, Registers, "linearizable", linear},
		{losing, CASRegisters, "linearizable", linear},
		{losing, Registers, "sequential", sequential},
		{losing, Appends, "linearizable", linear},
		{losing, Mixed, "linearizable", linear},
		{doubling, Counters, "linearizable", linear},
		{doubling, Appends, "linearizable", linear},
		{careless, CASRegisters, "linearizable", linear},
		{careless, CASRegisters, "sequential", sequential},
		{careless, Mixed, "linearizable", linear},
		{misordering, Registers, "version order", VersionOrder},
		{losing, Locks, "linearizable", linear},
		{losing, Flushes, "linearizable", linear},
	} {
		found := 0
		const seeds = 8
		for seed := range uint64(seeds) {
			if c.checker(simulate(c.w, c.fault, seed, 6, 1000)) != nil {
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
	for _, f := range []fault{none, losing, doubling} {
		wrong := 0
		for seed := range uint64(8) {
			h, final := counted(f, seed)
			if _, err := ExactCounter(h, "n", 0, final); err != nil {
				wrong++
			}
		}
		if f == none && wrong > 0 || f != none && wrong < 6 {
			t.Errorf("fault %d: found in %d of 8 histories", f, wrong)
		}
	}
}

// counted is a history of increments only, and what they make.
func counted(f fault, seed uint64) (h History, final uint64) {
	s := &sim{fault: none, rand: rand.New(rand.NewPCG(seed, 9)), seen: make(map[int]int)}
	s.do(0, Op{Kind: Set, Key: "n", Value: "0"})
	s.fault = f
	for i := range int64(300) {
		op := Op{Kind: Incr, Key: "n", Delta: 1}
		e := Event{Client: int(i % 5), Op: op, Out: s.do(0, op), Call: 2 * i, Return: 2*i + 1}
		if s.rand.IntN(20) == 0 {
			e.Out, e.Return = Outcome{}, Forever
		}
		h = append(h, e)
	}
	final, _ = strconv.ParseUint(s.at(len(s.log), "n").value, 10, 64)
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
		right, err := brute(h), Sequential(h, BySession)
		if right {
			rights++
		} else {
			wrongs++
		}
		if right && err != nil {
			t.Fatalf("seed %d: there is an order, but: %v\n%s", seed, err, story(h, 99))
		}
		if !right && err == nil && !full {
			t.Fatalf("seed %d: there is no order, but it passes:\n%s", seed, story(h, 99))
		}
	}
	if rights < 500 || wrongs < 500 {
		t.Errorf("%d right histories and %d wrong ones prove little", rights, wrongs)
	}
}

// scramble makes a history: a run of a store whose replicas lag, in which a read
// may have been replaced by another. Full ones have deletes, cas and unknowns.
func scramble(r *rand.Rand, full bool) History {
	f := lagging
	if r.IntN(2) == 0 {
		f = forgetful
	}
	s := &sim{fault: f, rand: r, seen: make(map[int]int)}
	var h History
	for i := range int64(5 + r.IntN(6)) {
		client := 1 + r.IntN(3)
		op := Op{Kind: Get, Key: string(rune('a' + r.IntN(2)))}
		switch n := r.IntN(8); {
		case n < 3:
			op.Kind, op.Value = Set, fmt.Sprintf("%d;", i)
		case n == 3 && full:
			op.Kind = Delete
		case n == 4 && full:
			op.Kind, op.Value, op.Compare = CAS, fmt.Sprintf("%d;", i), s.at(max(0, len(s.log)-r.IntN(3)), op.Key).version
		}
		e := Event{Client: client, Session: client, Op: op, Out: s.do(client, op), Call: i, Return: 1000}
		if full && op.Kind != Get && r.IntN(6) == 0 {
			e.Out, e.Return = Outcome{}, Forever
			e.Client, e.Session = 100+int(i), 100+int(i) // its client's only command
		}
		h = append(h, e)
	}
	return h
}

// brute reports whether there is an order: each process in its own order, known
// versions ascending.
func brute(h History) bool {
	versions := make(map[string]uint64) // by value, as far as a read tells
	for _, e := range h {
		if e.Out.Status == Hit {
			versions[e.Out.Value] = e.Out.Version
		}
	}
	values := make(map[uint64]string)
	for value, v := range versions {
		values[v] = value
	}
	type state struct {
		done [16]bool
		last uint64
		a, b item
	}
	tried := make(map[state]bool)
	var search func(s state, left int) bool
	search = func(s state, left int) bool {
		if left == 0 {
			return true
		}
		if tried[s] {
			return false
		}
		tried[s] = true
		before := make(map[int]bool)
		for i, e := range h {
			if s.done[i] {
				continue
			}
			first := !before[e.Session]
			before[e.Session] = true
			if !first {
				continue
			}
			next := s
			next.done[i] = true
			if e.Out.Status == Unknown && search(next, left-1) { // it never happens
				return true
			}
			cur := &next.a
			if e.Op.Key == "b" {
				cur = &next.b
			}
			out := e.Out
			works := out.Status == Stored
			if out.Status == Unknown {
				works = e.Op.Kind == Set || e.Op.Kind == CAS && cur.present && cur.version == e.Op.Compare
			}
			after, ok := step(*cur, e.Op, out, values)
			if !ok {
				continue
			}
			if works {
				v := out.Version
				if v == 0 {
					v = versions[e.Op.Value]
				}
				if v != 0 && v <= s.last {
					continue
				}
				next.last = max(next.last, v)
				after.version = v
			}
			*cur = after
			if search(next, left-1) {
				return true
			}
		}
		return false
	}
	return search(state{}, len(h))
}
