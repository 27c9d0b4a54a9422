package controller

import (
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune/kvadapter"
)

const (
	// lookEvery is how often a node looks after itself and the other members.
	lookEvery = time.Second
	// sampleLooks is every how many looks a sample is taken, and maxSamples how many
	// are kept: those of 15 minutes.
	sampleLooks = 5
	maxSamples  = int(15 * time.Minute / (sampleLooks * lookEvery))
	// quiet is for how long no command may have failed before it is an event again.
	quiet = time.Minute
)

// figure is a number of a sample, or none if negative. It is written with four digits,
// as a page has thousands of them.
type figure float32

const none figure = -1

var (
	_ json.Marshaler   = none
	_ json.Unmarshaler = (*figure)(nil)
)

// MarshalJSON implements json.Marshaler.
func (f figure) MarshalJSON() ([]byte, error) {
	if f < 0 {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, float64(f), 'g', 4, 32), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (f *figure) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		*f = none
		return nil
	}
	v, err := strconv.ParseFloat(string(text), 32)
	*f = figure(v)
	return err
}

// The figures of a sample: of the time since the one before, or of the moment.
const (
	figureReads     = iota // commands that read, per second
	figureWrites           // all others
	figureFailed           // SERVER_ERRORs per second
	figureHits             // of all keys read, 0 to 1
	figureReadP50          // latency in milliseconds
	figureReadP99          //
	figureReadP999         //
	figureWriteP50         //
	figureWriteP99         //
	figureWriteP999        //
	figureBehind           // log entries, or changes, that are to come here
	figureAhead            // the most of them that are here, and not at a member
	figureDiffering        // live members whose copy is not the one here
	numFigures
)

var figureNames = [numFigures]string{
	"reads", "writes", "failed", "hits", "read_p50", "read_p99", "read_p999", "write_p50", "write_p99", "write_p999", "behind", "ahead", "differing",
}

// samples are what the web page draws, of the last 15 minutes, in memory that does not
// grow.
type samples struct {
	mu      sync.Mutex // guards what follows
	at      [maxSamples]int64
	figures [numFigures][maxSamples]figure
	oldest  int
	n       int
	stores  []storeView // of the newest sample

	// What follows is of the goroutine that takes samples.
	before counted
	failed time.Time                    // when commands were last seen to have failed
	known  map[string]string            // members, and their states
	health string                       // of this node
	seen   map[string]kvadapter.Latency // by server of the backend
}

// latencies is a histogram of counters or of kvadapter.
type latencies [latencyBuckets]uint64

// counted is what is counted since the start, at one moment.
type counted struct {
	at            time.Time
	totals        totals
	reads, writes latencies
}

func (n *Node) count(now time.Time) counted {
	c := counted{at: now, totals: n.totals()}
	for i := range n.stripes {
		for cl := range n.stripes[i].latency {
			sum := &c.writes
			if class(cl) == classGet {
				sum = &c.reads
			}
			for b := range sum {
				sum[b] += n.stripes[i].latency[cl].buckets[b].Load()
			}
		}
	}
	return c
}

// since is what came after before, and how many. Who counts less than before has begun
// anew: a server of the backend that was replaced.
func (l latencies) since(before latencies) (diff latencies, n uint64) {
	for b := range l {
		if diff[b] = l[b]; l[b] >= before[b] {
			diff[b] -= before[b]
		}
		n += diff[b]
	}
	return diff, n
}

// quantile is how many milliseconds the q-th part of what is counted took at most, as
// far as buckets tell that double from one to the next; none if nothing is counted.
func (l latencies) quantile(q float64) figure {
	var n uint64
	for _, count := range l {
		n += count
	}
	if n == 0 {
		return none
	}
	rank := q * float64(n)
	below := 0.0
	for b, count := range l {
		if count > 0 && below+float64(count) >= rank {
			from, to := 0.0, 1.0
			if b > 0 {
				from, to = float64(uint64(1)<<(b-1)), float64(uint64(1)<<b)
			}
			if b == latencyBuckets-1 { // it has no end
				to = from
			}
			return figure((from + (to-from)*(rank-below)/float64(count)) / 1000)
		}
		below += float64(count)
	}
	return none
}

// figuresOf is a sample of what was counted between two moments.
func figuresOf(before, now *counted) (f [numFigures]figure) {
	seconds := max(now.at.Sub(before.at).Seconds(), 1e-3)
	delta := func(c counter) float64 { return float64(now.totals.n[c] - before.totals.n[c]) }
	reads, nr := now.reads.since(before.reads)
	writes, nw := now.writes.since(before.writes)
	f[figureReads], f[figureWrites] = figure(float64(nr)/seconds), figure(float64(nw)/seconds)
	f[figureFailed] = figure(delta(backendErrors) / seconds)
	f[figureHits] = none
	if all := delta(getHits) + delta(getMisses); all > 0 {
		f[figureHits] = figure(delta(getHits) / all)
	}
	f[figureReadP50], f[figureReadP99], f[figureReadP999] = reads.quantile(.5), reads.quantile(.99), reads.quantile(.999)
	f[figureWriteP50], f[figureWriteP99], f[figureWriteP999] = writes.quantile(.5), writes.quantile(.99), writes.quantile(.999)
	f[figureBehind], f[figureAhead], f[figureDiffering] = none, none, none
	return f
}

