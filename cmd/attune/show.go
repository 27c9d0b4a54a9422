package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/attunekv/attune/client"
)

// newShowCommand is `attune show`: the cluster as one controller sees it.
func newShowCommand() *cobra.Command {
	var servers []string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the cluster as a controller sees it",
		Long: `Show asks a controller (the first of --server that answers) for its cluster. What
it prints is in "stats attune" too, and as metrics.

A member is ready (serves its level), alive (runs, and does not serve it) or failed.

At the levels linearizable and sequential it shows leader, term, how far the log
is, and every member's role and lag, in log entries: known to the leader only, so
ask that.

At the levels causal and eventual it shows how the copy of every member compares
with that of the controller asked: equal, or differs, as it does for a moment while
there are writes. LACKS is how many changes that controller has and the member has
not, AHEAD how many the other way round, CLOCK how far the member's clock is ahead.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd.Context(), cmd.OutOrStdout(), servers)
		},
	}
	cmd.Flags().StringSliceVarP(&servers, "server", "s", []string{"127.0.0.1:8000"}, "controllers, comma-separated: host:port or unix:/path")
	return cmd
}

func show(ctx context.Context, out io.Writer, servers []string) error {
	c := client.New(servers...)
	defer c.Close()
	stats := make(map[string]string)
	var members [][]string
	var faults []string
	err := c.Raw(ctx, []byte("stats attune\r\n"), func(line, _ []byte) bool {
		name, value, ok := strings.Cut(strings.TrimPrefix(string(line), "STAT "), " ")
		if member, is := strings.CutPrefix(name, "member_"); is {
			members = append(members, append([]string{member}, strings.Fields(value)...))
		} else if strings.HasPrefix(name, "fault_") {
			faults = append(faults, value)
		} else if ok {
			stats[name] = value
		}
		return string(line) != "END" && !strings.HasPrefix(string(line), "ERROR")
	})
	if err != nil {
		return err
	}
	if stats["level"] == "" {
		return fmt.Errorf("%s is not a controller of attune", c.Controller())
	}
	fmt.Fprintf(out, "%s, as %s sees it: %s\n", stats["level"], stats["name"], orDefault(stats["health"], "ok"))
	for _, f := range faults {
		fmt.Fprintln(out, "FAULT injected at", stats["name"]+":", f)
	}
	if len(members) == 0 {
		_, err := fmt.Fprintln(out, "one controller alone")
		return err
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
		return table(out, "NAME\tSTATE\tCOPY\tCLIENTS\tADMIN\tLACKS\tAHEAD\tCLOCK", members)
	}
	fmt.Fprintf(out, "leader %s, term %s, log committed to %s, applied to %s; requests pending %s, completed %s\n\n",
		stats["leader"], stats["term"], stats["commit_index"], stats["applied_index"], stats["pending"], stats["completed"])
	return table(out, "NAME\tSTATE\tROLE\tCLIENTS\tADMIN\tLAG", members)
}

func table(out io.Writer, head string, rows [][]string) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, head)
	for _, m := range rows {
		fmt.Fprintln(w, strings.Join(m, "\t"))
	}
	return w.Flush()
}

func orDefault(s, d string) string {
	if s == "" {
		return d
	}
	return s
}

// newRecoverCommand is `attune recover`, for the worst day.
func newRecoverCommand() *cobra.Command {
	var admin string
	var force bool
	cmd := &cobra.Command{
		Use:   "recover --force-new-cluster",
		Short: "Go on with one controller after a quorum was lost for good",
		Long: `Recover makes the controller at --admin the only member of a new cluster, with the
data it has. It is for one case: so many controllers are lost for good, with
their memory or their disks, that no quorum can come together any more.

WRITES THAT ONLY THE LOST CONTROLLERS HAD ARE GONE, acknowledged ones too. The
controller that is asked refuses if it knows of a leader, or does not have all
of the data. Choose the one whose applied index is the highest (attune show).

Controllers of the old cluster that are still alive are refused from then on.
Restart them, without their data directories: they enter the new one and are
filled from it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force {
				return fmt.Errorf("nothing was done: say --force-new-cluster if you have read what it gives up (%s --help)", cmd.CommandPath())
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			resp, err := askAdmin(ctx, http.MethodPost, admin, "/recover", url.Values{"force-new-cluster": {"yes"}})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			text, err := adminText(resp)
			if err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s refuses: %s", admin, text)
			}
			_, err = fmt.Fprintf(os.Stdout, "%s is a new cluster now. Restart the other controllers, without their data directories.\n", admin)
			return err
		},
	}
	cmd.Flags().StringVar(&admin, "admin", "127.0.0.1:9090", "admin address of the controller to go on with")
	cmd.Flags().BoolVar(&force, "force-new-cluster", false, "give up what only the lost controllers had")
	return cmd
}
