package testbed

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// frame is a frame of the peer protocol.
func frame(kind byte, body string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(1+len(body)))
	return append(append(b, kind), body...)
}

// hello is a class and the first frame of a connection.
func hello(class byte, from string) []byte {
	body := append([]byte("attn\x01"), class)
	body = append(body, make([]byte, 24)...)
	body = append(append(body, byte(len(from))), from...)
	body = append(body, "\x07ordered\x00"...) // what follows the name is not read
	return append([]byte{class}, frame(0, string(body))...)
}

// peer is the accepting side: it answers every hello, and remembers bodies.
type peer struct {
	addr string
	mu   sync.Mutex
	got  []string // guarded by mu
	came []time.Time
	open int
}

func startPeer(t *testing.T) *peer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{addr: l.Addr().String()}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c) })
		}
	})
	return p
}

func (p *peer) serve(c net.Conn) {
	defer c.Close()
	p.mu.Lock()
	p.open++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.open--
		p.mu.Unlock()
	}()
	r := bufio.NewReader(c)
	class, _, _, err := readHello(r)
	if err != nil {
		return
	}
	if _, err := c.Write(frame(1, "welcome")); err != nil {
		return
	}
	for {
		f, err := readFrame(r, maxFrame)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.got = append(p.got, string(f[5:]))
		p.came = append(p.came, time.Now())
		p.mu.Unlock()
		if class == bulk {
			if _, err := c.Write(frame(6, "chunk of "+string(f[5:]))); err != nil {
				return
			}
		}
	}
}

func (p *peer) bodies() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

func (p *peer) conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

// between starts a network with a peer called "b" behind it.
func between(t *testing.T) (n *Network, b *peer, addr string) {
	n, b = NewNetwork(1), startPeer(t)
	t.Cleanup(n.Close)
	addr = freeAddr(t)
	if err := n.Proxy(addr, "b", b.addr); err != nil {
		t.Fatal(err)
	}
	return n, b, addr
}

func dialPeer(t *testing.T, addr string, class byte, from string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Write(hello(class, from)); err != nil {
		t.Fatal(err)
	}
	return c
}

// expect reads a frame with this body.
func expect(t *testing.T, c net.Conn, body string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(Patience))
	got := make([]byte, 5+len(body))
	if _, err := io.ReadFull(c, got); err != nil || string(got[5:]) != body {
		t.Fatalf("got %q, %v; want %q", got, err, body)
	}
}

// silent checks that nothing comes for a moment.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("not silent: %d bytes, %v", n, err)
	}
}

func send(t *testing.T, c net.Conn, bodies ...string) {
	t.Helper()
	for _, body := range bodies {
		if _, err := c.Write(frame(20, body)); err != nil {
			t.Fatal(err)
		}
	}
}

func numbers(from, to int) (s []string) {
	for i := from; i < to; i++ {
		s = append(s, fmt.Sprint(i))
	}
	return s
}

