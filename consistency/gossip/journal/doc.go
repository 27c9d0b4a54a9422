// Package journal is what one controller of a gossip cluster remembers in a
// directory, so that after a restart it is the same origin of the same updates:
// who it is, a state, the update records appended since, and how far its clock
// may have gone. What a state and a record say is their writer's business.
//
// Package disk has the files; what is in them is said here. Its parts:
//
//	journal.go   Journal: Open, Start, Append, SetBound, Mark, Replay, Close
//	segment.go   the records: appended, rolled, taken apart
//	state.go     Checkpoint, LoadState
//	recover.go   what a directory proves
//
// A life: Open. If [Journal.Identity] is known, LoadState and then Replay give back
// all that was appended; else Start begins a new memory. From then on one goroutine
// takes the updates that came meanwhile and gives them to Append together, which is
// one write, and for [disk.Always] one sync. When [Journal.Size] has grown too large, the
// engine cuts its state, calls Mark, and has Checkpoint write the state while
// appends go on.
//
// # What the caller must keep to
//
// The origin and its sequence numbers are kept over a restart, so nobody may have
// seen what was forgotten: an update of this origin is appended before a peer gets it
// or a client is told of it. Else the next life gives its number to another update,
// which those peers take for one they have. The same holds for versions: the clock
// issues none of a millisecond above [Journal.Bound].
//
// All that was appended before Mark must be in the state. What is appended later may
// be in it as well and is replayed nevertheless, so replaying a record twice must do
// no harm. An engine that applies updates before it appends them may call Mark at
// any moment before it cuts its state, or at that moment.
//
// A directory that does not prove that it lacks nothing is worth nothing: Identity
// is then unknown, and this controller a new origin, to be filled by its peers.
//
// # Files
//
//	identity         also whether the others were closed, and then survive anything
//	log-POSITION     segments of records
//	state-POSITION   the state that has all records before POSITION; normally one
//
// A [Position] counts the bytes of all records ever appended, over all segments and
// without their heads, in 16 hexadecimal digits. So each segment must begin where the
// one before ends, a state must be of a place where a record begins or the last one
// ends, and files that are missing or too short are noticed.
//
// The payloads that are not those of all memories:
//
//	segment   batch   what one Append wrote: uvarint length and bytes of each
//	          bound   8 unix milliseconds
//	state     head    8 position; 8 bound
//
// The bound is the highest of all in the state and the segments behind it. Where the
// journal was closed, nothing may be missing: a bad record before is damage, too.
//
// # Close
//
// It syncs everything and writes into the identity file where the journal ends. So a
// machine that is shut down in order loses nothing with OS either, although its
// boot is another one afterwards.
package journal
