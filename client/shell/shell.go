package shell

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/bradfitz/gomemcache/memcache"
	"golang.org/x/term"

	"github.com/attunekv/attune/client"
)

// Exit codes of [Run].
const (
	ExitOK    = 0 // done
	ExitNo    = 1 // a definite no: not found, not stored, exists
	ExitUsage = 2 // not a command, or not a valid one; nothing was sent
	ExitError = 3 // no connection, a lost one, or an error the server reported
)

// Options say what a shell talks to, and through what.
type Options struct {
	Servers []string      // controllers, the preferred one first: see client.New
	Timeout time.Duration // of each network step; 0 is client.DefaultTimeout
	Raw     bool          // print values as they are, nothing added
	Admin   string        // the controller's admin address; empty: it is asked for it
	Token   string        // file with the admin token; empty: none is needed
	// Operate runs an operator's command, such as show, for the controller that is talked
	// to. Its errors are an exit code as [Misused] and [ErrNo] say. Without it there are
	// no such commands.
	Operate func(ctx context.Context, at Target, args []string, out, err io.Writer) error
	In      io.Reader // commands, or the value "-" of a single command
	Out     io.Writer // answers
	Err     io.Writer // refusals and errors
}

// Target is the controller that a command is for.
type Target struct {
	Server string                 // where clients reach it
	Admin  func() (string, error) // finds its admin address
}

// Run executes the command in args, or without args the commands that In holds,
// line by line; if In and Out are the process's terminal, it prompts for them.
// It returns an exit code. A script ends at the first line that is worse than a
// no, and its code is the worst of its lines'; an interactive session's is 0
// unless the terminal failed or ctx ended.
func Run(ctx context.Context, o Options, args []string) int {
	sh := &shell{client: client.New(o.Servers...), raw: o.Raw, adminAddr: o.Admin, tokenFile: o.Token, operator: o.Operate, plain: o.Out, ctx: ctx}
	sh.out, sh.colourOut = bufio.NewWriter(o.Out), colours(o.Out)
	sh.err, sh.colourErr = o.Err, colours(o.Err)
	sh.person = isTerminal(o.Out)
	if o.Timeout > 0 {
		sh.client.Timeout = o.Timeout
	}
	sh.client.DialContext = sh.dial
	defer sh.client.Close()
	switch {
	case len(args) > 0:
		sh.stdin = o.In
		return exitCode(sh.report(sh.runArgs(args), ""))
	case o.In == os.Stdin && o.Out == os.Stdout && isTerminal(o.In) && isTerminal(o.Out):
		return sh.interact()
	default:
		return sh.script(o.In)
	}
}

// shell runs one command after the other.
type shell struct {
	client *client.Client
	raw    bool
	stdin  io.Reader // what the value "-" reads; nil if commands are read there
	out    *bufio.Writer
	err    io.Writer

	adminAddr, tokenFile string // as in Options
	operator             func(ctx context.Context, at Target, args []string, out, err io.Writer) error
	plain                io.Writer // what out writes to

	colourOut, colourErr bool
	person               bool // reads what is printed, as it is on a terminal

	// ctx is that of the running command. Interactively it ends at Ctrl-C, and
	// open holds the connections to be closed then, as gomemcache knows no
	// context.
	ctx  context.Context
	mu   sync.Mutex // guards open
	open []net.Conn
}

// The kinds of failure that are not the network's or the server's.
type (
	no         string // a definite no, in the server's words; "" if they are printed
	usageError string
)

func (e no) Error() string         { return string(e) }
func (e usageError) Error() string { return string(e) }

// Misused is err as that of a command that is not valid.
func Misused(err error) error { return usageError(err.Error()) }

// ErrNo is a definite no that was told already.
var ErrNo error = no("")

// errQuit ends a session.
var errQuit = errors.New("quit")

// verdict turns what gomemcache returns into words for people.
func verdict(err error) error {
	switch {
	case errors.Is(err, memcache.ErrCacheMiss):
		return no("NOT_FOUND")
	case errors.Is(err, memcache.ErrNotStored):
		return no("NOT_STORED")
	case errors.Is(err, memcache.ErrCASConflict):
		return no("EXISTS")
	case errors.Is(err, memcache.ErrMalformedKey):
		return usageError("a key has 1 to 250 bytes, none of them a blank or a control character")
	case errors.Is(err, errQuit):
		return nil
	}
	if line, ok := client.ErrorLine(err); ok {
		return errors.New(line)
	}
	return err
}

// exitCode is what a command that came to err ends a script with.
func exitCode(err error) int {
	switch err.(type) {
	case nil:
		return ExitOK
	case no:
		return ExitNo
	case usageError:
		return ExitUsage
	}
	return ExitError
}

// report sends out what a command printed, then what it failed with, and
// returns that. where goes in front of it.
func (sh *shell) report(err error, where string) error {
	err = verdict(err)
	if sh.ctx.Err() != nil && err != nil {
		err = errors.New("interrupted; the command may or may not have been executed")
	}
	if flushed := sh.out.Flush(); flushed != nil && err == nil {
		err = flushed
	}
	if err != nil && err != no("") {
		fmt.Fprintln(sh.err, paint(sh.colourErr, "31", where+err.Error()))
	}
	return err
}

// script runs the lines of r. It goes on after a no, which is an answer, and
// stops at anything worse: what follows was written for a server that obeys.
func (sh *shell) script(r io.Reader) int {
	worst := ExitOK
	br := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, readErr := br.ReadString('\n')
		err := sh.runLine(strings.TrimRight(line, "\r\n"))
		worst = max(worst, exitCode(sh.report(err, fmt.Sprintf("line %d: ", n))))
		if worst > ExitNo || readErr != nil || errors.Is(err, errQuit) {
			return worst
		}
	}
}

