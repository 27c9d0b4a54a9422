package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func TestStreamComesWhole(t *testing.T) {
	a, b := pair(t)
	data := noise(3<<20 + 17)
	b.HandleStream(testKind, func(_ context.Context, from uint64, request []byte, w io.Writer) error {
		if from != a.o.ID {
			t.Errorf("from %x", from)
		}
		n := int(request[0])<<16 | int(request[1])<<8 | int(request[2])
		for part := data[:n]; len(part) > 0; {
			k := min(len(part), 1+rand.IntN(100_000))
			if _, err := w.Write(part[:k]); err != nil {
				return err
			}
			part = part[k:]
		}
		return nil
	})
	for _, n := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3<<20 + 17} {
		r, err := a.Stream(within(t), b.o.ID, testKind, []byte{byte(n >> 16), byte(n >> 8), byte(n)})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data[:n]) {
			t.Errorf("%d bytes of %d, %v", len(got), n, err)
		}
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after its end: %v", err)
		}
		r.Close()
		r.Close()
	}
	attunetest.Eventually(t, "the connections are closed", func() bool {
		return b.Stats().Class[Bulk].ConnsIn == 0 && a.Stats().Class[Bulk].ConnsOut == 0
	})
}

func TestStreamThatFailsIsAnError(t *testing.T) {
	a, b := pair(t)
	b.HandleStream(testKind, func(_ context.Context, _ uint64, _ []byte, w io.Writer) error {
		w.Write(noise(200_000))
		return errors.New("changed my mind")
	})
	r, err := a.Stream(within(t), b.o.ID, testKind, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var remote *RemoteError
	if _, err := io.ReadAll(r); !errors.As(err, &remote) || remote.Text != "changed my mind" {
		t.Error(err)
	}
	if r, err := a.Stream(within(t), b.o.ID, testKind+1, nil); err == nil {
		if _, err := io.ReadAll(r); !errors.As(err, &remote) {
			t.Error(err)
		}
		r.Close()
	}
	if _, err := a.Stream(within(t), 99, testKind, nil); !errors.Is(err, ErrNotSent) {
		t.Error(err)
	}
	b.Close()
	if _, err := a.Stream(within(t), b.o.ID, testKind, nil); !errors.Is(err, ErrNotSent) {
		t.Error(err)
	}
}

// Wherever the connection is cut, or a bit of it changed, the reader gets an
// error and no byte that is wrong.
func TestStreamCutOrDamagedIsAnError(t *testing.T) {
	a, b := pair(t)
	data := noise(150_000)
	b.HandleStream(testKind, func(_ context.Context, _ uint64, _ []byte, w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	whole := tape(t, b)
	for range 300 {
		spoiled := bytes.Clone(whole)
		what := "cut"
		if at := rand.IntN(len(whole)); rand.IntN(2) == 0 {
			spoiled = spoiled[:at]
		} else {
			what = "damaged"
			spoiled[at] ^= 1 << rand.IntN(8)
		}
		got, err := replay(a, spoiled)
		if err == nil {
			t.Fatalf("%s and no error", what)
		}
		if !bytes.HasPrefix(data, got) {
			t.Fatalf("%s and wrong bytes", what)
		}
	}
	if got, err := replay(a, whole); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the recording itself: %v", err)
	}
}

// tape returns what b streams.
func tape(t *testing.T, b *Cluster) []byte {
	h := hello{class: Bulk, cluster: Hash(testCluster), from: 5, to: b.o.ID, name: "x", kind: "ordered"}
	conn, kind, _ := say(t, b, h)
	if kind != kindWelcome {
		t.Fatal("refused")
	}
	conn.Write(appendFrame(nil, kindStream, nil, []byte{testKind}))
	whole, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return whole
}

// replay reads bytes as a stream that ends with them.
func replay(c *Cluster, wire []byte) ([]byte, error) {
	s := newStream(context.Background(), c, 5, nopConn{}, bytes.NewReader(wire))
	return io.ReadAll(s)
}

// Chunks that are missing leave no trace but the length.
func TestStreamThatLacksChunksIsAnError(t *testing.T) {
	c := new(Cluster)
	c.ctx = t.Context()
	chunk := appendFrame(nil, kindChunk, binary.LittleEndian.AppendUint32(nil, crc32.Checksum([]byte("abc"), castagnoli)), []byte("abc"))
	for total, whole := range map[uint64]bool{0: false, 3: false, 6: true, 9: false} {
		end := appendFrame(nil, kindEnd, nil, binary.LittleEndian.AppendUint64(nil, total))
		if got, err := replay(c, slices.Concat(chunk, chunk, end)); (err == nil) != whole || string(got) != "abcabc" {
			t.Errorf("6 bytes of %d: %q, %v", total, got, err)
		}
	}
}

type nopConn struct{ net.Conn }

func (nopConn) Close() error                    { return nil }
func (nopConn) SetReadDeadline(time.Time) error { return nil }

// A peer that dies in the middle, and one that is closed.
func TestStreamEndsWithTheOther(t *testing.T) {
	a, b := pair(t)
	ended := make(chan error, 2)
	b.HandleStream(testKind, func(ctx context.Context, _ uint64, _ []byte, w io.Writer) error {
		w.Write(noise(chunkSize))
		<-ctx.Done()
		ended <- nil
		return ctx.Err()
	})
	open := func(ctx context.Context) io.ReadCloser {
		t.Helper()
		r, err := a.Stream(ctx, b.o.ID, testKind, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, chunkSize)); err != nil {
			t.Fatal(err)
		}
		return r
	}
	open(within(t)).Close()
	receive(t, "the sender notices that the receiver hung up", ended)

	ctx, cancel := context.WithCancelCause(t.Context())
	r := open(ctx)
	defer r.Close()
	enough := errors.New("enough")
	cancel(enough)
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, enough) {
		t.Error(err)
	}
	receive(t, "the sender notices that the receiver gave up", ended)

	r = open(within(t))
	defer r.Close()
	b.Close()
	if _, err := io.ReadAll(r); err == nil {
		t.Error("a stream of a node that closed looks complete")
	}

	c := start(t, options("c", a.GossipAddr()))
	c.HandleStream(testKind, func(ctx context.Context, _ uint64, _ []byte, w io.Writer) error {
		w.Write(noise(chunkSize))
		<-ctx.Done()
		return ctx.Err()
	})
	meet(t, a, c)
	r, err := a.Stream(within(t), c.o.ID, testKind, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a.Close()
	if _, err := io.ReadAll(r); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// A sender whose process stands still keeps its connection. Who asked gives it up all
// the same, or it would never ask another one.
func TestStreamOfASilentSenderEnds(t *testing.T) {
	a, b := pair(t)
	b.HandleStream(testKind, func(ctx context.Context, _ uint64, _ []byte, w io.Writer) error {
		w.Write(noise(chunkSize))
		<-ctx.Done()
		return ctx.Err()
	})
	r, err := a.Stream(within(t), b.o.ID, testKind, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, chunkSize)); err != nil {
		t.Fatal(err)
	}
	r.(*stream).patience = 50 * time.Millisecond
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func FuzzStream(f *testing.F) {
	f.Add(appendFrame(nil, kindEnd, nil, make([]byte, 8)))
	f.Add(appendFrame(nil, kindFailed, nil, []byte("why")))
	f.Add(appendFrame(nil, kindChunk, []byte{0x76, 0x92, 0x05, 0xc5}, []byte("abc")))
	c := new(Cluster)
	c.ctx = context.Background()
	f.Fuzz(func(t *testing.T, wire []byte) {
		got, err := replay(c, wire)
		if err == nil && len(got) > len(wire) {
			t.Fatal("more came out than went in")
		}
	})
}
