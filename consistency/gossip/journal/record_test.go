package journal

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
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
			if !errors.Is(err, errBad) {
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

func FuzzIdentity(f *testing.F) {
	for _, c := range []charter{{nonce: 1, sync: OS, boot: "boot", id: me}, {nonce: 1, sync: Always, closed: true, end: 9, id: me}} {
		f.Add(c.encode()[headLen:])
	}
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		var c charter
		if c.decode(b) == nil && !bytes.Equal(c.encode()[headLen:], b) {
			t.Fatal("not written again as read")
		}
	})
}

// A segment with good checksums and any payloads, as from a version with a fault:
// Open judges it, without a panic, and what it accepts can be replayed.
func FuzzSegment(f *testing.F) {
	f.Add(typeBatch, appendBatch(nil, [][]byte{[]byte("one"), nil}), typeBound, le.AppendUint64(nil, 5))
	f.Add(typeBatch, []byte{9, 9}, typeBatch, []byte{0})
	f.Add(typeHead, []byte("x"), typeEnd, []byte("x"))
	dir := newDir(f)
	j := started(f, dir, OS)
	seed := j.seed
	kill(f, j)
	name := newest(f, dir, logPrefix)
	head, _ := os.ReadFile(name)
	f.Fuzz(func(t *testing.T, typ1 byte, payload1 []byte, typ2 byte, payload2 []byte) {
		b := bytes.Clone(head)
		b = record(b, typ1, seed, string(payload1))
		b = record(b, typ2, seed, string(payload2))
		j, err := take(Options{Dir: dir, Sync: OS, BootID: "boot1"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		err = j.recover()
		if _, lost := errors.AsType[*unproven](err); err != nil && !lost {
			t.Error(err)
		}
		if err == nil {
			if got, want := int(j.Mark()), len(b)-segmentHead; got != want {
				t.Errorf("it ends at %d, want %d", got, want)
			}
			if err := j.Replay(func([]byte) error { return nil }); err != nil {
				t.Error(err)
			}
		}
		kill(t, j)
	})
}
