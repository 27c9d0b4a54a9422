package controller

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// exported is the metrics of /metrics: of each its labels, and their values.
type exported map[string]map[string]map[string]bool

// scrape adds what a node exports. A histogram and a counter go by the names that
// Prometheus keeps them under.
func (e exported) scrape(t *testing.T, n *Node) {
	t.Helper()
	for name, family := range metrics(t, n) {
		names := []string{name}
		if family.GetType().String() == "HISTOGRAM" {
			names = []string{name + "_bucket", name + "_count", name + "_sum"}
		}
		for _, name := range names {
			if e[name] == nil {
				e[name] = make(map[string]map[string]bool)
			}
			if strings.HasSuffix(name, "_bucket") {
				e[name]["le"] = nil
			}
			for _, m := range family.GetMetric() {
				for _, l := range m.GetLabel() {
					if e[name][l.GetName()] == nil {
						e[name][l.GetName()] = make(map[string]bool)
					}
					e[name][l.GetName()][l.GetValue()] = true
				}
			}
		}
	}
}

// promTokens are those of PromQL that this needs told apart: strings, durations and
// variables of Grafana are never names.
var promTokens = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\$\w+|[0-9][0-9a-zA-Z.]*|[a-zA-Z_:][a-zA-Z0-9_:]*|=~|!~|!=|[(){}\[\],=]`)

// selector is a metric, or what Prometheus adds itself, as an expression names it.
type selector struct {
	metric string
	equal  map[string]string // matchers; the value is "" unless it must equal that
}

// readPromQL finds in an expression the metrics with their matchers, and the labels
// of by, without, on, ignoring and group_. It is no parser: it sees nothing of types,
// such as a rate of a gauge, nor whether two sides of an operator match, nor what
// functions do to labels.
func readPromQL(expr string) (selectors []selector, labels []string) {
	words := promTokens.FindAllString(expr, -1)
	at := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	for i := 0; i < len(words); i++ {
		word := words[i]
		if first := word[0]; first != '_' && first != ':' && (first < 'A' || first > 'Z') && (first < 'a' || first > 'z') {
			continue
		}
		switch word {
		case "by", "without", "on", "ignoring", "group_left", "group_right":
			if at(i+1) == "(" {
				for i += 2; at(i) != ")" && i < len(words); i++ {
					if at(i) != "," {
						labels = append(labels, at(i))
					}
				}
			}
			continue
		case "and", "or", "unless", "bool", "offset", "inf", "nan":
			continue
		}
		// A function, or an aggregation that tells its labels first.
		if next := at(i + 1); next == "(" || next == "by" || next == "without" {
			continue
		}
		s := selector{metric: word, equal: make(map[string]string)}
		if at(i+1) == "{" {
			for i += 2; at(i) != "}" && i < len(words); i += 3 {
				if at(i) == "," {
					i++
				}
				value := ""
				if at(i+1) == "=" {
					value = strings.Trim(at(i+2), `"'`)
				}
				s.equal[at(i)] = value
			}
		}
		selectors = append(selectors, s)
	}
	return selectors, labels
}

func TestReadPromQL(t *testing.T) {
	for expr, want := range map[string]string{
		`up`: `[{up map[]}] []`,
		`sum by (le, job) (rate(a_bucket{x="1", y=~"b|c"}[5m])) > 0.1`:       `[{a_bucket map[x:1 y:]}] [le job]`,
		`a - ignoring (of) group_left b{of="(sum"} offset 5m or vector(1e3)`: `[{a map[]} {b map[of:(sum]}] [of]`,
		`max(a{i=~"$instance"}) without (z)/ b`:                              `[{a map[i:]} {b map[]}] [z]`,
		`rate(a[$__rate_interval]) and on () b == bool 1`:                    `[{a map[]} {b map[]}] []`,
		``: `[] []`,
	} {
		selectors, labels := readPromQL(expr)
		if have := fmt.Sprint(selectors, " ", labels); have != want {
			t.Errorf("%s\nis read as %s\nwant       %s", expr, have, want)
		}
	}
}

// ofPrometheus are the names that it adds itself.
var ofPrometheus = []string{"up"}

// check finds what an expression names and nobody exports.
func (e exported) check(expr string) (wrong []string) {
	selectors, labels := readPromQL(expr)
	if len(selectors) == 0 {
		return []string{"it names no metric"}
	}
	known := map[string]bool{"job": true, "instance": true}
	for _, s := range selectors {
		if slices.Contains(ofPrometheus, s.metric) {
			continue
		}
		has, ok := e[s.metric]
		if !ok {
			wrong = append(wrong, "no metric "+s.metric)
			continue
		}
		for label := range has {
			known[label] = true
		}
		for label, value := range s.equal {
			values, ok := has[label]
			switch {
			case label == "job" || label == "instance":
			case !ok:
				wrong = append(wrong, fmt.Sprintf("%s has no label %s", s.metric, label))
			case value != "" && !strings.HasPrefix(value, "$") && !values[value]:
				wrong = append(wrong, fmt.Sprintf("%s is never exported with %s=%q", s.metric, label, value))
			}
		}
	}
	for _, label := range labels {
		if !known[label] {
			wrong = append(wrong, "no label "+label)
		}
	}
	return wrong
}

