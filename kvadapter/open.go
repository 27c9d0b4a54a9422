package kvadapter

import (
	"errors"
	"fmt"
	"net/url"
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
	if rest, ok := strings.CutPrefix(spec, "memcached://"); ok {
		u, err := parseServers(rest)
		if err != nil {
			return nil, fmt.Errorf("backend %q: %w", spec, err)
		}
		return newMemcached(u)
	}
	return nil, fmt.Errorf("unknown backend %q: choose embedded or memcached://host:port[,host:port...]", spec)
}

// parseServers parses what follows memcached://. The list of servers is kept
// from url.Parse, which would refuse an IPv6 address in it.
func parseServers(rest string) (*url.URL, error) {
	end := strings.IndexAny(rest+"/", "/?#")
	start := strings.LastIndexByte(rest[:end], '@') + 1
	u, err := url.Parse("memcached://" + rest[:start] + "list" + rest[end:])
	if err != nil {
		return nil, errors.Unwrap(err) // *url.Error quotes what it was given
	}
	u.Host = rest[start:end]
	return u, nil
}
