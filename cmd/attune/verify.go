package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/verify"
)

// Exit codes of `attune verify`; 2 is also that of every command that could not run.
const (
	exitViolated = 1
	exitUnknown  = 2
)

// verifyOptions are the flags of `attune verify`.
type verifyOptions struct {
	verify.Options
	servers    []string
	local      verify.LocalOptions
	json, html string
	selfTest   bool
}

// newVerifyCommand is `attune verify`.
func newVerifyCommand() *cobra.Command {
	o := &verifyOptions{Options: verify.Defaults(), local: verify.LocalOptions{Level: "linearizable", Store: "embedded", Faults: []string{"all"}}}
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Test what a cluster promises",
		Long: `Verify has clients work on all controllers of a running cluster, writes down what
they see, and judges whether the cluster's level allows it. Given one controller it
finds the others. Its keys have a prefix of their own and are removed at the end;
nothing else is touched, and nothing is broken.

With --local N it starts a cluster of N processes on this machine, and breaks
something all the time: it kills, restarts and pauses controllers, cuts them off, and
makes the network between them slow and lossy. --seed repeats what is broken when.

Linearizable is judged by search (porcupine) and by versions; sequential, causal and
eventual exactly, as versions tell the order of writes; causal and eventual also by
what all controllers have in the end. What a client got no answer to may have been
carried out or not, and is judged as either.

The exit status is 0 if what was seen is allowed, 1 if it is not, 2 if too little was
seen to tell, or verify could not run. A run that finds nothing proves nothing about
the next one: it is a test. --self-test shows that it finds what there is: it runs on
stores that break a promise each, and must find every one of them out.`,
		Example: `  attune verify --server 10.0.0.1:8000 --time 30s
  attune verify --local 3 --level causal --time 60s --html report.html
  attune verify --local 3 --store memcached --faults kill,backend --seed 7
  attune verify --self-test`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set := cmd.Flags().Changed
			if !set("seed") {
				o.Seed = rand.Uint64N(1e6)
			}
			for _, name := range []string{"level", "store", "durable", "faults"} {
				if set(name) && !set("local") {
					return fmt.Errorf("--%s is for a cluster of --local: a running one has its own, and is not broken", name)
				}
			}
			switch {
			case set("local") && set("server"):
				return errors.New("--local and --server: use one of them")
			case set("local") && o.local.Nodes < 1:
				return fmt.Errorf("--local must be at least 1, not %d", o.local.Nodes)
			case o.Time <= 0 || o.Conns < 1:
				return errors.New("--time and --conns must be more than 0")
			}
			level, err := consistency.ParseLevel(o.local.Level)
			if err != nil {
				return fmt.Errorf("--level: %w", err)
			}
			o.local.Level = level.String()
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			context.AfterFunc(ctx, stop) // a second signal ends the process at once
			if o.selfTest {
				return verifySelf(ctx, cmd.OutOrStdout(), o.Seed)
			}
			return o.run(ctx, cmd)
		},
	}
	f := cmd.Flags()
	f.StringSliceVarP(&o.servers, "server", "s", []string{"127.0.0.1:8000"}, "controllers, comma-separated: `host:port`; the others of their cluster are found")
	f.DurationVar(&o.Time, "time", o.Time, "how long clients work")
	f.IntVar(&o.Conns, "conns", o.Conns, "connections")
	f.StringSliceVar(&o.Workloads, "workloads", nil, "what clients do, by default all of it: "+strings.Join(verify.Workloads(), ", "))
	f.DurationVar(&o.Slack, "slack", o.Slack, "how much earlier or later than asked an item may expire")
	f.Uint64Var(&o.Seed, "seed", 0, "seed of commands and faults; by default another one each time")
	f.IntVar(&o.local.Nodes, "local", 0, "start a cluster of so many controllers, and break it")
	f.StringVar(&o.local.Level, "level", o.local.Level, "with --local: consistency level")
	f.StringVar(&o.local.Store, "store", o.local.Store, "with --local: embedded, memcached, pebble, or a backend's URL, in which {dir} is a directory for each controller")
	f.BoolVar(&o.local.Durable, "durable", false, "with --local: controllers keep their data on disk")
	f.StringSliceVar(&o.local.Faults, "faults", o.local.Faults, "with --local: what is broken: all, none, or of "+strings.Join(verify.Faults(), ", "))
	f.StringVar(&o.json, "json", "", "`file` to write the report to, as JSON")
	f.StringVar(&o.html, "html", "", "`file` to write the report to, as a page")
	f.BoolVar(&o.selfTest, "self-test", false, "test the tests: find out stores that are broken on purpose")
	return cmd
}

