package kvadapter

import (
	"slices"

	"github.com/attunekv/attune"
)

var _ Spread = (*memcached)(nil)

// Server implements Spread. Servers are numbered as in Stats, and anew when the fleet
// is another.
func (m *memcached) Server(key attune.Key) int {
	f := m.fleet.Load()
	if len(f.servers) == 1 {
		return 0
	}
	return slices.Index(f.servers, f.pick(memcachedKey(key)))
}
