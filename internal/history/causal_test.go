package history

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestReplicated has what the causal and the eventual level must not show.
func TestReplicated(t *testing.T) {
	add := func(s *tale, client int, value string, out Outcome) *tale {
		return s.at(client, Op{Kind: Add, Value: value}, out)
	}
	flush := func(s *tale, client int) *tale { return s.at(client, Op{Kind: Flush}, Outcome{Status: Flushed}) }
	for _, c := range []struct {
		name             string
		h                *tale
		causal, eventual bool
	}{
		{"what is set is read", begin().set(1, "a;", 1).get(2, "a;", 1), true, true},
		{"it is not there yet", begin().set(1, "a;", 1).miss(2).get(2, "a;", 1), true, true},
		{"a stale read", begin().set(1, "a;", 1).set(1, "b;", 2).get(2, "a;", 1).get(2, "b;", 2), true, true},
		{"a stale read of one's own write", begin().set(1, "a;", 1).set(1, "b;", 2).get(1, "a;", 1), false, false},
		{"going back", begin().set(1, "a;", 1).set(1, "b;", 2).get(2, "b;", 2).get(2, "a;", 1), false, false},
		{"going back, in a dialect without versions", begin().set(1, "a;", 1).set(1, "b;", 2).get(2, "b;", 0).get(2, "a;", 0), false, false},
		{"one's own write is lost", begin().set(1, "a;", 1).miss(1), false, false},
		{"one's own write is lost, and has no version", begin().set(1, "a;", 0).miss(1), false, false},
		{"what was read is lost", begin().set(1, "a;", 1).get(2, "a;", 1).miss(2), false, false},
		{"effect before cause", begin().set(1, "a;", 1).on("x").set(1, "b;", 2).on("y").get(2, "b;", 2).on("y").miss(2).on("x"), false, true},
		{"effect before a newer cause", begin().set(1, "a;", 1).on("x").set(1, "c;", 2).on("x").set(1, "b;", 3).on("y").
			get(2, "b;", 3).on("y").get(2, "a;", 1).on("x"), false, true},
		{"effect before cause through a third", begin().set(1, "a;", 1).on("x").set(1, "b;", 2).on("y").get(2, "b;", 2).on("y").
			set(2, "c;", 3).on("z").get(3, "c;", 3).on("z").miss(3).on("x"), false, true},
		{"through a third, without versions", begin().set(1, "a;", 0).on("x").set(1, "b;", 0).on("y").get(2, "b;", 2).on("y").
			set(2, "c;", 0).on("z").get(3, "c;", 3).on("z").miss(3).on("x"), false, true},
		{"effect before cause is right the other way", begin().set(1, "a;", 1).on("x").set(1, "b;", 2).on("y").get(2, "a;", 1).on("x").miss(2).on("y"), true, true},
		{"independent writes in any order", begin().set(1, "a;", 1).on("x").set(2, "b;", 2).on("y").
			get(3, "a;", 1).on("x").miss(3).on("y").get(4, "b;", 2).on("y").miss(4).on("x"), true, true},
		{"two orders of one key", begin().set(1, "a;", 1).set(2, "b;", 2).get(3, "a;", 1).get(3, "b;", 2).get(4, "b;", 2).get(4, "a;", 1), false, false},
		{"a write under what it knows", begin().set(1, "a;", 5).get(2, "a;", 5).set(2, "b;", 3), false, false},
		{"a write under what it knows from another key", begin().set(1, "a;", 5).on("x").set(1, "b;", 6).on("y").get(2, "b;", 6).on("y").set(2, "c;", 3).on("x"), false, true},
		{"a value that nobody wrote", begin().set(1, "a;", 1).get(2, "c;", 2), false, false},
		{"a value of another key", begin().set(1, "a;", 1).on("x").get(2, "a;", 1).on("y"), false, false},
		{"a value that was refused", add(begin().set(1, "a;", 1), 2, "b;", Outcome{Status: NotStored}).get(3, "b;", 2), false, false},
		{"a value before it was written", begin().get(1, "a;", 1).set(2, "a;", 1), false, false},
		{"a torn value", begin().set(1, "a;", 1).get(2, "torn(a;~b);", 1), false, false},
		{"garbage behind a value", begin().set(1, "a;", 1).get(2, "a;x", 0), false, false},
		{"two values of a version", begin().set(1, "a;", 1).unknown(2, "b;").get(3, "b;", 1), false, false},
		{"two versions of a value", begin().set(1, "a;", 1).get(3, "a;", 2), false, false},
		{"two versions of a value nobody told", begin().set(1, "a;", 0).get(2, "a;", 1).get(3, "a;", 2), false, false},
		{"two writes of a version", begin().set(1, "a;", 1).set(2, "b;", 1), false, false},
		{"an unknown write that happened", begin().unknown(2, "b;").get(3, "b;", 2).set(3, "c;", 3), true, true},
		{"an unknown write that happened, and went", begin().unknown(2, "b;").get(3, "b;", 2).miss(3), false, false},
		{"an unknown write that happens late", begin().unknown(2, "b;").miss(3).set(3, "a;", 1).get(3, "a;", 1).get(3, "b;", 2), true, true},
		{"an unknown write and what its client knew", begin().set(1, "a;", 1).on("x").unknown(1, "b;").on("y").get(2, "b;", 2).on("y").miss(2).on("x"), false, true},
		{"a delete", begin().set(1, "a;", 1).del(1, Deleted).miss(1).get(2, "a;", 1).miss(2), true, true},
		{"a read after one's own delete", begin().set(1, "a;", 1).del(1, Deleted).get(1, "a;", 1), false, false},
		{"a read after a delete that one knows of", begin().set(1, "a;", 1).del(1, Deleted).set(1, "b;", 2).on("y").get(2, "b;", 2).on("y").get(2, "a;", 1), false, true},
		{"a deleted value returns", begin().set(1, "a;", 1).get(2, "a;", 1).del(1, Deleted).miss(2).get(2, "a;", 1), false, false},
		{"a newer value after a delete", begin().set(1, "a;", 1).del(1, Deleted).set(2, "b;", 2).miss(1).get(1, "b;", 2), true, true},
		{"a miss by a delete that is known to be older", begin().set(1, "a;", 1).del(1, Deleted).set(1, "b;", 2).get(3, "b;", 2).miss(3), false, false},
		{"a miss by a delete that is older than a write without version", begin().set(1, "a;", 1).del(1, Deleted).set(1, "b;", 0).miss(1), false, false},
		{"a miss by a delete that comes after", begin().set(1, "a;", 1).get(2, "a;", 1).miss(2).del(1, Deleted), false, false},
		{"a miss by an unknown delete", begin().set(1, "a;", 1).get(2, "a;", 1).at(3, Op{Kind: Delete}, Outcome{}).miss(2), true, true},
		{"a miss by a delete that knows of the miss", begin().set(1, "a;", 1).miss(1).set(1, "y;", 2).on("y").get(2, "y;", 2).on("y").long(2).del(2, Deleted).long(3), false, true},
		{"a miss by another's delete", begin().set(1, "a;", 1).get(2, "a;", 1).del(1, Deleted).miss(2), true, true},
		{"not found what one knows", begin().set(1, "a;", 1).del(1, NotFound), false, false},
		{"an add over what one knows", add(begin().set(1, "a;", 1), 1, "b;", Outcome{Status: Stored, Version: 2}), false, false},
		{"an add over what one does not know", add(begin().set(1, "a;", 1), 2, "b;", Outcome{Status: Stored, Version: 2}), true, true},
		{"an add after a delete", add(begin().set(1, "a;", 1).del(1, Deleted), 1, "b;", Outcome{Status: Stored, Version: 2}), true, true},
		{"a cas", begin().set(1, "a;", 1).get(2, "a;", 1).cas(2, "b;", 1, Stored, 2).get(1, "b;", 2), true, true},
		{"a cas of less than one knows", begin().set(1, "a;", 1).set(1, "b;", 2).cas(1, "c;", 1, Stored, 3), false, false},
		{"a cas of what one knows to be deleted", begin().set(1, "a;", 1).del(1, Deleted).cas(1, "c;", 1, Stored, 3), false, false},
		{"what the one who is compared with knew", begin().set(1, "a;", 1).on("x").set(1, "b;", 2).on("y").cas(2, "c;", 2, Stored, 3).on("y").miss(2).on("x"), false, true},
		{"two cas of one version, apart", begin().set(1, "a;", 1).cas(1, "b;", 1, Stored, 2).cas(2, "c;", 1, Stored, 3), true, true},
		{"an append", begin().set(1, "a;", 1).at(2, Op{Kind: Append, Value: "b;"}, Outcome{Status: Stored, Version: 2}).get(3, "a;b;", 2), true, true},
		{"half an append", begin().set(1, "a;", 1).at(2, Op{Kind: Append, Value: "b;"}, Outcome{Status: Stored, Version: 2}).get(3, "b;", 2), false, false},
		{"half an append nobody told", begin().set(1, "a;", 1).at(2, Op{Kind: Append, Value: "b;"}, Outcome{Status: Stored}).get(3, "b;", 2), false, false},
		{"an append under another version", begin().set(1, "a;", 1).at(2, Op{Kind: Append, Value: "b;"}, Outcome{Status: Stored, Version: 2}).get(3, "a;b;", 3), false, false},
		{"a prepend without a version", begin().set(1, "a;", 1).at(2, Op{Kind: Prepend, Value: "b;"}, Outcome{Status: Stored}).get(3, "b;a;", 2), true, true},
		{"what the one who appended knew", begin().set(1, "x;", 1).on("x").set(1, "a;", 2).at(1, Op{Kind: Append, Value: "b;"}, Outcome{Status: Stored, Version: 3}).
			get(3, "a;b;", 3).miss(3).on("x"), false, true},
		{"a counter", begin().set(1, "5", 1).incr(2, 6, 2).get(2, "6", 2), true, true},
		{"a counter that shows another number", begin().set(1, "5", 1).incr(2, 6, 2).get(2, "7", 2), false, false},
		{"a counter of a version nobody made", begin().set(1, "5", 1).incr(2, 6, 2).get(3, "7", 3), false, false},
		{"a counter of a version nobody was told", begin().set(1, "5", 1).incr(2, 6, 0).get(3, "6", 3), true, true},
		{"a flush", flush(begin().set(1, "a;", 1), 1).miss(1).get(2, "a;", 1).miss(2), true, true},
		{"what one flushed", flush(begin().set(1, "a;", 1), 1).get(1, "a;", 1), false, false},
		{"an answer that is none", begin().at(1, Op{}, Outcome{Status: Broken, Value: "STORED"}), false, false},
	} {
		for _, checker := range []struct {
			name string
			got  error
			want bool
		}{
			{"causal", Causal(c.h.h, Rules{}), c.causal},
			{"eventual", Eventual(c.h.h, Rules{}), c.eventual},
		} {
			if (checker.got == nil) != checker.want {
				t.Errorf("%s: %s: want %v, have %v", c.name, checker.name, checker.want, checker.got)
			}
		}
	}
}

