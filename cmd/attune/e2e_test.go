//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/bench"
)

func TestVersion(t *testing.T) {
	out, _, code := run(t, "", "version")
	if want := fmt.Sprintf("attune v1.2.3-test %s %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH); out != want || code != 0 {
		t.Errorf("attune version says %q (exit %d), want %q", out, code, want)
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	for _, words := range [][]string{{"help"}, {"serve", "--help"}, {"cli", "--help"}, {"bench", "--help"}, {"ready", "--help"}, {"verify", "--help"}, {"fault", "--help"}, {"fault", "drop", "--help"}, {"join", "--help"}, {"leave", "--help"}, {"leader", "transfer", "--help"}, {"version", "--help"}} {
		out, errs, code := run(t, "", words...)
		if code != 0 || errs != "" || !strings.Contains(out, "Usage:") {
			t.Errorf("attune %q: exit %d, %q, and no usage in\n%s", words, code, errs, out)
		}
	}
}

// What cannot start ends with status 2 and one line that says what to do.
// TestThreads: the setting is how many cores the whole process uses.
func TestThreads(t *testing.T) {
	for _, threads := range []string{"1", "3"} {
		if page := startServe(t, "--threads", threads).get(t, "/metrics"); !strings.Contains(page, "\ngo_sched_gomaxprocs_threads "+threads+"\n") {
			t.Errorf("threads %s is not what it uses", threads)
		}
	}
}

func TestServeRefusals(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		args []string
		want string // pattern
	}{
		{"peer address in use", []string{"--expect", "2", "--gossip", "127.0.0.1:0", "--peer", busy.Addr().String()},
			`^attune: store: .*address already in use; .*--peer`},
		{"address in use", []string{"--listen", busy.Addr().String()},
			`^attune: listen: .*` + regexp.QuoteMeta(busy.Addr().String()) + `.*address already in use; .*--listen`},
		{"admin address in use", []string{"--listen", "127.0.0.1:0", "--admin", busy.Addr().String()},
			`^attune: admin: .*address already in use`},
		{"no directory for a socket", []string{"--listen", "unix:" + dir + "/none/a.sock"},
			`^attune: listen: .*/none/a\.sock: .*no such file or directory`},
		{"socket path that is a file", []string{"--listen", "unix:" + self(t)},
			`^attune: listen: .*address already in use`},
		{"unknown backend", []string{"--backend", "redis://h:1"},
			`^attune: store: unknown backend "redis://h:1": choose embedded, memcached://host:port`},
		{"backend without servers", []string{"--backend", "memcached://"},
			`^attune: store: backend .*: want host:port`},
		{"unknown setting", []string{"--memroy-limit=1GiB"},
			`^attune: unknown flag: --memroy-limit; did you mean --memory-limit\? See attune serve --help$`},
		{"stray word", []string{"now"}, `^attune: unknown command "now" for "attune serve"$`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, errs, code := run(t, "", append([]string{"serve", "--admin", "off", "--listen", "127.0.0.1:0"}, c.args...)...)
			if code != 2 || !regexp.MustCompile(c.want).MatchString(strings.TrimRight(errs, "\n")) {
				t.Errorf("exit %d with\n%swant 2 and %s", code, errs, c.want)
			}
		})
	}
}

// self is the path of a file that must survive.
func self(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "a file")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if got, err := os.ReadFile(path); string(got) != "mine" {
			t.Errorf("the file in the way of the socket was touched: %q, %v", got, err)
		}
	})
	return path
}

func TestSocketInADirectoryOneMayNotWrite(t *testing.T) {
	dir := t.TempDir()
	out, code := runWithout(t, dir, "serve", "--admin", "off", "--listen", "unix:"+dir+"/a.sock")
	if code != 2 || !strings.Contains(out, "permission denied") {
		t.Errorf("exit %d with %s", code, out)
	}
}

// Both engines say what to do, before they look for others.
func TestDataDirOneMayNotWrite(t *testing.T) {
	for _, level := range []string{"linearizable", "eventual"} {
		for _, sub := range []string{"", "/new"} {
			dir := t.TempDir()
			out, code := runWithout(t, dir, "serve", "--admin", "off", "--listen", "127.0.0.1:0", "--gossip", "127.0.0.1:0",
				"--peer", "127.0.0.1:0", "--expect", "2", "--consistency", level, "--data-dir", dir+sub)
			if code != 2 || !strings.Contains(out, dir+sub) || !strings.Contains(out, "permission denied: this process must be allowed to read and write the directory") {
				t.Errorf("%s: exit %d with %s", level, code, out)
			}
		}
	}
}

