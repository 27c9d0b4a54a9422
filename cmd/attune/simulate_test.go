package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attunekv/attune/consistency"
)

// simulate runs the command and returns what it printed.
func simulate(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := newSimulateCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetContext(t.Context())
	err := cmd.Execute()
	return out.String(), err
}

func TestSimulateReports(t *testing.T) {
	svg := filepath.Join(t.TempDir(), "out.svg")
	out, err := simulate(t, "--nodes", "3,20", "--writes", "50", "--rate", "100/s", "--loss", "1%", "--level", "causal", "--svg", svg, "--json")
	if err != nil {
		t.Fatal(err)
	}
	var reports []consistency.SimReport
	if err := json.Unmarshal([]byte(out), &reports); err != nil {
		t.Fatal(err)
	}
	if len(reports) != 2 {
		t.Fatalf("%d reports, want 2", len(reports))
	}
	for _, r := range reports {
		if !r.Agreed || r.Complete != 50 || r.Writes != 50 || r.Level != "causal" || len(r.Reach) == 0 || r.ToAll.P50 <= 0 || r.ToAll.Max < r.ToAll.P99 {
			t.Errorf("odd report: %+v", r)
		}
	}
	drawn, err := os.Open(svg)
	if err != nil {
		t.Fatal(err)
	}
	defer drawn.Close()
	lines := 0
	for d := xml.NewDecoder(drawn); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the drawing is not XML: %v", err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 2+3 {
		t.Errorf("%d lines drawn, want one for each size and three for bytes", lines)
	}
}

func TestSimulatePrintsATable(t *testing.T) {
	out, err := simulate(t, "--nodes", "3,5", "--writes", "20")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nodes", "write to all nodes, p50", "copies a node is sent", "all nodes equal after"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// TestSimulateTellsDisagreement: scripts go by the exit status.
func TestSimulateTellsDisagreement(t *testing.T) {
	out, err := simulate(t, "--nodes", "4", "--writes", "50", "--rate", "50", "--partition", "5s", "--limit", "1ms")
	if code := exitCode(0); !errors.As(err, &code) || code != 1 {
		t.Errorf("error %v, want exit status 1", err)
	}
	if !strings.Contains(out, "never") {
		t.Errorf("the table does not say so:\n%s", out)
	}
}

func TestSimulateRefuses(t *testing.T) {
	for _, args := range []string{
		"--nodes 0", "--nodes 3 --writes 0", "--level linearizable", "--rate fast", "--loss 101%", "--loss -1", "--writers 7 --nodes 3", "--churn 1/s --nodes 2",
	} {
		if out, err := simulate(t, strings.Fields(args)...); err == nil {
			t.Errorf("%s: no error, and\n%s", args, out)
		}
	}
}
