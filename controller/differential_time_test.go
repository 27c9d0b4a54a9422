package controller_test

import (
	"bytes"
	"context"
	"testing"
	"time"
)

// The same bytes mean the same, whatever packets they come in.
func TestSplitAnywhere(t *testing.T) {
	for name, stream := range map[string]string{
		"classic": "set a 7 0 5\r\n\r\nEND\r\nget a b a\r\nappend a 0 0 1 noreply\r\n!\r\ngets a\nincr a 1\r\nset n 0 100 2\r\n41\r\nincr n 1\r\n" +
			"set a 0 0 1\r\nwrong\r\nbogus\r\n\r\ngat 100 n a\r\ntouch n x\r\nget\r\ndelete a\r\ncas n 0 0 1 1\r\nx\r\nversion\r\nmn\r\n",
		"meta": "ms a 2 c T100\r\nhi\r\nmg a v t k O1 s\r\nmg bg== b k N100 v\r\nma n N0 J5 v\r\nms a 2 C1 I\r\nho\r\nmd a I T50\r\nmg a v c\r\n" +
			"mg a v\r\nms a x\r\nms a 3 y\r\nabc\r\nmg a q q\r\nmd n q\r\nmg n v q k\r\nmn\r\nme a\r\n",
		"binary": packet(0x01, "\x00\x00\x00\x07\x00\x00\x00\x00", "a", "val\x80ue", eightZeros) + packet(0x0d, "", "a", "", eightZeros) +
			packet(0x05, "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x64", "n", "", eightZeros) +
			packet(0x19, "", "a", "more", eightZeros) + packet(0x09, "", "nothing", "", eightZeros) + packet(0x50, "ext", "key", "value", eightZeros) +
			packet(0x1d, "\x00\x00\x00\x64", "a", "", eightZeros) + packet(0x0a, "", "", "", eightZeros) + packet(0x07, "", "", "", eightZeros),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := startNode(t, nil)
			ask := func(pieces ...string) []byte {
				t.Helper()
				var batch [][]byte
				for _, p := range pieces {
					batch = append(batch, []byte(p))
				}
				pause := time.Duration(0)
				if len(pieces) > 1 {
					pause = 500 * time.Microsecond
				}
				reply, err := replies(addr, script{batch}, pause)
				if err != nil {
					t.Fatal(err)
				}
				return reply
			}
			whole := ask(stream)
			for i := 1; i < len(stream); i++ {
				if got := ask(stream[:i], stream[i:]); !bytes.Equal(got, whole) {
					t.Fatalf("split before byte %d, %.20q: %s", i, stream[i:], firstDifference(whole, got))
				}
			}
			var bytewise []string
			for i := range len(stream) {
				bytewise = append(bytewise, stream[i:i+1])
			}
			if got := ask(bytewise...); !bytes.Equal(got, whole) {
				t.Fatalf("byte by byte: %s", firstDifference(whole, got))
			}
		})
	}
}

const eightZeros = "\x00\x00\x00\x00\x00\x00\x00\x00"

// What happens when time passes, in real time. Steps are taken well away from
// the ends of seconds, which is when memcached's clock ticks.
func TestTimeLikeMemcached(t *testing.T) {
	t.Parallel()
	p := startPair(t, false)
	type told struct {
		at      time.Duration
		command string
	}
	steps := []told{
		{0, "set short 0 1 1\r\nx\r\nset long 0 4 1\r\nx\r\nset touched 0 1 1\r\nx\r\nset dead 0 -1 1\r\nx\r\nset kept 0 0 1\r\nx\r\n"},
		{0, "touch touched 100\r\ngat 1 kept\r\nms stale 1 T1\r\nx\r\nma count N1 J7 v\r\nmg born N1 v\r\nms renewed 1 T100\r\nx\r\n"},
		{0, "get short long touched dead kept stale count\r\nmg renewed v R30\r\nmg renewed v R200\r\nmg renewed v R200\r\n"},
		{2500, "get short long touched dead kept stale count\r\nmg born v\r\nincr count 1\r\nadd short 0 0 1\r\ny\r\nreplace stale 0 0 1\r\ny\r\n"},
		{2500, "touch kept 100\r\nget short\r\nflush_all 2\r\nget short touched\r\nset young 0 0 1\r\nx\r\n"},
		{5500, "get short long touched young\r\nset young 0 0 1\r\nz\r\nget young\r\n"},
		{7000, "get young\r\n"},
	}
	began := time.Now()
	for _, s := range steps {
		ctx, cancel := context.WithDeadline(t.Context(), began.Add(s.at*time.Millisecond))
		<-ctx.Done()
		cancel()
		batch := [][]byte{[]byte(s.command)}
		memcached, err := talk(p.memcached, batch, 0)
		if err != nil {
			t.Fatal(err)
		}
		attune, err := talk(p.attune, batch, 0)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(memcached, attune) {
			t.Errorf("after %d ms, %q: %s", s.at, s.command, firstDifference(memcached, attune))
		}
	}
}
