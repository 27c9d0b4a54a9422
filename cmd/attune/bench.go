package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/attunekv/attune/internal/bench"
)

// vsRounds is how many rounds a comparison takes unless told.
const vsRounds = 5

// newBenchCommand returns `attune bench`.
func newBenchCommand() *cobra.Command {
	o := bench.Defaults()
	output := "text"
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a memcache server under load",
		Long: `Bench loads a memcache server with gets and sets, and reports throughput,
latency percentiles and CPU time per operation. A server may be a cluster: then
the connections are dealt out to its addresses in turn, and the CPU time is that
of all its processes together.

Without --rate the loop is closed: each connection sends --pipeline requests at
once and the next batch when all are answered. With --rate requests are sent at
constant intervals whether or not the server keeps up, and latency counts from
the moment each was to be sent.

With --vs the two servers take turns, and ratios are those of neighbouring
rounds. With --pid (Linux) the server's own CPU time is read, which says what the
server costs even when it shares the machine with this command.

With --incr every request adds 1 to a counter; --keys 1 makes that one hot
counter. Counters are set to 0 first; with --prefill=false they go on from where
they are, and one that is missing is an error.

The load writes keys that start with "bench:". Ctrl-C ends it early and reports
what was measured. The exit status is not 0 if any request failed.`,
		Example: `  attune bench --server 127.0.0.1:8000 --duration 10s
  attune bench --rate 50000 --dist zipf --value-size 64-1024
  attune bench --server 10.0.0.1:8000,10.0.0.2:8000,10.0.0.3:8000 --incr --keys 1
  attune bench --pid $(pidof attune) --vs 127.0.0.1:11211 --vs-pid $(pidof memcached) --pipeline 16`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set := cmd.Flags().Changed
			if set("ops") && !set("duration") {
				o.Duration = 0
			}
			if o.VS != "" && !set("rounds") {
				o.Rounds = vsRounds
			}
			if set("zipf-s") && o.Dist != "zipf" {
				return fmt.Errorf("--zipf-s needs --dist zipf")
			}
			for _, name := range []string{"ratio", "value-size"} {
				if o.Incr && set(name) {
					return fmt.Errorf("--%s says nothing with --incr: use one of them", name)
				}
			}
			if !slices.Contains(bench.Formats, output) {
				return fmt.Errorf("--output %q: must be one of %s", output, strings.Join(bench.Formats, ", "))
			}
			return runBench(cmd, o, output)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Server, "server", o.Server, "server to measure, `host:port` or unix:/path; of a cluster several, with commas between")
	f.StringVar(&o.VS, "vs", o.VS, "second server or cluster to alternate with, `host:port` or unix:/path")
	f.Var(&o.PID, "pid", "process of --server, or all of a cluster's, to read their CPU time (Linux)")
	f.Var(&o.VSPID, "vs-pid", "process of --vs, or all of a cluster's, to read their CPU time (Linux)")
	f.StringVar(&o.Protocol, "protocol", o.Protocol, "text, meta or binary")
	f.IntVar(&o.Conns, "conns", o.Conns, "connections per server")
	f.IntVar(&o.Threads, "threads", o.Threads, "threads that drive them")
	f.IntVar(&o.Pipeline, "pipeline", o.Pipeline, "requests in flight per connection")
	f.IntVar(&o.Rate, "rate", o.Rate, "send this many `ops` per second in total (0: as fast as answered)")
	f.BoolVar(&o.Incr, "incr", o.Incr, "add 1 to a counter with every request, instead of gets and sets")
	f.Var(&o.Ratio, "ratio", "gets to sets")
	f.Int64Var(&o.Keys, "keys", o.Keys, "number of keys")
	f.IntVar(&o.KeySize, "key-size", o.KeySize, "`bytes` of a key")
	f.Var(&o.Values, "value-size", "bytes of a value, or a range of them")
	f.StringVar(&o.Dist, "dist", o.Dist, "how keys are picked: uniform or zipf")
	f.Float64Var(&o.ZipfS, "zipf-s", o.ZipfS, "exponent of --dist zipf")
	f.Uint64Var(&o.Seed, "seed", o.Seed, "seed of the requests; the same seed makes the same ones")
	f.DurationVar(&o.Warmup, "warmup", o.Warmup, "unmeasured load before each round")
	f.DurationVar(&o.Duration, "duration", o.Duration, "length of a round")
	f.Int64Var(&o.Ops, "ops", o.Ops, "requests of a round, instead of --duration, or what ends first if both are given")
	f.IntVar(&o.Rounds, "rounds", o.Rounds, fmt.Sprintf("rounds per server (%d with --vs)", vsRounds))
	f.BoolVar(&o.Prefill, "prefill", o.Prefill, "set every key once first")
	f.BoolVar(&o.Verify, "verify", o.Verify, "compare every byte of each value read")
	f.DurationVar(&o.Timeout, "timeout", o.Timeout, "give up connecting, a silent server or late replies after this")
	f.StringVar(&output, "output", output, strings.Join(bench.Formats, ", "))
	return cmd
}

// runBench runs the load and writes the report.
func runBench(cmd *cobra.Command, o bench.Options, output string) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	clear := func() {}
	if e, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(e.Fd())) {
		o.Progress, clear = benchProgress(e)
	}
	report, err := bench.Run(ctx, o)
	clear()
	if err == nil || report.Measured() {
		if e := report.Write(cmd.OutOrStdout(), output); e != nil {
			return fmt.Errorf("write report: %w", e)
		}
	}
	if err != nil {
		return err
	}
	return report.Failure()
}

// benchProgress returns what draws the progress of a run, a bar per stage, and
// what removes the bar at the end.
func benchProgress(w io.Writer) (draw func(bench.Progress), clear func()) {
	const whole = 1000
	bar := progressbar.NewOptions(whole,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetWidth(30),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionSetElapsedTime(false),
	)
	draw = func(p bench.Progress) {
		bar.Describe(fmt.Sprintf("%-22s %9.0f ops/s", p.Stage, p.Rate))
		// Never complete: the bar would end its line and the next stage start another.
		_ = bar.Set(int(math.Min(p.Fraction*whole, whole-1))) // nothing to do if a bar cannot be drawn
	}
	return draw, func() { _ = bar.Clear() }
}
