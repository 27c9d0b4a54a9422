package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/attunekv/attune/consistency"
)

// simulateOptions are the flags of `attune simulate`.
type simulateOptions struct {
	consistency.SimOptions
	nodes      []int
	level      string
	svg        string
	json       bool
	rate       rateFlag
	churn      rateFlag
	loss       shareFlag
	duplicates shareFlag
	reorder    shareFlag
}

// newSimulateCommand is `attune simulate`.
func newSimulateCommand() *cobra.Command {
	o := &simulateOptions{
		SimOptions: consistency.SimOptions{Writes: 1000, Value: 100, Delay: 20 * time.Millisecond, Seed: 1},
		nodes:      []int{100}, level: "eventual", rate: 500,
	}
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Simulate how writes spread in a cluster",
		Long: `Simulate runs a causal or eventual cluster of any size in this one process: the
code by which controllers spread, repair and reconcile what is written, over a
network and in time that are made up. It prints how long a write takes to every
controller, and what that costs each in bytes. One seed is one run.

What is not simulated: clients, the ordered levels, who is a member (all learn of
it a second late), bandwidth and processors.

With several sizes at --nodes the cluster is simulated at each. --svg draws, for
each, how many controllers have a write by the time since, and the bytes that a
controller sends against the number of controllers.

The exit status is not 0 if the controllers did not agree within --limit.`,
		Example: `  attune simulate --nodes 1000 --rate 500/s --delay 20ms
  attune simulate --nodes 3,10,100,1000 --svg scale.svg
  attune simulate --nodes 50 --loss 1% --churn 0.5/s --partition 5s --seed 7`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.IntSliceVar(&o.nodes, "nodes", o.nodes, "controllers; several sizes with commas between")
	f.StringVar(&o.level, "level", o.level, "causal or eventual")
	f.IntVar(&o.Writes, "writes", o.Writes, "writes, each of a key of its own")
	f.Var(&o.rate, "rate", "writes per second, of all controllers together")
	f.IntVar(&o.Writers, "writers", o.Writers, "controllers that are written to (0: all, but at most 100)")
	f.IntVar(&o.Value, "value-size", o.Value, "`bytes` of a value")
	f.DurationVar(&o.Delay, "delay", o.Delay, "mean time from one controller to another")
	f.Var(&o.loss, "loss", "share of frames that are lost")
	f.Var(&o.duplicates, "duplicates", "share of frames that arrive twice")
	f.Var(&o.reorder, "reorder", "share of frames that may be overtaken")
	f.Var(&o.churn, "churn", "controllers killed per second while there are writes; each comes back without memory after 2 s")
	f.DurationVar(&o.Partition, "partition", o.Partition, "how long two halves are cut off from each other, from the middle of the writes on")
	f.DurationVar(&o.Skew, "skew", o.Skew, "how far clocks are off, either way")
	f.DurationVar(&o.Limit, "limit", 2*time.Minute, "simulated time that the cluster has, after the last write, to agree")
	f.Uint64Var(&o.Seed, "seed", o.Seed, "seed of the run; the same seed makes the same one")
	f.StringVar(&o.svg, "svg", o.svg, "`file` to draw into")
	f.BoolVar(&o.json, "json", o.json, "print JSON: an array with an object for each size, durations in nanoseconds")
	return cmd
}

func (o *simulateOptions) run(cmd *cobra.Command) error {
	switch o.level {
	case "causal":
		o.Causal = true
	case "eventual":
	default:
		return fmt.Errorf("--level %q: must be causal or eventual; the others are not spread by gossip", o.level)
	}
	o.Rate, o.Churn = float64(o.rate), float64(o.churn)
	o.Loss, o.Duplicate, o.Reorder = float64(o.loss), float64(o.duplicates), float64(o.reorder)
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	clear := func() {}
	if e, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(e.Fd())) {
		o.Progress, clear = simulateProgress(e)
	}
	var reports []consistency.SimReport
	for _, n := range o.nodes {
		o.Nodes = n
		r, err := consistency.Simulate(ctx, o.SimOptions)
		clear()
		if errors.Is(err, context.Canceled) && len(reports) > 0 {
			break // what there is, is right
		}
		if err != nil {
			return fmt.Errorf("simulate %d nodes: %w", n, err)
		}
		reports = append(reports, r)
	}
	if o.svg != "" {
		if err := os.WriteFile(o.svg, plotSimulation(reports), 0o644); err != nil {
			return fmt.Errorf("draw: %w", err)
		}
	}
	var err error
	if o.json {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		err = enc.Encode(reports)
	} else {
		err = printSimulation(cmd.OutOrStdout(), reports)
	}
	for i := range reports {
		if err == nil && !reports[i].Agreed {
			err = exitCode(1) // the report says so
		}
	}
	return err
}

// simulateProgress shows the simulated time, and how to wipe that away.
func simulateProgress(w io.Writer) (progress func(time.Duration), clear func()) {
	last := time.Now()
	return func(at time.Duration) {
			if time.Since(last) > 200*time.Millisecond {
				last = time.Now()
				fmt.Fprintf(w, "\r%8.2f s simulated ", at.Seconds())
			}
		}, func() {
			fmt.Fprint(w, "\r                      \r")
		}
}

