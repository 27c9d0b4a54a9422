package protocol_test

import (
	endian "encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// binPeer is a server of one connection: this parser or a memcached.
type binPeer interface {
	// exchange sends a packet and waits for all it is answered.
	exchange(packet []byte) (requests []string, replies []byte, closed bool)
}

// binConn is a connection to memcached. It sends a NOOP after each packet to
// know when the replies are complete.
type binConn struct {
	t *testing.T
	c net.Conn
}

func (b *binConn) exchange(packet []byte) (requests []string, replies []byte, closed bool) {
	const mark = 0xfeedbeef
	b.c.SetDeadline(time.Now().Add(5 * time.Second))
	// The write fails if memcached has closed already, which the read will show.
	b.c.Write(append(packet[:len(packet):len(packet)], binPacket(b.t, "NOOP", mark, nil)...))
	for {
		reply := make([]byte, 24)
		if _, err := io.ReadFull(b.c, reply); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				b.t.Fatalf("memcached does not answer %x", packet[:min(len(packet), 64)])
			}
			return nil, replies, true
		}
		if endian.BigEndian.Uint32(reply[12:]) == mark {
			return nil, replies, false
		}
		body := make([]byte, endian.BigEndian.Uint32(reply[8:]))
		if _, err := io.ReadFull(b.c, body); err != nil {
			b.t.Fatal(err)
		}
		replies = append(append(replies, reply...), body...)
	}
}

func binStories(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/binary_*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	return files
}

// binTell tells a story to the peers that dial opens and returns it with what
// they said. To a live memcached it leaves out what it is known to do otherwise.
func binTell(t *testing.T, story string, live bool, dial func() binPeer) string {
	t.Helper()
	var b strings.Builder
	var peer binPeer
	var uniques *binUniques
	var closed, skip bool
	for _, line := range strings.Split(strings.TrimSuffix(story, "\n"), "\n") {
		if strings.HasPrefix(line, "= ") || strings.HasPrefix(line, "<") {
			continue
		}
		b.WriteString(line + "\n")
		if strings.HasPrefix(line, "== ") {
			skip = live && strings.Contains(line, "!")
			peer, uniques, closed = dial(), new(binUniques), false
		}
		if !strings.HasPrefix(line, "> ") || skip {
			continue
		}
		if closed {
			t.Fatalf("%q is sent on a closed connection", line)
		}
		var reqs []string
		var out []byte
		reqs, out, closed = peer.exchange(binPacket(t, line[2:], 1, uniques))
		for _, r := range reqs {
			b.WriteString("= " + r + "\n")
		}
		for _, r := range binReplies(t, out, uniques) {
			b.WriteString("< " + r + "\n")
		}
		if closed {
			b.WriteString("< closed\n")
		}
	}
	return b.String()
}

// binCommon is what a story and memcached's telling of it must share: no
// requests, no conversations marked as different.
func binCommon(story string) string {
	var b strings.Builder
	for i, conversation := range strings.Split("\n"+story, "\n== ") {
		name, _, _ := strings.Cut(conversation, "\n")
		if i == 0 || strings.Contains(name, "!") {
			continue
		}
		for _, line := range strings.Split(conversation, "\n") {
			if !strings.HasPrefix(line, "= ") {
				b.WriteString(line + "\n")
			}
		}
	}
	return b.String()
}

// binCompare reports the first line that differs, after the packet it answers.
func binCompare(t *testing.T, want, got string) {
	t.Helper()
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	packet := ""
	for i := range max(len(w), len(g)) {
		a, b := "(nothing)", "(nothing)"
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			t.Fatalf("line %d, after %q:\n got %s\nwant %s", i+1, packet, b, a)
		}
		if strings.HasPrefix(a, ">") {
			packet = a
		}
	}
}

// binUniques numbers the cas uniques in the order a connection was shown them,
// so that those of two servers compare.
type binUniques []uint64

func (u *binUniques) name(cas uint64) string {
	for i, c := range *u {
		if c == cas {
			return fmt.Sprintf("#%d", i+1)
		}
	}
	*u = append(*u, cas)
	return fmt.Sprintf("#%d", len(*u))
}

var binOpcodes = map[string]byte{
	"GET": 0x00, "SET": 0x01, "ADD": 0x02, "REPLACE": 0x03, "DELETE": 0x04, "INCR": 0x05, "DECR": 0x06, "QUIT": 0x07,
	"FLUSH": 0x08, "GETQ": 0x09, "NOOP": 0x0a, "VERSION": 0x0b, "GETK": 0x0c, "GETKQ": 0x0d, "APPEND": 0x0e, "PREPEND": 0x0f,
	"STAT": 0x10, "SETQ": 0x11, "ADDQ": 0x12, "REPLACEQ": 0x13, "DELETEQ": 0x14, "INCRQ": 0x15, "DECRQ": 0x16, "QUITQ": 0x17,
	"FLUSHQ": 0x18, "APPENDQ": 0x19, "PREPENDQ": 0x1a, "VERBOSITY": 0x1b, "TOUCH": 0x1c, "GAT": 0x1d, "GATQ": 0x1e,
	"SASL_LIST": 0x20, "SASL_AUTH": 0x21, "SASL_STEP": 0x22, "GATK": 0x23, "GATKQ": 0x24,
}