// runWithout runs attune as somebody who may not write to dir, which root cannot be.
func runWithout(t *testing.T, dir string, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), attune, args...)
	if os.Getuid() == 0 { // who may write everywhere
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	} else if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// SIGTERM answers what was received, closes the listener, and exits 0; a socket
// file goes with it.
func TestTermDrains(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "a.sock")
	p := startServe(t, "--listen", "127.0.0.1:0,unix:"+socket)
	idle := dial(t, "unix", socket)
	idle.send("set k 0 0 5\r\nhello\r\n")
	idle.expect("STORED\r\n")
	busy := dial(t, "tcp", p.addr)
	busy.send("get k\r\nset half 0 0 4\r\nab") // the controller waits for two bytes and a line end
	busy.expect("VALUE k 0 5\r\nhello\r\nEND\r\n")

	p.signal(t, syscall.SIGTERM)
	if n, err := idle.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("an idle connection gets %d bytes, %v; want it closed", n, err)
	}
	busy.send("cd\r\n")
	busy.expect("STORED\r\n")
	if code := p.wait(t); code != 0 {
		t.Errorf("exit %d:\n%s", code, p.logged())
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestSecondSignalExitsAtOnce(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		p := startServe(t, "--drain-timeout", "10m")
		c := dial(t, "tcp", p.addr)
		c.send("mn\r\nset half 0 0 4\r\nab")
		c.expect("MN\r\n")
		p.signal(t, sig)
		p.signal(t, sig) // twice at once is timeout(1), or a terminal and a wrapper
		time.Sleep(2 * sameSignal)
		c.send("cd\r\n")
		c.expect("STORED\r\n")
		if code := p.wait(t); code != 0 {
			t.Errorf("%v twice at once: exit %d:\n%s", sig, code, p.logged())
		}

		p = startServe(t, "--drain-timeout", "10m")
		c = dial(t, "tcp", p.addr)
		c.send("mn\r\nset half 0 0 4\r\nab")
		c.expect("MN\r\n")
		p.signal(t, sig)
		time.Sleep(2 * sameSignal)
		p.signal(t, sig)
		if code := p.wait(t); code != 2 || !strings.Contains(p.logged(), "exited at once on a second signal") {
			t.Errorf("%v: exit %d:\n%s", sig, code, p.logged())
		}
	}
}

// A drain that does not end in time cuts off who is left, and says so.
func TestDrainTimeout(t *testing.T) {
	p := startServe(t, "--drain-timeout", "200ms")
	c := dial(t, "tcp", p.addr)
	c.send("mn\r\nset half 0 0 4\r\nab")
	c.expect("MN\r\n")
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 2 || !strings.Contains(p.logged(), "did not finish in time") {
		t.Errorf("exit %d:\n%s", code, p.logged())
	}
}

func TestClientsMayStopAControllerThatAllowsIt(t *testing.T) {
	p := startServe(t, "--enable-shutdown")
	dial(t, "tcp", p.addr).send("shutdown\r\n")
	if code := p.wait(t); code != 0 {
		t.Errorf("exit %d:\n%s", code, p.logged())
	}
	p = startServe(t)
	c := dial(t, "tcp", p.addr)
	c.send("shutdown\r\n")
	c.expect("SERVER_ERROR: shutdown not enabled\r\n")
}

// The socket of a controller that was killed is taken over; that of one that
// lives is not.
func TestSocketOfAKilledController(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "a.sock")
	first := startServe(t, "--listen", "unix:"+socket)
	if _, errs, code := run(t, "", "serve", "--admin", "off", "--listen", "unix:"+socket); code != 2 ||
		!strings.Contains(errs, "another process is listening there") {
		t.Errorf("a second controller on the socket: exit %d with %s", code, errs)
	}
	first.signal(t, os.Kill)
	first.wait(t)
	startServe(t, "--listen", "unix:"+socket)
	c := dial(t, "unix", socket)
	c.send("version\r\n")
	c.expect("VERSION ")
}

