package verify

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attunekv/attune/internal/history"
)

// Verdict is what came out.
type Verdict string

const (
	Held     Verdict = "held"     // nothing was seen that the level does not allow
	Violated Verdict = "violated" // something was
	Unknown  Verdict = "unknown"  // too little was seen, or the search took too long
)

// Report is what was done and found.
type Report struct {
	Verdict     Verdict          `json:"verdict"`
	Level       string           `json:"level"`
	Controllers []history.Target `json:"controllers"`
	Store       string           `json:"store,omitempty"` // of a local cluster
	Seed        uint64           `json:"seed"`
	Began       time.Time        `json:"began"`
	Took        time.Duration    `json:"took_ns"`
	Total       Counts           `json:"total"`
	Workloads   []Workload       `json:"workloads"`
	Faults      []Fault          `json:"faults"`
	// Problems are what processes of a local cluster did that they should not have.
	Problems []string `json:"problems,omitempty"`
	Notes    []string `json:"notes,omitempty"`
	// Timeline has the answers by time.
	Timeline []Step `json:"timeline"`
	// Step is how long each step of it is.
	Step time.Duration `json:"step_ns"`
}

// Counts are of commands. Those that are not answered may have been carried out.
type Counts struct {
	Commands int `json:"commands"`
	Answered int `json:"answered"`
}

// Workload is what came of one.
type Workload struct {
	Name string `json:"name"`
	Counts
	Checks []Check `json:"checks"`
}

// Check is what a checker says.
type Check struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	Story   string  `json:"story,omitempty"`
	// Offending are the commands that the story tells of.
	Offending []Command `json:"offending,omitempty"`
}

// Command is one command that a client sent.
type Command struct {
	Client int    `json:"client"`
	Node   string `json:"node"`
	Text   string `json:"text"`
	// Call and Return are since clients began; Return is 0 if it was not answered.
	Call   time.Duration `json:"call_ns"`
	Return time.Duration `json:"return_ns"`
}

// Step is a moment of the timeline.
type Step struct {
	Answered int           `json:"answered"`
	Unknown  int           `json:"unknown"` // called then, and never answered
	P50      time.Duration `json:"p50_ns"`
	P99      time.Duration `json:"p99_ns"`
}

// steps is how many steps a timeline has, at most.
const steps = 240

// report puts together what was found.
func (r *run) report(faults []Fault, problems []string, evicted bool) *Report {
	rep := &Report{
		Level: r.Level, Controllers: r.Targets, Seed: r.Seed, Began: r.began, Took: time.Since(r.began), Faults: faults, Problems: problems,
	}
	if r.Local != nil {
		rep.Store = r.Local.o.Store
	}
	var whole history.History
	for _, j := range r.jobs {
		w := Workload{Name: j.rec.Workload.Name, Counts: Counts{len(j.h), j.h.Answered()}}
		for _, f := range j.findings {
			w.Checks = append(w.Checks, check(f, j.h))
		}
		if w.Answered < few {
			story := fmt.Sprintf("%d commands were answered, which says nothing; at least %d are needed", w.Answered, few)
			w.Checks = append(w.Checks, Check{Name: "enough answers", Verdict: Unknown, Story: story})
		}
		rep.Total.Commands += w.Commands
		rep.Total.Answered += w.Answered
		rep.Workloads = append(rep.Workloads, w)
		whole = append(whole, j.h...)
	}
	if evicted {
		rep.Notes = append(rep.Notes, "items were evicted during the run, so that a miss proves nothing")
	}
	rep.Timeline, rep.Step = timeline(whole)
	rep.judge(evicted && !history.Leaderless(r.Level))
	return rep
}

// judge sets the verdict by checks and problems. Evicted says that what looks like a
// violation may be an eviction.
func (rep *Report) judge(evicted bool) {
	rep.Verdict = Held
	for _, w := range rep.Workloads {
		for _, c := range w.Checks {
			if c.Verdict == Violated && evicted {
				c.Verdict = Unknown
			}
			if c.Verdict == Violated || c.Verdict == Unknown && rep.Verdict == Held {
				rep.Verdict = c.Verdict
			}
		}
	}
	if len(rep.Problems) > 0 {
		rep.Verdict = Violated
	}
}

// Blame adds what processes of a local cluster did that they should not have.
func (rep *Report) Blame(err error) {
	if err != nil {
		rep.Problems, rep.Verdict = append(rep.Problems, err.Error()), Violated
	}
}

func check(f history.Finding, h history.History) Check {
	c := Check{Name: f.Check, Verdict: Held}
	if f.Err == nil {
		return c
	}
	c.Verdict, c.Story = Violated, f.Err.Error()
	if f.Undecided() {
		c.Verdict = Unknown
	}
	for _, e := range h {
		if !strings.Contains(c.Story, e.String()) {
			continue
		}
		cmd := Command{Client: e.Client, Node: e.Node, Text: fmt.Sprintf("%v -> %v", e.Op, e.Out), Call: time.Duration(e.Call)}
		if e.Return != history.Forever {
			cmd.Return = time.Duration(e.Return)
		}
		c.Offending = append(c.Offending, cmd)
	}
	slices.SortFunc(c.Offending, func(a, b Command) int { return cmp.Compare(a.Call, b.Call) })
	return c
}

// timeline counts what was answered when, and how fast.
func timeline(h history.History) ([]Step, time.Duration) {
	last := int64(0)
	for _, e := range h {
		last = max(last, e.Call)
		if e.Return != history.Forever {
			last = max(last, e.Return)
		}
	}
	step := max(time.Duration(last)/steps, 100*time.Millisecond).Round(10 * time.Millisecond)
	line := make([]Step, last/int64(step)+1)
	took := make([][]time.Duration, len(line))
	for _, e := range h {
		if e.Out.Status == history.Unknown {
			line[e.Call/int64(step)].Unknown++
			continue
		}
		at := e.Return / int64(step)
		line[at].Answered++
		took[at] = append(took[at], time.Duration(e.Return-e.Call))
	}
	for i, t := range took {
		if len(t) > 0 {
			slices.Sort(t)
			line[i].P50, line[i].P99 = t[len(t)/2], t[len(t)*99/100]
		}
	}
	return line, step
}

// Why tells, in a line each, what speaks against the verdict that all is well.
func (rep *Report) Why() string {
	var lines []string
	for _, w := range rep.Workloads {
		for _, c := range w.Checks {
			if c.Verdict != Held {
				lines = append(lines, fmt.Sprintf("%s: %s: %s", w.Name, c.Name, strings.TrimSpace(c.Story)))
			}
		}
	}
	return strings.Join(append(lines, rep.Problems...), "\n")
}
