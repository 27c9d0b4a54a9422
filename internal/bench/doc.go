// Package bench is a load generator for memcache servers. It is the body of
// `attune bench`, and measures attune, memcached or anything else that speaks
// the protocol with the same bytes.
//
// # Parts
//
//   - [Options] says what to do and is validated once, by [Run].
//   - A target is one server under test with its connections, or one cluster
//     with its connections spread over all addresses. With a second target the
//     two take turns, A B A B ..., so that what the machine does meanwhile falls
//     on both.
//   - A pass is one stretch of load: the prefill, a warm-up, a measured round.
//     All its requests are answered, or given up, before the pass ends, so that
//     CPU times read before and after it cover exactly its requests.
//   - A worker is one thread of a pass. It drives its share of the connections
//     with a driver: epoll on Linux, blocking goroutines elsewhere.
//   - A stream is one connection without its I/O: what to send next, what is in
//     flight, what a reply says. A dialect knows the words of one protocol.
//   - [Report] is what came out, written as text, JSON or CSV.
//
// # One request
//
// The driver finds a connection readable and hands its bytes to the stream,
// which asks the dialect for each reply in turn, checks it against the request
// it answers and counts it. Then the stream is pumped: in a closed loop, a new
// batch of Pipeline requests starts when the last one is fully answered; in an
// open loop, every request whose time has come starts. The driver writes the
// bytes.
//
// # What a latency is
//
// In a closed loop it runs from handing the request to the kernel until the
// reply was read. In an open loop it runs from the moment the schedule intended
// the request to be sent, so that a server which stalls is charged for every
// request that had to wait, also for those the stall kept from being sent at
// all ("coordinated omission").
package bench
