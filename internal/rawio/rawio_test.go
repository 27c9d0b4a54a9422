package rawio_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attunekv/attune/internal/rawio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is two ends of a TCP connection, both of them fast.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return rawio.Conn(a), rawio.Conn(b)
}

// TestWhatIsWrittenIsRead: more than the sockets hold, so that both sides wait.
func TestWhatIsWrittenIsRead(t *testing.T) {
	a, b := pair(t)
	sent := make([]byte, 32<<20)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(sent)
	failed := make(chan error, 1)
	go func() {
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(8<<20))
			if wrote, err := a.Write(rest[:n]); err != nil || wrote != n {
				failed <- errors.Join(errors.New("a write ended early"), err)
				return
			}
			rest = rest[n:]
		}
		failed <- a.Close()
	}()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes arrived, as sent: %v, of %d; %v", len(got), bytes.Equal(got, sent), len(sent), err)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

// TestEnds: how a connection ends is told as package net tells it.
func TestEnds(t *testing.T) {
	b := make([]byte, 8)
	t.Run("a read in time", func(t *testing.T) {
		a, _ := pair(t)
		a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		n, err := a.Read(b)
		var timeout net.Error
		if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("read %d bytes, %v", n, err)
		}
	})
	t.Run("a write in time", func(t *testing.T) {
		a, _ := pair(t)
		a.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := a.Write(make([]byte, 64<<20))
		if n == 0 || n == 64<<20 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wrote %d bytes to one who reads nothing, %v", n, err)
		}
	})
	t.Run("closed here", func(t *testing.T) {
		a, _ := pair(t)
		time.AfterFunc(10*time.Millisecond, func() { a.Close() })
		if n, err := a.Read(b); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("read %d bytes, %v", n, err)
		}
		if n, err := a.Write(b); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("wrote %d bytes, %v", n, err)
		}
	})
	t.Run("closed there", func(t *testing.T) {
		a, other := pair(t)
		other.Close()
		if n, err := a.Read(b); n != 0 || err != io.EOF {
			t.Errorf("read %d bytes, %v", n, err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		a, other := pair(t)
		rawio.Unwrap(other).(*net.TCPConn).SetLinger(0)
		other.Close()
		if _, err := a.Read(b); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
		if _, err := a.Write(b); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write: %v", err)
		}
	})
	t.Run("nothing to read into", func(t *testing.T) {
		a, _ := pair(t)
		if n, err := a.Read(nil); n != 0 || err != nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
	})
}

// TestOtherConnectionsStayAsTheyAre.
func TestOtherConnectionsStayAsTheyAre(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if rawio.Conn(a) != a || rawio.Unwrap(a) != a {
		t.Error("a pipe is no socket")
	}
}

// BenchmarkRoundTrip compares with package net: a process that does nothing else, and
// answers.
func BenchmarkRoundTrip(b *testing.B) {
	for _, side := range []struct {
		name string
		wrap func(net.Conn) net.Conn
	}{{"net", func(c net.Conn) net.Conn { return c }}, {"rawio", rawio.Conn}} {
		b.Run(side.name, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				io.Copy(struct{ io.Writer }{side.wrap(c)}, struct{ io.Reader }{side.wrap(c)})
			}()
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer func() { <-done }()
			defer c.Close()
			c = side.wrap(c)
			buf := make([]byte, 100)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