type alertRule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// readRules is the file of alerts, all of whose keys must be known.
func readRules(t *testing.T) (rules []alertRule) {
	t.Helper()
	raw, err := os.ReadFile("../deploy/prometheus/attune.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string      `yaml:"name"`
			Rules []alertRule `yaml:"rules"`
		} `yaml:"groups"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	if len(rules) < 20 {
		t.Fatalf("found %d alerts, want all of them", len(rules))
	}
	return rules
}

// readDashboard returns the expressions of the dashboard by panel and target.
func readDashboard(t *testing.T) map[string]string {
	t.Helper()
	raw, err := os.ReadFile("../deploy/grafana/attune.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			Targets []struct{ RefID, Expr string }
		}
		Templating struct {
			List []struct{ Name, Type, Definition string }
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	ids := make(map[int]bool)
	for _, p := range file.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the id of another one, %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			all[fmt.Sprintf("panel %q %s", p.Title, target.RefID)] = target.Expr
		}
	}
	for _, v := range file.Templating.List {
		if v.Type == "query" {
			selector, _, _ := strings.Cut(strings.TrimPrefix(v.Definition, "label_values("), ", ")
			all["variable "+v.Name] = selector
		}
	}
	if len(all) < 40 {
		t.Fatalf("found %d expressions in the dashboard, want all of them", len(all))
	}
	return all
}

// What dashboard and alerts name is exported, at some level.
func TestDeployNamesWhatIsExported(t *testing.T) {
	all := make(exported)
	dir := t.TempDir()
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Sequential, consistency.Causal, consistency.Eventual} {
		nodes := startThree(t, level, func(i int, cfg *Config) {
			cfg.DataDir = fmt.Sprintf("%s/%v%d", dir, level, i)
			cfg.Backend = "memcached://" + attunetest.FreeAddr(t) // that it is down is exported too
		})
		attunetest.Eventually(t, "all know all", func() bool {
			all.scrape(t, nodes[0])
			all.scrape(t, nodes[1])
			all.scrape(t, nodes[2])
			return len(all["attune_member_up"]["member"]) == 3 && (level < consistency.Causal || len(all["attune_gossip_lag"]["member"]) == 3) &&
				len(all["attune_raft_member_lag"]["member"]) == 3
		})
		closeAll(nodes...)
	}
	exprs := readDashboard(t)
	for _, r := range readRules(t) {
		exprs[r.Alert] = r.Expr
	}
	for _, name := range slices.Sorted(maps.Keys(exprs)) {
		for _, wrong := range all.check(exprs[name]) {
			t.Errorf("%s: %s\n%s", name, wrong, exprs[name])
		}
	}
	// The check itself can fail.
	for expr, want := range map[string]string{
		"attune_ready{}": "", "attune_redy": "no metric", `attune_ready{level="x"}`: "no label level",
		`attune_store_values_total{what="lost"}`: "never exported", "sum by (server) (attune_ready)": "no label server", "1": "names no metric",
	} {
		if wrong := strings.Join(all.check(expr), ", "); (wrong == "") != (want == "") || !strings.Contains(wrong, want) {
			t.Errorf("%s: %q, want %q", expr, wrong, want)
		}
	}
}

// Each alert says how bad it is, what it is, and where to read on.
func TestAlertsSayWhatToDo(t *testing.T) {
	const prefix = "https://github.com/attunekv/attune/blob/HEAD/docs/operations.md#"
	guide, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	upper := regexp.MustCompile(`[A-Z]`)
	seen := make(map[string]bool)
	var anchors []string
	for _, r := range readRules(t) {
		name, ok := strings.CutPrefix(r.Alert, "Attune")
		if !ok || seen[r.Alert] {
			t.Errorf("%s: want a name of its own that begins with Attune", r.Alert)
		}
		seen[r.Alert] = true
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s: %v, %v: want a severity, a summary and a description", r.Alert, r.Labels, r.Annotations)
		}
		anchor := "alert" + strings.ToLower(upper.ReplaceAllString(name, "-$0"))
		if have := r.Annotations["runbook_url"]; have != prefix+anchor {
			t.Errorf("%s: %s, want %s", r.Alert, have, prefix+anchor)
		}
		anchors = append(anchors, anchor)
	}
	t.Run("guide", func(t *testing.T) {
		there := make(map[string]bool)
		for _, m := range regexp.MustCompile(`(?m)^#+ +(.*)$|id="([^"]+)"`).FindAllStringSubmatch(string(guide), -1) {
			slug := regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), "") // as GitHub does
			there[strings.ReplaceAll(slug, " ", "-")] = true
			there[m[2]] = true
		}
		for _, anchor := range anchors {
			if !there[anchor] {
				t.Errorf("docs/operations.md has no #%s", anchor)
			}
		}
	})
}
