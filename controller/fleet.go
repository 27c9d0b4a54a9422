package controller

import (
	"fmt"

	"go.uber.org/zap"

	"github.com/attunekv/attune/kvadapter"
)

// watchFleet logs which server of a backend goes down and comes back: once each,
// however many calls meet it.
func (n *Node) watchFleet(backend kvadapter.Backend) {
	fleet, ok := backend.(kvadapter.Fleet)
	if !ok {
		return
	}
	fleet.Watch(func(addr string, why error) {
		if why != nil {
			n.log.Warn("a server of the backend is down; its keys fail at once until it answers", zap.String("server", addr), zap.Error(why))
		} else {
			n.log.Info("a server of the backend is up again", zap.String("server", addr))
		}
	})
}

// fleetServers lists the servers of all backends.
func (n *Node) fleetServers() (all []kvadapter.Server) {
	for _, sh := range n.shards {
		if fleet, ok := sh.backend.(kvadapter.Fleet); ok {
			all = append(all, fleet.Servers()...)
		}
	}
	return all
}

// fleetLine is a server in a word and two numbers: calls that failed, and the mean
// time of one in microseconds, 0 for none.
func fleetLine(v *kvadapter.Server) string {
	state, mean, calls := "up", int64(0), uint64(0)
	if v.Down {
		state = "down"
	}
	for _, n := range v.Latency.Buckets {
		calls += n
	}
	if calls > 0 {
		mean = v.Latency.Sum.Microseconds() / int64(calls)
	}
	return fmt.Sprintf("%s %d %d", state, v.Errors, mean)
}
