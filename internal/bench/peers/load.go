package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latencies are recorded in nanoseconds to three digits, as attune bench does.
const (
	shortest = 100
	longest  = int64(10 * time.Minute)
)

// keyNames returns that many keys, as attune bench writes them.
func keyNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("bench:%014d", i)
	}
	return names
}

// A shard is a histogram for some of the callers: one each would take 256 KB
// times thousands of goroutines, one for all would be a lock they all meet at.
type shard struct {
	mu sync.Mutex // guards h
	h  *hdrhistogram.Histogram
}

const shards = 16

// outcome is what was measured.
type outcome struct {
	latency     *hdrhistogram.Histogram
	elapsed     time.Duration
	own, server time.Duration // CPU time
	pids        bool          // server is known
}

// callAll makes calls in every caller until next says that there are no more, or
// one fails. next fills in the keys of a call of batch requests.
func callAll(ctx context.Context, p peer, kind string, batch int, next func(*rand.Rand, []string) bool, record func(caller int, d time.Duration)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	for i := range p.callers() {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)+1))
			keys := make([]string, batch)
			for ctx.Err() == nil && next(rng, keys) {
				start := time.Now()
				if err := p.call(ctx, kind, i, keys, func(at time.Time) { record(i, at.Sub(start)) }); err != nil {
					cancel(err) // the first counts; those after it follow from it
					return
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// fill writes every key once.
func fill(ctx context.Context, p peer, kind string, names []string) error {
	var taken atomic.Int64
	next := func(_ *rand.Rand, keys []string) bool {
		n := taken.Add(1) - 1
		if n >= int64(len(names)) {
			return false
		}
		keys[0] = names[n]
		return true
	}
	return callAll(ctx, p, kind, 1, next, func(int, time.Duration) {})
}

// load makes requests for d. Those that started are all answered, and counted.
func load(ctx context.Context, p peer, o *options, kind string, names []string, d time.Duration) (*outcome, error) {
	var all [shards]shard
	for i := range all {
		all[i].h = hdrhistogram.New(shortest, longest, 3)
	}
	start := time.Now()
	next := func(rng *rand.Rand, keys []string) bool {
		for i := range keys {
			keys[i] = names[rng.IntN(len(names))]
		}
		return time.Since(start) < d
	}
	err := callAll(ctx, p, kind, o.conns*o.pipeline/p.callers(), next, func(caller int, d time.Duration) {
		s := &all[caller%shards]
		s.mu.Lock()
		defer s.mu.Unlock()
		// Cannot fail within the bounds that the histogram was made with.
		_ = s.h.RecordValue(min(int64(d), longest))
	})
	if err != nil {
		return nil, err
	}
	m := &outcome{latency: all[0].h, elapsed: time.Since(start)}
	for i := range all[1:] {
		m.latency.Merge(all[1+i].h)
	}
	return m, nil
}

// measure loads and reads the CPU times around it.
func measure(ctx context.Context, p peer, o *options, kind string, names []string) (*outcome, error) {
	server, err := serversCPU(o.pids)
	if err != nil {
		return nil, err
	}
	own := ownCPU()
	m, err := load(ctx, p, o, kind, names, o.duration)
	if err != nil {
		return nil, err
	}
	m.own = ownCPU() - own
	after, err := serversCPU(o.pids)
	m.server, m.pids = after-server, len(o.pids) > 0
	return m, err
}

// write prints the lines and columns of attune bench.
func (m *outcome) write(out io.Writer, kind string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	p := func(format string, a ...any) { fmt.Fprintf(w, format, a...) } // the error comes with Flush
	n := float64(m.latency.TotalCount())
	us := func(d time.Duration) float64 { return float64(d) / 1e3 / max(n, 1) }
	p("   %.0f ops/s: %.0f ops in %.2f s\n", n/m.elapsed.Seconds(), n, m.elapsed.Seconds())
	if m.pids {
		p("   server CPU %.2f us/op, %.0f ops per CPU second; own CPU %.2f us/op\n",
			us(m.server), n/max(m.server.Seconds(), 0.01), us(m.own))
	} else {
		p("   own CPU %.2f us/op\n", us(m.own))
	}
	q := func(v float64) float64 { return float64(m.latency.ValueAtQuantile(v)) / 1e3 }
	p("\n   us\tcount\tmean\tp50\tp90\tp99\tp99.9\tmax\t\n")
	p("   %s\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t\n",
		kind, n, m.latency.Mean()/1e3, q(50), q(90), q(99), q(99.9), float64(m.latency.Max())/1e3)
	return w.Flush()
}
