package consistency

import (
	"errors"
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

// ErrTimeout is why a request failed that waited for a backend until its
// deadline: the backend is slow or hung, or op-timeout too short for it.
var ErrTimeout = errors.New("timed out waiting for the backend; see op-timeout")

// Engine keeps one level's promise for one shard.
//
// Write, Barrier and Recover answer in the [attune.Call], and wait for nothing but
// locks: not for others, and not for a backend outside this process. One that returns true
// has answered already. One that returns false answers later, and says so by
// calling c.Done, once: from any goroutine, also before it returned false, and
// with locks held, since Done neither blocks nor calls the engine. It is not
// called when true is returned. A Call has one request under way at a time;
// until its answer, the caller neither changes nor reads anything in it.
//
// An engine gives up at c.Deadline, and may as soon as c.Ctx ends: then nobody
// reads the answer.
type Engine interface {
	// Write decides c.Ops in order and makes them take effect, all of them in
	// flight together; c.Res[i] answers c.Ops[i] (len(c.Res) == len(c.Ops)). The
	// answer comes when the level lets the last of them be acknowledged. An op
	// that fails has Status Failed, and may or may not have happened:
	// SERVER_ERROR, nothing else. Values in c.Res may be in buffers of the
	// engine, and are valid until the next request with the same Call.
	Write(c *attune.Call) bool
	// Barrier answers once the local replica may answer any read begun before
	// the call. c.Err: the level cannot be kept now.
	Barrier(c *attune.Call) bool
	// Recover is called when the local replica has lost the bytes of an item it
	// has in its index. c.Res[0].Item (len(c.Res) == 1) is the item from
	// elsewhere or, if nobody has it, the zero Item after exactly that version
	// was removed: a miss. At a level where a miss is no fact, one that is not live
	// is a miss without that. c.Err: none of these could be done now.
	Recover(c *attune.Call, key attune.Key, lost attune.Item) bool
	// Now is the engine's clock for expiry, in unix milliseconds. It goes with
	// what the replica holds: a Barrier may move both, so what is read behind one
	// is judged by a Now from behind it, too.
	Now() int64
	// Ready is closed when the level is first served.
	Ready() <-chan struct{}
	// Health says why the level is not served now; nil if it is.
	Health() error
	// Close stops what Open started and waits for it. Requests still under way
	// are answered as failed, or never: nobody waits for them any more.
	Close() error
}
