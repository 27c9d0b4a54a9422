package main

import (
	"bufio"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fetch is attune show --json of a controller.
func fetch(t *testing.T, p *process) (s shown) {
	t.Helper()
	out, errs, code := run(t, "", "show", "--json", "-s", p.addr)
	if err := json.Unmarshal([]byte(out), &s); code != 0 || err != nil {
		t.Fatalf("%d %s%s: %v", code, out, errs, err)
	}
	return s
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

// One controller is shown, asked, made the leader, and sent away.
func TestShellOfACluster(t *testing.T) {
	cluster := three(t, "--consistency", "linearizable", "--backend", "embedded")
	names := []string{"n1", "n2", "n3"}
	leads := func(p *process) int { return slices.Index(names, fetch(t, p).Stats["leader"]) }
	eventually(t, "all vote", func() bool { return fetch(t, cluster[0]).Stats["voters"] == "3" && leads(cluster[0]) >= 0 })
	if s := fetch(t, cluster[0]); len(s.Members) != 3 || s.Stats["admin"] != cluster[0].admin || len(s.Members[2].Fields) != 5 {
		t.Errorf("%+v", s)
	}
	cli := func(code int, args ...string) string {
		t.Helper()
		out, errs, have := run(t, "", append([]string{"cli", "-s", cluster[1].addr}, args...)...)
		if have != code {
			t.Errorf("%q: exit status %d, want %d: %s%s", args, have, code, out, errs)
		}
		return out
	}
	cli(0, "set", "k", "v")
	if out := cli(0, "explain", "k"); !strings.Contains(out, "a get at n2: hit: ") || strings.Count(out, "\nn") != 3 {
		t.Error(out)
	}
	cli(1, "explain", "none")
	if out := cli(0, "show"); !strings.HasPrefix(out, "linearizable, as n2 sees it: ok") ||
		leads(cluster[0]) != 1 && !strings.Contains(out, "LAG is known to "+names[leads(cluster[0])]+": attune show -s "+cluster[leads(cluster[0])].addr+"\n") {
		t.Error(out)
	}
	if out := cli(0, "leader"); out != names[leads(cluster[0])]+" leads\n" {
		t.Error(out)
	}
	cli(2, "show", "--wach")
	cli(2, "show", "everything")
	cli(3, "fault", "list") // they are not enabled
	saved := filepath.Join(t.TempDir(), "a.snap")
	if out := cli(0, "snapshot", "save", saved); !strings.HasPrefix(out, "saved 1 items") {
		t.Error(out)
	}
	if out := cli(0, "snapshot", "restore", saved); !strings.HasPrefix(out, "restored 1 items") {
		t.Error(out)
	}
	cli(3, "snapshot", "inspect", saved+"-")
	if out := cli(0, "trace", "get", "k"); !strings.HasPrefix(out, "v\n") || !strings.Contains(out, "a quorum has confirmed") && !strings.Contains(out, "answered") {
		t.Error(out)
	}

	watching := exec.CommandContext(t.Context(), attune, "cli", "-s", cluster[2].addr, "watch", "user:", "--json")
	next := lines(t, watching)
	eventually(t, "a change is seen", func() bool {
		cli(0, "set", "user:7", "v")
		select {
		case line := <-next:
			if !strings.Contains(line, `"user:7"`) || !strings.Contains(line, `"by":"n`) {
				t.Fatal(line)
			}
			return true
		case <-time.After(time.Second):
			return false
		}
	})
	_ = watching.Process.Kill()

	showing := exec.CommandContext(t.Context(), attune, "show", "-s", cluster[0].addr, "--watch=100ms", "--json")
	next = lines(t, showing)
	for range 3 {
		var s shown
		if line := <-next; json.Unmarshal([]byte(line), &s) != nil || len(s.Traffic) != 3 {
			t.Fatal(line)
		}
	}
	_ = showing.Process.Kill()

	old := leads(cluster[0])
	to := (old + 1) % 3
	if out, errs, code := run(t, "", "leader", "transfer", "--admin", cluster[to].admin, "--to", "nobody"); code != 2 || !strings.Contains(errs, cluster[old].admin+` refuses: there is no member "nobody"`) {
		t.Errorf("%d %s%s", code, out, errs)
	}
	// Whoever is asked, the leader is told.
	if out, errs, code := run(t, "", "cli", "-s", cluster[to].addr, "leader", "transfer", "--to", names[to]); code != 0 || out != names[to]+" leads now\n" {
		t.Errorf("%d %s%s", code, out, errs)
	}
	eventually(t, "it leads", func() bool { return leads(cluster[old]) == to })
	if out, errs, code := run(t, "", "leave", "--admin", cluster[to].admin); code != 0 || out != names[to]+" has left\n" || !strings.Contains(errs, names[to]+" leaves") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	eventually(t, "the others go on without it", func() bool {
		s := fetch(t, cluster[old])
		return s.Stats["voters"] == "2" && s.Stats["health"] == "ok"
	})
	out, errs, code := run(t, "", "cli", "-s", cluster[old].addr, "get", "k")
	if code != 0 || out != "v\n" {
		t.Errorf("%d %s%s", code, out, errs)
	}
}

// lines starts a command and returns what it prints.
func lines(t *testing.T, cmd *exec.Cmd) <-chan string {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	next := make(chan string, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(next)
		for r := bufio.NewScanner(out); r.Scan(); {
			select {
			case next <- r.Text():
			default: // nobody asks for more
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait() // it was killed
	})
	return next
}

func TestTraffic(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		was, is counted
		want    []string
	}{
		"the first time": {counted{}, counted{now, 10, 100, 50, 25}, []string{"n1", "10", "50.0 %"}},
		"since then":     {counted{now.Add(-2 * time.Second), 10, 100, 50, 25}, counted{now, 12, 300, 60, 26}, []string{"n1", "100", "10.0 %"}},
		"no gets":        {counted{now.Add(-2 * time.Second), 10, 100, 50, 25}, counted{now, 12, 300, 50, 25}, []string{"n1", "100", "-"}},
		"restarted":      {counted{now.Add(-2 * time.Second), 10, 100, 50, 25}, counted{now, 1, 7, 4, 4}, []string{"n1", "7", "100.0 %"}},
	} {
		tr := traffic{Name: "n1"}
		tr.between(c.was, c.is)
		if got := tr.row(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