func (p *peer) await(t *testing.T, want []string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d frames", len(want)), func() bool { return len(p.bodies()) >= len(want) })
	if got := p.bodies(); !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestProxyForwards(t *testing.T) {
	n, b, addr := between(t)
	c := dialPeer(t, addr, 1, "a")
	expect(t, c, "welcome")
	want := append(numbers(0, 500), string(bytes.Repeat([]byte("x"), 3<<20)))
	send(t, c, want...)
	b.await(t, want)
	if got := n.Traffic("a", "b"); got != (Traffic{Frames: 501}) {
		t.Errorf("counted %+v", got)
	}
	send(t, c, "last words")
	c.Close() // what was sent before still arrives
	b.await(t, append(want, "last words"))
	eventually(t, "the connection ends there too", func() bool { return b.conns() == 0 })
	if s := n.Strange(); len(s) > 0 {
		t.Error(s)
	}
}

func TestProxyCutsOneDirection(t *testing.T) {
	n, b, addr := between(t)
	c, other := dialPeer(t, addr, 1, "a"), dialPeer(t, addr, 2, "x")
	expect(t, c, "welcome")
	expect(t, other, "welcome")
	n.Cut("b", "a")
	send(t, c, "0")
	b.await(t, numbers(0, 1)) // the other direction only
	n.Cut("a", "b")
	send(t, c, "2", "3")
	late := dialPeer(t, addr, 0, "a") // accepted, and not answered
	silent(t, late)
	send(t, other, "1")
	b.await(t, numbers(0, 2))
	n.HealAll()
	b.await(t, numbers(0, 4)) // what was sent meanwhile
	expect(t, late, "welcome")

	n.Part([]string{"a", "x"}, []string{"b"})
	send(t, c, "4")
	silent(t, dialPeer(t, addr, 0, "x"))
	n.HealAll()
	b.await(t, numbers(0, 5))
}

func TestProxyResets(t *testing.T) {
	n, b, addr := between(t)
	c := dialPeer(t, addr, 1, "a")
	expect(t, c, "welcome")
	n.Break("a", "b")
	_ = c.SetReadDeadline(time.Now().Add(Patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("still open: %v", err)
	}
	eventually(t, "it ends there too", func() bool { return b.conns() == 0 })
	again := dialPeer(t, addr, 1, "a")
	_ = again.SetReadDeadline(time.Now().Add(Patience))
	if _, err := again.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a new one is open: %v", err)
	}
	n.HealAll()
	expect(t, dialPeer(t, addr, 1, "a"), "welcome")
}

func TestProxyDropsDuplicatesReorders(t *testing.T) {
	const frames = 1000
	for _, c := range []struct {
		name string
		rule Rule
		ok   func(got []string, n Traffic) bool
	}{
		{"drop", Rule{Drop: 0.3}, func(got []string, n Traffic) bool {
			return len(got) == frames-int(n.Dropped) && n.Dropped > 200 && n.Dropped < 400 && slices.IsSortedFunc(got, byNumber)
		}},
		{"drop all", Rule{Drop: 1}, func(got []string, n Traffic) bool { return len(got) == 0 && n.Dropped == frames }},
		{"duplicate", Rule{Duplicate: 0.3}, func(got []string, n Traffic) bool {
			slices.SortFunc(got, byNumber)
			return len(got) == frames+int(n.Duplicated) && n.Duplicated > 200 && len(slices.Compact(got)) == frames
		}},
		{"reorder", Rule{Reorder: 0.3}, func(got []string, n Traffic) bool {
			sorted := slices.IsSortedFunc(got, byNumber)
			slices.SortFunc(got, byNumber)
			return !sorted && n.Reordered > 200 && slices.Equal(got, numbers(0, frames))
		}},
		{"delay keeps the order", Rule{Delay: 50 * time.Millisecond, Jitter: 50 * time.Millisecond}, func(got []string, _ Traffic) bool {
			return slices.Equal(got, numbers(0, frames))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, b, addr := between(t)
			n.All([]string{"a", "b"}, c.rule)
			conn := dialPeer(t, addr, 1, "a")
			expect(t, conn, "welcome") // the first frame is spared
			began := time.Now()
			send(t, conn, numbers(0, frames)...)
			conn.Close()
			eventually(t, "all came", func() bool { return b.conns() == 0 })
			if got, n := b.bodies(), n.Traffic("a", "b"); !c.ok(got, n) {
				t.Errorf("%+v: got %d: %.200q", n, len(got), got)
			}
			if len(b.came) > 0 && b.came[0].Sub(began) < c.rule.Delay {
				t.Errorf("the first came after %v", b.came[0].Sub(began))
			}
		})
	}
}

func byNumber(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return bytes.Compare([]byte(a), []byte(b))
}

func TestProxySparesBulk(t *testing.T) {
	n, b, addr := between(t)
	n.All([]string{"a", "b"}, Rule{Drop: 1, Duplicate: 1, Reorder: 1})
	c := dialPeer(t, addr, bulk, "a")
	expect(t, c, "welcome")
	send(t, c, "0", "1")
	b.await(t, numbers(0, 2))
	expect(t, c, "chunk of 0")
	expect(t, c, "chunk of 1")
	// Its answers go the other way.
	n.HealAll()
	n.Cut("b", "a")
	send(t, c, "2")
	b.await(t, numbers(0, 3))
	silent(t, c)
	n.HealAll()
	expect(t, c, "chunk of 2")
}

func TestProxyToNobody(t *testing.T) {
	n := NewNetwork(1)
	t.Cleanup(n.Close)
	addr := freeAddr(t)
	if err := n.Proxy(addr, "b", freeAddr(t)); err != nil {
		t.Fatal(err)
	}
	c := dialPeer(t, addr, 1, "a")
	_ = c.SetReadDeadline(time.Now().Add(Patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("still open: %v", err)
	}
	if s := n.Strange(); len(s) > 0 {
		t.Error(s)
	}
}

func TestProxyNotesWhatIsNotTheProtocol(t *testing.T) {
	n, b, addr := between(t)
	for _, bytes := range []string{
		"GET / HTTP/1.1\r\n\r\n",
		string(hello(1, "a")) + "\xff\xff\xff\xff",
		string(hello(1, "a")) + "\x00\x00\x00\x00",
	} {
		before := len(n.Strange())
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, bytes); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is noted", func() bool { return len(n.Strange()) > before })
		c.Close()
	}
	if got := b.bodies(); len(got) > 0 {
		t.Errorf("forwarded %q", got)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(append(hello(1, "n1"), frame(20, "body")...))
	f.Add(hello(3, ""))
	f.Add([]byte("\x01\xff\xff\xff\xff\x00attn"))
	f.Add([]byte("\x01\x01\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		class, first, from, err := readHello(r)
		if err != nil {
			return
		}
		read := append([]byte{class}, first...)
		if !bytes.Contains(first, []byte(from)) {
			t.Errorf("%q is not in %q", from, first)
		}
		for {
			frame, err := readFrame(r, maxFrame)
			if err != nil {
				break
			}
			read = append(read, frame...)
		}
		if !bytes.HasPrefix(b, read) {
			t.Errorf("%q was read as %q", b, read)
		}
	})
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", Patience, what)
		}
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := FreeAddr("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
