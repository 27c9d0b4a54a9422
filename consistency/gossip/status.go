package gossip

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

// Status is what one member knows of its cluster.
type Status struct {
	ID         uint64
	Causal     bool
	Seq        uint64 // changes made here
	Tombstones int    // dead items that are remembered
	RingBytes  int    // of changes kept to be sent again
	Held       int    // changes that wait for what they depend on
	HeldBytes  int
	Waiting    int           // requests that wait for acknowledgements of others
	Collected  time.Time     // up to when what is dead was forgotten; zero: never
	Skew       time.Duration // of the median of all clocks to this one
	Peers      []PeerStatus  // by name

	Sent         uint64 // bytes of changes
	Received     uint64 // changes
	Applied      uint64 // of them, those that were newer
	Duplicates   uint64
	Resent       uint64 // times that a peer was stuck
	HeldBack     uint64
	Overflowed   uint64 // dropped for want of room while held back, and sent again
	TooFar       uint64 // with a version far ahead of this clock
	Reconciles   uint64
	Differing    uint64 // keys, in the last of them
	Repaired     uint64 // records taken over by all of them
	ReconcileIn  uint64 // bytes
	ReconcileOut uint64
	Cuts         uint64 // times that all agreed to forget what is dead
	Forgotten    uint64 // dead items dropped so
	Expelled     uint64 // members given up
	Waits        string // why the dead are not forgotten now; empty: they are

	// Ops that were sent to the homes of their keys, carried out for others, refused
	// to others, and of unknown outcome.
	Forwarded, Served, Refused, Unknown uint64
}

// PeerStatus is another member as this one sees it.
type PeerStatus struct {
	ID     uint64
	Name   string
	Alive  bool
	Ready  bool
	Heard  time.Duration // since its last digest; negative: never
	Lag    uint64        // changes that are here and not there, as far as it told
	Behind uint64        // the other way round
	Equal  bool          // it has exactly what is here
	Offset time.Duration // of its clock to this one
}

// Repairs tells how the store is.
func (e *Engine) Repairs() repair.Status { return repair.StatusOf(e.stage, e.fetcher, e.filler) }

// Seek gives to fn what others have of the items that save lacks: see
// [repair.Fetcher.Seek].
func (e *Engine) Seek(ctx context.Context, save *replica.Save, fn func(key []byte, it attune.Item) error) (found int64, err error) {
	return e.fetcher.Seek(ctx, save, fn)
}

// Status tells how this member and the others are.
func (e *Engine) Status() Status {
	k := e.core
	homes := e.homes.counters()
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock.mono()
	st := Status{
		ID: k.id, Causal: k.causal, Seq: k.own.seq, Tombstones: int(k.replica.Stats().Tombstones),
		RingBytes: k.ring.bytes, Held: k.held.count(), HeldBytes: k.held.bytes, Waiting: len(k.acks.queue),
		Skew: k.skew, Sent: k.sent, Received: k.received, Applied: k.applied, Duplicates: k.duplicates,
		Resent: k.resent, HeldBack: k.heldBack, Overflowed: k.overflowed, TooFar: k.tooFar,
		Reconciles: k.reconciles, Differing: k.differing, Repaired: k.repaired,
		ReconcileIn: k.rec.in, ReconcileOut: k.rec.out,
		Cuts: k.cut.cuts, Forgotten: k.cut.cutCounters.collected, Expelled: k.cut.expulsions, Waits: k.cut.waits,
	}
	st.Forwarded, st.Served, st.Refused, st.Unknown = homes.forwarded, homes.served, homes.refused, homes.unknown
	if c := k.replica.Collected(); c != 0 {
		st.Collected = time.UnixMilli(millis(c))
	}
	for _, p := range k.peers {
		ps := PeerStatus{ID: p.id, Name: p.name, Alive: p.alive, Ready: p.ready && p.alive, Heard: -1, Offset: time.Duration(p.offset) * time.Millisecond}
		if p.heard != 0 {
			ps.Heard = now - p.heard
			for o, h := range p.vv {
				if own := k.seqOf(o); h.seq > own {
					ps.Behind += h.seq - own
				}
			}
			for o, own := range k.vv {
				if h := p.vv[o].seq; h < own.seq {
					ps.Lag += own.seq - h
				}
			}
			ps.Equal = p.told == k.hash && p.cell == k.sketch.Total()
		}
		st.Peers = append(st.Peers, ps)
	}
	slices.SortFunc(st.Peers, func(a, b PeerStatus) int { return cmp.Compare(a.Name, b.Name) })
	return st
}
