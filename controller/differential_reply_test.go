package controller_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"strconv"
)

// canon rewrites the replies of one script so that those of two servers compare:
// uniques become numbers in order of first appearance, seconds are rounded, and
// what each server says of itself is dropped.
type canon struct {
	seen map[uint64]int
}

// chosenFrom is where the uniques begin that scripts choose (meta flag E). No
// server makes such a one up, so they compare as they are.
const chosenFrom = 1 << 62

func (c *canon) cas(v uint64) string {
	if v == 0 || v >= chosenFrom {
		return strconv.FormatUint(v, 10)
	}
	if c.seen == nil {
		c.seen = map[uint64]int{}
	}
	if _, ok := c.seen[v]; !ok {
		c.seen[v] = len(c.seen) + 1
	}
	return fmt.Sprintf("#%d", c.seen[v])
}

// ttl rounds seconds up to what a script asked for, which were multiples of 50.
func ttl(digits string) string {
	v, err := strconv.Atoi(digits)
	if err != nil || v <= 0 {
		return digits
	}
	return "~" + strconv.Itoa((v+49)/50*50)
}

// idle makes a just now of the few seconds a script may take.
func idle(digits string) string {
	if v, err := strconv.Atoi(digits); err == nil && 0 <= v && v <= 5 {
		return "now"
	}
	return digits
}

var (
	valueLine = regexp.MustCompile(`^VALUE [^ ]+ \d+ (\d+)( \d+)?$`)
	metaLine  = regexp.MustCompile(`^(VA (\d+)|HD|EN|NF|NS|EX)( |$)`)
	debugLine = regexp.MustCompile(`^(ME [^ ]+) exp=(-?\d+) la=(\d+) cas=(\d+) fetch=(yes|no) cls=\d+ size=\d+$`)
)

// text rewrites the replies of a text connection.
func (c *canon) text(reply []byte) []byte {
	var out []byte
	for len(reply) > 0 {
		line, rest, whole := bytes.Cut(reply, []byte("\r\n"))
		if !whole {
			return append(out, reply...)
		}
		reply = rest
		block := -1
		if m := valueLine.FindSubmatch(line); m != nil {
			block, _ = strconv.Atoi(string(m[1]))
			if len(m[2]) > 0 {
				v, _ := strconv.ParseUint(string(m[2][1:]), 10, 64)
				line = append(bytes.Clone(line[:len(line)-len(m[2])+1]), c.cas(v)...)
			}
		} else if m := metaLine.FindSubmatch(line); m != nil {
			if len(m[2]) > 0 {
				block, _ = strconv.Atoi(string(m[2]))
			}
			words := bytes.Split(line, []byte(" "))
			for i, w := range words {
				if i == 0 || len(w) < 2 || i == 1 && block >= 0 {
					continue
				}
				switch digits := string(w[1:]); w[0] {
				case 'c':
					if v, err := strconv.ParseUint(digits, 10, 64); err == nil {
						words[i] = []byte("c" + c.cas(v))
					}
				case 't':
					words[i] = []byte("t" + ttl(digits))
				case 'l':
					words[i] = []byte("l" + idle(digits))
				}
			}
			line = bytes.Join(words, []byte(" "))
		} else if m := debugLine.FindSubmatch(line); m != nil {
			v, _ := strconv.ParseUint(string(m[4]), 10, 64)
			line = fmt.Appendf(nil, "%s exp=%s la=%s cas=%s fetch=%s", m[1], ttl(string(m[2])), idle(string(m[3])), c.cas(v), m[5])
		} else if bytes.HasPrefix(line, []byte("VERSION ")) {
			line = []byte("VERSION")
		}
		out = append(append(out, line...), "\r\n"...)
		if block >= 0 && block+2 <= len(reply) {
			out = append(out, reply[:block+2]...)
			reply = reply[block+2:]
		}
	}
	return out
}

// binary rewrites the replies of a binary connection: one line per packet.
func (c *canon) binary(reply []byte) []byte {
	var out []byte
	for len(reply) >= 24 {
		key, extras := int(binary.BigEndian.Uint16(reply[2:])), int(reply[4])
		size := int(binary.BigEndian.Uint32(reply[8:]))
		cas := binary.BigEndian.Uint64(reply[16:])
		if reply[0] != 0x81 || 24+size > len(reply) {
			break
		}
		body := reply[24 : 24+size]
		if reply[1] == 0x0b && binary.BigEndian.Uint16(reply[6:]) == 0 {
			body = nil // the version
		}
		out = fmt.Appendf(out, "op %#x status %#x key %d extras %d type %d opaque %q cas %s body %q\n", reply[1], reply[6:8], key,
			extras, reply[5], reply[12:16], c.cas(cas), body)
		reply = reply[24+size:]
	}
	if len(reply) > 0 {
		out = fmt.Appendf(out, "and %q\n", reply)
	}
	return out
}

// of rewrites the replies of one connection.
func (c *canon) of(reply []byte) []byte {
	if len(reply) > 0 && reply[0] == 0x81 {
		return c.binary(reply)
	}
	return c.text(reply)
}