func TestRules(t *testing.T) {
	h := begin().set(1, "a;", 1).set(1, "b;", 2).get(2, "b;", 2).get(3, "a;", 1).h
	if err := Eventual(h, Rules{}); err != nil {
		t.Error(err)
	}
	if err := Eventual(h, Rules{Shared: true}); err == nil {
		t.Error("a controller goes back unnoticed")
	}
	h[3].Node = "n2"
	if err := Eventual(h, Rules{Shared: true}); err != nil {
		t.Error(err)
	}
	h[3].Node, h[3].Call = "n1", h[1].Return // called while the set was not answered yet
	if err := Eventual(h, Rules{Shared: true}); err != nil {
		t.Error(err)
	}

	// What another decided, and took long to come back, need not be seen.
	h = begin().set(1, "a;", 1).cas(1, "b;", 1, Stored, 2).get(1, "a;", 1).h
	for _, shared := range []bool{false, true} {
		if err := Eventual(h, Rules{Late: 2, Shared: shared}); err == nil {
			t.Error("what came back in time is not seen, unnoticed")
		}
		if err := Eventual(h, Rules{Late: 1, Shared: shared}); err != nil {
			t.Error(err)
		}
	}
	h = begin().set(1, "a;", 1).set(1, "b;", 2).get(1, "a;", 1).h
	if err := Eventual(h, Rules{Late: 1}); err == nil {
		t.Error("one's own set is not seen, unnoticed")
	}

	h = begin().set(1, "a;", 1).miss(1).h
	if err := Causal(h, Rules{Lossy: true}); err != nil {
		t.Error(err)
	}
	h = begin().set(1, "a;", 1).miss(1).get(1, "a;", 1).h
	if err := Causal(h, Rules{Lossy: true}); err == nil {
		t.Error("what was lost is back unnoticed")
	}
}

