package replica

import "github.com/attunekv/attune/kvadapter"

// counters are a segment's part of Stats, under its lock.
type counters struct {
	bytes   int64 // of keys and values
	counted int64 // of this segment's memory in Replica.index

	stored           int64
	evicted          int64
	evictedUnfetched int64
	expired          int64
	expiredUnfetched int64
	gone             int64
	strange          int64
	hotHits          int64
	hotMisses        int64
}

// expire counts a dead entry whose place is taken back.
func (c *counters) expire(e *entry) {
	c.expired++
	if e.meta&metaFetched == 0 {
		c.expiredUnfetched++
	}
}

// lost counts a read whose bytes the backend did not have: it had none, or others.
func (c *counters) lost(others bool) {
	c.gone++
	if others {
		c.strange++
	}
}

// Stats are figures of a Replica. Those named in the past tense count since Open.
type Stats struct {
	Items      int64 // in the index, dead ones that were not met yet included
	Tombstones int64 // entries of the dead besides, with Options.Tombstones
	Bytes      int64 // keys and values of these
	IndexBytes int64 // memory the index takes
	UsedBytes  int64 // IndexBytes, and what a backend in this process uses
	Limit      int64 // on UsedBytes; 0 is none
	Staged     int64 // keys whose bytes are on their way to the backend
	HotBytes   int64 // memory the hot values take, besides UsedBytes

	Stored           int64 // items written with new bytes
	Evicted          int64 // live items removed, for room or because their bytes were lost
	EvictedUnfetched int64 // of these, never read
	Expired          int64 // expired or flushed items whose memory was taken back
	ExpiredUnfetched int64 // of these, never read
	Gone             int64 // reads that found the index entry and not its bytes
	Strange          int64 // of these, the backend had others, with another stamp or size
	Damages          int64 // times that the backend gave up what was damaged of it

	HotHits    int64 // reads whose bytes were among the hot
	HotMisses  int64 // reads whose bytes had to be fetched
	HotEvicted int64 // values no longer among the hot, for want of room
}

// Stats adds up the figures. They are not of one moment.
func (r *Replica) Stats() Stats {
	st := Stats{Items: r.items.Load(), Tombstones: r.bare.Load(), IndexBytes: r.index.Load(), UsedBytes: r.usage(), Limit: r.limit.Load()}
	if m, ok := r.backend.(kvadapter.Mender); ok {
		st.Damages = m.Damages()
	}
	st.HotBytes, st.HotEvicted = r.hot.Load().size(), r.hot.Load().evictions()
	for i := range r.segs {
		s := &r.segs[i]
		s.mu.Lock()
		st.Bytes += s.bytes
		st.Staged += int64(len(s.stage))
		st.Stored += s.stored
		st.Evicted += s.evicted
		st.EvictedUnfetched += s.evictedUnfetched
		st.Expired += s.expired
		st.ExpiredUnfetched += s.expiredUnfetched
		st.Gone += s.gone
		st.Strange += s.strange
		st.HotHits += s.hotHits
		st.HotMisses += s.hotMisses
		s.mu.Unlock()
	}
	return st
}

// Len is the number of items in the index, dead ones that were not met yet
// included, tombstones not.
func (r *Replica) Len() int { return int(r.items.Load()) }

// Add adds the figures of another replica.
func (st *Stats) Add(o Stats) {
	st.Items += o.Items
	st.Tombstones += o.Tombstones
	st.Bytes += o.Bytes
	st.IndexBytes += o.IndexBytes
	st.UsedBytes += o.UsedBytes
	st.Limit += o.Limit
	st.Staged += o.Staged
	st.Stored += o.Stored
	st.Evicted += o.Evicted
	st.EvictedUnfetched += o.EvictedUnfetched
	st.Expired += o.Expired
	st.ExpiredUnfetched += o.ExpiredUnfetched
	st.Gone += o.Gone
	st.Strange += o.Strange
	st.Damages += o.Damages
	st.HotBytes += o.HotBytes
	st.HotHits += o.HotHits
	st.HotMisses += o.HotMisses
	st.HotEvicted += o.HotEvicted
}
