package history

import "testing"

// everywhere is a survey in which two controllers have the same.
func everywhere(at int64, items map[string]Outcome) Survey {
	return Survey{Begin: at, End: at + 1, Nodes: map[string]map[string]Outcome{"n1": items, "n2": items}}
}

func hit(value string, version uint64) Outcome {
	return Outcome{Status: Hit, Value: value, Version: version}
}

var missing = Outcome{Status: Miss}

func TestConverged(t *testing.T) {
	for _, c := range []struct {
		name string
		h    *tale
		k    Outcome
		ok   bool
	}{
		{"the newest survives", begin().set(1, "a;", 1).set(2, "b;", 2), hit("b;", 2), true},
		{"the older survives", begin().set(1, "a;", 1).set(2, "b;", 2), hit("a;", 1), false},
		{"nothing survives", begin().set(1, "a;", 1), missing, false},
		{"nothing survives of what has no version", begin().set(1, "a;", 0), missing, false},
		{"nobody wrote", begin().miss(1), missing, true},
		{"nobody wrote it", begin().set(1, "a;", 1), hit("c;", 2), false},
		{"an unknown never was", begin().unknown(9, "a;"), missing, true},
		{"an unknown survives", begin().set(1, "a;", 1).unknown(2, "b;"), hit("b;", 2), true},
		{"an unknown does not survive", begin().set(1, "a;", 1).unknown(2, "b;"), hit("a;", 1), true},
		{"an unknown that was read does not survive", begin().set(1, "a;", 1).unknown(2, "b;").get(3, "b;", 2), hit("a;", 1), false},
		{"one without a version survives", begin().set(1, "a;", 1).set(2, "b;", 0), hit("b;", 2), true},
		{"one without a version may be the older", begin().set(1, "a;", 1).set(2, "b;", 0), hit("a;", 1), true},
		{"one without a version must be the newer", begin().set(1, "a;", 1).set(1, "b;", 0), hit("a;", 1), false},
		{"deleted", begin().set(1, "a;", 1).del(2, Deleted), missing, true},
		{"deleted before it", begin().set(1, "a;", 1).del(2, Deleted).set(2, "b;", 2), missing, false},
		{"deleted before one without version", begin().set(1, "a;", 1).del(2, Deleted).set(2, "b;", 0), missing, false},
		{"deleted, and back", begin().set(1, "a;", 1).get(2, "a;", 1).del(2, Deleted), hit("a;", 1), false},
		{"deleted by who did not know it", begin().set(1, "a;", 1).set(2, "b;", 2).get(1, "a;", 1).del(1, Deleted), hit("b;", 2), true},
		{"an unknown delete", begin().set(1, "a;", 1).at(2, Op{Kind: Delete}, Outcome{}), missing, true},
		{"an unknown delete that was not", begin().set(1, "a;", 1).at(2, Op{Kind: Delete}, Outcome{}), hit("a;", 1), true},
		{"missed, and back", begin().set(1, "a;", 1).get(2, "a;", 1).at(3, Op{Kind: Delete}, Outcome{}).miss(2), hit("a;", 1), false},
		{"flushed", begin().set(1, "a;", 1).at(1, Op{Kind: Flush}, Outcome{Status: Flushed}), missing, true},
		{"flushed, and back", begin().set(1, "a;", 1).at(1, Op{Kind: Flush}, Outcome{Status: Flushed}), hit("a;", 1), false},
		{"a counter shows another number", begin().set(1, "5", 1).incr(1, 6, 2), hit("7", 2), false},
		{"a connection went back before", begin().set(1, "a;", 1).set(1, "b;", 2).get(1, "a;", 1), hit("b;", 2), false},
	} {
		c.h.set(1, "other;", 100).on("other")
		s := everywhere(c.h.now+10, map[string]Outcome{"k": c.k, "other": hit("other;", 100)})
		if err := Converged(c.h.h, s, Rules{}); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestConvergedRules(t *testing.T) {
	h := begin().set(1, "a;", 1).set(2, "b;", 2).h
	h[1].Node = "killed"
	s := everywhere(100, map[string]Outcome{"k": hit("a;", 1)})
	rules := Rules{MayLose: func(e Event) bool { return e.Node == "killed" }}
	if err := Converged(h, s, rules); err != nil {
		t.Error(err)
	}
	gone := everywhere(100, map[string]Outcome{"k": missing})
	if err := Converged(h, gone, rules); err == nil {
		t.Error("what was not on the one that was killed is lost unnoticed")
	}
	if err := Converged(h, gone, Rules{Lossy: true}); err != nil {
		t.Error(err)
	}
	if err := Converged(h, s, Rules{Lossy: true}); err == nil {
		t.Error("an older version survives unnoticed")
	}
	for name, nodes := range map[string]map[string]map[string]Outcome{
		"another version": {"n1": {"k": hit("a;", 1)}, "n2": {"k": hit("a;", 2)}},
		"another value":   {"n1": {"k": hit("a;", 1)}, "n2": {"k": hit("b;", 1)}},
		"a miss":          {"n1": {"k": hit("b;", 2)}, "n2": {"k": missing}},
		"never asked":     {"n1": {"k": hit("b;", 2)}, "n2": {}},
		"nobody":          {},
	} {
		if err := Converged(h, Survey{Begin: 100, End: 101, Nodes: nodes}, Rules{}); err == nil {
			t.Errorf("controllers disagree unnoticed: %s", name)
		}
	}
	// What came after the survey is none of its business.
	late := begin().set(1, "a;", 1)
	late.now = 200
	if err := Converged(late.set(1, "c;", 9).h, everywhere(100, map[string]Outcome{"k": hit("a;", 1)}), Rules{}); err != nil {
		t.Error(err)
	}
}

func TestSettled(t *testing.T) {
	for _, c := range []struct {
		name   string
		before *tale
		k      Outcome
		after  func(s *tale) *tale
		ok     bool
	}{
		{"nothing happens", begin().set(1, "a;", 1), hit("a;", 1), func(s *tale) *tale { return s.get(3, "a;", 1) }, true},
		{"an older one is back", begin().set(1, "a;", 1).set(1, "b;", 2), hit("b;", 2), func(s *tale) *tale { return s.get(3, "a;", 1) }, false},
		{"an older one was read before", begin().set(1, "a;", 1).get(2, "a;", 1).set(1, "b;", 2), hit("b;", 2), func(s *tale) *tale { return s }, true},
		{"it is lost", begin().set(1, "a;", 1), hit("a;", 1), func(s *tale) *tale { return s.miss(3) }, false},
		{"it is lost, by an old delete", begin().set(1, "a;", 1).del(1, Deleted).set(1, "b;", 2), hit("b;", 2), func(s *tale) *tale { return s.miss(3) }, false},
		{"it is deleted", begin().set(1, "a;", 1), hit("a;", 1), func(s *tale) *tale { return s.del(1, Deleted).miss(3) }, true},
		{"it is deleted late", begin().set(1, "a;", 1).at(2, Op{Kind: Delete}, Outcome{}), hit("a;", 1), func(s *tale) *tale { return s.miss(3) }, true},
		{"it is replaced", begin().set(1, "a;", 1), hit("a;", 1), func(s *tale) *tale { return s.set(1, "b;", 2).get(3, "b;", 2) }, true},
		{"it stays away", begin().set(1, "a;", 1).del(1, Deleted), missing, func(s *tale) *tale { return s.miss(3) }, true},
		{"it is back", begin().set(1, "a;", 1).del(1, Deleted), missing, func(s *tale) *tale { return s.get(3, "a;", 1) }, false},
		{"it is back, and its version was never told", begin().set(1, "a;", 0).del(1, Deleted), missing, func(s *tale) *tale { return s.get(3, "a;", 1) }, false},
		{"it is back with what was appended", begin().set(1, "a;", 1).at(2, Op{Kind: Append, Value: "b;"}, Outcome{Status: Stored}).del(1, Deleted), missing,
			func(s *tale) *tale { return s.get(3, "a;b;", 2) }, false},
		{"it was never answered, and happens late", begin().set(1, "a;", 1).unknown(2, "b;").del(1, Deleted), missing, func(s *tale) *tale { return s.get(3, "b;", 2) }, true},
		{"it was never answered, was read, and is back", begin().unknown(2, "b;").get(1, "b;", 2).del(1, Deleted), missing,
			func(s *tale) *tale { return s.get(3, "b;", 2) }, false},
		{"it is written again", begin().set(1, "a;", 1).del(1, Deleted), missing, func(s *tale) *tale { return s.set(1, "b;", 2).get(3, "b;", 2) }, true},
	} {
		s := everywhere(c.before.now+5, map[string]Outcome{"k": c.k})
		c.before.now += 10
		if err := Settled(c.after(c.before).h, s, Rules{}); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	h := begin().set(1, "a;", 1).del(1, Deleted).h
	first := everywhere(100, map[string]Outcome{"k": missing})
	if err := Settled(h.With(first), first, Rules{}); err != nil {
		t.Error(err)
	}
	if err := Settled(h.With(everywhere(200, map[string]Outcome{"k": hit("a;", 1)})), first, Rules{}); err == nil {
		t.Error("a later survey shows what was gone, unnoticed")
	}
}