// Whoever reads of a violation sees how the one came to be known to the other.
func TestCausalViolationIsTold(t *testing.T) {
	s := begin().set(9, "z;", 1).on("other").set(1, "a;", 1).on("x").set(1, "b;", 2).on("y").
		get(2, "b;", 2).on("y").set(2, "c;", 3).on("z").get(3, "c;", 3).on("z").miss(3).on("x")
	err := Causal(s.h, Rules{})
	if err == nil {
		t.Fatal("nothing found")
	}
	_, how, _ := strings.Cut(err.Error(), "How it is known")
	at := 0
	for _, e := range s.h[1:] {
		i := strings.Index(how[at:], e.String())
		if i < 0 {
			t.Fatalf("the way lacks %v:\n%v", e, err)
		}
		at += i
	}
	if strings.Contains(err.Error(), "other") {
		t.Errorf("it tells what has nothing to do with it: %v", err)
	}
}

// Commands whose clocks were read on several machines may know themselves.
func TestCircle(t *testing.T) {
	h := begin().get(1, "b;", 2).on("y").set(1, "a;", 1).on("x").get(2, "a;", 1).on("x").set(2, "b;", 2).on("y").h
	for i := range h {
		h[i].Return = 1000
	}
	if err := Causal(h, Rules{}); err == nil || !strings.Contains(err.Error(), "know themselves") || strings.Count(err.Error(), "\n") != 5 {
		t.Error(err)
	}
	if err := Eventual(h, Rules{}); err != nil {
		t.Error(err)
	}
}

