package protocol

import (
	"bytes"
	"math"
	"strconv"

	"github.com/attunekv/attune"
)

// nextText parses one request of the text dialects.
func (p *Parser) nextText(buf []byte, r *Request) (n int, err error) {
	switch p.place {
	case atKeys:
		return p.nextKey(buf, 0, r)
	case atWaste:
		r.Kind = Reply
		return p.waste(buf, 0), nil
	}
	if read, at := readCommand(buf); at > 0 {
		return p.firstKey(buf, at, read, r)
	}
	// A line is judged by where its end is, not by how much of it has come, so
	// that the same bytes mean the same whatever packets they come in.
	i := bytes.IndexByte(buf[:min(len(buf), MaxLine)], '\n')
	if i < 0 {
		return wait(buf)
	}
	return i + 1, p.line(trimCR(buf[:i]), i+1, r)
}

// wait asks for more bytes, unless a line is too long already.
func wait(buf []byte) (n int, err error) {
	if len(buf) >= MaxLine {
		return 0, ErrClose
	}
	return 0, nil
}

// trimCR drops the CR of a line ended by CR LF.
func trimCR(line []byte) []byte {
	if n := len(line); n > 0 && line[n-1] == '\r' {
		return line[:n-1]
	}
	return line
}

// waste drops what is left of a line from buf[at:] and returns how far it got.
func (p *Parser) waste(buf []byte, at int) (n int) {
	if i := bytes.IndexByte(buf[at:], '\n'); i >= 0 {
		p.place = atLine
		return at + i + 1
	}
	p.place = atWaste
	return len(buf)
}

// line parses a whole line, which took size bytes on the wire.
func (p *Parser) line(line []byte, size int, r *Request) error {
	// A leading blank makes the command word empty, hence unknown.
	command, args := line, []byte(nil)
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		command, args = line[:i], line[i:]
	}
	switch string(command) {
	case "set":
		p.store(args, attune.Set, false, r)
	case "mg", "ms", "md", "ma", "me":
		p.meta(command[1], args, r)
	case "mn":
		r.Kind, r.dialect, r.reply = Noop, meta, metaNoop
	case "add":
		p.store(args, attune.Add, false, r)
	case "replace":
		p.store(args, attune.Replace, false, r)
	case "append":
		p.store(args, attune.Append, false, r)
	case "prepend":
		p.store(args, attune.Prepend, false, r)
	case "cas":
		p.store(args, attune.Set, true, r)
	case "delete":
		// Old clients send a time too, which is ignored.
		p.keyed(args, attune.Delete, 1, r)
	case "incr":
		p.keyed(args, attune.Incr, 2, r)
	case "decr":
		p.keyed(args, attune.Decr, 2, r)
	case "touch":
		p.keyed(args, attune.Touch, 2, r)
	case "get", "gets", "gat", "gats":
		// With a blank after it the command was taken for a read: no keys.
		r.answer(badFormat)
	case "flush_all":
		p.flush(args, r)
	case "version":
		r.Kind = Version
	case "stats":
		stats(args, r)
	case "verbosity":
		// Accepted for clients that set it; how much is logged is not theirs.
		r.quiet = asksNoReply(args)
		w, _ := cut(args)
		if _, valid := number(w, math.MaxUint32); !valid {
			r.answer(badFormat)
		} else {
			r.answer(ok)
		}
	case "quit":
		r.Kind = Quit
	case "shutdown":
		r.Kind, r.Args, r.quiet = Shutdown, words(args), asksNoReply(args)
	case "lru_crawler":
		crawl(args, r)
	case "config":
		if string(args) != " get cluster" {
			return unknownCommand(line, args, size, r)
		}
		r.Kind = Config
	default:
		return unknownCommand(line, args, size, r)
	}
	return nil
}

