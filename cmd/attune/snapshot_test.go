package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

// Saved at one level, restored at others, in front of another store, and beside what
// is there.
func TestSnapshotMovesData(t *testing.T) {
	from := startServe(t, "--max-item-size", "2MiB")
	w := dial(t, "tcp", from.addr)
	large := strings.Repeat("0123456789abcdef", 100_000)
	day := 24 * time.Hour
	w.send("set plain 4294967295 0 5\r\nhello\r\nset empty 0 0 0\r\n\r\nset mortal 0 1000 1\r\nm\r\n" +
		fmt.Sprintf("set late 0 %d 1\r\nl\r\n", time.Now().Add(60*day).Unix()) +
		"set short 0 1 1\r\ns\r\nms AAEK/w== 3 b F7\r\nbin\r\nset old 0 0 1\r\no\r\nmd old I\r\nmg lease N100 v\r\n" +
		fmt.Sprintf("set large 0 0 %d\r\n%s\r\n", len(large), large))
	w.expect("STORED\r\nSTORED\r\nSTORED\r\nSTORED\r\nSTORED\r\nHD\r\nSTORED\r\nHD\r\nVA 0 W\r\n\r\nSTORED\r\n")
	for i := range 2000 {
		w.send(fmt.Sprintf("set k%d 0 0 100 noreply\r\n%0100d\r\n", i, i))
	}
	w.send("mn\r\n")
	w.expect("MN\r\n")

	file := filepath.Join(t.TempDir(), "a.snap")
	out, errs, code := run(t, "", "snapshot", "save", file, "--admin", from.admin)
	if code != 0 || errs != "" || !strings.HasPrefix(out, "saved 2009 items, ") {
		t.Fatalf("save: %d %q %q", code, out, errs)
	}
	if left, _ := filepath.Glob(file + "*"); len(left) != 1 {
		t.Errorf("save leaves %q", left)
	}
	out, errs, code = run(t, "", "snapshot", "inspect", file)
	if code != 0 || errs != "" || !strings.Contains(out, "of n1, eventual, at ") || !strings.Contains(out, "items 2009, of 18") ||
		!strings.Contains(out, "expiring 4, of which") || !strings.Contains(out, "invalidated 1; missing 0") ||
		!strings.Contains(out, "big: 1600000 bytes, \"large\"\n") || !strings.HasSuffix(out, "is whole\n") {
		t.Errorf("inspect: %d %q\n%s", code, errs, out)
	}
	out, _, code = run(t, "", "snapshot", "inspect", file, "--list")
	for _, line := range []string{`"plain"	5	4294967295	0`, `"\x00\x01\n\xff"	3	7	0`, `"old"	1	0	0	stale`, `"k1999"	100	0	0`} {
		if !strings.Contains("\n"+out, "\n"+line+"\n") || code != 0 {
			t.Errorf("the list lacks %q", line)
		}
	}
	if n := strings.Count(out, "\n"); n != 2009 {
		t.Errorf("the list has %d lines", n)
	}
	time.Sleep(1100 * time.Millisecond) // "short" expires

	memcached := attunetest.StartMemcached(t, "-I", "4m").Addr
	for _, args := range [][]string{
		{"--consistency", "linearizable", "--max-item-size", "2MiB", "--peer", "127.0.0.1:0", "--gossip", "127.0.0.1:0"},
		{"--consistency", "eventual", "--max-item-size", "2MiB", "--backend", "memcached://" + memcached},
	} {
		to := startServe(t, args...)
		w := dial(t, "tcp", to.addr)
		w.send("set plain 0 0 3\r\nold\r\nset other 0 0 1\r\no\r\n")
		w.expect("STORED\r\nSTORED\r\n")
		out, errs, code := run(t, "", "snapshot", "restore", file, "--server", to.addr)
		if want := "restored 2006 items; kept 0 that were there; left out 1 expired, 1 invalidated, 1 never filled; refused 0\n"; code != 0 || errs != "" || out != want {
			t.Fatalf("%q: restore: %d %q %q", args, code, out, errs)
		}
		w.send("get plain empty other old lease short k1999\r\nmg AAEK/w== b v f t\r\nget large\r\n")
		w.expect("VALUE plain 4294967295 5\r\nhello\r\nVALUE empty 0 0\r\n\r\nVALUE other 0 1\r\no\r\n" +
			fmt.Sprintf("VALUE k1999 0 100\r\n%0100d\r\nEND\r\nVA 3 f7 t-1\r\nbin\r\nVALUE large 0 %d\r\n%s\r\nEND\r\n", 1999, len(large), large))
		for key, want := range map[string]int{"mortal": 1000, "late": int(60 * day / time.Second)} {
			w.send("mg " + key + " t\r\n")
			var ttl int
			line := replyLine(w)
			if _, err := fmt.Sscanf(line, "HD t%d", &ttl); err != nil || ttl > want+1 || ttl < want-100 {
				t.Errorf("%q: %s has %q, of %d s", args, key, line, want)
			}
		}

		w.send("set plain 0 0 3\r\nnew\r\ndelete k7\r\n")
		w.expect("STORED\r\nDELETED\r\n")
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out, errs, code = run(t, string(raw), "snapshot", "restore", "-", "--keep", "--connections", "2", "--server", "127.0.0.1:1,"+to.addr)
		if code != 0 || errs != "" || !strings.HasPrefix(out, "restored 1 items; kept 2005 that were there;") {
			t.Errorf("%q: restore --keep: %d %q %q", args, code, out, errs)
		}
		w.send("get plain k7\r\n")
		w.expect(fmt.Sprintf("VALUE plain 0 3\r\nnew\r\nVALUE k7 0 100\r\n%0100d\r\nEND\r\n", 7))
	}

	small := startServe(t, "--max-item-size", "1MiB")
	out, errs, code = run(t, "", "snapshot", "restore", file, "--server", small.addr)
	if code != 1 || errs != "refused: \"large\": SERVER_ERROR object too large for cache\n" || !strings.HasPrefix(out, "restored 2005 items;") || !strings.HasSuffix(out, "refused 1\n") {
		t.Errorf("restore of what is too large: %d %q %q", code, out, errs)
	}
}

