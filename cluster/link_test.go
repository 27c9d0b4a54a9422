package cluster

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune/internal/attunetest"
)

// send sends until it is accepted: a connection may just be coming up.
func send(t testing.TB, c *Cluster, to uint64, class Class, kind byte, body []byte) {
	t.Helper()
	attunetest.Eventually(t, "the frame is accepted", func() bool { return c.Send(to, class, kind, body) })
}

func TestFramesComeInOrder(t *testing.T) {
	a, b := pair(t)
	const n = 20_000
	got := make(chan uint64, n)
	b.Handle(testKind, func(from uint64, body []byte) {
		if from != a.o.ID {
			t.Errorf("from %x", from)
		}
		for _, pad := range body[8:] {
			if pad != body[0] {
				t.Error("a damaged body")
				break
			}
		}
		got <- binary.LittleEndian.Uint64(body)
	})
	go func() {
		for i := range uint64(n) {
			size := 8
			if i%100 == 0 {
				size = int(i%7)*copyBelow/2 + 8
			}
			body := bytes.Repeat([]byte{byte(i)}, size)
			binary.LittleEndian.PutUint64(body, i)
			send(t, a, b.o.ID, Log, testKind, body)
		}
	}()
	for i := range uint64(n) {
		if k := receive(t, "the next frame", got); k != i {
			t.Fatalf("frame %d came instead of %d", k, i)
		}
	}
	in, out := b.Stats().Class[Log], &a.stats[Log]
	attunetest.Eventually(t, "everything is counted", func() bool {
		in = b.Stats().Class[Log]
		s := a.Stats().Class[Log]
		return in.FramesIn == n && s.FramesOut == n && s.BytesOut == in.BytesIn && s.Queued == 0
	})
	if out.connsOut.Load() != 1 || in.ConnsIn != 1 || in.ConnsOut != 0 {
		t.Errorf("not one connection in one direction: %+v", in)
	}
}

func TestBigFramesAndLimits(t *testing.T) {
	o, logs := logged(options("b"), zap.WarnLevel)
	b := start(t, o)
	a := start(t, options("a", b.GossipAddr()))
	a.Belong(testCluster)
	b.Belong(testCluster)
	meet(t, a, b)
	got := make(chan []byte, 1)
	b.Handle(testKind, func(_ uint64, body []byte) { got <- body }, Limit(100<<20))
	b.Handle(testKind+1, func(_ uint64, body []byte) { got <- body })
	big := make([]byte, 80<<20) // more than the queue of its class holds
	for i := 0; i < len(big); i += 4096 {
		big[i] = byte(i >> 12)
	}
	send(t, a, b.o.ID, Log, testKind, big)
	if !bytes.Equal(receive(t, "a big frame", got), big) {
		t.Error("it came differently")
	}
	send(t, a, b.o.ID, Log, testKind+1, make([]byte, DefaultLimit))
	receive(t, "a frame as long as may be", got)

	down := make(chan Class, 10)
	a.OnDown(func(id uint64, class Class) {
		if id == b.o.ID {
			down <- class
		}
	})
	send(t, a, b.o.ID, Log, testKind+1, make([]byte, DefaultLimit+1))
	if class := receive(t, "the connection ends", down); class != Log {
		t.Error(class)
	}
	attunetest.Eventually(t, "b says why", func() bool { return b.Stats().Invalid == 1 && said(logs, "no attune sends") })
	send(t, a, b.o.ID, Log, testKind+1, []byte("again"))
	if s := receive(t, "a frame over the next connection", got); string(s) != "again" {
		t.Errorf("%d bytes", len(s))
	}
	if a.Send(b.o.ID, Log, testKind, make([]byte, MaxFrame+1)) || a.Send(b.o.ID, Bulk, testKind, nil) {
		t.Error("accepted what cannot be sent")
	}
}

// What is accepted by whoever was told of a short connection's end is not
// dropped with what waited for it.
func TestSendingAsAConnectionEnds(t *testing.T) {
	a, b := pair(t)
	got := make(chan []byte, 1)
	b.Handle(testKind, func(_ uint64, body []byte) { got <- body })
	accepted := make(chan bool, 10)
	a.OnDown(func(id uint64, class Class) {
		accepted <- id == b.o.ID && class == Log && a.Send(id, class, testKind, []byte("again"))
	})
	send(t, a, b.o.ID, Log, testKind, make([]byte, DefaultLimit+1))
	if !receive(t, "the connection ends", accepted) {
		send(t, a, b.o.ID, Log, testKind, []byte("again"))
	}
	if s := receive(t, "a frame over the next connection", got); string(s) != "again" {
		t.Errorf("%d bytes", len(s))
	}
}

