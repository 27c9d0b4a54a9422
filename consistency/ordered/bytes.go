package ordered

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

// The engine is the core's world.
var _ world = (*Engine)(nil)

const (
	hydrateRetry = 300 * time.Millisecond
	reclaimRetry = 10 * time.Second
)

func (e *Engine) send(to uint64, class cluster.Class, kind byte, body []byte) bool {
	return e.cluster.Send(to, class, kind, body)
}

func (e *Engine) nonce() uint64 { return randomID() }

func (e *Engine) wall() int64 { return e.cluster.Wall().UnixMilli() }

func (e *Engine) fetchIndex(m *pb.Message) {
	e.tasks.Go(func() {
		cut, err := e.receiveCut(m)
		e.post(func() { e.core.indexFetched(m, cut, err) })
	})
}

func (e *Engine) receiveCut(m *pb.Message) (*replica.Prepared, error) {
	r, err := e.cluster.Stream(e.ctx, m.GetFrom(), streamCut, m.GetSnapshot().GetData()[:8])
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return e.replica.Prepare(r)
}

// hydrate fetches the values that an installed snapshot lacks. A store outside this
// process may still have them, so it is asked first; and if the others cannot list
// theirs, as their stores are out of order, each is fetched when it is asked for.
func (e *Engine) hydrate(index uint64) {
	here := func() { e.core.bytesHere(index) }
	if !e.replica.Immediate() && !e.replica.Durable() {
		e.tasks.Go(func() {
			if err := e.filler.Once(e.ctx); err != nil {
				e.log.Warn("values that the store here lacks could not be fetched; each will be when it is asked for", zap.Error(err))
			}
			e.post(here)
		})
		return
	}
	e.tasks.Go(func() {
		for {
			for _, m := range e.sources() {
				n, err := e.receiveData(m.ID)
				if err == nil && e.replica.Durable() {
					err = e.replica.Sync(e.ctx) // a voter's bytes survive what it does
				}
				if err == nil {
					e.log.Info("fetched the values", zap.String("from", m.Name), zap.Int64("records", n))
					e.post(here)
					return
				}
				e.log.Warn("values could not be fetched; trying another controller", zap.String("from", m.Name), zap.Error(err))
			}
			select {
			case <-time.After(hydrateRetry):
			case <-e.ctx.Done():
				return
			}
		}
	})
}

func (e *Engine) receiveData(id uint64) (int64, error) {
	r, err := e.cluster.Stream(e.ctx, id, streamData, nil)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return e.replica.Import(e.ctx, r)
}

// peers are the other members of this cluster, those that are whole first.
func (e *Engine) peers() []cluster.Member {
	whole, others := sorted(e.cluster.Members(), e.Status().Leader)
	return append(whole, others...)
}

// sources are the members to take all values from. One that is not ready may be on its
// way to them itself: what it has is not all, and is taken only if nobody has more.
func (e *Engine) sources() []cluster.Member {
	whole, others := sorted(e.cluster.Members(), e.Status().Leader)
	if len(whole) > 0 {
		return whole
	}
	return others
}

// sorted are the other members that live: the leader, because it has everything, and
// those that are ready; and the rest.
func sorted(members []cluster.Member, leader string) (whole, others []cluster.Member) {
	for _, m := range members {
		switch {
		case m.Self || !m.Alive || m.Cluster == 0:
		case m.Name == leader:
			whole = slices.Insert(whole, 0, m)
		case m.Ready:
			whole = append(whole, m)
		default:
			others = append(others, m)
		}
	}
	return whole, others
}

// place is that in the log, for whoever asks for bytes.
type place struct{ *core }

var _ repair.Progress = place{}

func (p place) Begun() uint64 { return p.begun.Load() }

func (p place) Behind(position uint64, _ attune.Key, _ attune.Version) bool {
	return p.applied.Load() < position
}

func (e *Engine) saveState(snap *pb.Snapshot, cut *replica.Cut) {
	e.tasks.Go(func() {
		defer cut.Close()
		size, err := e.writeState(snap.GetMetadata(), snap.GetData()[8:], cut)
		e.post(func() { e.core.stateSaved(size, err) })
	})
}

// writeState puts a state on disk: what load reads.
func (e *Engine) writeState(meta *pb.SnapshotMetadata, header []byte, cut *replica.Cut) (size int64, err error) {
	err = e.store.SaveState(meta, func(w io.Writer) (err error) {
		size, err = disk.WriteContent(w, header, cut, func(w io.Writer) error {
			switch {
			case e.replica.Immediate():
				return e.replica.Export(e.ctx, w)
			case e.replica.Durable():
				// The log may be forgotten when the store has what it says.
				if err := e.stage.Drain(e.ctx); err != nil {
					return err
				}
				return e.replica.Sync(e.ctx)
			}
			return nil
		})
		return err
	})
	return size, err
}

// until is the use of e, to a deadline; zero is none.
func (e *Engine) until(deadline time.Time) (context.Context, context.CancelFunc) {
	if deadline.IsZero() {
		return context.WithCancel(e.ctx)
	}
	return context.WithDeadlineCause(e.ctx, deadline, errFetching)
}

