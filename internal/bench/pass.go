package bench

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	never = math.MaxInt64
	// tick is how often a worker that has nothing else to do looks at the clock.
	tick = 20 * time.Millisecond
)

// Latencies are recorded in nanoseconds to three digits.
const (
	shortest = 100
	longest  = int64(10 * time.Minute)
)

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(shortest, longest, 3) }

// A pass is one stretch of load on one target. Requests are numbered from 0; an
// open loop sends number n on connection n modulo their count.
type pass struct {
	stage   string
	prefill bool  // number n sets key n, instead of what the mix draws
	depth   int   // requests in flight per connection
	limit   int64 // numbers to use; never is no limit
	timeout int64 // nanoseconds

	interval float64 // nanoseconds from one number to the next; 0 is a closed loop
	start    int64
	end      atomic.Int64 // nothing later starts; moved forward by a cancel
	taken    atomic.Int64 // numbers handed out in a closed loop; may pass limit
}

// newPass is a stretch of the load that o describes: for a time, for a number of
// requests, or for what ends first. 0 is no bound.
func newPass(o *Options, stage string, d time.Duration, ops int64) *pass {
	p := &pass{stage: stage, depth: o.Pipeline, limit: never, timeout: int64(o.Timeout)}
	if ops > 0 {
		p.limit = ops
	}
	if o.Rate > 0 {
		p.interval = float64(time.Second) / float64(o.Rate)
	}
	p.start = clock()
	p.end.Store(never)
	if d > 0 {
		p.end.Store(p.start + int64(d))
	}
	if p.interval > 0 && ops > 0 {
		p.end.Store(min(p.end.Load(), p.due(ops)))
	}
	return p
}

// due is when an open loop intends to send number n.
func (p *pass) due(n int64) int64 { return p.start + int64(float64(n)*p.interval) }

// take reserves up to n numbers of a closed loop.
func (p *pass) take(n int64) (first, got int64) {
	first = p.taken.Add(n) - n
	return first, max(0, min(n, p.limit-first))
}

// spent reports that a closed loop has no numbers left.
func (p *pass) spent() bool { return p.taken.Load() >= p.limit }

// cut ends the pass now.
func (p *pass) cut() {
	now := clock()
	for {
		end := p.end.Load()
		if end <= now || p.end.CompareAndSwap(end, now) {
			return
		}
	}
}

// tally is what happened.
type tally struct {
	hits, misses, stored int64 // the last counts incrs too
	errors               int64 // refusals, wrong replies, and what was in flight on a lost connection
	unanswered           int64 // intended, and given up when the pass ended
	lost                 int64 // connections
	firstErr             string
}

func (c *tally) add(d *tally) {
	c.hits += d.hits
	c.misses += d.misses
	c.stored += d.stored
	c.errors += d.errors
	c.unanswered += d.unanswered
	c.lost += d.lost
	if c.firstErr == "" {
		c.firstErr = d.firstErr
	}
}

// ops counts the replies that were what they should be.
func (c *tally) ops() int64 { return c.hits + c.misses + c.stored }

// A worker is one thread of a pass, with the connections it drives.
type worker struct {
	p       *pass
	streams []*stream // by id
	alive   int       // streams with a connection

	tally
	get, set *hdrhistogram.Histogram
	flying   int   // requests in flight on all streams
	moved    int64 // when the last reply came, or the first request after an idle time went

	answered atomic.Int64 // for the progress bar; a copy, written now and then
}

// count records the reply to r.
func (w *worker) count(r *request, a answer, now int64) {
	w.flying--
	w.moved = now
	switch a.kind {
	case hit:
		w.hits++
	case miss:
		w.misses++
	case stored:
		w.stored++
	case refused:
		if w.errors++; w.firstErr == "" {
			w.firstErr = string(a.text)
		}
		return // a refusal may be quick; the latency of work is what counts
	}
	h := w.get
	if r.verb != verbGet {
		h = w.set
	}
	// Cannot fail within the bounds that the histogram was made with.
	_ = h.RecordValue(min(max(now-r.at, 0), longest))
}

