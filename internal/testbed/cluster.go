package testbed

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options say what cluster to start.
type Options struct {
	Binary string // the path of attune
	Nodes  int    // controllers; 0 is 3
	Level  string // --consistency
	// Durable gives each controller a data directory; Sync is its --sync, by
	// default os.
	Durable bool
	Sync    string
	// Backend is --backend, in which {dir} stands for a directory that is the
	// controller's own and {name} for its name. Empty is embedded, and the word
	// memcached gives each controller a memcached of its own.
	Backend string
	// MemoryLimit is --memory-limit; by default 64MiB.
	MemoryLimit string
	// Args are appended to the command line of every controller.
	Args []string
	// Host returns the address a controller has, and what its command line is
	// prefixed with (a program that runs it in a network of its own). If set, no
	// [Network] is between the controllers: there is a real one.
	Host func(i int) (ip string, prefix []string)
	// Seed is the Network's.
	Seed uint64
}

// Cluster is a number of running controllers, whose peer ports stand behind a
// [Network]. Its methods, and those of its controllers, may be called on any
// goroutine, but not at the same time.
type Cluster struct {
	Nodes []*Controller
	Net   *Network // nil with Options.Host

	binary string
	dir    string // data and logs
}

// Start starts controllers and waits until all are ready, or ctx ends. If it
// returns an error, nothing of it runs any more; what they logged is in the error.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c, err := start(ctx, o)
	if err == nil || c == nil {
		return c, err
	}
	err = errors.Join(err, c.Close())
	if ctx.Err() != nil { // nobody wants to know why
		return nil, errors.Join(err, os.RemoveAll(c.dir))
	}
	for _, n := range c.Nodes {
		last, of := n.Said(5)
		err = errors.Join(err, fmt.Errorf("%s said last, of %d lines:\n%s", n.Name, of, last))
	}
	return nil, errors.Join(err, fmt.Errorf("data and logs are in %s", c.dir))
}

func start(ctx context.Context, o Options) (*Cluster, error) {
	dir, err := os.MkdirTemp("", "attune-cluster-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{binary: o.Binary, dir: dir}
	if o.Host == nil {
		c.Net = NewNetwork(o.Seed)
	}
	o.Nodes = cmp.Or(o.Nodes, 3)
	var gossips []string
	for i := range o.Nodes {
		host, prefix := "127.0.0.1", []string(nil)
		if o.Host != nil {
			host, prefix = o.Host(i)
		}
		n := &Controller{Name: fmt.Sprintf("n%d", i+1), Prefix: prefix, cluster: c}
		addrs := []*string{&n.Listen, &n.Peer, &n.Advertise, &n.Gossip, &n.Admin}
		for j, a := range addrs {
			if o.Host != nil {
				*a = net.JoinHostPort(host, fmt.Sprint(7000+j)) // a machine of its own
				continue
			}
			if *a, err = FreeAddr(host); err != nil {
				return c, err
			}
		}
		gossips = append(gossips, n.Gossip)
		c.Nodes = append(c.Nodes, n)
	}
	for _, n := range c.Nodes {
		if err := n.flags(&o, gossips); err != nil {
			return c, err
		}
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return c, err
		}
	}
	return c, c.WaitReady(ctx, c.Nodes...)
}

