//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/attunekv/attune/controller"
	"github.com/attunekv/attune/internal/attunetest"
)

// config is what p shows at /config, by name.
func (p *process) config(t *testing.T) (all map[string]controller.Setting, failed string) {
	t.Helper()
	var shown struct {
		Loaded   struct{ Error string }
		Settings []controller.Setting
	}
	if err := json.Unmarshal([]byte(p.get(t, "/config")), &shown); err != nil {
		t.Fatal(err)
	}
	all = make(map[string]controller.Setting)
	for _, s := range shown.Settings {
		all[s.Name] = s
	}
	return all, shown.Loaded.Error
}

// get is what p answers at its admin address.
func (p *process) get(t *testing.T, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + p.admin + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// TestReloadOfEach changes each setting that can change, and looks whether the
// controller does what it now says.
func TestReloadOfEach(t *testing.T) {
	gossip := attunetest.FreeAddr(t)
	big := fmt.Sprintf("set big 0 0 %d\r\n%s\r\n", 1100<<10, strings.Repeat("x", 1100<<10))
	token := file(t, "s3cret\n")
	path := file(t, "op-timeout = 0s\ndrain-timeout = 1h\n")
	p := startServe(t, "--config", path, "--peer", attunetest.FreeAddr(t), "--gossip", gossip, "--join", gossip)
	c := dial(t, "tcp", p.addr)
	asks := func(command, want string) func(*testing.T) {
		return func(t *testing.T) {
			c.t = t
			c.send(command)
			c.expect(want)
		}
	}
	stat := func(group, name, want string) func(*testing.T) {
		return func(t *testing.T) {
			attunetest.Eventually(t, name+" "+want, func() bool {
				out, _, _ := run(t, "", "cli", "-s", p.addr, "stats", group)
				for line := range strings.Lines(out) {
					if f := strings.Fields(line); len(f) >= 2 && f[len(f)-2] == name {
						return f[len(f)-1] == want
					}
				}
				return false
			})
		}
	}
	covered := map[string]bool{"backend": true} // by TestReload
	for _, step := range []struct {
		key, from, to string
		effect        func(t *testing.T)
	}{
		{"max-item-size", "1MiB", "2MiB", asks(big, "STORED\r\n")},
		{"max-item-size", "2MiB", "1MiB", asks(big, "SERVER_ERROR object too large for cache\r\n")},
		{"disable-flush-all", "false", "true", asks("flush_all\r\n", "CLIENT_ERROR flush_all not allowed\r\n")},
		{"disable-flush-all", "true", "false", asks("flush_all\r\n", "OK\r\n")},
		{"memory-limit", "1GiB", "8MiB", func(t *testing.T) {
			c.t = t
			for i := range 20 {
				c.send(fmt.Sprintf("set k%d 0 0 1000000\r\n%s\r\n", i, strings.Repeat("x", 1000000)))
				c.expect("STORED\r\n")
			}
			c.send("get k0\r\n") // evicted
			c.expect("END\r\n")
		}},
		{"admin-token-file", "", token, func(t *testing.T) {
			if _, errs, code := run(t, "", "snapshot", "save", "-", "--admin", p.admin); code != 2 || !strings.Contains(errs, "this takes the admin token") {
				t.Errorf("without the token: %d %s", code, errs)
			}
			if _, errs, code := run(t, "", "snapshot", "save", "-", "--admin", p.admin, "--admin-token-file", token); code != 0 {
				t.Errorf("with the token: %d %s", code, errs)
			}
			if out, errs, code := run(t, "", "cli", "-s", p.addr, "--admin-token-file", token, "explain", "big"); code != 1 || !strings.Contains(out, "miss") {
				t.Errorf("with the token: %d %s%s", code, out, errs)
			}
		}},
		{"hot-cache", "64MiB", "1MiB", nil}, // see TestResize of replica
		{"repair-rate", "64MiB", "1MiB", nil},
		{"max-skew", "5s", "20s", func(t *testing.T) {
			stat("settings", "max_skew", "20s")(t)
			if got := p.get(t, "/metrics"); !strings.Contains(got, "\nattune_gossip_max_skew_seconds 20\n") {
				t.Error("/metrics has another max-skew")
			}
		}},
		{"tombstone-max-age", "24h", "1h", stat("settings", "tombstone_max_age", "1h0m0s")},
		{"log-level", "info", "warn", func(t *testing.T) {
			if got := p.get(t, "/loglevel"); !strings.Contains(got, "warn") {
				t.Error(got)
			}
		}},
		{"log-level", "warn", "info", nil},
		{"trace-sample", "0.001", "1", nil},
		{"trace-endpoint", "", "http://127.0.0.1:1", func(t *testing.T) {
			c.t = t
			c.send("get none\r\n")
			c.expect("END\r\n")
			attunetest.Eventually(t, "a trace that nobody takes", func() bool {
				return !strings.Contains(p.get(t, "/metrics"), "attune_traces_total{result=\"dropped\"} 0\n")
			})
		}},
		{"log-sample", "50:500", "off", nil}, // see TestLogSample of controller
		{"write-acks", "1", "2", func(t *testing.T) {
			dial(t, "tcp", p.addr).send("set a 0 0 1\r\nv\r\n") // is not answered until write-acks is 1 again
			stat("attune", "waiting_for_acks", "1")(t)
		}},
		{"op-timeout", "0s", "10ms", asks("set a 0 0 1\r\nv\r\n", "SERVER_ERROR the change took effect here")},
		{"write-acks", "2", "1", stat("attune", "waiting_for_acks", "0")},
		{"max-conns", "10000", "1", func(t *testing.T) {
			dial(t, "tcp", p.addr).expect("ERROR Too many open connections\r\n")
		}},
		{"max-conns", "1", "100", func(t *testing.T) {
			c := dial(t, "tcp", p.addr)
			c.send("mn\r\n")
			c.expect("MN\r\n")
		}},
		{"idle-timeout", "0s", "10ms", func(t *testing.T) {
			if b, err := io.ReadAll(c); err != nil { // what waited before is closed, too
				t.Errorf("%q, then %v", b, err)
			}
		}},
		{"idle-timeout", "10ms", "0s", nil},
		{"enable-shutdown", "false", "true", nil}, // its effect is the end
		{"drain-timeout", "1h", "1ms", func(t *testing.T) {
			dial(t, "tcp", p.addr).send("set half 0 0 10\r\n")
			dial(t, "tcp", p.addr).send("shutdown\r\n")
			p.wait(t)
		}},
	} {
		ok := t.Run(step.key+" "+step.to, func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			kept := slices.DeleteFunc(strings.Split(string(text), "\n"), func(line string) bool {
				return strings.HasPrefix(line, step.key+" ")
			})
			p.signalled(t, path, strings.Join(kept, "\n")+step.key+" = "+step.to+"\n", step.key, step.from, step.to)
			if step.effect != nil {
				step.effect(t)
			}
		})
		if !ok {
			break
		}
		covered[step.key] = true
	}
	for _, key := range reloadable {
		if !covered[key] {
			t.Errorf("%s: not covered", key)
		}
	}
}

