//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
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
		if strings.HasSuffix(name, "_test.go") ||
			!strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".s") && !strings.HasSuffix(name, ".sh") && name != "go.mod" && name != "go.sum" && name != "config.ini" {
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

func TestStartupAndStop(t *testing.T) {
	dir, addr, admin := clone(t), attunetest.FreeAddr(t), attunetest.FreeAddr(t)
	environ := []string{"LISTEN=" + addr, "ADMIN=" + admin}
	out := started(t, dir, environ...)

	// The commands it prints work as printed.
	var printed []string
	for _, m := range regexp.MustCompile(`(?m)^  (bin/attune cli .* (?:set|get) .*?) +(?:one command|and another)$`).FindAllStringSubmatch(out, -1) {
		printed = append(printed, m[1])
	}
	if len(printed) != 2 {
		t.Fatalf("startup.sh prints commands %q, want a set and a get, in\n%s", printed, out)
	}
	for i, want := range []string{"STORED\n", "hello\n"} {
		cmd := exec.CommandContext(t.Context(), "bash", "-c", printed[i])
		cmd.Dir = dir
		if got, err := cmd.CombinedOutput(); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", printed[i], got, err, want)
		}
	}

	// A second start leaves the first alone.
	if out, code := script(t, dir, "startup.sh", environ...); code != 1 || !strings.Contains(out, "runs already") {
		t.Errorf("a second startup.sh: exit %d:\n%s", code, out)
	}
	if closed(addr) {
		t.Fatal("the second startup.sh stopped the first controller")
	}

	if out, code := script(t, dir, "stop.sh"); code != 0 || out != "attune stopped\n" {
		t.Errorf("stop.sh: exit %d, %q", code, out)
	}
	if !closed(addr) || !closed(admin) {
		t.Error("stop.sh returned, and somebody still listens")
	}
	if out, code := script(t, dir, "stop.sh"); code != 0 || out != "" {
		t.Errorf("stop.sh with nothing to stop: exit %d, %q", code, out)
	}
}

// What is set in config.ini or the environment is where startup.sh looks for
// the controller, too.
func TestStartupGoesByConfig(t *testing.T) {
	dir, addr := clone(t), attunetest.FreeAddr(t)
	config := filepath.Join(dir, "config.ini")
	if err := os.WriteFile(config, []byte("listen = "+addr+"\nadmin = off\nname = nine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	started(t, dir)
	out, _, _ := run(t, "", "cli", "--server", addr, "stats", "settings")
	if !regexp.MustCompile(`(?m)^name +nine$`).MatchString(out) {
		t.Errorf("the controller runs with settings\n%s", out)
	}
}

// A failed start says why and leaves nothing running, and neither script takes
// somebody else's server for its own.
func TestStartupBesideAStranger(t *testing.T) {
	dir := clone(t)
	stranger := startServe(t)
	out, code := script(t, dir, "startup.sh", "LISTEN="+stranger.addr, "ADMIN=off")
	if code != 1 || !strings.Contains(out, "address already in use") {
		t.Errorf("startup.sh on a port in use: exit %d:\n%s", code, out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "run", "*.pid")); left != nil {
		t.Errorf("left behind: %q", left)
	}

	// The number of a process that is gone may belong to another one today.
	pid := []byte(strings.Join([]string{strconv.Itoa(stranger.Process.Pid), "bin/attune serve --config config.ini"}, "\n") + "\n")
	if err := os.WriteFile(filepath.Join(dir, "run", "attune.pid"), pid, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, code := script(t, dir, "stop.sh"); code != 0 || out != "attune was not running\n" {
		t.Errorf("stop.sh with the number of a stranger: exit %d, %q", code, out)
	}
	if closed(stranger.addr) {
		t.Error("stop.sh ended a stranger")
	}

	if out, code := script(t, dir, "startup.sh", "BACKEND=redis"); code != 1 || !strings.Contains(out, "embedded or memcached, not redis") {
		t.Errorf("BACKEND=redis: exit %d:\n%s", code, out)
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
	dir, addr := clone(t), attunetest.FreeAddr(t)
	// No Docker: this is about local processes, whatever the machine has.
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "docker"), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	environ := []string{"LISTEN=" + addr, "ADMIN=off", "BACKEND=memcached", "PATH=" + bin + ":" + os.Getenv("PATH")}
	started(t, dir, environ...)

	c := dial(t, "tcp", addr)
	c.send("set k 0 0 5\r\nhello\r\nget k\r\n")
	c.expect("STORED\r\nVALUE k 0 5\r\nhello\r\nEND\r\n")
	holders := 0
	for _, s := range servers {
		m := dial(t, "tcp", s)
		m.send("get k\r\n")
		line := make([]byte, 3)
		if _, err := m.Read(line); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(line, []byte("VAL")) {
			holders++
		}
	}
	if holders != 1 {
		t.Errorf("%d of the memcached servers hold the value, want 1", holders)
	}

	out, code := script(t, dir, "stop.sh")
	want := "attune stopped\nmemcached-11201 stopped\nmemcached-11202 stopped\nmemcached-11203 stopped\n"
	if code != 0 || out != want {
		t.Errorf("stop.sh: exit %d, %q", code, out)
	}
	for _, s := range servers {
		if !closed(s) {
			t.Errorf("stop.sh left somebody listening on %s", s)
		}
	}

	// One port in use: none of the servers stays.
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
}
