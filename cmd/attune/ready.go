package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attunekv/attune/client/admin"
)

// newReadyCommand is `attune ready`, for health checks where there is no curl.
func newReadyCommand() *cobra.Command {
	var at admin.Client
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "ready",
		Short: "Ask a controller whether it serves its level",
		Long: `Ready asks /readyz of the controller at --admin. Exit status 0 means that it serves
its level; 1 that it does not, with the reason: it starts, drains, has no quorum, or
cannot be reached. A controller that is not ready gets there by itself when it can,
so take its clients away, and do not restart it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return fmt.Errorf("--timeout must be more than 0, not %v", timeout)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			answer, err := ready(ctx, &at)
			if err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "attune:", err)
				return exitCode(1)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), answer)
			return err
		},
	}
	cmd.Flags().StringVar(&at.Addr, "admin", orDefault(os.Getenv(envName("admin")), "127.0.0.1:9090"), "admin address of the controller, as its ATTUNE_ADMIN says")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Second, "limit for the answer")
	return cmd
}

// ready returns what /readyz of a controller answers. It is an error unless the
// controller serves its level.
func ready(ctx context.Context, at *admin.Client) (string, error) {
	body, err := at.Get(ctx, "/readyz", nil)
	if refused, ok := errors.AsType[*admin.Refused](err); ok {
		return "", fmt.Errorf("%s is not ready: %s", at.Addr, refused.Text)
	}
	if err != nil {
		return "", err
	}
	defer body.Close()
	answer, err := io.ReadAll(io.LimitReader(body, 1<<10))
	return strings.TrimSpace(string(answer)), err
}