func TestAdmin(t *testing.T) {
	p := startServe(t, "--name", "n7")
	request := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+p.admin+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if method == "PUT" {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded") // as curl -d does
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		raw, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(raw)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/healthz", "", 200, "ok\n"},
		{"GET", "/readyz", "", 200, "ready\n"},
		{"GET", "/metrics", "", 200, "\nattune_"},
		{"GET", "/loglevel", "", 200, `{"level":"info"}`},
		{"PUT", "/loglevel", "level=debug", 200, `{"level":"debug"}`},
		{"GET", "/loglevel", "", 200, `{"level":"debug"}`},
		{"PUT", "/loglevel", "level=loud", 400, "error"},
		{"GET", "/debug/pprof/", "", 404, ""},
		{"POST", "/healthz", "", 405, ""},
	} {
		if status, body := request(c.method, c.path, c.body); status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d and %q, want %d and %q", c.method, c.path, status, body, c.status, c.want)
		}
	}

	if out, errs, code := run(t, "", "ready", "--admin", p.admin); out != "ready\n" || code != 0 {
		t.Errorf("attune ready: exit %d, %q, %q", code, out, errs)
	}
	// A proxy that is there for other traffic, as containers are given one, is none of ours.
	everywhere := strings.Replace(p.admin, "127.0.0.1", "0.0.0.0", 1)
	cmd := exec.Command(attune, "ready", "--admin", everywhere)
	cmd.Env = append(os.Environ(), "http_proxy=http://127.0.0.1:1", "HTTP_PROXY=http://127.0.0.1:1", "no_proxy=", "NO_PROXY=")
	if out, err := cmd.CombinedOutput(); string(out) != "ready\n" {
		t.Errorf("attune ready with a proxy: %v, %q", err, out)
	}

	// While it drains it lives and is not ready.
	c := dial(t, "tcp", p.addr)
	c.send("mn\r\nset half 0 0 1\r\n")
	c.expect("MN\r\n")
	p.signal(t, syscall.SIGTERM)
	attunetest.Eventually(t, "not ready", func() bool {
		status, body := request("GET", "/readyz", "")
		return status == 503 && body == "draining\n"
	})
	t.Setenv("ATTUNE_ADMIN", p.admin)
	if out, errs, code := run(t, "", "ready"); code != 1 || out != "" || errs != "attune: "+p.admin+" is not ready: draining\n" {
		t.Errorf("attune ready of a draining controller: exit %d, %q, %q", code, out, errs)
	}
	if status, _ := request("GET", "/healthz", ""); status != 200 {
		t.Errorf("/healthz of a draining controller: %d", status)
	}
	c.send("1\r\n")
	c.expect("STORED\r\n")
	if code := p.wait(t); code != 0 {
		t.Errorf("exit %d:\n%s", code, p.logged())
	}
	if out, errs, code := run(t, "", "ready"); code != 1 || !strings.Contains(errs, p.admin) {
		t.Errorf("attune ready of nobody: exit %d, %q, %q", code, out, errs)
	}
}

// The admin address may be a socket, or off; both are understood by who asks it.
func TestAdminOnASocket(t *testing.T) {
	p := startServe(t, "--admin", "unix:"+filepath.Join(t.TempDir(), "admin"))
	if out, errs, code := run(t, "", "ready", "--admin", p.admin); out != "ready\n" || code != 0 {
		t.Errorf("attune ready: exit %d, %q, %q", code, out, errs)
	}
	if out, errs, code := run(t, "", "snapshot", "save", "-", "--admin", p.admin); out == "" || code != 0 {
		t.Errorf("attune snapshot save: exit %d, %q", code, errs)
	}
	if _, errs, code := run(t, "", "recover", "--force-new-cluster", "--admin", p.admin); code != 2 || !strings.Contains(errs, "no quorum to lose") {
		t.Errorf("attune recover: exit %d, %q", code, errs)
	}
	if _, errs, code := run(t, "", "ready", "--admin", "off"); code != 1 || !strings.Contains(errs, "--admin host:port") {
		t.Errorf("attune ready: exit %d, %q", code, errs)
	}
}

func TestLogForMachinesAndForPeople(t *testing.T) {
	p := startServe(t, "--name", "n7")
	line, _, _ := strings.Cut(p.logged(), "\n")
	var entry map[string]any
	if err := json.Unmarshal([]byte(line), &entry); err != nil || entry["msg"] != "serving" || entry["node"] != "n7" {
		t.Errorf("first line of the JSON log: %s, %v", line, err)
	}
	people := exec.Command(attune, "serve", "--listen", "127.0.0.1:0", "--admin", "off", "--log-format", "console")
	stderr, err := people.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := people.Start(); err != nil {
		t.Fatal(err)
	}
	line, err = bufio.NewReader(stderr).ReadString('\n')
	if strings.HasPrefix(line, "{") || !strings.Contains(line, "\tserving\t") {
		t.Errorf("first line of the console log: %s, %v", line, err)
	}
	if err := people.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = people.Wait() // it was killed
}