// fetchBytes gets what requests are decided on from the store, or from a peer.
func (e *Engine) fetchBytes(r *request, wants []wanted) {
	for i := range wants {
		// The request may end meanwhile, and its memory be somebody else's.
		wants[i].key.Text = append([]byte(nil), wants[i].key.Text...)
	}
	var deadline time.Time
	if r.deadline != 0 {
		deadline = e.start.Add(r.deadline)
	}
	ctx, cancel := e.until(deadline)
	e.tasks.Go(func() {
		defer cancel()
		got := make(map[attune.KeyHash]fetched, len(wants))
		for _, w := range wants {
			f := fetched{stored: w.item.Stored}
			it, err := e.replica.Get(ctx, w.key, nil, false)
			switch missing, gone := repair.Missing(err); {
			case missing && it.Stored == w.item.Stored:
				here := err
				var a repair.Answer
				if a, err = e.fetcher.Fetch(ctx, w.key, it); err == nil && a.Value == nil {
					f.gone, err = a.Sure && gone, out(here, a.Sure)
				}
				f.value = a.Value
			case missing:
				err = nil // it has changed: it will be looked for again
				f.stored = 0
			default:
				f.stored, f.value = it.Stored, it.Value
			}
			f.err = err
			got[w.key.Hash] = f
		}
		e.post(func() { e.core.bytesFetched(r, got) })
	})
}

// reclaim has a durable store forget what is not in the index any more. The index
// says nothing that is not in the log on this disk.
func (e *Engine) reclaim() {
	for {
		err := e.replica.Reclaim(e.ctx, func(context.Context) error { return nil })
		if e.ctx.Err() != nil {
			return
		}
		e.log.Warn("the store could not be tidied up; trying again", zap.Error(err))
		select {
		case <-time.After(reclaimRetry):
		case <-e.ctx.Done():
			return
		}
	}
}

// stageChange hands the bytes of an applied change on to the store.
func (e *Engine) stageChange(ch *attune.Change) {
	e.stage.Add(ch)
	if e.status.Load() == nil {
		e.stage.Wait() // the log of a life before, which may be long; nobody waits for this one yet
	}
}

// behind implements world.
func (e *Engine) behind() bool { return e.stage.Behind() }

// swamped implements world.
func (e *Engine) swamped() bool { return e.stage.Full() }

// Recover finds the bytes of an item that this replica has in its index and not
// in its store: at a peer, of exactly that version. If no peer that can be reached
// has them, the item is evicted, by the log and so everywhere: the miss that
// c.Res[0] is then holds for all. It is not while a member that is alive, or the store
// here, may have them and does not say. It always answers later.
func (e *Engine) Recover(c *attune.Call, key attune.Key, item attune.Item) bool {
	key.Text = append([]byte(nil), key.Text...)
	e.tasks.Go(func() {
		c.Res[0].Item, c.Err = e.recover(c, key, item)
		c.Done()
	})
	return false
}

// recoverTries is how often a key may change while its bytes are looked for.
const recoverTries = 5

func (e *Engine) recover(c *attune.Call, key attune.Key, item attune.Item) (attune.Item, error) {
	ctx, cancel := e.until(c.Deadline)
	defer cancel()
	var caught attune.Version // what the index still named when this replica had caught up
	for range recoverTries {
		a, err := e.fetcher.Fetch(ctx, key, item)
		if err != nil {
			return attune.Item{}, err
		}
		if a.Value != nil {
			item.Value = a.Value
			return item, nil
		}
		it, err := e.replica.Get(ctx, key, nil, false)
		missing, _ := repair.Missing(err)
		if !missing {
			return it, err
		}
		if it.Stored != item.Stored { // it was written meanwhile
			item = it
			continue
		}
		if why := out(err, a.Sure); why != nil {
			// Those who have it no more may be ahead of this replica.
			if !a.Sure || caught == it.Stored || e.await(c, localCall{kind: kindBarrier}) != nil {
				return attune.Item{}, why
			}
			caught = it.Stored
		} else {
			err := e.await(c, localCall{kind: kindEvict, lost: lost{key.Hash, item.Version}})
			if err != nil {
				return attune.Item{}, fmt.Errorf("an item whose bytes are lost could not be removed: %w", err)
			}
		}
		it, err = e.replica.Get(ctx, key, nil, false)
		if missing, _ := repair.Missing(err); !missing {
			return it, err
		}
		item = it
	}
	return attune.Item{}, replica.ErrBusy
}

// await has the core do something by the deadline of c, and returns when that is
// applied here.
func (e *Engine) await(c *attune.Call, in localCall) error {
	call := &attune.Call{Ctx: c.Ctx, Deadline: c.Deadline}
	for {
		done := make(chan struct{})
		call.Done = func() { close(done) }
		if in.call = call; !e.submit(in) {
			<-done
		}
		if call.Err != nil || in.kind != kindEvict {
			return call.Err
		}
		in.kind = kindSeen // applied by the leader; here it may take a moment more
	}
}

// out is why bytes are out of reach and not lost: here is what the store here said,
// sure whether all others said that they do not have them. Nil: they are lost.
func out(here error, sure bool) error {
	switch {
	case !errors.Is(here, replica.ErrGone):
		return here
	case !sure:
		return repair.ErrSilent
	default:
		return nil
	}
}
