package protocol_test

import (
	endian "encoding/binary"
	"errors"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/protocol"
)

var rewriteBinary = flag.Bool("rewrite-binary", false, "rewrite testdata/binary_*.txt from what the parser does")

// The stories in testdata/binary_*.txt are conversations, one after another, of
// one store. "== name" opens a connection. "> OPCODE field=..." sends a packet;
// "=" is the Request made of it and "<" the reply, both written by
// -rewrite-binary. cas=#2 is the second unique the connection was shown.
// "! reason" after the name says that memcached is known to differ.
func TestBinaryStories(t *testing.T) {
	for _, file := range binStories(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			store := newBinStore()
			got := binTell(t, string(text), false, func() binPeer { return newBinSession(store) })
			if *rewriteBinary {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			binCompare(t, string(text), got)
		})
	}
}

// TestBinaryStoriesSplit cuts every packet between any two of its bytes.
func TestBinaryStoriesSplit(t *testing.T) {
	for _, file := range binStories(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		store := newBinStore()
		got := binTell(t, string(text), false, func() binPeer {
			s := newBinSession(store)
			s.trickle = true
			return s
		})
		binCompare(t, string(text), got)
	}
}

// TestBinaryStoriesAgainstMemcached tells the stories to a real memcached and
// expects the same replies.
func TestBinaryStoriesAgainstMemcached(t *testing.T) {
	for _, file := range binStories(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			m := attunetest.StartMemcached(t, "-t", "1")
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := binTell(t, string(text), true, func() binPeer {
				return &binConn{t: t, c: m.Dial()}
			})
			binCompare(t, binCommon(string(text)), binCommon(got))
		})
	}
}

// TestBinaryMemcapable lets libmemcached's conformance test judge.
func TestBinaryMemcapable(t *testing.T) {
	path := ""
	for _, name := range []string{"memcapable", "memccapable"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
		}
	}
	if path == "" {
		t.Skip("memcapable is not installed: apt-get install libmemcached-tools")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		store := newBinStore()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s := newBinSession(store) // memcapable uses one connection at a time
			buf := make([]byte, 64<<10)
			for !s.closed {
				n, err := c.Read(buf)
				if err != nil {
					break
				}
				s.feed(buf[:n])
				if _, err := c.Write(s.take()); err != nil {
					break
				}
			}
			c.Close()
		}
	}()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	out, err := exec.Command(path, "-b", "-h", host, "-p", port).CombinedOutput()
	l.Close()
	<-served
	if err != nil || !strings.Contains(string(out), "All tests passed") {
		t.Errorf("%v: %v\n%s", path, err, out)
	}
}

func TestBinaryFailure(t *testing.T) {
	var p protocol.Parser
	var r protocol.Request
	next := func(packet string) {
		t.Helper()
		if n, err := p.Next(binPacket(t, packet, 7, nil), &r); n == 0 || err != nil {
			t.Fatalf("%s: n %d, err %v", packet, n, err)
		}
	}
	p.MaxItem = 10
	for _, c := range []struct {
		packet string
		res    attune.Result
		want   string
	}{
		{"SETQ key=a", attune.Result{Status: attune.Failed, Err: errors.New("backend b: timeout")}, `SETQ status=0x84 "backend b: timeout"`},
		{"GETQ key=a", attune.Result{Status: attune.Failed, Err: errors.New("no quorum")}, `GETQ status=0x84 "no quorum"`},
		{"GETKQ key=a", attune.Result{}, `GETKQ status=0x84 "Internal error"`},
		{"SETQ key=a", attune.Result{Status: attune.OutOfMemory}, `SETQ status=0x82 "Out of memory"`},
		{"SETQ key=a", attune.Result{Status: attune.TooLarge}, `SETQ status=0x03 "Too large."`},
		{"APPENDQ key=a", attune.Result{Status: attune.TooLarge}, `APPENDQ status=0x05 "Not stored."`},
		// The value that is too large is told, unless removing the old one failed.
		{"SET key=a value=x*11", attune.Result{Status: attune.Deleted}, `SET status=0x03 "Too large."`},
		{"SETQ key=a value=x*11", attune.Result{Status: attune.NotFound}, `SETQ status=0x03 "Too large."`},
		{"SET key=a value=x*11", attune.Result{Status: attune.Failed, Err: errors.New("no quorum")}, `SET status=0x84 "no quorum"`},
	} {
		next(c.packet)
		out, value := r.AppendHead(nil, &c.res, 0)
		if got := binReplies(t, append(out, value...), new(binUniques)); len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: got %q, want %q", c.packet, got, c.want)
		}
	}
	next("STAT")
	if got := binReplies(t, r.AppendError(nil, "busy"), new(binUniques)); len(got) != 1 || got[0] != `STAT status=0x84 "busy"` {
		t.Errorf("AppendError: %q", got)
	}
}

