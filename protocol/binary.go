package protocol

import (
	endian "encoding/binary" // the name binary is the dialect's
	"strings"

	"github.com/attunekv/attune"
)

// The binary dialect: packets of a 24-byte header, then extras, key and value,
// the lengths of all three in the header. All numbers are big endian.
//
//	request   0x80 opcode keylen:2 extlen datatype reserved:2 bodylen:4 opaque:4 cas:8
//	response  0x81 opcode keylen:2 extlen datatype   status:2 bodylen:4 opaque:4 cas:8
//
// The lengths are checked from the header alone, so a packet that will be
// refused is refused before its body is waited for. Nothing is remembered from
// one packet to the next: a packet parsed again when more of it has come gives
// the same Request.
const (
	binResponse = 0x81
	binHeader   = 24
	// binMaxBody is the body from which a length is taken for garbage rather
	// than for a value to skip, as memcached does.
	binMaxBody = 1 << 30
	// binNoCreate is the exptime of an incr or decr that must not create.
	binNoCreate = 1<<32 - 1
)

// Opcodes that are named elsewhere than in binCommands.
const (
	binStat  = 0x10
	binQuitQ = 0x17
)

// Statuses of a response.
const (
	binOK             = 0x00
	binNotFound       = 0x01
	binExists         = 0x02
	binTooLarge       = 0x03
	binInvalid        = 0x04
	binNotStored      = 0x05
	binNonNumeric     = 0x06
	binAuthError      = 0x20
	binUnknownCommand = 0x81
	binOutOfMemory    = 0x82
	// binInternal is in the protocol's published list, though memcached never
	// needs it. Busy (0x85) and temporary failure (0x86) invite a client to try
	// again, which is wrong for a write that may have happened.
	binInternal = 0x84
)

// binText returns memcached's words for a status that is not success.
func binText(status uint16) string {
	switch status {
	case binNotFound:
		return "Not found"
	case binExists:
		return "Data exists for key."
	case binTooLarge:
		return "Too large."
	case binInvalid:
		return "Invalid arguments"
	case binNotStored:
		return "Not stored."
	case binNonNumeric:
		return "Non-numeric server-side value for incr or decr"
	case binAuthError:
		return "Auth failure."
	case binUnknownCommand:
		return "Unknown command"
	case binOutOfMemory:
		return "Out of memory"
	default:
		return "Internal error"
	}
}

// binCommand is what an opcode means and what its packet must look like.
type binCommand struct {
	known bool
	kind  Kind
	verb  attune.Verb
	mode  attune.Mode

	extras   int  // their exact length
	optional bool // extras may be left out
	key      binPart
	value    bool // bytes may follow the key

	quiet bool // success is not told; of a read, the miss is not
	echo  bool // the reply repeats the key, also on a miss
}

// binPart says whether a packet has some part.
type binPart uint8

const (
	binWithout binPart = iota
	binWith
	binMaybe
)

// binCommands is indexed by opcode. The SASL opcodes are not in it: a memcached
// without SASL answers them as it does any unknown one. Nor is 0x1b, verbosity,
// which libmemcached sends and memcached does not know.
var binCommands = [0x25]binCommand{
	0x00:     binGet(false, false),
	0x01:     binStore(attune.Set, 8, false),
	0x02:     binStore(attune.Add, 8, false),
	0x03:     binStore(attune.Replace, 8, false),
	0x04:     binDelete(false),
	0x05:     binCount(attune.Incr, false),
	0x06:     binCount(attune.Decr, false),
	0x07:     {known: true, kind: Quit},
	0x08:     binFlush(false),
	0x09:     binGet(true, false),
	0x0a:     {known: true, kind: Noop},
	0x0b:     {known: true, kind: Version},
	0x0c:     binGet(false, true),
	0x0d:     binGet(true, true),
	0x0e:     binStore(attune.Append, 0, false),
	0x0f:     binStore(attune.Prepend, 0, false),
	binStat:  {known: true, kind: Stats, key: binMaybe},
	0x11:     binStore(attune.Set, 8, true),
	0x12:     binStore(attune.Add, 8, true),
	0x13:     binStore(attune.Replace, 8, true),
	0x14:     binDelete(true),
	0x15:     binCount(attune.Incr, true),
	0x16:     binCount(attune.Decr, true),
	binQuitQ: {known: true, kind: Quit, quiet: true},
	0x18:     binFlush(true),
	0x19:     binStore(attune.Append, 0, true),
	0x1a:     binStore(attune.Prepend, 0, true),
	0x1c:     {known: true, verb: attune.Touch, extras: 4, key: binWith},
	0x1d:     binGat(false, false),
	0x1e:     binGat(true, false),
	0x23:     binGat(false, true),
	0x24:     binGat(true, true),
}

