package repair

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

const (
	// stageLanes is how many values are on their way to a store at a time, each by
	// itself, and stageBatch how many go together at most, of stageBatchBytes at most.
	stageLanes      = 16
	stageBatch      = 256
	stageBatchBytes = 1 << 20
	// stageBound is how many may wait per lane, and stageBytes how much all of them
	// may take. More are not kept here: a read that finds them missing gets them from
	// a peer.
	stageBound = 8192
	stageBytes = 64 << 20
	// stageOverhead is about what a value takes besides itself while it waits.
	stageOverhead = 256
	// settleTimeout is how long the store may take for one, or for a batch.
	settleTimeout = 2 * time.Second
	// stagePace is the time between two departures, if less than stageMany wait, and less
	// than stageBatchBytes: system calls for a few values cost controller and store more
	// than the values do, and of a key that is written often the store gets one.
	stagePace = 32 * time.Millisecond
	stageMany = 1024
	// stagePoll is how often one who waits for room looks, othersPoll if it is for room in
	// the store of another, of which there is news less often, and stagePatience how long
	// it waits for more than a little.
	stagePoll     = time.Millisecond
	othersPoll    = 10 * time.Millisecond
	stagePatience = 50 * time.Millisecond
	// retryAfter is how long after a lane's values were refused all of them are tried
	// again, or retryShare times as long as it took to try them, up to retryMost.
	retryAfter = 100 * time.Millisecond
	retryShare = 8
	retryMost  = time.Second
	// refusedFor is how long a refusal counts: a store that goes on refusing does so
	// more often. Every refusedEvery people are told.
	refusedFor   = 3 * time.Second
	refusedEvery = 10 * time.Second
)

// Stager brings the bytes of applied changes to a store outside this process, so
// that applying does not wait for it. A key has its lane, and keeps its order. Small
// values go together where the store takes them so.
//
// Of what is more than may be on its way it gives up what comes. To a durable store,
// which may be the only one, it brings all of it, and a value that the store does not
// take is tried again until it does; so whoever adds must see that it is not too much:
// by [Stager.Wait] or, if it cannot wait, by taking no more while it is [Stager.Full].
type Stager struct {
	replica *replica.Replica
	log     *zap.Logger
	keeps   bool // the store is durable
	lanes   []*lane
	convoy  *lane        // of what goes together; nil: nothing does
	bytes   atomic.Int64 // of what is on its way
	lost    atomic.Int64
	saidAt  atomic.Int64            // when people were told of one, unix nanoseconds
	refusal atomic.Pointer[refusal] // the last of a durable store
	running sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelCauseFunc
	never   context.Context // has ended
}

// refusal is why a store did not take a value.
type refusal struct {
	at  time.Time
	why error
}

// lane is what waits for one goroutine.
type lane struct {
	n       atomic.Int64  // jobs that were not done
	bound   int64         // as many as may wait
	stirred chan struct{} // has room for one: there are some
	mu      sync.Mutex
	jobs    []job // guarded by mu
}

func (l *lane) add(j job) {
	l.n.Add(1)
	l.mu.Lock()
	l.jobs = append(l.jobs, j)
	l.mu.Unlock()
	select {
	case l.stirred <- struct{}{}:
	default:
	}
}

func (l *lane) take() []job {
	l.mu.Lock()
	defer l.mu.Unlock()
	jobs := l.jobs
	l.jobs = nil
	return jobs
}

// work does what is there. What do reports not to be done is there again, and so are
// marks behind it.
func (l *lane) work(do func(job) bool) (all bool) {
	jobs := l.take()
	again := jobs[:0]
	for _, j := range jobs {
		if j.passed != nil && len(again) > 0 || !do(j) {
			again = append(again, j)
			continue
		}
		l.n.Add(-1)
	}
	clear(jobs[len(again):])
	if len(again) == 0 {
		return true
	}
	l.mu.Lock()
	l.jobs = append(again, l.jobs...)
	l.mu.Unlock()
	return false
}

// Staged is a change whose bytes are on their way. The replica has them.
type Staged struct {
	replica.Unsettled
	cost int64
}