func TestBinaryNoFlush(t *testing.T) {
	for _, packet := range []string{"FLUSH", "FLUSHQ exptime=10"} {
		s := newBinSession(newBinStore())
		s.p.NoFlush = true
		s.feed(binPacket(t, packet, 1, nil))
		want := strings.Fields(packet)[0] + ` status=0x20 "Auth failure."`
		if got := binReplies(t, s.take(), new(binUniques)); len(got) != 1 || got[0] != want || s.closed {
			t.Errorf("%s: got %q, want %q", packet, got, want)
		}
	}
}

// TestBinaryRefusesEarly: what the header condemns is not waited for.
func TestBinaryRefusesEarly(t *testing.T) {
	for _, packet := range []string{
		"GET keylen=251 bodylen=251",
		"GET keylen=20 bodylen=2",
		"GET keylen=1 bodylen=2",
		"SET extras= keylen=1 bodylen=100",
		"0x30 keylen=65535 bodylen=70000",
		"SET keylen=1 bodylen=1073741825",
	} {
		var p protocol.Parser
		var r protocol.Request
		n, _ := p.Next(binPacket(t, packet, 1, nil)[:24], &r)
		if n != 24 || r.Kind != protocol.Reply {
			t.Errorf("%s: n %d, kind %v", packet, n, r.Kind)
		}
	}
}

func TestBinaryOpaqueIsEchoed(t *testing.T) {
	s := newBinSession(newBinStore())
	for _, packet := range []string{"SET key=a value=1", "GET key=a", "GET key=b", "NOOP", "STAT", "VERSION", "0x99", "QUIT"} {
		opaque := endian.BigEndian.Uint32([]byte("o" + packet[:3]))
		s.feed(binPacket(t, packet, opaque, nil))
		for out := s.take(); len(out) > 0; out = out[24+endian.BigEndian.Uint32(out[8:]):] {
			if got := endian.BigEndian.Uint32(out[12:]); got != opaque {
				t.Errorf("%s: opaque %#x, want %#x", packet, got, opaque)
			}
		}
	}
	if !s.closed {
		t.Error("QUIT left the session open")
	}
}

func TestBinaryDoesNotAllocate(t *testing.T) {
	var p protocol.Parser
	p.MaxItem = 1 << 20
	var r protocol.Request
	get, set, out, getRes, setRes := binHotPath(t)
	if n := testing.AllocsPerRun(100, func() {
		binRoundTrip(&p, &r, get, out, &getRes)
		binRoundTrip(&p, &r, set, out, &setRes)
	}); n != 0 {
		t.Errorf("a get and a set allocate %v times", n)
	}
}

func BenchmarkBinaryGetHit(b *testing.B) {
	var p protocol.Parser
	var r protocol.Request
	get, _, out, res, _ := binHotPath(b)
	b.ReportAllocs()
	for b.Loop() {
		binRoundTrip(&p, &r, get, out, &res)
	}
}

func BenchmarkBinarySet(b *testing.B) {
	var p protocol.Parser
	p.MaxItem = 1 << 20
	var r protocol.Request
	_, set, out, _, res := binHotPath(b)
	b.ReportAllocs()
	for b.Loop() {
		binRoundTrip(&p, &r, set, out, &res)
	}
}

func binHotPath(t testing.TB) (get, set, out []byte, getRes, setRes attune.Result) {
	get = binPacket(t, "GET key=some_key_of_20_bytes", 1, nil)
	set = binPacket(t, "SET key=some_key_of_20_bytes value=x*100", 1, nil)
	item := attune.Item{Value: make([]byte, 100), Size: 100, Version: 9, Stored: 9, CAS: 9}
	return get, set, make([]byte, 0, 1024),
		attune.Result{Status: attune.Hit, Item: item}, attune.Result{Status: attune.Stored, Item: attune.Item{CAS: 9}}
}

func binRoundTrip(p *protocol.Parser, r *protocol.Request, packet, out []byte, res *attune.Result) {
	n, err := p.Next(packet, r)
	if n == 0 || err != nil {
		panic("no request")
	}
	if r.Body >= 0 {
		p.SetBody(r, packet[n:n+r.Body], nil)
	}
	head, value := r.AppendHead(out, res, 0)
	r.AppendTail(append(head, value...))
}
