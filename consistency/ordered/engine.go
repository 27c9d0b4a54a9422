package ordered

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/ordered/raftlog"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

const (
	// inboxBytes is what may wait for the core of what peers sent; more makes them
	// wait.
	inboxBytes = 64 << 20
	// leavePatience is how long Close waits for the others to take over, and goodPatience
	// if this member never comes back: as a voter that is gone it would be missed for ever.
	leavePatience = 2 * time.Second
	goodPatience  = 30 * time.Second
)

// Options say what an Engine works on.
type Options struct {
	// Sequential answers reads from the local replica, in one order of all writes;
	// else they are linearizable.
	Sequential bool
	// Name is this controller's, unique in its cluster.
	Name string
	// Expect is how many controllers make a cluster, which is founded once they
	// have found each other and not served before they are members.
	Expect int
	// MaxItem is the largest value that may come of an append, in bytes; 0 is no
	// limit.
	MaxItem int
	// RepairRate is how many bytes a second are fetched for a store that lacks them,
	// 0 for no limit.
	RepairRate int64
	// DataDir and Sync are where and how the Raft log is kept. Without DataDir a
	// controller that restarts is a new member.
	DataDir string
	Sync    disk.Sync
	// Full is why the disks have no room for more, if they have not; nil: never.
	Full func() error
	// OpenCluster opens the peer port for a member with this Raft id.
	OpenCluster func(id uint64) (*cluster.Cluster, error)
	// OpenReplica makes the shard's copy on this node: with the generation and seed
	// that it is given, which are the same on all members, and a backend.
	OpenReplica func(replica.Options) (*replica.Replica, error)
	// Trace begins to trace what another member asks for, as part of its span, or
	// returns nil; nil: nothing is traced for others.
	Trace func(attune.SpanContext, []attune.Op) *attune.Trace
	Log   *zap.Logger
}

// Engine answers for one replica, as a member of one Raft group. Its methods may
// be called concurrently.
type Engine struct {
	o       Options
	log     *zap.Logger
	start   time.Time
	ctx     context.Context // ends with Close
	cancel  context.CancelCauseFunc
	replica *replica.Replica
	cluster *cluster.Cluster
	store   *raftlog.Log
	core    *core
	ident   disk.Identity
	stage   *repair.Stager
	fetcher *repair.Fetcher
	filler  *repair.Filler

	ready  chan struct{} // closed by the loop when the level is first served
	status atomic.Pointer[Status]
	fatal  chan error
	// forGood has Close make this member none any more, as it does with those without
	// a data-dir.
	forGood atomic.Bool
	loops   sync.WaitGroup
	tasks   sync.WaitGroup // goroutines that post

	mu      sync.Mutex // guards the rest
	in      inbox
	bytes   int        // of in.frames
	room    *sync.Cond // of inboxBytes
	awake   bool       // the loop was told, and has not looked yet
	stopped bool       // the loop takes no more
	wake    chan struct{}
	stop    chan struct{}
	closing sync.Once
}

// inbox is what has come for the core since its last turn.
type inbox struct {
	tasks  []func()
	frames []inFrame
	calls  []localCall
}

// localCall is a Call of this controller's.
type localCall struct {
	call     *attune.Call
	kind     requestKind
	lost     lost
	deadline time.Duration
}

// Write decides c.Ops, in order, at the leader, and has them committed by a
// quorum and applied there. It always answers later. c.Session then knows of them.
func (e *Engine) Write(c *attune.Call) bool {
	return e.submit(localCall{call: c, kind: kindWrite})
}

// Barrier returns when this replica may answer reads begun before the call: at
// the linearizable level when it has applied everything that was committed then
// (a read index, confirmed by a quorum); at the sequential one when it has
// applied what c.Session has seen, which mostly it has. The first of a session
// there also waits a moment for a read index, so that a client that comes from
// another controller does not go back.
func (e *Engine) Barrier(c *attune.Call) bool {
	kind := kindBarrier
	if e.o.Sequential && e.core.isServing.Load() {
		kind = kindAnchor
		if c.Session.Anchored {
			if applied := e.core.applied.Load(); applied >= c.Session.Seen {
				c.Session.Seen, c.Err = applied, nil
				return true
			}
			kind = kindSeen
		}
	}
	return e.submit(localCall{call: c, kind: kind})
}

