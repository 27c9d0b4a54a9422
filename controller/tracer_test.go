package controller

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// otelSpan is a span as a collector reads it.
type otelSpan struct {
	node                                string // whose it is
	TraceID, SpanID, ParentSpanID, Name string
	Kind                                int
	StartTimeUnixNano, EndTimeUnixNano  string
	Attributes                          []otelAttr
	Events                              []struct{ TimeUnixNano, Name string }
	Status                              struct{ Code int }
}

type otelAttr struct {
	Key   string
	Value struct{ StringValue string }
}

func attrOf(all []otelAttr, key string) string {
	for _, a := range all {
		if a.Key == key {
			return a.Value.StringValue
		}
	}
	return ""
}

func (s *otelSpan) start() int64 { n, _ := strconv.ParseInt(s.StartTimeUnixNano, 10, 64); return n }
func (s *otelSpan) end() int64   { n, _ := strconv.ParseInt(s.EndTimeUnixNano, 10, 64); return n }

// collector is an OTLP receiver over HTTP.
type otelCollector struct {
	*httptest.Server
	mu    sync.Mutex
	spans []*otelSpan
	bad   []string // requests that no collector would take
}

func newOtelCollector(t *testing.T) *otelCollector {
	c := new(otelCollector)
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var in struct {
			ResourceSpans []struct {
				Resource   struct{ Attributes []otelAttr }
				ScopeSpans []struct{ Spans []*otelSpan }
			}
		}
		err := json.Unmarshal(body, &in)
		c.mu.Lock()
		defer c.mu.Unlock()
		if err != nil || r.Method != "POST" || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/json" {
			c.bad = append(c.bad, fmt.Sprint(r.Method, r.URL, err, string(body)))
		}
		for _, rs := range in.ResourceSpans {
			if service := attrOf(rs.Resource.Attributes, "service.name"); service != "attune" {
				c.bad = append(c.bad, "of the service "+service)
			}
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					s.node = attrOf(rs.Resource.Attributes, "service.instance.id")
					c.spans = append(c.spans, s)
				}
			}
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, "{}")
	}))
	t.Cleanup(func() {
		c.Close()
		for _, b := range c.bad {
			t.Error("the collector got", b)
		}
	})
	return c
}

// of returns the spans of a trace, and the traces there are.
func (c *otelCollector) of(id string) (spans []*otelSpan, traces map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	traces = make(map[string]bool)
	for _, s := range c.spans {
		traces[s.TraceID] = true
		if s.TraceID == id {
			spans = append(spans, s)
		}
	}
	return spans, traces
}

// root waits for a whole trace that began at node with this span, and of which so many
// controllers have told.
func (c *otelCollector) root(t *testing.T, node, name string, controllers int) (root *otelSpan, all []*otelSpan) {
	t.Helper()
	attunetest.Eventually(t, name+" of "+node, func() bool {
		_, traces := c.of("")
		for id := range traces {
			spans, _ := c.of(id)
			nodes := make(map[string]bool)
			root = nil
			for _, s := range spans {
				if nodes[s.node] = true; s.ParentSpanID == "" && s.Name == name && s.node == node {
					root = s
				}
			}
			if root != nil && len(nodes) >= controllers {
				all = spans
				return true
			}
		}
		return false
	})
	return root, all
}

// find returns the only span of that name, under that parent.
func find(t *testing.T, spans []*otelSpan, node, name, parent string) *otelSpan {
	t.Helper()
	var found *otelSpan
	for _, s := range spans {
		if s.node == node && s.Name == name && s.ParentSpanID == parent {
			if found != nil {
				t.Errorf("two spans %s of %s", name, node)
			}
			found = s
		}
	}
	if found == nil {
		var have []string
		for _, s := range spans {
			have = append(have, s.node+" "+s.Name)
		}
		t.Fatalf("no span %s of %s in %v", name, node, have)
	}
	return found
}

