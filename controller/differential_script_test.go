package controller_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// script is what one client does: batches of commands, each batch sent as one
// stream over a connection of its own. A batch may hold marks (casMark) of the
// uniques that keys have when it is sent.
type script [][][]byte

// writer makes up the commands of one script.
type writer struct {
	*rand.Rand
	// flushes: the script may flush, and then chooses no uniques: memcached takes
	// an item whose unique is lower than those before a flush for one flushed.
	flushes bool
}

// scriptKeys are the keys that scripts are about, few, so that commands meet.
var scriptKeys = []string{"a", "b", "c", "n"}

func (w *writer) pick(s ...string) string { return s[w.IntN(len(s))] }

// one in n times.
func (w *writer) one(n int) bool { return w.IntN(n) == 0 }

// newScript makes a script of a dialect: classic, meta, mixed or binary.
func newScript(seed uint64, dialect string) script {
	w := &writer{Rand: rand.New(rand.NewPCG(seed, 1))}
	w.flushes = w.one(3)
	var s script
	for range 1 + w.IntN(3) {
		var batch [][]byte
		for range 1 + w.IntN(14) {
			batch = append(batch, []byte(w.command(dialect)))
		}
		s = append(s, batch)
	}
	return s
}

func (w *writer) command(dialect string) string {
	switch dialect {
	case "classic":
		return w.classic()
	case "meta":
		return w.meta()
	case "binary":
		return w.binary()
	}
	if w.one(2) {
		return w.classic()
	}
	return w.meta()
}

func (w *writer) key() string {
	switch w.IntN(60) {
	case 0:
		return strings.Repeat("k", 250)
	case 1:
		return strings.Repeat("k", 251)
	case 2:
		return "noreply"
	case 3:
		return "\xff\x01\t\x80"
	}
	return scriptKeys[w.IntN(len(scriptKeys))]
}

func (w *writer) value() string {
	switch w.IntN(40) {
	case 0:
		return strings.Repeat("large\nvalue ", 3500)
	case 1:
		return "get a\r\nEND\r\n"
	case 2:
		return strings.Repeat("x", 1000) + "\n" + strings.Repeat("x", 1045+w.IntN(5))
	}
	return w.pick("", "0", "1", "9", "10", "99", "1000", "18446744073709551615", "18446744073709551616",
		" 5", "5 ", "7 x", "-1", "+3", "12x", "abc", "hello world")
}

// exptime is in multiples of 50 seconds, which lets replies be compared that
// were given in different seconds.
func (w *writer) exptime() string {
	if w.one(12) {
		return strconv.FormatInt(time.Now().Unix()+5025, 10) // as unix time
	}
	if w.one(30) {
		return w.pick("", "x", "1x", "99999999999999999999", "1000000000")
	}
	return w.pick("0", "0", "0", "100", "100", "5000", "2592000", "-1", "-50")
}

func (w *writer) number() string {
	if w.one(20) {
		return w.pick("x", "-1", "", "99999999999999999999", "1 2", "0x10", "1.5")
	}
	return w.pick("0", "1", "1", "2", "5", "90", "1000", "18446744073709551615", "9223372036854775808")
}

func (w *writer) clientFlags() string {
	if w.one(25) {
		return w.pick("-1", "x", "4294967296", "")
	}
	return w.pick("0", "0", "1", "42", "65536", "4294967295")
}

func (w *writer) noreply() string {
	if w.one(6) {
		return " noreply"
	}
	if w.one(40) {
		return w.pick(" NOREPLY", " 0", " x noreply", "  ")
	}
	return ""
}

func (w *writer) eol() string {
	if w.one(25) {
		return "\n"
	}
	return "\r\n"
}

// unique is the one a key has, mostly.
func (w *writer) unique() string {
	if w.one(3) {
		return w.pick("1", "0", "9223372036854775807", "18446744073709551615", "4611686018427387904", "4611686018427387909")
	}
	return casMark(w.pick(scriptKeys...)[0])
}

// size is that of a value, mostly.
func (w *writer) size(value string) string {
	if w.one(40) {
		return w.pick("-1", "x", strconv.Itoa(len(value)+1), strconv.Itoa(max(len(value)-1, 0)), "", "4294967295")
	}
	return strconv.Itoa(len(value))
}

