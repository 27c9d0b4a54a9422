package shell

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/peterh/liner"
	"go.uber.org/goleak"

	"github.com/attunekv/attune/client/internal/memtest"
	"github.com/attunekv/attune/internal/attunetest"
)

// TestMain is also the shell itself, for the tests that give it a terminal.
func TestMain(m *testing.M) {
	if server := os.Getenv("SHELL_TEST_SERVER"); server != "" {
		os.Exit(Run(context.Background(), Options{
			Servers: []string{server}, Timeout: time.Minute, In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		}, nil))
	}
	goleak.VerifyTestMain(m)
}

// result is what a run left behind.
type result struct {
	code     int
	out, err string
}

func run(t *testing.T, server, stdin string, raw bool, args ...string) result {
	t.Helper()
	var out, err strings.Builder
	code := Run(t.Context(), Options{
		Servers: []string{server}, Timeout: 2 * time.Second, Raw: raw, In: strings.NewReader(stdin), Out: &out, Err: &err,
	}, args)
	return result{code, out.String(), err.String()}
}

// story runs commands one after the other and compares what each left behind.
type step struct {
	args string // separated by |
	code int
	out  string
	err  string // contained in it; "" is nothing at all
}

func story(t *testing.T, server string, steps []step) {
	t.Helper()
	for _, s := range steps {
		got := run(t, server, "from\x00stdin", false, strings.Split(s.args, "|")...)
		if got.code != s.code || got.out != s.out || !strings.Contains(got.err, s.err) || (got.err != "") != (s.err != "") {
			t.Errorf("%s:\n got code %d out %q err %q\nwant code %d out %q err %q", s.args, got.code, got.out, got.err, s.code, s.out, s.err)
		}
	}
}