func binGet(quiet, echo bool) binCommand {
	return binCommand{known: true, verb: attune.Get, mode: attune.WantValue, key: binWith, quiet: quiet, echo: echo}
}

func binGat(quiet, echo bool) binCommand {
	c := binGet(quiet, echo)
	c.mode |= attune.Retime
	c.extras = 4
	return c
}

func binStore(verb attune.Verb, extras int, quiet bool) binCommand {
	return binCommand{known: true, verb: verb, extras: extras, key: binWith, value: true, quiet: quiet}
}

func binDelete(quiet bool) binCommand {
	return binCommand{known: true, verb: attune.Delete, key: binWith, quiet: quiet}
}

func binCount(verb attune.Verb, quiet bool) binCommand {
	return binCommand{known: true, verb: verb, extras: 20, key: binWith, quiet: quiet}
}

func binFlush(quiet bool) binCommand {
	return binCommand{known: true, verb: attune.Flush, extras: 4, optional: true, quiet: quiet}
}

// fits reports whether a packet with parts of these lengths may be c.
func (c *binCommand) fits(extras, key, value int) bool {
	return (extras == c.extras || extras == 0 && c.optional) &&
		(key > 0 || c.key != binWith) && (key == 0 || c.key != binWithout) &&
		(value == 0 || c.value)
}

// binaryWire is what a Request keeps of its packet for the reply.
type binaryWire struct {
	opcode byte // one that binCommands knows, unless the Request is a Reply
	// status is what a Reply says. With an Op it is success, or the refusal to
	// be told although the Op succeeded; see parseOp on values too large.
	status uint16
	opaque uint32
}

// nextBinary is Next for the binary dialect.
func (p *Parser) nextBinary(buf []byte, r *Request) (n int, err error) {
	if buf[0] != binaryMagic {
		// What is no packet has no opaque to answer to: close without a word.
		r.Kind = Quit
		r.binaryWire = binaryWire{opcode: binQuitQ}
		return 0, ErrClose
	}
	if len(buf) < binHeader {
		return 0, nil
	}
	opcode := buf[1]
	keyLen := int(endian.BigEndian.Uint16(buf[2:]))
	extLen := int(buf[4])
	bodyLen := int64(endian.BigEndian.Uint32(buf[8:]))
	r.binaryWire = binaryWire{opcode: opcode, opaque: endian.BigEndian.Uint32(buf[12:])}

	switch {
	case int64(keyLen+extLen) > bodyLen:
		r.refuseBinary(binUnknownCommand, 0) // memcached's own choice of status
		return binHeader, ErrClose
	case bodyLen > binMaxBody || keyLen > MaxKey:
		r.refuseBinary(binInvalid, 0)
		return binHeader, ErrClose
	case int(opcode) >= len(binCommands) || !binCommands[opcode].known:
		// memcached 1.6 skips the extras and key of such a packet twice, and is
		// lost in the stream. To skip the body once is what it means to do.
		r.refuseBinary(binUnknownCommand, bodyLen)
		return binHeader, nil
	}
	c := &binCommands[opcode]
	valueLen := int(bodyLen) - extLen - keyLen
	if !c.fits(extLen, keyLen, valueLen) {
		r.refuseBinary(binInvalid, 0)
		return binHeader, ErrClose
	}
	n = binHeader + extLen + keyLen
	if len(buf) < n {
		return 0, nil
	}
	key := buf[n-keyLen : n : n]
	r.Kind = c.kind
	switch c.kind {
	case Op:
		p.parseOp(r, c, endian.BigEndian.Uint64(buf[16:]), buf[binHeader:n-keyLen], key, valueLen)
	case Stats:
		r.Args = words(key)
	}
	return n, nil
}

