package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/attunekv/attune/client/admin"
)

// newLeaderCommand is `attune leader`.
func newLeaderCommand() *cobra.Command {
	var at admin.Client
	var to string
	leader := &cobra.Command{
		Use:   "leader",
		Short: "Say who leads, at the levels that have a leader, or have another one lead",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), adminPatience)
			defer cancel()
			asked, err := look(ctx, &at)
			switch {
			case err != nil:
				return err
			case asked.Ordered == nil && asked.Health == "":
				return fmt.Errorf("level %s has no leader", asked.Level)
			case asked.leader() == "":
				return fmt.Errorf("%s knows of no leader: %s", asked.Name, asked.Health)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s leads\n", asked.leader())
			return err
		},
	}
	transfer := &cobra.Command{
		Use:   "transfer [--to NAME]",
		Short: "Hand over leadership to another controller",
		Long: `Transfer has the leader, which the controller at --admin tells of, hand over to
another voter: to the one named, or to the one that has most of the log. Writes wait
meanwhile, for a few milliseconds; none is lost. Before a controller is stopped, that
is not needed: it hands over by itself.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			form := url.Values{}
			if to != "" {
				form.Set("to", to)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), adminPatience)
			defer cancel()
			asked, err := look(ctx, &at)
			if err != nil {
				return err
			}
			if leads := asked.leader(); leads != "" {
				if err := asked.turnTo(&at, leads); err != nil {
					return err
				}
			}
			var answer struct{ Leader string }
			if err := at.Send(ctx, http.MethodPost, "/leader/transfer", form, &answer); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s leads now\n", answer.Leader)
			return err
		},
	}
	addAdmin(leader.PersistentFlags(), &at, "of a controller of the cluster")
	transfer.Flags().StringVar(&to, "to", "", "name of the controller that is to lead; empty: the one that has most of the log")
	leader.AddCommand(transfer)
	return leader
}
