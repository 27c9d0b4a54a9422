package verify

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// JSON writes the report as JSON.
func (rep *Report) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(rep)
}

// Text writes the report for a terminal; the verdict is its last line.
func (rep *Report) Text(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "WORKLOAD\tCOMMANDS\tANSWERED\tCHECKS")
	for _, wl := range rep.Workloads {
		var checks []string
		for _, c := range wl.Checks {
			checks = append(checks, c.Name+map[Verdict]string{Held: "", Violated: " VIOLATED", Unknown: " ?"}[c.Verdict])
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\n", wl.Name, wl.Commands, wl.Answered, strings.Join(checks, ", "))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if why := rep.Why(); why != "" {
		fmt.Fprintf(w, "\n%s\n", why)
	}
	for _, note := range rep.Notes {
		fmt.Fprintf(w, "\nnote: %s\n", note)
	}
	_, err := fmt.Fprintf(w, "\n%s\n", rep.Summary())
	return err
}

// violated reports whether a check found something that is not allowed.
func (w Workload) violated() bool {
	return slices.ContainsFunc(w.Checks, func(c Check) bool { return c.Verdict == Violated })
}

// Summary is the verdict in a line.
func (rep *Report) Summary() string {
	verdict := map[Verdict]string{
		Held:     rep.Level + ": held",
		Violated: rep.Level + ": VIOLATED",
		Unknown:  rep.Level + ": cannot tell",
	}[rep.Verdict]
	if rep.Verdict == Violated && !slices.ContainsFunc(rep.Workloads, Workload.violated) {
		verdict = rep.Level + ": held, but the cluster FAILED"
	}
	return fmt.Sprintf("%s; %d of %d commands answered by %d controllers, %d faults, %v, seed %d",
		verdict, rep.Total.Answered, rep.Total.Commands, len(rep.Controllers), len(rep.Faults), rep.Took.Round(100*time.Millisecond), rep.Seed)
}

func (f Fault) String() string {
	if f.Until == 0 {
		return fmt.Sprintf("%7.1f s  %s", f.At.Seconds(), f.What)
	}
	return fmt.Sprintf("%7.1f s  mended: %s", f.Until.Seconds(), f.What)
}
