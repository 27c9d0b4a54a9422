package history

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// tale makes a history one event after the other.
type tale struct {
	h   History
	now int64
}

// at has client do op, after everything before has returned.
func (s *tale) at(client int, op Op, out Outcome) *tale {
	s.now += 2
	end := s.now + 1
	if out.Status == Unknown {
		end = Forever
	}
	if op.Key == "" && op.Kind != Flush {
		op.Key = "k"
	}
	s.h = append(s.h, Event{Client: client, Session: client, Node: "n1", Op: op, Out: out, Call: s.now, Return: end})
	return s
}

// long has the newest event span the n before it.
func (s *tale) long(n int) *tale {
	s.h[len(s.h)-1].Call = s.h[len(s.h)-1-n].Call
	return s
}

func (s *tale) set(client int, value string, version uint64) *tale {
	return s.at(client, Op{Kind: Set, Value: value}, Outcome{Status: Stored, Version: version})
}

func (s *tale) get(client int, value string, version uint64) *tale {
	return s.at(client, Op{}, Outcome{Status: Hit, Value: value, Version: version})
}

func (s *tale) miss(client int) *tale { return s.at(client, Op{}, Outcome{Status: Miss}) }

func (s *tale) unknown(client int, value string) *tale {
	return s.at(client, Op{Kind: Set, Value: value}, Outcome{})
}

func (s *tale) cas(client int, value string, compare uint64, status Status, version uint64) *tale {
	return s.at(client, Op{Kind: CAS, Value: value, Compare: compare}, Outcome{Status: status, Version: version})
}

func (s *tale) incr(client int, number, version uint64) *tale {
	return s.at(client, Op{Kind: Incr, Delta: 1}, Outcome{Status: Counted, Number: number, Version: version})
}

func (s *tale) del(client int, status Status) *tale {
	return s.at(client, Op{Kind: Delete}, Outcome{Status: status})
}

func (s *tale) on(key string) *tale {
	s.h[len(s.h)-1].Op.Key = key
	return s
}

func begin() *tale { return &tale{} }

