package attune

import (
	"context"
	"time"
)

// Session is what an engine remembers of one connection: what the connection
// has seen, so that it is never shown less.
type Session struct {
	// Seen is the newest log index whose effects the connection knows of, by a
	// write of its own or by a read.
	Seen uint64
	// Anchored says that Seen was at least once as new as the whole cluster, so
	// that a client that came from another controller does not go back either.
	Anchored bool
}

// Call is one request to an engine and the place of its answer. A connection
// keeps one and uses it again and again, so that asking allocates nothing.
//
// An engine that cannot answer at once says so, keeps the Call, and calls Done,
// once, from a goroutine of its own. Until then everything in the Call, and what
// its Ops point to, belongs to the engine, which only reads Ops.
type Call struct {
	// Ctx ends when nobody is interested any more.
	Ctx context.Context
	// Deadline is when the engine gives up, answering Failed; zero is never.
	Deadline time.Time
	// Done is called when the answer is there, unless it was there at once. It
	// must not block.
	Done func()

	Session Session
	Ops     []Op
	Res     []Result // of a Write: Res[i] answers Ops[i]; of a Recover: Res[0].Item
	Err     error    // of a Barrier or a Recover

	Trace *Trace // notes the steps of this Call; nil for nearly all
}
