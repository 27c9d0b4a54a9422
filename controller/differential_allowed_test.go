package controller_test

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"regexp"
	"time"
)

// difference is one way in which attune may answer otherwise than a memcached.
// Whatever part of a script it does not touch is compared all the same.
type difference struct {
	name, why string
	// old: only a memcached older than the protocol attune speaks differs. The
	// newest one answers as attune does.
	old bool
	// match finds the difference in what a connection sends: -1 if it is not
	// there. What comes before is compared, and what comes after is not, unless
	// there is a fix.
	match func(stream []byte) (at int)
	// fix makes equal what the servers answered.
	fix func(memcached, attune []byte) (m, a []byte)
}

// differences are all that are known, but for what explain says of pipelines.
var differences = []difference{
	{
		name:  "blank line after a bad key",
		why:   "memcached ends the error of a get with a bad key by two line ends; the second one is an answer to nothing",
		match: pattern(`[^ \n]{251}`),
		fix: func(m, a []byte) ([]byte, []byte) {
			return bytes.ReplaceAll(m, []byte("format\r\n\r\n"), []byte("format\r\n")), a
		},
	},
	{
		name:  "error before the end of a refused request",
		why:   "memcached tells why it refused a request when it has all of it; attune at once, so also when the client closes in the midst of it",
		match: pattern(``),
		fix: func(m, a []byte) ([]byte, []byte) {
			return m, sections(m, a, func(m, a []byte) bool {
				told, ok := bytes.CutPrefix(a, m)
				return ok && oneError.Match(told)
			})
		},
	},
	{
		name:  "how a key was spelled",
		why:   "memcached remembers that a key came in base64 first and shows it so to whoever reads it; attune shows it the way it was asked for",
		match: pattern(`(?m)^m[gsdae] .* b`),
		fix: func(m, a []byte) ([]byte, []byte) {
			return encodedKey.ReplaceAllFunc(m, decodeKey), encodedKey.ReplaceAllFunc(a, decodeKey)
		},
	},
	{
		name:  "read before it was counted",
		why:   "memcached writes a number that got no longer over the old one, which stays marked as read (flag h); to attune a new value is a new value",
		match: pattern(`(?m)^(incr|decr|ma) |[\x05\x06\x15\x16]`),
		fix: func(m, a []byte) ([]byte, []byte) {
			return fetchedFlag.ReplaceAll(m, []byte("$1 h-")), fetchedFlag.ReplaceAll(a, []byte("$1 h-"))
		},
	},
	{
		name:  "less than no time left",
		why:   "memcached prints the TTL of an item made dead at once (flag t) as a negative number without its sign; attune as 0",
		match: pattern(`(?m)^m[ga] .* t`),
		fix: func(m, a []byte) ([]byte, []byte) {
			return negativeTTL.ReplaceAll(m, []byte(" t0")), a
		},
	},
	{
		name:  "replies before a bad packet",
		why:   "memcached closes at a packet without the magic byte or with lengths that do not fit its command, and loses the replies to packets that came with it; attune writes them first",
		match: badPacket,
		fix: func(m, a []byte) ([]byte, []byte) {
			// A reply that was lost had a unique, perhaps, and has no number then.
			m, a = uniqueNumber.ReplaceAll(m, []byte("#")), uniqueNumber.ReplaceAll(a, []byte("#"))
			return m, sections(m, a, func(m, a []byte) bool { return bytes.HasPrefix(a, bytes.TrimSpace(m)) })
		},
	},
	{
		name:  "words for a bad format",
		why:   "1.6.18 says ERROR to a command that lacks arguments",
		old:   true,
		match: pattern(``),
		fix: func(m, a []byte) ([]byte, []byte) {
			return badFormat.ReplaceAll(m, []byte("ERROR")), badFormat.ReplaceAll(a, []byte("ERROR"))
		},
	},
	{
		name:  "what follows a refused set",
		why:   "1.6.18 takes the value of a set that it refuses for commands",
		old:   true,
		match: refusedSet,
	},
	{
		name:  "binary exptime after 2038",
		why:   "1.6.18 takes some of them for times to come, and the newest for past ones, as attune does below zero in 32 bits",
		old:   true,
		match: func(stream []byte) int { return bytes.Index(stream, []byte("\xff\xff\xff\xce")) },
	},
	{
		name:  "younger flags of meta",
		why:   "1.6.18 does not know E, md x, mg C and ms N, refuses an M without a letter where it means nothing, and reads a few others otherwise",
		old:   true,
		match: pattern(`(?m)^(m[gsda] .* ([EbNCxFDJRk]|M[ \r])|m[a-z] [^ \n]{251}|m[gsda] .*(\x{fffd}|\d{20})|m[a-z]\r?$|m[a-z] [^ ]*\r?$|ms .* (O|-))`),
	},
	{
		name:  "blanks",
		why:   "1.6.18 skips blanks before a command, and reads noreply otherwise where little or nothing stands before it",
		old:   true,
		match: pattern(`(?m)^( |delete .* (0|x|NOREPLY)|.* (NOREPLY|0|x noreply)\r?$|verbosity|gats? +[^ \r\n]* *\r?$|.* noreply\r?$)`),
	},
	{
		name:  "long line",
		why:   "memcached takes a line of more than 2 KiB or not by how much of it one read brings; attune by its length, whatever packets it comes in",
		match: longLine,
	},
	{
		name:  "wide flags",
		why:   "memcached stores flags of more than 32 bits cut to 32, and takes -0; to refuse them loses nothing silently",
		match: pattern(`(?m)^((set|add|replace|append|prepend|cas) +[^ \n]+ +|m[gsda] .* F)(-0|\d{11,}|[5-9]\d{9}|4[3-9]\d{8}|429496729[6-9]|42949673\d\d)`),
	},
	{
		name:  "number with nothing in it",
		why:   "memcached takes a lone minus or a control character for the number 0 in some places; attune wants a number",
		match: pattern(`(?m)^[a-z_ ]+.* (-|[\x00\t\v\f\r])[ \r]`),
	},
	{
		name:  "blank before flush_all",
		why:   "memcached refuses a command with a blank before it, but for those that are not among its usual ones; attune refuses all",
		match: pattern(`(?m)^ +(flush_all|verbosity|cache_memlimit|slabs|lru)`),
	},
	{
		name:  "parts of an unknown packet",
		why:   "memcached skips the key and extras of a packet with an unknown opcode twice, and loses its place in the stream; attune skips them once",
		match: packetWhere(func(h header) bool { return h.opcode >= 0x25 && h.body > 0 }),
	},
	{
		name: "flush in the distant past",
		why:  "memcached flushes nothing when the moment named is before it started; attune flushes, as for a negative one",
		match: func(stream []byte) int {
			at := packetWhere(func(h header) bool { return (h.opcode == 0x08 || h.opcode == 0x18) && h.extras == 4 })(stream)
			if at >= 0 && len(stream) >= at+28 && binary.BigEndian.Uint32(stream[at+24:]) > 60*60*24*30 {
				return at
			}
			return -1
		},
	},
	{
		name:  "number with more in it",
		why:   "to memcached a number ends at a tab, CR or NUL, whatever follows; attune wants a number",
		match: pattern(`\d[\x00\t\v\f\r][^\n]`),
	},
	{
		name:  "noreply of a read",
		why:   "reads have no noreply, so the word is a key; memcached takes it for one and yet hides the error of a bad key before it",
		match: pattern(`(?m)^(get|gets|gat|gats) .*noreply`),
	},
	{
		name:  "unique 0",
		why:   "memcached can be told to store a unique of 0, which nobody can compare; to attune E0 chooses nothing",
		match: pattern(`(?m)^m[gsda] .* E0+[ \r\n]`),
	},
	{
		name:  "R after T",
		why:   "memcached reads R by the TTL that a T before it just set, so that R is of no use with T; attune by the TTL there was",
		match: pattern(`(?m)^mg .* T.* R`),
	},
	{
		name:  "opaque too long",
		why:   "memcached notices a long O while it writes the reply, having done what was asked; attune before it does anything",
		match: pattern(`(?m)^m[gsda] .* O[^ \n]{32}`),
	},
	{
		name:  "flag that is no letter",
		why:   "the newest memcached refuses an ms with one, and takes its value for commands; attune drops the value, as it is dropped for any other bad flag",
		match: pattern(`(?m)^ms .* [^A-Za-z \r\n]`),
	},
	{
		name:  "T or E of a counter that grows",
		why:   "memcached puts a number that got longer into a new item, and sets TTL and unique of the old one; attune sets those of the item there is",
		match: pattern(`(?m)^ma .* [TE]`),
	},
	{
		name:  "after 2038",
		why:   "to memcached, which counts seconds in 32 bits, an exptime after January 2038 is long past or an error; to attune it is to come",
		match: pattern(`(?m)^((set|add|replace|append|prepend|cas) +[^ \n]+ +\d+ +|touch +[^ \n]+ +|flush_all +|gats? +|m[gsda] .* [TN])(2[2-9]\d{8}|214[89]\d{6}|[3-9]\d{9}|\d{11,})`),
	},
	{
		name:  "a unique for a length",
		why:   "a cas that lacks a word has its unique where the length belongs, and the uniques of two servers differ in size",
		match: pattern(`(?m)^cas( +[^ \n]+){3} +@CAS#`),
	},
	{
		name:  "mn and LF",
		why:   "the newest memcached takes mn ended by LF alone for too short to be a command; attune takes LF as it does after any command",
		match: pattern(`(?m)^mn\n`),
	},
	{
		name:  "no base64",
		why:   "memcached decodes a key up to the first byte that is no base64; attune refuses it",
		match: pattern(`(?m)^m[gsdae] +([^ \n]*[^A-Za-z0-9+/= \n]|[^ \n]*=[^= \n])[^ \n]* .*b`),
	},
	{
		name:  "get without end",
		why:   "attune answers the keys of a get as they come, however many, memcached when the line is complete, so also when it never is",
		match: pattern(`(?m)^(get|gets|gat|gats) [^\n]*\z`),
	},
	{
		name:  "delete with much behind it",
		why:   "the newest memcached ignores whatever follows the key; attune, as older ones and as memcapable has it, refuses more than a time and noreply",
		match: pattern(`(?m)^delete( +[^ \n]+){4}`),
	},
	{
		name:  "flags of me",
		why:   "memcached ignores whatever follows the key, b too, which it documents; attune reads b and refuses what it does not know",
		match: pattern(`(?m)^me +[^ \n]+ +[^ \r\n]`),
	},
	{
		name:  "sasl",
		why:   "memcached without SASL refuses some packets of SASL as invalid and closes; to attune they are unknown commands as others are",
		match: packetWhere(func(h header) bool { return 0x20 <= h.opcode && h.opcode <= 0x22 }),
	},
	{
		name: "touch with a value",
		why:  "memcached does not look for a value behind the key of touch and gat, and takes it for the next packet; attune refuses the packet",
		match: packetWhere(func(h header) bool {
			return (0x1c <= h.opcode && h.opcode <= 0x1e || h.opcode == 0x23 || h.opcode == 0x24) && h.body > h.extras+h.key
		}),
	},
}

