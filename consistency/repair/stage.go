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
	stageBound = 4096
	stageBytes = 64 << 20
	// stageOverhead is about what a value takes besides itself while it waits.
	stageOverhead = 256
	// settleTimeout is how long the store may take for one.
	settleTimeout = 2 * time.Second
)

// Stager brings the bytes of applied changes to a store outside this process, so
// that applying never waits for it. A key has its lane, and keeps its order.
type Stager struct {
	replica *replica.Replica
	log     *zap.Logger
	lanes   []chan staged
	bytes   atomic.Int64 // of what is on its way
	lost    atomic.Int64
	running sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelCauseFunc
	never   context.Context // has ended
}

// staged is a change whose bytes are on their way. The replica has them, unless
// they are of an item that is to be restored.
type staged struct {
	hash    attune.KeyHash
	version attune.Version
	cost    int64
	restore *restored
}

type restored struct {
	key  attune.Key
	item attune.Item
}

// ErrBehind is why a write is refused whose bytes there is no room for until the
// store has taken earlier ones.
var ErrBehind = errors.New("the store takes values slower than they come: add servers, or slow down")

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
		lane := make(chan staged, stageBound)
		s.lanes = append(s.lanes, lane)
		s.running.Go(func() {
			for {
				select {
				case st := <-lane:
					s.settle(st)
				case <-s.ctx.Done():
					return
				}
			}
		})
	}
	return s
}

func (s *Stager) settle(st staged) {
	ctx, cancel := context.WithTimeout(s.ctx, settleTimeout)
	defer cancel()
	var err error
	if st.restore != nil {
		err = s.replica.Restore(ctx, st.restore.key, st.restore.item)
	} else {
		err = s.replica.SettleVersion(ctx, st.hash, st.version)
	}
	if err != nil {
		s.lost.Add(1)
		s.log.Debug("the store did not take a value; it will be fetched from a peer if it is asked for", zap.Error(err))
	}
	s.bytes.Add(-st.cost)
}

// Add takes over bringing an applied change's bytes to the store; nothing of c is
// kept. It does not wait.
func (s *Stager) Add(c *attune.Change) {
	if !s.replica.Stages(c) {
		return
	}
	st := staged{hash: c.Key.Hash, version: c.Item.Version, cost: cost(c.Key, c.Item)}
	if !s.queue(st) {
		_ = s.replica.SettleVersion(s.never, st.hash, st.version) // that it is given up is what we want
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
	s.queue(staged{hash: key.Hash, cost: cost(key, it), restore: &restored{key, it}})
}

func cost(key attune.Key, it attune.Item) int64 {
	return int64(len(key.Text)+len(it.Value)) + stageOverhead
}

// queue reports whether there was room.
func (s *Stager) queue(st staged) bool {
	if s.bytes.Add(st.cost) <= stageBytes {
		select {
		case s.lanes[st.hash[1]%stageLanes] <- st:
			return true
		default:
		}
	}
	s.bytes.Add(-st.cost)
	s.lost.Add(1)
	return false
}

// Behind reports whether so much waits for the store that no more writes should
// begin here. One that fails, instead of being slow, is not behind: what it does
// not take is given up. What others have written is still taken: they may have kept it.
func (s *Stager) Behind() bool { return s.bytes.Load() > stageBytes/2 }

// Close gives up what is on its way, and what is added from then on.
func (s *Stager) Close() {
	s.cancel(errClosed)
	s.running.Wait()
	for _, lane := range s.lanes {
		for len(lane) > 0 {
			s.settle(<-lane)
		}
	}
}