// A checker is worth what it rejects.
func TestCheckers(t *testing.T) {
	for _, c := range []struct {
		name string
		h    *tale
		// What the checkers say: linearizable, fresh reads, sequential.
		linear, fresh, sequential bool
	}{
		{"what is set is read", begin().set(1, "a;", 1).get(2, "a;", 1).set(2, "b;", 2).get(1, "b;", 2), true, true, true},
		{"a stale read of another client", begin().set(1, "a;", 1).set(1, "b;", 2).get(2, "a;", 1), false, false, true},
		{"a stale read of one's own write", begin().set(1, "a;", 1).set(1, "b;", 2).get(1, "a;", 1), false, false, false},
		{"a read during the write may see either", begin().set(1, "a;", 1).get(2, "a;", 1).set(1, "b;", 2).long(1), true, true, true},
		{"going back", begin().set(1, "a;", 1).unknown(2, "b;").get(3, "b;", 2).get(3, "a;", 1), false, false, false},
		{"going back between clients", begin().set(1, "a;", 1).unknown(2, "b;").get(3, "b;", 2).get(4, "a;", 1), false, false, true},
		{"an unknown write that happens late", begin().unknown(2, "b;").set(1, "a;", 1).get(3, "a;", 1).get(3, "b;", 2), true, true, true},
		{"an unknown write that never happens", begin().set(1, "a;", 1).unknown(2, "b;").get(3, "a;", 1), true, true, true},
		{"a value that nobody wrote", begin().set(1, "a;", 1).get(2, "c;", 2), false, true, false},
		{"a version of two values", begin().set(1, "a;", 1).unknown(2, "b;").get(3, "b;", 1).get(4, "a;", 1), false, false, false},
		{"a lost write", begin().set(1, "a;", 1).miss(2), false, false, true},
		{"a lost write of one's own", begin().set(1, "a;", 1).miss(1), false, false, false},
		{"a miss after a delete", begin().set(1, "a;", 1).del(2, Deleted).miss(1), true, true, true},
		{"a read after a delete of one's own", begin().set(1, "a;", 1).del(1, Deleted).get(1, "a;", 1), false, true, false},
		{"a delete after what comes later", begin().set(1, "a;", 1).set(2, "b;", 2).get(3, "b;", 2).miss(3).del(1, Deleted).set(1, "c;", 3).get(3, "c;", 3),
			false, true, true},
		{"a miss before a delete that is known to be older", begin().set(1, "a;", 1).del(1, Deleted).set(1, "b;", 2).get(3, "b;", 2).miss(3), false, true, false},
		{"delete of nothing", begin().del(1, Deleted), false, true, true},
		{"deleted twice", begin().set(1, "a;", 1).del(1, Deleted).del(2, Deleted), false, true, true},
		{"not found", begin().del(1, NotFound).set(1, "a;", 1).del(1, NotFound), false, true, false},
		{"a cas", begin().set(1, "a;", 1).get(2, "a;", 1).cas(2, "b;", 1, Stored, 2).get(1, "b;", 2), true, true, true},
		{"two cas of one version", begin().set(1, "a;", 1).get(2, "a;", 1).get(3, "a;", 1).cas(2, "b;", 1, Stored, 2).cas(3, "c;", 1, Stored, 3),
			false, true, false},
		{"two cas of one version, without versions", begin().set(1, "a;", 0).get(2, "a;", 1).cas(2, "b;", 1, Stored, 0).cas(3, "c;", 1, Stored, 0),
			false, true, true},
		{"a cas over a lost update", begin().set(1, "a;", 1).get(2, "a;", 1).set(3, "x;", 2).cas(2, "b;", 1, Stored, 3), false, true, false},
		{"a cas refused", begin().set(1, "a;", 1).get(2, "a;", 1).set(3, "x;", 2).cas(2, "b;", 1, Exists, 0).get(2, "x;", 2), true, true, true},
		{"a cas refused for nothing", begin().set(1, "a;", 1).get(2, "a;", 1).cas(2, "b;", 1, Exists, 0), false, true, true},
		{"add of one there is", begin().set(1, "a;", 1).at(2, Op{Kind: Add, Value: "b;"}, Outcome{Status: Stored, Version: 2}), false, true, true},
		{"add refused", begin().set(1, "a;", 1).at(2, Op{Kind: Add, Value: "b;"}, Outcome{Status: NotStored}), true, true, true},
		{"a duplicated increment", begin().set(1, "5", 1).incr(2, 6, 2).incr(3, 6, 3), false, true, true},
		{"increments", begin().set(1, "5", 1).incr(2, 6, 2).incr(3, 7, 3).get(1, "7", 3), true, true, true},
		{"an increment counted twice", begin().set(1, "5", 1).incr(2, 6, 2).get(1, "7", 3), false, true, true},
		{"an append", begin().set(1, "a;", 1).at(2, Op{Kind: Append, Value: "b;"}, Outcome{Status: Stored, Version: 2}).get(1, "a;b;", 2), true, true, true},
		{"a lost append", begin().set(1, "a;", 1).at(2, Op{Kind: Append, Value: "b;"}, Outcome{Status: Stored, Version: 2}).
			at(3, Op{Kind: Append, Value: "c;"}, Outcome{Status: Stored, Version: 3}).get(1, "a;c;", 3), false, true, true},
		{"an append done twice", begin().set(1, "a;", 1).at(2, Op{Kind: Append, Value: "b;"}, Outcome{}).get(1, "a;b;b;", 2), false, true, true},
		{"a prepend", begin().set(1, "a;", 1).at(2, Op{Kind: Prepend, Value: "b;"}, Outcome{Status: Stored}).get(1, "b;a;", 2), true, true, true},
		{"a flush", begin().set(1, "a;", 1).at(2, Op{Kind: Flush}, Outcome{Status: Flushed}).miss(1).set(1, "b;", 2).get(2, "b;", 2), true, true, true},
		{"what was flushed comes back", begin().set(1, "a;", 1).at(2, Op{Kind: Flush}, Outcome{Status: Flushed}).miss(1).get(1, "a;", 1), false, true, true},
		{"what one flushed comes back", begin().set(2, "a;", 1).at(2, Op{Kind: Flush}, Outcome{Status: Flushed}).get(2, "a;", 1), false, true, false},
		{"versions against time", begin().set(1, "a;", 2).set(2, "b;", 1).on("other"), true, true, false},
		{"two writes of one version", begin().set(1, "a;", 1).set(2, "b;", 1).on("other"), true, true, false},
		{"across keys", begin().set(1, "a;", 1).set(1, "b;", 2).on("other").get(2, "b;", 2).on("other").miss(2), false, false, false},
		{"across keys, in order", begin().set(1, "a;", 1).set(1, "b;", 2).on("other").miss(2).get(2, "b;", 2).on("other").get(2, "a;", 1), false, false, true},
		{"an answer that is none", begin().at(1, Op{}, Outcome{Status: Broken, Value: "STORED"}), false, true, false},
	} {
		for _, checker := range []struct {
			name string
			got  error
			want bool
		}{
			{"linearizable", Linearizable(c.h.h, time.Minute, t.TempDir()), c.linear},
			{"fresh reads", FreshReads(c.h.h), c.fresh},
			{"sequential", Sequential(c.h.h, BySession), c.sequential},
		} {
			if (checker.got == nil) != checker.want {
				t.Errorf("%s: %s: want %v, have %v", c.name, checker.name, checker.want, checker.got)
			}
		}
	}
}

