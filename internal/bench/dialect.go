package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
)

// A dialect writes requests and reads replies of one protocol. It keeps no
// state.
type dialect interface {
	// get appends a request for key. serial is told back by the protocols that
	// can.
	get(out, key []byte, serial uint32) []byte
	// set appends a request to store v under key.
	set(out, key []byte, v value, serial uint32) []byte
	// incr appends a request to add 1 to the counter under key, where there is
	// one, and to tell its new value.
	incr(out, key []byte, serial uint32) []byte
	// reply reads the reply to one of these for key from the start of in. n is
	// its length; 0 means that more bytes are needed. An error means that the
	// bytes cannot be that reply, and that what follows makes no sense either.
	reply(in, key []byte, v verb, serial uint32) (n int, a answer, err error)
}

// verb is what a request asks for.
type verb uint8

const (
	verbGet verb = iota
	verbSet
	verbIncr
)

// answer is what a reply said.
type answer struct {
	kind answerKind
	text []byte // the value of a hit, the words of a refusal; part of the input
}

type answerKind uint8

const (
	hit answerKind = iota
	miss
	stored  // a set or incr carried out
	refused // a well-formed error, or a set or incr not carried out
)

func newDialect(name string) (dialect, error) {
	switch name {
	case "text":
		return text{}, nil
	case "meta":
		return meta{}, nil
	case "binary":
		return bin{}, nil
	}
	return nil, fmt.Errorf("--protocol %q: must be text, meta or binary", name)
}

// maxLine bounds a reply line: a key, three numbers and a word, or an error.
const maxLine = 2048

// The words of the text and meta protocols.
var (
	crlf        = []byte("\r\n")
	wordValue   = []byte("VALUE ")
	wordEnd     = []byte("END")
	tailEnd     = []byte("\r\nEND\r\n")
	wordStored  = []byte("STORED")
	wordVA      = []byte("VA ")
	wordEN      = []byte("EN")
	wordHD      = []byte("HD")
	textRefused = [][]byte{[]byte("NOT_STORED"), []byte("EXISTS"), []byte("NOT_FOUND")}
	metaRefused = [][]byte{[]byte("NS"), []byte("EX"), []byte("NF")}
	errorWords  = [][]byte{[]byte("ERROR"), []byte("CLIENT_ERROR"), []byte("SERVER_ERROR")}
)

// text is the classic protocol: get, set and incr.
type text struct{}

func (text) get(out, key []byte, _ uint32) []byte {
	out = append(out, "get "...)
	out = append(out, key...)
	return append(out, crlf...)
}

func (text) set(out, key []byte, v value, _ uint32) []byte {
	out = append(out, "set "...)
	out = append(out, key...)
	out = append(out, " 0 0 "...)
	out = strconv.AppendInt(out, int64(v.size), 10)
	out = append(out, crlf...)
	out = v.append(out)
	return append(out, crlf...)
}

func (text) incr(out, key []byte, _ uint32) []byte {
	out = append(out, "incr "...)
	out = append(out, key...)
	return append(out, " 1\r\n"...)
}

func (text) reply(in, key []byte, v verb, _ uint32) (int, answer, error) {
	line, n, err := cutLine(in)
	if n == 0 {
		return 0, answer{}, err
	}
	switch {
	case v == verbSet && bytes.Equal(line, wordStored), v == verbIncr && isNumber(line):
		return n, answer{kind: stored}, nil
	case v != verbGet && isAny(line, textRefused), isError(line):
		return n, answer{refused, line}, nil
	case v == verbSet:
		return 0, answer{}, unexpected("set", line)
	case v == verbIncr:
		return 0, answer{}, unexpected("incr", line)
	case bytes.Equal(line, wordEnd):
		return n, answer{kind: miss}, nil
	case !bytes.HasPrefix(line, wordValue):
		return 0, answer{}, unexpected("get", line)
	}
	rest, ok := bytes.CutPrefix(line[len(wordValue):], key)
	if !ok || len(rest) == 0 || rest[0] != ' ' {
		return 0, answer{}, fmt.Errorf("get %s was answered for another key: %q", key, clip(line))
	}
	_, rest, ok1 := parseInt(rest[1:])
	if !ok1 || len(rest) == 0 || rest[0] != ' ' {
		return 0, answer{}, unexpected("get", line)
	}
	size, rest, ok := parseInt(rest[1:])
	if !ok || len(rest) != 0 {
		return 0, answer{}, unexpected("get", line)
	}
	return block(in, n, size, tailEnd)
}

