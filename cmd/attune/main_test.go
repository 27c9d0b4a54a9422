package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

// attune is the binary under test, static as it is shipped. TestMain builds it.
var attune string

const patience = attunetest.Patience

func TestMain(m *testing.M) {
	os.Exit(func() int {
		for _, kv := range os.Environ() { // settings of whoever runs the tests
			if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "ATTUNE_") {
				os.Unsetenv(name)
			}
		}
		dir, err := os.MkdirTemp("", "attune")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil { // a test runs it as somebody else
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		attune = filepath.Join(dir, "attune")
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-X main.version=v1.2.3-test", "-o", attune, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// run runs attune to its end.
func run(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, attune, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("attune %q did not end; it printed\n%s%s", args, &out, &errs)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// process is a running `attune serve`.
type process struct {
	*exec.Cmd
	addr, admin string        // as bound
	ended       chan struct{} // closed when it has; ProcessState is set then

	mu  sync.Mutex
	log bytes.Buffer // guarded by mu
}

// startServe starts a controller on free ports and waits until it serves. The end of
// the test kills it if it still runs.
func startServe(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{ended: make(chan struct{})}
	p.Cmd = exec.Command(attune, append([]string{"serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"}, args...)...)
	stderr, w := io.Pipe()
	p.Stderr = w
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	serving := make(chan struct{})
	var logged sync.WaitGroup
	logged.Go(func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			p.mu.Lock()
			p.log.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			var entry struct {
				Msg    string
				Listen []string
				Admin  string
			}
			if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "serving" {
				p.addr, p.admin = entry.Listen[0], entry.Admin
				close(serving)
			}
		}
	})
	go func() {
		_ = p.Wait() // tests look at ProcessState
		w.Close()
		logged.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill() // it may have ended
		<-p.ended
	})
	select {
	case <-serving:
	case <-p.ended:
		t.Fatalf("attune serve %q ended:\n%s", args, p.logged())
	case <-time.After(patience):
		t.Fatalf("attune serve %q does not say that it serves:\n%s", args, p.logged())
	}
	return p
}

func (p *process) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// signal sends a signal to the process.
func (p *process) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// wait waits for the end of the process and returns its exit code.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("attune did not end:\n%s", p.logged())
		return -1
	}
}

// wire is a client connection that expects exact bytes.
type wire struct {
	net.Conn
	t *testing.T
}

func dial(t *testing.T, network, addr string) *wire {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &wire{c, t}
}

func (w *wire) send(s string) {
	w.t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) expect(want string) {
	w.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(w, got)
	if err != nil || string(got) != want {
		w.t.Fatalf("have %q (%v), want %q", got[:n], err, want)
	}
}