func (w *writer) classic() string {
	eol := w.eol()
	switch w.IntN(16) {
	case 0, 1, 2, 3:
		v := w.value()
		return fmt.Sprintf("%s %s %s %s %s%s%s%s\r\n", w.pick("set", "set", "add", "replace", "append", "prepend"),
			w.key(), w.clientFlags(), w.exptime(), w.size(v), w.noreply(), eol, v)
	case 4, 5:
		v, k := w.value(), w.pick(scriptKeys...)
		unique := w.unique()
		if w.one(2) {
			unique = casMark(k[0])
		}
		return fmt.Sprintf("cas %s %s %s %s %s%s%s%s\r\n", k, w.clientFlags(), w.exptime(), w.size(v), unique, w.noreply(), eol, v)
	case 6, 7, 8:
		line := w.pick("get", "get", "gets", "gat "+w.exptime(), "gats "+w.exptime())
		for range w.IntN(5) {
			line += w.pick(" ", " ", " ", "  ") + w.key()
		}
		if w.one(20) {
			line += strings.Repeat(" "+w.key(), 300)
		}
		return line + w.noreply() + eol
	case 9, 10:
		return w.pick("incr", "decr") + " " + w.key() + " " + w.number() + w.noreply() + eol
	case 11:
		return "touch " + w.key() + " " + w.exptime() + w.noreply() + eol
	case 12:
		return "delete " + w.key() + w.noreply() + eol
	case 13:
		if w.flushes {
			return "flush_all" + w.pick("", "", " 0", " -1", " x", " 5000") + w.noreply() + eol
		}
		return "touch " + w.key() + " " + w.exptime() + eol
	case 14:
		return w.pick("verbosity 0", "verbosity 1", "verbosity", "version", "mn", "bogus", "GET a", "", " ", " get a",
			"bogus 1 2 noreply", "get", "set", "set a", "set a 0 0", "cas a 0 0 1", "incr a", "touch a", "delete", "gat", "gat 0",
			"me a", "me", "quit", "stats nothing", "xx", "x") + w.noreply() + eol
	default:
		return w.tooLarge()
	}
}

// tooMuch is a value that no server of default settings takes.
var tooMuch = strings.Repeat(strings.Repeat("y", 1023)+"\n", 3<<10)

// tooLarge is, now and then, a command with such a value.
func (w *writer) tooLarge() string {
	if !w.one(8) {
		return "get a b c n\r\n"
	}
	return fmt.Sprintf("%s %s 0 0 %d%s\r\n%s\r\n", w.pick("set", "add", "append"), w.key(), 3<<20, w.noreply(), tooMuch)
}

func (w *writer) meta() string {
	k, verb := w.key(), w.pick("mg", "mg", "mg", "ms", "ms", "md", "ma", "ma")
	line := verb + " " + k
	if w.one(12) {
		line = verb + " " + base64.StdEncoding.EncodeToString([]byte(k)) + " b"
	}
	var value string
	if verb == "ms" {
		value = w.value()
		b64 := strings.HasSuffix(line, " b")
		line = strings.TrimSuffix(line, " b") + " " + w.size(value)
		if b64 {
			line += " b"
		}
	}
	for n := w.IntN(6); n > 0; n-- {
		line += " " + w.metaFlag(verb)
	}
	if w.one(60) {
		return w.pick("mg", "ms", "ms a", "md", "ma", "me", "ms a x", "mn x", "mg a "+strings.Repeat("k ", 25)) + "\r\n"
	}
	line += w.eol()
	if verb == "ms" {
		line += value + "\r\n"
	}
	return line
}

func (w *writer) metaFlag(verb string) string {
	if w.one(40) {
		return w.pick("y", "Z", "W", "1", "\xff", "v1", "Tx", "T", "Nx", "Cx", "C", "Fx", "F-1", "Dx", "Jx", "MX", "M", "b", "bb",
			"E", "Ex", "O", "O"+strings.Repeat("o", 31), "O"+strings.Repeat("o", 32), "Lx", "P1", "Rx", "S5", "S")
	}
	// Any letter is legal with any verb; most of the time it is one of its own.
	list := map[string]string{
		"mg": "v v v c f h k l O q s t u N R T C E",
		"ms": "c k O q b T F M M M C I N E s",
		"md": "k O q C I T x E F",
		"ma": "v v t c k O q N J D M T C E",
	}[verb]
	if w.one(15) {
		list = "b c f h k l O q s t u v x I N R T C E F M D J"
	}
	f := w.pick(strings.Fields(list)...)
	switch f {
	case "O":
		f += w.pick("1", "abc", "123456789012345678901234567890")
	case "N", "T":
		f += w.pick("0", "100", "5000", "-1", "50")
	case "R":
		f += w.pick("0", "50", "75", "150", "6000", "-1")
	case "F":
		f += w.clientFlags()
	case "D", "J":
		f += w.number()
	case "C":
		f += w.unique()
	case "E":
		f = "c"
		if !w.flushes {
			f = "E" + w.pick("4611686018427387905", "4611686018427387909", "18446744073709551615", "0")
		}
	case "M":
		f += w.pick("E", "A", "P", "R", "S", "I", "D", "+", "-", "a", "incr", "append")
		if verb == "ma" && w.one(2) {
			f = "M" + w.pick("I", "D", "+", "-")
		}
	}
	return f
}

// packet is one binary request.
func packet(opcode byte, extras, key, value string, cas string) string {
	b := make([]byte, 16, 24+len(extras)+len(key)+len(value))
	b[0], b[1], b[4] = 0x80, opcode, byte(len(extras))
	binary.BigEndian.PutUint16(b[2:], uint16(len(key)))
	binary.BigEndian.PutUint32(b[8:], uint32(len(extras)+len(key)+len(value)))
	copy(b[12:], "opaq")
	return string(b) + cas + extras + key + value
}

