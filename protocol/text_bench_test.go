package protocol_test

import (
	"strings"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/protocol"
)

// hotPaths are the exchanges that must not allocate: what is sent, how many
// requests it is, and the result they all have.
var hotPaths = []struct {
	name, send string
	requests   int
	res        attune.Result
}{
	{"get", "get key:00001234\r\n", 2, hotHit()},
	{"gets", "gets key:00001234\r\n", 2, hotHit()},
	{"get10", "get" + strings.Repeat(" key:00001234", 10) + "\r\n", 11, hotHit()},
	{"set", "set key:00001234 0 0 100\r\n" + strings.Repeat("x", 100) + "\r\n", 1, attune.Result{Status: attune.Stored}},
	{"mg", "mg key:00001234 v\r\n", 1, hotHit()},
	{"mgflags", "mg key:00001234 v f c t k Oabcdef\r\n", 1, hotHit()},
	{"mgbase64", "mg a2V5OjAwMDAxMjM0 b k v\r\n", 1, hotHit()},
	{"ms", "ms key:00001234 100 T30\r\n" + strings.Repeat("x", 100) + "\r\n", 1, attune.Result{Status: attune.Stored}},
	{"md", "md key:00001234 q\r\n", 1, attune.Result{Status: attune.Deleted}},
	{"ma", "ma key:00001234 v\r\n", 1, attune.Result{Status: attune.Counted, Number: 123456}},
	{"incr", "incr key:00001234 1\r\n", 1, attune.Result{Status: attune.Counted, Number: 123456}},
	{"delete", "delete key:00001234\r\n", 1, attune.Result{Status: attune.NotFound}},
}

func hotHit() attune.Result {
	value := []byte(strings.Repeat("x", 100))
	return attune.Result{Status: attune.Hit, Item: attune.Item{Value: value, Size: 100, Flags: 7, CAS: 1 << 60, Expires: textNow + 9000}}
}

// exchange parses data, which is whole, and answers all of it with res.
func exchange(p *protocol.Parser, r *protocol.Request, data, out []byte, res *attune.Result) (reply []byte, requests int) {
	for len(data) > 0 {
		n, err := p.Next(data, r)
		if n == 0 || err != nil {
			panic("not a whole exchange")
		}
		requests++
		if r.Body >= 0 {
			whole := n + r.Body + r.Trailer
			p.SetBody(r, data[n:n+r.Body], data[n+r.Body:whole])
			n = whole
		}
		data = data[n:]
		if r.Kind != protocol.Op {
			out = r.AppendReply(out)
			continue
		}
		var value []byte
		if out, value = r.AppendHead(out, res, textNow); value != nil {
			out = r.AppendTail(append(out, value...))
		}
	}
	return out, requests
}

func TestTextHotPathsDoNotAllocate(t *testing.T) {
	for _, path := range hotPaths {
		t.Run(path.name, func(t *testing.T) {
			p := protocol.Parser{MaxItem: 1 << 20}
			var r protocol.Request
			data, out := []byte(path.send), make([]byte, 0, 4096)
			if _, n := exchange(&p, &r, data, out, &path.res); n != path.requests {
				t.Fatalf("%d requests, want %d", n, path.requests)
			}
			if n := testing.AllocsPerRun(100, func() { exchange(&p, &r, data, out, &path.res) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func BenchmarkText(b *testing.B) {
	for _, path := range hotPaths {
		b.Run(path.name, func(b *testing.B) {
			b.ReportAllocs()
			p := protocol.Parser{MaxItem: 1 << 20}
			var r protocol.Request
			data, out := []byte(path.send), make([]byte, 0, 4096)
			for b.Loop() {
				exchange(&p, &r, data, out, &path.res)
			}
		})
	}
}
