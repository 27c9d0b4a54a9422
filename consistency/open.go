package consistency

import (
	"context"
	"fmt"
	"math/rand/v2"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/gossip"
	"github.com/attunekv/attune/consistency/ordered"
	"github.com/attunekv/attune/consistency/ordered/raftlog"
	"github.com/attunekv/attune/replica"
)

// Options say what an engine works on.
type Options struct {
	// OpenReplica makes the shard's copy on this node, for data of a generation
	// and keys hashed by a seed. The engine calls it once, when it knows these, and
	// alone applies changes to what it gets; the backend is closed by the caller,
	// after the engine.
	OpenReplica func(gen uint32, seed uint64) (*replica.Replica, error)
	// Node is this controller's name, unique in its cluster.
	Node string
	// MaxItem is the largest value that may come of an append, in bytes; 0 is no
	// limit. (Larger ones are refused before they get here.)
	MaxItem int

	// The rest is for the ordered levels.

	// OpenCluster opens the peer port, for a member that goes by id.
	OpenCluster func(id uint64) (*cluster.Cluster, error)
	// Expect is how many controllers make a new cluster.
	Expect int
	// DataDir keeps the log and the state, as Sync says: os or always. Empty: a
	// controller that restarts is a new member, and is filled by the others.
	DataDir, Sync string
	Log           *zap.Logger
}

// Status and MemberStatus are what a Group tells of itself.
type (
	Status       = ordered.Status
	MemberStatus = ordered.MemberStatus
)

// Group is an [Engine] whose replicas agree by a quorum.
type Group interface {
	Status() Status
	// ForceNewCluster goes on with this replica alone: see attune recover.
	ForceNewCluster() error
	// Fatal delivers the reason why this controller must stop, should there be one.
	Fatal() <-chan error
}

// ParseSync checks a value of Options.Sync.
func ParseSync(s string) error {
	_, err := raftlog.ParseSync(s)
	return err
}

// Open starts the engine that keeps level. At the ordered levels it returns when
// this controller has found its cluster, or founded one, and ends early with ctx.
// Eventual is kept by a controller alone in this version, and causal not at all;
// the errors say so.
func Open(ctx context.Context, level Level, o Options) (Engine, error) {
	switch level {
	case Linearizable, Sequential:
		sync := raftlog.None
		if o.DataDir != "" {
			var err error
			if sync, err = raftlog.ParseSync(o.Sync); err != nil {
				return nil, err
			}
		}
		e, err := ordered.Open(ctx, ordered.Options{
			Sequential: level == Sequential, Name: o.Node, Expect: o.Expect, MaxItem: o.MaxItem,
			DataDir: o.DataDir, Sync: sync, OpenCluster: o.OpenCluster, OpenReplica: o.OpenReplica, Log: o.Log,
		})
		if err != nil {
			return nil, err
		}
		return e, nil
	case Eventual:
		r, err := o.OpenReplica(rand.Uint32(), rand.Uint64())
		if err != nil {
			return nil, err
		}
		return eventual{gossip.Open(gossip.Options{Replica: r, Node: o.Node, MaxItem: o.MaxItem}), !r.Immediate()}, nil
	default:
		return nil, fmt.Errorf("consistency %q is not served by this version: use linearizable, sequential, or eventual", level)
	}
}

var (
	_ Engine = (*ordered.Engine)(nil)
	_ Group  = (*ordered.Engine)(nil)
)

// eventual is the gossip engine with every answer given at once: alone, it waits
// for nobody, and for a backend outside this process it waits in place.
type eventual struct {
	*gossip.Engine
	waits bool // for such a backend
}

var _ Engine = eventual{}

func (e eventual) Write(c *attune.Call) bool {
	ctx, cancel := e.bound(c)
	e.Engine.Write(ctx, c.Ops, c.Res)
	cancel()
	return true
}

// Barrier answers at once: any replica may answer any read.
func (e eventual) Barrier(c *attune.Call) bool {
	c.Err = nil
	return true
}

func (e eventual) Recover(c *attune.Call, key attune.Key, lost attune.Item) bool {
	ctx, cancel := e.bound(c)
	c.Res[0].Item, c.Err = e.Engine.Recover(ctx, key, lost)
	cancel()
	return true
}

// Health is nil: what a node alone has, it serves.
func (e eventual) Health() error { return nil }

// bound gives c's context c's deadline, if anything may last that long: a
// context of one's own costs more than an op on memory.
func (e eventual) bound(c *attune.Call) (context.Context, context.CancelFunc) {
	if !e.waits || c.Deadline.IsZero() {
		return c.Ctx, func() {}
	}
	return context.WithDeadlineCause(c.Ctx, c.Deadline, ErrTimeout)
}