// submit hands a call to the core.
func (e *Engine) submit(in localCall) bool {
	if !in.call.Deadline.IsZero() {
		in.deadline = max(in.call.Deadline.Sub(e.start), 1)
	}
	e.mu.Lock()
	if e.stopped {
		e.mu.Unlock()
		for i := range in.call.Ops {
			in.call.Res[i] = attune.Result{Status: attune.Failed, Err: errClosed}
		}
		in.call.Err = errClosed
		return true
	}
	e.in.calls = append(e.in.calls, in)
	e.wakeLocked()
	return false
}

// wakeLocked has the loop take a turn, and releases the lock.
func (e *Engine) wakeLocked() {
	tell := !e.awake
	e.awake = true
	e.mu.Unlock()
	if tell {
		select {
		case e.wake <- struct{}{}:
		default: // it was told before, and has not listened yet
		}
	}
}

// post has fn run by the core's goroutine, unless the engine has stopped.
func (e *Engine) post(fn func()) {
	e.mu.Lock()
	if e.stopped {
		e.mu.Unlock()
		return
	}
	e.in.tasks = append(e.in.tasks, fn)
	e.wakeLocked()
}

// Tune sets MaxItem and RepairRate of the Options anew.
func (e *Engine) Tune(maxItem int, repairRate int64) {
	e.filler.SetRate(repairRate)
	e.post(func() { e.core.maxItem = maxItem })
}

// frame takes what a peer sent.
func (e *Engine) frame(from uint64, kind byte, body []byte) {
	e.mu.Lock()
	for e.bytes > inboxBytes && !e.stopped {
		e.room.Wait()
	}
	if e.stopped {
		e.mu.Unlock()
		return
	}
	e.bytes += len(body)
	e.in.frames = append(e.in.frames, inFrame{from: from, kind: kind, body: body})
	e.wakeLocked()
}

// run is the core's goroutine.
func (e *Engine) run() {
	defer e.loops.Done()
	timer := time.NewTimer(tickEvery)
	defer timer.Stop()
	var in inbox
	for {
		select {
		case <-e.wake:
		case <-timer.C:
		case <-e.stop:
			e.drainCore()
			return
		}
		// Whoever can run now may have something to say in the same turn.
		runtime.Gosched()
		e.mu.Lock()
		in, e.in = e.in, in
		e.bytes, e.awake = 0, false
		e.room.Broadcast()
		// What woke the loop is taken; a second word of it is not needed.
		select {
		case <-e.wake:
		default:
		}
		e.mu.Unlock()
		e.core.turn(time.Since(e.start), &in)
		clear(in.tasks)
		clear(in.frames)
		clear(in.calls)
		in.tasks, in.frames, in.calls = in.tasks[:0], in.frames[:0], in.calls[:0]
		e.noteState()
		timer.Reset(e.core.wait())
	}
}

// wait is how long the core needs no turn if nothing comes.
func (c *core) wait() time.Duration {
	next := c.nextTick
	if len(c.timed) > 0 {
		next = min(next, c.nextExpiry)
	}
	if c.campaignAt != 0 {
		next = min(next, c.campaignAt)
	}
	for _, w := range c.commits {
		next = min(next, w.at+commitLater)
	}
	if len(c.late) > 0 {
		next = min(next, c.now+lateEvery)
	}
	return max(next-c.now, time.Millisecond)
}

// drainCore fails what is left when the engine stops.
func (e *Engine) drainCore() {
	e.mu.Lock()
	e.stopped = true
	in := e.in
	e.in = inbox{}
	e.room.Broadcast()
	e.mu.Unlock()
	c := e.core
	c.closing = true
	for _, call := range in.calls {
		c.accept(call)
	}
	c.failAll(errClosed)
}

// failAll answers every request of this controller's with err.
func (c *core) failAll(err error) {
	for _, r := range c.writes {
		c.fail(r, err)
	}
	for _, p := range c.lead.inflight {
		for _, r := range p.waiters {
			c.fail(r, err)
		}
	}
	for _, r := range c.forwarded {
		c.fail(r, err)
	}
	for _, r := range c.timed {
		c.fail(r, err)
	}
	c.reads.each(func(r *request) { c.fail(r, err) })
}

func (r *reads) each(fn func(*request)) {
	for _, list := range [][]*request{r.next, r.seen, r.asked} {
		for _, q := range list {
			fn(q)
		}
	}
	for _, a := range r.applied {
		for _, q := range a.reqs {
			fn(q)
		}
	}
}

