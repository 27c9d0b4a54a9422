package consistency

import (
	"context"

	"github.com/attunekv/attune/consistency/gossip"
)

// SimOptions, SimReport and the types they are made of belong to [Simulate].
type (
	SimOptions   = gossip.SimOptions
	SimReport    = gossip.SimReport
	SimQuantiles = gossip.SimQuantiles
	SimTraffic   = gossip.SimTraffic
	SimPoint     = gossip.SimPoint
)

// Simulate runs a cluster of controllers at the level causal or eventual in this
// process, over a network and in time that are made up: see [gossip.Simulate].
func Simulate(ctx context.Context, o SimOptions) (SimReport, error) { return gossip.Simulate(ctx, o) }
