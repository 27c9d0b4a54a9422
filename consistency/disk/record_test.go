package disk

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func record(b []byte, typ byte, seed uint32, payload string) []byte {
	rec := append(make([]byte, HeadLen), payload...)
	seal(rec, typ, seed, int64(len(b)))
	return append(b, rec...)
}

// Whatever a file holds: records end at the first bad one, those before it are as
// they would be written, and memory is only taken for what is there.
func FuzzRecords(f *testing.F) {
	const seed = 7
	b := record(nil, TypeBatch, seed, "one")
	b = record(b, typeChunk, seed, "and another")
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add(append(bytes.Clone(b), make([]byte, 40)...))
	f.Add([]byte{0xff, 0xff, 0xff, 0x3f, 0, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRecords(bytes.NewReader(b), int64(len(b)), seed, MaxRecord)
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
				if _, _, err := r.next(); !errors.Is(err, ErrBad) {
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
	b := record(nil, TypeBatch, 7, "one")
	for _, c := range []struct {
		seed uint32
		b    []byte
	}{{8, b}, {7, append(bytes.Clone(b), b...)}} {
		r := newRecords(bytes.NewReader(c.b), int64(len(c.b)), c.seed, MaxRecord)
		var err error
		for err == nil {
			_, _, err = r.next()
		}
		if !errors.Is(err, ErrBad) {
			t.Error(err)
		}
	}
}

// A record is found behind damage at any distance, across the borders of what is
// read at a time.
func TestHeadBehind(t *testing.T) {
	for _, gap := range []int{0, 1, 100, readAhead - HeadLen, readAhead - HeadLen + 1, readAhead - 1, readAhead, 2*readAhead + 5} {
		for _, behind := range []bool{false, true} {
			b := bytes.Repeat([]byte{1, 0, 0}, gap)[:gap]
			if behind {
				b = record(b, TypeBatch, 7, "x")
			}
			if got, err := headBehind(bytes.NewReader(b), 0, int64(len(b)), 7); got != behind || err != nil {
				t.Errorf("behind %d bytes: %v, %v", gap, got, err)
			}
		}
	}
}

func FuzzIdentity(f *testing.F) {
	for _, c := range []Charter{
		{Format: Raft, Nonce: 1, Sync: OS, boot: "boot", ID: me},
		{Format: Journal, Nonce: 1, Sync: OS, boot: "boot", ID: me},
		{Format: Journal, Nonce: 1, Sync: Always, Closed: true, End: 9, ID: me},
	} {
		f.Add(c.encode()[HeadLen:])
	}
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, format := range []Format{Raft, Journal} {
			var c Charter
			if c.decode(b, format) == nil && (c.Format != format || !bytes.Equal(c.encode()[HeadLen:], b)) {
				t.Fatal("not written again as read")
			}
		}
	})
}