// A client that comes back over another connection is another process, or not.
func TestProcesses(t *testing.T) {
	h := begin().set(1, "a;", 1).set(1, "b;", 2).get(2, "b;", 2).get(2, "a;", 1).h
	h[3].Session = 7
	if err := Sequential(h, BySession); err != nil {
		t.Error(err)
	}
	if err := Sequential(h, ByClient); err == nil {
		t.Error("a client goes back unnoticed")
	}
}

func TestViolationIsToldAndDrawn(t *testing.T) {
	dir := t.TempDir()
	s := begin()
	for i := range 50 {
		s.set(1, fmt.Sprintf("a%d;", i), uint64(2*i+1)).get(2, fmt.Sprintf("a%d;", i), uint64(2*i+1))
	}
	s.get(3, "a48;", 97)
	bad := s.h[len(s.h)-1]
	for i := range 50 {
		s.set(1, fmt.Sprintf("b%d;", i), uint64(2*i+1001))
	}
	err := Linearizable(s.h, time.Minute, dir)
	if err == nil || !strings.Contains(err.Error(), "Nothing allows the answer of: "+bad.String()) {
		t.Fatalf("not told which answer is wrong: %v", err)
	}
	if strings.Contains(err.Error(), "b7;") {
		t.Errorf("tells what came later: %v", err)
	}
	files, _ := os.ReadDir(dir)
	if len(files) != 1 {
		t.Fatalf("pages: %v", files)
	}
	if info, err := files[0].Info(); err != nil || info.Size() == 0 {
		t.Errorf("the page is empty: %v", err)
	}
}

func TestUndecided(t *testing.T) {
	s := begin()
	for i := range 40 { // all at once, and the sum does not tell the order
		s.at(i, Op{Kind: Incr, Delta: 1}, Outcome{})
	}
	s.set(50, "0", 1).incr(51, 30, 2).incr(51, 70, 3)
	if err := Linearizable(s.h, 50*time.Millisecond, t.TempDir()); !errors.Is(err, ErrUndecided) {
		t.Errorf("have %v", err)
	}
}