// binPacket makes a packet from words as the stories have them: an opcode, by
// name or number, and fields.
func binPacket(t testing.TB, text string, opaque uint32, uniques *binUniques) []byte {
	t.Helper()
	name, rest, _ := strings.Cut(text, " ")
	opcode, known := binOpcodes[name]
	if !known {
		n, err := strconv.ParseUint(name, 0, 8)
		if err != nil {
			t.Fatalf("%q: no such opcode", text)
		}
		opcode = byte(n)
	}
	fields := map[string]string{}
	for rest = strings.TrimSpace(rest); rest != ""; rest = strings.TrimSpace(rest) {
		field, after, _ := strings.Cut(rest, "=")
		value, err := strconv.QuotedPrefix(after)
		if err != nil {
			value, _, _ = strings.Cut(after, " ")
			fields[field] = value
		} else if fields[field], err = strconv.Unquote(value); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		rest = after[len(value):]
	}
	number := func(field string, absent uint64) uint64 {
		s, there := fields[field]
		if !there {
			return absent
		}
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		return n
	}
	bytes := func(field string) []byte {
		s := fields[field]
		if x, n, found := strings.Cut(s, "*"); found {
			count, err := strconv.Atoi(n)
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			s = strings.Repeat(x, count)
		}
		return []byte(s)
	}

	var extras []byte
	u32 := func(field string) { extras = endian.BigEndian.AppendUint32(extras, uint32(number(field, 0))) }
	u64 := func(field string) { extras = endian.BigEndian.AppendUint64(extras, number(field, 0)) }
	raw, given := fields["extras"]
	_, timed := fields["exptime"]
	switch verb := strings.TrimSuffix(name, "Q"); {
	case given:
		e, err := hex.DecodeString(raw)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		extras = e
	case verb == "SET" || verb == "ADD" || verb == "REPLACE":
		u32("flags")
		u32("exptime")
	case verb == "INCR" || verb == "DECR":
		u64("delta")
		u64("initial")
		u32("exptime")
	case timed:
		u32("exptime")
	}
	var cas uint64
	if ref, found := strings.CutPrefix(fields["cas"], "#"); found {
		i, err := strconv.Atoi(ref)
		if err != nil || i > len(*uniques) {
			t.Fatalf("%q: no such cas", text)
		}
		cas = (*uniques)[i-1]
	} else {
		cas = number("cas", 0)
	}
	key, value := bytes("key"), bytes("value")
	p := []byte{byte(number("magic", 0x80)), opcode}
	p = endian.BigEndian.AppendUint16(p, uint16(number("keylen", uint64(len(key)))))
	p = append(p, byte(number("extlen", uint64(len(extras)))), byte(number("datatype", 0)), 0, 0)
	p = endian.BigEndian.AppendUint32(p, uint32(number("bodylen", uint64(len(extras)+len(key)+len(value)))))
	p = endian.BigEndian.AppendUint32(p, opaque)
	p = endian.BigEndian.AppendUint64(p, cas)
	p = append(append(p, extras...), key...)
	return append(p, value...)
}

// binReplies reads packets into the words of the stories.
func binReplies(t testing.TB, out []byte, uniques *binUniques) (replies []string) {
	t.Helper()
	for len(out) > 0 {
		if len(out) < 24 || out[0] != 0x81 || out[5] != 0 {
			t.Fatalf("no reply: %x", out[:min(len(out), 40)])
		}
		keyLen, extLen := int(endian.BigEndian.Uint16(out[2:])), int(out[4])
		bodyLen := int(endian.BigEndian.Uint32(out[8:]))
		if len(out) < 24+bodyLen || keyLen+extLen > bodyLen {
			t.Fatalf("bad lengths in %x", out[:min(len(out), 40)])
		}
		name := fmt.Sprintf("%#02x", out[1])
		for n, opcode := range binOpcodes {
			if opcode == out[1] {
				name = n
			}
		}
		var b strings.Builder
		b.WriteString(name)
		if status := endian.BigEndian.Uint16(out[6:]); status != 0 {
			fmt.Fprintf(&b, " status=0x%02x", status)
		}
		if cas := endian.BigEndian.Uint64(out[16:]); cas != 0 {
			fmt.Fprintf(&b, " cas=%s", uniques.name(cas))
		}
		body := out[24 : 24+bodyLen]
		if extLen > 0 {
			fmt.Fprintf(&b, " extras=%x", body[:extLen])
		}
		if keyLen > 0 {
			fmt.Fprintf(&b, " key=%s", binQuote(body[extLen:extLen+keyLen]))
		}
		if value := body[extLen+keyLen:]; len(value) > 0 {
			fmt.Fprintf(&b, " %s", binQuote(value))
		}
		replies = append(replies, b.String())
		out = out[24+bodyLen:]
	}
	return replies
}

func binQuote(b []byte) string {
	if len(b) > 300 {
		return fmt.Sprintf("(%d bytes)", len(b))
	}
	return strconv.Quote(string(b))
}