// StagedOf is what is to be kept of a change that [replica.Replica.Stages].
func StagedOf(c *attune.Change) Staged {
	return Staged{replica.Unsettled{Hash: c.Key.Hash, Version: c.Item.Version}, cost(c.Key, c.Item)}
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
	errStuck   = errors.New("what the others decide waits for the store here, which does not take it")
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
		l := s.newLane(stageBound)
		s.running.Go(func() { s.serve(l, s.work) })
	}
	if r.Batches() && !s.keeps {
		s.convoy = s.newLane(stageBound * stageLanes)
		s.running.Go(func() { s.serve(s.convoy, s.carry) })
	}
	return s
}

func (s *Stager) newLane(bound int64) *lane {
	l := &lane{bound: bound, stirred: make(chan struct{}, 1)}
	s.lanes = append(s.lanes, l)
	return l
}

// serve calls work whenever there is something in a lane.
func (s *Stager) serve(l *lane, work func(*lane)) {
	for {
		select {
		case <-l.stirred:
			work(l)
		case <-s.ctx.Done():
			return
		}
	}
}

// carry brings what is in a lane to the store together. If that is little it waits for
// more. Nobody waits for the values meanwhile: reads find them with the replica.
func (s *Stager) carry(l *lane) {
	if l.n.Load() < stageMany && s.bytes.Load() < stageBatchBytes {
		time.Sleep(stagePace - time.Duration(time.Now().UnixNano())%stagePace)
	}
	for jobs := l.take(); len(jobs) > 0; {
		var batch []replica.Unsettled
		var bytes int64
		for ; len(batch) < min(len(jobs), stageBatch) && bytes < stageBatchBytes; batch = append(batch, jobs[len(batch)].Unsettled) {
			bytes += jobs[len(batch)].cost
		}
		jobs = jobs[len(batch):]
		s.settle(batch)
		s.bytes.Add(-bytes)
		l.n.Add(-int64(len(batch)))
	}
}

func (s *Stager) settle(batch []replica.Unsettled) {
	ctx, cancel := context.WithTimeout(s.ctx, settleTimeout)
	defer cancel()
	errs := make([]error, len(batch))
	s.replica.SettleAll(ctx, batch, errs)
	for _, err := range errs {
		s.outcome(err)
	}
}

// outcome takes note of what came of a value that may be given up.
func (s *Stager) outcome(err error) {
	if err != nil {
		s.lost.Add(1)
		s.log.Debug("the store did not take a value; it will be fetched from a peer if it is asked for", zap.Error(err))
	}
}

// work does what is in a lane. What a durable store does not take it tries again, with
// all else: a deletion may be what makes room.
func (s *Stager) work(l *lane) {
	for began := time.Now(); !l.work(s.do); began = time.Now() {
		select {
		case <-time.After(min(max(retryAfter, retryShare*time.Since(began)), retryMost)):
		case <-s.ctx.Done():
			return
		}
	}
}

// do reports whether that was all that is to be done.
func (s *Stager) do(j job) bool {
	if j.passed != nil {
		j.passed.Done()
		return true
	}
	if j.restore == nil && s.keeps {
		err := s.replica.Persist(s.ctx, j.Hash, j.Version)
		if err != nil && s.ctx.Err() == nil {
			s.told(err)
			return false
		}
		s.bytes.Add(-j.cost)
		return true
	}
	defer s.bytes.Add(-j.cost)
	ctx, cancel := context.WithTimeout(s.ctx, settleTimeout)
	defer cancel()
	var err error
	if j.restore != nil {
		err = s.replica.Restore(ctx, j.restore.key, j.restore.item)
	} else {
		err = s.replica.SettleVersion(ctx, j.Hash, j.Version)
	}
	s.outcome(err)
	return true
}

// told says that the store takes nothing, the first time and then rarely.
func (s *Stager) told(err error) {
	now := time.Now()
	s.refusal.Store(&refusal{now, err})
	if last := s.saidAt.Load(); now.UnixNano()-last > int64(refusedEvery) && s.saidAt.CompareAndSwap(last, now.UnixNano()) {
		s.log.Error("the store does not take values; writes wait until it does", zap.Error(err))
	}
}