// runLine runs one line of a session or script.
func (sh *shell) runLine(line string) error {
	line = strings.TrimLeft(line, " \t") // at the end a blank may be escaped
	if strings.TrimSpace(line) == "" || line[0] == '#' {
		return nil
	}
	if cmd, ok := lookup(strings.Fields(line)[0]); ok && cmd.meta {
		head, tail, found := strings.Cut(line, " -- ")
		if !found {
			return sh.runMeta(cmd, head, nil)
		}
		value, err := split(tail)
		if err != nil {
			return usageError(err.Error())
		}
		return sh.runMeta(cmd, head, value)
	}
	words, err := split(line)
	if err != nil {
		return usageError(err.Error())
	}
	return sh.run(words)
}

// runArgs runs a command whose words another shell has told apart. There are no
// quotes left in them, and backslashes mean themselves.
func (sh *shell) runArgs(args []string) error {
	words := make([]word, len(args))
	for i, a := range args {
		words[i].text = a
	}
	return sh.runWords(words)
}

// runWords runs a command whose words are told apart.
func (sh *shell) runWords(words []word) error {
	cmd, ok := lookup(words[0].text)
	if !ok || !cmd.meta {
		return sh.run(words)
	}
	var line []string
	for i, w := range words {
		if w.text == "--" && !w.quoted {
			return sh.runMeta(cmd, strings.Join(line, " "), words[i+1:])
		}
		line = append(line, w.text)
	}
	return sh.runMeta(cmd, strings.Join(line, " "), nil)
}

func (sh *shell) runMeta(cmd command, line string, value []word) error {
	in := input{verb: cmd.name, raw: sh.raw}
	in.line, in.raw = cutRaw(line, in.raw)
	switch {
	case value == nil:
	case len(value) == 1:
		in.block = &value[0]
	default:
		return usageError(`after " -- " stands one value; quote one with blanks`)
	}
	return cmd.run(sh, in)
}

// cutRaw takes the word --raw off a meta line: no flag of the protocol begins
// with a dash.
func cutRaw(line string, raw bool) (string, bool) {
	before, ok := strings.CutSuffix(line, " --raw")
	return before, ok || raw
}

func (sh *shell) run(words []word) error {
	cmd, ok := lookup(words[0].text)
	if !ok {
		return usageError(fmt.Sprintf("no command %q; help lists them", words[0].text))
	}
	in := input{verb: cmd.name, raw: sh.raw}
	if err := in.parse(cmd, words[1:]); err != nil {
		return err
	}
	if len(in.args) < cmd.min || cmd.max >= 0 && len(in.args) > cmd.max {
		return usageError(fmt.Sprintf("usage: %s: %s", strings.TrimSpace(cmd.name+" "+cmd.args), cmd.short))
	}
	return cmd.run(sh, in)
}

// parse tells options from arguments. Options are --name N or --name=N, anywhere
// after the command; a word that is none of the command's options is an argument,
// whatever it begins with, because values may begin with anything.
func (in *input) parse(cmd command, words []word) error {
	for i := 0; i < len(words); i++ {
		name, value, given := strings.Cut(words[i].text, "=")
		if words[i].quoted || !slices.Contains(cmd.options, name) {
			in.args = append(in.args, words[i])
			continue
		}
		if name == "--raw" {
			in.raw = true
			continue
		}
		if name == "--json" {
			in.json = true
			continue
		}
		if !given {
			if i++; i == len(words) {
				return usageError(name + " wants a number")
			}
			value = words[i].text
		}
		var err error
		if name == "--ttl" {
			in.ttl, err = ttlOf(value)
		} else {
			var flags uint64
			if flags, err = strconv.ParseUint(value, 10, 32); err != nil {
				err = usageError("--flags wants a number from 0 to 4294967295, not " + strconv.Quote(value))
			}
			in.flags = uint32(flags)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// say prints what a command came to, unless it failed.
func (sh *shell) say(text string, err error) error {
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(sh.out, text)
	return err
}

// mostShown is the bytes that a person is shown of a value.
const mostShown = 8 << 10

// show prints a value: as text if it is, else as hexdump -C does, so that no
// value can play tricks on a terminal.
func (sh *shell) show(value []byte, raw bool) {
	if raw {
		sh.out.Write(value)
		return
	}
	shown, text := value, printable(value)
	if sh.person && len(value) > mostShown {
		shown = value[:mostShown]
	}
	if text {
		sh.out.Write(bytes.ToValidUTF8(shown, nil)) // a cut may have parted a character
		sh.out.WriteByte('\n')
	} else {
		sh.out.WriteString(hex.Dump(shown))
	}
	if more := len(value) - len(shown); more > 0 {
		sh.header("... and %d bytes more: --raw, or a pipe, has all", more)
	}
}

func (sh *shell) header(format string, args ...any) {
	fmt.Fprintln(sh.out, paint(sh.colourOut, "2", fmt.Sprintf(format, args...)))
}

// printable reports whether a value is text that a terminal shows as it is.
func printable(value []byte) bool {
	if !utf8.Valid(value) {
		return false
	}
	return !strings.ContainsFunc(string(value), func(r rune) bool {
		return r != '\n' && r != '\t' && !unicode.IsPrint(r)
	})
}

func paint(on bool, colour, text string) string {
	if !on {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// colours reports whether w should get colours: https://no-color.org
func colours(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
