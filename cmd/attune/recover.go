package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/attunekv/attune/client/admin"
)

// newRecoverCommand is `attune recover`, for the worst day.
func newRecoverCommand() *cobra.Command {
	var at admin.Client
	var force bool
	cmd := &cobra.Command{
		Use:   "recover --force-new-cluster",
		Short: "Go on with one controller after a quorum was lost for good",
		Long: `Recover makes the controller at --admin the only member of a new cluster, with the
data it has, and all that is in its log. It is for one case: so many controllers are lost for good, with
their memory or their disks, that no quorum can come together any more.

WRITES THAT ONLY THE LOST CONTROLLERS HAD ARE GONE, acknowledged ones too. The
controller that is asked refuses if it knows of a leader, or does not have all
of the data. Choose the one whose last index is the highest (attune_raft_index of /metrics).

Controllers of the old cluster that are still alive are refused from then on.
Restart them, without their data directories: they enter the new one and are
filled from it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force {
				return fmt.Errorf("nothing was done: say --force-new-cluster if you have read what it gives up (%s --help)", cmd.CommandPath())
			}
			if err := tell(cmd.Context(), &at, "/recover", url.Values{"force-new-cluster": {"yes"}}, nil); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is a new cluster now. Restart the other controllers, without their data directories.\n", at.Addr)
			return err
		},
	}
	addAdmin(cmd.Flags(), &at, "of the controller to go on with")
	cmd.Flags().BoolVar(&force, "force-new-cluster", false, "give up what only the lost controllers had")
	return cmd
}
