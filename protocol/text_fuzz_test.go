package protocol_test

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzText demands of any bytes: the parser never panics, never consumes what
// it was not given, always moves on when a line's worth of bytes is there, and
// understands the same whatever packets they come in.
func FuzzText(f *testing.F) {
	for _, seed := range []string{
		"get a b  c\r\ngets a\ngat 10 a b\r\ngats -1 a\r\n",
		"set k 1 2 3\r\nabc\r\nadd k 0 0 0 noreply\r\n\r\ncas k 0 0 1 99\r\nabc\r\n",
		"append k 0 0 2000\r\nxx\r\nset k 0 0 -1\r\nprepend k 0 0 1\r\nz\r\nreplace k 4294967295 0 1\r\nz\r\n",
		"incr k 1\r\ndecr k 18446744073709551615 noreply\r\ntouch k 100\r\ndelete k 0\r\nflush_all 10\r\n",
		"mg k v t f c k O1 q s h l u N30 R30 T30\r\nmn\r\nms k 2 T0 F1 I C2 E3 MA N5\r\nhi\r\n",
		"mg Zm9v b k\r\nms Zm9v 1 b k\r\nx\r\nmd k q I T30 x\r\nma k N0 J13 D2 MD v\r\nme k\r\n",
		"stats\r\nstats cachedump 1 2\r\nlru_crawler metadump all\r\nverbosity 1\r\nversion\r\nshutdown\r\nquit\r\n",
		"get " + strings.Repeat("k", 251) + " a\r\nget a " + strings.Repeat("k", 251) + " b\r\nmn\r\n",
		"get a" + strings.Repeat(" ", 600) + "b\r\nGET / HTTP/1.1\r\n",
		"gat " + strings.Repeat("1", 2040) + " k\r\n",
		strings.Repeat("x", 2048) + "\n", strings.Repeat("x", 2049),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 || bytes.HasPrefix(data, []byte{0x80}) {
			return // the other dialect has its own
		}
		checkSplits(t, data, 1000, 16, anyResult)
	})
}