// nested wants every span within its parent, and ids as they are to be.
func nested(t *testing.T, spans []*otelSpan) {
	t.Helper()
	byID := make(map[string]*otelSpan)
	for _, s := range spans {
		if len(s.TraceID) != 32 || len(s.SpanID) != 16 || byID[s.SpanID] != nil || s.start() <= 0 || s.end() < s.start() {
			t.Errorf("%+v", *s)
		}
		byID[s.SpanID] = s
	}
	for _, s := range spans {
		p := byID[s.ParentSpanID]
		switch {
		case s.ParentSpanID == "":
		case p == nil:
			t.Errorf("%s of %s has a parent that nobody told of", s.Name, s.node)
		case s.start() < p.start() || s.end() > p.end():
			t.Errorf("%s of %s [%d, %d] is not within %s of %s [%d, %d]", s.Name, s.node, s.start(), s.end(), p.Name, p.node, p.start(), p.end())
		}
		for _, a := range s.Attributes {
			if strings.Contains(a.Value.StringValue, "secret") {
				t.Errorf("%s has the key: %v", s.Name, a)
			}
		}
	}
}

func exporting(c *otelCollector, sample float64) func(int, *Config) {
	return func(_ int, cfg *Config) { cfg.TraceEndpoint, cfg.TraceSample = c.URL, sample }
}

// A set through a follower is one trace of both controllers.
func TestTraceThroughAFollower(t *testing.T) {
	c := newOtelCollector(t)
	nodes := startThree(t, consistency.Linearizable, exporting(c, 1))
	leader, follower := roles(t, nodes)
	cl := dial(t, follower)
	cl.set("secret", []byte("v"))
	if string(cl.get("secret")) != "v" {
		t.Error("not there")
	}
	there, here := leader.cfg.Name, follower.cfg.Name

	root, all := c.root(t, here, "set", 2)
	nested(t, all)
	if root.Kind != 2 || root.Status.Code != 0 || attrOf(root.Attributes, "attune.level") != "linearizable" || attrOf(root.Attributes, "attune.verb") != "set" ||
		attrOf(root.Attributes, "attune.shard") != "0" || len(attrOf(root.Attributes, "attune.key_hash")) != 16 {
		t.Errorf("%+v", *root)
	}
	find(t, all, here, "queue", root.SpanID)
	forward := find(t, all, here, "forward", root.SpanID)
	remote := find(t, all, there, "forwarded set", forward.SpanID)
	for _, phase := range []string{"decide", "log", "commit", "apply"} {
		find(t, all, there, phase, remote.SpanID)
	}
	if attrOf(remote.Attributes, "attune.key_hash") != attrOf(root.Attributes, "attune.key_hash") || forward.Kind != 3 {
		t.Errorf("%+v under %+v", *remote, *forward)
	}
	root, all = c.root(t, here, "get", 1)
	nested(t, all)
	for _, phase := range []string{"queue", "read index"} {
		find(t, all, here, phase, root.SpanID)
	}

	// At the leader itself, a pipeline that is decided together is one trace.
	cl = dial(t, leader)
	cl.ask("set a 0 0 1\r\n1\r\nincr a 1\r\nget none\r\n", "STORED\r\n2\r\nEND\r\n")
	root, all = c.root(t, there, "set", 1)
	nested(t, all)
	find(t, all, there, "commit", root.SpanID)
	if n := attrOf(root.Attributes, "attune.ops"); n != "2" {
		t.Errorf("%s ops, want 2", n)
	}
	if len(root.Events) == 0 || root.Events[len(root.Events)-1].Name != "answered" {
		t.Errorf("%+v", root.Events)
	}
	for _, n := range nodes {
		if got := n.traceCounts.Dropped.Load(); got != 0 {
			t.Errorf("%s dropped %d", n.cfg.Name, got)
		}
	}
}

// An incr elsewhere than at its key's home, and a set, which is decided where it comes.
func TestTraceThroughAHome(t *testing.T) {
	c := newOtelCollector(t)
	nodes := startThree(t, consistency.Eventual, exporting(c, 1), func(_ int, cfg *Config) { cfg.WriteAcks = 2 })
	cl := dial(t, nodes[0])
	cl.set("secret", []byte("1"))
	root, all := c.root(t, nodes[0].cfg.Name, "set", 1)
	nested(t, all)
	for _, phase := range []string{"decide", "acks"} {
		find(t, all, root.node, phase, root.SpanID)
	}
	var away *Node
	home := ""
	attunetest.Eventually(t, "all have it, and know each other as homes", func() bool {
		home = explain(t, nodes[0], "secret").Home
		for _, n := range nodes {
			if e := explain(t, n, "secret"); e.Home != home || e.Get != "hit" {
				return false
			}
			if n.cfg.Name != home {
				away = n
			}
		}
		return true
	})
	dial(t, away).ask("incr secret 1\r\n", "2\r\n")
	root, all = c.root(t, away.cfg.Name, "incr", 2)
	nested(t, all)
	forward := find(t, all, root.node, "forward", root.SpanID)
	find(t, all, root.node, "arrival", root.SpanID)
	remote := find(t, all, home, "forwarded incr", forward.SpanID)
	for _, phase := range []string{"arrival", "decide", "acks"} {
		find(t, all, home, phase, remote.SpanID)
	}
}

