package replica

import (
	"sync/atomic"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

const (
	// hotOverhead is what an entry of the cache takes besides its value, measured.
	hotOverhead = 160
	// hotShare is the part of the cache that one value may take.
	hotShare = 64
)

// hot keeps bytes that are read again and again, in front of a backend outside
// this process. It is not asked what is current: the index is, and bytes with
// another stamp than it names are no hit. So nothing needs to be taken out of it,
// whatever becomes of a key, and it is as coherent as the index.
//
// As long as there is room, a value gets in by being written or read. From when one
// had to go for another, it gets in when it is read for the second time since it was
// written, if the cache then finds it worth what must go for it; and one that
// replaces what is in gets in by being written. All work is done by who calls: it has no
// goroutine, and nothing to close.
type hot struct {
	cache   *otter.Cache[attune.KeyHash, kvadapter.Record]
	most    atomic.Int64 // bytes of a value
	evicted evictions
}

// evictions counts them, and nothing else that the cache would have counted.
type evictions struct {
	stats.NoopRecorder
	n    atomic.Int64
	full atomic.Bool // there was one since the cache had its size
}

// RecordEviction implements stats.Recorder.
func (e *evictions) RecordEviction(uint32) {
	e.n.Add(1)
	e.full.Store(true)
}

// newHot returns a cache of so many bytes, or nil for 0.
func newHot(bytes int64) *hot {
	if bytes <= 0 {
		return nil
	}
	h := new(hot)
	h.most.Store(bytes / hotShare)
	h.cache = otter.Must(&otter.Options[attune.KeyHash, kvadapter.Record]{
		MaximumWeight: uint64(bytes),
		Weigher: func(_ attune.KeyHash, rec kvadapter.Record) uint32 {
			return uint32(cap(rec.Value) + hotOverhead)
		},
		Executor:      func(task func()) { task() },
		StatsRecorder: &h.evicted,
	})
	return h
}

// resize makes the cache larger or smaller; what is in it stays, if there is room.
func (h *hot) resize(bytes int64) {
	h.most.Store(bytes / hotShare)
	h.evicted.full.Store(false)
	h.cache.SetMaximum(uint64(bytes))
}

// get returns what is kept for a key, of whatever version.
func (h *hot) get(key attune.KeyHash) (kvadapter.Record, bool) {
	if h == nil {
		return kvadapter.Record{}, false
	}
	return h.cache.GetIfPresent(key)
}

// add offers a record to the cache. A Value shorter than [kvadapter.Large] is
// copied, as it may be part of something larger.
func (h *hot) add(key attune.KeyHash, rec kvadapter.Record) {
	if h == nil || int64(len(rec.Value)) > h.most.Load() {
		return
	}
	if len(rec.Value) < kvadapter.Large {
		rec.Value = append(make([]byte, 0, len(rec.Value)), rec.Value...)
	}
	h.cache.Set(key, rec)
}

// roomy reports whether nothing had to go for another value yet.
func (h *hot) roomy() bool { return h != nil && !h.evicted.full.Load() }

// replace puts rec, whose Value is never modified, in the place of what is kept
// for a key, if anything is or there is room.
func (h *hot) replace(key attune.KeyHash, rec kvadapter.Record) {
	if h == nil {
		return
	}
	if int64(len(rec.Value)) > h.most.Load() {
		h.drop(key)
		return
	}
	if h.roomy() {
		h.cache.Set(key, rec)
		return
	}
	h.cache.ComputeIfPresent(key, func(kvadapter.Record) (kvadapter.Record, otter.ComputeOp) {
		return rec, otter.WriteOp
	})
}

// drop makes room. That the bytes are of no use any more is said by the index.
func (h *hot) drop(key attune.KeyHash) {
	if h != nil {
		h.cache.Invalidate(key)
	}
}

// size is the bytes it takes.
func (h *hot) size() int64 {
	if h == nil {
		return 0
	}
	return int64(h.cache.WeightedSize())
}

// evictions is how many values went for others.
func (h *hot) evictions() int64 {
	if h == nil {
		return 0
	}
	return h.evicted.n.Load()
}
