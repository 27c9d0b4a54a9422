package gossip

import (
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
)

const (
	epoch       = 1577836800000 // 2020-01-01 UTC in unix milliseconds
	nodeBits    = 10
	counterBits = 12
	timeShift   = nodeBits + counterBits
)

// versionAt is the smallest version that a clock showing unix milliseconds ms
// issues; millis is the opposite.
func versionAt(ms int64) attune.Version { return attune.Version(max(ms-epoch, 0)) << timeShift }

func millis(v attune.Version) int64 { return int64(v>>timeShift) + epoch }

// clock is a hybrid logical clock (Kulkarni et al., 2014, "Logical Physical
// Clocks"). Its physical part is the wall clock as it was at start plus the
// monotonic time since, and what it is slewed by: a stepped wall clock does not
// reach it, so it never jumps over a TTL, and goes back by slewStep at most at a
// time, when it is slewed; versions never do. (A fault that was injected has it jump:
// so a clock goes wrong that was right at start.) The price is that a
// wall clock that was wrong at start stays wrong here, as in memcached. One that
// has not been set at all counts from 2020.
type clock struct {
	mono  func() time.Duration // since some moment
	began int64                // unix milliseconds at that moment
	node  uint64               // ten bits that tell this clock from others
	wrong func() time.Duration // what a fault has it ahead
	// offset is what the clock was slewed by, in milliseconds.
	offset atomic.Int64
	// last is the newest version issued or observed, without the node: milliseconds
	// since 2020 and the counter. A counter that overflows carries into the
	// milliseconds, so more than 4096 versions in one run ahead of time.
	last atomic.Uint64
}

// newClock makes a clock for a node that shows unix milliseconds wall when mono is
// zero.
func newClock(node uint64, wall int64, mono func() time.Duration) *clock {
	return &clock{
		mono: mono, began: max(wall, epoch), node: node & (1<<nodeBits - 1),
		wrong: func() time.Duration { return 0 },
	}
}

// now is unix milliseconds.
func (c *clock) now() int64 { return c.at(c.mono()) }

// at is what now is when mono is that.
func (c *clock) at(mono time.Duration) int64 {
	return c.began + mono.Milliseconds() + c.offset.Load() + c.wrong().Milliseconds()
}

// next issues a version newer than every one before, than prior, and not older
// than now.
func (c *clock) next(now int64, prior attune.Version) attune.Version {
	if prior == attune.AnyVersion {
		prior = 0
	}
	v := c.raise(max(uint64(versionAt(now))>>nodeBits, uint64(prior)>>nodeBits+1), 1)
	return attune.Version(v<<nodeBits | c.node)
}

// observe has all versions issued from now on be newer than v.
func (c *clock) observe(v attune.Version) { c.raise(uint64(v)>>nodeBits, 0) }

// reached reports whether a version as new as v was issued or observed: to observe it
// again changes nothing.
func (c *clock) reached(v attune.Version) bool { return uint64(v)>>nodeBits <= c.last.Load() }

// raise lifts last to at least v, and by at least step.
func (c *clock) raise(v, step uint64) uint64 {
	for {
		last := c.last.Load()
		to := max(v, last+step)
		if to == last || c.last.CompareAndSwap(last, to) {
			return to
		}
	}
}
