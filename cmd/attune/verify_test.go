//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history/broken"
	"github.com/attunekv/attune/internal/verify"
)

// verifyRun runs attune verify to its end, however long that takes, and returns what
// it printed and its report.
func verifyRun(t *testing.T, args ...string) (out string, code int, report verify.Report) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report.json")
	cmd := exec.CommandContext(t.Context(), attune, append([]string{"verify", "--json", file}, args...)...)
	text, _ := cmd.CombinedOutput() // it is the exit code that tells
	raw, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(raw, &report)
	}
	if err != nil {
		t.Fatalf("attune verify %q: %v, and %v\n%s", args, cmd.ProcessState, err, text)
	}
	return string(text), cmd.ProcessState.ExitCode(), report
}

// A cluster of its own keeps its promise while everything is broken that can be; make
// verify is that for a minute each, over every store.
func TestVerifyLocal(t *testing.T) {
	for _, level := range []string{"linearizable", "sequential", "causal", "eventual"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			out, code, report := verifyRun(t, "--local", "3", "--level", level, "--time", "3s", "--faults", "all")
			if code != 0 || report.Verdict != verify.Held {
				t.Errorf("exit %d\n%s", code, out)
			}
			if len(report.Faults) == 0 || report.Total.Answered < 1000 || report.Level != level {
				t.Errorf("little was done:\n%s", out)
			}
		})
	}
}

// A running cluster is found from one of its controllers, and left as it was.
func TestVerifyRunningCluster(t *testing.T) {
	cluster := three(t, "--consistency", "causal")
	if out, errs, code := run(t, "", "cli", "-s", cluster[0].addr, "set", "mine", "1"); code != 0 {
		t.Fatal(out, errs)
	}
	page := filepath.Join(t.TempDir(), "report.html")
	out, code, report := verifyRun(t, "--server", cluster[1].addr, "--time", "1s", "--html", page)
	if code != 0 || len(report.Controllers) != 3 || report.Level != "causal" || len(report.Faults) != 0 {
		t.Errorf("exit %d\n%s", code, out)
	}
	if html, err := os.ReadFile(page); err != nil || !strings.Contains(string(html), "causal: held") {
		t.Errorf("no page: %v", err)
	}
	for _, p := range cluster {
		attunetest.Eventually(t, "only what was there before is left", func() bool {
			out, _, _ := run(t, "", "cli", "-s", p.addr, "stats")
			return strings.Contains(strings.Join(strings.Fields(out), " "), "curr_items 1 ")
		})
	}
	if out, _, _ := run(t, "", "cli", "-s", cluster[2].addr, "get", "mine"); out != "1\n" {
		t.Errorf("mine is %q", out)
	}
}

// Scripts go by the exit status, people by the last line.
func TestVerifyTells(t *testing.T) {
	s, err := broken.Serve(broken.Defect{Level: "sequential", Log: broken.Forgetful}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	out, code, report := verifyRun(t, "--server", s.Targets[0].Addr+","+s.Targets[1].Addr, "--time", "1s", "--workloads", "register", "--conns", "8")
	if code != exitViolated || report.Verdict != verify.Violated || !strings.Contains(out, "\nsequential: VIOLATED; ") {
		t.Errorf("exit %d\n%s", code, out)
	}
	out, code, report = verifyRun(t, "--server", s.Targets[0].Addr, "--time", "1ms", "--workloads", "register", "--conns", "1")
	if code != exitUnknown || report.Verdict != verify.Unknown || !strings.Contains(out, "\nsequential: cannot tell; ") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

func TestVerifyRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"--server " + attunetest.FreeAddr(t): "connection refused",
		"--faults kill":                      "--faults is for a cluster of --local",
		"--local 3 --server 127.0.0.1:1":     "use one of them",
		"--local 0":                          "at least 1",
		"--local 3 --level strong":           "choose linearizable",
		"--local 3 --faults fire":            "no fault is called",
		"--local 2":                          "need three controllers",
		"--local 3 --workloads play":         "no workload is called",
		"--local 3 --store floppy":           "not ready",
		"--time 0s":                          "more than 0",
	} {
		out, errs, code := run(t, "", append([]string{"verify"}, strings.Fields(args)...)...)
		if code != exitUnknown || !strings.Contains(errs, want) {
			t.Errorf("attune verify %s: exit %d, %q, %q; want %q", args, code, out, errs, want)
		}
	}
}

// Every store that is broken on purpose is found out.
func TestVerifySelfTest(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), attune, "verify", "--self-test")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "every broken store was found out") {
		t.Errorf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "found by"); n != len(broken.Defects()) {
		t.Errorf("%d of %d were found out:\n%s", n, len(broken.Defects()), out)
	}
}

// Whether it is told to end or killed, it leaves no processes behind.
func TestVerifyLeavesNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has /proc, and tells a process of its parent's death")
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cmd := exec.Command(attune, "verify", "--local", "3", "--time", "1h", "--level", "eventual")
			cmd.Env = append(os.Environ(), "TMPDIR="+dir) // what it cannot remove any more goes with it
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill() }() // it may have ended
			lines := bufio.NewScanner(stdout)
			lines.Scan()
			children := childrenOf(t, cmd.Process.Pid)
			if len(children) != 3 || !strings.Contains(lines.Text(), "3 controllers") {
				t.Errorf("children %v after %q", children, lines.Text())
			}
			time.Sleep(time.Second) // it is at work
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			last := ""
			for lines.Scan() {
				last = lines.Text()
			}
			_ = cmd.Wait() // it was told to end
			if sig == syscall.SIGINT && (cmd.ProcessState.ExitCode() != 0 || !strings.HasPrefix(last, "eventual: held")) {
				t.Errorf("%v: %s", cmd.ProcessState, last)
			}
			for _, pid := range children {
				attunetest.Eventually(t, "the controllers are gone", func() bool {
					stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
					return err != nil || !strings.Contains(string(stat), "(attune)") || strings.Contains(string(stat), ") Z ")
				})
			}
			left, _ := filepath.Glob(filepath.Join(dir, "*"))
			if sig == syscall.SIGINT && len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// childrenOf are the processes that a process started.
func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			children = append(children, child)
		}
	}
	return children
}