var (
	connectionLine = []byte("--- connection ")
	oneError       = regexp.MustCompile(`^(((CLIENT|SERVER)_)?ERROR[^\r\n]*\r\n|op \S+ status 0x00(0[1-9]|8.)[^\n]*\n)$`)
	encodedKey     = regexp.MustCompile(` k[A-Za-z0-9+/]+=* b|ME [A-Za-z0-9+/]+=* `)
	badFormat      = regexp.MustCompile(`CLIENT_ERROR bad (command line format|data chunk)`)
	uniqueNumber   = regexp.MustCompile(`#\d+`)
	negativeTTL    = regexp.MustCompile(` t~429496\d{4}`)
	fetchedFlag    = regexp.MustCompile(`((?:HD|VA)[^\n]*) h[01]`)
)

// sections puts those replies of m to a connection in the place of a's where
// alike says that they are as good as equal.
func sections(m, a []byte, alike func(m, a []byte) bool) []byte {
	theirs, mine := bytes.Split(m, connectionLine), bytes.Split(a, connectionLine)
	for i := range min(len(mine), len(theirs)) {
		if alike(theirs[i], mine[i]) {
			mine[i] = theirs[i]
		}
	}
	return bytes.Join(mine, connectionLine)
}

// decodeKey makes of a return flag k with b one without.
func decodeKey(flags []byte) []byte {
	if key, ok := bytes.CutPrefix(flags, []byte(" k")); ok {
		plain, err := base64.StdEncoding.DecodeString(string(key[:len(key)-2]))
		if err == nil {
			return append([]byte(" k"), plain...)
		}
	}
	return flags
}

