// Package raftlog is what one member of one Raft group remembers: its log, its
// vote, its identity, and with a directory also its state, so that it is the same
// member after a restart. It is a [raft.Storage].
//
// Package disk has the files; what is in them is said here. Its parts:
//
//	log.go       Log: Open, Identity, Start, Save, Install, Close
//	memory.go    entries in memory, and what Raft reads of them
//	segment.go   the log on disk: appended to, rolled
//	recover.go   what a directory proves
//	state.go     SaveState, LoadState
//	record.go    hard states and batches of entries as bytes
//
// One rule is above all: a process that cannot prove that it has its whole log is
// a new member, under a new id. A member that forgot a vote or an entry and goes on
// under its old id can lose what a majority acknowledged. So whatever is doubtful
// here ends in [Log.Identity] being false, and never in a log that is a guess.
//
// # Files
//
//	log-SEQ      segments, SEQ counts from 1
//	state-INDEX  the state machine after entry INDEX; normally one
//
// All that one Save writes is one record, so it is there or it is not. The payloads
// that are not those of all memories:
//
//	segment   head    hard state; 8 index and 8 term of the last entry before
//	          batch   hard state; 4 count; 8 first index; entries: uvarint term;
//	                  1 type; uvarint length; data
//	          restart hard state; 8 index and 8 term of a snapshot that replaces all before
//	state     head    [raftpb.SnapshotMetadata]
//
// A hard state is 8 term, 8 vote, 8 commit.
//
// # A snapshot from a peer
//
// It makes the log begin again, behind a state that is on no disk here yet. Install
// writes that down first. Until SaveState has written a state at least as new,
// a restart finds that it lacks one, and is a new member.
package raftlog
