//go:build unix

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/testbed"
)

// clone copies what startup.sh needs of the tree into a directory of its own.
func clone(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"bash", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	const root = "../.."
	dir := t.TempDir()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if rel == "bin" || rel == "run" || name == "testdata" || name == "docs" || rel != "." && name[0] == '.' {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(dir, rel), 0o755)
		}
		if strings.HasSuffix(name, "_test.go") {
			return nil
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, rel), raw, 0o755)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// script runs a script of dir and returns what it printed and its exit code.
func script(t *testing.T, dir, name string, environ ...string) (output string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute) // it builds; and Cleanup calls it
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", name)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), environ...)
	out := filepath.Join(t.TempDir(), "out") // a pipe would stay open in what startup.sh leaves behind
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	err = cmd.Run()
	raw, readErr := os.ReadFile(out)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || readErr != nil {
		t.Fatal(err, readErr)
	}
	return string(raw), cmd.ProcessState.ExitCode()
}

// started runs startup.sh and has the end of the test stop what it started.
func started(t *testing.T, dir string, environ ...string) string {
	t.Helper()
	t.Cleanup(func() { script(t, dir, "stop.sh") })
	out, code := script(t, dir, "startup.sh", environ...)
	if code != 0 {
		t.Fatalf("startup.sh: exit %d:\n%s", code, out)
	}
	return out
}

// closed reports whether nobody listens on addr.
func closed(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return true
	}
	c.Close()
	return false
}

// scriptPorts are those of n controllers that startup.sh starts.
type scriptPorts struct{ n, base int }

// freePorts finds some that nobody uses.
func freePorts(t *testing.T, n int) scriptPorts {
	t.Helper()
	base, err := testbed.FreePorts("127.0.0.1", 4*n)
	if err != nil {
		t.Fatal(err)
	}
	return scriptPorts{n, base}
}

func (p scriptPorts) addr(offset int) string { return fmt.Sprintf("127.0.0.1:%d", p.base+offset) }
func (p scriptPorts) listen(node int) string { return p.addr(node) }
func (p scriptPorts) environ() []string {
	return []string{
		fmt.Sprintf("PORT=%d", p.base), fmt.Sprintf("PEER=%d", p.base+p.n),
		fmt.Sprintf("GOSSIP=%d", p.base+2*p.n), fmt.Sprintf("ADMIN=%d", p.base+3*p.n),
	}
}

// closed fails the test if anybody listens on one of the ports.
func (p scriptPorts) closed(t *testing.T) {
	t.Helper()
	for port := range 4 * p.n {
		if !closed(p.addr(port)) {
			t.Errorf("somebody still listens on %s", p.addr(port))
		}
	}
}