// parseOp fills in r.Op, from a packet whose lengths are those of c.
func (p *Parser) parseOp(r *Request, c *binCommand, cas uint64, extras, key []byte, valueLen int) {
	op := &r.Op
	op.Verb, op.Mode, op.Key.Text = c.verb, c.mode, key
	switch c.verb {
	case attune.Get, attune.Touch:
		if len(extras) > 0 {
			op.Exptime = int64(endian.BigEndian.Uint32(extras))
		}
		return // without a look at cas
	case attune.Flush:
		if p.NoFlush {
			r.refuseBinary(binAuthError, 0)
		} else if len(extras) > 0 {
			op.Exptime = int64(endian.BigEndian.Uint32(extras))
		}
		return
	case attune.Incr, attune.Decr:
		op.Delta = endian.BigEndian.Uint64(extras)
		if ttl := endian.BigEndian.Uint32(extras[16:]); ttl != binNoCreate {
			op.Mode |= attune.Vivify
			op.Initial = endian.BigEndian.Uint64(extras[8:])
			op.VivifyTTL = int64(ttl)
		}
	case attune.Set, attune.Add, attune.Replace:
		op.Flags = endian.BigEndian.Uint32(extras)
		op.Exptime = int64(endian.BigEndian.Uint32(extras[4:]))
		if cas != 0 {
			op.Verb = attune.Set // to memcached all three are cas then
		}
	}
	if cas != 0 {
		op.Mode |= attune.IfCAS
		op.Compare = cas
	}
	switch {
	case !c.value:
	case valueLen <= p.MaxItem:
		r.Body = valueLen
	case c.verb == attune.Set:
		// Whoever sets a value must not find an older one later, so the key is
		// deleted, whatever the cas.
		r.Op = attune.Op{Verb: attune.Delete, Key: op.Key}
		r.binaryWire.status = binTooLarge
		r.TooLarge, r.Skip = true, int64(valueLen)
	default:
		r.refuseBinary(binTooLarge, int64(valueLen))
		r.TooLarge = true
	}
}

// refuseBinary makes r a Reply of status, and skip bytes of its packet to be
// dropped.
func (r *Request) refuseBinary(status uint16, skip int64) {
	r.Kind = Reply
	r.Op = attune.Op{}
	r.Skip = skip
	r.binaryWire.status = status
}

// appendBinaryHead is AppendHead for the binary dialect. The value comes last in
// a packet: there is no tail.
func (r *Request) appendBinaryHead(dst []byte, res *attune.Result, _ int64) (out, value []byte) {
	c := &binCommands[r.binaryWire.opcode]
	var key []byte
	if c.echo {
		key = r.Op.Key.Text
	}
	switch res.Status {
	case attune.Hit:
		value = res.Item.Value
		fallthrough
	case attune.Touched:
		dst = r.appendBinaryHeader(dst, binOK, 4, len(key), len(value), res.Item.CAS)
		dst = endian.BigEndian.AppendUint32(dst, res.Item.Flags)
		return append(dst, key...), value
	case attune.Miss:
		switch {
		case c.quiet:
			return dst, nil
		case c.echo:
			dst = r.appendBinaryHeader(dst, binNotFound, 0, len(key), 0, 0)
			return append(dst, key...), nil
		}
		return r.appendBinaryStatus(dst, binNotFound), nil
	case attune.Stored, attune.Deleted, attune.Flushed, attune.Counted:
		return r.appendBinaryDone(dst, res), nil
	case attune.NotFound:
		if r.binaryWire.status != binOK {
			return r.appendBinaryDone(dst, res), nil
		}
		return r.appendBinaryStatus(dst, binNotFound), nil
	case attune.NotStored:
		switch c.verb {
		case attune.Add:
			return r.appendBinaryStatus(dst, binExists), nil
		case attune.Replace:
			return r.appendBinaryStatus(dst, binNotFound), nil
		}
		return r.appendBinaryStatus(dst, binNotStored), nil
	case attune.Exists:
		return r.appendBinaryStatus(dst, binExists), nil
	case attune.NonNumeric:
		return r.appendBinaryStatus(dst, binNonNumeric), nil
	case attune.TooLarge:
		if c.verb == attune.Append || c.verb == attune.Prepend {
			// The bytes to add were not too large, their sum was.
			return r.appendBinaryStatus(dst, binNotStored), nil
		}
		return r.appendBinaryStatus(dst, binTooLarge), nil
	case attune.OutOfMemory:
		return r.appendBinaryStatus(dst, binOutOfMemory), nil
	default:
		if res.Err == nil {
			return r.appendBinaryStatus(dst, binInternal), nil
		}
		return r.appendBinaryError(dst, res.Err.Error()), nil
	}
}