// The command of an operator is exported, too, though no other is.
func TestTraceOfAnOperatorIsExported(t *testing.T) {
	c := newOtelCollector(t)
	cfg := testConfig()
	cfg.Admin, cfg.TraceEndpoint, cfg.TraceSample = "127.0.0.1:0", c.URL, 0
	n := start(t, cfg)
	dial(t, n).set("k", []byte("v"))
	code, body := httpDo(t, n, "POST", "/trace", "get k\r\n")
	var x traced
	if err := json.Unmarshal([]byte(body), &x); code != 200 || err != nil || len(x.TraceID) != 32 {
		t.Fatalf("%d %s: %v", code, body, err)
	}
	c.root(t, "n1", "trace", 1)
	if spans, traces := c.of(x.TraceID); len(traces) != 1 || len(spans) == 0 {
		t.Errorf("%d traces, %d spans of this one", len(traces), len(spans))
	}
}

// Off is the default, and costs neither a goroutine nor, see
// TestHotPathDoesNotAllocate, memory; on and off again while it serves.
func TestTracesOffAndOn(t *testing.T) {
	c := newOtelCollector(t)
	cfg := testConfig()
	n := start(t, cfg)
	cl := dial(t, n)
	cl.set("k", []byte("v"))
	before := runtime.NumGoroutine()
	if n.tracer.Load() != nil {
		t.Error("there is a tracer")
	}
	reconfigure := func(endpoint string, sample float64) {
		t.Helper()
		next := cfg
		next.TraceEndpoint, next.TraceSample = endpoint, sample
		if err := n.Reconfigure(next); err != nil {
			t.Fatal(err)
		}
	}
	reconfigure("", 1)
	cl.set("k", []byte("v"))
	if got := runtime.NumGoroutine(); got != before {
		t.Errorf("%d goroutines, before %d", got, before)
	}
	reconfigure(c.URL, 0)
	exporter := n.tracer.Load().exporter
	cl.set("k", []byte("v"))
	reconfigure(c.URL, 1)
	if n.tracer.Load().exporter != exporter {
		t.Error("another sample takes another exporter")
	}
	cl.ask("touch k 0\r\n", "TOUCHED\r\n")
	reconfigure("", 1)
	cl.set("k", []byte("v"))
	c.root(t, "n1", "touch", 1)                                                                                          // what was there when it went off is sent
	attunetest.Eventually(t, "no goroutine more than before", func() bool { return runtime.NumGoroutine() <= before+3 }) // of the collector
	if _, traces := c.of(""); len(traces) != 1 {
		t.Errorf("%d traces, want that of the touch", len(traces))
	}
}

// Without a collector commands go on, what is lost is counted, and the end is near.
func TestTracesWithoutACollector(t *testing.T) {
	hung := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	defer slow.Close()
	defer close(hung)
	for name, endpoint := range map[string]string{"refused": "http://127.0.0.1:1", "hung": slow.URL} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Admin, cfg.TraceEndpoint, cfg.TraceSample = "127.0.0.1:0", endpoint, 1
			n := start(t, cfg)
			cl := dial(t, n)
			for range 100 {
				cl.ask(strings.Repeat("mg k v\r\n", 100), strings.Repeat("EN\r\n", 100))
			}
			if got := metrics(t, n)["attune_traces_total"].GetMetric(); got[0].GetCounter().GetValue()+got[1].GetCounter().GetValue() < 7000 {
				t.Errorf("%v: of 10,000 traces at most 3,000 can wait", got)
			}
			if name == "refused" {
				attunetest.Eventually(t, "the log tells", func() bool {
					told := 0
					for _, e := range n.events.list() {
						if strings.HasPrefix(e.Text, "traces cannot be sent") {
							told += e.Times
						}
					}
					return told == 1
				})
			}
			began := time.Now()
			if err := n.Close(t.Context()); err != nil || time.Since(began) > 4*time.Second {
				t.Errorf("closed after %v: %v", time.Since(began), err)
			}
			if sent, dropped := n.traceCounts.Sent.Load(), n.traceCounts.Dropped.Load(); sent != 0 || dropped != 10_000 {
				t.Errorf("%d sent, %d dropped", sent, dropped)
			}
		})
	}
}