// Of a damaged file nothing is restored.
func TestDamagedSnapshot(t *testing.T) {
	from, to := startServe(t), startServe(t)
	w := dial(t, "tcp", from.addr)
	for i := range 2000 {
		w.send(fmt.Sprintf("set k%d 0 0 100 noreply\r\n%0100d\r\n", i, i))
	}
	w.send("mn\r\n")
	w.expect("MN\r\n")
	out, errs, code := run(t, "", "snapshot", "save", "-", "--admin", from.admin)
	if code != 0 || errs != "" {
		t.Fatalf("save: %d %q", code, errs)
	}
	file := filepath.Join(t.TempDir(), "bad")
	flipped := []byte(out)
	flipped[len(flipped)-1000] ^= 4
	for what, c := range map[string]struct {
		file []byte
		says string
	}{
		"flipped": {flipped, `damaged, in the block at byte \d+: checksum [0-9a-f]{8}, should be`},
		"cut off": {[]byte(out[:len(out)-10]), `cut off after \d+ bytes`},
		"foreign": {[]byte("hello, I am a text\n"), `not a snapshot of attune`},
		"newer":   {[]byte("attune snapshot 9\n"), `reads format 1`},
	} {
		if err := os.WriteFile(file, c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"inspect", file}, {"restore", file, "--server", to.addr}} {
			_, errs, code := run(t, "", append([]string{"snapshot"}, args...)...)
			if code != 2 || !regexp.MustCompile(c.says).MatchString(errs) {
				t.Errorf("%s of a %s file: %d %q", args[0], what, code, errs)
			}
		}
	}
	w = dial(t, "tcp", to.addr)
	w.send("get k0\r\n")
	w.expect("END\r\n")
	if _, errs, code := run(t, string(flipped), "snapshot", "restore", "-", "--server", to.addr); code != 2 || !strings.Contains(errs, "not all was restored") {
		t.Errorf("of a damaged stream: %d %q", code, errs)
	}
	if _, errs, code := run(t, "", "snapshot", "save", file, "--admin", "127.0.0.1:1"); code != 2 || errs == "" {
		t.Errorf("from nobody: %d %q", code, errs)
	}
	if _, errs, code := run(t, "", "snapshot", "save", file, "--rate", "5"); code != 2 || !strings.Contains(errs, "--rate") {
		t.Errorf("at no rate: %d %q", code, errs)
	}
}

