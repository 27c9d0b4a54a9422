//go:build unix

package main

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/attunekv/attune/controller"
	"github.com/attunekv/attune/internal/attunetest"
)

// A controller that looks for others where nobody is finds them when its operator says
// where they are; and one is started with the line that another one prints.
func TestJoin(t *testing.T) {
	cluster := three(t, "--consistency", "linearizable", "--memory-limit", "64MiB", "--disable-flush-all")
	voters := func(want string) {
		t.Helper()
		eventually(t, want+" vote", func() bool { return fetch(t, cluster[0]).Stats["voters"] == want })
	}
	voters("3")
	join := func(code int, want string, args ...string) {
		t.Helper()
		out, errs, have := run(t, "", args...)
		if have != code || !strings.Contains(out+errs, want) {
			t.Errorf("%q: exit status %d, %s%s; want %d, %s", args, have, out, errs, code, want)
		}
	}
	// It is in nobody's list, and has a wrong one.
	gossip, admin, addr := attunetest.FreeAddr(t), attunetest.FreeAddr(t), attunetest.FreeAddr(t)
	lost := exec.Command(attune, "serve", "--name", "n4", "--consistency", "linearizable", "--expect", "3", "--listen", addr,
		"--admin", admin, "--peer", "127.0.0.1:0", "--gossip", gossip, "--join", attunetest.FreeAddr(t))
	lost.Stderr = io.Discard
	if err := lost.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lost.Process.Kill(); _ = lost.Wait() })
	eventually(t, "it looks for others", func() bool {
		_, errs, _ := run(t, "", "ready", "--admin", admin)
		return strings.Contains(errs, "found each other")
	})
	// The port of its clients is not open yet; another one's is, and is not what is meant.
	join(2, "n1 has it as listen, and gossips at", "join", "--admin", cluster[1].admin, cluster[0].addr)
	join(2, "does a controller run there", "join", "--admin", cluster[1].admin, addr)
	join(2, "itself", "join", "--admin", admin, gossip)
	join(0, "new: n4; n1 reaches 4 members now, itself included: n1, n2, n3, n4", "cli", "-s", cluster[0].addr, "join", gossip)
	join(0, "nobody new", "join", "--admin", cluster[0].admin, gossip)
	voters("4")

	out, errs, code := run(t, "", "cli", "-s", cluster[1].addr, "join")
	if code != 0 || errs != "" || !strings.Contains(out, "--memory-limit 64MiB") || !strings.Contains(out, gossip) || strings.Contains(out, "HOST") {
		t.Fatalf("%d %s%s", code, out, errs)
	}
	words := strings.Fields(strings.ReplaceAll(out, "\\\n", ""))
	for i, word := range words { // next to those of a test's controllers others may have theirs
		if slices.Contains([]string{"--listen", "--admin", "--peer", "--gossip"}, word) {
			words[i+1] = attunetest.FreeAddr(t)
		}
	}
	fifth := exec.Command(attune, words[1:]...)
	fifth.Stderr = io.Discard
	if err := fifth.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fifth.Process.Kill(); _ = fifth.Wait() })
	voters("5")
	if name := regexp.MustCompile(`--name (\S+)`).FindStringSubmatch(out); name[1] != "n5" {
		t.Errorf("it is called %s", name)
	}

	alone := startServe(t)
	join(2, "this controller is alone", "join", "--admin", alone.admin)
	join(2, "start it again with --expect 2 or more", "join", "--admin", alone.admin, gossip)
	other := startServe(t, "--name", "m1", "--consistency", "linearizable", "--peer", "127.0.0.1:0", "--gossip", "127.0.0.1:0")
	join(2, "they are never merged", "join", "--admin", other.admin, gossip)
	twin := startServe(t, "--name", "n5", "--consistency", "linearizable", "--peer", "127.0.0.1:0", "--gossip", "127.0.0.1:0")
	join(2, "never merged", "join", "--admin", twin.admin, gossip)
}

