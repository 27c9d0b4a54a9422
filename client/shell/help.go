package shell

import (
	"fmt"
	"strings"
)

const helpRest = `
Arguments:
  Blanks separate them. 'single quotes' keep everything as it stands; "double
  quotes" and bare words may hold \n \r \t \0 \\ \" \' \xHH and backslash blank.
  A VALUE @PATH is what that file holds, @@x is the value @x. Quoted, it is a
  value as it stands. For a single command given to attune cli, VALUE - is its
  standard input, and quotes and escapes are those of your own shell.
  TTL is in seconds: 0 never expires, less is dead at once, more than 30 days
  (2592000) is a unix time. --ttl and --flags may stand anywhere after the
  command.

Output:
  A value that is not text is shown as hexadecimal. With --raw, after get, gets,
  gat or a meta command, or for all of attune cli, it is written byte for byte
  with nothing before or after it.

A script (standard input that is no terminal):
  One command a line; empty lines and lines that begin with # are skipped. It
  goes on after a "no" and ends at the first line that is worse.

Exit codes:
  0  done
  1  a definite no: NOT_FOUND, NOT_STORED, EXISTS
  2  not a valid command; nothing was sent
  3  no connection, a lost one, or an error the server reported: a write that
     was under way may or may not have happened
`

const helpKeys = `
Keys:
  Tab completes, Ctrl-R searches the history, Ctrl-C drops the line or interrupts
  the running command, Ctrl-D leaves. A line that begins with a blank is not kept
  in the history.
`

// Help is the text of `help`: the commands, how arguments are written, and the
// exit codes.
func Help() string {
	var b strings.Builder
	b.WriteString("Commands:\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-46s %s\n", strings.TrimSpace(c.name+" "+c.args), c.short)
	}
	b.WriteString(helpRest)
	return b.String()
}

func (sh *shell) help(in input) error {
	if len(in.args) == 0 {
		sh.out.WriteString(Help())
		if sh.stdin == nil {
			sh.out.WriteString(helpKeys)
		}
		return nil
	}
	c, ok := lookup(in.args[0].text)
	if !ok {
		return usageError(fmt.Sprintf("no command %q; help lists them", in.args[0].text))
	}
	fmt.Fprintf(sh.out, "%s\n%s", strings.TrimSpace(c.name+" "+c.args), c.short)
	if c.alias != "" {
		fmt.Fprintf(sh.out, " (also: %s)", c.alias)
	}
	sh.out.WriteString("\n")
	if c.long != "" {
		fmt.Fprintf(sh.out, "\n%s\n", c.long)
	}
	return nil
}

// complete returns the lines that a line may become: commands, and the words
// that may follow help and stats.
func complete(line string) []string {
	verb, last, argument := strings.Cut(line, " ")
	cmd, _ := lookup(verb)
	candidates, before := cmd.sections, verb+" "
	if !argument {
		last, before = verb, ""
	}
	if !argument || cmd.name == "help" {
		for _, c := range commands() {
			candidates = append(candidates, c.name)
		}
	}
	var lines []string
	for _, word := range candidates {
		if strings.HasPrefix(word, last) {
			lines = append(lines, before+word+" ")
		}
	}
	return lines
}