// unknownCommand answers what memcached does not have, or what has no meaning
// here: there are no slabs and no LRU to tune (slabs, lru, cache_memlimit), and
// no log to watch over this connection.
func unknownCommand(line, args []byte, size int, r *Request) error {
	if size < 4 {
		r.answer(badFormat)
		return nil
	}
	// A browser, or a page that makes one send memcache commands in a form: the
	// rest of what it sends must not be read.
	if w := last(args); len(w) >= 5 && string(w[:5]) == "HTTP/" {
		return ErrClose
	}
	r.quiet = asksNoReply(line)
	r.answer(unknown)
	return nil
}

// asksNoReply reports whether a command asks for silence: its last word says so.
func asksNoReply(args []byte) bool { return string(last(args)) == noreply }

// words splits the arguments of a rare command.
func words(args []byte) (list [][]byte) {
	for {
		w, rest := cut(args)
		if len(w) == 0 {
			return list
		}
		list, args = append(list, w), rest
	}
}

// length parses the size of a data block. One that cannot be parsed leaves no
// way to know what follows the line: memcached reads it as commands, so clients
// see an error for each.
func length(w []byte) (n int, valid bool) {
	v, valid := number(w, math.MaxInt32-2)
	return int(v), valid
}

// store parses <key> <flags> <exptime> <bytes> [<cas unique>] [noreply].
func (p *Parser) store(args []byte, verb attune.Verb, compare bool, r *Request) {
	key, rest := cut(args)
	flags, rest := cut(rest)
	exptime, rest := cut(rest)
	size, rest := cut(rest)
	body, valid := length(size)
	if !valid {
		r.answer(badFormat)
		return
	}
	if len(rest) > 0 {
		r.quiet = asksNoReply(rest)
	}
	op := &r.Op
	op.Verb = verb
	op.Key.Text = key
	block := int64(body) + int64(len(crlf))
	f, valid := number(flags, math.MaxUint32)
	seconds, timely := seconds(exptime)
	valid = valid && timely && len(key) <= MaxKey
	if compare && valid {
		unique, _ := cut(rest)
		op.Mode |= attune.IfCAS
		op.Compare, valid = number(unique, math.MaxUint64)
	}
	switch {
	case !valid:
		r.answer(badFormat)
		r.Skip = block
	case body > p.MaxItem:
		r.answerTooLarge(key, verb == attune.Set && !compare)
		r.Skip = block
	default:
		if verb != attune.Append && verb != attune.Prepend {
			op.Flags, op.Exptime = uint32(f), seconds
		}
		r.Body, r.Trailer = body, len(crlf)
	}
}

// keyed parses <key> [<number>] [noreply], of which at least need words must
// be there.
func (p *Parser) keyed(args []byte, verb attune.Verb, need int, r *Request) {
	key, rest := cut(args)
	arg, rest := cut(rest)
	_, rest = cut(rest) // noreply, or ignored
	surplus, _ := cut(rest)
	if len(key) == 0 || need == 2 && len(arg) == 0 {
		r.answer(badFormat)
		return
	}
	r.quiet = asksNoReply(args)
	op := &r.Op
	op.Verb = verb
	op.Key.Text = key
	valid, complaint := true, ""
	switch verb {
	case attune.Incr, attune.Decr:
		op.Delta, valid = number(arg, math.MaxUint64)
		complaint = badDelta
	case attune.Touch:
		op.Exptime, valid = seconds(arg)
		complaint = badExptime
	}
	switch {
	case len(key) > MaxKey:
		r.answer(badFormat)
	case !valid:
		r.answer(complaint)
	case verb == attune.Delete && len(surplus) > 0:
		// The newest memcached ignores whatever follows the key, others refuse it.
		// Whoever sends so much meant another command, or several deletes.
		r.answer(badFormat)
	}
}

// flush parses [<exptime>] [noreply]. A negative time is as good as none.
func (p *Parser) flush(args []byte, r *Request) {
	r.quiet = asksNoReply(args)
	if p.NoFlush {
		r.answer(noFlush)
		return
	}
	r.Op.Verb = attune.Flush
	w, rest := cut(args)
	if len(w) == 0 || r.quiet && len(last(rest)) == 0 {
		return
	}
	v, valid := seconds(w)
	if !valid {
		r.answer(badExptime)
		return
	}
	r.Op.Exptime = max(v, 0)
}