// run runs against a cluster and reports.
func (o *verifyOptions) run(ctx context.Context, cmd *cobra.Command) error {
	out := cmd.OutOrStdout()
	clear := func() {}
	if e, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(e.Fd())) {
		o.Progress, clear = verifyProgress(e)
	}
	var err error
	if o.local.Nodes > 0 {
		if len(o.local.Faults) == 1 && o.local.Faults[0] == "none" {
			o.local.Faults = nil
		}
		if o.local.Binary, err = os.Executable(); err != nil {
			return err
		}
		o.local.Seed = o.Seed
		if o.Local, err = verify.Start(ctx, o.local); err != nil {
			return fmt.Errorf("start a cluster: %w", err)
		}
		o.Targets, o.Level, o.Whole = o.Local.Targets(), o.local.Level, true
		o.Note = func(f verify.Fault) {
			clear()
			fmt.Fprintln(out, f)
		}
	} else if o.Targets, o.Level, err = verify.Discover(o.servers); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s, %d controllers, seed %d\n", o.Level, len(o.Targets), o.Seed)
	report, err := verify.Run(ctx, o.Options)
	clear()
	if o.Local != nil {
		broken := o.Local.Close()
		if err != nil {
			return errors.Join(err, broken)
		}
		report.Blame(broken)
		if broken != nil {
			fmt.Fprintf(out, "data and logs of the controllers are in %s\n", o.Local.Dir())
		}
	}
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		write func(io.Writer) error
	}{{o.json, report.JSON}, {o.html, report.HTML}} {
		if err := writeFile(f.name, f.write); err != nil {
			return err
		}
	}
	fmt.Fprintln(out)
	if err := report.Text(out); err != nil {
		return err
	}
	switch report.Verdict {
	case verify.Violated:
		return exitCode(exitViolated)
	case verify.Unknown:
		return exitCode(exitUnknown)
	}
	return nil
}

// writeFile has write fill the file called name, if it has a name.
func writeFile(name string, write func(io.Writer) error) error {
	if name == "" {
		return nil
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// verifySelf runs the self-test and prints what it says of each store.
func verifySelf(ctx context.Context, out io.Writer, seed uint64) error {
	const each = 30 * time.Second
	ok := verify.SelfTest(ctx, seed, each, func(c verify.Caught) {
		what, result := "broken: "+c.About, "found by "+c.Check
		if c.Name == "" {
			what, result = "nothing is wrong", "nothing found"
		}
		if !c.OK {
			result = "FAILED: " + c.Story
		}
		fmt.Fprintf(out, "%-12s  %-70s  %s, %.1f s\n", c.Level, what, result, c.Took.Seconds())
	})
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	if !ok {
		return exitCode(exitViolated)
	}
	_, err := fmt.Fprintln(out, "every broken store was found out, and no other blamed")
	return err
}

// verifyProgress returns what draws how far a run is, and what removes that.
func verifyProgress(w io.Writer) (draw func(verify.Progress), clear func()) {
	const whole = 1000
	bar := progressbar.NewOptions(whole,
		progressbar.OptionSetWriter(w), progressbar.OptionSetWidth(30),
		progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false),
	)
	return func(p verify.Progress) {
		bar.Describe(fmt.Sprintf("%-10s %9d answers", p.Stage, p.Answered))
		_ = bar.Set(int(math.Min(p.Fraction*whole, whole-1))) // nothing to do if a bar cannot be drawn
	}, func() { _ = bar.Clear() }
}
