package otlp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune"
)

// told gathers what an Exporter tells.
type told struct {
	Counts
	said chan error
}

func open(t *testing.T, url string) (*Exporter, *told) {
	to := &told{said: make(chan error, 100)}
	x := New(Options{Endpoint: url, Counts: &to.Counts, Told: func(err error) { to.said <- err }})
	t.Cleanup(func() {
		select {
		case <-x.stop:
		default:
			x.Close()
		}
	})
	return x, to
}

func ended(x *Exporter, n int) {
	for i := range n {
		tr := attune.NewTrace(fmt.Sprint(i), x.Add)
		tr.Ended("phase", "it ended")
		tr.End("")
	}
}

// The wire, to the letter: this is what collectors read.
func TestEncodeGolden(t *testing.T) {
	tr := attune.NewTrace("set", nil)
	tr.Began = time.Unix(1, 5)
	tr.ID = attune.SpanContext{Trace: [16]byte{0xab, 15: 1}, Span: attune.SpanID{0xcd}}
	tr.Under(attune.SpanContext{Trace: [16]byte{0xef, 15: 2}, Span: attune.SpanID{7: 9}})
	tr.About = []attune.Attr{{Key: "attune.verb", Value: "set"}}
	got := string(encode([]attune.Attr{{Key: "service.name", Value: "attune"}}, []*attune.Trace{tr}))
	want := `{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"attune"}}]},` +
		`"scopeSpans":[{"scope":{"name":"attune"},"spans":[{"traceId":"ef000000000000000000000000000002","spanId":"cd00000000000000",` +
		`"parentSpanId":"0000000000000009","name":"set","kind":2,"startTimeUnixNano":"1000000005","endTimeUnixNano":"1000000005",` +
		`"attributes":[{"key":"attune.verb","value":{"stringValue":"set"}}]}]}]}]}`
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if path := os.Getenv("OTLP_DUMP"); path != "" {
		tr := attune.NewTrace("incr", nil)
		tr.Note("a moment")
		span := tr.NewSpan()
		tr.Left(span.Span, "forward", "sent")
		tr.End("it failed")
		os.WriteFile(path, encode([]attune.Attr{{Key: "service.name", Value: "attune"}}, []*attune.Trace{tr}), 0o600)
	}
}

// What is away at the end was not answered, and has a span all the same: what another
// controller tells of it hangs there.
func TestEncodeWhatIsNotAnswered(t *testing.T) {
	tr := attune.NewTrace("incr", nil)
	tr.Note("a moment")
	span := tr.NewSpan()
	tr.Left(span.Span, "forward", "sent")
	tr.End("it failed")
	tr.Note("too late")
	spans := appendSpans(nil, tr)
	if len(spans) != 2 || spans[0].Status == nil || spans[0].Status.Code != 2 || spans[0].Status.Message != "it failed" || len(spans[0].Events) != 2 {
		t.Fatalf("%+v", spans)
	}
	if s := spans[1]; s.Parent != spans[0].SpanID || s.Kind != 3 || s.Name != "forward" || s.SpanID != fmt.Sprintf("%x", span.Span[:]) {
		t.Errorf("%+v", s)
	}
}

// A collector that is not ready gets the same batch again; one that refuses does not.
func TestSendAgain(t *testing.T) {
	var asked atomic.Int64
	var first []byte
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch n := asked.Add(1); {
		case n == 1:
			first = body
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
		case n == 2 && !bytes.Equal(body, first):
			t.Errorf("then %s, first %s", body, first)
		case n == 3:
			http.Error(w, "not here", http.StatusNotFound)
		case n == 4:
			io.WriteString(w, `{"partialSuccess":{"rejectedSpans":"2","errorMessage":"too old"}}`)
		}
	}))
	defer s.Close()
	x, to := open(t, s.URL)
	ended(x, 3)
	if err := <-to.said; err == nil || !strings.Contains(err.Error(), "503") {
		t.Error(err)
	}
	if err := <-to.said; err != nil || asked.Load() != 2 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
	ended(x, 1)
	if err := <-to.said; !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "404") || !strings.Contains(err.Error(), "not here") {
		t.Error(err)
	}
	ended(x, 1) // is rejected; nothing is told, as nothing has gone well since
	x.Close()
	if sent, dropped := to.Sent.Load(), to.Dropped.Load(); sent != 3 || dropped != 2 || asked.Load() != 4 || len(to.said) != 0 {
		t.Errorf("%d sent, %d dropped in %d requests, %d more told", sent, dropped, asked.Load(), len(to.said))
	}
	ended(x, 1)
	if to.Dropped.Load() != 3 {
		t.Error("what comes after the end is not counted")
	}
}

// Close sends what waits, in batches.
func TestCloseSends(t *testing.T) {
	var posts, spans atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		posts.Add(1)
		spans.Add(int64(bytes.Count(body, []byte(`"spanId"`))))
	}))
	defer s.Close()
	x, to := open(t, s.URL)
	ended(x, 1000)
	x.Close()
	if to.Sent.Load() != 1000 || spans.Load() != 2000 || posts.Load() > 10 {
		t.Errorf("%d sent, %d spans in %d requests", to.Sent.Load(), spans.Load(), posts.Load())
	}
}

// Add never waits, and Close not for long.
func TestHungCollector(t *testing.T) {
	hung := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	defer s.Close()
	defer close(hung)
	x, to := open(t, s.URL)
	ended(x, 2*queueLen)
	if n := to.Dropped.Load(); n < queueLen-batchLen {
		t.Errorf("%d were dropped", n)
	}
	began := time.Now()
	x.Close()
	if took := time.Since(began); took > closeTimeout+time.Second || to.Dropped.Load() != 2*queueLen {
		t.Errorf("closed after %v, %d dropped", took, to.Dropped.Load())
	}
}
