package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

var header = Header{Node: "n1", Level: "causal", Clock: 2_000_000_000_000, Time: 2_000_000_001_000, Software: "v1"}

// records of all kinds: binary keys, no value, every flag, values larger than a block.
func records(n int) (all []Record) {
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range n {
		rec := Record{Key: fmt.Appendf(nil, "k%d\x00 \r\n\xff", i), Flags: rnd.Uint32(), Stale: i%7 == 0, Leased: i%5 == 0}
		rec.Value = bytes.Repeat([]byte{byte(i)}, rnd.IntN(300))
		switch i {
		case 3:
			rec.Value = bytes.Repeat([]byte("large"), 50_000)
		case 4:
			rec.Value = make([]byte, blockSize)
		case 5:
			rec.Value = make([]byte, blockSize-1)
		case 6:
			rec.Key = bytes.Repeat([]byte("k"), MaxKey)
		}
		if i%3 == 0 {
			rec.Expires = rnd.Int64()
		}
		all = append(all, rec)
	}
	return all
}

func write(t testing.TB, all []Record) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, &header)
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if err := w.Add(&all[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(7); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// read returns what can be read, and why no more.
func read(in io.Reader) (all []Record, r *Reader, err error) {
	if r, err = NewReader(in); err != nil {
		return nil, nil, err
	}
	for {
		var rec Record
		if err := r.Next(&rec); err != nil {
			return all, r, err
		}
		rec.Key, rec.Value = bytes.Clone(rec.Key), bytes.Clone(rec.Value)
		all = append(all, rec)
	}
}

func same(a, b *Record) bool {
	return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) &&
		a.Flags == b.Flags && a.Expires == b.Expires && a.Stale == b.Stale && a.Leased == b.Leased
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for _, n := range []int{0, 1, 8, 3000} {
		want := records(n)
		file := write(t, want)
		// What comes behind is left alone.
		in := bytes.NewReader(append(file, "more"...))
		got, r, err := read(iotest.OneByteReader(in))
		if err != io.EOF || len(got) != n || in.Len() != 4 {
			t.Fatalf("%d records, %d bytes left: %v; want %d", len(got), in.Len(), err, n)
		}
		for i := range want {
			if !same(&got[i], &want[i]) {
				t.Fatalf("record %d is %.200v, was %.200v", i, got[i], want[i])
			}
		}
		if s := r.Summary(); r.Header != header || s != (Summary{Records: int64(n), Missing: 7}) || r.Offset() != int64(len(file)) {
			t.Errorf("%+v, %+v, %d bytes", r.Header, s, r.Offset())
		}
		if err := r.Next(new(Record)); err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
	}
}

// Whatever byte is lost or changed: no record comes that was not written, and the end
// is never that of a whole snapshot.
func TestDamageIsNoticed(t *testing.T) {
	want := records(40)[7:] // of small records, so that every byte can have its turn
	file := write(t, want)
	try := func(what string, damaged []byte) {
		t.Helper()
		got, _, err := read(bytes.NewReader(damaged))
		if err == nil || err == io.EOF {
			t.Fatalf("%s: %v", what, err)
		}
		if len(got) > len(want) {
			t.Fatalf("%s: %d records", what, len(got))
		}
		for i := range got {
			if !same(&got[i], &want[i]) {
				t.Fatalf("%s: record %d is %.200v, was %.200v", what, i, got[i], want[i])
			}
		}
		for _, known := range []error{ErrNone, ErrFormat, ErrCorrupt, ErrCutOff} {
			if errors.Is(err, known) {
				return
			}
		}
		t.Fatalf("%s: %v", what, err)
	}
	for i := range len(file) {
		try(fmt.Sprint("cut at ", i), file[:i])
		bad := bytes.Clone(file)
		bad[i] ^= 1 << (i % 8)
		try(fmt.Sprint("changed at ", i), bad)
	}
	// A block that is lost, repeated or in another place has the right checksum of its
	// own, but not of what came before it.
	many := records(3000)
	file = write(t, many)
	end := len(firstLine)
	var blocks [][]byte
	for end < len(file) {
		n := headLen + int(le.Uint32(file[end+1:])) + sumLen
		blocks = append(blocks, file[end:end+n])
		end += n
	}
	want = many
	join := func(order ...int) []byte {
		all := []byte(firstLine)
		for _, i := range order {
			all = append(all, blocks[i]...)
		}
		return all
	}
	last := len(blocks) - 1
	try("lost", join(0, 2, last))
	try("twice", join(0, 1, 1, last))
	try("exchanged", join(0, 2, 1, last))
	try("no end", join(0, 1, 2))
	try("no header", join(1))
}

func TestErrorsTellWhereAndWhy(t *testing.T) {
	file := write(t, records(40)[7:])
	for _, c := range []struct {
		file []byte
		want error
		text string
	}{
		{nil, ErrNone, "not a snapshot"},
		{[]byte("hello, this is some other file"), ErrNone, `begins "hello, this is som"`},
		{[]byte("attune snapshot 2\n..."), ErrFormat, "reads format 1"},
		{[]byte("attune sn"), ErrCutOff, "after 9 bytes"},
		{file[:len(file)-1], ErrCutOff, fmt.Sprintf("after %d bytes", len(file)-1)},
		{append(bytes.Clone(file[:len(file)-1]), 0xee), ErrCorrupt, "checksum"},
	} {
		_, _, err := read(bytes.NewReader(c.file))
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%.40q: %v; want %q", c.file, err, c.text)
		}
	}
	var out bytes.Buffer
	w, err := NewWriter(&out, &header)
	if err == nil {
		err = w.Fail(errors.New("the dog ate it"))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(&out); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "the dog ate it") {
		t.Errorf("%v", err)
	}
	for _, rec := range []Record{{}, {Key: make([]byte, MaxKey+1)}} {
		if err := w.Add(&rec); err == nil {
			t.Errorf("a key of %d bytes is taken", len(rec.Key))
		}
	}
}