// Each command is weighed once, though reads wait for the engine and are looked at again.
func TestSampleIsAFraction(t *testing.T) {
	c := newOtelCollector(t)
	cfg := testConfig()
	cfg.TraceEndpoint, cfg.TraceSample = c.URL, 0.1
	cfg.wrap = func(e consistency.Engine) consistency.Engine { return &prompt{e} }
	b := newBench(t, cfg)
	b.s.call.Done = func() {}
	b.answer = func() {}
	const n = 5000
	for range n {
		b.feed("mg k v\r\n")
	}
	if got := b.s.node.traceCounts.Dropped.Load(); got != 0 {
		t.Fatalf("%d were dropped", got)
	}
	if err := b.s.node.Reconfigure(testConfig()); err != nil { // off: what waits is sent
		t.Fatal(err)
	}
	b.s.node.background.Wait()
	if got := b.s.node.traceCounts.Sent.Load(); got < n/10*7/10 || got > n/10*13/10 {
		t.Errorf("%d of %d are traced, want a tenth", got, n)
	}
}

// The value of a store outside this process is fetched.
func TestTraceOfAStore(t *testing.T) {
	m := attunetest.StartMemcached(t)
	c := newOtelCollector(t)
	cfg := testConfig()
	cfg.Backend, cfg.HotCache, cfg.TraceEndpoint, cfg.TraceSample = "memcached://"+m.Addr, 0, c.URL, 1
	cl := dial(t, start(t, cfg))
	cl.set("secret", []byte("v"))
	cl.get("secret")
	root, all := c.root(t, "n1", "get", 1)
	nested(t, all)
	find(t, all, "n1", "store get", root.SpanID)
}

// The leader exports nothing: what is left is the follower's part, and whole.
func TestTraceOfOneThatAloneExports(t *testing.T) {
	c := newOtelCollector(t)
	var first string
	nodes := startThree(t, consistency.Linearizable, func(i int, cfg *Config) {
		if cfg.TraceSample = 1; i == 0 {
			cfg.TraceEndpoint, first = c.URL, cfg.Name
		}
	})
	var here *Node
	for _, n := range nodes {
		if n.cfg.Name == first {
			here = n
		}
	}
	if g, _ := here.group(); g.Status().Role == "leader" {
		if code, body := httpDo(t, here, "POST", "/leader/transfer", ""); code != 200 {
			t.Fatal(code, body)
		}
	}
	attunetest.Eventually(t, "another leads", func() bool {
		g, _ := here.group()
		return g.Status().Leader != "" && g.Status().Leader != first
	})
	dial(t, here).set("k", []byte("v"))
	root, all := c.root(t, first, "set", 1)
	nested(t, all)
	find(t, all, first, "forward", root.SpanID)
	for _, s := range all {
		if s.node != first {
			t.Errorf("%s tells of %s", s.node, s.Name)
		}
	}
}

// A connection that is closed while it waits leaves a trace that says so.
func TestTraceOfAClosedConnection(t *testing.T) {
	c := newOtelCollector(t)
	cfg := testConfig()
	cfg.TraceEndpoint, cfg.TraceSample, cfg.DrainTimeout = c.URL, 1, 100*time.Millisecond
	engine := hold(&cfg)
	n := start(t, cfg)
	cl := dial(t, n)
	cl.send("set k 0 0 1\r\nv\r\n")
	<-engine.asked
	if err := n.Close(t.Context()); err == nil {
		t.Error("the drain has waited for an answer that does not come")
	}
	if root, _ := c.root(t, "n1", "set", 1); root.Status.Code != 2 {
		t.Errorf("%+v", *root)
	}
}
