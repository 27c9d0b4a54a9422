// Package broken has stores that break a promise, each in one way, and some that keep
// theirs: the checkers of package history must find the former, and not complain of
// the latter.
//
// A [Log] is replicas that apply one order of writes, a [Gossip] is replicas that
// answer each for itself. Both execute a command at a time, with dice from a seed.
// [Logged] and [Gossiped] have clients execute a workload on them, in a time of their
// own. [Serve] puts one on the wire, where it looks like a cluster of controllers.
// [Defects] are the ways there are.
package broken

// Defect is a store, and what is wrong with it.
type Defect struct {
	Name  string // empty: nothing is wrong
	About string
	Level string // that it claims to be of

	Log    LogFault    // at the levels linearizable and sequential
	Gossip GossipFault // at causal and eventual
	// Immortal items never expire, Hasty ones in half their time. To Undead stores
	// old writes come again. Large values Rot on their way in.
	Immortal, Hasty, Undead, Rot bool

	// Workload shows it, by name, to this check.
	Workload, Check string
}

// Defects returns every store that breaks a promise, each with the workload that
// shows it and the check that is to find it.
func Defects() []Defect {
	return []Defect{
		{Name: "stale", About: "reads are answered by replicas that lag behind", Level: "linearizable", Log: Lagging, Workload: "register", Check: "linearizable"},
		{Name: "older-read", About: "a read shows less than an earlier one", Level: "linearizable", Log: Forgetful, Workload: "register", Check: "fresh reads"},
		{Name: "backward", About: "a connection is shown less than before", Level: "sequential", Log: Forgetful, Workload: "register", Check: "sequential"},
		{Name: "lost-write", About: "some acknowledged writes never happen", Level: "linearizable", Log: Losing, Workload: "register", Check: "linearizable"},
		{Name: "lost-append", About: "some acknowledged appends never happen", Level: "linearizable", Log: Losing, Workload: "append", Check: "linearizable"},
		{Name: "lost-lock", About: "some locks that were taken are not", Level: "linearizable", Log: Losing, Workload: "lock", Check: "linearizable"},
		{Name: "lost-member", About: "some acknowledged sets are not there in the end", Level: "sequential", Log: Losing, Workload: "set", Check: "kept sets"},
		{Name: "twice", About: "some increments happen twice", Level: "linearizable", Log: Doubling, Workload: "counter", Check: "linearizable"},
		{Name: "twice-hot", About: "some increments of one hot counter happen twice", Level: "sequential", Log: Doubling, Workload: "incr", Check: "counter"},
		{Name: "blind-cas", About: "cas does not compare", Level: "linearizable", Log: Careless, Workload: "cas", Check: "linearizable"},
		{Name: "misorder", About: "some versions are handed out late", Level: "sequential", Log: Misordering, Workload: "register", Check: "sequential"},
		{Name: "immortal", About: "items outlive their time", Level: "linearizable", Immortal: true, Workload: "expire", Check: "expiry"},
		{Name: "hasty", About: "items go before their time", Level: "eventual", Hasty: true, Workload: "expire", Check: "expiry"},
		{Name: "late-version", About: "items that expire are given versions late", Level: "sequential", Log: Misordering, Workload: "expire", Check: "version order"},
		{Name: "no-causes", About: "updates are shown before what they came of", Level: "causal", Gossip: AnyOrder, Workload: "chain", Check: "chains"},
		{Name: "item-by-item", About: "a replica takes over another's state one item at a time", Level: "causal", Gossip: ItemByItem, Workload: "chain", Check: "causal"},
		{Name: "no-tombstones", About: "a delete leaves nothing behind, and old writes come again", Level: "eventual", Gossip: NoTombs, Undead: true, Workload: "remove", Check: "converged"},
		{Name: "resurrection", About: "what all saw deleted is there again later", Level: "eventual", Gossip: NoTombs, Undead: true, Workload: "remove", Check: "settled"},
		{Name: "dropped", About: "some updates never reach one replica", Level: "eventual", Gossip: Dropping, Workload: "register", Check: "converged"},
		{Name: "amnesia", About: "some acknowledged writes never happen", Level: "causal", Gossip: Amnesiac, Workload: "remove", Check: "causal"},
		{Name: "last-arrival", About: "what arrives replaces what is newer", Level: "eventual", Gossip: LastArrival, Workload: "register", Check: "eventual"},
		{Name: "wandering", About: "a connection's reads are answered by any replica", Level: "eventual", Gossip: Wandering, Workload: "register", Check: "eventual"},
		{Name: "blind-cas-eventual", About: "cas does not compare, and two win", Level: "eventual", Gossip: CarelessCAS, Workload: "cas", Check: "one winner"},
		{Name: "twice-eventual", About: "some increments happen twice", Level: "eventual", Gossip: Twofold, Workload: "incr", Check: "counter"},
		{Name: "rot", About: "a bit of a large value is turned over", Level: "eventual", Rot: true, Workload: "large", Check: "eventual"},
	}
}

// Honest returns a store for every level that keeps just what that promises.
func Honest() []Defect {
	return []Defect{
		{Level: "linearizable"}, {Level: "sequential", Log: Lagging}, {Level: "causal"}, {Level: "eventual", Gossip: AnyOrder},
	}
}
