package bench

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report is what a run found.
type Report struct {
	Began       time.Time `json:"began"` // UTC
	Options     Options   `json:"options"`
	Interrupted bool      `json:"interrupted"`
	Targets     []Target  `json:"targets"` // A, and B if there is one
	// Ratios compare A with B, round by round. Empty without B.
	Ratios []Ratios `json:"ratios,omitempty"`
}

// Target is one server's part of a report, or one cluster's.
type Target struct {
	Name    string     `json:"name"`              // A or B
	Server  string     `json:"server"`            // as Options name it, a cluster with its commas
	Version string     `json:"version,omitempty"` // as the server tells it; the different ones of a cluster
	Rounds  []*Measure `json:"rounds"`
	Total   *Measure   `json:"total,omitempty"` // all rounds as one; nil without any
}

// Measure is what was measured in a round, or in all rounds of a server.
type Measure struct {
	Seconds      float64 `json:"seconds"`
	Ops          int64   `json:"ops"` // replies that were what they should be
	OpsPerSecond float64 `json:"ops_per_second"`
	Hits         int64   `json:"hits"`
	Misses       int64   `json:"misses"`
	Stored       int64   `json:"stored"` // sets carried out, or incrs with Options.Incr
	// Errors counts error replies, values that failed Verify, and requests in
	// flight on a connection that was lost or answered nonsense.
	Errors int64 `json:"errors"`
	// Unanswered counts requests that the load intended and that had no reply
	// when the round was given up: Timeout after its end, or after the last
	// reply.
	Unanswered      int64  `json:"unanswered"`
	ConnectionsLost int64  `json:"connections_lost"`
	FirstError      string `json:"first_error,omitempty"`

	Get Latency `json:"get"`
	Set Latency `json:"set"` // of the incrs with Options.Incr

	OwnCPU    CPU  `json:"own_cpu"`              // of the load generator
	ServerCPU *CPU `json:"server_cpu,omitempty"` // of all pids together; nil without

	outcome
	own, server time.Duration
	hasServer   bool
}

// Latency describes the latencies of one verb, in microseconds. All are 0 where
// Count is.
type Latency struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean_us"`
	P50   float64 `json:"p50_us"`
	P90   float64 `json:"p90_us"`
	P99   float64 `json:"p99_us"`
	P999  float64 `json:"p99_9_us"`
	Max   float64 `json:"max_us"`
}

// CPU is the processor time, user and system, that a process used.
type CPU struct {
	Seconds      float64 `json:"seconds"`
	PerOp        float64 `json:"us_per_op"`      // microseconds; 0 without ops
	OpsPerSecond float64 `json:"ops_per_second"` // per second of processor time; 0 where none was seen
}

// Ratios is one metric of A divided by that of B.
type Ratios struct {
	Metric string    `json:"metric"`
	Rounds []float64 `json:"rounds"`
	Min    float64   `json:"min"`
	Median float64   `json:"median"`
	Max    float64   `json:"max"`
}

// summarize derives the exported fields from what was counted.
func (m *Measure) summarize() {
	m.Seconds = m.elapsed.Seconds()
	m.Ops = m.ops()
	if m.Seconds > 0 {
		m.OpsPerSecond = float64(m.Ops) / m.Seconds
	}
	m.Hits, m.Misses, m.Stored = m.hits, m.misses, m.stored
	m.Errors, m.Unanswered, m.ConnectionsLost, m.FirstError = m.errors, m.unanswered, m.lost, m.firstErr
	m.Get, m.Set = newLatency(m.get), newLatency(m.set)
	m.OwnCPU = newCPU(m.own, m.Ops)
	if m.hasServer {
		c := newCPU(m.server, m.Ops)
		m.ServerCPU = &c
	}
}

func newLatency(h *hdrhistogram.Histogram) Latency {
	us := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1e3 }
	if h.TotalCount() == 0 {
		return Latency{}
	}
	return Latency{
		Count: h.TotalCount(), Mean: h.Mean() / 1e3,
		P50: us(50), P90: us(90), P99: us(99), P999: us(99.9), Max: float64(h.Max()) / 1e3,
	}
}

func newCPU(used time.Duration, ops int64) CPU {
	c := CPU{Seconds: used.Seconds()}
	if ops > 0 {
		c.PerOp = float64(used) / 1e3 / float64(ops)
	}
	if used > 0 {
		c.OpsPerSecond = float64(ops) / used.Seconds()
	}
	return c
}

// total adds rounds up; nil without any.
func total(rounds []*Measure) *Measure {
	if len(rounds) == 0 {
		return nil
	}
	sum := &Measure{outcome: outcome{get: newHistogram(), set: newHistogram()}, hasServer: true}
	for _, m := range rounds {
		sum.tally.add(&m.tally)
		sum.get.Merge(m.get)
		sum.set.Merge(m.set)
		sum.elapsed += m.elapsed
		sum.own += m.own
		sum.server += m.server
		sum.hasServer = sum.hasServer && m.hasServer
	}
	sum.summarize()
	return sum
}

// Measured reports whether there is any round to report. It may be called on nil,
// which has none.
func (r *Report) Measured() bool {
	return r != nil && len(r.Targets) > 0 && r.Targets[0].Total != nil
}