func TestKeptSets(t *testing.T) {
	h := begin().set(1, "a;", 1).on("a").set(1, "b;", 2).on("b").unknown(2, "c;").on("c").unknown(3, "d;").on("d").h
	hit := func(v string) Outcome { return Outcome{Status: Hit, Value: v} }
	for name, c := range map[string]struct {
		final map[string]Outcome
		ok    bool
	}{
		"all there":        {map[string]Outcome{"a": hit("a;"), "b": hit("b;"), "c": hit("c;")}, true},
		"one lost":         {map[string]Outcome{"a": hit("a;"), "b": {Status: Miss}}, false},
		"one never read":   {map[string]Outcome{"a": hit("a;")}, false},
		"another value":    {map[string]Outcome{"a": hit("a;"), "b": hit("a;")}, false},
		"an unknown other": {map[string]Outcome{"a": hit("a;"), "b": hit("b;"), "c": hit("a;")}, false},
	} {
		n, err := KeptSets(h, c.final)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if c.ok && n != (Counts{2, 2}) {
			t.Errorf("%s: %+v", name, n)
		}
	}
}

func TestExactCounter(t *testing.T) {
	unknown := func(s *tale) *tale { return s.at(9, Op{Kind: Incr, Delta: 1}, Outcome{}) }
	for _, c := range []struct {
		name         string
		h            *tale
		begin, final uint64
		ok           bool
	}{
		{"exact", begin().incr(1, 11, 0).incr(2, 12, 0), 10, 12, true},
		{"unknown ones that happened", unknown(begin().incr(1, 11, 0)).incr(2, 13, 0), 10, 13, true},
		{"unknown ones that did not", unknown(begin().incr(1, 11, 0)), 10, 11, true},
		{"lost", begin().incr(1, 11, 0).incr(2, 12, 0), 10, 11, false},
		{"lost, and the result given again", begin().incr(1, 11, 0).incr(2, 11, 0), 10, 12, false},
		{"done twice", begin().incr(1, 11, 0).incr(2, 13, 0), 10, 13, false},
		{"more than was asked", unknown(begin().incr(1, 11, 0)), 10, 13, false},
		{"results against time", begin().incr(1, 12, 0).incr(2, 11, 0), 10, 12, false},
		{"results against time are right at once", begin().incr(1, 12, 0).incr(2, 11, 0).long(1), 10, 12, true},
		{"not there", begin().at(1, Op{Kind: Incr, Delta: 1}, Outcome{Status: NotFound}), 10, 10, false},
	} {
		if _, err := ExactCounter(c.h.h, "k", c.begin, c.final); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestBoundedCounter(t *testing.T) {
	for _, c := range []struct {
		name         string
		h            *tale
		begin, final uint64
		ok           bool
	}{
		{"exact", begin().incr(1, 11, 0).incr(2, 12, 0), 10, 12, true},
		{"one lost", begin().incr(1, 11, 0).incr(2, 11, 0), 10, 11, true},
		{"all lost", begin().incr(1, 11, 0), 10, 10, true},
		{"an unknown that happened", begin().at(1, Op{Kind: Incr, Delta: 1}, Outcome{}).incr(2, 12, 0), 10, 12, true},
		{"one done twice", begin().incr(1, 12, 0).incr(2, 13, 0), 10, 13, false},
		{"one done twice, and lost", begin().incr(1, 12, 0).incr(2, 11, 0), 10, 11, false},
		{"the sum is too much", begin().incr(1, 11, 0), 10, 12, false},
		{"it began again", begin().incr(1, 11, 0), 10, 9, false},
		{"a result of less than nothing", begin().incr(1, 10, 0), 10, 10, false},
		{"not by one", begin().at(1, Op{Kind: Incr, Delta: 2}, Outcome{Status: Counted, Number: 12}), 10, 12, false},
	} {
		if _, err := BoundedCounter(c.h.h, "k", c.begin, c.final); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestGap(t *testing.T) {
	h := History{{Call: 0, Return: 10}, {Call: 5, Return: 20}, {Call: 70, Return: 80}, {Call: 30, Return: 40, Out: Outcome{Status: Unknown}}}
	for i := range h {
		if i != 3 {
			h[i].Out.Status = Miss
		}
	}
	if got, at := h.Gap(0, 100, func(Event) bool { return true }); got != 60 || at != 20 {
		t.Errorf("have %v at %d", got, at)
	}
	if got, at := h.Gap(0, 200, func(e Event) bool { return e.Call < 50 }); got != 180 || at != 20 {
		t.Errorf("have %v at %d", got, at)
	}
}
