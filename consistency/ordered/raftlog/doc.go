// Package raftlog is what one member of one Raft group remembers: its log, its
// vote, its identity, and with a directory also its state, so that it is the same
// member after a restart. It is a [raft.Storage].
//
// Its parts:
//
//	log.go       Log: Open, Identity, Start, Save, Install, Close
//	memory.go    entries in memory, and what Raft reads of them
//	segment.go   the log on disk: appended to, rolled
//	recover.go   what a directory proves; what is done with one that proves nothing
//	state.go     state files: SaveState, LoadState
//	identity.go  who this member is, and how far its directory may be trusted
//	record.go    the one format of all files
//	files.go     every change of the directory goes through here
//
// One rule is above all: a process that cannot prove that it has its whole log is
// a new member, under a new id. A member that forgot a vote or an entry and goes on
// under its old id can lose what a majority acknowledged. So whatever is doubtful
// here ends in [Log.Identity] being false, and never in a log that is a guess.
//
// # Files
//
//	lock           held by the process that uses the directory
//	identity       who; a nonce that all other files must have been made under; what
//	               they must survive (Sync), and the boot they were written in
//	log-SEQ        segments, SEQ counts from 1
//	state-INDEX    the state machine after entry INDEX; normally one
//	corrupt-TIME   files that contradicted themselves, for people to look at
//
// Each is a sequence of records; numbers are little endian:
//
//	4  length of the payload, at least 1
//	4  CRC-32C of the payload
//	1  type
//	4  CRC-32C of the nine bytes before, begun with the nonce, the file and the offset
//	   payload
//
// The second checksum finds where records are in a damaged file, and a record is
// only one where it was written. All that one Save writes is one record, so it is
// there or it is not:
//
//	segment   head    8 nonce; 8 SEQ; hard state; 8 index and 8 term of the last entry before
//	          batch   hard state; 4 count; 8 first index; entries: uvarint term;
//	                  1 type; uvarint length; data
//	          restart hard state; 8 index and 8 term of a snapshot that replaces all before
//	state     head    8 nonce; [raftpb.SnapshotMetadata]
//	          chunk   what SaveState's write wrote, in pieces of 256 KiB
//	          end     8 length of all chunks
//
// A hard state is 8 term, 8 vote, 8 commit.
//
// # A bad record
//
// At the very end of the newest segment it is the Save under which the process or
// the machine died. Nobody was told that it succeeded, so it is cut off. With
// [OS] the machine still runs, and a write that was interrupted can only be
// short. With [Always] it may be anything, as sectors arrive in any order, zeros
// included; but the next Save waits for fsync, so there is nothing behind it.
// Anywhere else a bad record is damage: files are moved to corrupt-TIME, and this
// is a new member. What cannot be told from a torn Save is damage to the last
// record alone, under [Always].
//
// # A snapshot from a peer
//
// It makes the log begin again, behind a state that is on no disk here yet. Install
// writes that down first. Until SaveState has written a state at least as new,
// a restart finds that it lacks one, and is a new member.
package raftlog