// noteState tells others what changed for them.
func (e *Engine) noteState() {
	c := e.core
	if c.ticked || e.status.Load() == nil {
		st := c.describe()
		e.status.Store(st)
		healthy := e.Health() == nil
		e.cluster.SetReady(healthy)
		if healthy {
			select {
			case <-e.ready:
			default:
				close(e.ready)
			}
		}
	}
	if c.memb.removed && !c.memb.leaving && c.now-c.memb.removedAt > lostAfter {
		select {
		case e.fatal <- errors.New("this controller was removed from its cluster; to enter it again, restart it, with an empty data-dir if it has one"):
		default:
		}
	}
}

// Fatal says why this controller must stop, if it must.
func (e *Engine) Fatal() <-chan error { return e.fatal }

// Now is the log clock, by which items expire: that of the newest entry this
// replica has applied, in unix milliseconds.
func (e *Engine) Now() int64 { return e.core.clock.Load() }

// Ready is closed when the level is first served.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Health says why the level is not served now, or nil. It is at most a tick old.
func (e *Engine) Health() error {
	st := e.status.Load()
	switch {
	case st == nil:
		return errors.New("starting")
	case !st.Formed:
		return fmt.Errorf("waiting for members: %d of %d", st.Voters, e.o.Expect)
	case !st.Serving:
		return errors.New("fetching a copy of the data from the other controllers")
	case st.Role == "learner" && st.Voters < maxVoters:
		return errors.New("waiting to become a voter")
	case st.Leader == "":
		return errNoQuorum
	}
	return e.stage.Stuck()
}

// ForceNewCluster makes this controller the only member of a new cluster with the
// data it has, for an operator who knows that a quorum of the others is lost for
// good. Writes that only these had are gone. They are foreigners from now on, and
// can come back as new members, without their data.
func (e *Engine) ForceNewCluster() error {
	return e.do(e.ctx, func(*core) error { return e.force() })
}

// force is ForceNewCluster on the core's goroutine. The cluster has its new name first:
// under the old one those who are believed to be lost, and come back, would follow a
// leader who has forgotten them.
func (e *Engine) force() error {
	if err := e.core.mayForce(); err != nil {
		return err
	}
	ident := e.ident
	if _, err := rand.Read(ident.Cluster[:]); err != nil {
		return err
	}
	err := e.store.Rename(ident)
	if err == nil {
		e.ident.Cluster = ident.Cluster
		e.cluster.Move(ident.Cluster)
		err = e.core.force()
	}
	if err != nil {
		err = fmt.Errorf("the new cluster could not be written down: restart this controller, and force it again: %w", err)
		select {
		case e.fatal <- err:
		default: // one reason will do
		}
		return err
	}
	e.log.Warn("FORCED a new cluster: writes that only lost members had are gone, and the old members are refused from now on",
		zap.String("cluster", fmt.Sprintf("%x", ident.Cluster[:4])), zap.Uint64("applied", e.core.st.applied))
	return nil
}

// Close hands over leadership, has a member without a data-dir removed for good,
// stops what Open started and waits for it. Requests that are still here fail.
func (e *Engine) Close() error {
	e.closing.Do(func() {
		e.leave()
		e.end()
	})
	return e.ended()
}

func (e *Engine) end() {
	e.cancel(errClosed)
	e.stage.GiveUp()
	close(e.stop)
}

func (e *Engine) ended() error {
	e.loops.Wait()
	e.tasks.Wait()
	e.stage.Close()
	return errors.Join(e.cluster.Close(), e.store.Close())
}

// leave makes room for the others, within leavePatience or goodPatience.
func (e *Engine) leave() {
	patience, forget := leavePatience, e.o.DataDir == ""
	if e.forGood.Load() {
		patience, forget = goodPatience, true
	}
	e.post(func() { e.core.memb.leaving, e.core.memb.forget = true, forget })
	left := make(chan bool, 1)
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		e.post(func() { left <- e.core.left() })
		if <-left {
			break
		}
		if time.Now().After(end) {
			if forget {
				e.log.Warn("stopping although the others have not confirmed that this controller left: as long as it is a member (attune show), it counts as missing", zap.Duration("waited", patience))
			}
			break
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = e.cluster.Leave(ctx) // that others are told late is no harm
}