func (w *writer) binary() string {
	be32 := func(v uint32) string { return string(binary.BigEndian.AppendUint32(nil, v)) }
	be64 := func(v uint64) string { return string(binary.BigEndian.AppendUint64(nil, v)) }
	exptime := func() string {
		if w.one(10) {
			return be32(uint32(time.Now().Unix() + 5025))
		}
		return be32([]uint32{0, 0, 100, 5000, 2592000, 1<<32 - 50}[w.IntN(6)])
	}
	quietly := func(loud, quiet byte) byte {
		if w.one(3) {
			return quiet
		}
		return loud
	}
	key := w.key()
	if len(key) == 1 && w.one(30) {
		key = "bin key"
	}
	cas := be64(0)
	switch w.IntN(6) {
	case 0:
		cas = casMark(w.pick(scriptKeys...)[0])
		if len(key) == 1 && w.one(2) {
			cas = casMark(key[0])
		}
	case 1:
		if w.one(3) {
			cas = be64([]uint64{1, 5 << 60, 1<<64 - 1}[w.IntN(3)])
		}
	}
	switch w.IntN(16) {
	case 0, 1, 2:
		return packet([]byte{0x00, 0x09, 0x0c, 0x0d}[w.IntN(4)], "", key, "", cas)
	case 3, 4, 5, 6:
		verb := byte(1 + w.IntN(3))
		v := w.value()
		if w.one(100) {
			v = tooMuch
		}
		return packet(quietly(verb, verb+0x10), be32([]uint32{0, 7, 1<<32 - 1}[w.IntN(3)])+exptime(), key, v, cas)
	case 7, 8:
		verb := []byte{0x0e, 0x0f}[w.IntN(2)]
		return packet(quietly(verb, verb+0x0b), "", key, w.value(), cas)
	case 9, 10:
		verb := []byte{0x05, 0x06}[w.IntN(2)]
		ttl := be32([]uint32{0, 100, 1<<32 - 1}[w.IntN(3)])
		return packet(quietly(verb, verb+0x10), be64([]uint64{0, 1, 5, 1<<64 - 1}[w.IntN(4)])+be64([]uint64{0, 7, 1<<64 - 1}[w.IntN(3)])+ttl, key, "", cas)
	case 11:
		return packet(quietly(0x04, 0x14), "", key, "", cas)
	case 12:
		return packet(0x1c, exptime(), key, "", cas)
	case 13:
		return packet([]byte{0x1d, 0x1e, 0x23, 0x24}[w.IntN(4)], exptime(), key, "", cas)
	case 14:
		if !w.flushes {
			return packet(0x0a, "", "", "", cas)
		}
		return packet(quietly(0x08, 0x18), w.pick("", be32(0), be32(5000)), "", "", cas)
	default:
		// What libmemcached's tests try, and opcodes that nobody has.
		return packet([]byte{0x0a, 0x0a, 0x0b, 0x0b, 0x1b, 0x25, 0x50, 0xff}[w.IntN(8)], "", "", "", cas)
	}
}

// mutated damages a script somewhere.
func mutated(seed uint64, s script) script {
	w := &writer{Rand: rand.New(rand.NewPCG(seed, 2))}
	batch := s[len(s)-1]
	for range 1 + w.IntN(3) {
		i := w.IntN(len(batch))
		if len(batch[i]) > 0 {
			batch[i] = w.damage(batch[i])
		}
	}
	return s
}

func (w *writer) damage(p []byte) []byte {
	at := w.IntN(len(p))
	if len(p) > 100 && w.one(2) {
		at = w.IntN(60) // the line, not the value
	}
	to := min(at+1+w.IntN(8), len(p))
	cut := func(insert string) []byte { return []byte(string(p[:at]) + insert + string(p[at:])) }
	out := []byte(string(p))
	switch w.IntN(9) {
	case 0:
		out[at] ^= 1 << w.IntN(8)
		return out
	case 1:
		out[at] = "\r\n\x00 \t\x7f0-9"[w.IntN(9)]
		return out
	case 2:
		return out[:at]
	case 3:
		return append(out[:at], p[to:]...)
	case 4:
		return cut(string(p[at:to]))
	case 5:
		return cut(w.pick("\r", "\n", "\r\n", "\x00", " ", "   ", "\t"))
	case 6:
		return cut(strings.Repeat("k", 240+w.IntN(20)))
	case 7:
		if w.one(4) {
			return cut(strings.Repeat(w.pick("k", " ", "k "), 2100))
		}
	}
	if p[0] == 0x80 {
		field := []int{0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11}[w.IntN(11)]
		if field < len(p) {
			out[field] = []byte{0, 1, 2, 4, 8, 20, 24, 0x80, 0xff, p[field] + 1, p[field] - 1}[w.IntN(11)]
		}
		return out
	}
	return cut(w.pick("-", "0", "9", "18446744073709551616", "x", "noreply ", "HTTP/1.1"))
}