// flags settles the command line of a controller, and starts what it needs.
func (n *Controller) flags(o *Options, gossips []string) error {
	n.args = []string{"serve", "--name", n.Name, "--listen", n.Listen, "--peer", n.Peer, "--gossip", n.Gossip, "--admin", n.Admin,
		"--consistency", o.Level, "--expect", fmt.Sprint(o.Nodes), "--join", strings.Join(gossips, ","),
		"--op-timeout", "1s", "--memory-limit", cmp.Or(o.MemoryLimit, "64MiB"), "--log-format", "json"}
	dir := filepath.Join(n.cluster.dir, n.Name)
	backend := strings.NewReplacer("{dir}", dir, "{name}", n.Name).Replace(cmp.Or(o.Backend, "embedded"))
	if strings.Contains(o.Backend, "{dir}") {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if backend == "memcached" {
		path, err := FindMemcached()
		if err != nil {
			return err
		}
		if n.Memcached, err = StartMemcached(path, ""); err != nil {
			return err
		}
		backend = "memcached://" + n.Memcached.Addr
	}
	n.args = append(n.args, "--backend", backend)
	if n != n.cluster.Nodes[0] {
		n.args = append(n.args, "--hot-cache", "0") // which would hide what their stores do
	}
	if o.Durable {
		n.args = append(n.args, "--data-dir", dir)
	}
	if o.Sync != "" {
		n.args = append(n.args, "--sync", o.Sync)
	}
	if n.cluster.Net != nil {
		n.args = append(n.args, "--peer-advertise", n.Advertise)
		if err := n.cluster.Net.Proxy(n.Advertise, n.Name, n.Peer); err != nil {
			return err
		}
	}
	n.args = append(n.args, o.Args...)
	return nil
}

// Dir is where the controllers have their data and logs. Close leaves it.
func (c *Cluster) Dir() string { return c.dir }

// Names returns the names of all controllers but except.
func (c *Cluster) Names(except ...string) (names []string) {
	for _, n := range c.Nodes {
		if !slices.Contains(except, n.Name) {
			names = append(names, n.Name)
		}
	}
	return names
}

// WaitReady waits until /readyz of all of nodes says 200. The error says which of
// them is not ready, and why, within [Patience], or when it ended or ctx did.
func (c *Cluster) WaitReady(ctx context.Context, nodes ...*Controller) error {
	end := time.Now().Add(Patience)
	for _, n := range nodes {
		for {
			err := n.Ready()
			if err == nil {
				break
			}
			if n.Ended() || time.Now().After(end) || ctx.Err() != nil {
				return fmt.Errorf("%s is not ready within %v: %w", n.Name, Patience, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// Leader returns who of nodes (all running ones, if none are given) leads by what
// most of them say and that one itself; nil if they do not agree on one.
func (c *Cluster) Leader(nodes ...*Controller) *Controller {
	if len(nodes) == 0 {
		nodes = c.Running()
	}
	votes := make(map[string]int)
	own := make(map[string]bool)
	for _, n := range nodes {
		stats, err := n.Stats("attune")
		if name := stats["leader"]; err == nil && name != "" {
			votes[name]++
			own[n.Name] = name == n.Name
		}
	}
	for _, n := range nodes {
		if own[n.Name] && 2*votes[n.Name] > len(nodes) {
			return n
		}
	}
	return nil
}

// Running returns the controllers that run and are not paused.
func (c *Cluster) Running() (nodes []*Controller) {
	for _, n := range c.Nodes {
		if !n.Ended() && !n.paused {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Stats asks a controller for a section of its stats.
func (n *Controller) Stats(section string) (map[string]string, error) {
	return Stats(n.Listen, section)
}

// Stats asks the memcache server at addr for a section of its stats. It gives up
// after a second.
func Stats(addr, section string) (map[string]string, error) {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, strings.TrimSpace("stats "+section)+"\r\n"); err != nil {
		return nil, err
	}
	stats := make(map[string]string)
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if lines.Text() == "END" {
			return stats, nil
		}
		f := strings.SplitN(lines.Text(), " ", 3)
		if f[0] != "STAT" {
			return nil, fmt.Errorf("%s answers stats %s with %q", addr, section, lines.Text())
		}
		if len(f) == 3 {
			stats[f[1]] = f[2]
		}
	}
	return nil, fmt.Errorf("stats %s of %s do not end: %v", section, addr, lines.Err())
}

// Said is the last lines of what a controller logged, and how many there are.
func (n *Controller) Said(lines int) (last string, of int) {
	log, _ := os.ReadFile(n.log()) // of one that never ran there is none
	all := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n"), len(all)
}

// Close kills everything and returns what was not as it should be: a controller
// that ended by itself, panicked, or had a data race, or what does not belong to the
// peer protocol. Whoever needs data and logs no more removes Dir.
func (c *Cluster) Close() error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.Kill())
	}
	for _, n := range c.Nodes {
		if n.Memcached != nil {
			errs = append(errs, n.Memcached.Kill())
		}
		log, err := os.ReadFile(n.log())
		if err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
		}
		for _, bad := range []string{"panic:", "DATA RACE", "fatal error:"} {
			if i := bytes.Index(log, []byte(bad)); i >= 0 {
				errs = append(errs, fmt.Errorf("%s: %.3000s", n.Name, log[i:]))
				break
			}
		}
	}
	if c.Net != nil {
		for _, what := range c.Net.Strange() {
			errs = append(errs, fmt.Errorf("not the peer protocol: %s", what))
		}
		c.Net.Close()
	}
	return errors.Join(errs...)
}
