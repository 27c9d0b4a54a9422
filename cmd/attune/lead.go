package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// newLeaderCommand is `attune leader transfer`.
func newLeaderCommand() *cobra.Command {
	leader := &cobra.Command{
		Use:   "leader",
		Short: "Say who leads, at the levels that have a leader",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var admin, to string
	transfer := &cobra.Command{
		Use:   "transfer [--to NAME]",
		Short: "Hand over leadership to another controller",
		Long: `Transfer has the controller at --admin, which must be the leader, hand over to
another voter: to the one named, or to the one that has most of the log. Writes wait
meanwhile, for a few milliseconds; none is lost. Before a controller is stopped, that
is not needed: it hands over by itself.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			form := url.Values{}
			if to != "" {
				form.Set("to", to)
			}
			text, err := postAdmin(cmd.Context(), admin, "/leader/transfer", form)
			if err != nil {
				return err
			}
			var answer struct{ Leader string }
			if err := json.Unmarshal(text, &answer); err != nil {
				return fmt.Errorf("the answer of %s cannot be read: %w", admin, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s leads now\n", answer.Leader)
			return err
		},
	}
	addAdmin(transfer, &admin, "of the leader")
	transfer.Flags().StringVar(&to, "to", "", "name of the controller that is to lead; empty: the one that has most of the log")
	leader.AddCommand(transfer)
	return leader
}

// newLeaveCommand is `attune leave`.
func newLeaveCommand() *cobra.Command {
	var admin string
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Have a controller leave its cluster for good, and stop",
		Long: `Leave has the controller at --admin drain, leave its cluster, and exit, as SIGTERM
does. One with a data-dir is expected back after SIGTERM: it stays a voter, and what is
dead is remembered for it. After leave it is not.

It refuses while its cluster has no quorum, and if it is the only one that has the data.
Started again, it enters the cluster as a new controller does.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := postAdmin(cmd.Context(), admin, "/leave", url.Values{"for-good": {"yes"}}); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s leaves: it drains, and exits\n", admin)
			return err
		},
	}
	addAdmin(cmd, &admin, "of the controller that is to leave")
	return cmd
}

func addAdmin(cmd *cobra.Command, admin *string, whose string) {
	cmd.Flags().StringVar(admin, "admin", orDefault(os.Getenv(envName("admin")), "127.0.0.1:9090"), "admin address "+whose)
}

// postAdmin asks the controller at an admin address to do something, and returns its
// answer. An error has the reason why it refuses.
func postAdmin(ctx context.Context, admin, path string, form url.Values) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := askAdmin(ctx, http.MethodPost, admin, path, form)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := adminText(resp)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s refuses: %s", admin, text)
	}
	return []byte(text), nil
}