// Failure is nil if every reply of the measured rounds was what it should be, and
// no connection was lost. That an open loop asked for more than the server could
// do is a result, not a failure.
func (r *Report) Failure() error {
	for _, t := range r.Targets {
		if m := t.Total; m != nil && m.FirstError != "" {
			return fmt.Errorf("%s: %d errors, %d unanswered, %d connections lost; the first: %s",
				t.Server, m.Errors, m.Unanswered, m.ConnectionsLost, m.FirstError)
		}
	}
	return nil
}

// Formats are what [Report.Write] can write.
var Formats = []string{"text", "json", "csv"}

// Write writes the report in one of [Formats].
func (r *Report) Write(w io.Writer, format string) error {
	switch format {
	case "text":
		return r.writeText(w)
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	case "csv":
		return r.writeCSV(w)
	}
	return fmt.Errorf("no report format %q", format)
}

func (r *Report) writeText(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	p := func(format string, a ...any) { fmt.Fprintf(w, format, a...) } // the error comes with Flush
	write, written := "set", "stored"
	if r.Options.Incr {
		write, written = "incr", "incremented"
	}
	p("%s\n", &r.Options)
	if r.Interrupted {
		p("interrupted: the rounds finished until then, the last perhaps cut short\n")
	}
	for i := range r.Targets {
		t := &r.Targets[i]
		p("\n%s  %s", t.Name, t.Server)
		if t.Version != "" {
			p("  version %s", t.Version)
		}
		p("\n")
		m := t.Total
		if m == nil {
			p("   nothing measured\n")
			continue
		}
		p("   %.0f ops/s: %d ops in %.2f s; %d hits, %d misses, %d %s, %d errors",
			m.OpsPerSecond, m.Ops, m.Seconds, m.Hits, m.Misses, m.Stored, written, m.Errors)
		if m.Unanswered > 0 {
			p(", %d unanswered", m.Unanswered)
		}
		if m.ConnectionsLost > 0 {
			p(", %d connections lost", m.ConnectionsLost)
		}
		p("\n")
		if m.FirstError != "" {
			p("   first error: %s\n", m.FirstError)
		}
		if m.ServerCPU != nil {
			p("   server CPU %.2f us/op, %.0f ops per CPU second; own CPU %.2f us/op\n",
				m.ServerCPU.PerOp, m.ServerCPU.OpsPerSecond, m.OwnCPU.PerOp)
		} else {
			p("   own CPU %.2f us/op\n", m.OwnCPU.PerOp)
		}
		p("\n   us\tcount\tmean\tp50\tp90\tp99\tp99.9\tmax\t\n")
		for _, v := range []struct {
			name string
			Latency
		}{{"get", m.Get}, {write, m.Set}} {
			if v.Count > 0 {
				p("   %s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t\n", v.name, v.Count, v.Mean, v.P50, v.P90, v.P99, v.P999, v.Max)
			}
		}
	}
	if len(r.Ratios) > 0 {
		p("\nA divided by B, %d rounds\n", len(r.Ratios[0].Rounds))
		p("\tmin\tmedian\tmax\t\n")
		for _, x := range r.Ratios {
			metric := x.Metric
			if rest, ok := strings.CutPrefix(metric, "set_"); ok {
				metric = write + "_" + rest
			}
			p("   %s\t%.3f\t%.3f\t%.3f\t\n", metric, x.Min, x.Median, x.Max)
		}
	}
	return w.Flush()
}

// csvHeader names the columns of writeCSV, one row per round and server.
var csvHeader = []string{
	"round", "target", "server", "version", "seconds", "ops", "ops_per_second",
	"hits", "misses", "stored", "errors", "unanswered", "connections_lost",
	"get_count", "get_mean_us", "get_p50_us", "get_p90_us", "get_p99_us", "get_p99_9_us", "get_max_us",
	"set_count", "set_mean_us", "set_p50_us", "set_p90_us", "set_p99_us", "set_p99_9_us", "set_max_us",
	"own_cpu_us_per_op", "server_cpu_us_per_op", "ops_per_server_cpu_second",
}

func (r *Report) writeCSV(out io.Writer) error {
	w := csv.NewWriter(out)
	if err := w.Write(csvHeader); err != nil {
		return err
	}
	for round := range r.Options.Rounds {
		for _, t := range r.Targets {
			if round >= len(t.Rounds) {
				continue // interrupted
			}
			m := t.Rounds[round]
			row := []string{strconv.Itoa(round + 1), t.Name, t.Server, t.Version, decimal(m.Seconds), whole(m.Ops), decimal(m.OpsPerSecond),
				whole(m.Hits), whole(m.Misses), whole(m.Stored), whole(m.Errors), whole(m.Unanswered), whole(m.ConnectionsLost)}
			for _, l := range []Latency{m.Get, m.Set} {
				row = append(row, whole(l.Count))
				for _, v := range []float64{l.Mean, l.P50, l.P90, l.P99, l.P999, l.Max} {
					row = append(row, decimal(v))
				}
			}
			row = append(row, decimal(m.OwnCPU.PerOp))
			if m.ServerCPU != nil {
				row = append(row, decimal(m.ServerCPU.PerOp), decimal(m.ServerCPU.OpsPerSecond))
			} else {
				row = append(row, "", "")
			}
			if err := w.Write(row); err != nil {
				return err
			}
		}
	}
	w.Flush()
	return w.Error()
}

func whole(n int64) string     { return strconv.FormatInt(n, 10) }
func decimal(f float64) string { return strconv.FormatFloat(f, 'f', 3, 64) }
