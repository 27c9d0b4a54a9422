package consistency

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/gossip"
	"github.com/attunekv/attune/consistency/ordered"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/replica"
)

// Options say what an engine works on.
type Options struct {
	// OpenReplica makes the shard's copy on this node, with what it is given and a
	// backend. The engine calls it once, when it knows which data that is for, and
	// alone applies changes to what it gets; the backend is closed by the caller,
	// after the engine.
	OpenReplica func(replica.Options) (*replica.Replica, error)
	// Node is this controller's name, unique in its cluster.
	Node string
	// MaxItem is the largest value that may come of an append, in bytes; 0 is no
	// limit. (Larger ones are refused before they get here.)
	MaxItem int

	// Alone is a controller without a cluster, at the levels causal and eventual. The
	// rest means nothing to it.
	Alone bool
	// OpenCluster opens the peer port, for a member that goes by id, of a cluster of
	// that kind.
	OpenCluster func(id uint64, kind string) (*cluster.Cluster, error)
	// Expect is how many controllers make a new cluster.
	Expect int
	// DataDir keeps the log and the state, as Sync says: os or always. Empty: a
	// controller that restarts is a new member, and is filled by the others.
	DataDir, Sync string
	// Full says why nothing more may be written to the disks of this controller; nil
	// that there is room, or that it writes to none. Deletions are carried out all the
	// same.
	Full func() error
	// WriteAcks, MaxSkew and TombstoneMaxAge are for causal and eventual: see
	// gossip.Options.
	WriteAcks       int
	MaxSkew         time.Duration
	TombstoneMaxAge time.Duration
	// RepairRate is how many bytes a second are fetched from others for a backend
	// outside this process that lacks them, 0 for no limit.
	RepairRate int64
	// Trace begins to trace what another controller asks for, as part of its span. It
	// returns nil if nobody keeps what is traced here, and is nil if nobody ever does.
	Trace func(attune.SpanContext, []attune.Op) *attune.Trace
	Log   *zap.Logger
}

// AllAcks is a WriteAcks of every controller that is alive.
const AllAcks = gossip.All

// Tuning is what of the Options may change while an engine runs.
type Tuning = gossip.Tuning

// Tune has e go over to t. What its level has no use for is ignored.
func Tune(e Engine, t Tuning) {
	switch e := e.(type) {
	case *ordered.Engine:
		e.Tune(t.MaxItem, t.RepairRate)
	case spreading:
		e.e.Tune(t)
	case Gossiping:
		e.e.Tune(t)
	}
}

// GossipStatus is what a [Gossiping] engine tells of itself, PeerStatus of another.
type (
	GossipStatus = gossip.Status
	PeerStatus   = gossip.PeerStatus
)

// RepairStatus is how a store outside this process is.
type RepairStatus = repair.Status

// Repairing is an [Engine] that gets from others what its store has lost.
type Repairing interface {
	Repairs() RepairStatus
	// Seek gives to fn what others have of the items that save lacks, and returns how
	// many. It takes its time, until ctx ends. Errors: fn's, which end it; the cause of
	// ctx; why others did not answer.
	Seek(ctx context.Context, save *replica.Save, fn func(key []byte, it attune.Item) error) (found int64, err error)
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
	// Transfer makes the controller called to lead, or if that is empty one that is up
	// to date, and returns its name.
	Transfer(ctx context.Context, to string) (leader string, err error)
	// Origin is the name of the controller that decided a change; "" if it is not known.
	Origin(v attune.Version) string
	// Fatal delivers the reason why this controller must stop, should there be one.
	Fatal() <-chan error
}

// Leaver is an [Engine] with others.
type Leaver interface {
	// LeaveForGood has Close make this controller no member any more, with a data-dir
	// or without. Errors: why it must not.
	LeaveForGood() error
}

// ParseSync checks a value of Options.Sync.
func ParseSync(s string) error {
	_, err := disk.ParseSync(s)
	return err
}

