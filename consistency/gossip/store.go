package gossip

import (
	"errors"
	"time"

	"go.uber.org/zap"
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
