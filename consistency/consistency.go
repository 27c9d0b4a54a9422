package consistency

import (
	"context"
	"fmt"

	"github.com/attunekv/attune"
)

// Level is what a cluster promises its clients.
type Level uint8

// The levels, strongest first.
const (
	Linearizable Level = iota
	Sequential
	Causal
	Eventual
)

var levelNames = [...]string{"linearizable", "sequential", "causal", "eventual"}

func (l Level) String() string { return levelNames[l] }

// ParseLevel reads a level's name; "linearizability" is accepted too.
func ParseLevel(s string) (Level, error) {
	if s == "linearizability" {
		return Linearizable, nil
	}
	for i, name := range levelNames {
		if s == name {
			return Level(i), nil
		}
	}
	return 0, fmt.Errorf("unknown consistency level %q: choose linearizable, sequential, causal or eventual", s)
}

// Session is what an engine remembers of one connection. It is used by one
// goroutine at a time.
type Session struct{}

// Engine keeps one level's promise for one shard.
type Engine interface {
	// Write decides ops in order and makes them take effect, all of them in
	// flight together; res[i] answers ops[i] (len(res) == len(ops)). It returns
	// when the level lets the last of them be acknowledged. An op that fails has
	// Status Failed, and may or may not have happened: SERVER_ERROR, nothing
	// else. Values in res may use the results' own buffers and are valid until
	// the next call with the same res.
	Write(ctx context.Context, s *Session, ops []attune.Op, res []attune.Result)
	// Barrier returns once the local replica may answer any read begun before
	// the call. Errors: the level cannot be kept now.
	Barrier(ctx context.Context, s *Session) error
	// Recover is called when the local replica has lost the bytes of an item it
	// has in its index. It returns the item from elsewhere or, if nobody has it,
	// removes exactly that version and returns the zero Item: a miss.
	Recover(ctx context.Context, key attune.Key, lost attune.Item) (attune.Item, error)
	// Now is the engine's clock for expiry, in unix milliseconds.
	Now() int64
	// Ready is closed when the level is first served.
	Ready() <-chan struct{}
	// Close stops what Open started and waits for it.
	Close() error
}
