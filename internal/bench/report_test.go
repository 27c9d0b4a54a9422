package bench

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

// compare is a short run of two servers.
func compare(t *testing.T) *Report {
	t.Helper()
	o := small(newFake(t, nil).addr)
	o.VS, o.Rounds = newFake(t, nil).addr, 3
	return run(t, o)
}

func TestComparisonTakesTurns(t *testing.T) {
	var mu sync.Mutex // guards order
	var order strings.Builder
	marks := func(name string) *fake {
		return newFake(t, func(n int64, _ string) string {
			if n%100 == 1 { // the first of a round
				mu.Lock()
				order.WriteString(name)
				mu.Unlock()
			}
			return ""
		})
	}
	a, b := marks("A"), marks("B")
	o := small(a.addr)
	o.Conns, o.Ops, o.Rounds, o.Prefill = 1, 100, 3, false
	o.VS = b.addr
	r := run(t, o)
	mu.Lock()
	defer mu.Unlock()
	if order.String() != "ABABAB" {
		t.Errorf("rounds were taken %s", &order)
	}
	for _, tg := range r.Targets {
		if len(tg.Rounds) != 3 || tg.Total.Ops != 300 {
			t.Errorf("%s: %d rounds, %d ops", tg.Name, len(tg.Rounds), tg.Total.Ops)
		}
	}
}

func TestRatiosAreOfNeighbouringRounds(t *testing.T) {
	m := func(rate float64) *Measure { return &Measure{OpsPerSecond: rate} }
	got := ratios([]*Measure{m(10), m(30), m(20), m(1)}, []*Measure{m(10), m(10), m(10)})
	want := []Ratios{{Metric: "ops_per_second", Rounds: []float64{1, 3, 2}, Min: 1, Median: 2, Max: 3}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, median, _ := spread([]float64{4, 1, 3, 2}); median != 2.5 {
		t.Errorf("median of 4 numbers %g", median)
	}
}

func TestTextReport(t *testing.T) {
	var b bytes.Buffer
	if err := compare(t).Write(&b, "text"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"closed loop, 7 connections, pipeline 1, text, get:set 9:1, 200 keys of 20 bytes uniform, values of 100 bytes, 3 rounds of 1000 ops\n",
		"version 1.2.3", "3000 ops in", " 0 errors", "own CPU", "p99.9", "A divided by B, 3 rounds", "ops_per_second", "median",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in the report:\n%s", want, &b)
		}
	}
}

func TestTextReportOfCounters(t *testing.T) {
	o := small(newFake(t, nil).addr)
	o.VS, o.Incr = o.Server, true
	var b bytes.Buffer
	if err := run(t, o).Write(&b, "text"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" 1000 incremented,", "   incr  ", " incr_p50_us  "} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in the report:\n%s", want, &b)
		}
	}
}

// Scripts read these names; a change here breaks them.
func TestJSONReport(t *testing.T) {
	var b bytes.Buffer
	if err := compare(t).Write(&b, "json"); err != nil {
		t.Fatal(err)
	}
	var r map[string]any
	if err := json.Unmarshal(b.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	names := func(v any) string {
		var n []string
		for k := range v.(map[string]any) {
			n = append(n, k)
		}
		slices.Sort(n)
		return strings.Join(n, " ")
	}
	target := r["targets"].([]any)[1].(map[string]any)
	total := target["total"].(map[string]any)
	for _, c := range []struct {
		what any
		want string
	}{
		{r, "began interrupted options ratios targets"},
		{r["options"], "conns dist duration key_size keys ops pipeline prefill protocol rate ratio rounds seed server threads timeout value_size verify vs warmup zipf_s"},
		{target, "name rounds server total version"},
		{target["rounds"].([]any)[2], names(total)},
		{total, "connections_lost errors get hits misses ops ops_per_second own_cpu seconds set stored unanswered"},
		{total["get"], "count max_us mean_us p50_us p90_us p99_9_us p99_us"},
		{total["own_cpu"], "ops_per_second seconds us_per_op"},
		{r["ratios"].([]any)[0], "max median metric min rounds"},
	} {
		if got := names(c.what); got != c.want {
			t.Errorf("fields %s\n  want %s", got, c.want)
		}
	}
	if o := r["options"].(map[string]any); o["ratio"] != "9:1" || o["value_size"] != "100" || o["timeout"] != "5s" {
		t.Errorf("options %v", o)
	}
	if total["ops"] != 3000.0 {
		t.Errorf("total of %v ops", total["ops"])
	}
}

func TestCSVReport(t *testing.T) {
	var b bytes.Buffer
	r := compare(t)
	r.Targets[0].Rounds[1].ServerCPU = &CPU{PerOp: 1.5, OpsPerSecond: 1000}
	if err := r.Write(&b, "csv"); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll() // which also checks that rows are as long as the header
	if err != nil || len(rows) != 1+3*2 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	column := func(row int, name string) string { return rows[row][slices.Index(csvHeader, name)] }
	for i, want := range []string{"1A", "1B", "2A", "2B", "3A", "3B"} {
		if got := column(i+1, "round") + column(i+1, "target"); got != want || column(i+1, "ops") != "1000" {
			t.Errorf("row %d is of %s with %s ops, want %s with 1000", i+1, got, column(i+1, "ops"), want)
		}
	}
	if got := column(3, "server_cpu_us_per_op") + column(3, "ops_per_server_cpu_second"); got != "1.5001000.000" {
		t.Errorf("server CPU %s", got)
	}
	if err := r.Write(&b, "xml"); err == nil {
		t.Error("a format that does not exist was written")
	}
}