// appendBinaryDone appends the reply to a write that took effect.
func (r *Request) appendBinaryDone(dst []byte, res *attune.Result) []byte {
	c := &binCommands[r.binaryWire.opcode]
	switch {
	case r.binaryWire.status != binOK:
		return r.appendBinaryStatus(dst, r.binaryWire.status)
	case c.quiet:
		return dst
	case res.Status == attune.Counted:
		dst = r.appendBinaryHeader(dst, binOK, 0, 0, 8, res.Item.CAS)
		return endian.BigEndian.AppendUint64(dst, res.Number)
	case res.Status == attune.Stored:
		return r.appendBinaryHeader(dst, binOK, 0, 0, 0, res.Item.CAS)
	}
	return r.appendBinaryHeader(dst, binOK, 0, 0, 0, 0)
}

// appendBinaryReply is AppendReply for the binary dialect: refusals, NOOP and
// QUIT. A refusal is told to quiet opcodes, too.
func (r *Request) appendBinaryReply(dst []byte) []byte {
	switch {
	case r.Kind == Reply:
		return r.appendBinaryStatus(dst, r.binaryWire.status)
	case binCommands[r.binaryWire.opcode].quiet:
		return dst
	}
	return r.appendBinaryHeader(dst, binOK, 0, 0, 0, 0)
}

// appendBinaryVersion is AppendVersion for the binary dialect.
func (r *Request) appendBinaryVersion(dst []byte, version string) []byte {
	return append(r.appendBinaryHeader(dst, binOK, 0, 0, len(version), 0), version...)
}

// appendBinaryStat is AppendStat for the binary dialect.
func (r *Request) appendBinaryStat(dst []byte, name, value string) []byte {
	dst = r.appendBinaryHeader(dst, binOK, 0, len(name), len(value), 0)
	dst = append(dst, name...)
	return append(dst, value...)
}

// appendBinaryStatEnd is AppendStatEnd for the binary dialect: a statistic
// without name or value.
func (r *Request) appendBinaryStatEnd(dst []byte) []byte {
	return r.appendBinaryHeader(dst, binOK, 0, 0, 0, 0)
}

// appendBinaryText is AppendText for the binary dialect. Of the commands it may
// answer only STAT exists here, whose reply is figures up to an empty one, or a
// status. So an error becomes the status for what STAT does not know, and words
// that say that something was done the empty figure.
func (r *Request) appendBinaryText(dst []byte, line string) []byte {
	if line == unknown || strings.HasPrefix(line, "CLIENT_ERROR ") {
		return r.appendBinaryStatus(dst, binNotFound)
	}
	return r.appendBinaryStatEnd(dst)
}

// appendBinaryError is AppendError for the binary dialect.
func (r *Request) appendBinaryError(dst []byte, msg string) []byte {
	return append(r.appendBinaryHeader(dst, binInternal, 0, 0, len(msg), 0), msg...)
}

// appendBinaryStatus appends a reply of a status that is not success.
func (r *Request) appendBinaryStatus(dst []byte, status uint16) []byte {
	text := binText(status)
	return append(r.appendBinaryHeader(dst, status, 0, 0, len(text), 0), text...)
}

// appendBinaryHeader appends the header of a reply whose parts have the lengths
// given.
func (r *Request) appendBinaryHeader(dst []byte, status uint16, extras, key, value int, cas uint64) []byte {
	w := &r.binaryWire
	dst = append(dst, binResponse, w.opcode, byte(key>>8), byte(key), byte(extras), 0, byte(status>>8), byte(status))
	dst = endian.BigEndian.AppendUint32(dst, uint32(extras+key+value))
	dst = endian.BigEndian.AppendUint32(dst, w.opaque)
	return endian.BigEndian.AppendUint64(dst, cas)
}
