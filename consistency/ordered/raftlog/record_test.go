package raftlog

import (
	"errors"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

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

// A segment with good checksums and any payloads, as from a version with a fault:
// Open judges it, without a panic.
func FuzzReplay(f *testing.F) {
	restart := le.AppendUint64(le.AppendUint64(hard{1, 1, 1}.append(nil), 9), 1)
	f.Add(disk.TypeBatch, appendBatch(nil, hard{1, 2, 1}, entries(1, 3, 1)), disk.TypeBatch, appendBatch(nil, hard{1, 2, 2}, entries(2, 4, 2)))
	f.Add(typeRestart, restart, disk.TypeBatch, appendBatch(nil, hard{1, 2, 9}, entries(10, 12, 1)))
	f.Add(disk.TypeBatch, appendBatch(nil, hard{1, 2, 1}, entries(3, 3, 1)), byte(7), []byte("x"))
	dir := disktest.NewDir(f)
	l := openAt(f, dir, disk.OS)
	if err := l.Start(me); err != nil {
		f.Fatal(err)
	}
	nonce := l.disk.charter.Nonce
	kill(f, l)
	f.Fuzz(func(t *testing.T, typ1 byte, payload1 []byte, typ2 byte, payload2 []byte) {
		files, err := disk.Take(disk.Options{Dir: dir, Sync: disk.OS, BootID: "boot1"})
		if err != nil {
			t.Fatal(err)
		}
		if err := files.Remove(disk.Segment(1)); err != nil {
			t.Fatal(err)
		}
		a, err := files.NewSegment(nonce, 1, make([]byte, hardLen+16))
		if err != nil {
			t.Fatal(err)
		}
		room := make([]byte, disk.HeadLen)
		if err := errors.Join(a.Append(typ1, append(room, payload1...)), a.Append(typ2, append(room, payload2...)), a.Close()); err != nil {
			t.Fatal(err)
		}
		d := &persisted{Files: files}
		r, _, err := d.recover()
		var lost *disk.Unproven
		if err == nil && r.at.index != r.last || err != nil && !errors.As(err, &lost) {
			t.Error(err)
		}
		if err := errors.Join(d.active.Close(), d.Release()); err != nil {
			t.Error(err)
		}
	})
}
