// Command attune is the whole product in one binary: the server, its shell and
// its load generator. See `attune help`.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set at link time by the Makefile.
var version = "dev"

func main() {
	err := newRootCommand().Execute()
	var code exitCode
	switch {
	case err == nil:
	case errors.As(err, &code):
		os.Exit(int(code))
	default:
		fmt.Fprintln(os.Stderr, "attune:", err)
		os.Exit(2)
	}
}

// exitCode is returned by a command that has already said what was wrong.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "attune",
		Short: "A memcache server and proxy with tunable consistency",
		Long: `attune speaks the memcache protocol to any memcache client and keeps the data
in memory, in files or in memcached servers, at the consistency level you choose.

  attune serve                      start a controller on 127.0.0.1:8000
  attune cli                        talk to it
  attune show                       show its cluster
  attune ready                      say whether it serves its level
  attune leader                     say who leads, have another one lead
  attune join                       have a controller find others, or start a further one
  attune leave                      have a controller leave for good
  attune snapshot                   save all of its items, restore them
  attune fault                      break its network or its clock, to see what happens
  attune bench                      measure it
  attune simulate                   how writes spread in a cluster of thousands
  attune verify                     test what a cluster promises`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(suggestFlag)
	root.AddCommand(newServeCommand(), newCLICommand(), newBenchCommand(), newShowCommand(), newSimulateCommand(), newSnapshotCommand(), newVerifyCommand(), newReadyCommand(), newLeaderCommand(), newJoinCommand(), newLeaveCommand(), newRecoverCommand(), newFaultCommand(), newVersionCommand())
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "attune %s %s %s/%s\n", release(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}

// release is the version set at link time, or what the Go tool knows.
func release() string {
	if version != "dev" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return version
}