func TestCommandsAndExitCodes(t *testing.T) {
	server := attunetest.StartMemcached(t, "-m", "16", "-t", "1").Addr
	file := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(file, []byte("from file"), 0o600); err != nil {
		t.Fatal(err)
	}
	story(t, server, []step{
		{"get|k", ExitNo, "", "NOT_FOUND k\n"},
		{"set|k|hello, world", ExitOK, "STORED\n", ""},
		{"get|k", ExitOK, "hello, world\n", ""},
		{"get|k|k2", ExitNo, "VALUE k 0 12\nhello, world\n", "NOT_FOUND k2\n"},
		{"add|k|x", ExitNo, "", "NOT_STORED\n"},
		{"replace|none|x", ExitNo, "", "NOT_STORED\n"},
		{"add|k2|x|--flags|7|--ttl=60", ExitOK, "STORED\n", ""},
		{"get|k2|k2", ExitOK, "VALUE k2 7 1\nx\nVALUE k2 7 1\nx\n", ""},
		{"append|k2|y", ExitOK, "STORED\n", ""},
		{"prepend|k2|w", ExitOK, "STORED\n", ""},
		{"replace|k2|z|--ttl|-1", ExitOK, "STORED\n", ""},
		{"get|k2", ExitNo, "", "NOT_FOUND k2\n"},
		{"set|n|9", ExitOK, "STORED\n", ""},
		{"incr|n", ExitOK, "10\n", ""},
		{"incr|n|18446744073709551615", ExitOK, "9\n", ""},
		{"decr|n|100", ExitOK, "0\n", ""},
		{"decr|none", ExitNo, "", "NOT_FOUND\n"},
		{"incr|k", ExitError, "", "CLIENT_ERROR cannot increment or decrement non-numeric value\n"},
		{"touch|k|100", ExitOK, "TOUCHED\n", ""},
		{"touch|none|100", ExitNo, "", "NOT_FOUND\n"},
		{"gat|100|k", ExitOK, "hello, world\n", ""},
		{"gat|100|k|none", ExitNo, "VALUE k 0 12\nhello, world\n", "NOT_FOUND none\n"},
		{"del|k", ExitOK, "DELETED\n", ""},
		{"delete|k", ExitNo, "", "NOT_FOUND\n"},
		{"cas|k|1|x", ExitNo, "", "NOT_FOUND\n"},
		{"set|f|@" + file, ExitOK, "STORED\n", ""},
		{"get|f", ExitOK, "from file\n", ""},
		{"set|f|@@literal", ExitOK, "STORED\n", ""},
		{"get|f", ExitOK, "@literal\n", ""},
		{"set|f|--anything", ExitOK, "STORED\n", ""},
		{`set|f|\n`, ExitOK, "STORED\n", ""},
		{"get|f", ExitOK, "\\n\n", ""},
		{"set|f|-", ExitOK, "STORED\n", ""},
		{"get|f", ExitOK, "00000000  66 72 6f 6d 00 73 74 64  69 6e                    |from.stdin|\n", ""},
		{"get|f|--raw", ExitOK, "from\x00stdin", ""},
		{"set|e|\x1b[2J", ExitOK, "STORED\n", ""},
		{"get|e", ExitOK, "00000000  1b 5b 32 4a                                       |.[2J|\n", ""},
		{"set|u|größe\tü", ExitOK, "STORED\n", ""},
		{"get|u", ExitOK, "größe\tü\n", ""},
		{"set|big|@" + bigFile(t), ExitError, "", "SERVER_ERROR object too large for cache\n"},

		{"mn", ExitOK, "MN\n", ""},
		{"ms|m|T60|F5|--|meta value", ExitOK, "HD\n", ""},
		{"ms|m|10|!|--|meta value", ExitError, "", "CLIENT_ERROR"},
		{"ms|m|10|--|meta value", ExitOK, "HD\n", ""},
		{"ms|m|9|--|meta value", ExitUsage, "", "the value has 10 bytes, not 9"},
		{"ms|m|T60", ExitUsage, "", `after " -- "`},
		{"ms|--|v", ExitUsage, "", "ms wants a key"},
		{"ms|m|--|a|b", ExitUsage, "", "one value"},
		{"mg|m|--|a", ExitUsage, "", "only ms has a value"},
		{"mg|m\r\nflush_all|v", ExitUsage, "", "one line"},
		{"mg|m|v|f", ExitOK, "VA 10 f0\nmeta value\n", ""},
		{"mg|m|v|--raw", ExitOK, "VA 10\r\nmeta value\r\n", ""},
		{"mg|none|v|q", ExitOK, "", ""},
		{"mg|none|v", ExitNo, "EN\n", ""},
		{"md|none", ExitNo, "NF\n", ""},
		{"ms|m|ME|--|x", ExitNo, "NS\n", ""},
		{"ms|m|C1|--|x", ExitNo, "EX\n", ""},
		{"ma|n|v", ExitOK, "VA 1\n1\n", ""},
		{"me|none", ExitNo, "EN\n", ""},
		{"mg", ExitError, "", "ERROR"},

		{"version", ExitOK, run(t, server, "", false, "version").out, ""},
		{"stats|reset", ExitOK, "RESET\n", ""},
		{"stats|nonsense", ExitError, "", "ERROR"},
		{"stats|two words", ExitUsage, "", "cannot be an argument"},
		{"flush", ExitOK, "OK\n", ""},
		{"flush|5", ExitOK, "OK\n", ""},
		{"flush|x", ExitUsage, "", "seconds"},

		{"quit", ExitOK, "", ""},
		{"nonsense", ExitUsage, "", `no command "nonsense"`},
		{"", ExitUsage, "", `no command ""`},
		{"get", ExitUsage, "", "usage: get KEY..."},
		{"set|k", ExitUsage, "", "usage: set KEY VALUE"},
		{"set|k|v|w", ExitUsage, "", "usage: set"},
		{"set|k|v|--ttl", ExitUsage, "", "--ttl wants a number"},
		{"set|k|v|--ttl|soon", ExitUsage, "", "seconds"},
		{"set|k|v|--flags|-1", ExitUsage, "", "--flags wants"},
		{"set|k|@/does/not/exist", ExitUsage, "", "no such file"},
		{"get|a b", ExitUsage, "", "a key has"},
		{"get|", ExitUsage, "", "a key has"},
		{"get|" + strings.Repeat("k", 251), ExitUsage, "", "a key has"},
		{"incr|n|-1", ExitUsage, "", "DELTA"},
		{"touch|k|x", ExitUsage, "", "seconds"},
		{"gat|x|k", ExitUsage, "", "seconds"},
		{"cas|k|x|v", ExitUsage, "", "UNIQUE"},
		{"help|nonsense", ExitUsage, "", "no command"},
		{"help|del", ExitOK, "delete KEY\ndelete a key (also: del)\n", ""},
	})

	got := run(t, server, "", false, "stats")
	if got.code != ExitOK || !strings.Contains(got.out, "\ncurr_items ") || strings.Contains(got.out, "STAT") || strings.Contains(got.out, "END") {
		t.Errorf("stats: %+v", got)
	}
	if got = run(t, server, "", false, "version"); !strings.HasPrefix(got.out, "1.") {
		t.Errorf("version: %+v", got)
	}

	run(t, server, "", false, "set", "c", "1", "--flags", "3")
	fields := strings.Fields(run(t, server, "", false, "gets", "c").out)
	if len(fields) != 6 || strings.Join(fields[:4], " ") != "VALUE c 3 1" || fields[5] != "1" {
		t.Fatalf("gets: %q", fields)
	}
	story(t, server, []step{
		{"cas|c|" + fields[4] + "|2", ExitOK, "STORED\n", ""},
		{"cas|c|" + fields[4] + "|3", ExitNo, "", "EXISTS\n"},
	})
}

func bigFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(path, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRawOutputIsTheBytes(t *testing.T) {
	f := memtest.Serve(t, "")
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	if got := run(t, f.Addr, string(all), false, "set", "k", "-"); got.code != ExitOK {
		t.Fatal(got)
	}
	if got := run(t, f.Addr, "", true, "get", "k"); got != (result{ExitOK, string(all), ""}) {
		t.Fatal(got)
	}
}

func TestConnectionErrors(t *testing.T) {
	f := memtest.Serve(t, "")
	f.Answer(func(string) string { return "close" })
	for _, args := range [][]string{{"get", "k"}, {"incr", "k"}, {"version"}, {"mg", "k"}} {
		if got := run(t, f.Addr, "", false, args...); got.code != ExitError || !strings.Contains(got.err, "may or may not have happened") {
			t.Errorf("%s: %+v", args, got)
		}
	}
	f.Answer(func(string) string { return "SERVER_ERROR no quorum" })
	for _, args := range [][]string{{"get", "k"}, {"incr", "k"}, {"version"}, {"mg", "k"}, {"stats"}, {"flush"}, {"delete", "k"}} {
		if got := run(t, f.Addr, "", false, args...); got != (result{ExitError, "", "SERVER_ERROR no quorum\n"}) {
			t.Errorf("%s: %+v", args, got)
		}
	}
	f.Stop()
	if got := run(t, f.Addr, "", false, "get", "k"); got.code != ExitError || !strings.Contains(got.err, "refused") {
		t.Errorf("%+v", got)
	}
}

func TestScript(t *testing.T) {
	f := memtest.Serve(t, "")
	const script = `
# a comment
set a 'x y'
   get a
get none
incr n` + "\r\n" + `quit
get a
`
	if got := run(t, f.Addr, script, false); got != (result{ExitNo, "STORED\nx y\n1\n", "line 5: NOT_FOUND none\n"}) {
		t.Errorf("%+v", got)
	}
	// The last line may lack its end, and - is not for scripts.
	if got := run(t, f.Addr, "set a -\nget a", false); got.code != ExitUsage || got.out != "" || !strings.Contains(got.err, "line 1: - is standard input") {
		t.Errorf("%+v", got)
	}
	if got := run(t, f.Addr, "set a '-'\nget a", false); got != (result{ExitOK, "STORED\n-\n", ""}) {
		t.Errorf("%+v", got)
	}
	if got := run(t, f.Addr, `set a "open`, false); got.code != ExitUsage || !strings.Contains(got.err, "quote") {
		t.Errorf("%+v", got)
	}
	if got := run(t, f.Addr, `set a b\ `, false); got.code != ExitOK {
		t.Errorf("%+v", got)
	}
	if got := run(t, f.Addr, "get a --raw", false); got.out != "b " {
		t.Errorf("%+v", got)
	}
	// Worse than a no: the rest is not run.
	f.Answer(func(line string) string {
		if line == "incr n 1" {
			return "SERVER_ERROR no quorum"
		}
		return ""
	})
	if got := run(t, f.Addr, "get none\nincr n\nget a", false); got != (result{ExitError, "", "line 1: NOT_FOUND none\nline 2: SERVER_ERROR no quorum\n"}) {
		t.Errorf("%+v", got)
	}
	f.WaitConns(0)
}

func TestScriptMeta(t *testing.T) {
	server := attunetest.StartMemcached(t, "-m", "16", "-t", "1").Addr
	script := `ms k 3 T0 -- "a\tb"
ms k T0 -- "a\tb"
`
	if got := run(t, server, script, false); got.code != ExitOK {
		t.Fatalf("%+v", got)
	}
	// Quotes in the line itself are the server's to see.
	if got := run(t, server, "mg k v Oq\"x\nms k 5 -- ''", false); got.out != "VA 3 Oq\"x\na\tb\n" || got.code != ExitUsage {
		t.Fatalf("%+v", got)
	}
	if got := run(t, server, "mg k --raw v", false); got.code != ExitError {
		t.Fatalf("%+v", got)
	}
}

func TestHelp(t *testing.T) {
	for _, c := range commands() {
		if c.short == "" || c.run == nil {
			t.Errorf("%s: not complete", c.name)
		}
		if !strings.Contains(Help(), "\n  "+c.name+" ") {
			t.Errorf("help does not list %s", c.name)
		}
		got := run(t, "none", "", false, "help", c.name)
		if got.code != ExitOK || !strings.HasPrefix(got.out, c.name) {
			t.Errorf("help %s: %+v", c.name, got)
		}
	}
	if got := run(t, "none", "", false, "help"); got.out != Help() {
		t.Errorf("help: %+v", got)
	}
	for i := range 4 {
		if !strings.Contains(Help(), fmt.Sprintf("\n  %d  ", i)) {
			t.Errorf("help does not explain exit code %d", i)
		}
	}
}

func TestComplete(t *testing.T) {
	for line, want := range map[string][]string{
		"ge": {"get ", "gets "}, "stats s": {"stats settings ", "stats sizes ", "stats slabs "}, "help pre": {"help prepend "},
		"? fl": {"? flush "}, "get k": nil, "nonsense ": nil, "help stats s": nil,
	} {
		if got := complete(line); !slices.Equal(got, want) {
			t.Errorf("complete(%q) = %q, want %q", line, got, want)
		}
	}
	if n := len(complete("")); n != len(commands()) {
		t.Errorf("an empty line completes to %d commands", n)
	}
}

func TestHistory(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_STATE_HOME", dir)
	path := historyPath()
	if path != filepath.Join(dir, "attune", "history") {
		t.Fatal(path)
	}
	one, two := openHistory(path), openHistory(path)
	for _, line := range []string{"", "  ", " set password secret"} {
		if one.add(line) {
			t.Errorf("%q is kept", line)
		}
	}
	one.add("get a")
	two.add("get b")
	if got := openHistory(path).lines; !slices.Equal(got, []string{"get a", "get b"}) {
		t.Fatalf("two shells left %q", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	for i := range 2 * liner.HistoryLimit {
		one.add(fmt.Sprint("get ", i))
	}
	for range 2 { // while it is shortened, and after
		got := openHistory(path).lines
		if len(got) != liner.HistoryLimit || got[len(got)-1] != fmt.Sprint("get ", 2*liner.HistoryLimit-1) {
			t.Fatalf("%d lines, the last is %q", len(got), got[len(got)-1])
		}
	}
	data, _ := os.ReadFile(path)
	if n := strings.Count(string(data), "\n"); n != liner.HistoryLimit {
		t.Fatalf("the file has %d lines", n)
	}

	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("HOME", dir)
	if got := historyPath(); got != filepath.Join(dir, ".attune_history") {
		t.Fatal(got)
	}
	t.Setenv("HOME", "")
	if h := openHistory(historyPath()); h.path != "" || !h.add("get a") {
		t.Fatal("a shell without a home")
	}
}
