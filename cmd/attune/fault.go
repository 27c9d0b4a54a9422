package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attunekv/attune/client/admin"
)

// newFaultCommand is `attune fault`: a network, or a clock, that fails on purpose.
func newFaultCommand() *cobra.Command {
	var at admin.Client
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Break the network of a controller, or its clock, on purpose and for a time",
		Long: `Fault has the controller at --admin lose or hold back what it and named others say
to each other, in both directions, so telling one side is enough. It is to see what
a cluster and its clients do then, and is refused unless the controller runs with
enable-faults=true.

  attune fault partition n2,n3 --for 30s      nothing gets through
  attune fault drop n2 30% --for 1m           this much of it is lost
  attune fault delay n2 100ms --for 1m        each way; 2s at most
  attune fault pause --for 10s                serves nobody, clients neither
  attune fault clock behind 1h --for 1m       or ahead: its wall clock is off
  attune fault list
  attune fault clear

A fault ends by itself when its time, an hour at most, is up. While there is one,
attune show, stats attune and the metric attune_fault_active tell, and the log has
its beginning and its end. /readyz answers as it would if nobody knew.`,
	}
	addAdmin(cmd.PersistentFlags(), &at, "of the controller")
	call := func(cmd *cobra.Command, method string, form url.Values) error {
		return fault(cmd, &at, method, form)
	}
	inject := func(use, short string, args int, form func(args []string) url.Values) *cobra.Command {
		var lasts time.Duration
		sub := &cobra.Command{
			Use: use, Short: short, Args: cobra.ExactArgs(args),
			RunE: func(cmd *cobra.Command, args []string) error {
				values := form(args)
				values.Set("kind", cmd.Name())
				values.Set("for", lasts.String())
				return call(cmd, http.MethodPost, values)
			},
		}
		sub.Flags().DurationVar(&lasts, "for", 0, "how long it lasts, at most 1h")
		_ = sub.MarkFlagRequired("for") // the flag is there
		return sub
	}
	cmd.AddCommand(
		inject("drop NAMES PERCENT", "Lose some of what goes to and comes from others", 2, func(args []string) url.Values {
			return url.Values{"peers": {args[0]}, "percent": {strings.TrimSuffix(args[1], "%")}}
		}),
		inject("delay NAMES DURATION", "Hold back what goes to and comes from others", 2, func(args []string) url.Values {
			return url.Values{"peers": {args[0]}, "delay": {args[1]}}
		}),
		inject("partition NAMES", "Cut the controller off from others", 1, func(args []string) url.Values {
			return url.Values{"peers": {args[0]}}
		}),
		inject("pause", "Have the controller serve nobody", 0, func([]string) url.Values { return url.Values{} }),
		inject("clock ahead|behind DURATION", "Have the controller believe a wall clock that is off", 2, func(args []string) url.Values {
			return url.Values{"offset": {strings.NewReplacer("ahead", "+", "behind", "-").Replace(args[0]) + args[1]}}
		}),
		&cobra.Command{Use: "list", Short: "List the faults there are", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return call(cmd, http.MethodGet, nil) }},
		&cobra.Command{Use: "clear", Short: "End all faults", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return call(cmd, http.MethodDelete, nil) }},
	)
	return cmd
}

// fault asks the controller, and prints the faults there are then.
func fault(cmd *cobra.Command, at *admin.Client, method string, form url.Values) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), adminPatience)
	defer cancel()
	var all []struct {
		Text  string
		Until time.Time
	}
	if err := at.Send(ctx, method, "/fault", form, &all); err != nil {
		return err
	}
	if len(all) == 0 {
		fmt.Fprintln(cmd.OutOrStdout(), "no faults")
	}
	for _, f := range all {
		fmt.Fprintf(cmd.OutOrStdout(), "%s, for another %v\n", f.Text, time.Until(f.Until).Round(time.Second))
	}
	return nil
}
