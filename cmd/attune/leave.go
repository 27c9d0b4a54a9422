package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attunekv/attune/client"
	"github.com/attunekv/attune/client/admin"
)

const (
	// leaveLook is how often a controller that leaves is looked at, and leaveWord how
	// often a person is told that it is not done.
	leaveLook = 200 * time.Millisecond
	leaveWord = 2 * time.Second
)

// newLeaveCommand is `attune leave`.
func newLeaveCommand() *cobra.Command {
	var at admin.Client
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "leave [NAME]",
		Short: "Have a controller leave its cluster for good, and stop",
		Long: `Leave has the controller at --admin, or the one of this name that it knows, drain,
leave its cluster, and exit, as SIGTERM does. One with a data-dir is expected back after
SIGTERM: it stays a voter, and what is dead is remembered for it. After leave it is not.

It refuses while its cluster has no quorum, or those left would be none, and if it is
the only one that has the data. Started again, it enters the cluster as a new controller does.

Leave waits until the others go on without it, and fails if that takes longer than
--timeout, or if nobody can be asked: then look at attune show.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if patience <= 0 {
				return fmt.Errorf("--timeout must be more than 0, not %v", patience)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), patience)
			defer cancel()
			asked, err := look(ctx, &at)
			if err != nil {
				return err
			}
			name := asked.Name
			if len(args) > 0 {
				name = args[0]
			}
			if err := asked.turnTo(&at, name); err != nil {
				return err
			}
			if err := tell(ctx, &at, "/leave", url.Values{"for-good": {"yes"}}, nil); err != nil {
				return err
			}
			l := leaving{name: name, at: &at, others: asked, out: cmd.ErrOrStderr(), began: time.Now()}
			fmt.Fprintf(l.out, "%s leaves: it drains, and exits\n", name)
			if err := l.wait(ctx); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s has left\n", name)
			return err
		},
	}
	addAdmin(cmd.Flags(), &at, "of the controller that is to leave, or of another one of its cluster")
	cmd.Flags().DurationVar(&patience, "timeout", time.Minute, "how long to wait until it has left; it goes on leaving after that")
	return cmd
}

// leaving is a controller that was told to leave.
type leaving struct {
	name   string
	at     *admin.Client
	others *view // before
	out    io.Writer
	began  time.Time
	word   time.Time // when a person was last told
}

// wait returns when the controller has left, as one of the others says.
func (l *leaving) wait(ctx context.Context) error {
	l.word = l.began
	for {
		state := l.state(ctx)
		if state == "" {
			return nil
		}
		if time.Since(l.word) >= leaveWord {
			l.word = time.Now()
			fmt.Fprintf(l.out, "%v: %s\n", time.Since(l.began).Round(time.Second), state)
		}
		select {
		case <-time.After(leaveLook):
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return context.Cause(ctx)
			}
			return fmt.Errorf("not known to have left after %v: %s. It goes on leaving; attune show tells, asked of another controller. If %s has ended and is a member still, start it again, and leave again when the cluster has a quorum",
				time.Since(l.began).Round(time.Second), state, l.name)
		}
	}
}

// state says what is being waited for, "" if the controller has left.
func (l *leaving) state(ctx context.Context) string {
	asking, cancel := context.WithTimeout(ctx, trafficPatience)
	defer cancel()
	if v, err := look(asking, l.at); err == nil && v.Name == l.name {
		return fmt.Sprintf("%s drains, %d connections are open", l.name, v.Connections)
	}
	var silent []string
	for _, m := range l.others.Members {
		if m.Name == l.name || m.Listen == "" {
			continue
		}
		c := client.New(m.Listen)
		c.Timeout = trafficPatience
		asking, cancel := context.WithTimeout(ctx, trafficPatience)
		s, err := ask(asking, c)
		cancel()
		c.Close()
		if err != nil {
			silent = append(silent, m.Name)
			continue
		}
		for _, other := range s.Members {
			if other.Name == l.name && len(other.Fields) > 1 && other.Fields[1] != "outside" && other.Fields[0] != "left" {
				return fmt.Sprintf("%s has it as %s, %s", m.Name, other.Fields[0], other.Fields[1])
			}
		}
		return ""
	}
	return fmt.Sprintf("%s answers no more, and of the others nobody can be asked from here (%s)", l.name, strings.Join(silent, ", "))
}
