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
	// stageBound is how many may wait per lane, and stageBytes how much all of them
	// may take. More are not kept here: a read that finds them missing gets them from
	// a peer.
	stageBound = 8192
	stageBytes = 64 << 20
	// stageOverhead is about what a value takes besides itself while it waits.
	stageOverhead = 256
	// settleTimeout is how long the store may take for one.
	settleTimeout = 2 * time.Second
	// stagePoll is how often one who waits for room looks, and stagePatience how long
	// it waits for more than a little.
	stagePoll     = time.Millisecond
	stagePatience = 50 * time.Millisecond
)

// Stager brings the bytes of applied changes to a store outside this process, so
// that applying does not wait for it. A key has its lane, and keeps its order.
//
// To a durable store, which may be the only one, it brings all of them: Put then
// waits while too much is on its way, and a value that the store does not take is
// tried again until it does.
type Stager struct {
	replica *replica.Replica
	log     *zap.Logger
	keeps   bool // the store is durable
	lanes   []chan job
	bytes   atomic.Int64 // of what is on its way
	lost    atomic.Int64
	refused atomic.Int64
	running sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelCauseFunc
	never   context.Context // has ended
}

// Staged is a change whose bytes are on their way. The replica has them.
type Staged struct {
	Hash    attune.KeyHash
	Version attune.Version
	cost    int64
}

// StagedOf is what is to be kept of a change that [replica.Replica.Stages].
func StagedOf(c *attune.Change) Staged {
	return Staged{c.Key.Hash, c.Item.Version, cost(c.Key, c.Item)}
}

func cost(key attune.Key, it attune.Item) int64 {
	return int64(len(key.Text)+len(it.Value)) + stageOverhead
}

// job is a Staged, or the bytes of an item to be restored, or only a mark in the lane.
type job struct {
	Staged
	restore *restored
	passed  *sync.WaitGroup
}

type restored struct {
	key  attune.Key
	item attune.Item
}

// ErrBehind is why a write failed, and nothing was done, that had to wait until the
// store had taken earlier ones.
var ErrBehind = errors.New("the store takes values slower than they come: add servers, or slow down")

var (
	errOverrun = errors.New("the store takes values slower than they come")
	errClosed  = errors.New("this controller is shutting down")
)

// NewStager starts one. It must be closed.
func NewStager(r *replica.Replica, log *zap.Logger) *Stager {
	s := &Stager{replica: r, log: log, keeps: r.Durable()}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	never, cancel := context.WithCancelCause(context.Background())
	cancel(errOverrun)
	s.never = never
	if r.Immediate() {
		return s
	}
	// A store that takes values up to some size only is asked which, so that it has
	// said when the first comes.
	_ = r.Takes(attune.Key{}, 0)
	for range stageLanes {
		lane := make(chan job, stageBound)
		s.lanes = append(s.lanes, lane)
		s.running.Go(func() {
			for {
				select {
				case j := <-lane:
					s.do(j)
				case <-s.ctx.Done():
					return
				}
			}
		})
	}
	return s
}

func (s *Stager) do(j job) {
	if j.passed != nil {
		j.passed.Done()
		return
	}
	defer s.bytes.Add(-j.cost)
	if j.restore == nil && s.keeps {
		s.replica.Persist(s.ctx, j.Hash, j.Version, s.told)
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, settleTimeout)
	defer cancel()
	var err error
	if j.restore != nil {
		err = s.replica.Restore(ctx, j.restore.key, j.restore.item)
	} else {
		err = s.replica.SettleVersion(ctx, j.Hash, j.Version)
	}
	if err != nil {
		s.lost.Add(1)
		s.log.Debug("the store did not take a value; it will be fetched from a peer if it is asked for", zap.Error(err))
	}
}

// told says that the store takes nothing, the first time and then rarely.
func (s *Stager) told(err error) {
	if s.refused.Add(1)%1000 == 1 {
		s.log.Error("the store does not take values; writes wait until it does", zap.Error(err))
	}
}

