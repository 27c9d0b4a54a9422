package controller

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/otlp"
)

// tracer has some commands traced, and what other controllers ask for as a part of
// commands that they trace, and gives it all to a collector.
type tracer struct {
	exporter *otlp.Exporter
	endpoint string
	sample   float64 // of the commands of clients
}

// trace goes over to the tracer that c wants.
func (n *Node) trace(c *Config) {
	was := n.tracer.Load()
	var next *tracer
	switch {
	case c.TraceEndpoint == "":
	case was != nil && was.endpoint == c.TraceEndpoint:
		next = &tracer{was.exporter, was.endpoint, c.TraceSample}
	default:
		url, _ := traceURL(c.TraceEndpoint) // it was validated
		next = &tracer{n.newExporter(url), c.TraceEndpoint, c.TraceSample}
	}
	n.tracer.Store(next)
	if was != nil && (next == nil || next.exporter != was.exporter) {
		n.background.Go(was.exporter.Close) // a collector that hangs is not waited for here
	}
}

func (n *Node) newExporter(url string) *otlp.Exporter {
	return otlp.New(otlp.Options{
		Endpoint: url,
		About: []attune.Attr{
			{Key: "service.name", Value: "attune"},
			{Key: "service.instance.id", Value: n.cfg.Name},
			{Key: "service.version", Value: n.cfg.Version},
		},
		Counts: &n.traceCounts,
		Told: func(err error) {
			if err != nil {
				n.log.Warn("traces cannot be sent; see trace-endpoint. Those that wait too long are dropped, and counted in attune_traces_total",
					zap.String("endpoint", url), zap.Error(err))
			} else {
				n.log.Info("traces are sent again", zap.String("endpoint", url))
			}
		},
	})
}

var errTraceURL = errors.New("want the URL of a collector, such as http://127.0.0.1:4318")

// traceURL is where to post traces to; empty for nowhere.
func traceURL(endpoint string) (string, error) {
	if endpoint == "" {
		return "", nil
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return "", fmt.Errorf("%w, have %q", errTraceURL, endpoint)
	case u.User != nil:
		return "", fmt.Errorf("%w, without a password, which anybody could read at /config: a collector on this machine can pass traces on with one", errTraceURL)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return u.String(), nil
}

// picks reports whether at least one of so many commands is to be traced.
func (t *tracer) picks(commands int) bool {
	for range commands {
		if rand.Float64() < t.sample {
			return true
		}
	}
	return false
}

// keep is what exports a trace when it has ended; nil if nobody wants it.
func (n *Node) keep() func(*attune.Trace) {
	if t := n.tracer.Load(); t != nil {
		return t.exporter.Add
	}
	return nil
}

// newTrace begins a trace.
func (n *Node) newTrace(name string, keep func(*attune.Trace)) *attune.Trace {
	t := attune.NewTrace(name, keep)
	t.About = append(t.About, attune.Attr{Key: "attune.level", Value: n.cfg.Level.String()})
	return t
}

// aboutOps says that a trace is of op and others, so many in all, on a shard. Of its key
// it says no more than a hash, which is keyed: keys may tell of people.
func aboutOps(t *attune.Trace, shard int, op *attune.Op, ops int) {
	t.About = append(t.About,
		attune.Attr{Key: "attune.verb", Value: verbNames[op.Verb]},
		attune.Attr{Key: "attune.ops", Value: strconv.Itoa(ops)},
		attune.Attr{Key: "attune.shard", Value: strconv.Itoa(shard)})
	if op.Verb != attune.Flush {
		t.About = append(t.About, attune.Attr{Key: "attune.key_hash", Value: fmt.Sprintf("%016x", op.Key.Hash[0])})
	}
}

// traceFor begins a trace of what another controller asks a shard for, as part of its
// span.
func (n *Node) traceFor(shard int, span attune.SpanContext, ops []attune.Op) *attune.Trace {
	keep := n.keep()
	if keep == nil || len(ops) == 0 {
		return nil
	}
	t := n.newTrace("forwarded "+verbNames[ops[0].Verb], keep)
	t.Under(span)
	aboutOps(t, shard, &ops[0], len(ops))
	return t
}

var verbNames = [...]string{
	attune.Get: "get", attune.Set: "set", attune.Add: "add", attune.Replace: "replace", attune.Append: "append", attune.Prepend: "prepend",
	attune.Delete: "delete", attune.Incr: "incr", attune.Decr: "decr", attune.Touch: "touch", attune.Flush: "flush",
}

// weigh decides whether the commands of the batch from the current one on that go to
// the engine together, so many, are traced, together. op is the first. It is called
// again for those that have waited.
func (s *session) weigh(op *attune.Op, ops int) {
	if s.weighed > s.next {
		return
	}
	s.weighed = s.next + ops
	if s.call.Trace != nil || !s.tracer.picks(ops) {
		return
	}
	t := s.node.newTrace(verbNames[op.Verb], s.tracer.exporter.Add)
	shard := 0 // a flush is of all, one after the other
	if op.Verb != attune.Flush {
		shard = slices.Index(s.node.shards, s.node.route(&op.Key))
	}
	aboutOps(t, shard, op, ops)
	s.call.Trace = t
}

// traced ends the trace of the current commands with the last of them.
func (s *session) traced(res *attune.Result) {
	if s.opsToTell > 1 {
		return
	}
	err := ""
	if res.Status == attune.Failed {
		err = res.Err.Error()
	}
	s.call.Trace.Note("answered")
	s.call.Trace.End(err)
	s.call.Trace = nil
}
