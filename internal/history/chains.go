package history

import (
	"fmt"
	"strconv"
	"strings"
)

// naming makes a token that names version of key as what its writer knew.
func naming(token, key string, version uint64) string {
	return fmt.Sprintf("%s<%s@%d;", strings.TrimSuffix(token, ";"), key, version)
}

// cause returns what a value names.
func cause(value string) (key string, version uint64, ok bool) {
	_, named, ok := strings.Cut(value, "<")
	if !ok {
		return "", 0, false
	}
	key, number, _ := strings.Cut(strings.TrimSuffix(named, ";"), "@")
	version, err := strconv.ParseUint(number, 10, 64)
	return key, version, err == nil
}

// Chains returns an error if a connection that has read a value, which names
// what its writer knew, then reads something older in its place. For the workload
// Chained, which deletes nothing: a miss is older than everything. It is part of
// what Causal finds, and rests on nothing but what the values say.
func Chains(h History) error {
	if err := sane(h); err != nil {
		return err
	}
	type place struct {
		session int
		key     string
	}
	type need struct {
		version uint64
		by      Event
	}
	needs := make(map[place]need)
	for _, e := range h.byCall() {
		if e.Op.Kind != Get {
			continue
		}
		n, known := needs[place{e.Session, e.Op.Key}]
		switch e.Out.Status {
		case Miss:
			if known {
				return fmt.Errorf("a connection reads what came of version %d of %s, and then nothing:\n%v\n%v", n.version, e.Op.Key, n.by, e)
			}
		case Hit:
			if e.Out.Version < n.version {
				return fmt.Errorf("a connection reads what came of version %d of %s, and then version %d:\n%v\n%v",
					n.version, e.Op.Key, e.Out.Version, n.by, e)
			}
			key, version, ok := cause(e.Out.Value)
			if at := (place{e.Session, key}); ok && version > needs[at].version {
				needs[at] = need{version, e}
			}
		}
	}
	return nil
}