// Add takes over bringing an applied change's bytes to the store; nothing of c is
// kept. It waits for a durable store alone, if more is on its way than may be.
func (s *Stager) Add(c *attune.Change) {
	if s.replica.Stages(c) {
		s.Put(StagedOf(c))
	}
}

// Put is Add of what was noted of a change.
func (s *Stager) Put(st Staged) {
	j := job{Staged: st}
	if s.keeps {
		for s.bytes.Load() > stageBytes && s.ctx.Err() == nil {
			time.Sleep(stagePoll)
		}
		s.bytes.Add(j.cost)
		s.enter(s.ctx, s.lane(j), j)
	} else if !s.queue(j) {
		_ = s.replica.SettleVersion(s.never, j.Hash, j.Version) // that it is given up is what we want
	}
}

// Restore brings bytes to the store that it lacks, and a peer had: some time, or not
// at all if there is too much else. It does not wait, and keeps key and it.
func (s *Stager) Restore(key attune.Key, it attune.Item) {
	if s.replica.Immediate() {
		if err := s.replica.Restore(s.ctx, key, it); err != nil {
			s.log.Debug("fetched bytes could not be kept", zap.Error(err))
		}
		return
	}
	s.queue(job{Staged: Staged{Hash: key.Hash, cost: cost(key, it)}, restore: &restored{key, it}})
}

func (s *Stager) lane(j job) chan job { return s.lanes[j.Hash[1]%stageLanes] }

// queue reports whether there was room.
func (s *Stager) queue(j job) bool {
	if s.bytes.Add(j.cost) <= stageBytes {
		select {
		case s.lane(j) <- j:
			return true
		default:
		}
	}
	s.bytes.Add(-j.cost)
	s.lost.Add(1)
	return false
}

// enter waits for room in a lane. It reports false if ctx, or the use of s, ends
// first.
func (s *Stager) enter(ctx context.Context, lane chan job, j job) bool {
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
	done := make(chan struct{})
	for _, lane := range s.lanes {
		passed.Add(1)
		if !s.enter(ctx, lane, job{passed: &passed}) {
			return errors.Join(context.Cause(ctx), context.Cause(s.ctx))
		}
	}
	go func() { // it ends, as every lane does, and Close empties them
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

// Behind reports whether so much waits for the store that no more writes should
// begin here: who decides them is the one whose store gets them all. A store that
// fails, instead of being slow, is not behind: what it does not take is given up. What
// others have decided is still taken, while there is room: they have kept it.
func (s *Stager) Behind() bool { return s.over(stageBytes/4, stageBound/4) }

// Full is Behind for one who cannot wait.
func (s *Stager) Full() bool { return s.over(stageBytes/2, stageBound/2) }

func (s *Stager) over(bytes int64, waiting int) bool {
	if s.bytes.Load() > bytes {
		return true
	}
	for _, lane := range s.lanes {
		if len(lane) > waiting {
			return true
		}
	}
	return false
}

// Await returns when the store is not [Stager.Behind], or after a while if it is not
// [Stager.Full] at least: what others write may keep it behind for ever, and they slow
// down as well. It returns ErrBehind when ctx ends.
func (s *Stager) Await(ctx context.Context) error {
	for began := time.Now(); s.Behind(); {
		if time.Since(began) > stagePatience && !s.Full() {
			return nil
		}
		select {
		case <-time.After(stagePoll):
		case <-ctx.Done():
			return ErrBehind
		case <-s.ctx.Done():
			return errClosed
		}
	}
	return nil
}

// GiveUp ends all waiting: what is on its way to a durable store stays where it is,
// to be read, and is not brought there any more.
func (s *Stager) GiveUp() { s.cancel(errClosed) }

// Close gives up what is on its way, and what is added from then on.
func (s *Stager) Close() {
	s.GiveUp()
	s.running.Wait()
	for _, lane := range s.lanes {
		for len(lane) > 0 {
			s.do(<-lane)
		}
	}
}