// Add takes over bringing an applied change's bytes to the store; nothing of c is
// kept. It does not wait.
func (s *Stager) Add(c *attune.Change) {
	if s.replica.Stages(c) {
		s.Put(StagedOf(c))
	}
}

// Put is Add of what was noted of a change.
func (s *Stager) Put(st Staged) {
	if j := (job{Staged: st}); s.keeps {
		s.bytes.Add(j.cost)
		s.lane(j).add(j)
	} else if !s.queue(j) {
		_ = s.replica.SettleVersion(s.never, j.Hash, j.Version) // that it is given up is what we want
	}
}

// Wait returns when no more is on its way to a durable store than may be, or nothing is
// brought there any more.
func (s *Stager) Wait() {
	for s.keeps && s.over(1) && s.ctx.Err() == nil {
		time.Sleep(stagePoll)
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
	s.queue(job{Staged: Staged{replica.Unsettled{Hash: key.Hash}, cost(key, it)}, restore: &restored{key, it}})
}

func (s *Stager) lane(j job) *lane {
	if s.convoy != nil && j.restore == nil && j.cost < kvadapter.Large {
		return s.convoy
	}
	return s.lanes[j.Hash[1]%stageLanes]
}

// queue reports whether there was room.
func (s *Stager) queue(j job) bool {
	l := s.lane(j)
	if s.bytes.Add(j.cost) <= stageBytes && l.n.Load() < l.bound {
		l.add(j)
		return true
	}
	s.bytes.Add(-j.cost)
	s.lost.Add(1)
	return false
}

// Drain returns when a durable store has the bytes of all changes that were added
// before it was called. Errors: the cause of ctx; that s is closed.
func (s *Stager) Drain(ctx context.Context) error {
	var passed sync.WaitGroup
	done := make(chan struct{})
	for _, l := range s.lanes { // a durable store has no other
		passed.Add(1)
		l.add(job{passed: &passed})
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
func (s *Stager) Behind() bool { return s.over(4) }

// Full is Behind for one who cannot wait.
func (s *Stager) Full() bool { return s.over(2) }

// over reports whether more than one part in so many of what may wait does.
func (s *Stager) over(share int64) bool {
	if s.bytes.Load() > stageBytes/share {
		return true
	}
	for _, l := range s.lanes {
		if l.n.Load() > l.bound/share {
			return true
		}
	}
	return false
}

// Slow reports whether it is Behind or, by number, half of that, though the store takes
// what it can: then it helps if others write less, who hear of it some time later. One
// that refuses may do so for days.
func (s *Stager) Slow() bool {
	early := s.convoy != nil && s.convoy.n.Load() > s.convoy.bound/8
	return (early || s.Behind()) && s.refuses() == nil
}

// refuses is why a durable store did not take a value, not long ago; else nil.
func (s *Stager) refuses() *refusal {
	if r := s.refusal.Load(); r != nil && time.Since(r.at) <= refusedFor {
		return r
	}
	return nil
}

// Stuck is why a durable store takes nothing, if so much waits for it by now that the
// replica cannot follow the others; else nil.
func (s *Stager) Stuck() error {
	if r := s.refuses(); r != nil && s.Full() {
		return fmt.Errorf("%w: %w", errStuck, r.why)
	}
	return nil
}

// Await returns when neither the store is [Stager.Behind] nor, as others tells, another
// replica's, or after a while if this one is not [Stager.Full] at least: what others
// write may keep it behind for ever, and they slow down as well. It returns ErrBehind
// when ctx ends.
func (s *Stager) Await(ctx context.Context, others func() bool) error {
	for began := time.Now(); ; {
		poll := stagePoll
		if !s.Behind() {
			if poll = othersPoll; !others() {
				return nil
			}
		}
		if time.Since(began) > stagePatience && !s.Full() {
			return nil
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return ErrBehind
		case <-s.ctx.Done():
			return errClosed
		}
	}
}

// GiveUp ends all waiting: what is on its way to a durable store stays where it is,
// to be read, and is not brought there any more.
func (s *Stager) GiveUp() { s.cancel(errClosed) }

// Close gives up what is on its way, and what is added from then on.
func (s *Stager) Close() {
	s.GiveUp()
	s.running.Wait()
	for _, l := range s.lanes {
		l.work(s.do)
	}
}
