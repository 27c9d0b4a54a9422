package ordered

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
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

func (e *Engine) wall() int64 { return time.Now().UnixMilli() }

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
func (e *Engine) hydrate() {
	if !e.replica.Immediate() && !e.replica.Durable() {
		e.tasks.Go(func() {
			if err := e.filler.Once(e.ctx); err != nil {
				e.log.Warn("values that the store here lacks could not be fetched; each will be when it is asked for", zap.Error(err))
			}
			e.post(e.core.bytesHere)
		})
		return
	}
	e.tasks.Go(func() {
		for {
			for _, m := range e.peers() {
				n, err := e.receiveData(m.ID)
				if err == nil && e.replica.Durable() {
					err = e.replica.Sync(e.ctx) // a voter's bytes survive what it does
				}
				if err == nil {
					e.log.Info("fetched the values", zap.String("from", m.Name), zap.Int64("records", n))
					e.post(e.core.bytesHere)
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

// peers are the other members of this cluster, the leader first, because it has
// everything; then those that are ready.
func (e *Engine) peers() []cluster.Member {
	var leader, ready, others []cluster.Member
	name := e.Status().Leader
	for _, m := range e.cluster.Members() {
		switch {
		case m.Self || !m.Alive || m.Cluster == 0:
		case m.Name == name:
			leader = append(leader, m)
		case m.Ready:
			ready = append(ready, m)
		default:
			others = append(others, m)
		}
	}
	return append(append(leader, ready...), others...)
}

// position is in the log.
func (e *Engine) position() (applied, begun uint64) {
	return e.core.applied.Load(), e.core.begun.Load()
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
	err = e.store.SaveState(meta, func(w io.Writer) error {
		counted := &countingWriter{w: w}
		defer func() { size = counted.n }()
		if _, err := counted.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(header)))); err != nil {
			return err
		}
		if _, err := counted.Write(header); err != nil {
			return err
		}
		if _, err := cut.WriteTo(counted); err != nil {
			return err
		}
		switch {
		case e.replica.Immediate():
			return e.replica.Export(e.ctx, counted)
		case e.replica.Durable():
			// The log may be forgotten when the store has what it says.
			if err := e.stage.Drain(e.ctx); err != nil {
				return err
			}
			return e.replica.Sync(e.ctx)
		}
		return nil
	})
	return size, err
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	w.n += int64(n)
	return n, err
}

// until is the use of e, to the deadline of a call of this controller's; c is nil for
// one of another's, who told no deadline.
func (e *Engine) until(c *attune.Call) (context.Context, context.CancelFunc) {
	if c == nil || c.Deadline.IsZero() {
		return context.WithCancel(e.ctx)
	}
	return context.WithDeadlineCause(e.ctx, c.Deadline, errFetching)
}

// fetchBytes gets what requests are decided on from the store, or from a peer.
func (e *Engine) fetchBytes(r *request, wants []wanted) {
	for i := range wants {
		// The request may end meanwhile, and its memory be somebody else's.
		wants[i].key.Text = append([]byte(nil), wants[i].key.Text...)
	}
	ctx, cancel := e.until(r.call)
	e.tasks.Go(func() {
		defer cancel()
		got := make(map[attune.KeyHash]fetched, len(wants))
		for _, w := range wants {
			f := fetched{stored: w.item.Stored}
			it, err := e.replica.Get(ctx, w.key, nil, false)
			switch missing, gone := repair.Missing(err); {
			case missing && it.Stored == w.item.Stored:
				here := err
				var sure bool
				if f.value, sure, err = e.fetcher.Fetch(ctx, w.key, it); err == nil && f.value == nil {
					f.gone, err = sure && gone, out(here, sure)
				}
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
func (e *Engine) stageChange(ch *attune.Change) { e.stage.Add(ch) }

// behind implements world.
func (e *Engine) behind() bool { return e.stage.Behind() }

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
	ctx, cancel := e.until(c)
	defer cancel()
	var caught attune.Version // what the index still named when this replica had caught up
	for range recoverTries {
		value, sure, err := e.fetcher.Fetch(ctx, key, item)
		if err != nil {
			return attune.Item{}, err
		}
		if value != nil {
			item.Value = value
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
		if why := out(err, sure); why != nil {
			// Those who have it no more may be ahead of this replica.
			if !sure || caught == it.Stored || e.await(c, localCall{kind: kindBarrier}) != nil {
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
