package kvadapter

import (
	"slices"

	"github.com/attunekv/attune"
)

var _ Spread = (*memcached)(nil)

// Server implements Spread. Servers are numbered as in Stats.
func (m *memcached) Server(key attune.Key) int {
	if len(m.servers) == 1 {
		return 0
	}
	return slices.Index(m.servers, m.pick(memcachedKey(key)))
}
