// Package protocol speaks memcache: the classic text dialect, meta and binary.
// It turns the bytes of a connection into [attune.Op]s and results back into
// bytes. What a command means is not its business, nor where bytes come from:
// it holds no connection, does no I/O, reads no clock and starts no goroutine,
// so a session may be a goroutine or a step of an event loop.
//
// The parts:
//
//	protocol.go  what the parser hands a session: Request, Kind, Parser
//	wire.go      which dialect a request came in, and so how its reply looks
//	words.go     the words of the text dialects, and how their numbers are read
//	text.go      classic commands of one line, and their replies
//	read.go      get, gets, gat, gats: lines of any length, handed out by key
//	meta.go      mg, ms, md, ma, me, mn
//	binary.go    packets
//
// # One request through it
//
// "set k 0 60 5\r\nhello\r\n" has arrived. [Parser.Next] consumes the line and
// fills a [Request] of Kind Op: Verb Set, Exptime 60, Body 5, Trailer 2. The
// session gives it the 7 bytes that follow with [Parser.SetBody], executes
// Request.Op, and calls [Request.AppendHead] with the result, which appends
// "STORED\r\n". A hit of "get k" comes in three parts, so that a large value
// need not be copied: AppendHead appends "VALUE k 0 5\r\n" and returns the
// value, the session sends that, and [Request.AppendTail] appends "\r\n". A
// second Request, of Kind End, then has the "END\r\n", by [Request.AppendReply].
//
// # What holds whatever is sent
//
// Bytes mean the same whatever packets they come in. Where Next cannot go on it
// consumes nothing and changes nothing, so it is called again with more; with
// [MaxLine] bytes it always can. A command that is refused is answered with
// memcached's own words, and the stream goes on behind it: the block of a
// refused set is dropped (Request.Skip), unless its length could not be read,
// when it is read as commands, as memcached does. [ErrClose] ends a stream that
// cannot be understood any more. Each command has its own reply, so an error
// never takes back those of commands before it.
//
// Where releases of memcached differ, the newest is followed, but not
//
//   - in what it loses: an error in a read of several keys drops the replies to
//     earlier commands there, a flag of ms that begins with no letter makes it
//     read the block as commands;
//   - in numbers: it keeps 32 bits of an exptime, so that a set until 2040 has
//     expired before and a touch is an error, cuts client flags to 32 bits
//     instead of refusing more, and takes "-" for 0;
//   - in what it does not know: that the key of an item created by mg came in
//     base64, which it then tells decoded.
package protocol
