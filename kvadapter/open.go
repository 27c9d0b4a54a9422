package kvadapter

import (
	"fmt"
	"strings"

	"go.uber.org/zap"
)

// Option changes how Open opens.
type Option func(*options)

type options struct{ log *zap.Logger }

// Log has the backend tell l what an operator should know. Without it nobody is
// told.
func Log(l *zap.Logger) Option { return func(o *options) { o.log = l } }

// Open opens the backend that spec names:
//
//	embedded                                            memory of this process
//	memcached://host:port[,host:port...][?timeout=..&max_idle=..]
//	pebble:///dir[?cache=..&reserve=..]                 files on this machine
//
// It reaches for no server, so it fails only on a spec that makes no sense, or a
// directory that cannot be used: a server that is down now may be up when it is
// first needed.
func Open(spec string, opts ...Option) (Backend, error) {
	o := options{log: zap.NewNop()}
	for _, opt := range opts {
		opt(&o)
	}
	if spec == "embedded" {
		return newEmbedded(), nil
	}
	if strings.HasPrefix(spec, memcachedScheme) {
		return newMemcached(spec)
	}
	if rest, ok := strings.CutPrefix(spec, "pebble://"); ok {
		p, err := parsePebble(rest)
		if err != nil {
			return nil, fmt.Errorf("backend %q: %w", spec, err)
		}
		s, err := openPebble(p, o.log)
		if err != nil {
			return nil, fmt.Errorf("backend %q: %w", spec, err)
		}
		return s, nil
	}
	return nil, fmt.Errorf("unknown backend %q: choose embedded, memcached://host:port[,host:port...] or pebble:///dir", spec)
}
