package kvadapter

import (
	"fmt"
	"strings"
)

// Open opens the backend that spec names:
//
//	embedded                                            memory of this process
//	memcached://host:port[,host:port...][?timeout=..&max_idle=..]
//
// It reaches for no server, so it fails only on a spec that makes no sense: a
// server that is down now may be up when it is first needed.
func Open(spec string) (Backend, error) {
	if spec == "embedded" {
		return newEmbedded(), nil
	}
	if strings.HasPrefix(spec, memcachedScheme) {
		return newMemcached(spec)
	}
	return nil, fmt.Errorf("unknown backend %q: choose embedded or memcached://host:port[,host:port...]", spec)
}
