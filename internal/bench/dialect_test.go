package bench

import (
	"strings"
	"testing"
)

func binaryReply(opcode, status byte, serial byte, extras int, body string) string {
	h := make([]byte, binHeader+extras)
	h[0], h[1], h[4], h[7] = binReply, opcode, byte(extras), status
	h[11], h[15] = byte(extras+len(body)), serial
	return string(h) + body
}

// Every reply must be read the same whatever the read calls cut it into, and
// whatever follows it.
func TestReplies(t *testing.T) {
	const key, serial = "bench:07", 9
	for _, c := range []struct {
		dialect string
		verb    verb
		reply   string
		kind    answerKind
		text    string
	}{
		{"text", verbGet, "VALUE bench:07 0 5\r\nhello\r\nEND\r\n", hit, "hello"},
		{"text", verbGet, "VALUE bench:07 4294967295 0\r\n\r\nEND\r\n", hit, ""},
		{"text", verbGet, "VALUE bench:07 0 4\r\n\r\n\r\n\r\nEND\r\n", hit, "\r\n\r\n"},
		{"text", verbGet, "END\r\n", miss, ""},
		{"text", verbGet, "SERVER_ERROR out of memory\r\n", refused, "SERVER_ERROR out of memory"},
		{"text", verbGet, "ERROR\r\n", refused, "ERROR"},
		{"text", verbSet, "STORED\r\n", stored, ""},
		{"text", verbSet, "NOT_STORED\r\n", refused, "NOT_STORED"},
		{"text", verbSet, "CLIENT_ERROR bad data chunk\r\n", refused, "CLIENT_ERROR bad data chunk"},
		{"text", verbSet, "SERVER_ERROR: odd but seen\r\n", refused, "SERVER_ERROR: odd but seen"},
		{"meta", verbGet, "VA 5\r\nhello\r\n", hit, "hello"},
		{"meta", verbGet, "EN\r\n", miss, ""},
		{"meta", verbGet, "SERVER_ERROR no\r\n", refused, "SERVER_ERROR no"},
		{"meta", verbSet, "HD\r\n", stored, ""},
		{"meta", verbSet, "HD \r\n", stored, ""},
		{"meta", verbSet, "NS\r\n", refused, "NS"},
		{"binary", verbGet, binaryReply(binGet, 0, serial, 4, "hello"), hit, "hello"},
		{"binary", verbGet, binaryReply(binGet, 1, serial, 0, "Not found"), miss, ""},
		{"binary", verbGet, binaryReply(binGet, 0x82, serial, 0, "Out of memory"), refused, "Out of memory"},
		{"binary", verbGet, binaryReply(binGet, 0x85, serial, 0, ""), refused, "binary status 0x85"},
		{"binary", verbSet, binaryReply(binSet, 0, serial, 0, ""), stored, ""},
		{"binary", verbSet, binaryReply(binSet, 3, serial, 0, "Too large."), refused, "Too large."},
		{"binary", verbSet, binaryReply(binSet, 1, serial, 0, "Not found"), refused, "Not found"},
		{"text", verbIncr, "18446744073709551615\r\n", stored, ""},
		{"text", verbIncr, "NOT_FOUND\r\n", refused, "NOT_FOUND"},
		{"text", verbIncr, "CLIENT_ERROR cannot increment\r\n", refused, "CLIENT_ERROR cannot increment"},
		{"meta", verbIncr, "VA 2\r\n10\r\n", stored, ""},
		{"meta", verbIncr, "NF\r\n", refused, "NF"},
		{"binary", verbIncr, binaryReply(binIncr, 0, serial, 0, "\x00\x00\x00\x00\x00\x00\x00\x0a"), stored, ""},
		{"binary", verbIncr, binaryReply(binIncr, 1, serial, 0, "Not found"), refused, "Not found"},
	} {
		d, err := newDialect(c.dialect)
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(c.reply) {
			if n, _, err := d.reply([]byte(c.reply[:i]), []byte(key), c.verb, serial); n != 0 || err != nil {
				t.Errorf("%s %q: the first %d bytes gave %d, %v", c.dialect, c.reply, i, n, err)
			}
		}
		for _, more := range []string{"", "\x81VALUE\r\n"} {
			n, a, err := d.reply([]byte(c.reply+more), []byte(key), c.verb, serial)
			if n != len(c.reply) || a.kind != c.kind || string(a.text) != c.text || err != nil {
				t.Errorf("%s %q: got %d of %d bytes, kind %d %q, %v", c.dialect, c.reply, n, len(c.reply), a.kind, a.text, err)
			}
		}
	}
}

