// Package journal is what one controller of a gossip cluster remembers in a
// directory, so that after a restart it is the same origin of the same updates:
// who it is, a state, the update records appended since, and how far its clock
// may have gone. What a state and a record say is their writer's business.
//
// Its parts:
//
//	journal.go   Journal: Open, Start, Append, SetBound, Mark, Replay, Close
//	segment.go   the records on disk: appended to, rolled
//	state.go     Checkpoint, LoadState
//	recover.go   what a directory proves; what is done with one that proves nothing
//	identity.go  who this memory is, and how far its directory may be trusted
//	record.go    the one format of all files
//	files.go     every change of the directory goes through here
//
// A life: Open. If [Journal.Identity] is known, LoadState and then Replay give back
// all that was appended; else Start begins a new memory. From then on one goroutine
// takes the updates that came meanwhile and gives them to Append together, which is
// one write, and for [Always] one sync. When [Journal.Size] has grown too large, the
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
//	lock             held by the process that uses the directory
//	identity         who; a nonce that all other files must have been made under; what
//	                 they survive (Sync), and the boot they were written in; whether
//	                 they were closed
//	log-POSITION     segments of records
//	state-POSITION   the state that has all records before POSITION; normally one
//	corrupt-TIME     files that contradicted themselves, for people to look at
//
// A [Position] counts the bytes of all records ever appended, over all segments and
// without their heads, in 16 hexadecimal digits. So each segment must begin where the
// one before ends, a state must be of a place where a record begins or the last one
// ends, and files that are missing or too short are noticed.
//
// Each file is a sequence of records; numbers are little endian:
//
//	4  length of the payload, at least 1
//	4  CRC-32C of the payload
//	1  type
//	4  CRC-32C of the nine bytes before, begun with the nonce, the file and the offset
//	   payload
//
// The second checksum finds where records are in a damaged file, and a record is
// only one where it was written. The payloads:
//
//	identity  1 format; 8 nonce; 1 sync; 1 closed; 8 position of the end, if closed;
//	          string boot; 8 origin; 16 cluster; 4 generation; 8 seed; string name
//	segment   head    8 nonce; 8 position
//	          batch   what one Append wrote: uvarint length and bytes of each
//	          bound   8 unix milliseconds
//	state     head    8 nonce; 8 position; 8 bound
//	          chunk   what Checkpoint's write wrote, in pieces of 256 KiB
//	          end     8 length of all chunks
//
// A string is 1 length and its bytes. The bound is the highest of all in the state
// and the segments behind it. The identity file begins as that of a Raft log does,
// with another format: the engines refuse each other's directories, and leave them
// alone.
//
// # A bad record
//
// At the very end of the newest segment it is the Append under which the process or
// the machine died. Nobody was told that it succeeded, so it is cut off. With [OS]
// the machine still runs, and a write that was interrupted can only be short. With
// [Always] it may be anything, as sectors arrive in any order, zeros included; but
// the next Append waits for the sync, so there is nothing behind it. Anywhere else, or
// before where the journal was closed, a bad record is damage: the files are moved to
// corrupt-TIME. What cannot be told from a torn Append is damage to the last record
// alone, under Always, after a crash.
//
// # Close
//
// It syncs everything and writes into the identity file where the journal ends. So a
// machine that is shut down in order loses nothing with OS either, although its
// boot is another one afterwards.
package journal