// signalled has p read path with this text, and waits until /config shows that a
// setting has changed.
func (p *process) signalled(t *testing.T, path, text, key, from, to string) {
	t.Helper()
	if all, _ := p.config(t); all[key].Value != from || !all[key].Reloads {
		t.Fatalf("%s is %+v, want %s", key, all[key], from)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGHUP)
	attunetest.Eventually(t, key+" "+to, func() bool {
		all, failed := p.config(t)
		return all[key].Value == to && failed == "" && strings.HasPrefix(all[key].From, path+":")
	})
}

// A file that changes is read without a signal, however it changes; one that makes
// no sense changes nothing, and both are told.
func TestReloadOfAWatchedFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write("1/attune.ini", "max-conns = 1001\nthreads = 1\n")
	must(os.Symlink("1", filepath.Join(dir, "now")))
	p := startServe(t, "--config", filepath.Join(dir, "now", "attune.ini"), "--drain-timeout", "9s")
	shows := func(conns string, lines ...string) {
		t.Helper()
		attunetest.Eventually(t, conns, func() bool {
			all, _ := p.config(t)
			metrics := p.get(t, "/metrics")
			return all["max-conns"].Value == conns && !slices.ContainsFunc(lines, func(line string) bool {
				return !strings.Contains(metrics, "\n"+line+"\n")
			})
		})
	}
	ok := "attune_config_reload_ok 1"
	shows("1001", ok)
	all, _ := p.config(t)
	for name, from := range map[string]string{"drain-timeout": "--drain-timeout", "max-conns": filepath.Join(dir, "now/attune.ini") + ":1", "expect": "default"} {
		if all[name].From != from {
			t.Errorf("%+v, want it from %s", all[name], from)
		}
	}
	// Written in place.
	write("1/attune.ini", "max-conns = 1002\nthreads = 1\n")
	shows("1002", ok, "attune_connections_limit 1002")
	// As editors do it: another file, renamed.
	must(os.Rename(write("new", "max-conns = 1003\nthreads = 2\n"), filepath.Join(dir, "1/attune.ini")))
	shows("1003", ok)
	if all, _ := p.config(t); all["threads"].Value != "1" || all["threads"].Waiting != "2" {
		t.Errorf("%+v, want 1 in use and 2 waiting for a restart", all["threads"])
	}
	// As Kubernetes does it: another directory behind a link.
	write("2/attune.ini", "max-conns = 1004\n")
	must(os.Symlink("2", filepath.Join(dir, "next")))
	must(os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "now")))
	shows("1004", ok)
	// Broken off in the middle of a line, and then what cannot be all together.
	write("2/attune.ini", "max-conns = 1005\nmemory-lim")
	shows("1004", "attune_config_reload_ok 0")
	write("2/attune.ini", "max-conns = 1006\nmemory-limit = 8MiB\nmax-item-size = 100MiB\n")
	attunetest.Eventually(t, "a reason", func() bool {
		_, failed := p.config(t)
		return strings.Contains(failed, "attune.ini:3: max-item-size: ") && strings.Contains(failed, "more than half of memory-limit")
	})
	shows("1004", "attune_config_reload_ok 0", "attune_memory_limit_bytes 1.073741824e+09")
	must(os.Remove(filepath.Join(dir, "2/attune.ini")))
	write("2/attune.ini", "max-conns = 1007\n")
	shows("1007", ok)
}

// Half of a file is not taken for the whole, even if it makes sense.
func TestWatchWaitsForTheWhole(t *testing.T) {
	w := watched{path: file(t, "a"), was: []byte("a")}
	for i, step := range []struct {
		text string // empty: no file
		news bool
	}{
		{"a", false}, {"a", false}, {"max-conns = 1", false}, {"max-conns = 10", false}, {"max-conns = 10", true}, {"max-conns = 10", false},
		{"", false}, {"max-conns = 10", false}, {"max-conns = 10", false}, {"b", false}, {"a", false}, {"b", false}, {"b", true},
	} {
		if err := os.WriteFile(w.path, []byte(step.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if step.text == "" {
			if err := os.Remove(w.path); err != nil {
				t.Fatal(err)
			}
		}
		if got := w.look(); got != step.news || got && string(w.was) != step.text {
			t.Errorf("look %d at %q: %v, %q", i, step.text, got, w.was)
		}
	}
}