// A reader that is stuck holds up its class and nothing else, and the queue for
// it has an end.
func TestSlowLogDelaysNoControl(t *testing.T) {
	a, b := pair(t)
	stuck, entered := make(chan struct{}), make(chan struct{}, 1)
	b.Handle(testKind, func(uint64, []byte) {
		select {
		case entered <- struct{}{}:
		default:
		}
		<-stuck
	})
	defer close(stuck) // before b is closed
	beats := make(chan byte, 1)
	b.Handle(testKind+1, func(_ uint64, body []byte) { beats <- body[0] })
	send(t, a, b.o.ID, Log, testKind, nil)
	receive(t, "the reader is stuck", entered)

	piece, sent := make([]byte, 1<<20), 0
	for a.Send(b.o.ID, Log, testKind, piece) {
		if sent++; sent > 200 {
			t.Fatal("the queue has no end")
		}
		if sent == 30 {
			time.Sleep(10 * time.Millisecond) // let some of it into the kernel
		}
	}
	if sent < 60 {
		t.Errorf("the queue was full after %d MiB", sent)
	}
	if s := a.Stats().Class[Log]; s.Dropped == 0 || s.Queued > int64(queueLimit[Log]) {
		t.Errorf("%+v", s)
	}
	for i := range byte(100) {
		began := time.Now()
		send(t, a, b.o.ID, Control, testKind+1, []byte{i})
		if got := receive(t, "a heartbeat", beats); got != i {
			t.Fatalf("heartbeat %d came instead of %d", got, i)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a heartbeat took %v", took)
		}
	}
}

func TestDownIsTold(t *testing.T) {
	a, b := pair(t)
	got := make(chan struct{}, 1)
	b.Handle(testKind, func(uint64, []byte) { got <- struct{}{} })
	down := make(chan Class, 100)
	a.OnDown(func(id uint64, class Class) {
		if id == b.o.ID {
			down <- class
		}
	})
	send(t, a, b.o.ID, Control, testKind, nil)
	receive(t, "a frame", got)
	b.Close()
	if class := receive(t, "an idle connection broke", down); class != Control {
		t.Error(class)
	}
	// Nobody answers any more: what is accepted is told to be lost, and then
	// nothing is accepted for a moment.
	attunetest.Eventually(t, "a frame is accepted", func() bool { return a.Send(b.o.ID, Log, testKind, nil) })
	for receive(t, "a connection could not be made", down) != Log {
	}
	attunetest.Eventually(t, "the queue is empty", func() bool { return a.Stats().Class[Log].Queued == 0 })
	if a.Send(99, Log, testKind, nil) || a.Send(a.o.ID, Log, testKind, nil) {
		t.Error("accepted a frame for nobody")
	}
}

