package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/attunekv/attune/internal/history"
	"github.com/attunekv/attune/internal/testbed"
)

// Options say what to run.
type Options struct {
	Targets []history.Target
	Level   string // by which is judged: see [Discover]
	// Time is how long clients work. Whoever ends the context of Run shortens it.
	Time time.Duration
	// Workloads are run beside each other; none are all of [Workloads].
	Workloads []string
	// Conns is how many connections they share.
	Conns int
	// Pause is how long a connection rests between two commands, on average.
	Pause time.Duration
	// Slack is how much earlier or later than asked an item may expire.
	Slack time.Duration
	// Settle is how long the controllers have to agree when nothing is written and
	// nothing broken any more.
	Settle time.Duration
	// Seed repeats what clients ask and what is broken when, though not the timing.
	Seed uint64
	// Local is the cluster, if it may be mistreated; nil: nothing is broken.
	Local *Local
	// Whole says that nobody else breaks anything either.
	Whole bool
	// Note is told of every fault as it begins and ends, Progress how far the run is,
	// some times a second. Both may be nil.
	Note     func(Fault)
	Progress func(Progress)
}

// Defaults are the options of a run of a cluster that is used normally.
func Defaults() Options {
	return Options{Time: 10 * time.Second, Conns: 48, Pause: 8 * time.Millisecond, Slack: time.Second, Settle: testbed.Patience}
}

// Progress is how far a run is.
type Progress struct {
	Stage    string
	Fraction float64 // of the time that clients work
	Answered int64
}

// few is how many answers a workload must have had, for its history to say anything.
const few = 20

// job is a workload under way, and what became of it.
type job struct {
	rec          *history.Recorder
	final, again *history.Survey
	h            history.History
	findings     []history.Finding
}

// largeValue is the size of the values of the workload large, in bytes.
const largeValue = 50_000

// Workloads returns the names of what can be run, in the order of reports.
func Workloads() (names []string) {
	for _, w := range all("") {
		names = append(names, w.Name)
	}
	return names
}

func all(prefix string) []history.Workload {
	list := []history.Workload{
		history.Registers, history.CASRegisters, history.Counters, history.Appends, history.Locks, history.Mixed,
		history.Removals, history.UniqueSets, history.Chained, history.Expiring, history.Large, history.Increments(prefix + "incr"),
	}
	for i := range list {
		list[i].Prefix = prefix
	}
	return list
}

// Discover asks the memcache servers at addrs what cluster they are of, and returns
// its controllers, also those that the others tell of and that can be reached, and the
// level that all of them keep.
func Discover(addrs []string) (targets []history.Target, level string, err error) {
	order := []string{"linearizable", "sequential", "causal", "eventual"}
	known := make(map[string]bool)
	ask := func(addr string, must bool) (members []string) {
		stats, e := testbed.Stats(addr, "attune")
		if e == nil && !slices.Contains(order, stats["level"]) {
			e = fmt.Errorf("%s is not a controller of attune", addr)
		}
		if e != nil {
			if must {
				err = errors.Join(err, e)
			}
			return nil
		}
		if name := stats["name"]; !known[name] {
			known[name] = true
			targets = append(targets, history.Target{Name: name, Addr: addr})
		}
		if slices.Index(order, stats["level"]) > slices.Index(order, level) {
			level = stats["level"]
		}
		for key, line := range stats {
			// STATE, ROLE or COPY, CLIENTS ...
			if f := strings.Fields(line); strings.HasPrefix(key, "member_") && len(f) > 2 && !known[strings.TrimPrefix(key, "member_")] {
				members = append(members, f[2])
			}
		}
		return members
	}
	var others []string
	for _, addr := range addrs {
		others = append(others, ask(addr, true)...)
	}
	for _, addr := range others {
		ask(addr, false)
	}
	slices.SortFunc(targets, func(a, b history.Target) int { return cmp.Compare(a.Name, b.Name) })
	return targets, level, err
}

