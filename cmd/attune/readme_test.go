package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

var rewrite = flag.Bool("rewrite", false, "write the settings of the code into README.md")

// TestReadmeTable holds the table of settings in the README to the code. After a
// change: go test ./cmd/attune -run Readme -rewrite
func TestReadmeTable(t *testing.T) {
	const path, begin, end = "../../README.md", "<!-- settings -->\n", "<!-- end of settings -->\n"
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(raw), begin)
	have, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no lines %q and %q", path, begin, end)
	}
	var want strings.Builder
	want.WriteString("| setting | default | reload | meaning |\n|---|---|---|---|\n")
	for _, st := range allSettings {
		value := "none"
		if st.value != "" {
			value = "`" + st.value + "`"
		}
		reloads := ""
		if slices.Contains(reloadable, st.key) {
			reloads = "yes"
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s |\n", st.key, value, reloads, st.usage)
	}
	if have == want.String() {
		return
	}
	if !*rewrite {
		t.Fatalf("the table of settings is not the code's: go test ./cmd/attune -run Readme -rewrite\nhave\n%s\nwant\n%s", have, want.String())
	}
	if err := os.WriteFile(path, []byte(head+begin+want.String()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// longNumber is a cas unique, which no two runs have in common.
var longNumber = regexp.MustCompile(`\d{15,}`)

// tourCluster starts the three controllers of the tour, and returns what replaces
// their addresses in it.
func tourCluster(t *testing.T) *strings.Replacer {
	t.Helper()
	var addresses []string
	for i, p := range three(t, "--consistency", "linearizable") {
		addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", 8000+i), p.addr)
	}
	return strings.NewReplacer(addresses...)
}

// three starts a cluster of that many controllers with these arguments.
func three(t *testing.T, args ...string) []*process { return threeIn(t, "", args...) }

// threeIn is three whose data is in directories below dir, if that is not empty.
func threeIn(t *testing.T, dir string, args ...string) (cluster []*process) {
	t.Helper()
	first := attunetest.FreeAddr(t)
	for i := range 3 {
		name, gossip, own := fmt.Sprintf("n%d", i+1), "127.0.0.1:0", args
		if i == 0 {
			gossip = first
		}
		if dir != "" {
			own = append(own[:len(own):len(own)], "--data-dir", filepath.Join(dir, name))
		}
		cluster = append(cluster, startServe(t, append(own, "--name", name,
			"--listen", attunetest.FreeAddr(t), "--admin", attunetest.FreeAddr(t), // as they tell the others
			"--peer", "127.0.0.1:0", "--gossip", gossip, "--join", first)...))
	}
	return cluster
}

// TestReadmeTour runs the commands of the README's tour, in their order, on three
// controllers, and compares what they print with what the README shows.
func TestReadmeTour(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("needs bash")
	}
	raw, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	addresses := tourCluster(t)
	commands := 0
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(string(raw), -1) {
		for _, step := range strings.Split("\n"+block[1], "\n$ ")[1:] {
			line, want, _ := strings.Cut(step, "\n")
			command := line
			if !strings.Contains(line, "cli -s ") {
				command = strings.ReplaceAll(line, "attune cli", "attune cli -s 127.0.0.1:8000")
			}
			command = addresses.Replace(strings.ReplaceAll(command, "bin/attune", attune))
			out, _ := exec.CommandContext(t.Context(), "bash", "-c", command).CombinedOutput() // some are meant to fail
			if have := longNumber.ReplaceAllString(strings.TrimSpace(string(out)), "N"); have != longNumber.ReplaceAllString(strings.TrimSpace(want), "N") {
				t.Errorf("$ %s\nprints\n%s\nthe README shows\n%s", line, have, want)
			}
			commands++
		}
	}
	if commands < 10 {
		t.Errorf("found %d commands in the README, want the whole tour", commands)
	}
}

// TestReadmeShow holds what the README says of attune show and of the metrics, at the
// levels that gossip, to a cluster.
func TestReadmeShow(t *testing.T) {
	raw, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(raw), "<!-- show -->\n```text\n")
	want, _, ok2 := strings.Cut(rest, "```\n")
	if !ok || !ok2 {
		t.Fatal("the README has no block <!-- show -->")
	}
	cluster := three(t, "--consistency", "eventual", "--max-skew", "1m") // what died stays for two
	var addresses []string
	for i, p := range cluster {
		addresses = append(addresses, p.addr, fmt.Sprintf("127.0.0.1:%d", 8000+i), p.admin, fmt.Sprintf("127.0.0.1:%d", 9090+i))
	}
	comparable := func(out string) string {
		out = strings.NewReplacer(addresses...).Replace(out)
		for _, variable := range []struct{ pattern, to string }{
			{`forgotten up to [^;]+;`, "forgotten up to T;"}, {`(?m)-?\S+s$`, "D"}, {` +`, " "},
		} {
			out = regexp.MustCompile(variable.pattern).ReplaceAllString(out, variable.to)
		}
		return out
	}
	for i, command := range []string{"set a 1", "set b 1", "delete a"} {
		if out, errs, code := run(t, "", append([]string{"cli", "-s", cluster[i%2].addr}, strings.Fields(command)...)...); code != 0 {
			t.Fatalf("%s: %s%s", command, out, errs)
		}
	}
	var have string
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		have, _, _ = run(t, "", "show", "-s", cluster[0].addr)
		if comparable(have) == comparable(want) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("attune show prints\n%s\nthe README has\n%s", have, want)
		}
	}

	metrics := cluster[0].get(t, "/metrics")
	names := regexp.MustCompile(`(?m)^# TYPE attune_gossip_(\w+) `).FindAllStringSubmatch(metrics, -1)
	if len(names) < 10 {
		t.Errorf("found %d metrics of gossip, want all of them", len(names))
	}
	for _, name := range names {
		if !strings.Contains(string(raw), name[1]) {
			t.Errorf("the README says nothing of attune_gossip_%s", name[1])
		}
	}
}
