package verify

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/history"
	"github.com/attunekv/attune/internal/history/broken"
	"github.com/attunekv/attune/internal/testbed"
)

// short are options of a run on a store on the wire.
func short(t *testing.T, d broken.Defect) Options {
	t.Helper()
	s, err := broken.Serve(d, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	o := Defaults()
	o.Targets, o.Level, o.Time, o.Conns, o.Pause, o.Settle = s.Targets, d.Level, 700*time.Millisecond, 8, time.Millisecond, 2*time.Second
	return o
}

// What was not allowed is in every report, with the commands.
func TestViolationIsReported(t *testing.T) {
	o := short(t, broken.Defect{Level: "linearizable", Log: broken.Forgetful})
	o.Workloads = []string{"register", "mixed"}
	stages := make(map[string]bool)
	o.Progress = func(p Progress) { stages[p.Stage] = true }
	rep, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Verdict != Violated || len(rep.Workloads) != 2 || len(rep.Controllers) != 3 {
		t.Fatalf("%s", rep.Summary())
	}
	for _, stage := range []string{"working", "settling", "judging"} {
		if !stages[stage] {
			t.Errorf("nobody was told of %s", stage)
		}
	}
	i := slices.IndexFunc(rep.Workloads[0].Checks, func(c Check) bool { return c.Name == "fresh reads" })
	stale := rep.Workloads[0].Checks[i]
	if stale.Verdict != Violated || len(stale.Offending) != 2 || !strings.Contains(stale.Offending[1].Text, "get attune-verify-") {
		t.Errorf("%+v", stale)
	}
	sum := 0
	for _, s := range rep.Timeline {
		sum += s.Answered
	}
	if sum != rep.Total.Answered || sum == 0 {
		t.Errorf("%d answers by time, and %d in all", sum, rep.Total.Answered)
	}

	var text, raw, html bytes.Buffer
	if err := errors.Join(rep.Text(&text), rep.JSON(&raw), rep.HTML(&html)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "fresh reads VIOLATED") || !strings.HasPrefix(lastLine(text.String()), "linearizable: VIOLATED; ") {
		t.Error(text.String())
	}
	var back Report
	if err := json.Unmarshal(raw.Bytes(), &back); err != nil || back.Verdict != Violated || len(back.Workloads[0].Checks[i].Offending) != 2 {
		t.Errorf("%v: %s", err, raw.String())
	}
	rects := wellFormed(t, html.String())
	if rects < 2 || !strings.Contains(html.String(), "a read shows less than was known") || !strings.Contains(html.String(), "prefers-color-scheme: dark") {
		t.Errorf("%d bars in\n%s", rects, html.String())
	}
	if strings.Contains(html.String(), "src=") || strings.Contains(html.String(), "href=") {
		t.Error("the page needs something else")
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// wellFormed checks that every element of a page is closed, and counts the rectangles.
func wellFormed(t *testing.T, page string) (rects int) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(strings.Replace(page, "<!DOCTYPE html>", "", 1)))
	d.AutoClose, d.Entity = xml.HTMLAutoClose, xml.HTMLEntity
	d.Strict = false
	var open []string
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			open = append(open, e.Name.Local)
			if e.Name.Local == "rect" {
				rects++
			}
		case xml.EndElement:
			if len(open) == 0 || open[len(open)-1] != e.Name.Local {
				t.Fatalf("%s ends in %v", e.Name.Local, open)
			}
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		t.Errorf("%v does not end", open)
	}
	return rects
}

func TestVerdict(t *testing.T) {
	undecided := fmt.Errorf("x: %w", history.ErrUndecided)
	wrong := errors.New("wrong")
	for _, c := range []struct {
		name     string
		findings []error
		evicted  bool
		problem  error
		want     Verdict
	}{
		{"nothing found", []error{nil, nil}, false, nil, Held},
		{"one is wrong", []error{nil, wrong}, false, nil, Violated},
		{"one is undecided", []error{undecided, nil}, false, nil, Unknown},
		{"one is wrong, and others undecided", []error{undecided, wrong, undecided}, false, nil, Violated},
		{"what is wrong may be an eviction", []error{wrong, nil}, true, nil, Unknown},
		{"evictions alone are not wrong", []error{nil}, true, nil, Held},
		{"a process ended by itself", []error{nil}, false, wrong, Violated},
	} {
		rep := &Report{Workloads: []Workload{{}}}
		for _, err := range c.findings {
			rep.Workloads[0].Checks = append(rep.Workloads[0].Checks, check(history.Finding{Err: err}, nil))
		}
		rep.judge(c.evicted)
		rep.Blame(c.problem)
		if rep.Verdict != c.want {
			t.Errorf("%s: %s", c.name, rep.Verdict)
		}
		if (c.want == Held) != (rep.Why() == "") {
			t.Errorf("%s: because %q", c.name, rep.Why())
		}
	}
}

// A page of a run in which nothing happened, or everything did.
func TestPages(t *testing.T) {
	wellFormed(t, html(t, &Report{}))
	rep := &Report{
		Verdict: Unknown, Step: 100 * time.Millisecond,
		Timeline:  []Step{{Answered: 3, P50: time.Microsecond, P99: time.Second}, {Unknown: 2}, {Answered: 1}},
		Faults:    []Fault{{At: 0, Until: time.Hour, What: "kill <n1>"}},
		Problems:  []string{"n1 </pre> ended"},
		Workloads: []Workload{{Checks: []Check{{Verdict: Unknown, Story: "<b>", Offending: []Command{{Client: 1}, {Client: 2, Call: 5, Return: 9}, {Client: 1, Call: 7}}}}}},
	}
	page := html(t, rep)
	if n := wellFormed(t, page); n != 1+1+3 {
		t.Errorf("%d rectangles", n)
	}
	if strings.Contains(page, "<b>") || strings.Contains(page, "<n1>") || strings.Contains(page, "NaN") || strings.Contains(page, "Inf") {
		t.Error(page)
	}
}

