package journal

import (
	"bytes"
	"errors"
	"testing"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

// What is no batch is none; of what is one, the records give it again, if its
// lengths are as short as they can be.
func FuzzBatch(f *testing.F) {
	f.Add(appendBatch(nil, [][]byte{[]byte("one"), nil, make([]byte, 200)}))
	f.Add([]byte{5, 1, 2})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var records [][]byte
		keep := func(r []byte) error { records = append(records, bytes.Clone(r)); return nil }
		if err := eachRecord(b, keep); err != nil {
			if !errors.Is(err, disk.ErrBad) {
				t.Fatal(err)
			}
			return
		}
		again := appendBatch(nil, records)
		if len(again) > len(b) || len(again) == len(b) && !bytes.Equal(again, b) {
			t.Fatalf("%x was written again as %x", b, again)
		}
		was := records
		records = nil
		if err := eachRecord(again, keep); err != nil || len(records) != len(was) {
			t.Fatal("not read again as written:", err)
		}
		for i := range was {
			if !bytes.Equal(records[i], was[i]) {
				t.Fatalf("%x was read again as %x", was[i], records[i])
			}
		}
	})
}

// A segment with good checksums and any payloads, as from a version with a fault:
// Open judges it, without a panic, and what it accepts can be replayed.
func FuzzSegment(f *testing.F) {
	f.Add(disk.TypeBatch, appendBatch(nil, [][]byte{[]byte("one"), nil}), typeBound, le.AppendUint64(nil, 5))
	f.Add(disk.TypeBatch, []byte{9, 9}, disk.TypeBatch, []byte{0})
	f.Add(disk.TypeHead, []byte("x"), byte(7), []byte("x"))
	dir := disktest.NewDir(f)
	j := started(f, dir, disk.OS)
	nonce := j.charter.Nonce
	kill(f, j)
	f.Fuzz(func(t *testing.T, typ1 byte, payload1 []byte, typ2 byte, payload2 []byte) {
		j := taken(t, dir, disk.OS)
		if err := j.dir.Remove(disk.Segment(0)); err != nil {
			t.Fatal(err)
		}
		a, err := j.dir.NewSegment(nonce, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		room := make([]byte, disk.HeadLen)
		if err := errors.Join(a.Append(typ1, append(room, payload1...)), a.Append(typ2, append(room, payload2...)), a.Close()); err != nil {
			t.Fatal(err)
		}
		err = j.recover()
		if _, lost := errors.AsType[*disk.Unproven](err); err != nil && !lost {
			t.Error(err)
		}
		if err == nil {
			if got, want := int64(j.Mark()), a.Size-disk.SegmentHead; got != want {
				t.Errorf("it ends at %d, want %d", got, want)
			}
			if err := j.Replay(func([]byte) error { return nil }); err != nil {
				t.Error(err)
			}
		}
		kill(t, j)
	})
}