// sortedLines are the lines of out, in an order that does not depend on who was
// faster.
func sortedLines(out string) string {
	lines := strings.SplitAfter(out, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

const threeStopped = "n1 stopped\nn2 stopped\nn3 stopped\n"

func TestStartupAndStop(t *testing.T) {
	dir, ports := clone(t), freePorts(t, 3)
	out := started(t, dir, ports.environ()...)
	if n := strings.Count(out, "   ready   "); n != 3 || !strings.Contains(out, "linearizable, as n1 sees it: ok") {
		t.Errorf("startup.sh shows a cluster with %d controllers ready, want 3:\n%s", n, out)
	}

	// Each has its part of the cores.
	cores, err := exec.Command("getconf", "_NPROCESSORS_ONLN").Output()
	if err != nil {
		t.Fatal(err)
	}
	online, _ := strconv.Atoi(strings.TrimSpace(string(cores)))
	share := cmp.Or(os.Getenv("GOMAXPROCS"), strconv.Itoa(max(online/3, 1)))
	if page := (&process{admin: ports.addr(3 * ports.n)}).get(t, "/metrics"); !strings.Contains(page, "\ngo_sched_gomaxprocs_threads "+share+"\n") {
		t.Errorf("a controller of three, on %d cores, does not use %s", online, share)
	}

	// The commands it prints work as printed, each on another controller.
	var printed []string
	for _, m := range regexp.MustCompile(`(?m)^  (bin/attune cli .* (?:set|get) .*?) +(?:one command|and another, of another controller)$`).FindAllStringSubmatch(out, -1) {
		printed = append(printed, m[1])
	}
	if len(printed) != 2 || !strings.Contains(printed[0], ports.listen(0)) || !strings.Contains(printed[1], ports.listen(2)) {
		t.Fatalf("startup.sh prints commands %q, want a set to the first controller and a get from the last, in\n%s", printed, out)
	}
	for i, want := range []string{"STORED\n", "hello\n"} {
		cmd := exec.CommandContext(t.Context(), "bash", "-c", printed[i])
		cmd.Dir = dir
		if got, err := cmd.CombinedOutput(); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", printed[i], got, err, want)
		}
	}

	// A second start leaves the first alone, also if it is to be another one.
	for _, more := range [][]string{nil, {"CONSISTENCY=eventual"}} {
		if out, code := script(t, dir, "startup.sh", append(ports.environ(), more...)...); code != 1 || !strings.Contains(out, "runs already") {
			t.Errorf("a second startup.sh %q: exit %d:\n%s", more, code, out)
		}
	}
	for i := range 3 {
		if closed(ports.listen(i)) {
			t.Fatalf("the second startup.sh stopped n%d", i+1)
		}
	}

	if out, code := script(t, dir, "stop.sh"); code != 0 || sortedLines(out) != threeStopped {
		t.Errorf("stop.sh: exit %d, %q", code, out)
	}
	ports.closed(t)
	if out, code := script(t, dir, "stop.sh"); code != 0 || out != "" {
		t.Errorf("stop.sh with nothing to stop: exit %d, %q", code, out)
	}
}

// With DATA a cluster that was stopped comes back with what it had; without, it is
// a new one. The levels that agree on an order can take over each other's data.
func TestStartupKeepsData(t *testing.T) {
	dir, ports := clone(t), freePorts(t, 3)
	get := func(want string) (out string) {
		for range 50 { // at some levels the last controller hears of it a little later
			if out, _, _ = run(t, "", "cli", "--server", ports.listen(2), "get", "k"); out == want {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		return out
	}
	for i, start := range []struct {
		environ []string
		level   string
		holds   string
	}{
		{[]string{"DATA=data"}, "linearizable", ""},
		{[]string{"DATA=data", "CONSISTENCY=sequential"}, "sequential", "kept\n"},
		{nil, "linearizable", ""},
		{[]string{"DATA=other", "CONSISTENCY=eventual"}, "eventual", ""},
		{[]string{"DATA=other", "CONSISTENCY=eventual"}, "eventual", "kept\n"},
		{[]string{"CONSISTENCY=causal"}, "causal", ""},
	} {
		out := started(t, dir, append(ports.environ(), start.environ...)...)
		if !strings.Contains(out, start.level+", as n1 sees it: ok") {
			t.Errorf("start %d: want level %s, have\n%s", i, start.level, out)
		}
		if have := get(start.holds); have != start.holds {
			t.Errorf("start %d with %q: the key holds %q, want %q", i, start.environ, have, start.holds)
		}
		if out, errs, code := run(t, "", "cli", "--server", ports.listen(0), "set", "k", "kept"); code != 0 {
			t.Errorf("set: %s%s", out, errs)
		}
		if out, code := script(t, dir, "stop.sh"); code != 0 || sortedLines(out) != threeStopped {
			t.Errorf("stop.sh: exit %d, %q", code, out)
		}
	}
	kept, _ := filepath.Glob(filepath.Join(dir, "data", "n*", "state-*"))
	if len(kept) != 3 {
		t.Errorf("DATA=data has states %q, want one of each controller", kept)
	}
	// And one of another engine is left alone.
	out, code := script(t, dir, "startup.sh", append(ports.environ(), "DATA=data", "CONSISTENCY=eventual")...)
	// Which of them is missed first is up to the machine.
	if code != 1 || !strings.Contains(out, " did not start: ") || !strings.Contains(out, "at another consistency level") {
		t.Errorf("eventual in the directory of another engine: exit %d\n%s", code, out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "data", "n*", "state-*")); !slices.Equal(left, kept) {
		t.Errorf("it left %q of %q", left, kept)
	}
}

// The levels whose controllers answer for themselves: what is said to one is heard
// from the others, soon.
func TestStartupGossip(t *testing.T) {
	dir := clone(t)
	for _, level := range []string{"causal", "eventual"} {
		t.Run(level, func(t *testing.T) {
			ports := freePorts(t, 3)
			out := started(t, dir, append(ports.environ(), "CONSISTENCY="+level)...)
			if n := strings.Count(out, "   ready   "); n != 3 || !strings.Contains(out, level+", as n1 sees it: ok\nchanges made here 0, ") {
				t.Errorf("startup.sh shows a cluster with %d controllers ready, want 3:\n%s", n, out)
			}
			if out, errs, code := run(t, "", "cli", "--server", ports.listen(0), "set", "k", "v"); code != 0 {
				t.Errorf("set: %s%s", out, errs)
			}
			attunetest.Eventually(t, "the last controller has it", func() bool {
				out, _, _ := run(t, "", "cli", "--server", ports.listen(2), "get", "k")
				return out == "v\n"
			})
			attunetest.Eventually(t, "the first knows that they are equal", func() bool {
				out, _, _ := run(t, "", "show", "--server", ports.listen(0))
				return strings.Count(out, "   ready   equal   ") == 2
			})
			if out, code := script(t, dir, "stop.sh"); code != 0 || sortedLines(out) != threeStopped {
				t.Errorf("stop.sh: exit %d, %q", code, out)
			}
			ports.closed(t)
		})
	}
}

// One controller alone is a cluster at the ordered levels only, and what makes no
// sense is refused before anything is started.
func TestStartupAlone(t *testing.T) {
	dir, ports := clone(t), freePorts(t, 1)
	for _, refused := range []struct{ environ, why string }{
		{"BACKEND=redis", "embedded, memcached or pebble, not redis"},
		{"BACKEND=pebble", "say where, as in DATA=data"},
		{"NODES=some", "1 to 99, not some"},
		{"CONSISTENCY=strict NODES=1", `unknown consistency level "strict"`},
	} {
		out, code := script(t, dir, "startup.sh", append(ports.environ(), strings.Fields(refused.environ)...)...)
		if code != 1 || !strings.Contains(out, refused.why) {
			t.Errorf("%s: exit %d, want 1 and %q:\n%s", refused.environ, code, refused.why, out)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "run", "*.pid")); left != nil {
			t.Errorf("%s left behind: %q", refused.environ, left)
		}
	}
	for environ, shown := range map[string]string{
		"CONSISTENCY=eventual":           "eventual, as n1 sees it: ok\none controller alone\n",
		"CONSISTENCY=causal":             "causal, as n1 sees it: ok\none controller alone\n",
		"CONSISTENCY=eventual DATA=data": "eventual, as n1 sees it: ok\nchanges made here ",
	} {
		out := started(t, dir, append(append(ports.environ(), "NODES=1"), strings.Fields(environ)...)...)
		if !strings.Contains(out, shown) || strings.Contains(out, "another controller") {
			t.Errorf("startup.sh of one controller with %s prints\n%s", environ, out)
		}
		if out, code := script(t, dir, "stop.sh"); code != 0 || out != "n1 stopped\n" {
			t.Errorf("stop.sh: exit %d, %q", code, out)
		}
		ports.closed(t)
	}
}

// A failed start says why and leaves nothing running, and neither script takes
// somebody else's server for its own.
func TestStartupBesideAStranger(t *testing.T) {
	dir, ports := clone(t), freePorts(t, 3)
	stranger := startServe(t, "--listen", ports.listen(1))
	out, code := script(t, dir, "startup.sh", ports.environ()...)
	if code != 1 || !strings.Contains(out, "n2 did not start") || !strings.Contains(out, "address already in use") {
		t.Errorf("startup.sh on a port in use: exit %d:\n%s", code, out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "run", "*.pid")); left != nil {
		t.Errorf("left behind: %q", left)
	}
	for _, i := range []int{0, 2} {
		if !closed(ports.listen(i)) {
			t.Errorf("a start that failed left n%d running", i+1)
		}
	}

	// The number of a process that is gone may belong to another one today.
	pid := fmt.Sprintf("%d\nbin/attune serve --config config.ini --name n1\n", stranger.Process.Pid)
	if err := os.WriteFile(filepath.Join(dir, "run", "n1.pid"), []byte(pid), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, code := script(t, dir, "stop.sh"); code != 0 || out != "n1 was not running\n" {
		t.Errorf("stop.sh with the number of a stranger: exit %d, %q", code, out)
	}
	if closed(stranger.addr) {
		t.Error("stop.sh ended a stranger")
	}
}

func TestStartupWithMemcached(t *testing.T) {
	if _, err := exec.LookPath("memcached"); err != nil {
		t.Skip("needs memcached")
	}
	servers := []string{"127.0.0.1:11201", "127.0.0.1:11202", "127.0.0.1:11203"}
	for _, s := range servers {
		if !closed(s) {
			t.Skip("somebody listens on " + s)
		}
	}
	dir, ports := clone(t), freePorts(t, 3)
	// No Docker: this is about local processes, whatever the machine has.
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "docker"), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	environ := append(ports.environ(), "BACKEND=memcached", "PATH="+bin+":"+os.Getenv("PATH"))
	started(t, dir, environ...)

	c := dial(t, "tcp", ports.listen(0))
	c.send("set k 0 0 5\r\nhello\r\nget k\r\n")
	c.expect("STORED\r\nVALUE k 0 5\r\nhello\r\nEND\r\n")
	// A write is acknowledged by a quorum, and brought to the stores behind that.
	for _, s := range servers {
		m := dial(t, "tcp", s)
		attunetest.Eventually(t, s+" holds the value", func() bool {
			m.send("get k\r\n")
			line := make([]byte, 3)
			if _, err := io.ReadFull(m, line); err != nil {
				t.Fatal(err)
			}
			if string(line) == "END" {
				m.expect("\r\n")
				return false
			}
			return string(line) == "VAL"
		})
	}

	out, code := script(t, dir, "stop.sh")
	want := "memcached-11201 stopped\nmemcached-11202 stopped\nmemcached-11203 stopped\n" + threeStopped
	if code != 0 || sortedLines(out) != want {
		t.Errorf("stop.sh: exit %d, %q", code, out)
	}
	for _, s := range servers {
		if !closed(s) {
			t.Errorf("stop.sh left somebody listening on %s", s)
		}
	}

	// One port in use: none of the servers stays, and no controller was started.
	l, err := net.Listen("tcp", servers[1])
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if out, code := script(t, dir, "startup.sh", environ...); code != 1 || !strings.Contains(out, "memcached-11202 did not start") {
		t.Errorf("startup.sh with a memcached port in use: exit %d:\n%s", code, out)
	}
	if !closed(servers[0]) || !closed(servers[2]) {
		t.Error("a start that failed left memcached servers behind")
	}
	ports.closed(t)
}