func TestLeft(t *testing.T) {
	h := Header{Clock: 5_000, Time: 1_000_000}
	for _, c := range []struct{ expires, left int64 }{
		{15_000, 7_000}, // 10 s at the moment, 3 s ago
		{8_000, 0},
		{1, -7_999},
		{math.MaxInt64, math.MaxInt64 - 8_000},
	} {
		if left := h.Left(&Record{Expires: c.expires}, 1_003_000); left != c.left {
			t.Errorf("expires %d: %d ms left, want %d", c.expires, left, c.left)
		}
	}
}

// FuzzReader: whatever the bytes are, reading ends, takes memory in proportion, and
// what was read to its end is what a Writer writes.
func FuzzReader(f *testing.F) {
	f.Add(write(f, records(3)))
	f.Add(write(f, nil))
	f.Add([]byte(firstLine))
	f.Fuzz(func(t *testing.T, file []byte) {
		all, r, err := read(bytes.NewReader(file))
		if err == nil {
			t.Fatal("neither an end nor an error")
		}
		if err != io.EOF {
			return
		}
		var out bytes.Buffer
		w, err := NewWriter(&out, &r.Header)
		if err != nil {
			t.Fatal(err)
		}
		for i := range all {
			if err := w.Add(&all[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(r.Summary().Missing); err != nil {
			t.Fatal(err)
		}
		again, _, err := read(&out)
		if err != io.EOF || len(again) != len(all) {
			t.Fatalf("%d records of %d, %v", len(again), len(all), err)
		}
	})
}

// FuzzRecords is of what is behind a checksum, which a fuzzer does not find.
func FuzzRecords(f *testing.F) {
	all := records(9)
	whole := write(f, all)
	f.Add(whole[len(whole)-300:])
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 'k', 'v'})
	f.Fuzz(func(t *testing.T, block []byte) {
		r := &Reader{rest: block, err: io.EOF}
		var again bytes.Buffer
		w, err := NewWriter(&again, &header)
		if err != nil {
			t.Fatal(err)
		}
		for {
			var rec Record
			if err := r.Next(&rec); err != nil {
				break
			}
			if err := w.Add(&rec); err != nil {
				t.Fatalf("a record that was read cannot be written: %v", err)
			}
		}
		if n := len(block) - len(r.rest); r.err == io.EOF && n != len(block) {
			t.Fatalf("%d bytes of %d were read", n, len(block))
		}
	})
}
