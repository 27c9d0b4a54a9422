package history

import (
	"testing"
	"time"
)

func TestExpired(t *testing.T) {
	const second = int64(time.Second)
	add := func(call int64, session int, value string, status Status) Event {
		e := Event{Session: session, Op: Op{Kind: Add, Key: "k", Value: value, TTL: ExpiringTTL}, Out: Outcome{Status: status}, Call: call, Return: call + 1}
		if status == Unknown {
			e.Return = Forever
		}
		return e
	}
	get := func(call int64, session int, value string) Event {
		e := Event{Session: session, Op: Op{Key: "k"}, Out: Outcome{Status: Hit, Value: value}, Call: call, Return: call + 1}
		if value == "" {
			e.Out.Status = Miss
		}
		return e
	}
	rules := ExpiryRules{Slack: time.Second / 10}
	broken := ExpiryRules{Slack: time.Second / 10, Excused: func(from, to int64) bool { return from <= second && to >= second }}
	shared := ExpiryRules{Slack: time.Second / 10, Shared: true}
	for _, c := range []struct {
		name  string
		rules ExpiryRules
		h     History
		ok    bool
	}{
		{"it lives and goes", rules, History{add(0, 1, "a;", Stored), get(second, 1, "a;"), get(3*second, 1, "")}, true},
		{"within the slack", rules, History{add(0, 1, "a;", Stored), get(2*second+50e6, 2, "a;"), get(2*second-50e6, 1, "")}, true},
		{"it outlives", rules, History{add(0, 1, "a;", Stored), get(3*second, 2, "a;")}, false},
		{"it outlives while clocks may be broken", broken, History{add(0, 1, "a;", Stored), get(3*second, 2, "a;")}, true},
		{"it outlives when they are mended", broken, History{add(2*second, 1, "a;", Stored), get(5*second, 2, "a;")}, false},
		{"it goes early", rules, History{add(0, 1, "a;", Stored), get(second, 1, "")}, false},
		{"it was read, and goes early", rules, History{add(0, 1, "a;", Stored), get(5, 2, "a;"), get(second, 2, "")}, false},
		{"another does not see it", rules, History{add(0, 1, "a;", Stored), get(second, 2, "")}, true},
		{"another must see it", shared, History{add(0, 1, "a;", Stored), get(second, 2, "")}, false},
		{"another need not see it yet", shared, History{add(0, 1, "a;", Stored), get(0, 2, "")}, true},
		{"it came back late", ExpiryRules{Slack: time.Second / 10, Late: 1}, History{add(0, 1, "a;", Stored), get(second, 1, "")}, true},
		{"added over it", rules, History{add(0, 1, "a;", Stored), add(second, 1, "b;", Stored)}, false},
		{"not added over it", rules, History{add(0, 1, "a;", Stored), add(second, 1, "b;", NotStored), get(second+9, 1, "a;")}, true},
		{"added after it", rules, History{add(0, 1, "a;", Stored), add(3*second, 1, "b;", Stored), get(4*second, 1, "b;")}, true},
		{"an unknown comes late", rules, History{add(0, 1, "a;", Unknown), get(4*second, 2, "a;")}, true},
		{"nobody wrote it", rules, History{get(0, 2, "a;")}, false},
		{"no answer", rules, History{{Out: Outcome{Status: Broken}}}, false},
	} {
		if err := Expired(c.h, c.rules); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A trial is judged by what its level and its workload promise.
func TestJudge(t *testing.T) {
	stale := begin().set(1, "a;", 1).set(1, "b;", 2).get(2, "a;", 1).h
	final := everywhere(1000, map[string]Outcome{"k": hit("a;", 1)})
	for level, want := range map[string][]string{
		"linearizable": {"sequential", "fresh reads", "linearizable"}, "sequential": {"sequential"},
		"causal": {"causal", "chains", "one winner", "converged"}, "eventual": {"eventual", "one winner", "converged"}, "none": {"level"},
	} {
		trial := Trial{Level: level, Workload: Chained, History: stale, Final: &final, Whole: true, Patience: time.Minute}
		findings := trial.Judge()
		wrong := 0
		for i, f := range findings {
			if i >= len(want) || f.Check != want[i] {
				t.Errorf("%s: check %d is %s; want %v", level, i, f.Check, want)
			}
			if f.Err != nil {
				wrong++
			}
		}
		if len(findings) != len(want) || wrong == 0 && level != "sequential" {
			t.Errorf("%s: %v", level, findings)
		}
	}
	trial := Trial{Level: "eventual", Workload: UniqueSets, History: begin().set(1, "a;", 1).h, Final: &Survey{Begin: 1000, End: 1001, Nodes: map[string]map[string]Outcome{"n1": {"k": missing}}}}
	kept := trial.Judge()[2]
	if kept.Check != "kept sets" || kept.Err == nil {
		t.Errorf("a lost set: %v", kept)
	}
	trial.Rules.MayLose = func(Event) bool { return true }
	if kept := trial.Judge()[2]; kept.Err != nil {
		t.Errorf("a set that may be lost: %v", kept)
	}
	gone := &Survey{Begin: 1000, End: 1001, Nodes: map[string]map[string]Outcome{"n1": {"k": missing}}}
	trial = Trial{Level: "eventual", Workload: Increments("k"), Begin: 4, History: begin().set(1, "4", 1).incr(1, 5, 2).h, Final: gone}
	for _, lossy := range []bool{false, true} {
		trial.Rules.Lossy = lossy
		f := trial.Judge()
		if last := f[len(f)-1]; last.Check != "counter" || (last.Err == nil) != lossy {
			t.Errorf("a counter that is gone, and may be: %v: %v", lossy, last)
		}
	}
	trial.Workload = Expiring
	if f := trial.Judge(); f[0].Check != "expiry" {
		t.Error(f)
	}
}
