// Package ordered is the engine of the linearizable and the sequential level:
// one log of changes, agreed on by Raft, applied by every controller to its own
// replica.
//
// The parts:
//
//	engine.go    Engine: Write, Barrier; the goroutine that owns the core
//	open.go      Open: which cluster, which member; founding, joining, restarting
//	core.go      core: one turn, Raft's Ready, applying entries
//	request.go   what waits for an answer, here or at another controller
//	decide.go    the leader decides ops on replica and overlay
//	propose.go   what was decided becomes entries, and who waits for them is answered
//	forward.go   requests to the leader, answers, and what to think of a lost connection
//	messages.go  what a turn has to say, as few messages: Raft's, and answers with them
//	read.go      read-index rounds, and who waits for them
//	member.go    learners, voters, leaving: one change at a time
//	snapshot.go  cuts for members whose log is too short, states on disk
//	bytes.go     values from a peer, of exactly one version
//	state.go     what a log prefix makes besides the replica; the log clock
//	status.go    what the operator sees
//
// One write, on a follower: Engine.Write puts the call into the inbox and wakes
// the core's goroutine → accept → forward sends everything that waits to the
// leader, in one frame → there decide looks each op's item up, in the batch, among
// what is proposed and not applied (the overlay), or in the replica; Op.Decide
// makes a change and a result → propose: one or a few entries for all ops that
// were there → Raft → apply on every member → the leader, having applied, answers
// with the result and the log index.
//
// A decision is exact: the leader decides on everything that is before it in the
// log, because it decides only after an entry of its own term is applied, and
// forgets the overlay when it leads no more. So 256 increments of one key that
// wait together are one record; and a change that does not hold when it is applied
// cannot be (the replica checks, and counts). A refusal, such as NOT_STORED,
// is answered like a write, when an entry after it is applied.
//
// One read: Engine.Barrier. Linearizable, it joins the next read-index round: at
// most one is under way per member, under a number never used before, and no
// clock is trusted. Sequential, it returns at once if this replica has applied
// what the session has seen. Then the controller reads the replica.
//
// Nothing that may have been executed is executed again. A request is decided
// anew only if another entry took its place in the log, or a controller that does
// not lead refused it. All else ends at the deadline as unknown.
//
// The core has no goroutine, no clock and no network of its own: see world. So
// sim_test.go runs whole clusters, their crashes and partitions from a seed, and
// checks every history.
//
// A member without a data directory that restarts is a new member: a Raft id
// never names two memories. It comes in as a learner, is filled, and takes its
// predecessor's place in one joint change.
package ordered
