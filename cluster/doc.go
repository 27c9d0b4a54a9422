// Package cluster is what one controller knows of the others, and how it talks
// to them.
//
// Two ports. The gossip port belongs to hashicorp/memberlist, which tells who is
// there and who died, and carries 512 bytes of each node's own words ([Member]):
// never data, because its packets are filled with membership first and its
// queues lose what does not fit. The peer port is TCP and carries everything
// else, in four classes, so that a vote never waits behind a value.
//
// A node is a name and an id. The name is a label that lasts; the id is a random
// number that names one memory: who comes back without its memory comes back
// with another id, and from then on the old id is nobody. The id is settled
// before [Open], by whoever keeps the node's storage.
//
// The parts:
//
//	cluster.go  Open, Belong, Leave, Close
//	members.go  the table of members, fed by memberlist, remembered when it forgets
//	join.go     looking for the others, again and again
//	leave.go    who goes on purpose, and who hears of that
//	follow.go   this machine has another address
//	clash.go    two nodes of one name: the younger one stops
//	settle.go   who founds the cluster: Settle
//	meta.go     a node's own words in gossip
//	wire.go     frames and the first words of a connection
//	link.go     the sending end of a connection: queue, dial, write
//	accept.go   the receiving end
//	call.go     request and response; stream.go a long answer
//	fault.go    what goes wrong with the network, or the clock, on purpose
//	stats.go    counters; limit.go warnings, not too many of them
//
// # The wire
//
// Integers are little endian. A connection is simplex: who dialed it sends, who
// accepted it only reads, so that a network cut in one direction is just that. A
// response therefore travels on a connection that the other side dialed. The
// first byte is the [Class]. Then come frames:
//
//	len u32 (of what follows) | kind u8 | body
//
// The first is HELLO (kind 0), answered by WELCOME (1) or REFUSED (2, a text);
// these are the only bytes that flow back, except on Bulk:
//
//	HELLO    "attn" | version u8 | class u8 | cluster u64 | from u64 | to u64 | name | kind | peer
//	WELCOME  id u64 | nonce u64 | age u64 (ms since Open) | name
//	REQUEST  (3) call u64 | timeout u32 (ms, 0 none) | kind u8 | body
//	RESPONSE (4) call u64 | status u8 (0 done, 1 failed, 2 not executed) | body or text
//	STREAM   (5) kind u8 | body                  the only frame on Bulk after HELLO
//	CHUNK    (6) crc32c u32 | bytes              flows back
//	END      (7) total u64                       flows back: all of it came
//	FAILED   (8) text                            flows back: it did not
//
// name, kind and peer (the address others reach the sender at) are a length byte
// and text. cluster is [Hash] of the cluster id, 0 for none: such a node may
// only call and stream, for it has no log to speak of. A HELLO to id 0 asks who
// is there. Kinds from [MinKind] on are the users'.
//
// A length is compared with the limit of its kind before a byte of it is
// believed, and memory grows as the bytes arrive.
package cluster