func TestHelloIsJudged(t *testing.T) {
	a := start(t, options("a"))
	good := hello{class: Calls, from: 5, to: a.o.ID, name: "x", kind: "ordered"}
	with := func(change func(h *hello)) hello {
		h := good
		change(&h)
		return h
	}
	for _, c := range []struct {
		what string
		h    hello
		why  string // "": welcome
	}{
		{"a newcomer calls", good, ""},
		{"a newcomer streams", with(func(h *hello) { h.class = Bulk }), ""},
		{"a newcomer's raft", with(func(h *hello) { h.class = Control }), "no cluster yet"},
		{"a member's raft before we are", with(func(h *hello) { h.class, h.cluster = Log, 7 }), "no cluster yet"},
		{"for who was here before", with(func(h *hello) { h.to++ }), "is gone"},
		{"who is there", with(func(h *hello) { h.to = 0 }), ""},
		{"who is there, on another class", with(func(h *hello) { h.to, h.class = 0, Bulk }), "is gone"},
	} {
		_, kind, body := say(t, a, c.h)
		switch {
		case c.why == "" && kind == kindWelcome:
			if w, err := parseWelcome(body); err != nil || w.id != a.o.ID || w.name != "a" || w.nonce != a.nonce {
				t.Errorf("%s: %+v %v", c.what, w, err)
			}
		case c.why != "" && kind == kindRefused && strings.Contains(string(body), c.why):
		default:
			t.Errorf("%s: %d %q, want %q", c.what, kind, body, c.why)
		}
	}
	// Of a later release, which may lay out the rest otherwise.
	conn, err := net.Dial("tcp", a.PeerAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(appendFrame([]byte{byte(Calls)}, kindHello, []byte(magic), []byte{protoVersion + 1, 9, 9}))
	if kind, body, err := readSmall(conn); err != nil || kind != kindRefused || !strings.Contains(string(body), "same release") {
		t.Errorf("%d %q %v", kind, body, err)
	}
}

func TestGarbageIsCountedAndHarmsNobody(t *testing.T) {
	a, b := pair(t)
	got := make(chan struct{}, 1)
	b.Handle(testKind, func(uint64, []byte) { got <- struct{}{} })
	send(t, a, b.o.ID, Control, testKind, nil)
	receive(t, "a frame", got)

	h := hello{class: Calls, cluster: Hash(testCluster), from: a.o.ID, to: b.o.ID, name: "a", kind: "ordered"}
	opened := appendFrame([]byte{byte(Calls)}, kindHello, nil, h.append(nil))
	h.class = Bulk
	bulk := appendFrame([]byte{byte(Bulk)}, kindHello, nil, h.append(nil))
	for i, bytes := range [][]byte{
		[]byte("GET / HTTP/1.1\r\n\r\n"),
		{0, 0, 0, 0, 0, 0},
		{0, 0xff, 0xff, 0xff, 0xff, 0},
		appendFrame([]byte{0}, kindHello, nil, []byte("attx")),
		appendFrame([]byte{0}, kindHello, nil, []byte(magic)),
		appendFrame([]byte{0}, kindWelcome, nil, nil),
		append([]byte{byte(Log)}, opened[1:]...), // two classes
		append(opened[:len(opened):len(opened)], 0xff, 0xff, 0xff, 0xff, testKind),
		appendFrame(opened[:len(opened):len(opened)], kindRequest, nil, []byte("short")),
		appendFrame(opened[:len(opened):len(opened)], kindResponse, nil, []byte("short")),
		appendFrame(opened[:len(opened):len(opened)], kindChunk, nil, nil),
		append(opened[:len(opened):len(opened)], 1, 0, 0x20, 0, 99), // 2 MiB of a kind nobody knows
		appendFrame(bulk, kindRequest, nil, nil),
	} {
		conn, err := net.Dial("tcp", b.PeerAddr())
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(bytes)
		attunetest.Eventually(t, "garbage is counted", func() bool { return b.Stats().Invalid == uint64(i+1) })
		conn.Close()
	}
	send(t, a, b.o.ID, Control, testKind, nil)
	receive(t, "another frame over the same connection", got)
	if n := b.Stats().Class[Control].ConnsIn; n != 1 {
		t.Errorf("%d connections", n)
	}
	send(t, a, b.o.ID, Control, testKind+1, []byte("of a later release"))
	send(t, a, b.o.ID, Control, testKind, nil)
	receive(t, "a frame behind one of an unknown kind", got)
	if n := b.Stats().Unknown; n != 1 {
		t.Errorf("%d unknown frames", n)
	}
}

// A frame queued while a node belongs nowhere must arrive when it does.
func TestBelongRenewsConnections(t *testing.T) {
	a := start(t, options("a"))
	b := start(t, options("b", a.GossipAddr()))
	meet(t, a, b)
	var got atomic.Int32
	b.Handle(testKind, func(uint64, []byte) { got.Add(1) })
	a.Belong(testCluster)
	a.Send(b.o.ID, Control, testKind, nil) // refused: b has no cluster
	attunetest.Eventually(t, "b refuses it", func() bool { return b.Stats().Refused == 1 })
	b.Belong(testCluster)
	send(t, a, b.o.ID, Control, testKind, nil)
	attunetest.Eventually(t, "a frame arrives", func() bool {
		a.Send(b.o.ID, Control, testKind, nil)
		return got.Load() > 0
	})
}

func BenchmarkSend(b *testing.B) {
	for _, size := range []int{100, 10_000} {
		b.Run(byteCount(size), func(b *testing.B) {
			x, y := pair(b)
			done := make(chan struct{}, 1)
			n := 0
			y.Handle(testKind, func(uint64, []byte) {
				if n++; n == b.N {
					done <- struct{}{}
				}
			})
			body := make([]byte, size)
			b.SetBytes(int64(size))
			b.ResetTimer()
			for range b.N {
				for !x.Send(y.o.ID, Log, testKind, body) {
					time.Sleep(50 * time.Microsecond)
				}
			}
			receive(b, "all frames", done)
			b.StopTimer()
			n = -1
		})
	}
}

func byteCount(n int) string {
	if n < 1000 {
		return "100B"
	}
	return "10kB"
}

// A call that was given up while it waited for its connection was told to be certainly
// not executed: it must not be written later.
func TestACallThatWasGivenUpIsNotWritten(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	l := &link{c: new(Cluster), class: Calls, conn: near}
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(far) // it ends when near is closed
		got <- b
	}()
	var batch []frame
	for id := range uint64(3) {
		p := &call{id: id}
		if id == 1 {
			p.state.Store(callGivenUp)
		}
		f := frame{kind: kindRequest, body: []byte{byte(id)}, call: p}
		putRequest(&f, id, 0, testKind)
		batch = append(batch, f)
	}
	if err := l.write(batch); err != nil {
		t.Fatal(err)
	}
	near.Close()
	wire := bytes.NewReader(<-got)
	var sent []uint64
	for wire.Len() > 0 {
		_, n, err := readHead(wire)
		if err != nil {
			t.Fatal(err)
		}
		body, err := readBody(wire, n)
		if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, binary.LittleEndian.Uint64(body))
	}
	if !slices.Equal(sent, []uint64{0, 2}) {
		t.Errorf("calls %v were sent", sent)
	}
}
