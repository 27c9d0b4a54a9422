package otlp

import (
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"

	"github.com/attunekv/attune"
)

// What follows are the messages of opentelemetry/proto/collector/trace/v1, with the
// fields that are used here, as OTLP has them in JSON: ids in hexadecimal, numbers of 64
// bits as strings, enumerations as numbers.
type (
	request struct {
		ResourceSpans []resourceSpans `json:"resourceSpans"`
	}
	resourceSpans struct {
		Resource   resource     `json:"resource"`
		ScopeSpans []scopeSpans `json:"scopeSpans"`
	}
	resource struct {
		Attributes []attribute `json:"attributes"`
	}
	scopeSpans struct {
		Scope scope  `json:"scope"`
		Spans []span `json:"spans"`
	}
	scope struct {
		Name string `json:"name"`
	}
	span struct {
		TraceID    string      `json:"traceId"`
		SpanID     string      `json:"spanId"`
		Parent     string      `json:"parentSpanId,omitempty"`
		Name       string      `json:"name"`
		Kind       int         `json:"kind"`
		Start      string      `json:"startTimeUnixNano"`
		End        string      `json:"endTimeUnixNano"`
		Attributes []attribute `json:"attributes,omitempty"`
		Events     []moment    `json:"events,omitempty"`
		Status     *status     `json:"status,omitempty"`
	}
	attribute struct {
		Key   string `json:"key"`
		Value value  `json:"value"`
	}
	value struct {
		String string `json:"stringValue"`
	}
	moment struct {
		Time string `json:"timeUnixNano"`
		Name string `json:"name"`
	}
	status struct {
		Code    int    `json:"code"`
		Message string `json:"message,omitempty"`
	}
	response struct {
		PartialSuccess struct {
			Rejected json.Number `json:"rejectedSpans"`
			Message  string      `json:"errorMessage"`
		} `json:"partialSuccess"`
	}
)

// Kinds of spans, and the status of one that failed.
const (
	kindInternal = 1
	kindServer   = 2
	kindClient   = 3
	statusError  = 2
)

// encode is the body of a request with traces, of a process that about describes.
func encode(about []attune.Attr, traces []*attune.Trace) []byte {
	var spans []span
	for _, t := range traces {
		spans = appendSpans(spans, t)
	}
	body, err := json.Marshal(request{[]resourceSpans{{
		Resource:   resource{attributes(about)},
		ScopeSpans: []scopeSpans{{Scope: scope{"attune"}, Spans: spans}},
	}}})
	if err != nil {
		panic(err) // there is nothing in it that could not be encoded
	}
	return body
}

// appendSpans appends a span of all of t, with the moments that it noted, and under it
// one of each phase.
func appendSpans(spans []span, t *attune.Trace) []span {
	took, failed := t.Outcome()
	at := func(d time.Duration) string { return strconv.FormatInt(t.Began.UnixNano()+int64(d), 10) }
	id := hex.EncodeToString(t.ID.Trace[:])
	whole := span{
		TraceID: id, SpanID: hex.EncodeToString(t.ID.Span[:]), Name: t.Name, Kind: kindServer,
		Start: at(0), End: at(took), Attributes: attributes(t.About),
	}
	if t.Parent != (attune.SpanID{}) {
		whole.Parent = hex.EncodeToString(t.Parent[:])
	}
	if failed != "" {
		whole.Status = &status{statusError, failed}
	}
	first := len(spans)
	spans = append(spans, whole)
	for _, s := range t.Steps() {
		if s.Phase == "" {
			spans[first].Events = append(spans[first].Events, moment{at(s.At), s.Text})
			continue
		}
		kind := kindInternal
		if s.Away {
			kind = kindClient
		}
		spans = append(spans, span{
			TraceID: id, SpanID: hex.EncodeToString(s.Span[:]), Parent: whole.SpanID, Name: s.Phase, Kind: kind,
			Start: at(s.From), End: at(s.At), Attributes: attributes([]attune.Attr{{Key: "attune.step", Value: s.Text}}),
		})
	}
	return spans
}

func attributes(about []attune.Attr) []attribute {
	all := make([]attribute, len(about))
	for i, a := range about {
		all[i] = attribute{a.Key, value{a.Value}}
	}
	return all
}
