package gossip

import (
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/attunekv/attune"
)

const (
	epoch       = 1577836800000 // 2020-01-01 UTC in unix milliseconds
	nodeBits    = 10
	counterBits = 12
)

// clock is a hybrid logical clock. Its physical part is the wall clock as it
// was at start plus the monotonic time since: neither a stepped nor a slewed
// wall clock reaches it, so it never goes back and never jumps over a TTL. The
// price is that a wall clock that was wrong at start stays wrong here, as in
// memcached. One that has not been set at all counts from 2020.
type clock struct {
	start time.Time
	began int64 // unix milliseconds at start
	node  uint64
	// last is the newest version issued, without the node: milliseconds since
	// 2020 and the counter. A counter that overflows carries into the
	// milliseconds, so more than 4096 versions in one run ahead of time.
	last atomic.Uint64
}

func newClock(node string) *clock {
	now := time.Now()
	return &clock{start: now, began: max(now.UnixMilli(), epoch), node: xxh3.HashString(node) & (1<<nodeBits - 1)}
}

// now is unix milliseconds.
func (c *clock) now() int64 { return c.began + time.Since(c.start).Milliseconds() }

// next issues a version newer than every one before, than prior, and not older
// than now.
func (c *clock) next(now int64, prior attune.Version) attune.Version {
	physical := uint64(max(now-epoch, 0)) << counterBits
	if prior == attune.AnyVersion {
		prior = 0
	}
	for {
		last := c.last.Load()
		v := max(physical, last+1, uint64(prior)>>nodeBits+1)
		if c.last.CompareAndSwap(last, v) {
			return attune.Version(v<<nodeBits | c.node)
		}
	}
}