func html(t *testing.T, rep *Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := rep.HTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A cluster that answers next to nothing is no cluster that holds.
func TestTooFewAnswers(t *testing.T) {
	o := short(t, broken.Defect{Level: "eventual"})
	o.Workloads, o.Time, o.Settle = []string{"register"}, 50*time.Millisecond, 200*time.Millisecond
	addr, err := testbed.FreeAddr("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	o.Targets = []history.Target{{Name: "gone", Addr: addr}}
	rep, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Verdict != Unknown || !strings.Contains(rep.Why(), "0 commands were answered") {
		t.Errorf("%s: %s", rep.Summary(), rep.Why())
	}
}

func TestRunRefuses(t *testing.T) {
	if _, err := Run(t.Context(), Options{}); err == nil {
		t.Error("nobody is asked")
	}
	o := short(t, broken.Defect{Level: "eventual"})
	o.Workloads = []string{"typo"}
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "typo") || !strings.Contains(err.Error(), "register") {
		t.Error(err)
	}
	for _, o := range []LocalOptions{
		{Nodes: 3, Faults: []string{"typo"}}, {Nodes: 2, Faults: []string{"all"}}, {Nodes: 3, Store: "embedded", Faults: []string{"backend"}},
	} {
		if _, err := Start(t.Context(), o); err == nil {
			t.Errorf("started: %+v", o)
		}
	}
}

// The keys of a run are not there afterwards.
func TestKeysAreRemoved(t *testing.T) {
	o := short(t, broken.Defect{Level: "causal"})
	o.Time = 200 * time.Millisecond
	r := newRun(&o)
	for _, j := range r.jobs {
		j.rec.Begin()
	}
	if err := r.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.work(t.Context())
	r.survey(t.Context())
	if err := r.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // for what was deleted to be so at the one that was asked
	for _, j := range r.jobs {
		if len(j.h) == 0 {
			t.Errorf("%s did nothing", j.rec.Workload.Name)
		}
		read, err := history.ReadAll(o.Targets[0], j.h.Keys())
		if err != nil {
			t.Fatal(err)
		}
		for key, out := range read {
			if !strings.HasPrefix(key, r.prefix) {
				t.Errorf("%s is not one's own", key)
			}
			if out.Status != history.Miss {
				t.Errorf("%s is left: %v", key, out)
			}
		}
	}
}

// While something is broken items may expire late, but for a wall clock where none counts.
func TestExpiryIsExcused(t *testing.T) {
	for _, test := range []struct {
		level, kind string
		from, to    time.Duration
		want        bool
	}{
		{"linearizable", "pause", 4, 6, true}, {"linearizable", "pause", 1, 4, false}, {"linearizable", "pause", 9, 11, true},
		{"linearizable", "pause", 12, 13, false}, {"linearizable", "clock", 4, 6, false}, {"sequential", "clock", 4, 6, false},
		{"causal", "clock", 4, 6, true}, {"eventual", "clock", 4, 6, true}, {"eventual", "clock", 12, 13, false},
	} {
		r := &run{Options: &Options{Level: test.level, Slack: time.Second}}
		faults := []Fault{{Kind: test.kind, At: 5 * time.Second, Until: 9 * time.Second}}
		if got := r.excused(faults)(int64(test.from*time.Second), int64(test.to*time.Second)); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

// A seed is a plan, in which every kind has its turn.
func TestPlan(t *testing.T) {
	take := func(seed uint64, n int) (taken []planned) {
		for p := range plan(seed, 6, 3, time.Second) {
			if taken = append(taken, p); len(taken) == n {
				break
			}
		}
		return taken
	}
	if !slices.Equal(take(7, 100), take(7, 100)) || slices.Equal(take(7, 10), take(8, 10)) {
		t.Error("a seed is not a plan")
	}
	for turn := range slices.Chunk(take(1, 60), 6) {
		seen := make(map[int]bool)
		for _, p := range turn {
			seen[p.kind] = true
			if p.node < 0 || p.node > 2 || p.rest < time.Second/4 || p.rest > time.Second || p.lasts < time.Second/3 || p.lasts > time.Second {
				t.Errorf("%+v", p)
			}
		}
		if len(seen) != 6 {
			t.Errorf("%d of 6 kinds in a turn", len(seen))
		}
	}
	for range plan(1, 0, 3, time.Second) {
		t.Error("nothing can be broken")
	}
}

func TestDiscover(t *testing.T) {
	s, err := broken.Serve(broken.Defect{Level: "sequential"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var addrs []string
	for _, target := range s.Targets {
		addrs = append(addrs, target.Addr)
	}
	targets, level, err := Discover(append(addrs, addrs[0]))
	if err != nil || level != "sequential" || !slices.Equal(targets, s.Targets) {
		t.Errorf("%v, %s, %v", targets, level, err)
	}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() {
		if c, err := other.Accept(); err == nil {
			_, _ = io.WriteString(c, "END\r\n") // as memcached answers what it does not know
			c.Close()
		}
	}()
	if _, _, err := Discover([]string{other.Addr().String()}); err == nil || !strings.Contains(err.Error(), "not a controller") {
		t.Error(err)
	}
}