// printSimulation prints a column for each size.
func printSimulation(w io.Writer, reports []consistency.SimReport) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(name string, cell func(r *consistency.SimReport) string) {
		fmt.Fprintf(tw, "%s\t", name)
		for i := range reports {
			fmt.Fprintf(tw, "%s\t", cell(&reports[i]))
		}
		fmt.Fprintln(tw)
	}
	times := func(name string, of func(r *consistency.SimReport) consistency.SimQuantiles) {
		row(name+", p50", func(r *consistency.SimReport) string { return shortTime(of(r).P50) })
		row("p90", func(r *consistency.SimReport) string { return shortTime(of(r).P90) })
		row("p99", func(r *consistency.SimReport) string { return shortTime(of(r).P99) })
		row("max", func(r *consistency.SimReport) string { return shortTime(of(r).Max) })
	}
	traffic := func(r *consistency.SimReport, of []consistency.SimTraffic, purpose string) string {
		for _, t := range of {
			if t.Purpose == purpose {
				return shortBytes(t.Bytes)
			}
		}
		return "-"
	}
	row("nodes", func(r *consistency.SimReport) string { return strconv.Itoa(r.Nodes) })
	times("write to all nodes", func(r *consistency.SimReport) consistency.SimQuantiles { return r.ToAll })
	times("write to one node", func(r *consistency.SimReport) consistency.SimQuantiles { return r.ToEach })
	row("sent per node and second, idle", func(r *consistency.SimReport) string {
		sum := 0.0
		for _, t := range r.Idle {
			sum += t.Bytes
		}
		return shortBytes(sum)
	})
	for _, purpose := range []string{"updates", "digests", "reconcile", "cut"} {
		row("with writes: "+purpose, func(r *consistency.SimReport) string { return traffic(r, r.Busy, purpose) })
	}
	row("the busiest node", func(r *consistency.SimReport) string { return shortBytes(r.Busiest) })
	row("per node and write", func(r *consistency.SimReport) string { return shortBytes(r.PerWrite) })
	row("copies a node is sent", func(r *consistency.SimReport) string { return strconv.FormatFloat(r.Copies, 'f', 2, 64) })
	row("sent again", func(r *consistency.SimReport) string { return strconv.FormatUint(r.Resent, 10) })
	row("held back", func(r *consistency.SimReport) string { return strconv.FormatUint(r.HeldBack, 10) })
	row("reconciled", func(r *consistency.SimReport) string { return strconv.FormatUint(r.Reconciles, 10) })
	row("writes", func(r *consistency.SimReport) string { return strconv.Itoa(r.Writes) })
	row("that all nodes got", func(r *consistency.SimReport) string { return strconv.Itoa(r.Complete) })
	row("that died with their node", func(r *consistency.SimReport) string { return strconv.Itoa(r.Lost) })
	row("all nodes equal after", func(r *consistency.SimReport) string {
		if !r.Agreed {
			return "never"
		}
		return shortTime(r.Took)
	})
	return tw.Flush()
}

func shortTime(d time.Duration) string {
	if d < time.Second {
		return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 1, 64) + " ms"
	}
	return strconv.FormatFloat(d.Seconds(), 'f', 2, 64) + " s"
}

func shortBytes(n float64) string {
	switch {
	case n < 1e3:
		return strconv.FormatFloat(n, 'f', 0, 64) + " B"
	case n < 1e6:
		return strconv.FormatFloat(n/1e3, 'f', 1, 64) + " kB"
	default:
		return strconv.FormatFloat(n/1e6, 'f', 1, 64) + " MB"
	}
}

// rateFlag is so many per second: 500, 500/s or 0.5/s.
type rateFlag float64

func (r *rateFlag) Set(s string) error {
	x, err := strconv.ParseFloat(strings.TrimSuffix(s, "/s"), 64)
	if err != nil || x < 0 || math.IsInf(x, 0) || math.IsNaN(x) {
		return errors.New("write it as 500/s")
	}
	*r = rateFlag(x)
	return nil
}

func (r *rateFlag) String() string { return strconv.FormatFloat(float64(*r), 'g', -1, 64) + "/s" }
func (r *rateFlag) Type() string   { return "rate" }

// shareFlag is a share of all: 1% or 0.01.
type shareFlag float64

func (p *shareFlag) Set(s string) error {
	number, percent := strings.CutSuffix(s, "%")
	x, err := strconv.ParseFloat(number, 64)
	if percent {
		x /= 100
	}
	if err != nil || !(x >= 0 && x <= 1) {
		return errors.New("write it as 1% or 0.01")
	}
	*p = shareFlag(x)
	return nil
}

func (p *shareFlag) String() string { return strconv.FormatFloat(float64(*p)*100, 'g', -1, 64) + "%" }
func (p *shareFlag) Type() string   { return "share" }
