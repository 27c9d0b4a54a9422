package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

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
	want.WriteString("| setting | default | meaning |\n|---|---|---|\n")
	for _, st := range allSettings {
		value := "none"
		if st.value != "" {
			value = "`" + st.value + "`"
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", st.key, value, st.usage)
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
	first := attunetest.FreeAddr(t)
	var addresses []string
	for i := range 3 {
		gossip := "127.0.0.1:0"
		if i == 0 {
			gossip = first
		}
		p := startServe(t, "--name", fmt.Sprintf("n%d", i+1), "--consistency", "linearizable",
			"--peer", "127.0.0.1:0", "--gossip", gossip, "--join", first)
		addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", 8000+i), p.addr)
	}
	return strings.NewReplacer(addresses...)
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