// Run runs the workloads and judges what their clients saw. The error is why it could
// not; what was found is in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	if len(o.Targets) == 0 {
		return nil, errors.New("no controllers to ask")
	}
	r := newRun(&o)
	if len(r.jobs) == 0 {
		return nil, fmt.Errorf("no workload is called %s; there are %s", strings.Join(o.Workloads, ", "), strings.Join(Workloads(), ", "))
	}
	evicted := r.evictions()
	for _, j := range r.jobs {
		j.rec.Begin()
	}
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	faults, problems := r.work(ctx)
	r.progress("settling", 1)
	// The caller's context may have ended; what was begun is brought to its end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*o.Settle)
	defer cancel()
	r.survey(ctx)
	r.progress("judging", 1)
	rules := history.Rules{Lossy: r.evictions() > evicted}
	if o.Local != nil {
		rules.MayLose = func(e history.Event) bool { return history.MayLose(o.Local.losses, e) }
	}
	r.judge(rules, faults)
	report := r.report(faults, problems, rules.Lossy)
	if left := r.remove(ctx); left != nil {
		report.Notes = append(report.Notes, fmt.Sprintf("keys that begin with %s may be left: %v", r.prefix, left))
	}
	return report, nil
}

// run is a run under way.
type run struct {
	*Options
	began  time.Time
	prefix string
	jobs   []*job
}

func newRun(o *Options) *run {
	r := &run{Options: o, began: time.Now(), prefix: fmt.Sprintf("attune-verify-%x:", rand.Uint64())}
	for _, w := range all(r.prefix) {
		if len(o.Workloads) > 0 && !slices.Contains(o.Workloads, w.Name) {
			continue
		}
		rec := &history.Recorder{Targets: o.Targets, Workload: w, Pause: o.Pause, Seed: o.Seed + uint64(len(r.jobs))}
		if w.Name == history.Large.Name {
			rec.Size = largeValue
		}
		r.jobs = append(r.jobs, &job{rec: rec})
	}
	for i, j := range r.jobs {
		j.rec.Clients = max(1, (o.Conns+i)/len(r.jobs))
	}
	return r
}