// What the store has lost is told, and a save that fails says why in what it has
// written, for whoever reads the pipe.
func TestSaveOfAStoreThatLostSome(t *testing.T) {
	m := attunetest.StartMemcached(t)
	from := startServe(t, "--backend", "memcached://"+m.Addr, "--hot-cache", "0")
	w := dial(t, "tcp", from.addr)
	w.send("set a 0 0 1\r\n1\r\nset b 0 0 1\r\n2\r\n")
	w.expect("STORED\r\nSTORED\r\n")
	behind := dial(t, "tcp", m.Addr)
	behind.send("delete a\r\n")
	behind.expect("DELETED\r\n")
	for _, file := range []string{"-", filepath.Join(t.TempDir(), "a.snap")} {
		if _, errs, code := run(t, "", "snapshot", "save", file, "--admin", from.admin); code != 0 || !strings.HasPrefix(errs, "1 items are not in it") {
			t.Errorf("save to %s: %d %q", file, code, errs)
		}
	}
	m.Kill()
	out, errs, code := run(t, "", "snapshot", "save", "-", "--admin", from.admin)
	if code != 2 || !strings.Contains(errs, "was not finished") {
		t.Errorf("save without the store: %d %q", code, errs)
	}
	if _, errs, code := run(t, out, "snapshot", "inspect", "-"); code != 2 || !strings.Contains(errs, "was not finished") {
		t.Errorf("inspect of what it wrote: %d %q", code, errs)
	}
}

// A controller that is killed, or that closes, in the middle of a save leaves no file
// that looks like a snapshot; nor does the save when it is interrupted.
func TestSaveInterrupted(t *testing.T) {
	for _, what := range []string{"killed", "closed", "interrupted"} {
		t.Run(what, func(t *testing.T) {
			from := startServe(t, "--memory-limit", "200MiB")
			w := dial(t, "tcp", from.addr)
			value := strings.Repeat("x", 1<<20-1000)
			for i := range 40 {
				w.send(fmt.Sprintf("set k%d 0 0 %d\r\n%s\r\n", i, len(value), value))
				w.expect("STORED\r\n")
			}
			w.Close()
			dir := t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, attune, "snapshot", "save", filepath.Join(dir, "a.snap"), "--admin", from.admin, "--rate", "1MiB")
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			attunetest.Eventually(t, "the save begins to write", func() bool {
				parts, _ := filepath.Glob(filepath.Join(dir, "*.part"))
				if len(parts) != 1 {
					return false
				}
				st, err := os.Stat(parts[0])
				return err == nil && st.Size() > 0
			})
			switch what {
			case "killed":
				_ = from.Process.Kill()
			case "closed":
				from.signal(t, os.Interrupt)
			case "interrupted":
				_ = cmd.Process.Signal(os.Interrupt)
			}
			if err := cmd.Wait(); err == nil || !strings.Contains(errs.String(), "nothing was saved") {
				t.Errorf("the save ends with %v: %s", err, &errs)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("it leaves %v", left)
			}
			if what == "closed" {
				if code := from.wait(t); code != 0 {
					t.Errorf("the controller ends with %d:\n%s", code, from.logged())
				}
			}
		})
	}
}

// A restore outlives a controller of the cluster.
func TestRestoreWhileAControllerIsKilled(t *testing.T) {
	from := startServe(t)
	w := dial(t, "tcp", from.addr)
	for i := range 20_000 {
		w.send(fmt.Sprintf("set k%d 0 0 50 noreply\r\n%050d\r\n", i, i))
	}
	w.send("mn\r\n")
	w.expect("MN\r\n")
	file := filepath.Join(t.TempDir(), "a.snap")
	if _, errs, code := run(t, "", "snapshot", "save", file, "--admin", from.admin); code != 0 {
		t.Fatal(errs)
	}
	nodes := three(t, "--consistency", "linearizable")
	var servers []string
	for _, n := range nodes {
		servers = append(servers, n.addr)
	}
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if items(nodes[0].addr) > 100 {
				_ = nodes[0].Process.Kill()
				return
			}
		}
	}()
	out, errs, code := run(t, "", "snapshot", "restore", file, "--server", strings.Join(servers, ","))
	<-killed
	if code != 0 || !strings.HasPrefix(out, "restored 20000 items;") {
		t.Fatalf("%d %q %q", code, out, errs)
	}
	w = dial(t, "tcp", nodes[1].addr)
	for i := range 20_000 {
		w.send(fmt.Sprintf("mg k%d v\r\n", i))
		w.expect(fmt.Sprintf("VA 50\r\n%050d\r\n", i))
	}
}

// replyLine reads one line, and not a byte more.
func replyLine(w *wire) (line string) {
	var b [1]byte
	for !strings.HasSuffix(line, "\n") {
		if _, err := w.Read(b[:]); err != nil {
			w.t.Fatal(err)
		}
		line += string(b[:])
	}
	return line
}

// items is how many items a controller has; 0 if it does not say.
func items(addr string) (n int) {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return 0
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprint(c, "stats\r\nquit\r\n")
	var all bytes.Buffer
	_, _ = all.ReadFrom(c)
	_, after, _ := strings.Cut(all.String(), "STAT curr_items ")
	_, _ = fmt.Sscan(after, &n)
	return n
}
