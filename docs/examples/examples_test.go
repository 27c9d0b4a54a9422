// The programs of docs/consistency.md, against real clusters: calm ones, and ones with
// a slow or a cut link, where the weaker levels show what they do not promise.
//
//	go test -v ./docs/examples
package examples

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attunekv/attune/internal/attunetest"
)

// programs is where TestMain builds them.
var programs string

func TestMain(m *testing.M) {
	code := func() int {
		var err error
		if programs, err = os.MkdirTemp("", "attune-examples-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		out, err := exec.Command("go", "build", "-buildvcs=false", "-o", programs, "./lock", "./counter", "./session", "./feed").CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		return m.Run()
	}()
	attunetest.RemoveBinary()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// run runs a program against all controllers of a cluster. Fine: it saw nothing
// strange. It fails the test if the program could not do its work.
func run(t *testing.T, c *attunetest.Cluster, name string, args ...string) (out string, fine bool) {
	t.Helper()
	var servers []string
	for _, n := range c.Nodes {
		servers = append(servers, n.Listen)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*attunetest.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, name), append([]string{"-servers", strings.Join(servers, ",")}, args...)...)
	raw, err := cmd.CombinedOutput()
	out = string(raw)
	t.Logf("%s %s\n%s", name, strings.Join(args, " "), out)
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return out, err == nil
}

// fine runs a program that must see nothing strange.
func fine(t *testing.T, c *attunetest.Cluster, name string, args ...string) {
	t.Helper()
	if out, ok := run(t, c, name, args...); !ok {
		t.Errorf("%s saw what this level forbids:\n%s", name, out)
	}
}

// mostly runs a program that sees nothing strange while no controller comes or goes.
// One that a busy machine does not run for 2.5 s went, as the others see it: so it is
// run again then.
func mostly(t *testing.T, c *attunetest.Cluster, name string, args ...string) {
	t.Helper()
	attunetest.Eventually(t, name+" sees nothing strange", func() bool {
		_, ok := run(t, c, name, args...)
		return ok
	})
}

// strange runs a program, again and again, until it sees what the level allows.
func strange(t *testing.T, c *attunetest.Cluster, name string, args ...string) {
	t.Helper()
	attunetest.Eventually(t, name+" sees what this level allows", func() bool {
		_, ok := run(t, c, name, args...)
		return !ok
	})
}

// A holder of the lock that is not scheduled for the whole TTL would be an overlap at
// any level: so it is long here.
var (
	lock    = []string{"-for", "300ms", "-ttl", "60s"}
	counter = []string{"-for", "200ms"}
	session = []string{"-users", "10"}
	feed    = []string{"-posts", "30"}
)

// start starts three controllers, and waits until each has heard that the others are
// ready: until then, two may decide about one key at the levels causal and eventual.
func start(t *testing.T, level string) *attunetest.Cluster {
	t.Helper()
	c := attunetest.StartCluster(t, attunetest.ClusterOptions{Level: level})
	attunetest.Eventually(t, "all see all ready", func() bool {
		for _, n := range c.Nodes {
			stats, err := n.Stats("attune")
			for _, m := range c.Nodes {
				if err != nil || !strings.HasPrefix(stats["member_"+m.Name], "ready ") {
					return false
				}
			}
		}
		return true
	})
	return c
}

// calm is what all levels promise while nothing fails; see says how surely.
func calm(t *testing.T, c *attunetest.Cluster, see func(t *testing.T, c *attunetest.Cluster, name string, args ...string)) {
	t.Helper()
	out, _ := run(t, c, "session", session...)
	knows(t, out, "the same connection")
	see(t, c, "lock", lock...)
	see(t, c, "counter", counter...)
	see(t, c, "counter", append(counter, "-how", "cas")...)
}

// knows looks for a line of session that has no session missed and none too long.
func knows(t *testing.T, out, place string) {
	t.Helper()
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, place+":") && strings.Contains(line, "not known 0,") && strings.Contains(line, "still known 0,") {
			return
		}
	}
	t.Errorf("from %s, a session is not what it was set to:\n%s", place, out)
}

// slow makes the way from the first controller to the last longer than that over the
// second. It is less than the half second after which others send what did not come.
func slow(c *attunetest.Cluster) {
	c.Net.Set("n1", "n3", attunetest.Rule{Delay: 200 * time.Millisecond})
}

func TestLinearizable(t *testing.T) {
	t.Parallel()
	c := start(t, "linearizable")
	calm(t, c, fine)
	fine(t, c, "session", session...)
	fine(t, c, "feed", feed...)

	c.Net.Part([]string{"n1"}, []string{"n2", "n3"})
	c.WaitLeader(c.Nodes[1:]...)
	attunetest.Eventually(t, "somebody takes the lock, as most controllers are together", func() bool {
		out, ok := run(t, c, "lock", lock...)
		if !ok {
			t.Errorf("two had the lock at the level linearizable:\n%s", out)
		}
		return !strings.HasPrefix(out, "taken 0,")
	})
}

func TestSequential(t *testing.T) {
	t.Parallel()
	c := start(t, "sequential")
	calm(t, c, fine)
	fine(t, c, "feed", feed...)
	out, _ := run(t, c, "session", session...)
	knows(t, out, "another controller, new connection")
}

func TestCausal(t *testing.T) {
	t.Parallel()
	c := start(t, "causal")
	calm(t, c, mostly)
	slow(c)
	fine(t, c, "feed", feed...)
	if out, ok := run(t, c, "session", "-users", "3"); ok {
		t.Errorf("a controller knew a session before it could have come:\n%s", out)
	}
}

func TestEventual(t *testing.T) {
	t.Parallel()
	c := start(t, "eventual")
	calm(t, c, mostly)
	slow(c)
	strange(t, c, "feed", feed...)
	c.Net.HealAll()

	c.Net.Part([]string{"n1"}, []string{"n2", "n3"})
	strange(t, c, "lock", lock...) // when both sides have ceased to wait for the other
	strange(t, c, "counter", counter...)
}
