package otlp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
)

const (
	// queueLen is how many traces may wait, batchLen how many are sent together at most,
	// and linger how long one waits for others.
	queueLen = 2048
	batchLen = 200
	linger   = time.Second
	// postTimeout is for one request. tries is how often a batch is sent, if that may
	// help, with firstPause and then twice as long between.
	postTimeout = 5 * time.Second
	tries       = 4
	firstPause  = time.Second
	longPause   = 30 * time.Second
	// closeTimeout is how long Close lets what waits be sent.
	closeTimeout = 2 * time.Second
	// answerMost is how much of an answer is read.
	answerMost = 64 << 10
)

// Counts is what became of traces, over all exporters that share it.
type Counts struct{ Sent, Dropped atomic.Uint64 }

// Options say where an Exporter sends.
type Options struct {
	// Endpoint is the URL of a collector that is posted to.
	Endpoint string
	// About describes this process.
	About  []attune.Attr
	Counts *Counts
	// Told is told why traces could not be sent, for the first time after some were, and
	// with nil when they are again.
	Told func(error)
}

// Exporter sends traces to a collector.
type Exporter struct {
	o      Options
	client *http.Client
	queue  chan *attune.Trace
	stop   chan struct{} // closed by Close
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when run has returned
	ailing bool          // Told was told so
}

// New starts an Exporter.
func New(o Options) *Exporter {
	x := &Exporter{
		o: o, queue: make(chan *attune.Trace, queueLen), stop: make(chan struct{}), done: make(chan struct{}),
		client: &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()},
	}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	go x.run()
	return x
}

// Add has a trace sent that has ended, or drops it. It does not wait.
func (x *Exporter) Add(t *attune.Trace) {
	select {
	case <-x.stop:
		x.o.Counts.Dropped.Add(1)
		return
	default:
	}
	select {
	case x.queue <- t:
	default:
		x.o.Counts.Dropped.Add(1)
	}
}

// Close sends what waits, for two seconds at most, and drops the rest. It is called once.
func (x *Exporter) Close() {
	end := time.AfterFunc(closeTimeout, x.cancel)
	close(x.stop)
	<-x.done
	end.Stop()
	x.cancel()
	x.client.CloseIdleConnections()
}

func (x *Exporter) run() {
	defer close(x.done)
	for {
		batch := x.gather()
		if batch == nil {
			return
		}
		err := x.send(encode(x.o.About, batch))
		if err != nil {
			x.o.Counts.Dropped.Add(uint64(len(batch)))
		} else {
			x.o.Counts.Sent.Add(uint64(len(batch)))
		}
		x.tell(err)
	}
}

// gather returns what is to be sent next; nil if that is nothing any more.
func (x *Exporter) gather() []*attune.Trace {
	var batch []*attune.Trace
	select {
	case t := <-x.queue:
		batch = append(batch, t)
	case <-x.stop:
	}
	enough := time.NewTimer(linger)
	defer enough.Stop()
	for len(batch) < batchLen {
		select {
		case t := <-x.queue:
			batch = append(batch, t)
			continue
		default:
		}
		select {
		case t := <-x.queue:
			batch = append(batch, t)
			continue
		case <-enough.C:
		case <-x.stop: // what is still there was seen
		}
		break
	}
	return batch
}

// errRefused is an answer that will be no other next time.
var errRefused = errors.New("the collector refuses them")

// send posts a batch, again if that may help.
func (x *Exporter) send(body []byte) error {
	pause := firstPause
	for try := 1; ; try++ {
		after, err := x.post(body)
		if err == nil || errors.Is(err, errRefused) || try == tries {
			return err
		}
		x.tell(err)
		select {
		case <-time.After(min(max(pause, after), longPause)):
			pause *= 2
		case <-x.stop:
			return err
		}
	}
}

// post posts a batch once. after is how long the collector wants to be left alone.
func (x *Exporter) post(body []byte) (after time.Duration, err error) {
	ctx, cancel := context.WithTimeout(x.ctx, postTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, x.o.Endpoint, bytes.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errRefused, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := x.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, answerMost))
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After")) // a date is as good as none
		return time.Duration(seconds) * time.Second, fmt.Errorf("the collector answers %s", resp.Status)
	}
	if resp.StatusCode/100 != 2 {
		return 0, fmt.Errorf("%w: %s: %.200s", errRefused, resp.Status, bytes.TrimSpace(said))
	}
	if err != nil {
		return 0, nil // it has them
	}
	var r response
	if json.Unmarshal(said, &r) == nil && r.PartialSuccess.Rejected != "" && r.PartialSuccess.Rejected != "0" {
		return 0, fmt.Errorf("%w, %s spans of them: %.200s", errRefused, r.PartialSuccess.Rejected, r.PartialSuccess.Message)
	}
	return 0, nil
}

// tell tells whether traces can be sent, if that has changed.
func (x *Exporter) tell(err error) {
	if ailing := err != nil; ailing != x.ailing {
		x.ailing = ailing
		x.o.Told(err)
	}
}
