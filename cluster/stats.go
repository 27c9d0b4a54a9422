package cluster

import "sync/atomic"

// Stats counts since Open, but for those called gauges.
type Stats struct {
	Class   [classes]ClassStats // by [Class]
	Refused uint64              // connections that this node refused
	Invalid uint64              // connections that sent what no attune sends
	Unknown uint64              // frames and calls of a kind nobody handles
}

// ClassStats counts the connections of one class.
type ClassStats struct {
	FramesIn, FramesOut uint64 // whole ones, HELLO not counted; of Bulk: chunks
	BytesIn, BytesOut   uint64 // of those frames
	Dropped             uint64 // frames refused by Send or lost with a connection
	Queued              int64  // gauge: bytes waiting or being written
	ConnsIn, ConnsOut   int64  // gauges
}

type classCounters struct {
	framesIn, framesOut, bytesIn, bytesOut, dropped atomic.Uint64
	queued, connsIn, connsOut                       atomic.Int64
	_                                               [64]byte // classes do not share a cache line
}

// Stats returns the counters, each right by itself.
func (c *Cluster) Stats() Stats {
	s := Stats{Refused: c.refused.Load(), Invalid: c.invalid.Load(), Unknown: c.unknown.Load()}
	for i := range c.stats {
		n := &c.stats[i]
		s.Class[i] = ClassStats{
			FramesIn: n.framesIn.Load(), FramesOut: n.framesOut.Load(),
			BytesIn: n.bytesIn.Load(), BytesOut: n.bytesOut.Load(),
			Dropped: n.dropped.Load(), Queued: n.queued.Load(),
			ConnsIn: n.connsIn.Load(), ConnsOut: n.connsOut.Load(),
		}
	}
	return s
}
