package protocol

import (
	"errors"

	"github.com/attunekv/attune"
)

// Kind says what a Request wants of the session.
type Kind uint8

const (
	// Op: execute Request.Op and reply with its result.
	Op Kind = iota
	// End closes a text read of several keys: reply its terminator. The keys
	// came before it, a Request each, so a line of any length needs no memory.
	End
	// Reply: nothing to execute; the parser knows the answer (an error, OK). It
	// may be empty: an error after noreply, or bytes that were only dropped.
	Reply
	// Noop: mn and binary NOOP; reply after everything before it.
	Noop
	// Version, Stats, Shutdown and Dump (lru_crawler metadump and mgdump, stats
	// cachedump) are answered by the controller. Args holds the words after the
	// command: for Stats none, "settings", "detail on"...; for Shutdown none or
	// "graceful"; for Dump "metadump all", "mgdump 1,2", "cachedump 1 100".
	Version
	Stats
	Shutdown
	Dump
	// Config is `config get cluster`: reply with where clients find servers.
	Config
	// Quit: close once everything before it is answered and written.
	Quit
)

const (
	// MaxKey is the longest key, in bytes.
	MaxKey = 250
	// MaxLine is the longest command line, in bytes, its terminator included,
	// and more than any binary header with extras and key. With that many bytes
	// in hand [Parser.Next] always moves on. Reads of several keys may be longer.
	MaxLine = 2049
)

// ErrClose is returned by Next when the stream can no longer be understood, or
// must not be answered: the session writes what it owes and closes. The Request
// is then a Reply to write first, or a Quit.
var ErrClose = errors.New("connection closed by protocol")

// Request is one command of a connection, or one key of a multi-key read. The
// session owns it and reuses it; its slices point into the buffer given to
// [Parser.Next], or into the Request, and live as long as that. The reply is
// made from them too, so that is until the reply is appended.
type Request struct {
	Kind Kind
	Op   attune.Op // with Kind Op
	Args [][]byte  // with Stats, Dump, Shutdown

	// Body is the size of the data block that follows what Next consumed, or -1
	// if there is none. The block is Body+Trailer bytes on the wire.
	Body    int
	Trailer int // 2 for text (CR LF), 0 for binary
	// Skip is how many bytes to read and drop before the next request: the
	// block of a command that was refused.
	Skip int64
	// First is set on the first key of a text read, so that the session can
	// remember where the command's replies begin; Undo, on a Reply, asks it to
	// take back those of this command that were not sent yet.
	First, Undo bool
	// TooLarge marks a command refused for the size of its value. Where
	// memcached then removes the value the key had, so that no client takes it
	// for the one it failed to store, Op is that Delete: its reply is the refusal
	// whatever its result. Elsewhere the Request is a Reply.
	TooLarge bool

	// What the reply looks like; see AppendHead.
	wire
}

// Parser turns one connection's bytes into Requests and Results back into
// bytes. The first byte of the connection chooses binary (0x80) or text. It
// does no I/O, starts no goroutine, and allocates nothing for get, set and
// their meta and binary relatives.
type Parser struct {
	// MaxItem is the largest value accepted, in bytes.
	MaxItem int
	// NoFlush refuses flush_all.
	NoFlush bool

	state
}