func TestNonsenseIsNoReply(t *testing.T) {
	const key, serial = "bench:07", 9
	for _, c := range []struct {
		dialect string
		verb    verb
		reply   string
	}{
		{"text", verbGet, "VALUE bench:08 0 5\r\nhello\r\nEND\r\n"},  // another key
		{"text", verbGet, "VALUE bench:070 0 5\r\nhello\r\nEND\r\n"}, // a longer key
		{"text", verbGet, "VALUE bench:07 0 4\r\nhello\r\nEND\r\n"},  // a wrong length
		{"text", verbGet, "VALUE bench:07 0 5\r\nhello\r\nVALUE"},    // a second value
		{"text", verbGet, "VALUE bench:07 0 5 1\r\nhello\r\nEND\r\n"},
		{"text", verbGet, "VALUE bench:07 0 -1\r\n"},
		{"text", verbGet, "VALUE bench:07 0 99999999999999999999\r\n"},
		{"text", verbGet, "STORED\r\n"},
		{"text", verbGet, "ERRORS\r\n"},
		{"text", verbGet, "END\n"},
		{"text", verbGet, "\r\n"},
		{"text", verbSet, "END\r\n"},
		{"text", verbSet, strings.Repeat("x", maxLine)},
		{"text", verbIncr, "\r\n"},
		{"text", verbIncr, "STORED\r\n"},
		{"text", verbIncr, "1x\r\n"},
		{"text", verbIncr, "184467440737095516150\r\n"},
		{"meta", verbIncr, "HD\r\n"},
		{"meta", verbIncr, "EN\r\n"},
		{"meta", verbIncr, "VA 1\r\nx\r\n"},
		{"binary", verbIncr, binaryReply(binSet, 0, serial, 0, "")},
		{"binary", verbIncr, binaryReply(binIncr, 0, serial, 0, "10")},
		{"meta", verbGet, "HD\r\n"},
		{"meta", verbGet, "VA x\r\n"},
		{"meta", verbGet, "VA 2\r\nhello\r\n"},
		{"meta", verbSet, "EN\r\n"},
		{"binary", verbGet, "END\r\n"},
		{"binary", verbGet, binaryReply(binSet, 0, serial, 4, "hello")},
		{"binary", verbGet, binaryReply(binGet, 0, serial+1, 4, "hello")},
		{"binary", verbSet, binaryReply(binGet, 0, serial, 0, "")},
		{"binary", verbGet, "\x81\x00\x00\x00\xff" + strings.Repeat("\x00", 19)}, // extras beyond the body
		{"binary", verbGet, "\x81\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff" + "\x00\x00\x00\x09" + "\x00\x00\x00\x00\x00\x00\x00\x00"}, // 4 GiB
	} {
		d, err := newDialect(c.dialect)
		if err != nil {
			t.Fatal(err)
		}
		if n, a, err := d.reply([]byte(c.reply), []byte(key), c.verb, serial); err == nil {
			t.Errorf("%s %q was taken for a reply: %d bytes, kind %d", c.dialect, c.reply, n, a.kind)
		}
	}
}

// BenchmarkStream is the generator without its system calls: making a request
// and taking its reply, in batches of 16.
func BenchmarkStream(b *testing.B) {
	for _, c := range []struct{ name, dist string }{{"uniform", "uniform"}, {"zipf", "zipf"}} {
		b.Run(c.name, func(b *testing.B) {
			s, reply := soloStream(c.dist)
			b.ReportAllocs()
			for b.Loop() {
				batch(b, s, reply)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/request")
		})
	}
}

func TestStreamAllocatesNothing(t *testing.T) {
	s, reply := soloStream("zipf")
	if n := testing.AllocsPerRun(100, func() { batch(t, s, reply) }); n != 0 {
		t.Errorf("%.0f allocations per batch", n)
	}
}

// soloStream is a stream of gets that all miss.
func soloStream(dist string) (*stream, []byte) {
	o := Defaults()
	o.Pipeline, o.Ratio, o.Ops = 16, Ratio{1, 0}, 0
	tg := &target{o: &o, dialect: text{}, fill: filler(100)}
	var z *zipf
	if dist == "zipf" {
		z = newZipf(o.Keys, o.ZipfS)
	}
	s := &stream{t: tg, mix: newMix(&o, z, 0)}
	tg.streams = []*stream{s}
	s.enter(&worker{p: newPass(&o, "", 0, 0), get: newHistogram(), set: newHistogram()}, 0)
	return s, []byte(strings.Repeat("END\r\n", 16))
}

func batch(tb testing.TB, s *stream, reply []byte) {
	s.pump(clock())
	s.wrote(len(s.pending()))
	if err := s.took(copy(s.room(), reply), clock()); err != nil || s.flying != 0 {
		tb.Fatal(err, s.flying)
	}
}
