package repair

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/replica"
)

const (
	// stageLanes is how many values are on their way to a store at a time.
	stageLanes = 16
	// stageBound is how many may wait per lane. More are not kept here: a read
	// that finds them missing gets them from a peer.
	stageBound = 4096
	// settleTimeout is how long the store may take for one.
	settleTimeout = 2 * time.Second
)

// Stager brings the bytes of applied changes to a store outside this process, so
// that applying never waits for it. A key has its lane, and keeps its order.
type Stager struct {
	replica *replica.Replica
	log     *zap.Logger
	lanes   []chan attune.Change
	running sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelCauseFunc
	never   context.Context // has ended
}

var (
	errOverrun = errors.New("the store takes values slower than they come")
	errClosed  = errors.New("this controller is shutting down")
)

// NewStager starts one. It must be closed.
func NewStager(r *replica.Replica, log *zap.Logger) *Stager {
	s := &Stager{replica: r, log: log}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	never, cancel := context.WithCancelCause(context.Background())
	cancel(errOverrun)
	s.never = never
	if r.Immediate() {
		return s
	}
	for range stageLanes {
		lane := make(chan attune.Change, stageBound)
		s.lanes = append(s.lanes, lane)
		s.running.Go(func() {
			for ch := range lane {
				s.settle(&ch)
			}
		})
	}
	return s
}

func (s *Stager) settle(ch *attune.Change) {
	ctx, cancel := context.WithTimeout(s.ctx, settleTimeout)
	defer cancel()
	if err := s.replica.Settle(ctx, ch); err != nil {
		s.log.Debug("the store did not take a value; it will be fetched from a peer if it is asked for", zap.Error(err))
	}
}

// Add takes a change over. It does not wait.
func (s *Stager) Add(ch attune.Change) {
	select {
	case s.lanes[ch.Key.Hash[1]%stageLanes] <- ch:
	default:
		_ = s.replica.Settle(s.never, &ch) // that it is given up is what we want
	}
}

// Close gives up what is on its way.
func (s *Stager) Close() {
	s.cancel(errClosed)
	for _, lane := range s.lanes {
		close(lane)
	}
	s.running.Wait()
}