func TestNewcomer(t *testing.T) {
	member := func(name, host string, up int) whereabouts {
		port := func(from int) string { return net.JoinHostPort(host, strconv.Itoa(from+up)) }
		return whereabouts{Name: name, Alive: true, Listen: port(8000), Admin: port(9090), Peer: port(7400), Gossip: port(7946)}
	}
	set := func(kv ...string) (all []controller.Setting) {
		for i := 0; i < len(kv); i += 2 {
			all = append(all, controller.Setting{Name: kv[i], Value: kv[i+1], From: "attune.ini:1"})
		}
		return all
	}
	for name, c := range map[string]struct {
		members []whereabouts
		all     []controller.Setting
		want    string // in one line
		notes   []string
	}{
		"one machine": {
			[]whereabouts{member("n1", "127.0.0.1", 0), member("n2", "127.0.0.1", 1), member("n3", "127.0.0.1", 4)},
			set("name", "n1", "listen", "127.0.0.1:8000,unix:/a", "admin", "127.0.0.1:9090", "peer", "127.0.0.1:7400", "gossip", "127.0.0.1:7946", "join", "x",
				"expect", "3", "data-dir", "/data/n1", "sync", "os", "backend", "pebble:///b/store?cache=1MiB"),
			"attune serve --name n4 --listen 127.0.0.1:8005 --admin 127.0.0.1:9095 --peer 127.0.0.1:7405 --gossip 127.0.0.1:7951 " +
				"--join 127.0.0.1:7946,127.0.0.1:7947,127.0.0.1:7950 --expect 3 --data-dir /data/n4 --backend 'pebble:///b/store-n4?cache=1MiB'",
			[]string{"a directory of its own"},
		},
		"many machines": {
			[]whereabouts{member("cache-a", "10.0.0.1", 0), {Name: "cache-b", Gossip: "10.0.0.2:7946"}},
			set("name", "cache-a", "listen", "10.0.0.1:8000", "admin", "0.0.0.0:9090", "peer", "10.0.0.1:7400", "peer-advertise", "", "gossip", "10.0.0.1:7946", "join", "",
				"backend", "memcached://10.0.0.1:11211?timeout=1s", "data-dir", "/data", "log-format", "auto", "memory-limit", "2GiB"),
			"attune serve --name cache-a1 --listen HOST:8000 --admin 0.0.0.0:9090 --peer HOST:7400 --gossip HOST:7946 --join 10.0.0.1:7946 " +
				"--backend 'memcached://HOST:11211?timeout=1s' --data-dir /data --memory-limit 2GiB",
			[]string{"HOST is the address", "a directory of its own", "memcached servers of its own"},
		},
		"containers": {
			[]whereabouts{member("n1", "172.18.0.2", 0)},
			set("name", "n1", "listen", "0.0.0.0:8000", "admin", "0.0.0.0:9090", "peer", "0.0.0.0:7400", "gossip", "0.0.0.0:7946"),
			"attune serve --name n2 --listen 0.0.0.0:8000 --admin 0.0.0.0:9090 --peer 0.0.0.0:7400 --gossip 0.0.0.0:7946",
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			line, notes := newcomer(c.all[0].Value, c.members, c.all)
			if got := strings.ReplaceAll(line, " \\\n ", ""); got != c.want {
				t.Errorf("have %s\nwant %s", got, c.want)
			}
			for _, word := range c.notes {
				if !strings.Contains(strings.Join(notes, "\n"), word) {
					t.Errorf("%q lacks %q", notes, word)
				}
			}
			if len(c.notes) != len(notes) {
				t.Errorf("%q", notes)
			}
		})
	}
	if got := shellWord(`it's`); got != `'it'\''s'` {
		t.Error(got)
	}
}

// A controller that takes its time to leave is waited for, and a person is told why.
func TestLeaveIsWaitedFor(t *testing.T) {
	cluster := threeIn(t, t.TempDir(), "--consistency", "sequential", "--drain-timeout", "1m")
	eventually(t, "all vote", func() bool { return fetch(t, cluster[0]).Stats["voters"] == "3" })
	if _, errs, code := run(t, "", "leave", "n7", "--admin", cluster[0].admin); code != 2 || !strings.Contains(errs, "it knows no n7") {
		t.Errorf("%d %s", code, errs)
	}
	if _, errs, code := run(t, "", "cli", "-s", cluster[2].addr, "leave"); code != 2 || !strings.Contains(errs, "usage: leave NAME") {
		t.Errorf("who means quit has said leave: %d %s", code, errs)
	}
	c := dial(t, "tcp", cluster[2].addr)
	c.send("mn\r\nset half 0 0 4\r\nab")
	c.expect("MN\r\n")
	// Another one tells where it is.
	if out, errs, code := run(t, "", "leave", "n3", "--admin", cluster[0].admin, "--timeout", "3s"); code != 2 || out != "" ||
		!strings.Contains(errs, "n3 leaves") || !strings.Contains(errs, "2s: n3 drains, 1 connections are open") || !strings.Contains(errs, "not known to have left after 3s") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	done := make(chan string)
	go func() {
		out, errs, code := run(t, "", "cli", "-s", cluster[0].addr, "leave", "n2")
		done <- fmt.Sprint(out, errs, code)
	}()
	if got := <-done; !strings.HasPrefix(got, "n2 has left\n") || !strings.HasSuffix(got, "0") {
		t.Error(got)
	}
	c.send("cd\r\n")
	c.expect("STORED\r\n")
	eventually(t, "n1 goes on alone", func() bool {
		s := fetch(t, cluster[0])
		return s.Stats["voters"] == "1" && s.Stats["health"] == "ok"
	})
}
