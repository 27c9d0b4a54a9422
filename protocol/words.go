package protocol

import "math"

// The words of the text dialects, as memcached spells them. Clients compare
// these byte by byte.
const (
	crlf    = "\r\n"
	noreply = "noreply"

	end       = "END"
	ok        = "OK"
	stored    = "STORED"
	notStored = "NOT_STORED"
	exists    = "EXISTS"
	notFound  = "NOT_FOUND"
	deleted   = "DELETED"
	touched   = "TOUCHED"

	unknown     = "ERROR"
	badFormat   = "CLIENT_ERROR bad command line format"
	badLine     = "CLIENT_ERROR bad command line"
	badChunk    = "CLIENT_ERROR bad data chunk"
	badExptime  = "CLIENT_ERROR invalid exptime argument"
	badDelta    = "CLIENT_ERROR invalid numeric delta argument"
	badSlab     = "CLIENT_ERROR Illegal slab id"
	nonNumeric  = "CLIENT_ERROR cannot increment or decrement non-numeric value"
	noFlush     = "CLIENT_ERROR flush_all not allowed"
	tooLarge    = "SERVER_ERROR object too large for cache"
	outOfMemory = "SERVER_ERROR out of memory storing object"

	metaNoop       = "MN"
	badToken       = "CLIENT_ERROR bad token in command line format"
	badFlag        = "CLIENT_ERROR invalid flag"
	badFlagOrTwice = "CLIENT_ERROR invalid or duplicate flag"
	duplicateFlag  = "CLIENT_ERROR duplicate flag"
	badOpaque      = "CLIENT_ERROR opaque token too long"
	tooManyFlags   = "CLIENT_ERROR options flags are too long"
	badBase64      = "CLIENT_ERROR error decoding key"
	badSetMode     = "CLIENT_ERROR invalid mode for ms M token"
	badCountMode   = "CLIENT_ERROR invalid mode for ma M token"
	badInitial     = "CLIENT_ERROR invalid numeric initial value"
	badMetaDelta   = "CLIENT_ERROR invalid numeric delta value"
)

// appendLine appends s and a line end.
func appendLine(dst []byte, s string) []byte {
	dst = append(dst, s...)
	return append(dst, crlf...)
}

// appendServerError appends a SERVER_ERROR line. msg comes from anywhere, a
// store's own words included, so line ends in it become blanks.
func appendServerError(dst []byte, msg string) []byte {
	dst = append(dst, "SERVER_ERROR "...)
	for i := range len(msg) {
		c := msg[i]
		if c == '\r' || c == '\n' {
			c = ' '
		}
		dst = append(dst, c)
	}
	return append(dst, crlf...)
}

// cut splits off the first word of a line. Blanks alone separate words: keys
// may hold tabs and control bytes. w is empty if there is no word left.
func cut(line []byte) (w, rest []byte) {
	i := 0
	for i < len(line) && line[i] == ' ' {
		i++
	}
	line = line[i:]
	for i = 0; i < len(line) && line[i] != ' '; i++ {
	}
	return line[:i], line[i:]
}

// last returns the last word of a line, empty if there is none.
func last(line []byte) []byte {
	n := len(line)
	for n > 0 && line[n-1] == ' ' {
		n--
	}
	i := n
	for i > 0 && line[i-1] != ' ' {
		i--
	}
	return line[i:n]
}

// number parses digits and nothing else, up to max.
func number(w []byte, max uint64) (v uint64, valid bool) {
	if len(w) == 0 || len(w) > 20 {
		return 0, false
	}
	for _, c := range w {
		d := uint64(c - '0')
		if d > 9 || v > (math.MaxUint64-d)/10 {
			return 0, false
		}
		v = v*10 + d
	}
	return v, v <= max
}

// maxSeconds bounds an exptime so that milliseconds cannot overflow. memcached
// keeps 32 bits, and takes a moment after January 2038 for one long past (set)
// or for an error (touch).
const maxSeconds = 1 << 40

// seconds parses an exptime, which may be negative.
func seconds(w []byte) (v int64, valid bool) {
	negative := len(w) > 0 && w[0] == '-'
	if negative {
		w = w[1:]
	}
	u, valid := number(w, maxSeconds)
	if negative {
		return -int64(u), valid
	}
	return int64(u), valid
}
