package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/attunekv/attune/client"
)

// newShowCommand is `attune show`: the cluster as one controller sees it.
func newShowCommand() *cobra.Command {
	var servers []string
	var asJSON bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the cluster as a controller sees it",
		Long: `Show asks a controller (the first of --server that answers) for its cluster. What
it prints is in "stats attune" too, and as metrics.

A member is ready (serves its level), alive (runs, and does not serve it), failed, or
left: it was stopped on purpose, and nobody waits for it. One that was stopped and is to
vote again, as it has a data-dir, counts as failed: quorums still need it.

At the levels linearizable and sequential it shows leader, term, how far the log
is, and every member's role and lag, in log entries: known to the leader only, so
ask that.

At the levels causal and eventual it shows how the copy of every member compares
with that of the controller asked: equal, or differs, as it does for a moment while
there are writes. LACKS is how many changes that controller has and the member has
not, AHEAD how many the other way round, CLOCK how far the member's clock is ahead.

Servers of a memcached backend are shown with how many calls to them failed, and the
mean time of one; both since the start of the controller asked.

With --watch it shows that again and again, with what every controller does meanwhile:
commands a second, and how many of its gets hit. They are asked at the addresses of
their clients.`,
		Example: `  attune show
  attune show --watch
  attune show --watch=10s -s 10.0.0.1:8000
  attune show --json | jq .members`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 0 {
				return fmt.Errorf("--watch must not be less than 0, but it is %v", every)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
			defer stop()
			return show(ctx, cmd.OutOrStdout(), servers, asJSON, every)
		},
	}
	cmd.Flags().StringSliceVarP(&servers, "server", "s", []string{"127.0.0.1:8000"}, "controllers, comma-separated: host:port or unix:/path")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with --watch a line each time")
	cmd.Flags().DurationVar(&every, "watch", 0, "show it again and again, so often")
	cmd.Flags().Lookup("watch").NoOptDefVal = "2s"
	return cmd
}

// shown is what a controller tells of its cluster.
type shown struct {
	Stats   map[string]string `json:"stats"`
	Members []member          `json:"members,omitempty"`
	Servers []storeServer     `json:"servers,omitempty"` // of its backend
	Faults  []string          `json:"faults,omitempty"`  // injected there
	Traffic []traffic         `json:"traffic,omitempty"` // with --watch
}

// member is a controller as "stats attune" has it. The fields that follow are those
// of the table.
type member struct {
	Name   string   `json:"name"`
	Fields []string `json:"fields"` // state, role or copy, clients, admin, lag, and at some levels ahead and clock
}

// storeServer is a server of a backend: its state, failed calls, mean microseconds.
type storeServer struct {
	Addr   string   `json:"addr"`
	Fields []string `json:"fields"`
}