// meta is mg, ms and ma.
type meta struct{}

func (meta) get(out, key []byte, _ uint32) []byte {
	out = append(out, "mg "...)
	out = append(out, key...)
	return append(out, " v\r\n"...)
}

func (meta) set(out, key []byte, v value, _ uint32) []byte {
	out = append(out, "ms "...)
	out = append(out, key...)
	out = append(out, ' ')
	out = strconv.AppendInt(out, int64(v.size), 10)
	out = append(out, crlf...)
	out = v.append(out)
	return append(out, crlf...)
}

// incr asks for the value, as the other dialects cannot help doing: a counter is
// for reading.
func (meta) incr(out, key []byte, _ uint32) []byte {
	out = append(out, "ma "...)
	out = append(out, key...)
	return append(out, " v\r\n"...)
}

func (meta) reply(in, _ []byte, v verb, _ uint32) (int, answer, error) {
	line, n, err := cutLine(in)
	if n == 0 {
		return 0, answer{}, err
	}
	line = bytes.TrimRight(line, " ") // 1.6.18 leaves one after "HD"
	name := [...]string{verbGet: "mg", verbSet: "ms", verbIncr: "ma"}[v]
	switch {
	case v == verbSet && bytes.Equal(line, wordHD):
		return n, answer{kind: stored}, nil
	case v != verbGet && isAny(line, metaRefused), isError(line):
		return n, answer{refused, line}, nil
	case v == verbGet && bytes.Equal(line, wordEN):
		return n, answer{kind: miss}, nil
	case v == verbSet || !bytes.HasPrefix(line, wordVA):
		return 0, answer{}, unexpected(name, line)
	}
	size, rest, ok := parseInt(line[len(wordVA):])
	if !ok || len(rest) != 0 {
		return 0, answer{}, unexpected(name, line)
	}
	n, a, err := block(in, n, size, crlf)
	if v == verbIncr && n > 0 {
		if !isNumber(a.text) {
			return 0, answer{}, unexpected(name, a.text)
		}
		a = answer{kind: stored}
	}
	return n, a, err
}

// bin is the binary protocol: GET, SET and INCREMENT, not their quiet forms, so
// that every request has one reply.
type bin struct{}

const (
	binHeader   = 24
	binRequest  = 0x80
	binReply    = 0x81
	binGet      = 0x00
	binSet      = 0x01
	binIncr     = 0x05
	binOK       = 0
	binNotFound = 1
)

func (bin) get(out, key []byte, serial uint32) []byte {
	out = binHead(out, binGet, key, 0, len(key), serial)
	return append(out, key...)
}

func (bin) set(out, key []byte, v value, serial uint32) []byte {
	out = binHead(out, binSet, key, 8, 8+len(key)+v.size, serial)
	out = append(out, 0, 0, 0, 0, 0, 0, 0, 0) // flags, exptime
	out = append(out, key...)
	return v.append(out)
}

func (bin) incr(out, key []byte, serial uint32) []byte {
	out = binHead(out, binIncr, key, 20, 20+len(key), serial)
	out = append(out, 0, 0, 0, 0, 0, 0, 0, 1) // delta
	out = append(out, 0, 0, 0, 0, 0, 0, 0, 0) // initial value, unused:
	out = append(out, 255, 255, 255, 255)     // this exptime says not to create the counter
	return append(out, key...)
}

func binHead(out []byte, opcode byte, key []byte, extras byte, body int, serial uint32) []byte {
	out = append(out, binRequest, opcode, byte(len(key)>>8), byte(len(key)), extras, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(body))
	out = binary.BigEndian.AppendUint32(out, serial)
	return append(out, 0, 0, 0, 0, 0, 0, 0, 0) // cas
}

