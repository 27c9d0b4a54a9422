// Package controller is one node: it accepts memcache connections, runs their
// commands on an engine and a replica, and shows operators what it does.
//
// Its parts:
//
//	controller.go  Node: parts opened in order, drained in reverse
//	session.go     one connection's commands: parse, batch, answer
//	execute.go     asking the engine: what waits, and what is done with the answer
//	fetch.go       values from a backend outside this process, for many sessions at once
//	loop_linux.go  moves the bytes of many sessions on one goroutine (epoll)
//	conn.go        moves the bytes of one session on a goroutine of its own
//	output.go      replies gathered for one write
//	counters.go    what sessions count; stats.go and metrics.go show it
//	samples.go     what they counted in the last 15 minutes; events.go what was logged
//	admin.go       HTTP: health, metrics, log level, profiles, recovery
//	web.go         the page for people, in web/; web_peers.go asks the others for it
//	snapshot.go    all items of one moment, over HTTP
//	fleet.go       servers of a backend: watched, and exchanged while it serves
//	discovery.go   where clients find the controllers that are ready
//	explain.go     what all controllers have of a key; watch.go: changes as they come
//	trace.go       a command of an operator's, and when it came where
//	tracer.go      commands that are traced by chance, for an OpenTelemetry collector
//	logsample.go   which lines of the log are written when many say the same
//	lead.go        handing over leadership; leaving for good
//	cluster.go     the other controllers: peer port, members, forcing a new cluster
//
// One request through it: a loop (or a conn) reads what the socket holds to where
// session.space says, and calls session.step. That parses commands into a batch,
// answers reads from the replica behind one barrier, hands the writes that stand
// together to the engine at once, and appends the replies to session.out. When
// nothing whole is left, or highWater bytes are gathered, out is written in one
// system call. A client that does not read stops being read from.
//
// An engine that answers later keeps the session's attune.Call. The session parks
// in the middle of its batch, and step returns wantAnswer; Call.Done puts it on the
// list of its loop, and wakes that, or its goroutine. Called again, step goes on at
// the same command. Meanwhile the loop serves others: a thousand connections that
// wait for a quorum cost their buffers, and no goroutine. So it is with values that
// must be fetched from a backend outside this process: what the replica does not have
// at hand the session leaves to a fetcher, whose round trips it shares with others.
package controller
