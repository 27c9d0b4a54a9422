package controller

import (
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
