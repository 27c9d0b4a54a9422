package gossip

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

// reclaim has a durable store forget what is not in the index any more.
func (e *Engine) reclaim() {
	for {
		err := e.replica.Reclaim(e.ctx, e.core.journaled)
		if e.ctx.Err() != nil {
			return
		}
		e.log.Warn("the store could not be tidied up; trying again", zap.Error(err))
		select {
		case <-time.After(reclaimRetry):
		case <-e.stop:
			return
		}
	}
}

// fill gets a newcomer the bytes of what it took over, if its store keeps them: what
// is not in a log travels without. Those that cannot be had are fetched when they are
// asked for.
func (e *Engine) fill() {
	if !e.replica.Durable() || e.returned {
		return
	}
	for _, m := range e.others() {
		n, err := e.receiveBytes(m.ID)
		if err == nil {
			e.log.Info("fetched the values", zap.String("from", m.Name), zap.Int64("records", n))
			return
		}
		e.log.Warn("values could not be fetched from a controller", zap.String("from", m.Name), zap.Error(err))
	}
}

func (e *Engine) receiveBytes(id uint64) (int64, error) {
	r, err := e.cluster.Stream(e.ctx, id, streamBytes, nil)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	n, err := e.replica.Import(e.ctx, r)
	return n, errors.Join(err, e.replica.Sync(e.ctx))
}

// onItsWay is for how long what another controller has may not be here.
const onItsWay = 500 * time.Millisecond

// recoverTries is how often a key may change while its bytes are looked for.
const recoverTries = 5

// recover is Recover in a cluster. What this controller evicts is gone on all, so it
// does only if all of them said that they do not have the bytes.
func (e *Engine) recover(ctx context.Context, key attune.Key, lost attune.Item) (attune.Item, error) {
	began := time.Now()
	for tries := 0; tries < recoverTries; tries++ {
		a, err := e.fetcher.Fetch(ctx, key, lost)
		if err != nil {
			return attune.Item{}, err
		}
		if a.Value != nil {
			lost.Value = a.Value
			return lost, nil
		}
		it, err := e.replica.Get(ctx, key, nil, false)
		missing, gone := repair.Missing(err)
		switch {
		case !missing:
			return it, err
		case it.Stored != lost.Stored: // it was written meanwhile
		case a.Overtaken && time.Since(began) < onItsWay:
			tries-- // what is there instead comes here, too
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				return attune.Item{}, context.Cause(ctx)
			}
		case !gone:
			return attune.Item{}, err // it may be in the store here
		case a.Sure:
			if e.core.evict(key.Hash, it.Version) {
				return attune.Item{}, nil
			}
		case e.complete():
			return absent(it), repair.ErrSilent // gossip will tell whether who is silent is alive
		default:
			return absent(it), nil
		}
		lost = it
	}
	return attune.Item{}, replica.ErrBusy
}

// absent is an item that counts as none, of that version: what is written for it
// replaces exactly that, and who only looks has a miss.
func absent(it attune.Item) attune.Item { return attune.Item{Version: it.Version, Expires: 1} }

// everybody are the others, and whether these are all who may have what was written:
// no member is away that has neither left nor was given up.
func (e *Engine) everybody() (ms []cluster.Member, all bool) {
	members := e.cluster.Members()
	ms = ranked(members)
	known, expect := len(ms), 0
	e.core.mu.Lock()
	defer e.core.mu.Unlock()
	for _, m := range members {
		switch {
		case m.Self:
			known, expect = known+1, m.Expect
		case m.Left:
			known++
		case !m.Alive && m.Cluster == cluster.Hash(e.ident.Cluster) && !e.core.cut.expelled[m.ID]:
			return ms, false
		}
	}
	// One that was cut off when it started has not heard of the others.
	return ms, known >= expect
}

func (e *Engine) complete() bool {
	_, all := e.everybody()
	return all
}

// heardOfAll tells what a replica has heard of.
type heardOfAll struct{ r *replica.Replica }

var _ repair.Progress = heardOfAll{}

// Begun is 0: there is no one order.
func (heardOfAll) Begun() uint64 { return 0 }

// Behind reports whether a version of a key may be still to come.
func (h heardOfAll) Behind(_ uint64, key attune.Key, v attune.Version) bool {
	return !passed(h.r, key.Hash, replica.MarkOf(v, false))
}

// passed reports whether a key's entry is m or newer, or m would be refused.
func passed(r *replica.Replica, key attune.KeyHash, m replica.Mark) bool {
	return m == 0 || m.Version() <= max(r.Floor(), r.Collected()) || !m.Newer(r.MarkOf(key))
}
