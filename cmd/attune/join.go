package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attunekv/attune/client/admin"
	"github.com/attunekv/attune/controller"
)

// newJoinCommand is `attune join`.
func newJoinCommand() *cobra.Command {
	var at admin.Client
	cmd := &cobra.Command{
		Use:   "join [GOSSIP-ADDRESS...]",
		Short: "Have a controller find others now, or say how to start a further one",
		Long: `Join has the controller at --admin look for others at these gossip addresses now, as
it does for those of its setting join: because that was wrong, or they were not there
for long. It says who was found, or why who is there cannot become a member. It is not
remembered: correct the setting, too, for when the controller is started again.

Without an address it prints the command that starts a further controller of this
cluster, with the settings of the one at --admin that are not the defaults. HOST in it
is the address of the machine that it is for.`,
		Example: `  attune join 10.0.0.4:7946
  attune join --admin 10.0.0.1:9090`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return furtherController(cmd, &at)
			}
			for _, addr := range args {
				var met struct {
					Controller             string
					Answered, Members, New []string
				}
				if err := tell(cmd.Context(), &at, "/join", url.Values{"at": {addr}}, &met); err != nil {
					return err
				}
				found := "nobody new"
				if len(met.New) > 0 {
					found = "new: " + strings.Join(met.New, ", ")
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s answered; %s; %s reaches %d members now, itself included: %s\n",
					strings.Join(met.Answered, " and "), found, met.Controller, len(met.Members), strings.Join(met.Members, ", "))
			}
			return nil
		},
	}
	addAdmin(cmd.Flags(), &at, "of the controller that is to join others, or of one that is to be joined")
	return cmd
}

// whereabouts is where a controller is, as it says.
type whereabouts struct {
	Name                        string
	Alive                       bool
	Listen, Admin, Peer, Gossip string
}

// furtherController prints how to start one.
func furtherController(cmd *cobra.Command, at *admin.Client) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), adminPatience)
	defer cancel()
	var known struct {
		Controller string
		Members    []whereabouts
	}
	if _, err := at.GetJSON(ctx, "/join", nil, &known); err != nil {
		return err
	}
	var config struct{ Settings []controller.Setting }
	if _, err := at.GetJSON(ctx, "/config", nil, &config); err != nil {
		return err
	}
	line, notes := newcomer(known.Controller, known.Members, config.Settings)
	fmt.Fprintln(cmd.OutOrStdout(), line)
	for _, note := range notes {
		fmt.Fprintln(cmd.ErrOrStderr(), note)
	}
	return nil
}

// newcomer is the command that starts a further controller of the cluster of members, by
// the settings of one of them, and what a person has to put in.
func newcomer(like string, members []whereabouts, all []controller.Setting) (line string, notes []string) {
	n := further{like: like, members: members}
	words := []string{"attune serve"}
	for _, s := range all {
		if v := n.setting(s); v != "" {
			between := " "
			if v == "true" || v == "false" { // which a flag that is a switch takes only so
				between = "="
			}
			words = append(words, "--"+s.Name+between+shellWord(v))
		}
	}
	if n.elsewhere {
		notes = append(notes, "HOST is the address of the machine that it is for, as the others reach it.")
	}
	if n.directory {
		notes = append(notes, "It needs a directory of its own, which is empty.")
	}
	if n.servers {
		notes = append(notes, "It needs memcached servers of its own: they are its copy.")
	}
	return strings.Join(words, " \\\n  "), notes
}

// further is a controller that is to be.
type further struct {
	like    string // the one it is modelled on
	members []whereabouts

	elsewhere, directory, servers bool // what is to be put in, or looked at
}

// setting is what a setting of the one it is modelled on becomes, "" if it need not be given.
func (n *further) setting(s controller.Setting) string {
	switch s.Name {
	case "name":
		return n.name()
	case "join":
		var addrs []string
		for _, m := range n.members {
			if m.Alive {
				addrs = append(addrs, m.Gossip)
			}
		}
		return strings.Join(addrs, ",")
	case "listen":
		first, _, _ := strings.Cut(s.Value, ",")
		return n.address(first, func(m *whereabouts) string { return m.Listen })
	case "admin":
		return n.address(s.Value, func(m *whereabouts) string { return m.Admin })
	case "peer":
		return n.address(s.Value, func(m *whereabouts) string { return m.Peer })
	case "gossip":
		return n.address(s.Value, func(m *whereabouts) string { return m.Gossip })
	}
	if slices.ContainsFunc(allSettings, func(st setting) bool { return st.key == s.Name && st.value == s.Value }) || s.Value == "" {
		return "" // its default
	}
	switch {
	case s.Name == "peer-advertise":
		return n.address(s.Value, func(m *whereabouts) string { return m.Peer })
	case s.Name == "data-dir":
		return n.dir(s.Value)
	case s.Name == "backend" && strings.HasPrefix(s.Value, "pebble://"):
		dir, options, _ := strings.Cut(strings.TrimPrefix(s.Value, "pebble://"), "?")
		if options != "" {
			options = "?" + options
		}
		return "pebble://" + n.dir(dir) + options
	case s.Name == "backend" && strings.HasPrefix(s.Value, "memcached://"):
		n.elsewhere, n.servers = true, true
		_, options, found := strings.Cut(s.Value, "?")
		if found {
			options = "?" + options
		}
		return "memcached://HOST:11211" + options
	}
	return s.Value
}

// name is one that nobody has.
func (n *further) name() string {
	stem := strings.TrimRight(n.like, "0123456789")
	for i := 1; ; i++ {
		name := stem + strconv.Itoa(i)
		if !slices.ContainsFunc(n.members, func(m whereabouts) bool { return m.Name == name }) {
			return name
		}
	}
}

// address is that of another controller, given one and how to find those of the members.
// Those of one machine count their ports up; one that listens on all its addresses does
// that on another machine, too.
func (n *further) address(like string, of func(m *whereabouts) string) string {
	host, port, err := net.SplitHostPort(like)
	if err != nil { // off, or a unix socket, of which the directory may have room for another
		if strings.HasPrefix(like, "unix:") {
			return like + "." + n.name()
		}
		return like
	}
	if ip := net.ParseIP(host); !n.sameMachine() && (host == "" || ip != nil && ip.IsUnspecified()) {
		return like
	}
	if !n.sameMachine() {
		n.elsewhere = true
		return net.JoinHostPort("HOST", port)
	}
	top := 0
	for i := range n.members {
		_, its, _ := net.SplitHostPort(of(&n.members[i]))
		if number, err := strconv.Atoi(its); err == nil {
			top = max(top, number)
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(top+1))
}

// sameMachine reports whether the cluster is one of a single machine, so that the
// newcomer must be there, too.
func (n *further) sameMachine() bool {
	return slices.ContainsFunc(n.members, func(m whereabouts) bool {
		host, _, _ := net.SplitHostPort(m.Gossip)
		ip := net.ParseIP(host)
		return ip != nil && ip.IsLoopback()
	})
}

// dir is a directory for it, like that of another controller. On another machine it is
// the same.
func (n *further) dir(like string) string {
	n.directory = true
	switch {
	case !n.sameMachine():
		return like
	case filepath.Base(like) == n.like:
		return filepath.Join(filepath.Dir(like), n.name())
	}
	return like + "-" + n.name()
}

// shellWord is a word as a POSIX shell reads it.
func shellWord(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,=@%+", r)
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
