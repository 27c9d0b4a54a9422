package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/peterh/liner"
	"golang.org/x/term"
)

// settling is how long a prompt may take to have the terminal as it likes.
const settling = 20 * time.Millisecond

// interact prompts until Ctrl-D.
func (sh *shell) interact() int {
	// The terminal is in a mode of its own from here on. A signal that ends the
	// process by default would leave it there.
	session, stop := signal.NotifyContext(sh.ctx, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// Nor may a Ctrl-C that comes between a command and the next prompt end it.
	early := make(chan os.Signal, 1)
	signal.Notify(early, os.Interrupt)
	defer signal.Stop(early)
	stdin := int(os.Stdin.Fd())
	found, noTerminal := term.GetState(stdin)
	defer func() {
		if session.Err() != nil && noTerminal == nil {
			// A prompt that is left behind may have been about to change the mode.
			time.Sleep(settling)
			_ = term.Restore(stdin, found)
		}
	}()
	editor := liner.NewLiner()
	defer editor.Close()
	editor.SetCtrlCAborts(true)
	editor.SetTabCompletionStyle(liner.TabPrints)
	editor.SetCompleter(complete)
	past := openHistory(historyPath())
	for _, line := range past.lines {
		editor.AppendHistory(line)
	}

	fmt.Println("help lists the commands, Ctrl-D leaves")
	for {
		line, err := prompt(session, editor, sh.client.Controller()+"> ")
		switch {
		case errors.Is(err, liner.ErrPromptAborted):
			continue
		case errors.Is(err, io.EOF):
			fmt.Println()
			return ExitOK
		case err != nil:
			fmt.Fprintln(sh.err, err)
			return ExitError
		}
		if past.add(line) {
			editor.AppendHistory(line)
		}
		if errors.Is(sh.runInterruptibly(session, line), errQuit) {
			return ExitOK
		}
	}
}

// prompt is editor.Prompt that ends with ctx. The read from the terminal cannot
// be called off; it is left behind, for the process is about to end.
func prompt(ctx context.Context, editor *liner.State, text string) (line string, err error) {
	done := make(chan struct{})
	go func() {
		line, err = editor.Prompt(text)
		close(done)
	}()
	select {
	case <-done:
		return line, err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// runInterruptibly runs a line until it is done or Ctrl-C is pressed, which is a
// signal only while no line is being edited. It leaves no connection open: one
// that waits for a person's next thought keeps a draining controller waiting.
func (sh *shell) runInterruptibly(session context.Context, line string) error {
	ctx, stop := signal.NotifyContext(session, os.Interrupt)
	defer stop()
	sh.ctx = ctx
	defer sh.hangUp()
	defer context.AfterFunc(ctx, sh.hangUp)()
	err := sh.runLine(line)
	sh.report(err, "")
	return err
}

// dial connects for as long as the running command's context lasts.
func (sh *shell) dial(ctx context.Context, network, address string) (net.Conn, error) {
	running := sh.ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(running, cancel)()
	nc, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil || running.Done() == nil { // a script's or a single command's
		return nc, err
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if running.Err() != nil { // hangUp has come and gone
		nc.Close()
		return nil, context.Canceled
	}
	sh.open = append(sh.open, nc)
	return nc, nil
}

// hangUp closes the connections of a command.
func (sh *shell) hangUp() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, nc := range sh.open {
		nc.Close()
	}
	sh.open = nil
}

// history is the file that keeps what was typed. Each line is appended as it is
// entered, so that several shells may share it and none loses its lines when
// killed. A file that cannot be read or written is no history, and no error.
type history struct {
	path  string
	lines []string // the newest, at most liner.HistoryLimit
}

// historyPath is below $XDG_STATE_HOME if that is set, else in the home
// directory; "" if there is neither.
func historyPath() string {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "attune", "history")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".attune_history")
}

// openHistory reads the file, and shortens it once it is twice too long.
func openHistory(path string) *history {
	h := &history{path: path}
	data, err := os.ReadFile(path)
	if err != nil || len(data) == 0 {
		return h
	}
	h.lines = strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	total := len(h.lines)
	h.lines = h.lines[max(0, total-liner.HistoryLimit):]
	if total >= 2*liner.HistoryLimit {
		kept := []byte(strings.Join(h.lines, "\n") + "\n")
		if os.WriteFile(path+".new", kept, 0o600) == nil {
			os.Rename(path+".new", path)
		}
	}
	return h
}

// add keeps a line and reports whether it is one to remember: not an empty one,
// and not one that begins with a blank, which may hold a secret.
func (h *history) add(line string) bool {
	if strings.TrimSpace(line) == "" || line[0] == ' ' {
		return false
	}
	if h.path == "" {
		return true
	}
	os.MkdirAll(filepath.Dir(h.path), 0o700)
	f, err := os.OpenFile(h.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return true
	}
	defer f.Close()
	f.WriteString(line + "\n")
	return true
}