func (bin) reply(in, key []byte, v verb, serial uint32) (int, answer, error) {
	if len(in) < binHeader {
		if len(in) > 0 && in[0] != binReply {
			return 0, answer{}, fmt.Errorf("not a binary reply: %q", clip(in))
		}
		return 0, answer{}, nil
	}
	opcode := [...]byte{verbGet: binGet, verbSet: binSet, verbIncr: binIncr}[v]
	extras := int(in[4])
	keyLen := int(binary.BigEndian.Uint16(in[2:]))
	status := binary.BigEndian.Uint16(in[6:])
	body := int(binary.BigEndian.Uint32(in[8:]))
	if in[0] != binReply || in[1] != opcode || extras+keyLen > body || body > maxReply {
		return 0, answer{}, fmt.Errorf("not a binary reply to opcode %#02x: % x", opcode, in[:binHeader])
	}
	if got := binary.BigEndian.Uint32(in[12:]); got != serial {
		return 0, answer{}, fmt.Errorf("binary reply %d where %d is due (%s)", got, serial, key)
	}
	n := binHeader + body
	if len(in) < n {
		return 0, answer{}, nil
	}
	content := in[binHeader+extras+keyLen : n]
	switch {
	case status == binOK && v == verbIncr && len(content) != 8:
		return 0, answer{}, fmt.Errorf("the new value of a counter has %d bytes: % x", len(content), clip(content))
	case status == binOK && v != verbGet:
		return n, answer{kind: stored}, nil
	case status == binOK:
		return n, answer{hit, content}, nil
	case status == binNotFound && v == verbGet:
		return n, answer{kind: miss}, nil
	}
	if len(content) == 0 {
		content = fmt.Appendf(nil, "binary status %#02x", status)
	}
	return n, answer{refused, content}, nil
}

// maxReply bounds the value a reply may announce: what a server may hold is not
// ours to limit, but a length gone wrong must not eat the memory.
const maxReply = 1 << 30

// block reads the data block of size bytes that follows the line of n, and the
// bytes that close the reply.
func block(in []byte, n, size int, tail []byte) (int, answer, error) {
	if size > maxReply {
		return 0, answer{}, fmt.Errorf("a value of %d bytes", size)
	}
	total := n + size + len(tail)
	if len(in) < total {
		return 0, answer{}, nil
	}
	if !bytes.Equal(in[n+size:total], tail) {
		return 0, answer{}, fmt.Errorf("a value of %d bytes is followed by %q", size, clip(in[n+size:total]))
	}
	return total, answer{hit, in[n : n+size]}, nil
}

// cutLine returns the first line without its CRLF, and its length with it; 0
// when the line is not all there.
func cutLine(in []byte) (line []byte, n int, err error) {
	i := bytes.IndexByte(in[:min(len(in), maxLine)], '\n')
	if i < 0 {
		if len(in) >= maxLine {
			return nil, 0, fmt.Errorf("a line without end: %q", clip(in))
		}
		return nil, 0, nil
	}
	if i == 0 || in[i-1] != '\r' {
		return nil, 0, fmt.Errorf("a line that does not end in CRLF: %q", clip(in[:i+1]))
	}
	return in[:i-1], i + 1, nil
}

func isAny(line []byte, words [][]byte) bool {
	for _, w := range words {
		if bytes.Equal(line, w) {
			return true
		}
	}
	return false
}

// isError reports whether the line is one of the protocol's error replies.
func isError(line []byte) bool {
	for _, w := range errorWords {
		if rest, ok := bytes.CutPrefix(line, w); ok {
			return len(rest) == 0 || rest[0] == ' ' || rest[0] == ':'
		}
	}
	return false
}

func unexpected(verb string, line []byte) error {
	return fmt.Errorf("unexpected reply to %s: %q", verb, clip(line))
}

// clip keeps what an error quotes readable.
func clip(b []byte) []byte { return b[:min(len(b), 80)] }

// isNumber reports whether b is what a counter holds: up to 20 digits.
func isNumber(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 20
}

// parseInt reads the digits that in starts with.
func parseInt(in []byte) (n int, rest []byte, ok bool) {
	for len(in) > 0 && in[0] >= '0' && in[0] <= '9' && n < maxReply*4 {
		n = n*10 + int(in[0]-'0')
		in, ok = in[1:], true
	}
	return n, in, ok
}