// Exit codes are 0 done, 1 a definite no, 2 not a command, 3 no answer.
func TestCLIOneShot(t *testing.T) {
	p := startServe(t)
	for _, c := range []struct {
		stdin string
		args  []string
		out   string
		errs  string // pattern
		code  int
	}{
		{"", []string{"set", "greeting", "hello, world", "--ttl", "60"}, "STORED\n", `^$`, 0},
		{"", []string{"get", "greeting"}, "hello, world\n", `^$`, 0},
		{"", []string{"get", "nothing"}, "", `NOT_FOUND`, 1},
		{"", []string{"add", "greeting", "x"}, "", `NOT_STORED`, 1},
		{"", []string{"incr", "greeting"}, "", `cannot increment or decrement non-numeric value`, 3},
		{"", []string{"set", "n", "41"}, "STORED\n", `^$`, 0},
		{"", []string{"incr", "n"}, "42\n", `^$`, 0},
		{"", []string{"mg", "n", "v", "s"}, "VA 2 s2\n42\n", `^$`, 0},
		{"", []string{"delete", "n"}, "DELETED\n", `^$`, 0},
		{"", []string{"delete", "n"}, "", `NOT_FOUND`, 1},
		{"\x00\xff", []string{"set", "raw", "-"}, "STORED\n", `^$`, 0},
		{"", []string{"--raw", "get", "raw"}, "\x00\xff", `^$`, 0},
		{"", []string{"gte", "raw"}, "", `no command "gte"`, 2},
		{"", []string{"set", "raw"}, "", `usage: set KEY VALUE`, 2},
		{"set a 1\nincr a\n# a comment\nget nothing\nget a\n", nil, "STORED\n2\n2\n", `line 4: NOT_FOUND`, 1},
	} {
		out, errs, code := run(t, c.stdin, append([]string{"cli", "--server", p.addr}, c.args...)...)
		if out != c.out || code != c.code || !regexp.MustCompile(c.errs).MatchString(errs) {
			t.Errorf("attune cli %q: exit %d, output %q, errors %q; want exit %d, output %q, errors %s",
				c.args, code, out, errs, c.code, c.out, c.errs)
		}
	}
	if _, errs, code := run(t, "", "cli", "--server", attunetest.FreeAddr(t), "get", "a"); code != 3 || !strings.Contains(errs, "refused") {
		t.Errorf("without a server: exit %d with %s", code, errs)
	}
	if _, _, code := run(t, "", "cli", "--timeout", "0s", "version"); code != 2 {
		t.Errorf("--timeout 0s: exit %d, want 2", code)
	}
}

func TestBenchReportsAShortRun(t *testing.T) {
	p := startServe(t)
	out, errs, code := run(t, "", "bench", "--server", p.addr, "--conns", "2", "--keys", "100", "--ops", "2000",
		"--warmup", "0s", "--pid", fmt.Sprint(p.Process.Pid), "--output", "json")
	var report struct {
		Targets []struct{ Total *bench.Measure }
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 {
		t.Fatalf("exit %d, %v, errors %q, output\n%s", code, err, errs, out)
	}
	total := report.Targets[0].Total
	if total.Ops != 2000 || total.Errors != 0 || total.Misses != 0 || total.Get.Count+total.Set.Count != 2000 {
		t.Errorf("have %+v, want 2000 operations, all hits, no errors", *total)
	}
	if runtime.GOOS == "linux" && total.ServerCPU == nil {
		t.Error("no processor time of the server, although its process is known")
	}
	if _, errs, code := run(t, "", "bench", "--server", attunetest.FreeAddr(t), "--ops", "1"); code == 0 || !strings.Contains(errs, "refused") {
		t.Errorf("without a server: exit %d with %s", code, errs)
	}
	if _, errs, code := run(t, "", "bench", "--server", p.addr, "--output", "xml"); code != 2 || !strings.Contains(errs, "must be one of") {
		t.Errorf("--output xml: exit %d with %s", code, errs)
	}
}
