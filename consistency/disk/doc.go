// Package disk is a directory in which an engine remembers who it is, a state, and
// what came since, so that after a restart it is the same. What a state and the records
// behind it say is the engine's business: package raftlog is one, package journal the
// other.
//
// Its parts:
//
//	files.go     Files: Take, Release; every change of the directory goes through here
//	identity.go  who this memory is, and how far its directory may be trusted
//	segment.go   records: appended to a file, and read from it
//	state.go     states: WriteState, PublishState, NewestState, OpenState
//	content.go   what states of both engines begin with
//	recover.go   what a directory proves; what is done with one that proves nothing
//	record.go    the one format of all files
//	disktest/    what both engines' tests do to a directory
//
// A life: Take; Recover, NewestState and ReadSegment say what there is. If that proves
// that it is whole, Resume, RemoveNeedless and Adopt make the directory as if nothing
// had happened to it; else Forsake has people told. A new memory begins with Clear, a
// charter by Found, NewSegment, and WriteCharter as the last.
//
// # Files
//
//	lock          held by the process that uses the directory
//	identity      who; a nonce that all other files must have been made under; what
//	              they survive (Sync), and the boot they were written in
//	log-NUMBER    segments of records
//	state-NUMBER  states
//	corrupt-TIME  files that contradicted themselves, for people to look at
//
// A NUMBER has 16 hexadecimal digits; what it counts is the engine's business. Each file
// is a sequence of records; numbers are little endian:
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
//	identity  1 format; 8 nonce; 1 sync; of a journal: 1 closed, 8 position of the end;
//	          string boot; 8 id; 16 cluster; 4 generation; 8 seed; string name
//	segment   head   8 nonce; 8 NUMBER; the engine's own
//	          then   the engine's own
//	state     head   8 nonce; the engine's own
//	          chunk  what WriteState's write wrote, in pieces of 256 KiB
//	          end    8 length of all chunks
//
// A string is 1 length and its bytes.
//
// # A bad record
//
// At the very end of the newest segment it is the Append under which the process or
// the machine died. Nobody was told that it succeeded, so it is cut off. With [OS]
// the machine still runs, and a write that was interrupted can only be short. With
// [Always] it may be anything, as sectors arrive in any order, zeros included; but
// the next Append waits for the sync, so there is nothing behind it. Anywhere else a
// bad record is damage: the files are moved to corrupt-TIME. What cannot be told from a
// torn Append is damage to the last record alone, under Always, after a crash.
package disk