// drop gives a connection up because of err. What was in flight counts as
// errors; what an open loop still had for it goes unanswered.
func (w *worker) drop(s *stream, err error) {
	if w.firstErr == "" {
		w.firstErr = fmt.Sprintf("connection %d: %v", s.id, err)
	}
	w.lost++
	w.errors += int64(s.flying)
	w.flying -= s.flying
	s.flying = 0
	w.unanswered += s.owed()
	w.unlink(s)
}

func (w *worker) unlink(s *stream) {
	s.link.close()
	s.link = nil
	w.alive--
}

// done reports whether the worker may return. When it has waited long enough it
// gives up what is unanswered, together with the connections: a reply that came
// later would be taken for another's.
func (w *worker) done(now int64) bool {
	if w.alive == 0 {
		return true
	}
	end := w.p.end.Load()
	late := now > end && now-end > w.p.timeout
	silent := w.flying > 0 && now-w.moved > w.p.timeout
	if late || silent {
		if w.firstErr == "" && silent {
			w.firstErr = fmt.Sprintf("no reply for %s", time.Duration(w.p.timeout))
		}
		for _, s := range w.streams {
			if s.link == nil {
				continue
			}
			if n := s.owed(); n > 0 {
				w.unanswered += n
				w.flying -= s.flying
				w.unlink(s)
			}
		}
		return true
	}
	if now < end && (w.p.interval > 0 || !w.p.spent()) {
		return false // the usual case, without a look at every stream
	}
	for _, s := range w.streams {
		if s.link != nil && !s.finished(now) {
			return false
		}
	}
	return true
}

// outcome is a pass summed over its workers.
type outcome struct {
	tally
	get, set *hdrhistogram.Histogram
	elapsed  time.Duration
}

// run drives the target through the pass. Canceling ctx ends it early, with
// what was measured until then.
func (t *target) run(ctx context.Context, p *pass) *outcome {
	workers := make([]*worker, min(t.o.Threads, len(t.streams)))
	for i := range workers {
		workers[i] = &worker{p: p, moved: p.start, get: newHistogram(), set: newHistogram()}
	}
	for i, s := range t.streams {
		w := workers[i%len(workers)]
		w.streams = append(w.streams, s)
		if s.link != nil {
			w.alive++
		}
		s.enter(w, len(w.streams)-1)
	}

	stop := context.AfterFunc(ctx, p.cut)
	defer stop()
	var all, progress sync.WaitGroup
	finished := make(chan struct{}) // closed when the last worker has returned
	if t.o.Progress != nil {
		progress.Go(func() { t.report(p, workers, finished) })
	}
	for _, w := range workers {
		all.Go(func() { t.driver.run(w) })
	}
	all.Wait()
	close(finished)
	progress.Wait()

	sum := &outcome{get: newHistogram(), set: newHistogram()}
	last := p.start
	if end := p.end.Load(); end != never && (p.interval > 0 || !p.spent()) {
		last = end // the silence before it is part of the measurement
	}
	for _, w := range workers {
		sum.add(&w.tally)
		sum.get.Merge(w.get)
		sum.set.Merge(w.set)
		last = max(last, w.moved)
	}
	sum.elapsed = time.Duration(last - p.start)
	return sum
}

// report calls Progress until the pass is finished.
func (t *target) report(p *pass, workers []*worker, finished <-chan struct{}) {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	end := p.end.Load()
	for {
		var n int64
		for _, w := range workers {
			n += w.answered.Load()
		}
		passed := clock() - p.start
		now := Progress{Stage: p.stage, Rate: float64(n) / max(time.Duration(passed).Seconds(), 1e-3)}
		if p.limit != never {
			now.Fraction = float64(n) / float64(p.limit)
		}
		if end != never {
			now.Fraction = max(now.Fraction, float64(passed)/float64(end-p.start))
		}
		now.Fraction = min(now.Fraction, 1)
		t.o.Progress(now)
		select {
		case <-finished:
			return
		case <-ticker.C:
		}
	}
}
