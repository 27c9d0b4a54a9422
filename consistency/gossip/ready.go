package gossip

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// A newcomer takes over what the others have, tells that it serves, and answers clients
// when they know: before, it would decide about keys of which others believe that
// somebody else is their home, and of two locks both would be taken.

const (
	// orphanedAfter is how long a newcomer looks for a member that has the data
	// before it concludes that there is none any more.
	orphanedAfter = 10 * time.Second
	// reunion is how long one that has data looks for others that serve.
	reunion = 2 * time.Second
	// knownAfter is how long a member waits at most until all know that it serves.
	knownAfter = 5 * time.Second
)

// settleIn makes a newcomer a full member: it takes everything from one that is.
func (e *Engine) settleIn() {
	k := e.core
	began, told := time.Now(), time.Now()
	for {
		k.mu.Lock()
		synced, serves, wrote := k.synced, k.serves(), k.own.seq > 0
		k.mu.Unlock()
		if serves {
			e.log.Info("has what the others have", zap.Int("items", e.replica.Len()))
			e.untilKnown()
			close(e.ready)
			return
		}
		if !synced {
			done := make(chan error, 1)
			if e.sync(done) {
				select {
				case err := <-done:
					if err == nil {
						e.fill()
						k.mu.Lock()
						k.join()
						k.mu.Unlock()
						continue
					}
					e.log.Warn("could not take over the data; trying another controller", zap.Error(err))
				case <-e.stop:
					return
				}
				began = time.Now()
			} else if wait := time.Since(began); wrote && wait > reunion && !e.unheard() || wait > orphanedAfter && e.eldest() {
				e.log.Warn("no controller of this cluster serves: going on with what is here", zap.Int("items", e.replica.Len()))
				k.mu.Lock()
				k.join()
				k.mu.Unlock()
				continue
			}
		}
		if time.Since(told) > tellEvery {
			told = time.Now()
			e.log.Warn("not serving yet", zap.Error(e.Health()))
		}
		select {
		case <-time.After(enterEvery):
		case <-e.stop:
			return
		}
	}
}

// sync begins to take everything from a member that serves, and reports false if
// there is none.
func (e *Engine) sync(done chan error) bool {
	k := e.core
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range k.order {
		if p := k.peers[id]; p != nil && p.alive && p.ready && p.heard != 0 {
			k.rec.sync(p, func(err error) { done <- err })
			return true
		}
	}
	return false
}

// unheard reports whether a live member has not told yet whether it serves.
func (e *Engine) unheard() bool {
	k := e.core
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.near {
		if p.alive && p.heard == 0 {
			return true
		}
	}
	return false
}

// eldest reports whether no live member has a lower id.
func (e *Engine) eldest() bool {
	k := e.core
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, p := range k.peers {
		if p.alive && id < k.id {
			return false
		}
	}
	return true
}

// untilKnown returns when all who live take the same members for homes as this one
// does, or after knownAfter: one of them may be deaf, or have much to take over.
func (e *Engine) untilKnown() {
	for end := time.Now().Add(knownAfter); !e.known() && time.Now().Before(end); {
		select {
		case <-time.After(digestEvery):
		case <-e.stop:
			return
		}
	}
}

func (e *Engine) known() bool {
	live := *e.homes.live.Load()
	known, expect := slices.Contains(live, e.core.id), 0
	var asking sync.WaitGroup
	answers := make(chan opinion, len(live))
	for _, m := range e.cluster.Members() {
		switch {
		case m.Self:
			expect = m.Expect
		case !m.Alive:
		case !slices.Contains(live, m.ID):
			known = false // it is about to come
		default:
			asking.Go(func() { answers <- e.opinion(m.ID, live) })
		}
	}
	asking.Wait()
	close(answers)
	// The first ones of a new cluster may not have heard of each other yet.
	all := e.returned || len(live) >= expect
	for a := range answers {
		known, all = known && a.agrees, all || a.serves
	}
	return known && all
}

// opinion is what a member answers who is asked for its homes.
type opinion struct {
	agrees bool // they are those that this one takes for homes
	serves bool // clients, already
}

func (e *Engine) opinion(id uint64, live []uint64) opinion {
	ctx, cancel := context.WithTimeout(e.ctx, enterEvery)
	defer cancel()
	answer, err := e.cluster.Call(ctx, id, callHomes, nil)
	if err != nil {
		return opinion{}
	}
	r := reader{b: answer}
	serves, ids := r.flag(), r.ids()
	return opinion{r.end() && slices.Equal(ids, live), serves}
}

// tellHomes answers opinion.
func (e *Engine) tellHomes(context.Context, uint64, []byte) ([]byte, error) {
	serves := false
	select {
	case <-e.ready:
		serves = true
	default:
	}
	return appendIDs([]byte{flag(serves)}, *e.homes.live.Load()), nil
}

// Health says why this controller does not serve its level; nil if it does.
func (e *Engine) Health() error {
	if e.core == nil {
		return nil
	}
	if err := e.unfit(); err != nil {
		return err
	}
	select {
	case <-e.ready:
		return e.stage.Stuck()
	default:
		return errors.New("ready, and telling the others")
	}
}

// unfit says why this controller must decide nothing, whoever asks it to.
func (e *Engine) unfit() error {
	e.core.mu.Lock()
	defer e.core.mu.Unlock()
	switch {
	case !e.core.synced:
		return errors.New("taking over the data of the cluster")
	case e.core.skewed.Load():
		return errSkewed
	case e.core.cut.lagging():
		return errors.New("was away, and others have forgotten what this controller has not heard of: catching up")
	}
	return nil
}

var errSkewed = errors.New("clock skew: this controller's clock is too far from the others'; set it (NTP), then restart, or raise max-skew")
