package verify

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/attunekv/attune/internal/history"
	"github.com/attunekv/attune/internal/history/broken"
)

// Caught is what the self-test says of a store.
type Caught struct {
	broken.Defect
	// OK says that a broken store was found out by the check that is to find it, or
	// that nothing was found wrong with one that is right.
	OK    bool
	Took  time.Duration
	Story string // what was found, or why nothing was
}

// SelfTest runs the workloads on stores that break their promise, until that is found
// out or each has had its time, and on some that keep theirs. Note is told of each as
// it is done, on any goroutine but one at a time.
func SelfTest(ctx context.Context, seed uint64, each time.Duration, note func(Caught)) (ok bool) {
	ok = true
	var mu sync.Mutex // guards ok, and calls of note
	var running sync.WaitGroup
	// They mostly wait.
	room := make(chan struct{}, 6*runtime.GOMAXPROCS(0))
	for _, d := range slices.Concat(broken.Honest(), broken.Defects()) {
		room <- struct{}{}
		running.Go(func() {
			c := try(ctx, d, seed, each)
			<-room
			mu.Lock()
			defer mu.Unlock()
			ok = ok && c.OK
			note(c)
		})
	}
	running.Wait()
	return ok
}

// try tests one store.
func try(ctx context.Context, d broken.Defect, seed uint64, each time.Duration) Caught {
	began := time.Now()
	c := Caught{Defect: d}
	for ; ctx.Err() == nil; seed++ {
		c.OK, c.Story = attempt(ctx, d, seed)
		c.Took = time.Since(began)
		if c.OK || d.Name == "" || c.Took > each {
			break
		}
	}
	return c
}

// attempt runs on a store once, and says whether it was judged as it should be.
func attempt(ctx context.Context, d broken.Defect, seed uint64) (ok bool, story string) {
	s, err := broken.Serve(d, seed)
	if err != nil {
		return false, err.Error()
	}
	defer s.Close()
	o := Defaults()
	o.Targets, o.Level, o.Seed, o.Whole = s.Targets, d.Level, seed, true
	// The slack is for busy machines, and so is the time that a right one has to settle.
	o.Conns, o.Pause, o.Slack, o.Time = 12, 2*time.Millisecond, 700*time.Millisecond, time.Second
	if d.Name != "" {
		o.Workloads, o.Settle = []string{d.Workload}, 2*time.Second
	}
	if d.Name == "" || d.Workload == history.Expiring.Name {
		o.Time = history.ExpiringTTL*time.Second + 2*o.Slack
	}
	report, err := Run(ctx, o)
	switch {
	case err != nil:
		return false, err.Error()
	case d.Name == "":
		return report.Verdict == Held, report.Why()
	}
	for _, w := range report.Workloads {
		for _, check := range w.Checks {
			if check.Verdict == Violated && check.Name == d.Check {
				return true, check.Story
			}
		}
	}
	return false, fmt.Sprintf("%s did not find that %s: %s", d.Check, d.About, report.Why())
}
