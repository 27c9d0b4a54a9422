package controller

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/protocol"
)

// counter names one figure that sessions count.
type counter uint8

const (
	cmdGet counter = iota
	cmdSet
	cmdTouch
	cmdFlush
	cmdMeta
	getHits
	getMisses
	getExpired
	deleteHits
	deleteMisses
	incrHits
	incrMisses
	decrHits
	decrMisses
	casHits
	casMisses
	casBadval
	touchHits
	touchMisses
	storeTooLarge
	storeNoMemory
	backendErrors
	bytesRead
	bytesWritten
	numCounters
)

// counterNames are the names of `stats`.
var counterNames = [numCounters]string{
	"cmd_get", "cmd_set", "cmd_touch", "cmd_flush", "cmd_meta",
	"get_hits", "get_misses", "get_expired", "delete_hits", "delete_misses",
	"incr_hits", "incr_misses", "decr_hits", "decr_misses",
	"cas_hits", "cas_misses", "cas_badval", "touch_hits", "touch_misses",
	"store_too_large", "store_no_memory", "backend_errors", "bytes_read", "bytes_written",
}

// class groups verbs for the latency histograms.
type class uint8

const (
	classGet class = iota
	classStore
	classDelete
	classArithmetic
	classTouch
	classFlush
	numClasses
)

var classNames = [numClasses]string{"get", "store", "delete", "arithmetic", "touch", "flush"}

func classOf(op *attune.Op) class {
	switch op.Verb {
	case attune.Get:
		if op.Mode.Has(attune.Retime) {
			return classTouch
		}
		return classGet
	case attune.Delete:
		return classDelete
	case attune.Incr, attune.Decr:
		return classArithmetic
	case attune.Touch:
		return classTouch
	case attune.Flush:
		return classFlush
	}
	return classStore
}

// latencyBuckets is how many histogram buckets there are: bucket i counts
// latencies up to 2^i microseconds, the last one everything.
const latencyBuckets = 25

// counters is one stripe of the node's counters. Sessions are dealt to stripes
// so that cores do not fight over cache lines; readers add the stripes up.
type counters struct {
	n       [numCounters]atomic.Uint64
	latency [numClasses]struct {
		buckets [latencyBuckets]atomic.Uint64
		sum     atomic.Uint64 // nanoseconds
	}
	_ [64]byte
}

// tally is what a session counted since it last told its stripe, without
// atomic operations: a pipeline of commands costs a stripe a few additions.
type tally struct {
	n       [numCounters]uint32
	dirty   uint32 // a bit per counter
	classes [numClasses]uint32
}

func (t *tally) add(c counter, n int) {
	t.n[c] += uint32(n)
	t.dirty |= 1 << c
}

// flush adds the tally to the stripe; every operation in it took took.
func (t *tally) flush(c *counters, took time.Duration) {
	t.flushCounts(c)
	us := uint64(max(took, 0) / time.Microsecond)
	bucket := min(bits.Len64(us), latencyBuckets-1)
	for i, n := range t.classes {
		if n > 0 {
			c.latency[i].buckets[bucket].Add(uint64(n))
			c.latency[i].sum.Add(uint64(n) * uint64(took))
			t.classes[i] = 0
		}
	}
}

// flushCounts is flush without the latencies, which are not known before the
// replies are written.
func (t *tally) flushCounts(c *counters) {
	for t.dirty != 0 {
		i := bits.TrailingZeros32(t.dirty)
		t.dirty &^= 1 << i
		c.n[i].Add(uint64(t.n[i]))
		t.n[i] = 0
	}
}

// op counts one executed operation the way memcached does.
func (t *tally) op(r *protocol.Request, res *attune.Result) {
	op := &r.Op
	if r.TooLarge { // a set that was refused; the Delete only cleans up after it
		t.classes[classStore]++
		t.add(cmdSet, 1)
		t.add(storeTooLarge, 1)
		return
	}
	t.classes[classOf(op)]++
	if r.Meta() {
		t.add(cmdMeta, 1)
	}
	switch res.Status {
	case attune.Failed:
		t.add(backendErrors, 1)
	case attune.TooLarge:
		t.add(storeTooLarge, 1)
	case attune.OutOfMemory:
		t.add(storeNoMemory, 1)
	}
	hit := res.Status == attune.Hit && !res.Absent
	switch op.Verb {
	case attune.Get:
		t.add(cmdGet, 1)
		t.either(hit, getHits, getMisses)
		if op.Mode.Has(attune.Retime) {
			t.add(cmdTouch, 1)
			t.either(hit, touchHits, touchMisses)
		}
	case attune.Touch:
		t.add(cmdTouch, 1)
		t.either(res.Status == attune.Touched, touchHits, touchMisses)
	case attune.Delete:
		t.either(res.Status == attune.Deleted, deleteHits, deleteMisses)
	case attune.Incr:
		t.either(res.Status == attune.Counted, incrHits, incrMisses)
	case attune.Decr:
		t.either(res.Status == attune.Counted, decrHits, decrMisses)
	case attune.Flush:
		t.add(cmdFlush, 1)
	default:
		t.add(cmdSet, 1)
		if op.Mode.Has(attune.IfCAS) {
			switch res.Status {
			case attune.Stored:
				t.add(casHits, 1)
			case attune.Exists:
				t.add(casBadval, 1)
			case attune.NotFound:
				t.add(casMisses, 1)
			}
		}
	}
}

func (t *tally) either(yes bool, hit, miss counter) {
	if yes {
		t.add(hit, 1)
	} else {
		t.add(miss, 1)
	}
}
