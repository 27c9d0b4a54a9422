package repair

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
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
	// keepBytes is how many bytes may be on their way to a durable store.
	keepBytes = 64 << 20
	// settleTimeout is how long the store may take for one.
	settleTimeout = 2 * time.Second
)

// Stager brings the bytes of applied changes to a store outside this process, so
// that applying does not wait for it. A key has its lane, and keeps its order.
//
// To a durable store, which may be the only one, it brings all of them: Add then
// waits while a lane is full, and a value that the store does not take is tried
// again until it does.
type Stager struct {
	replica *replica.Replica
	log     *zap.Logger
	keeps   bool // the store is durable
	refused atomic.Int64

	mu      sync.Mutex // guards bytes
	bytes   int        // on their way to a durable store
	less    *sync.Cond // of bytes, or ctx has ended
	lanes   []chan job
	running sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelCauseFunc
	never   context.Context // has ended
}

// job is a change, or with passed only a mark in the lane.
type job struct {
	change attune.Change
	passed *sync.WaitGroup
}

var (
	errOverrun = errors.New("the store takes values slower than they come")
	errClosed  = errors.New("this controller is shutting down")
)

// NewStager starts one. It must be closed.
func NewStager(r *replica.Replica, log *zap.Logger) *Stager {
	s := &Stager{replica: r, log: log, keeps: r.Durable()}
	s.less = sync.NewCond(&s.mu)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	never, cancel := context.WithCancelCause(context.Background())
	cancel(errOverrun)
	s.never = never
	if r.Immediate() {
		return s
	}
	for range stageLanes {
		lane := make(chan job, stageBound)
		s.lanes = append(s.lanes, lane)
		s.running.Go(func() {
			for j := range lane {
				switch {
				case j.passed != nil:
					j.passed.Done()
				case s.keeps:
					s.replica.Persist(s.ctx, &j.change, s.told)
					s.count(-j.change.Item.Size)
				default:
					s.settle(&j.change)
				}
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

// told says that the store takes nothing, the first time and then rarely.
func (s *Stager) told(err error) {
	if s.refused.Add(1)%1000 == 1 {
		s.log.Error("the store does not take values; writes wait until it does", zap.Error(err))
	}
}

// Add takes a change over. It waits for a durable store alone, if more are on their
// way than there may be. Of the change it needs what [replica.Replica.Settle] does.
func (s *Stager) Add(ch attune.Change) {
	lane := s.lanes[ch.Key.Hash[1]%stageLanes]
	if s.keeps {
		s.mu.Lock()
		for s.bytes > keepBytes && s.ctx.Err() == nil {
			s.less.Wait()
		}
		s.mu.Unlock()
		s.count(ch.Item.Size)
		s.enter(s.ctx, lane, job{change: ch})
		return
	}
	select {
	case lane <- job{change: ch}:
	default:
		_ = s.replica.Settle(s.never, &ch) // that it is given up is what we want
	}
}

// count counts bytes to or from what is on its way.
func (s *Stager) count(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes += by; by < 0 {
		s.less.Broadcast()
	}
}

// enter reports false if ctx, or the use of s, ends first.
func (s *Stager) enter(ctx context.Context, lane chan job, j job) bool {
	if s.ctx.Err() != nil {
		return false // the lanes may be closed
	}
	select {
	case lane <- j:
		return true
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	return false
}

// Drain returns when a durable store has the bytes of all changes that were added
// before it was called. Errors: the cause of ctx; that s is closed.
func (s *Stager) Drain(ctx context.Context) error {
	var passed sync.WaitGroup
	for _, lane := range s.lanes {
		passed.Add(1)
		if !s.enter(ctx, lane, job{passed: &passed}) {
			return errors.Join(context.Cause(ctx), context.Cause(s.ctx))
		}
	}
	done := make(chan struct{})
	go func() { // it ends, as every lane does
		passed.Wait()
		close(done)
	}()
	select {
	case <-done:
		return context.Cause(s.ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// GiveUp ends all waiting: what is on its way to a durable store stays where it is,
// to be read, and is not brought there any more.
func (s *Stager) GiveUp() {
	s.cancel(errClosed)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.less.Broadcast()
}

// Close gives up what is on its way.
func (s *Stager) Close() {
	s.GiveUp()
	for _, lane := range s.lanes {
		close(lane)
	}
	s.running.Wait()
}