// pattern matches a regular expression.
func pattern(expr string) func([]byte) int {
	re := regexp.MustCompile(expr)
	return func(stream []byte) int {
		if at := re.FindIndex(stream); at != nil {
			return at[0]
		}
		return -1
	}
}

// refusedSet matches a set, in any of its forms, whose line is wrong in some way.
func refusedSet(stream []byte) int {
	at := 0
	for line := range bytes.Lines(stream) {
		if setLine.Match(line) && !goodSetLine.Match(line) {
			return at
		}
		at += len(line)
	}
	return -1
}

var (
	setLine     = regexp.MustCompile(`^(set|add|replace|append|prepend|cas|ms) `)
	goodSetLine = regexp.MustCompile(`^((set|add|replace|append|prepend) [^ ]{1,250} \d{1,10} -?\d{1,10} \d{1,6}( noreply)?|cas [^ ]{1,250} \d{1,10} -?\d{1,10} \d{1,6} \S+( noreply)?|ms [^ ]{1,250} \d{1,6} .*)\r?\n$`)
)

// longLine matches a line that memcached may take for none.
func longLine(stream []byte) int {
	at := 0
	for line := range bytes.Lines(stream) {
		if len(line) > 2048 {
			return at
		}
		at += len(line)
	}
	return -1
}

// header is what the first 24 bytes of a binary packet say.
type header struct {
	opcode            byte
	key, extras, body int
}

