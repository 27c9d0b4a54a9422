package protocol

import (
	"fmt"

	"github.com/attunekv/attune"
)

// dialect says how a Request was spelled, and so how its reply must be.
type dialect uint8

const (
	text dialect = iota
	meta
	binary
)

// binaryMagic is the first byte of a binary connection. No text command begins
// with it.
const binaryMagic = 0x80

// wire is what a Request keeps of its own spelling, for the reply.
type wire struct {
	dialect dialect
	verb    byte // meta: the second letter of the command
	quiet   bool // text noreply, meta q
	withCAS bool // text gets, gats
	base64  bool // meta b
	// reply is the answer known to the parser, without line end.
	reply string
	// flags are meta's flags as they were sent: the reply repeats their order.
	flags []byte
	// decoded is the memory of a key sent in base64. It outlives the Request's
	// reuse, so that decoding allocates once per Request.
	decoded []byte

	binaryWire
}

// reset makes r a blank request of a dialect.
func (r *Request) reset(d dialect) {
	decoded := r.decoded
	*r = Request{Body: -1, wire: wire{dialect: d, decoded: decoded}}
}

// place is where in the text stream a Parser stands.
type place uint8

const (
	atLine  place = iota // at the beginning of a line
	atKeys               // in the keys of a read
	atWaste              // in what is left of a line that was answered
)

// state is what a Parser remembers between two requests.
type state struct {
	chosen bool // the connection's dialect is known
	binary bool

	place place
	read  reading // with atKeys
}

// Next parses one request from buf into r and returns how many bytes it
// consumed: 0, with a nil error, when buf holds no whole request yet; call it
// again with the same bytes and more. What it did not consume it did not
// remember either, so a session may also drop a request and parse its bytes
// again later.
//
// With r.Body >= 0 the session obtains the data block and calls SetBody before
// it executes the request. Next returns no other error than ErrClose.
func (p *Parser) Next(buf []byte, r *Request) (n int, err error) {
	if len(buf) == 0 {
		return 0, nil
	}
	if !p.chosen {
		p.chosen, p.binary = true, buf[0] == binaryMagic
	}
	if p.binary {
		r.reset(binary)
		n, err = p.nextBinary(buf, r)
	} else {
		r.reset(text)
		n, err = p.nextText(buf, r)
	}
	if err != nil && r.Kind != Reply {
		r.Kind = Quit
	}
	return n, err
}

// SetBody gives r its data block: value is r.Body bytes and is kept by
// reference in r.Op.Value, trailer is the r.Trailer bytes after it. A trailer
// that is no line end turns r into a Reply that says so.
func (p *Parser) SetBody(r *Request, value, trailer []byte) {
	if r.Trailer > 0 && string(trailer) != crlf {
		r.answer(badChunk)
		return
	}
	r.Op.Value = value
}

// Meta reports whether r is a meta command.
func (r *Request) Meta() bool { return r.dialect == meta }

// OfRead reports whether r is a key of a text read, whose replies an End ends.
// When one fails, its error is to stand in place of all replies of the command,
// the End too: a client that has read an error line reads no further.
func (r *Request) OfRead() bool {
	return r.dialect == text && r.Kind == Op && r.Op.Verb == attune.Get
}

// AppendHead appends the reply to a Kind Op up to its value, and returns the
// value that must follow. With a nil value the reply is complete; with any
// other, an empty one too, AppendTail ends it. It may append nothing (noreply,
// q, a miss of get). now, in unix milliseconds, is what remaining and elapsed
// times are counted from.
func (r *Request) AppendHead(dst []byte, res *attune.Result, now int64) (out, value []byte) {
	switch {
	case r.dialect == binary:
		return r.appendBinaryHead(dst, res, now)
	case r.reply != "":
		return appendLine(dst, r.reply), nil
	case r.dialect == meta:
		return r.appendMeta(dst, res, now)
	}
	return r.appendText(dst, res)
}

// AppendTail appends what follows the value AppendHead returned.
func (r *Request) AppendTail(dst []byte) []byte {
	if r.dialect == binary {
		return dst
	}
	return append(dst, crlf...)
}

// AppendReply appends the answer to a Kind End, Reply, Noop or Quit.
func (r *Request) AppendReply(dst []byte) []byte {
	if r.dialect == binary {
		return r.appendBinaryReply(dst)
	}
	if r.reply == "" {
		return dst
	}
	return appendLine(dst, r.reply)
}

// AppendVersion appends the answer to a Kind Version. Clients parse version as
// three numbers with dots between them, the first of which is not 0.
func (r *Request) AppendVersion(dst []byte, version string) []byte {
	if r.dialect == binary {
		return r.appendBinaryVersion(dst, version)
	}
	return appendLine(append(dst, "VERSION "...), version)
}

// AppendStat appends one figure of the answer to a Kind Stats.
func (r *Request) AppendStat(dst []byte, name, value string) []byte {
	if r.dialect == binary {
		return r.appendBinaryStat(dst, name, value)
	}
	dst = append(dst, "STAT "...)
	dst = append(dst, name...)
	dst = append(dst, ' ')
	return appendLine(dst, value)
}

// AppendStatEnd ends the answer to a Kind Stats.
func (r *Request) AppendStatEnd(dst []byte) []byte {
	if r.dialect == binary {
		return r.appendBinaryStatEnd(dst)
	}
	return appendLine(dst, end)
}

// A Server is where clients find one, as AppendConfig tells it.
type Server struct{ Host, Port string }

// AppendConfig appends the answer to a Kind Config, which caches of clouds invented:
// clients that poll it go over to servers if version is larger than the one they have.
// The second field, where there is an address for who is near, is the host again.
func (r *Request) AppendConfig(dst []byte, version int64, servers []Server) []byte {
	body := fmt.Appendf(nil, "%d\n", version)
	for i, s := range servers {
		if i > 0 {
			body = append(body, ' ')
		}
		body = fmt.Appendf(body, "%s|%s|%s", s.Host, s.Host, s.Port)
	}
	return fmt.Appendf(dst, "CONFIG cluster 0 %d\r\n%s\n\r\nEND\r\n", len(body)+1, body)
}

// AppendText appends a line of an answer that is neither figures nor an item:
// RESET, ERROR, a refusal of shutdown. The line end is added.
func (r *Request) AppendText(dst []byte, line string) []byte {
	switch {
	case r.dialect == binary:
		return r.appendBinaryText(dst, line)
	case r.quiet:
		return dst
	}
	return appendLine(dst, line)
}

// AppendError appends SERVER_ERROR and msg, or what the dialect has for it. A
// text command with noreply gets none, as in memcached.
func (r *Request) AppendError(dst []byte, msg string) []byte {
	switch {
	case r.dialect == binary:
		return r.appendBinaryError(dst, msg)
	case r.dialect == text && r.quiet:
		return dst
	}
	return appendServerError(dst, msg)
}

// answer makes r a Reply. A text command with noreply asked not to be told, of
// errors either; a meta command with q is told of errors all the same.
func (r *Request) answer(reply string) {
	r.Kind = Reply
	r.Body, r.Trailer = -1, 0
	if r.reply = reply; r.dialect == text && r.quiet {
		r.reply = ""
	}
}

// answerTooLarge refuses a value that is too large, and removes the value the key
// had if remove is set. The Delete is no part of what the client asked, so it
// has none of the command's conditions.
func (r *Request) answerTooLarge(key []byte, remove bool) {
	r.answer(tooLarge)
	r.TooLarge = true
	if remove {
		r.Kind = Op
		r.Op = attune.Op{Verb: attune.Delete, Key: attune.Key{Text: key}}
	}
}