func TestConnectionsAreInOrder(t *testing.T) {
	if err := Causal(begin().unknown(1, "a;").miss(1).h, Rules{}); err == nil {
		t.Error("a connection goes on though it was not answered")
	}
	if err := Causal(begin().set(1, "a;", 1).set(2, "a;", 2).h, Rules{}); err == nil {
		t.Error("two writers of one value cannot be told apart")
	}
}

// TestCausalAgainstClosure compares with the definition, by the closure of who
// knows whom, on histories of sets and gets of which many are wrong.
func TestCausalAgainstClosure(t *testing.T) {
	rights, wrongs := [2]int{}, [2]int{}
	for seed := range uint64(6000) {
		r := rand.New(rand.NewPCG(seed, 5))
		h := jumble(r)
		for n, check := range []func(History, Rules) error{Causal, Eventual} {
			rules := Rules{Shared: seed%2 == 0}
			right, err := closure(h, rules, n == 0), check(h, rules)
			if right != (err == nil) {
				t.Fatalf("seed %d: right is %v, but: %v\n%s", seed, right, err, story(h, 99))
			}
			if right {
				rights[n]++
			} else {
				wrongs[n]++
			}
		}
	}
	t.Log(rights, wrongs)
	if min(rights[0], rights[1], wrongs[0], wrongs[1]) < 500 {
		t.Errorf("%v right histories and %v wrong ones prove little", rights, wrongs)
	}
}

// jumble makes a history of sets and gets on two keys, where a get answers with
// anything that was written before, most often the newest.
func jumble(r *rand.Rand) (h History) {
	written := map[string][]Event{}
	version := uint64(0)
	for i := range int64(4 + r.IntN(14)) {
		session := 1 + r.IntN(4)
		e := Event{Client: session, Session: session, Node: fmt.Sprint("n", session%2), Call: 4 * i, Return: 4*i + 1 + 8*r.Int64N(2)}
		e.Op.Key = string(rune('x' + r.IntN(2)))
		before := written[e.Op.Key]
		if r.IntN(3) == 0 {
			version += 2
			v := version
			if r.IntN(8) == 0 {
				v -= min(v-1, 5)
			}
			if r.IntN(2) == 0 || slices.ContainsFunc(h, func(e Event) bool { return e.Out.Version == v }) {
				v = version
			}
			e.Op.Kind, e.Op.Value, e.Out = Set, fmt.Sprint(i, ";"), Outcome{Status: Stored, Version: v}
			written[e.Op.Key] = append(before, e)
		} else if back := r.IntN(4) * r.IntN(2); len(before) > back {
			w := before[len(before)-1-back]
			e.Out = Outcome{Status: Hit, Value: w.Op.Value, Version: w.Out.Version}
		} else {
			e.Out.Status = Miss
		}
		h = append(h, e)
	}
	return h
}

// closure is the definition, for sets, gets and misses of known versions.
func closure(h History, r Rules, causal bool) bool {
	n := len(h)
	knows := make([][]bool, n)
	for i := range h {
		knows[i] = make([]bool, n)
		for j := range h {
			a, b := &h[j], &h[i]
			knows[i][j] = a.Session == b.Session && j < i || r.Shared && a.Node == b.Node && a.Return < b.Call ||
				causal && b.Out.Status == Hit && a.Op.Kind == Set && a.Op.Value == b.Out.Value
		}
	}
	for k := range h {
		for i := range h {
			for j := range h {
				knows[i][j] = knows[i][j] || knows[i][k] && knows[k][j]
			}
		}
	}
	for i := range h {
		for j := range h {
			if a, b := &h[j], &h[i]; knows[i][j] && a.Op.Key == b.Op.Key && a.Out.Version != 0 {
				set := b.Out.Status == Stored
				if b.Out.Version < a.Out.Version || set && b.Out.Version == a.Out.Version {
					return false // also for a miss, whose version is 0
				}
			}
		}
	}
	return true
}
