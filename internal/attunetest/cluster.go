package attunetest

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/testbed"
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
	// Network is between the controllers: the test has a real one.
	Host func(i int) (ip string, prefix []string)
	// Seed is the Network's.
	Seed uint64
}

// Rule is what happens to the frames from one controller to another.
type Rule = testbed.Rule

// Cluster is a number of running controllers, whose peer ports stand behind a
// Network. Its methods, and those of its controllers, may be called on any
// goroutine, but not at the same time; they report failures to the test and
// return.
type Cluster struct {
	*testbed.Cluster
	Nodes []*Controller

	t testing.TB
}

// StartCluster starts controllers and waits until all are ready. The test's end
// kills them, and fails the test if one of them ended by itself, panicked, or had
// a data race.
func StartCluster(t testing.TB, o ClusterOptions) *Cluster {
	t.Helper()
	backend := "embedded"
	if o.Memcached {
		if _, err := testbed.FindMemcached(); err != nil {
			t.Skip(err)
		}
		backend = "memcached"
	}
	if o.Pebble {
		backend = "pebble://{dir}"
	}
	bed, err := testbed.Start(t.Context(), testbed.Options{
		Binary: Binary(t), Nodes: o.Nodes, Level: o.Level, Durable: o.Durable, Sync: o.Sync, Backend: backend,
		MemoryLimit: o.MemoryLimit, Args: o.Args, Host: o.Host, Seed: o.Seed,
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Cluster: bed, t: t}
	for _, n := range bed.Nodes {
		own := &Controller{Controller: n, cluster: c}
		if n.Memcached != nil {
			own.Memcached = &Memcached{n.Memcached, t}
		}
		c.Nodes = append(c.Nodes, own)
	}
	t.Cleanup(c.close)
	return c
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
	return c.report(c.Cluster.WaitReady(c.t.Context(), bare(nodes)...))
}

// WaitLeader waits until most of nodes (all running ones, if none are given) say
// that one of them leads, and so does that one; it returns it, or nil if that
// never happens.
func (c *Cluster) WaitLeader(nodes ...*Controller) *Controller {
	c.t.Helper()
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if n := c.Leader(bare(nodes)...); n != nil {
			return c.Node(n.Name)
		}
	}
	c.t.Errorf("no leader within %v", Patience)
	return nil
}

func (c *Cluster) report(err error) (ok bool) {
	c.t.Helper()
	if err != nil {
		c.t.Error(err)
	}
	return err == nil
}

// bare are the controllers without their test.
func bare(nodes []*Controller) (bare []*testbed.Controller) {
	for _, n := range nodes {
		bare = append(bare, n.Controller)
	}
	return bare
}

// close kills all controllers and looks at what they left behind.
func (c *Cluster) close() {
	c.report(c.Close())
	if !c.t.Failed() {
		c.report(os.RemoveAll(c.Dir()))
		return
	}
	for _, n := range c.Nodes {
		last, of := n.Said(15)
		c.t.Logf("%s said last, of %d lines:\n%s", n.Name, of, last)
	}
	c.t.Log("data and logs are in ", c.Dir())
}

// Controller is one process of attune, which a test may mistreat.
type Controller struct {
	*testbed.Controller
	Memcached *Memcached // its backend, or nil

	cluster *Cluster
}

// Start starts the process, again or for the first time, with the same command
// line and what it has on disk. It does not wait until it is ready.
func (n *Controller) Start() {
	n.cluster.t.Helper()
	n.cluster.report(n.Controller.Start())
}

// Kill ends the process at once, paused or not, if it runs.
func (n *Controller) Kill() {
	n.cluster.t.Helper()
	n.cluster.report(n.Controller.Kill())
}

// Stop tells the process to end in order, waits until it has, and returns how long
// that took. One that does not is killed.
func (n *Controller) Stop() time.Duration {
	n.cluster.t.Helper()
	took, err := n.Controller.Stop()
	n.cluster.report(err)
	return took
}

// Restart kills the process, starts it again and waits until it is ready.
func (n *Controller) Restart() bool {
	n.cluster.t.Helper()
	n.Kill()
	n.Start()
	return n.cluster.WaitReady(n)
}

// Pause stops the process: it accepts, reads and sends nothing any more, but its
// machine does. It returns once every thread has stopped.
func (n *Controller) Pause() {
	n.cluster.t.Helper()
	n.cluster.report(n.Controller.Pause())
}

// Resume lets it go on after Pause, with all it was sent meanwhile.
func (n *Controller) Resume() {
	n.cluster.t.Helper()
	n.cluster.report(n.Controller.Resume())
}