// show prints what a controller tells, once or, if every is not 0, until ctx ends.
func show(ctx context.Context, out io.Writer, servers []string, asJSON bool, every time.Duration) error {
	c := client.New(servers...)
	defer c.Close()
	var before rates
	for {
		s, err := ask(ctx, c)
		if err != nil {
			return ended(ctx, every, err)
		}
		if every > 0 {
			s.Traffic = before.since(ctx, s, c.Controller())
		}
		if err := s.print(out, asJSON, every > 0); err != nil || every == 0 {
			return err
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
	}
}

// ended is err, unless it is that of Ctrl-C, which ends a watch.
func ended(ctx context.Context, every time.Duration, err error) error {
	if every > 0 && ctx.Err() != nil {
		return nil
	}
	return err
}

// ask asks a controller for what it knows.
func ask(ctx context.Context, c *client.Client) (*shown, error) {
	s := &shown{Stats: make(map[string]string)}
	err := c.Raw(ctx, []byte("stats attune\r\n"), func(line, _ []byte) bool {
		name, value, ok := strings.Cut(strings.TrimPrefix(string(line), "STAT "), " ")
		if m, is := strings.CutPrefix(name, "member_"); is {
			s.Members = append(s.Members, member{m, strings.Fields(value)})
		} else if addr, is := strings.CutPrefix(name, "fleet_"); is {
			s.Servers = append(s.Servers, storeServer{addr, strings.Fields(value)})
		} else if strings.HasPrefix(name, "fault_") {
			s.Faults = append(s.Faults, value)
		} else if ok {
			s.Stats[name] = value
		}
		return string(line) != "END" && !strings.HasPrefix(string(line), "ERROR")
	})
	if err != nil {
		return nil, err
	}
	if s.Stats["level"] == "" {
		return nil, fmt.Errorf("%s is not a controller of attune", c.Controller())
	}
	return s, nil
}

// print writes s. again says that it is one of many.
func (s *shown) print(out io.Writer, asJSON, again bool) error {
	if asJSON {
		enc := json.NewEncoder(out)
		if !again {
			enc.SetIndent("", "  ")
		}
		return enc.Encode(s)
	}
	var b strings.Builder
	if f, ok := out.(*os.File); again && ok && term.IsTerminal(int(f.Fd())) {
		b.WriteString("\x1b[H\x1b[2J")
	} else if again {
		fmt.Fprintln(&b, time.Now().Format(time.RFC3339))
	}
	s.text(&b)
	if again {
		b.WriteByte('\n')
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// text writes s for people.
func (s *shown) text(out *strings.Builder) {
	stats := s.Stats
	fmt.Fprintf(out, "%s, as %s sees it: %s\n", stats["level"], stats["name"], orDefault(stats["health"], "ok"))
	for _, f := range s.Faults {
		fmt.Fprintln(out, "FAULT injected at", stats["name"]+":", f)
	}
	if why := stats["writes_refused"]; why != "" {
		fmt.Fprintln(out, "WRITES ARE REFUSED at", stats["name"]+":", why)
	}
	if len(s.Members) == 0 {
		fmt.Fprintln(out, "one controller alone")
		s.tables(out)
		return
	}
	if stats["store_repaired"] != "" {
		fmt.Fprintf(out, "store: %s bytes on their way to it, %s values repaired from others, %s filled", stats["store_waiting_bytes"], stats["store_repaired"], stats["fill_fetched"])
		if from := stats["fill_from"]; from != "-" {
			fmt.Fprintf(out, "; filling from %s, %s of %s items", from, stats["fill_looked"], stats["fill_of"])
		}
		fmt.Fprintln(out)
	}
	if stats["origin"] != "" {
		waits := ""
		if why := stats["collection_waits"]; why != "" {
			waits = " (waits: " + why + ")"
		}
		fmt.Fprintf(out, "changes made here %s, taken from others %s, held back %s; requests waiting for write-acks %s\ndead items remembered %s, forgotten up to %s%s; reconciliations %s, keys that differed in the last %s\n\n",
			stats["changes"], stats["changes_applied"], stats["held_back"], stats["waiting_for_acks"],
			stats["tombstones"], stats["collected_to"], waits, stats["reconciles"], stats["reconcile_differing"])
		s.members(out, "NAME\tSTATE\tCOPY\tCLIENTS\tADMIN\tLACKS\tAHEAD\tCLOCK")
		return
	}
	fmt.Fprintf(out, "leader %s, term %s, log committed to %s, applied to %s; requests pending %s, completed %s\n",
		stats["leader"], stats["term"], stats["commit_index"], stats["applied_index"], stats["pending"], stats["completed"])
	for _, m := range s.Members {
		if m.Name == stats["leader"] && m.Name != stats["name"] && len(m.Fields) > 2 {
			fmt.Fprintf(out, "LAG is known to %s: attune show -s %s\n", m.Name, m.Fields[2])
		}
	}
	out.WriteByte('\n')
	s.members(out, "NAME\tSTATE\tROLE\tCLIENTS\tADMIN\tLAG")
}

func (s *shown) members(out *strings.Builder, head string) {
	var rows [][]string
	for _, m := range s.Members {
		rows = append(rows, append([]string{m.Name}, m.Fields...))
	}
	table(out, head, rows)
	s.tables(out)
}

// tables writes what not all have.
func (s *shown) tables(out *strings.Builder) {
	if len(s.Servers) > 0 {
		var rows [][]string
		for _, v := range s.Servers {
			rows = append(rows, append([]string{v.Addr}, v.Fields...))
		}
		out.WriteByte('\n')
		table(out, "STORE\tSTATE\tFAILED\tMEAN US", rows)
	}
	if len(s.Traffic) > 0 {
		var rows [][]string
		for _, t := range s.Traffic {
			rows = append(rows, t.row())
		}
		out.WriteByte('\n')
		table(out, "NAME\tCOMMANDS/S\tHITS", rows)
	}
}

func table(out *strings.Builder, head string, rows [][]string) {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, head)
	for _, m := range rows {
		fmt.Fprintln(w, strings.Join(m, "\t"))
	}
	w.Flush()
}

func orDefault(s, d string) string {
	if s == "" {
		return d
	}
	return s
}