// add keeps a sample.
func (s *samples) add(at time.Time, f [numFigures]figure, stores []storeView) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := (s.oldest + s.n) % maxSamples
	if s.n == maxSamples {
		s.oldest = (s.oldest + 1) % maxSamples
	} else {
		s.n++
	}
	s.at[i], s.stores = at.UnixMilli(), stores
	for k := range f {
		s.figures[k][i] = f[k]
	}
}

// columns is each figure's samples by name, the oldest first; at is when they were
// taken, in unix milliseconds.
func (s *samples) columns() (at []int64, figures map[string][]figure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, figures = make([]int64, s.n), make(map[string][]figure, numFigures)
	for k, name := range figureNames {
		column := make([]figure, s.n)
		for i := range column {
			column[i] = s.figures[k][(s.oldest+i)%maxSamples]
		}
		figures[name] = column
	}
	for i := range at {
		at[i] = s.at[(s.oldest+i)%maxSamples]
	}
	return at, figures
}

// observe looks after the node until it ends.
func (n *Node) observe() {
	ticks := time.NewTicker(lookEvery)
	defer ticks.Stop()
	n.samples.before = n.count(time.Now())
	for looks := 1; ; looks++ {
		select {
		case <-ticks.C:
		case <-n.ctx.Done():
			return
		}
		n.look()
		if looks%sampleLooks == 0 && n.health.Load() != nil {
			n.takeSample(time.Now())
		}
	}
}

// look logs what has changed since the last look, and nothing else tells of.
func (n *Node) look() {
	s := &n.samples
	if n.opened.Load() && !n.draining.Load() {
		health := ""
		if err := n.Ready(); err != nil {
			health = err.Error()
		}
		switch {
		case health == "" && s.health != "":
			n.log.Info("ready again")
		case health != "" && s.health == "":
			n.log.Warn("not ready: clients should go to another controller", zap.String("error", health))
		}
		s.health = health
	}
	c := n.cluster.Load()
	if c == nil {
		return
	}
	known := make(map[string]string)
	for _, m := range c.Members() {
		if m.Self {
			continue
		}
		state, was := stateOf(m), s.known[m.Name]
		known[m.Name] = state
		switch {
		case state == was:
		case state == stateFailed:
			n.log.Warn("a controller does not answer any more", zap.String("name", m.Name))
		case state == stateLeft:
			n.log.Info("a controller has left", zap.String("name", m.Name))
		case state == stateReady:
			n.log.Info("a controller is ready", zap.String("name", m.Name))
		default:
			n.log.Info("a controller is there, and not ready", zap.String("name", m.Name))
		}
	}
	s.known = known
}

// takeSample takes a sample of the time since the last one.
func (n *Node) takeSample(now time.Time) {
	s := &n.samples
	counted := n.count(now)
	f := figuresOf(&s.before, &counted)
	if f[figureFailed] > 0 {
		if now.Sub(s.failed) > quiet {
			n.log.Warn("commands end in SERVER_ERROR, as the engine or the backend fails", zap.Uint64("count", counted.totals.n[backendErrors]-s.before.totals.n[backendErrors]))
		}
		s.failed = now
	}
	s.before = counted
	if g, ok := n.group(); ok {
		st := g.Status()
		f[figureBehind] = figure(max(int64(st.Commit)-int64(st.Applied), 0))
		if st.Role == "leader" { // who else knows nothing of the others
			f[figureAhead] = 0
			for _, m := range st.Members {
				f[figureAhead] = max(f[figureAhead], figure(int64(st.Last)-int64(m.Match)))
			}
		}
	} else if gossip, ok := n.gossiping(); ok {
		f[figureBehind], f[figureAhead], f[figureDiffering] = 0, 0, 0
		for _, p := range gossip.Status().Peers {
			if p.Heard < 0 {
				continue // nothing is known of it
			}
			f[figureBehind], f[figureAhead] = max(f[figureBehind], figure(p.Behind)), max(f[figureAhead], figure(p.Lag))
			if p.Alive && !p.Equal {
				f[figureDiffering]++
			}
		}
	}
	s.add(now, f, n.sampleStores())
}

// sampleStores is how the servers of backends are; their latencies are those since the
// last sample.
func (n *Node) sampleStores() (all []storeView) {
	seen := make(map[string]kvadapter.Latency)
	for _, server := range n.fleetServers() {
		since, _ := latencies(server.Latency.Buckets).since(n.samples.seen[server.Addr].Buckets)
		seen[server.Addr] = server.Latency
		all = append(all, storeView{Server: server.Addr, P50: since.quantile(.5), P99: since.quantile(.99)})
	}
	n.samples.seen = seen
	return all
}
