// Package client is a Go client for attune: gomemcache's whole API, on a
// connection that stays with one controller and moves on when that one fails.
//
//	c := client.New("10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000")
//	err := c.Set(&memcache.Item{Key: "greeting", Value: []byte("hello")})
//
// Memcache clients normally spread keys over their servers, because each server
// holds a part of them. Controllers of one attune cluster all hold the same
// items, so spreading gains nothing, and would cost a session its consistency:
// what a connection is promised at the causal and sequential levels is promised
// by the controller it talks to.
//
// # Parts
//
//   - [Client] embeds *memcache.Client, and repeats what is safe to repeat.
//   - controllers is gomemcache's ServerSelector and the one address it sees. It
//     knows which controller is the current one.
//   - conn is one pooled connection. It is bound to a controller per request, not
//     for life: between two requests it follows the current controller, and
//     replaces itself if its server closed it meanwhile (a restart, an idle
//     timeout), so that no request is wasted on a dead connection.
//   - [Client.Raw] speaks what gomemcache does not: meta commands, stats, version.
//
// # When a controller fails
//
// The first controller given is used until a dial, a read or a write fails or
// takes longer than Timeout, or the controller refuses to serve. Then the next one in
// the list is, and after the last the first again. Nobody returns to a controller
// only because it is back: a client that does so moves twice for every restart. List
// the nearest controller first; processes that should share the load list them in
// different orders.
//
// An operation that fails tells whether it may have happened:
//
//   - [ErrUnreachable]: no controller took the connection. Nothing was sent. By
//     then every controller was tried, once, for at most Timeout each.
//   - [LostError]: the connection broke, or Timeout passed, with the request
//     under way. A write may or may not have happened, and is never repeated: a
//     second incr would count twice. Get and GetMulti are repeated, at most once
//     per controller.
//   - a line for which [ErrorLine] reports SERVER_ERROR not ready, no quorum or
//     clock skew: nothing was done, so any operation, but for Raw, was sent to the
//     others too, once to each, and this is what the last one says.
//   - a line for which ErrorLine reports another SERVER_ERROR: as with LostError, a
//     write may or may not have happened, and a read was sent to the others too. After
//     a write the controller stays the current one, as it is alive and can explain
//     itself.
//
// So a controller that is stopped in order costs no operation: until it closes a
// connection it refuses what comes late, instead of leaving it unanswered.
//
// # One request
//
// Set asks the selector for an address and gets the only one there is, takes an
// idle connection from gomemcache's pool, or dials through [Client.DialContext],
// trying each controller in turn. The first Write checks that the connection
// still leads to the current controller and is not closed, and dials again if
// not: nothing was sent yet, so that is safe for any operation. The reply is
// read, and the connection goes back to the pool.
package client
