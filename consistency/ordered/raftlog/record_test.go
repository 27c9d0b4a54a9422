package raftlog

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func record(b []byte, typ byte, seed uint32, payload string) []byte {
	rec := append(make([]byte, headLen), payload...)
	seal(rec, typ, seed, int64(len(b)))
	return append(b, rec...)
}

// Whatever a file holds: records end at the first bad one, those before it are as
// they would be written, and memory is only taken for what is there.
func FuzzRecords(f *testing.F) {
	const seed = 7
	b := record(nil, typeBatch, seed, "one")
	b = record(b, typeChunk, seed, "and another")
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add(append(bytes.Clone(b), make([]byte, 40)...))
	f.Add([]byte{0xff, 0xff, 0xff, 0x3f, 0, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRecords(bytes.NewReader(b), int64(len(b)), seed, maxRecord)
		var again []byte
		for {
			typ, payload, err := r.next()
			if err == io.EOF {
				if !bytes.Equal(again, b) {
					t.Fatal("read to the end, but not all")
				}
				return
			}
			if bad, ok := errors.AsType[*badRecord](err); ok {
				if bad.at != int64(len(again)) || !bytes.HasPrefix(b, again) {
					t.Fatalf("bad at %d, after %d bytes of records", bad.at, len(again))
				}
				if _, _, err := r.next(); !errors.Is(err, errBad) {
					t.Fatal("it goes on behind a bad record:", err)
				}
				if _, err := headBehind(bytes.NewReader(b), bad.at+1, int64(len(b)), seed); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			again = record(again, typ, seed, string(payload))
			if cap(r.buf) > len(b) {
				t.Fatalf("%d bytes of memory for %d", cap(r.buf), len(b))
			}
		}
	})
}

func TestRecordIsOneWhereItWasWritten(t *testing.T) {
	b := record(nil, typeBatch, 7, "one")
	for _, c := range []struct {
		seed uint32
		b    []byte
	}{{8, b}, {7, append(bytes.Clone(b), b...)}} {
		r := newRecords(bytes.NewReader(c.b), int64(len(c.b)), c.seed, maxRecord)
		var err error
		for err == nil {
			_, _, err = r.next()
		}
		if !errors.Is(err, errBad) {
			t.Error(err)
		}
	}
}

// A record is found behind damage at any distance, across the borders of what is
// read at a time.
func TestHeadBehind(t *testing.T) {
	for _, gap := range []int{0, 1, 100, readAhead - headLen, readAhead - headLen + 1, readAhead - 1, readAhead, 2*readAhead + 5} {
		for _, behind := range []bool{false, true} {
			b := bytes.Repeat([]byte{1, 0, 0}, gap)[:gap]
			if behind {
				b = record(b, typeBatch, 7, "x")
			}
			if got, err := headBehind(bytes.NewReader(b), 0, int64(len(b)), 7); got != behind || err != nil {
				t.Errorf("behind %d bytes: %v, %v", gap, got, err)
			}
		}
	}
}

func FuzzBatch(f *testing.F) {
	f.Add(appendBatch(nil, hard{1, 2, 3}, nil))
	f.Add(appendBatch(nil, hard{1, 2, 3}, []*pb.Entry{entry(5, 1, "a"), entry(6, 300, "")}))
	f.Add(append(make([]byte, hardLen), 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ents, err := decodeBatch(b)
		if err != nil {
			return
		}
		if cap(ents) > len(b) {
			t.Fatalf("room for %d entries out of %d bytes", cap(ents), len(b))
		}
		h2, ents2, err := decodeBatch(appendBatch(nil, h, ents))
		if err != nil || h2 != h || len(ents2) != len(ents) {
			t.Fatal("not read again as written:", err)
		}
		for i := range ents {
			if !proto.Equal(ents[i], ents2[i]) {
				t.Fatalf("%v was read again as %v", ents[i], ents2[i])
			}
		}
	})
}

func FuzzIdentity(f *testing.F) {
	c := charter{nonce: 1, sync: OS, boot: "boot", id: me}
	f.Add(c.encode()[headLen:])
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		var c charter
		if c.decode(b) == nil && !bytes.Equal(c.encode()[headLen:], b) {
			t.Fatal("not written again as read")
		}
	})
}

// A segment with good checksums and any payloads, as from a version with a fault:
// Open judges it, without a panic.
func FuzzReplay(f *testing.F) {
	restart := le.AppendUint64(le.AppendUint64(hard{1, 1, 1}.append(nil), 9), 1)
	f.Add(typeBatch, appendBatch(nil, hard{1, 2, 1}, entries(1, 3, 1)), typeBatch, appendBatch(nil, hard{1, 2, 2}, entries(2, 4, 2)))
	f.Add(typeRestart, restart, typeBatch, appendBatch(nil, hard{1, 2, 9}, entries(10, 12, 1)))
	f.Add(typeBatch, appendBatch(nil, hard{1, 2, 1}, entries(3, 3, 1)), typeEnd, []byte("x"))
	dir := filepath.Join(f.TempDir(), "d")
	l := openAt(f, dir, OS)
	if err := errors.Join(l.Start(me)); err != nil {
		f.Fatal(err)
	}
	seed, size := l.disk.seed, l.disk.size
	kill(f, l)
	name := newest(f, dir, logPrefix)
	head, _ := os.ReadFile(name)
	f.Fuzz(func(t *testing.T, typ1 byte, payload1 []byte, typ2 byte, payload2 []byte) {
		b := bytes.Clone(head[:size])
		b = record(b, typ1, seed, string(payload1))
		b = record(b, typ2, seed, string(payload2))
		d, err := openDisk(Options{Dir: dir, Sync: OS, BootID: "boot1"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, _, err := d.recover()
		var lost *unproven
		if err == nil && r.at.index != r.last || err != nil && !errors.As(err, &lost) {
			t.Error(err)
		}
		if err := errors.Join(d.shutLocked(), d.lock.Close()); err != nil {
			t.Error(err)
		}
	})
}
