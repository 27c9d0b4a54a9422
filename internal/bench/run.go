package bench

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Run makes the load that o describes. Canceling ctx stops it early: the report
// then holds what was measured, and says that it was interrupted. An error may
// come with a report of the rounds before it.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	r := &Report{Options: o, Began: time.Now().UTC().Truncate(time.Second)}
	err := r.run(ctx, &o)
	if ctx.Err() != nil {
		r.Interrupted, err = true, nil // what failed, failed for that
	}
	r.finish()
	return r, err
}

func (r *Report) run(ctx context.Context, o *Options) error {
	sides := []struct {
		name, server string
		pids         PIDs
	}{{"A", o.Server, o.PID}, {"B", o.VS, o.VSPID}}
	var targets []*target
	for _, side := range sides {
		if side.server == "" {
			continue
		}
		t, err := newTarget(ctx, o, side.name, side.server, side.pids)
		if err != nil {
			return err
		}
		defer t.close()
		targets = append(targets, t)
		r.Targets = append(r.Targets, Target{Name: t.name, Server: t.server, Version: t.version})
	}
	if o.Prefill {
		for _, t := range targets {
			if err := t.prefill(ctx); err != nil {
				return err
			}
		}
	}
	for round := range o.Rounds {
		for i, t := range targets {
			stage := t.name
			if o.Rounds > 1 {
				stage = fmt.Sprintf("%s, round %d/%d", t.name, round+1, o.Rounds)
			}
			if o.Warmup > 0 {
				if err := t.warm(ctx, "warm-up "+stage); err != nil {
					return err
				}
			}
			if ctx.Err() != nil {
				return nil
			}
			m, err := t.measure(ctx, stage)
			if m != nil {
				r.Targets[i].Rounds = append(r.Targets[i].Rounds, m)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", stage, err)
			}
			if m.ConnectionsLost == int64(len(t.streams)) {
				return fmt.Errorf("%s: all connections to %s were lost: %s", stage, t.server, m.FirstError)
			}
		}
	}
	return nil
}

// finish sums the rounds up.
func (r *Report) finish() {
	for i := range r.Targets {
		r.Targets[i].Total = total(r.Targets[i].Rounds)
	}
	if len(r.Targets) == 2 {
		r.Ratios = ratios(r.Targets[0].Rounds, r.Targets[1].Rounds)
	}
}

// ratios compares the rounds that both sides finished, each with its neighbour.
func ratios(a, b []*Measure) []Ratios {
	metrics := []struct {
		name string
		of   func(*Measure) float64
	}{
		{"ops_per_second", func(m *Measure) float64 { return m.OpsPerSecond }},
		{"ops_per_server_cpu_second", func(m *Measure) float64 {
			if m.ServerCPU == nil {
				return 0
			}
			return m.ServerCPU.OpsPerSecond
		}},
		{"get_p50_us", func(m *Measure) float64 { return m.Get.P50 }},
		{"get_p99_us", func(m *Measure) float64 { return m.Get.P99 }},
		{"get_p99_9_us", func(m *Measure) float64 { return m.Get.P999 }},
		{"set_p50_us", func(m *Measure) float64 { return m.Set.P50 }},
		{"set_p99_us", func(m *Measure) float64 { return m.Set.P99 }},
		{"set_p99_9_us", func(m *Measure) float64 { return m.Set.P999 }},
	}
	var all []Ratios
	for _, metric := range metrics {
		x := Ratios{Metric: metric.name}
		for i := range min(len(a), len(b)) {
			if va, vb := metric.of(a[i]), metric.of(b[i]); va > 0 && vb > 0 {
				x.Rounds = append(x.Rounds, va/vb)
			}
		}
		if len(x.Rounds) == 0 {
			continue // e.g. no pid, or no sets
		}
		x.Min, x.Median, x.Max = spread(x.Rounds)
		all = append(all, x)
	}
	return all
}

// spread returns the least, middle and greatest of some numbers, of which there
// is at least one.
func spread(v []float64) (low, median, high float64) {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return s[0], (s[(n-1)/2] + s[n/2]) / 2, s[n-1]
}
