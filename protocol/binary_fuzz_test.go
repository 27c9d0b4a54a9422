package protocol_test

import (
	"bytes"
	endian "encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/attunekv/attune/protocol"
)

// FuzzBinary sends any bytes, after a first that chooses the dialect, whole and
// cut at any place. Whatever comes, the parser moves on or closes, understands
// the same, and answers in whole packets.
func FuzzBinary(f *testing.F) {
	for _, file := range []string{"testdata/binary_verbs.txt", "testdata/binary_refusals.txt"} {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		var all []byte
		for _, line := range strings.Split(string(text), "\n") {
			if packet, found := strings.CutPrefix(line, "> "); found && !strings.Contains(packet, "cas=#") && !strings.Contains(packet, "000") {
				p := binPacket(f, packet, 1, nil)
				f.Add(p, uint16(len(all)))
				all = append(all, p...)
			}
		}
		f.Add(all, uint16(30))
	}
	f.Fuzz(func(t *testing.T, data []byte, cut uint16) {
		if len(data) == 0 || len(data) > 1<<16 {
			return
		}
		data = bytes.Clone(data)
		data[0] = 0x80

		tell := func(feed func(s *binSession)) (*binSession, []string) {
			s := newBinSession(newBinStore())
			s.p.MaxItem = 1000
			feed(s)
			return s, binReplies(t, s.out, new(binUniques))
		}
		whole, want := tell(func(s *binSession) { s.feed(data) })
		at := int(cut) % (len(data) + 1)
		halves, got := tell(func(s *binSession) {
			s.feed(data[:at])
			s.feed(data[at:])
		})
		if !slices.Equal(got, want) || !slices.Equal(halves.requests, whole.requests) || halves.closed != whole.closed {
			t.Fatalf("cut at %d: %q %q closed %v\nwhole: %q %q closed %v",
				at, halves.requests, got, halves.closed, whole.requests, want, whole.closed)
		}
		if len(data) < 2000 {
			trickle, got := tell(func(s *binSession) {
				for i := range data {
					s.feed(data[i : i+1])
				}
			})
			// A packet condemned by its header closes before the rest has come.
			if !slices.Equal(got, want) || !slices.Equal(trickle.requests, whole.requests) || trickle.closed != whole.closed {
				t.Fatalf("byte by byte: %q %q closed %v\nwhole: %q %q closed %v",
					trickle.requests, got, trickle.closed, whole.requests, want, whole.closed)
			}
		}
		if whole.closed || whole.skip > 0 || len(whole.in) == 0 {
			return
		}
		// What is left is less than a packet.
		var p protocol.Parser
		p.MaxItem = 1000
		var r protocol.Request
		if n, _ := p.Next(whole.in, &r); n == 0 && len(whole.in) >= protocol.MaxLine {
			t.Fatalf("no progress with %d bytes: %x", len(whole.in), whole.in[:24])
		} else if n > len(whole.in) {
			t.Fatalf("consumed %d of %d bytes", n, len(whole.in))
		} else if n > 0 && (r.Body < 0 || n+r.Body <= len(whole.in)) {
			t.Fatalf("a whole packet is left: %x", whole.in[:24])
		}
		if len(whole.in) >= 24 && int(endian.BigEndian.Uint32(whole.in[8:]))+24 <= len(whole.in) {
			t.Fatalf("%d bytes hold the packet %x", len(whole.in), whole.in[:24])
		}
	})
}
