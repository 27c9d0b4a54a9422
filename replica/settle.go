package replica

import (
	"context"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// staged is a key whose newest bytes may not have reached the backend yet. It
// lives from the first Apply that staged something to the last Settle, so the
// stage is bounded by the writes under way.
//
// Nobody owns the sending: of the goroutines that wait in Settle one at a time
// sends what is newest then. So the writes of a key keep their order without a
// worker, and a burst of them costs two sends, not one each.
type staged struct {
	key     attune.Key       // with a copy of the text
	version attune.Version   // of the change that is the newest; only grows
	rec     kvadapter.Record // the newest; its Value is never modified
	delete  bool             // the newest is a deletion
	owners  int              // Settle calls still to return

	sending bool
	wake    chan struct{} // closed when the sending under way ends; made by the first to wait

	settled attune.Version // the newest that is in the backend
	failed  attune.Version // the newest that could not be put there, and why
	err     error
}

// overtaken reports whether something newer than c is staged for its key, which
// has no entry: it was deleted or evicted after c was stamped. What is staged
// must only get newer, or Settle would take c's bytes for settled.
func (s *segment) overtaken(c *attune.Change) bool {
	st := s.stage[c.Key.Hash]
	return st != nil && c.Item.Version <= st.version
}

// put stages a change's bytes, or its deletion.
func (s *segment) put(c *attune.Change, gen uint32) {
	st := s.own(c.Key)
	st.delete = c.Item.Deleted
	st.hold(c.Item.Version, kvadapter.Stamp{Gen: gen, Version: c.Item.Stored}, c.Item.Value)
}

// own makes the caller one more owner of what is staged for key, or the first.
func (s *segment) own(key attune.Key) *staged {
	st := s.stage[key.Hash]
	if st == nil {
		st = &staged{key: attune.Key{Hash: key.Hash, Text: append([]byte(nil), key.Text...)}}
		s.stage[key.Hash] = st
	} else if st.key.Text == nil {
		st.key.Text = append(st.key.Text, key.Text...) // the first went by the hash
	}
	st.owners++
	return st
}

func (st *staged) hold(version attune.Version, stamp kvadapter.Stamp, v []byte) {
	if len(v) < kvadapter.Large {
		v = append(make([]byte, 0, len(v)), v...)
	}
	st.version, st.rec = version, kvadapter.Record{Stamp: stamp, Value: v}
}

// value returns it's bytes if they are staged, else nil. They are shared.
func (s *segment) value(it *attune.Item, h attune.KeyHash) []byte {
	st := s.stage[h]
	if st == nil || st.delete || st.rec.Stamp.Version != it.Stored {
		return nil
	}
	return notNil(st.rec.Value)
}

// Settle returns once the backend has the bytes of an applied change, or newer
// ones of its key, or has been told of its deletion. It returns at once if the
// change moves no bytes or the backend is in this process. Errors: the
// backend's, or the cause of ctx; the bytes may be there or not, and the engine
// evicts exactly that version (after a failed deletion there is nothing to do:
// the index has no entry, and no stamp will match), or has a peer that has them.
func (r *Replica) Settle(ctx context.Context, c *attune.Change) error {
	if !r.Stages(c) {
		return nil
	}
	return r.SettleVersion(ctx, c.Key.Hash, c.Item.Version)
}

// SettleVersion is Settle for a change that is not at hand any more. It must be
// called once for every change that [Replica.Stages].
func (r *Replica) SettleVersion(ctx context.Context, h attune.KeyHash, v attune.Version) error {
	s := r.segment(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.settle(ctx, s, s.stage[h], v)
}

// Unsettled names a change for [Replica.SettleVersion].
type Unsettled struct {
	Hash    attune.KeyHash
	Version attune.Version
}

// SettleAll is SettleVersion of many changes, whose bytes go to the backend together if
// it is a [kvadapter.BatchWriter]; see [Replica.Batches]. errs[i] is what SettleVersion
// would return.
func (r *Replica) SettleAll(ctx context.Context, all []Unsettled, errs []error) {
	out := make([]sending, 0, len(all))
	writes := make([]kvadapter.Write, 0, len(all))
	of := make([]*staged, len(all)) // what is sent here, or nil
	for i, u := range all {
		s := r.segment(u.Hash)
		s.mu.Lock()
		if st := s.stage[u.Hash]; !st.sending && max(st.settled, st.failed) < u.Version {
			of[i], out = st, append(out, s.depart(st))
		}
		s.mu.Unlock()
	}
	r.rescue(ctx, out)
	for i := range out {
		writes = append(writes, out[i].write)
	}
	outcomes := make([]error, len(writes))
	r.batches.WriteMulti(ctx, writes, outcomes)
	for i, u := range all {
		if st := of[i]; st != nil {
			s := r.segment(u.Hash)
			s.mu.Lock()
			s.arrived(ctx, st, out[0].version, outcomes[0])
			errs[i] = r.settle(ctx, s, st, u.Version) // at once
			s.mu.Unlock()
			out, outcomes = out[1:], outcomes[1:]
		}
	}
	for i, u := range all {
		if of[i] == nil {
			errs[i] = r.SettleVersion(ctx, u.Hash, u.Version)
		}
	}
}

// Batches reports whether there is a SettleAll.
func (r *Replica) Batches() bool { return r.batches != nil }

// Stages reports whether c, when it was applied, had something to bring to a
// backend outside this process: it must be given to Settle, or to Persist.
func (r *Replica) Stages(c *attune.Change) bool { return r.memory == nil && r.stages(c) }

// stages reports whether c, applied over a backend elsewhere, is sent there. An
// eviction is not: the store makes room as it likes.
func (r *Replica) stages(c *attune.Change) bool {
	switch {
	case c.Key.Text == nil:
		return false
	case c.Item.Deleted:
		return !evicts(c)
	default:
		return r.carries(&c.Item)
	}
}

// carries reports whether an item of a Change has bytes with it.
func (r *Replica) carries(it *attune.Item) bool {
	if !r.tombs {
		return it.Stored == it.Version
	}
	// A peer may have the entry and not, or no more, the bytes; and it may send
	// the bytes along with what was a mere touch.
	return it.Value != nil || it.Size == 0 && it.Stored == it.Version
}

// settle is what Settle does for an owner of st who waits for version v.
func (r *Replica) settle(ctx context.Context, s *segment, st *staged, v attune.Version) error {
	defer r.disown(s, st)
	for {
		switch {
		case st.settled >= v:
			return nil
		case st.failed >= v:
			return st.err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case st.sending:
			s.wait(ctx, st)
		default:
			r.send(ctx, s, st)
		}
	}
}

// disown ends what own began. What was staged last takes the place of what is hot.
func (r *Replica) disown(s *segment, st *staged) {
	if st.owners--; st.owners > 0 {
		return
	}
	delete(s.stage, st.key.Hash)
	if st.delete {
		r.hot.Load().drop(st.key.Hash)
	} else {
		r.hot.Load().replace(st.key.Hash, st.rec)
	}
}

// wait releases the segment until the sending under way ends, or ctx.
func (s *segment) wait(ctx context.Context, st *staged) {
	if st.wake == nil {
		st.wake = make(chan struct{})
	}
	wake := st.wake
	s.mu.Unlock()
	select {
	case <-wake:
	case <-ctx.Done():
	}
	s.mu.Lock()
}

// send releases the segment while it brings the newest of st to the backend.
func (r *Replica) send(ctx context.Context, s *segment, st *staged) {
	out := []sending{s.depart(st)}
	s.mu.Unlock()
	r.rescue(ctx, out)
	err := out[0].write.To(ctx, r.backend)
	s.mu.Lock()
	s.arrived(ctx, st, out[0].version, err)
}

// sending is the newest of a staged key, on its way to the backend.
type sending struct {
	version attune.Version
	write   kvadapter.Write
	// What a Save wants of what it replaces there, if it does.
	save *Save
	old  attune.Item
}

// depart has the caller send the newest of st: nobody else does, until it calls arrived.
func (s *segment) depart(st *staged) (out sending) {
	st.sending = true
	out.version, out.write = st.version, kvadapter.Write{Key: st.key, Record: st.rec, Delete: st.delete}
	if sv, old, wanted := s.owing(st); wanted {
		out.save, out.old = sv, old
	}
	return out
}

// arrived takes note of what came of a sending.
func (s *segment) arrived(ctx context.Context, st *staged, version attune.Version, err error) {
	st.sending = false
	switch {
	case err == nil:
		st.settled = version
	case ctx.Err() == nil:
		st.failed, st.err = version, err
	default:
		// This caller's time is up, not that of the others: one of them tries.
	}
	if st.wake != nil {
		close(st.wake)
		st.wake = nil
	}
}
