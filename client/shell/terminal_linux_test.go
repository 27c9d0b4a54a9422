package shell

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attunekv/attune/client/internal/memtest"
)

// terminal is a shell that believes somebody sits in front of it.
type terminal struct {
	t       *testing.T
	pty     *os.File
	cmd     *exec.Cmd
	history string

	mu  sync.Mutex // guards out
	out strings.Builder
}

func startTerminal(t *testing.T, server string) *terminal {
	t.Helper()
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here: ", err)
	}
	t.Cleanup(func() { pty.Close() })
	if err := unix.IoctlSetPointerInt(int(pty.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(pty.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(pty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 200}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	term := &terminal{t: t, pty: pty, history: filepath.Join(state, "attune", "history")}
	term.cmd = exec.Command(os.Args[0])
	term.cmd.Env = append(os.Environ(), "SHELL_TEST_SERVER="+server, "TERM=xterm", "XDG_STATE_HOME="+state, "NO_COLOR=1")
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = tty, tty, tty
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := term.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	t.Cleanup(func() { term.cmd.Process.Kill() })
	go func() { // ends when the shell, the terminal's last user, does
		b := make([]byte, 4096)
		for {
			n, err := pty.Read(b)
			if err != nil {
				return
			}
			term.mu.Lock()
			term.out.Write(b[:n])
			term.mu.Unlock()
		}
	}()
	return term
}

// expect waits until the shell has printed s, and forgets everything up to it.
func (term *terminal) expect(s string) {
	term.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		term.mu.Lock()
		_, rest, ok := strings.Cut(term.out.String(), s)
		if ok {
			term.out.Reset()
			term.out.WriteString(rest)
		}
		all := term.out.String()
		term.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			term.t.Fatalf("no %q in %q", s, all)
		}
	}
}

func (term *terminal) send(keys string) {
	term.t.Helper()
	if _, err := term.pty.WriteString(keys); err != nil {
		term.t.Fatal(err)
	}
}

// exit waits for the shell's end.
func (term *terminal) exit(want int) {
	term.t.Helper()
	err := term.cmd.Wait()
	if got := term.cmd.ProcessState.ExitCode(); got != want {
		term.t.Fatalf("exit code %d, want %d (%v)", got, want, err)
	}
}

const (
	ctrlC, ctrlD, tab, up, enter = "\x03", "\x04", "\t", "\x1b[A", "\r"
)

func TestTerminal(t *testing.T) {
	f := memtest.Serve(t, "")
	f.Answer(func(line string) string {
		if strings.HasPrefix(line, "incr slow") {
			return "hang"
		}
		return ""
	})
	prompt := f.Addr + "> "
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, bytes.Repeat([]byte{7}, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	term := startTerminal(t, f.Addr)

	term.expect(prompt)
	term.send("set k 'first value'" + enter)
	term.expect("STORED")
	term.expect(prompt)
	term.send("set big @" + large + enter)
	term.expect("STORED")
	term.send("get big" + enter)
	term.expect("... and 91808 bytes more: --raw, or a pipe, has all")
	term.expect(prompt)
	term.send("ver" + tab + enter)
	term.expect("1.6.0-fake")
	term.expect(prompt)
	term.send("this is not sent" + ctrlC)
	term.expect(prompt)

	// A command that hangs is given up, and the session goes on.
	before := f.Seen()
	term.send("incr slow" + enter)
	for f.Seen() == before {
		time.Sleep(time.Millisecond)
	}
	term.send(ctrlC)
	term.expect("interrupted; the command may or may not have been executed")
	term.expect(prompt)
	term.send(ctrlC + ctrlC)
	term.expect(prompt)
	term.send("get k" + enter)
	term.expect("first value")
	term.expect(prompt)
	f.WaitConns(0) // a prompt holds no connection open
	term.send(up + enter)
	term.expect("first value")
	term.expect(prompt)
	term.send(" get secret" + enter)
	term.expect("NOT_FOUND secret")
	term.expect(prompt)
	term.send(ctrlD)
	term.exit(ExitOK)

	data, err := os.ReadFile(term.history)
	if err != nil {
		t.Fatal(err)
	}
	if want := "set k 'first value'\nset big @" + large + "\nget big\nversion \nincr slow\nget k\nget k\n"; string(data) != want {
		t.Fatalf("history is %q, want %q", data, want)
	}
}

// A signal that ends the shell must leave the terminal as it was found.
func TestTerminalIsRestoredOnSIGTERM(t *testing.T) {
	f := memtest.Serve(t, "")
	term := startTerminal(t, f.Addr)
	term.expect(f.Addr + "> ")
	term.cmd.Process.Signal(syscall.SIGTERM)
	term.exit(ExitError)
	mode, err := unix.IoctlGetTermios(int(term.pty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if want := uint32(unix.ECHO | unix.ICANON | unix.ISIG); mode.Lflag&want != want {
		t.Fatalf("local modes are %#x", mode.Lflag)
	}
}

func TestTerminalQuit(t *testing.T) {
	term := startTerminal(t, "127.0.0.1:1")
	term.expect("> ")
	term.send("get k" + enter)
	term.expect("refused")
	term.expect("> ")
	term.send("exit" + enter)
	term.exit(ExitOK)
}
