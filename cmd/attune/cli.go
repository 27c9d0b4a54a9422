package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/attunekv/attune/client"
	"github.com/attunekv/attune/client/shell"
)

// newCLICommand is `attune cli`: a shell, or one command for scripts.
func newCLICommand() *cobra.Command {
	var servers []string
	var timeout time.Duration
	var raw bool
	var admin, token string
	cmd := &cobra.Command{
		Use:   "cli [flags] [command ...]",
		Short: "Talk to a controller, or any memcache server",
		Long: `An interactive shell for attune and any other memcache server. With a command,
runs that and exits; with commands on standard input, runs those.

` + shell.Help(),
		Example: `  attune cli
  attune cli set greeting "hello, world" --ttl 60
  attune cli --raw get picture > picture.png
  tar c . | attune cli set backup -
  printf 'set a 1\nincr a\n' | attune cli`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return fmt.Errorf("--timeout must be more than 0, not %v", timeout)
			}
			code := shell.Run(cmd.Context(), shell.Options{
				Servers: servers, Timeout: timeout, Raw: raw, Admin: admin, Token: token, Operate: operate(token),
				In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
			}, args)
			if code != shell.ExitOK {
				return exitCode(code)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the command belongs to it
	f.StringSliceVarP(&servers, "server", "s", []string{"127.0.0.1:8000"}, "controllers, comma-separated, the preferred one first: host:port or unix:/path")
	f.DurationVar(&timeout, "timeout", client.DefaultTimeout, "limit for connecting, sending and each reply")
	f.StringVar(&admin, "admin", "", "admin address of the controller, for what is no command of memcache; it says so itself, unless it is behind something")
	addToken(f, &token)
	f.BoolVar(&raw, "raw", false, "print values byte for byte, nothing added")
	return cmd
}

// operate runs an operator's command that was typed in a shell: with the flags it has, for
// the controller that the shell talks to unless they say otherwise.
func operate(token string) func(ctx context.Context, at shell.Target, args []string, out, errs io.Writer) error {
	return func(ctx context.Context, at shell.Target, args []string, out, errs io.Writer) error {
		root := newRootCommand()
		understood := false
		root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
			understood = true
			if f := cmd.Flags().Lookup("server"); f != nil && !f.Changed {
				return f.Value.(pflag.SliceValue).Replace([]string{at.Server})
			}
			if f := cmd.Flags().Lookup("admin-token-file"); f != nil && !f.Changed {
				_ = f.Value.Set(token) // any text will do
			}
			if f := cmd.Flags().Lookup("admin"); f != nil && !f.Changed {
				addr, err := at.Admin()
				if err != nil {
					return err
				}
				return f.Value.Set(addr)
			}
			return nil
		}
		root.SetArgs(args)
		root.SetOut(out)
		root.SetErr(errs)
		err := root.ExecuteContext(ctx)
		switch _, told := errors.AsType[exitCode](err); {
		case told:
			return shell.ErrNo
		case err != nil && !understood:
			return shell.Misused(err)
		}
		return err
	}
}
