// Package broken has stores that break a promise, each in one way, and some that keep
// theirs: the checkers of package history must find the former, and not complain of
// the latter.
//
// A [Log] is replicas that apply one order of writes, a [Gossip] is replicas that
// answer each for itself. Both execute a command at a time, with dice from a seed.
// [Logged] and [Gossiped] have clients execute a workload on them, in a time of their
// own.
package broken