// packets calls see for each packet of a binary stream until it returns false,
// and returns where it stopped: at what is no packet, or the end of the last.
func packets(stream []byte, see func(header) bool) (at int) {
	for at+24 <= len(stream) && stream[at] == 0x80 {
		p := stream[at:]
		h := header{p[1], int(binary.BigEndian.Uint16(p[2:])), int(p[4]), int(binary.BigEndian.Uint32(p[8:]))}
		if !see(h) {
			break
		}
		at += 24 + h.body
	}
	return at
}

// packetWhere matches a packet of a binary stream.
func packetWhere(is func(header) bool) func([]byte) int {
	return func(stream []byte) int {
		if at := packets(stream, func(h header) bool { return !is(h) }); at+24 <= len(stream) && stream[at] == 0x80 {
			return at
		}
		return -1
	}
}

// wrongLengths reports whether a packet has other parts than its command.
func wrongLengths(h header) bool {
	extras := 0
	switch h.opcode {
	case 0x01, 0x02, 0x03, 0x11, 0x12, 0x13: // set, add, replace
		extras = 8
	case 0x05, 0x06, 0x15, 0x16: // incr, decr
		extras = 20
	case 0x1c, 0x1d, 0x1e, 0x23, 0x24: // touch, gat
		extras = 4
	case 0x00, 0x04, 0x09, 0x0c, 0x0d, 0x0e, 0x0f, 0x14, 0x19, 0x1a: // get, delete, append, prepend
	case 0x08, 0x18: // flush
		return h.key > 0 || h.extras != h.body || h.extras != 0 && h.extras != 4
	case 0x07, 0x0a, 0x0b, 0x17: // quit, noop, version
		return h.body > 0
	default:
		return false
	}
	return h.extras != extras || h.key == 0
}

// badPacket matches what is no packet, or has the wrong parts, after one that is
// right.
func badPacket(stream []byte) int {
	at := packets(stream, func(h header) bool { return h.key+h.extras <= h.body && !wrongLengths(h) })
	if at > 0 && at < len(stream) {
		return at
	}
	return -1
}

// explain tells what excuses a script that was answered differently, or "".
//
// There is one more difference than those in the table: memcached answers to a
// pipeline in some cases otherwise than to the same commands sent one by one. It
// loses the replies before a bad key or a close, and pads a number that got
// shorter only if no reply refers to it. attune must answer to both as memcached
// does to commands that come one by one.
func explain(p pair, s script, memcached, attune []byte) string {
	type reading struct {
		script
		name      string
		memcached []byte
		attune    []byte
	}
	readings := []reading{{s, "", memcached, attune}}
	for i := range differences {
		d := &differences[i]
		at := firstMatch(p, d, s)
		if at == nil || d.fix != nil {
			continue
		}
		s = s.before(*at)
		memcached, attune, err := p.both(s, 0)
		if err != nil {
			return ""
		}
		readings = append(readings, reading{s, d.name, memcached, attune})
	}
	for _, r := range readings {
		if name := fixed(p, r.script, r.memcached, r.attune); name != "" {
			return cmp.Or(r.name, name)
		}
	}
	for _, pause := range []time.Duration{2 * time.Millisecond, 20 * time.Millisecond} {
		for _, r := range readings {
			memcached, singly, err := p.both(r.script, pause)
			if err == nil && bytes.Equal(singly, r.attune) && fixed(p, r.script, memcached, singly) != "" {
				return cmp.Or(r.name, "pipeline")
			}
		}
	}
	return ""
}

// fixed is the difference after whose fix the replies are equal, or "". It is
// alike if they need none.
func fixed(p pair, s script, memcached, attune []byte) string {
	if bytes.Equal(memcached, attune) {
		return alike
	}
	for i := range differences {
		d := &differences[i]
		if d.fix == nil || firstMatch(p, d, s) == nil {
			continue
		}
		if memcached, attune = d.fix(memcached, attune); bytes.Equal(memcached, attune) {
			return d.name
		}
	}
	return ""
}

// place is a byte of a batch of a script.
type place struct{ batch, offset int }

// firstMatch is where a script first has a difference.
func firstMatch(p pair, d *difference, s script) *place {
	if d.old && !p.old {
		return nil
	}
	for i, batch := range s {
		if at := d.match(bytes.Join(batch, nil)); at >= 0 {
			return &place{i, at}
		}
	}
	return nil
}

// before is the beginning of a script, up to a place.
func (s script) before(p place) script {
	out := append(script{}, s[:p.batch]...)
	var batch [][]byte
	for _, piece := range s[p.batch] {
		n := min(len(piece), p.offset)
		p.offset -= n
		batch = append(batch, piece[:n])
		if p.offset == 0 {
			break
		}
	}
	return append(out, batch)
}
