package consistency

import (
	"context"
	"fmt"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/gossip"
	"github.com/attunekv/attune/replica"
)

// Options say what an engine works on.
type Options struct {
	// Replica is the shard's copy on this node. The engine alone applies changes
	// to it; its backend is closed by the caller, after the engine.
	Replica *replica.Replica
	// Node is this controller's name, unique in its cluster.
	Node string
	// MaxItem is the largest value that may come of an append, in bytes; 0 is no
	// limit. (Larger ones are refused before they get here.)
	MaxItem int
}

// Open starts the engine that keeps level. Only [Eventual] can be kept by a
// controller alone; the error for another says so.
func Open(level Level, o Options) (Engine, error) {
	if level != Eventual {
		return nil, fmt.Errorf("consistency %q needs controllers that replicate to each other, which this version does not have yet: use eventual", level)
	}
	return eventual{gossip.Open(gossip.Options(o))}, nil
}

// eventual is the gossip engine without what it has no use for: sessions, and
// barriers.
type eventual struct{ *gossip.Engine }

var _ Engine = eventual{}

func (e eventual) Write(ctx context.Context, _ *Session, ops []attune.Op, res []attune.Result) {
	e.Engine.Write(ctx, ops, res)
}

// Barrier returns at once: any replica may answer any read.
func (e eventual) Barrier(context.Context, *Session) error { return nil }
