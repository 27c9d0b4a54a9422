package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/attunekv/attune/client"
	"github.com/attunekv/attune/client/shell"
)

// newCLICommand is `attune cli`: a shell, or one command for scripts.
func newCLICommand() *cobra.Command {
	var servers []string
	var timeout time.Duration
	var raw bool
	var admin string
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
				Servers: servers, Timeout: timeout, Raw: raw, Admin: admin,
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
	f.StringVar(&admin, "admin", "", "admin address of the controller, for explain, watch and trace; it says so itself, unless it is behind something")
	f.BoolVar(&raw, "raw", false, "print values byte for byte, nothing added")
	return cmd
}