// prepare sets what has to be there, on all controllers.
func (r *run) prepare(ctx context.Context) error {
	for _, j := range r.jobs {
		if j.rec.Workload.Name != hot {
			continue
		}
		key := r.prefix + hot
		var err error
		for end := time.Now().Add(r.Settle); ; {
			if out := j.rec.Ask(r.Targets[0], history.Op{Kind: history.Set, Key: key, Value: "0"}); out.Status == history.Stored {
				break
			} else if ctx.Err() != nil || time.Now().After(end) {
				return fmt.Errorf("%s does not store a key: %s", r.Targets[0].Name, out.Value)
			}
			time.Sleep(50 * time.Millisecond)
		}
		for _, t := range r.Targets {
			wait, cancel := context.WithTimeout(ctx, r.Settle)
			for {
				out, e := history.Read(wait, t, key)
				if err = e; out.Status == history.Hit || err != nil {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			cancel()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// hot is the key, and the workload, of history.Increments.
const hot = "incr"

// work has the clients work, and breaks things meanwhile, until the time is over; then
// until all is mended and they are answered again.
func (r *run) work(ctx context.Context) (faults []Fault, problems []string) {
	clients, stop := context.WithCancel(context.WithoutCancel(ctx))
	var working sync.WaitGroup
	for _, j := range r.jobs {
		working.Go(func() { j.rec.Run(clients) })
	}
	timed, cancel := context.WithTimeout(ctx, r.Time)
	defer cancel()
	var breaking sync.WaitGroup
	if r.Local != nil {
		breaking.Go(func() {
			var err error
			if faults, err = r.Local.mistreat(timed, r.Seed, r.jobs, r.Note); err != nil {
				problems = append(problems, err.Error())
			}
		})
	}
	ticks := time.NewTicker(200 * time.Millisecond)
	defer ticks.Stop()
	begin := time.Now()
	for timed.Err() == nil {
		select {
		case <-ticks.C:
			r.progress("working", time.Since(begin).Seconds()/r.Time.Seconds())
		case <-timed.Done():
		}
	}
	breaking.Wait()
	if len(faults) > 0 { // they are to be seen to be over
		for before, end := r.answered(), time.Now().Add(r.Settle); r.answered() < before+few && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
		}
	}
	stop()
	working.Wait()
	return faults, problems
}

func (r *run) answered() (n int64) {
	for _, j := range r.jobs {
		n += j.rec.Answered()
	}
	return n
}

func (r *run) progress(stage string, fraction float64) {
	if r.Progress != nil {
		r.Progress(Progress{stage, fraction, r.answered()})
	}
}

// survey reads all keys on all controllers, and again a moment later. Where they do
// not agree, or answer, in time the last of what they said is judged.
func (r *run) survey(ctx context.Context) {
	const moment = 500 * time.Millisecond
	wait, cancel := context.WithTimeout(ctx, r.Settle)
	defer cancel()
	for _, j := range r.jobs {
		j.h = j.rec.History()
		if j.rec.Workload.Name == history.Expiring.Name {
			continue // what is there depends on when one asks
		}
		if s, err := j.rec.Settle(wait, r.Targets, j.h.Keys()); len(s.Nodes) == len(r.Targets) || err == nil {
			j.final = &s
		}
	}
	select {
	case <-time.After(moment):
	case <-ctx.Done():
	}
	for _, j := range r.jobs {
		if j.final == nil || !history.Leaderless(r.Level) {
			continue
		}
		if s, err := j.rec.Survey(r.Targets, j.h.Keys()); err == nil {
			j.again = &s
		}
	}
}

// judge judges every workload.
func (r *run) judge(rules history.Rules, faults []Fault) {
	var judging sync.WaitGroup
	for _, j := range r.jobs {
		judging.Go(func() {
			trial := history.Trial{
				Level: r.Level, Workload: j.rec.Workload, History: j.h, Final: j.final, Again: j.again, Rules: rules,
				Expiry: history.ExpiryRules{Slack: r.Slack, Excused: r.excused(faults)}, Whole: r.Whole && len(faults) == 0,
				Unsearched: j.rec.Workload.Name == hot || j.rec.Workload.Name == history.UniqueSets.Name, Patience: time.Minute,
			}
			j.findings = trial.Judge()
			if j.final == nil && j.rec.Workload.Name != history.Expiring.Name {
				err := fmt.Errorf("%w: not all controllers answer in the end", history.ErrUndecided)
				j.findings = append(j.findings, history.Finding{Check: "final survey", Err: err})
			}
		})
	}
	judging.Wait()
}

// excused says when items may expire early or late: while something is broken that has
// to do with it. Where a log has the time, no wall clock has.
func (r *run) excused(faults []Fault) func(from, to int64) bool {
	return func(from, to int64) bool {
		return slices.ContainsFunc(faults, func(f Fault) bool {
			return (f.Kind != "clock" || history.Leaderless(r.Level)) && int64(f.At) <= to && int64(f.Until+r.Slack) >= from
		})
	}
}

// evictions is how many items all controllers have evicted, as far as they answer.
func (r *run) evictions() (n uint64) {
	for _, t := range r.Targets {
		stats, _ := testbed.Stats(t.Addr, "")
		evicted, _ := strconv.ParseUint(stats["evictions"], 10, 64)
		n += evicted
	}
	return n
}

// remove deletes all keys that were used, wherever that is possible.
func (r *run) remove(ctx context.Context) (err error) {
	var keys []string
	for _, j := range r.jobs {
		keys = append(keys, j.h.Keys()...)
	}
	for _, t := range r.Targets {
		if err = history.DeleteAll(t, keys); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}
