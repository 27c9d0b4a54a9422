package attunetest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// ClusterOptions say what cluster to start.
type ClusterOptions struct {
	Nodes int    // controllers; 0 is 3
	Level string // --consistency
	// Durable gives each controller a data directory; Sync is its --sync, by
	// default os.
	Durable bool
	Sync    string
	// Memcached gives each controller a memcached of its own as backend.
	Memcached bool
	// Pebble has each controller keep its bytes, and all else, in a directory; Sync
	// is as with Durable.
	Pebble bool
	// MemoryLimit is --memory-limit; by default 64MiB.
	MemoryLimit string
	// Args are appended to the command line of every controller.
	Args []string
	// Host returns the address a controller has, and what its command line is
	// prefixed with (a program that runs it in a network of its own). If set, no
	// [Network] is between the controllers: the test has a real one.
	Host func(i int) (ip string, prefix []string)
	// Seed is the Network's.
	Seed uint64
}

// Cluster is a number of running controllers, whose peer ports stand behind a
// [Network]. Its methods, and those of its controllers, may be called on any
// goroutine, but not at the same time; they report failures to the test and
// return.
type Cluster struct {
	Nodes []*Controller
	Net   *Network // nil with ClusterOptions.Host

	t   testing.TB
	dir string // data and logs
}

// StartCluster starts controllers and waits until all are ready. The test's end
// kills them, and fails the test if one of them ended by itself, panicked, or had
// a data race.
func StartCluster(t testing.TB, o ClusterOptions) *Cluster {
	t.Helper()
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	dir, err := os.MkdirTemp("", "attune-cluster-")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{t: t, dir: dir}
	if o.Host == nil {
		c.Net = NewNetwork(t, o.Seed)
	}
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
			if *a, err = freeAddr(host); err != nil {
				t.Fatal(err)
			}
		}
		gossips = append(gossips, n.Gossip)
		c.Nodes = append(c.Nodes, n)
	}
	for _, n := range c.Nodes {
		n.flags(t, &o, gossips)
	}
	t.Cleanup(c.close) // before what they need ends: the network, the backends
	for _, n := range c.Nodes {
		n.Start()
	}
	c.WaitReady(c.Nodes...)
	if t.Failed() {
		t.FailNow()
	}
	return c
}

// flags settles the command line of a controller, and starts what it needs.
func (n *Controller) flags(t testing.TB, o *ClusterOptions, gossips []string) {
	limit := o.MemoryLimit
	if limit == "" {
		limit = "64MiB"
	}
	n.args = []string{"serve", "--name", n.Name, "--listen", n.Listen, "--peer", n.Peer, "--gossip", n.Gossip, "--admin", n.Admin,
		"--consistency", o.Level, "--expect", fmt.Sprint(o.Nodes), "--join", strings.Join(gossips, ","),
		"--op-timeout", "1s", "--memory-limit", limit, "--log-format", "json"}
	backend := "embedded"
	if o.Memcached {
		n.Memcached = StartMemcached(t)
		backend = "memcached://" + n.Memcached.Addr
	}
	dir := filepath.Join(n.cluster.dir, n.Name)
	if o.Pebble {
		backend = "pebble://" + dir
	}
	n.args = append(n.args, "--backend", backend)
	if o.Durable {
		n.args = append(n.args, "--data-dir", dir)
	}
	if o.Sync != "" {
		n.args = append(n.args, "--sync", o.Sync)
	}
	if o.Host == nil {
		n.args = append(n.args, "--peer-advertise", n.Advertise)
		if err := n.cluster.Net.Proxy(n.Advertise, n.Name, n.Peer); err != nil {
			t.Fatal(err)
		}
	}
	n.args = append(n.args, o.Args...)
}

// Dir is where the controllers have their data and logs. It is kept if the test
// fails.
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

// Node returns the controller of that name, which there must be.
func (c *Cluster) Node(name string) *Controller {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	panic("no controller " + name)
}

// Others returns all controllers but those.
func (c *Cluster) Others(those ...*Controller) (others []*Controller) {
	for _, n := range c.Nodes {
		if !slices.Contains(those, n) {
			others = append(others, n)
		}
	}
	return others
}

// WaitReady waits until /readyz of all of nodes says 200.
func (c *Cluster) WaitReady(nodes ...*Controller) bool {
	c.t.Helper()
	end := time.Now().Add(Patience)
	for _, n := range nodes {
		for {
			err := ready(n.Admin)
			if err == nil {
				break
			}
			if n.ended() || time.Now().After(end) {
				c.t.Errorf("%s is not ready within %v: %v", n.Name, Patience, err)
				return false
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return true
}

// WaitLeader waits until most of nodes (all running ones, if none are given) say
// that one of them leads, and so does that one; it returns it, or nil if that
// never happens.
func (c *Cluster) WaitLeader(nodes ...*Controller) *Controller {
	c.t.Helper()
	if len(nodes) == 0 {
		nodes = c.running()
	}
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if n := c.leader(nodes); n != nil {
			return n
		}
	}
	c.t.Errorf("no leader within %v", Patience)
	return nil
}

func (c *Cluster) leader(nodes []*Controller) *Controller {
	votes := make(map[string]int)
	own := make(map[string]bool)
	for _, n := range nodes {
		if name := n.leader(); name != "" {
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

// leader asks a controller who leads; "" if it does not know, or say.
func (n *Controller) leader() string {
	stats, err := n.Stats("attune")
	if err != nil {
		return ""
	}
	return stats["leader"]
}

func (c *Cluster) running() (nodes []*Controller) {
	for _, n := range c.Nodes {
		if !n.ended() && !n.paused {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Stats asks a controller for a section of its stats.
func (n *Controller) Stats(section string) (map[string]string, error) {
	conn, err := net.DialTimeout("tcp", n.Listen, time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, "stats "+section+"\r\n"); err != nil {
		return nil, err
	}
	stats := make(map[string]string)
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if lines.Text() == "END" {
			return stats, nil
		}
		if f := strings.SplitN(lines.Text(), " ", 3); len(f) == 3 && f[0] == "STAT" {
			stats[f[1]] = f[2]
		}
	}
	return nil, fmt.Errorf("stats %s of %s do not end: %v", section, n.Name, lines.Err())
}

// close kills all controllers and looks at what they left behind.
func (c *Cluster) close() {
	for _, n := range c.Nodes {
		n.Kill()
	}
	for _, n := range c.Nodes {
		log, err := os.ReadFile(n.log())
		if err != nil && !os.IsNotExist(err) {
			c.t.Error(err)
		}
		for _, bad := range []string{"panic:", "DATA RACE", "fatal error:"} {
			if i := bytes.Index(log, []byte(bad)); i >= 0 {
				c.t.Errorf("%s: %.3000s", n.Name, log[i:])
				break
			}
		}
	}
	if c.Net != nil {
		for _, what := range c.Net.Strange() {
			c.t.Error("not the peer protocol: ", what)
		}
	}
	if !c.t.Failed() {
		if err := os.RemoveAll(c.dir); err != nil {
			c.t.Error(err)
		}
		return
	}
	for _, n := range c.Nodes {
		log, _ := os.ReadFile(n.log())
		lines := strings.Split(strings.TrimSpace(string(log)), "\n")
		c.t.Logf("%s said last, of %d lines:\n%s", n.Name, len(lines), strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
	c.t.Log("data and logs are in ", c.dir)
}
