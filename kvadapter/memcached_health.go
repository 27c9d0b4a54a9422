package kvadapter

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// downAfter is the calls in a row that a server fails before it counts as down.
	downAfter = 3
	// probeEvery is how often a server that is down is asked whether it is back.
	probeEvery = 100 * time.Millisecond
)

// memcachedHealth keeps calls from a server that is down. One that hangs (stopped,
// swapping, its host gone without a word) costs each caller the whole timeout, one
// that refuses connections a look-up of its name and a dial. So after downAfter
// failures in a row calls fail at once, until a probe is answered: no caller waits
// to find out.
type memcachedHealth struct {
	ask      func() error          // a probe: nil if the server answers
	failures atomic.Int64          // calls in a row
	down     atomic.Pointer[error] // why calls are not made; nil while they are

	mu      sync.Mutex // guards what follows, and changes of down
	watch   func(why error)
	closing chan struct{} // closed by close
	probing sync.WaitGroup
}

// failed takes note of n calls that had no answer, or none that makes sense.
func (h *memcachedHealth) failed(n int, why error) {
	if h.failures.Add(int64(n)) < downAfter || h.down.Load() != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.closing:
		return
	default:
	}
	if h.down.Load() == nil {
		h.turn(why)
		h.probing.Go(h.probe)
	}
}

// answered takes note of a call that had an answer.
func (h *memcachedHealth) answered() {
	if h.failures.Load() != 0 {
		h.failures.Store(0)
	}
}

// turn takes the server down, or up again if why is nil. The caller holds mu.
func (h *memcachedHealth) turn(why error) {
	if why == nil {
		h.failures.Store(0)
		h.down.Store(nil)
	} else {
		h.down.Store(&why)
	}
	if h.watch != nil {
		h.watch(why)
	}
}

// probe runs until the server answers.
func (h *memcachedHealth) probe() {
	ticks := time.NewTicker(probeEvery)
	defer ticks.Stop()
	for {
		select {
		case <-h.closing:
			return
		case <-ticks.C:
		}
		if h.ask() == nil {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.turn(nil)
			return
		}
	}
}

// watchWith has fn told when the server goes down, and why, and when it is up again.
func (h *memcachedHealth) watchWith(fn func(why error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watch = fn
}

// close ends probing. It waits for a probe that is under way.
func (h *memcachedHealth) close() {
	h.mu.Lock()
	select {
	case <-h.closing:
	default:
		close(h.closing)
	}
	h.mu.Unlock()
	h.probing.Wait()
}

// memcachedLatency counts how long calls took.
type memcachedLatency struct {
	buckets [LatencyBuckets]atomic.Uint64
	sum     atomic.Int64 // nanoseconds
}

func (l *memcachedLatency) add(n int, took time.Duration) {
	us := uint64(max(took, 0) / time.Microsecond)
	l.buckets[min(bits.Len64(us), LatencyBuckets-1)].Add(uint64(n))
	l.sum.Add(int64(n) * int64(took))
}

func (l *memcachedLatency) snapshot() (out Latency) {
	for i := range l.buckets {
		out.Buckets[i] = l.buckets[i].Load()
	}
	out.Sum = time.Duration(l.sum.Load())
	return out
}