// Open starts the engine that keeps level. In a cluster it returns when this
// controller has found it, or founded one, and ends early with ctx. The ordered
// levels always are a cluster, if of one controller; the others are when more than
// one is expected, or one is to be joined.
func Open(ctx context.Context, level Level, o Options) (Engine, error) {
	switch level {
	case Linearizable, Sequential:
		sync := disk.None
		if o.DataDir != "" {
			var err error
			if sync, err = disk.ParseSync(o.Sync); err != nil {
				return nil, err
			}
		}
		e, err := ordered.Open(ctx, ordered.Options{
			Sequential: level == Sequential, Name: o.Node, Expect: o.Expect, MaxItem: o.MaxItem, RepairRate: o.RepairRate,
			DataDir: o.DataDir, Sync: sync, Full: o.Full, OpenReplica: o.OpenReplica, Trace: o.Trace, Log: o.Log,
			OpenCluster: func(id uint64) (*cluster.Cluster, error) { return o.OpenCluster(id, kindOrdered) },
		})
		if err != nil {
			return nil, err
		}
		return e, nil
	case Causal, Eventual:
		g := gossip.Options{
			OpenReplica: o.OpenReplica, Node: o.Node, MaxItem: o.MaxItem, RepairRate: o.RepairRate, Causal: level == Causal,
			WriteAcks: o.WriteAcks, MaxSkew: o.MaxSkew, TombstoneMaxAge: o.TombstoneMaxAge,
			DataDir: o.DataDir, Full: o.Full, Timeout: ErrTimeout, Trace: o.Trace, Log: o.Log,
		}
		if o.DataDir != "" {
			var err error
			if g.Sync, err = disk.ParseSync(o.Sync); err != nil {
				return nil, err
			}
		}
		if !o.Alone {
			g.OpenCluster = func(id uint64) (*cluster.Cluster, error) { return o.OpenCluster(id, level.String()) }
		}
		e, err := gossip.Open(ctx, g)
		if err != nil {
			return nil, err
		}
		if o.Alone {
			return spreading{e}, nil
		}
		return Gossiping{spreading{e}}, nil
	default:
		return nil, fmt.Errorf("no level %d", level)
	}
}

// kindOrdered names the engine of both ordered levels to other controllers: those
// of another kind are not of this cluster.
const kindOrdered = "ordered"

var (
	_ Engine    = (*ordered.Engine)(nil)
	_ Group     = (*ordered.Engine)(nil)
	_ Engine    = spreading{}
	_ Engine    = Gossiping{}
	_ Leaver    = (*ordered.Engine)(nil)
	_ Leaver    = Gossiping{}
	_ Repairing = (*ordered.Engine)(nil)
	_ Repairing = Gossiping{}
)

// spreading is the gossip engine with the names of [Engine].
type spreading struct{ e *gossip.Engine }

func (s spreading) Write(c *attune.Call) bool   { return s.e.Submit(c) }
func (s spreading) Barrier(c *attune.Call) bool { return s.e.Barrier(c) }
func (s spreading) Recover(c *attune.Call, key attune.Key, lost attune.Item) bool {
	return s.e.Find(c, key, lost)
}
func (s spreading) Now() int64             { return s.e.Now() }
func (s spreading) Ready() <-chan struct{} { return s.e.Ready() }
func (s spreading) Health() error          { return s.e.Health() }
func (s spreading) Close() error           { return s.e.Close() }

// Gossiping is an [Engine] whose replicas converge.
type Gossiping struct{ spreading }

// Fatal delivers the reason why this controller must stop, should there be one.
func (g Gossiping) Fatal() <-chan error { return g.e.Fatal() }

// Repairs tells how the store outside this process is.
func (g Gossiping) Repairs() RepairStatus { return g.e.Repairs() }

// Seek gives to fn what others have of the items that save lacks.
func (g Gossiping) Seek(ctx context.Context, save *replica.Save, fn func(key []byte, it attune.Item) error) (found int64, err error) {
	return g.e.Seek(ctx, save, fn)
}

// LeaveForGood says why this controller must not leave; it always leaves for good.
func (g Gossiping) LeaveForGood() error { return g.e.LeaveForGood() }

// Home is the name of the controller that decides ops on a key which look at what is
// there first.
func (g Gossiping) Home(key attune.KeyHash) string { return g.e.Home(key) }

// Origin is the name of the controller that issued a version; "" if that is not known.
func (g Gossiping) Origin(v attune.Version) string { return g.e.Origin(v) }

// Status tells how this member and the others are.
func (g Gossiping) Status() GossipStatus { return g.e.Status() }