// slabClasses bounds the id in stats cachedump, as in memcached.
const slabClasses = 64

// stats parses [<section> [<argument>...]].
func stats(args []byte, r *Request) {
	r.Kind, r.Args = Stats, words(args)
	if len(r.Args) == 0 || string(r.Args[0]) != "cachedump" {
		return
	}
	if len(r.Args) < 3 {
		r.answer(badLine)
		return
	}
	slab, valid := number(r.Args[1], math.MaxUint32)
	_, limited := number(r.Args[2], math.MaxUint32)
	switch {
	case !valid || !limited:
		r.answer(badFormat)
	case slab >= slabClasses:
		r.answer(badSlab)
	default:
		r.Kind, r.Args = Dump, r.Args[:3]
	}
}

// crawl parses the lru_crawler commands, of which those that list keys have a
// meaning here.
func crawl(args []byte, r *Request) {
	r.Args = words(args)
	if len(r.Args) == 2 && (string(r.Args[0]) == "metadump" || string(r.Args[0]) == "mgdump") {
		r.Kind = Dump
		return
	}
	r.quiet = asksNoReply(args)
	r.answer(unknown)
}

// empty is a value of no bytes: AppendHead's nil means that none follows.
var empty = []byte{}

// appendText appends the reply to a classic command.
func (r *Request) appendText(dst []byte, res *attune.Result) (out, value []byte) {
	if r.quiet {
		return dst, nil
	}
	switch r.outcome(res) {
	case attune.Hit:
		return r.appendValue(dst, &res.Item)
	case attune.Miss:
		return dst, nil
	case attune.Stored:
		return appendLine(dst, stored), nil
	case attune.NotStored:
		return appendLine(dst, notStored), nil
	case attune.Exists:
		return appendLine(dst, exists), nil
	case attune.NotFound:
		return appendLine(dst, notFound), nil
	case attune.Deleted:
		return appendLine(dst, deleted), nil
	case attune.Touched:
		return appendLine(dst, touched), nil
	case attune.Flushed:
		return appendLine(dst, ok), nil
	case attune.Counted:
		return append(strconv.AppendUint(dst, res.Number, 10), crlf...), nil
	}
	return appendFailure(dst, res), nil
}

// outcome is the status to tell. An append that would make the value too large
// stores nothing and is told so: no client takes that for a refusal of its own
// bytes, which were small enough.
func (r *Request) outcome(res *attune.Result) attune.Status {
	if res.Status == attune.TooLarge && (r.Op.Verb == attune.Append || r.Op.Verb == attune.Prepend) {
		return attune.NotStored
	}
	return res.Status
}

// appendValue appends a VALUE line.
func (r *Request) appendValue(dst []byte, it *attune.Item) (out, value []byte) {
	if value = it.Value; value == nil {
		value = empty
	}
	dst = append(dst, "VALUE "...)
	dst = append(dst, r.Op.Key.Text...)
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(it.Flags), 10)
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(len(value)), 10)
	if r.withCAS {
		dst = append(dst, ' ')
		dst = strconv.AppendUint(dst, it.CAS, 10)
	}
	return append(dst, crlf...), value
}

// appendFailure appends the error line of a Status that is one, in both text
// dialects.
func appendFailure(dst []byte, res *attune.Result) []byte {
	switch res.Status {
	case attune.NonNumeric:
		return appendLine(dst, nonNumeric)
	case attune.TooLarge:
		return appendLine(dst, tooLarge)
	case attune.OutOfMemory:
		return appendLine(dst, outOfMemory)
	}
	msg := "no result"
	if res.Err != nil {
		msg = res.Err.Error()
	}
	return appendServerError(dst, msg)
}
