package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/attunekv/attune"
)

// dump is the index as far as it is replicated.
func dump(r *Replica) map[attune.KeyHash]entry {
	m := map[attune.KeyHash]entry{}
	for i := range r.segs {
		s := &r.segs[i]
		s.mu.Lock()
		for j := range s.n {
			e := *s.at(j)
			e.used, e.next = 0, 0
			e.meta &^= usedMask<<usedShift | metaFetched
			m[e.hash] = e
		}
		s.mu.Unlock()
	}
	return m
}

// audit compares every maintained figure with the index itself.
func audit(t rapid.TB, r *Replica) {
	t.Helper()
	total := int64(unsafe.Sizeof(*r))
	var items, bare, size, expiring int64
	for i := range r.segs {
		s := &r.segs[i]
		s.mu.Lock()
		var bytes int64
		linked := 0
		for _, link := range s.heads {
			for ; link != 0; link = s.at(link - 1).next {
				linked++
			}
		}
		if linked != int(s.n) {
			t.Errorf("segment %d: %d entries are linked, of %d", i, linked, s.n)
		}
		for j := range s.n {
			e := s.at(j)
			bytes += e.bytes()
			if e.bare() {
				bare++
			}
			if e.expires() != 0 {
				expiring++
			}
			if found, at := s.find(e.hash); found != e || at != j || r.segment(e.hash) != s {
				t.Errorf("segment %d: entry %d is not found", i, j)
			}
		}
		if bytes != s.counters.bytes {
			t.Errorf("segment %d: %d bytes, want %d", i, s.counters.bytes, bytes)
		}
		size += bytes
		items += int64(s.n)
		total += s.memory()
		s.mu.Unlock()
	}
	st := r.Stats()
	items -= bare
	if st.Tombstones != bare {
		t.Errorf("%d tombstones, want %d", st.Tombstones, bare)
	}
	if st.Items != items || st.Bytes != size || st.IndexBytes != total || r.Expiring() != expiring {
		t.Errorf("%d items of %d bytes, %d expiring, index %d; want %d of %d, %d, %d",
			st.Items, st.Bytes, r.Expiring(), st.IndexBytes, items, size, expiring, total)
	}
}

func snapshot(t rapid.TB, r *Replica) []byte {
	t.Helper()
	c, err := r.Cut()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var b bytes.Buffer
	if n, err := c.WriteTo(&b); err != nil || n != int64(b.Len()) {
		t.Fatalf("WriteTo = %d, %v; wrote %d", n, err, b.Len())
	}
	return b.Bytes()
}

func mustInstall(t rapid.TB, r *Replica, stream []byte) {
	t.Helper()
	rd := bytes.NewReader(append(stream[:len(stream):len(stream)], "what follows"...))
	if err := r.Install(rd); err != nil {
		t.Fatal(err)
	}
	if rd.Len() != len("what follows") {
		t.Fatalf("%d bytes were left, want those that follow", rd.Len())
	}
	audit(t, r)
}

// record is a step of a log: a change, or a flush if it has no key.
type record struct {
	change  attune.Change
	applied bool
}

func (rec *record) replay(t rapid.TB, r *Replica) {
	t.Helper()
	if rec.change.None() {
		r.Flush(rec.change.Item.Version)
		return
	}
	c := rec.change
	if applied, err := r.Apply(&c); applied != rec.applied || err != nil {
		t.Fatalf("replayed %+v: %v, %v; at first %v", c, applied, err, rec.applied)
	}
}

// history makes random changes, conditional ones among them, to keys that crowd
// into two segments of many pages, and writes down what became of them.
type history struct {
	rng  *rand.Rand
	r    *Replica
	keys int
	last attune.Version
	grow int // of 10 changes that could remove, those that do not
	log  []record
}

func newHistory(seed uint64, keys int) *history {
	return &history{
		rng: rand.New(rand.NewPCG(seed, 1)), r: Open(Options{Backend: newMemory(), Gen: 3}),
		keys: keys, last: 1000, grow: 8,
	}
}

func (h *history) key(i int) attune.Key {
	x := uint64(i+1) * 0x9e3779b97f4a7c15
	return attune.Key{Text: fmt.Append(nil, "key", i), Hash: attune.KeyHash{uint64(i%2*200)<<56 | x>>8, x}}
}

func (h *history) step(t rapid.TB) {
	h.last += attune.Version(1 + h.rng.IntN(3))
	if h.rng.IntN(2000) == 0 {
		h.r.Flush(h.last - attune.Version(h.rng.IntN(1000)))
		h.log = append(h.log, record{change: attune.Change{Item: attune.Item{Version: h.r.Floor()}}})
		return
	}
	key := h.key(h.rng.IntN(h.keys))
	cur := h.r.Peek(key, h.rng.IntN(4) == 0)
	c := attune.Change{Key: key, Prior: cur.Version}
	switch h.rng.IntN(8) {
	case 0:
		c.Prior = attune.AnyVersion
	case 1:
		c.Prior = attune.Version(h.rng.Uint64N(uint64(h.last))) // decided on what never was
	}
	switch {
	case h.rng.IntN(10) >= h.grow:
		c.Item.Deleted = true
		if h.rng.IntN(2) == 0 {
			c.Key.Text = nil
		}
	case cur.Version != 0 && h.rng.IntN(3) == 0:
		c.Item = cur
		c.Item.Version, c.Item.Fetched, c.Item.Accessed = 0, false, 0
		c.Item.Leased, c.Item.Stale = h.rng.IntN(2) == 0, h.rng.IntN(2) == 0
	default:
		c.Item.Value = bytes.Repeat([]byte{byte(h.last)}, h.rng.IntN(20))
		c.Item.Size = len(c.Item.Value)
		c.Item.Flags = h.rng.Uint32()
	}
	if h.rng.IntN(3) == 0 {
		c.Item.Expires = epoch + 1 + h.rng.Int64N(maxTime)
	}
	c.Stamp(h.last)
	applied, err := h.r.Apply(&c)
	if err != nil {
		t.Fatal(err)
	}
	h.log = append(h.log, record{c, applied})
}

func (h *history) steps(t rapid.TB, n int) {
	for range n {
		h.step(t)
	}
}

// meanwhile is a writer that does something between the writes.
type meanwhile struct {
	bytes.Buffer
	do func()
}

func (m *meanwhile) Write(b []byte) (int, error) {
	m.do()
	return m.Buffer.Write(b)
}

// Whatever happens to the index while a Cut is written, it is that of its
// moment; and the log from there on leads to where its source is.
func TestCutIsOneMoment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 3000).Draw(t, "keys"))
		h.grow = rapid.IntRange(5, 10).Draw(t, "grow before")
		h.steps(t, rapid.IntRange(0, 3000).Draw(t, "before"))
		h.grow = rapid.IntRange(1, 10).Draw(t, "grow")

		want, digest, floor, position := dump(h.r), h.r.Digest(), h.r.Floor(), len(h.log)
		c, err := h.r.Cut()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		h.steps(t, rapid.IntRange(0, 2000).Draw(t, "after"))
		between := rapid.IntRange(0, 500).Draw(t, "between")
		replaced := rapid.IntRange(0, 20).Draw(t, "replaced") // before which write
		out := &meanwhile{}
		out.do = func() {
			h.steps(t, between)
			if replaced--; replaced == 0 {
				other := Open(Options{Backend: newMemory(), Gen: 3})
				for i := range h.log {
					h.log[i].replay(t, other)
				}
				mustInstall(t, h.r, snapshot(t, other))
			}
		}
		if _, err := c.WriteTo(out); err != nil {
			t.Fatal(err)
		}
		audit(t, h.r)

		copied := Open(Options{Backend: newMemory(), Gen: 3})
		mustInstall(t, copied, out.Bytes())
		if got := dump(copied); !maps.Equal(got, want) {
			t.Fatalf("%d entries, want %d, or they differ", len(got), len(want))
		}
		if copied.Digest() != digest || copied.Floor() != floor {
			t.Fatalf("digest %x, floor %d; want %x, %d", copied.Digest(), copied.Floor(), digest, floor)
		}
		for i := range h.log[position:] {
			h.log[position+i].replay(t, copied)
		}
		audit(t, copied)
		if copied.Digest() != h.r.Digest() || !maps.Equal(dump(copied), dump(h.r)) {
			t.Fatalf("the log from the cut on leads elsewhere: %v\n%v\n%+v", dump(copied), dump(h.r), h.log[position:])
		}
	})
}

// The same with real threads: the one that applies, the one that writes, and
// readers.
func TestCutWhileApplying(t *testing.T) {
	for seed := range uint64(4) {
		h := newHistory(seed, 20_000)
		h.grow = 10
		h.steps(t, 20_000)
		h.grow = 6
		want := dump(h.r)
		c, err := h.r.Cut()
		if err != nil {
			t.Fatal(err)
		}
		out := &meanwhile{do: runtime.Gosched}
		written := make(chan error)
		go func() {
			_, err := c.WriteTo(out)
			written <- err
		}()
		stop, read := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(read)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					h.r.Peek(h.key(i%h.keys), true)
				}
			}
		}()
		for done := false; !done; {
			h.steps(t, 50)
			select {
			case err := <-written:
				if err != nil {
					t.Fatal(err)
				}
				done = true
			default:
			}
		}
		close(stop)
		<-read
		c.Close()
		copied := Open(Options{Backend: newMemory()})
		mustInstall(t, copied, out.Bytes())
		if !maps.Equal(dump(copied), want) {
			t.Fatal("it is not the index of the cut")
		}
		audit(t, h.r)
	}
}

// With several threads that apply, whose order nobody wrote down: if the later
// of one thread's changes is in, so is the earlier, in whatever segments.
func TestCutOfConcurrentChanges(t *testing.T) {
	r := Open(Options{Backend: newMemory()})
	h := &history{keys: 1000}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for v := attune.Version(1); ; v++ {
			select {
			case <-stop:
				return
			default:
			}
			for i := range 8 { // each in a segment of its own
				key := h.key(i)
				key.Hash[0] = uint64(i*31)<<56 | 1
				_, _ = r.Apply(put(key, v*8+attune.Version(i), ""))
			}
		}
	}()
	for range 300 {
		copied := Open(Options{Backend: newMemory()})
		mustInstall(t, copied, snapshot(t, r))
		all := dump(copied)
		var newest attune.Version
		for _, e := range all {
			newest = max(newest, e.version)
		}
		for _, e := range all {
			if newest-e.version >= 8 {
				t.Fatalf("version %d is in the cut, and that after %d is not", newest, e.version)
			}
		}
	}
	close(stop)
	<-stopped
}

func TestCutLifecycle(t *testing.T) {
	h := newHistory(1, 3000)
	h.grow = 10
	h.steps(t, 5000)
	c, err := h.r.Cut()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.r.Cut(); !errors.Is(err, ErrCutting) {
		t.Error("a second cut:", err)
	}
	if _, err := c.WriteTo(io.Discard); err != nil {
		t.Error(err)
	}
	if n, err := c.WriteTo(io.Discard); n != 0 || !errors.Is(err, ErrCutDone) {
		t.Error("written twice:", n, err)
	}
	if _, err := h.r.Cut(); !errors.Is(err, ErrCutting) {
		t.Error("a cut that was written and not closed:", err)
	}
	c.Close()

	c, err = h.r.Cut()
	if err != nil {
		t.Fatal(err)
	}
	var later *Cut
	out := &meanwhile{}
	writes := 0
	out.do = func() {
		if writes++; writes == 2 {
			h.steps(t, 100)
			c.Close()
			if later, err = h.r.Cut(); err != nil {
				t.Fatal(err)
			}
			h.steps(t, 100)
		}
	}
	want := errors.New("disk full")
	if _, err := c.WriteTo(out); !errors.Is(err, ErrCutDone) {
		t.Error("closed meanwhile:", err)
	}
	c.Close() // again: the later one stays open
	if _, err := h.r.Cut(); !errors.Is(err, ErrCutting) {
		t.Error(err)
	}
	if _, err := later.WriteTo(failing{want}); !errors.Is(err, want) {
		t.Error(err)
	}
	later.Close()
	for i := range h.r.segs {
		if h.r.segs[i].shadow != nil || later.shadows[i].saved != nil {
			t.Fatal("a closed cut keeps pages")
		}
	}
	mustInstall(t, Open(Options{Backend: newMemory()}), snapshot(t, h.r))
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// A page that empties from its end changes in nothing before it is given back.
func TestCutKeepsPagesGivenBack(t *testing.T) {
	h := newHistory(1, 4*pageLen)
	for i := range 2 * h.keys {
		mustApply(t, h.r, put(h.key(i), attune.Version(i+1), ""))
	}
	want := dump(h.r)
	c, err := h.r.Cut()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := 2*h.keys - 1; i >= 0; i-- {
		gone := removal(&entry{hash: h.key(i).Hash, version: attune.Version(i + 1)})
		gone.Stamp(attune.Version(4*h.keys - i))
		mustApply(t, h.r, &gone)
	}
	h.last = attune.Version(5 * h.keys)
	h.steps(t, 500)
	var out bytes.Buffer
	if _, err := c.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	copied := Open(Options{Backend: newMemory()})
	mustInstall(t, copied, out.Bytes())
	if !maps.Equal(dump(copied), want) {
		t.Error("it is not the index of the cut")
	}
}

// A cut copies pages that change, once, and no others.
func TestCutCopiesWhatChanges(t *testing.T) {
	h := newHistory(1, 20_000)
	for i := range h.keys {
		mustApply(t, h.r, put(h.key(i), attune.Version(i+1), ""))
	}
	c, err := h.r.Cut()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	copies := func() (n int) {
		for i := range c.shadows {
			for _, pg := range c.shadows[i].saved {
				if pg != nil {
					n++
				}
			}
		}
		return n
	}
	for i := range h.keys { // reads, and entries beyond the cut
		h.r.Peek(h.key(i), true)
	}
	mustApply(t, h.r, put(h.key(h.keys), 1<<40, ""))
	if n := copies(); n != 0 {
		t.Errorf("%d pages were copied for nothing", n)
	}
	for v := attune.Version(1); v < 10; v++ {
		mustApply(t, h.r, put(h.key(0), 1<<41+v, ""))
		mustApply(t, h.r, put(h.key(10_000), 1<<41+v, ""))
	}
	if n := copies(); n != 2 {
		t.Errorf("%d pages were copied for changes on two", n)
	}
}

func TestDigestIsOfWhatIsReplicated(t *testing.T) {
	base := func() (*Replica, *attune.Change) {
		r := Open(Options{Backend: newMemory()})
		for i, text := range []string{"a", "b", "c"} {
			mustApply(t, r, put(keyOf(r, text), attune.Version(10+i), text))
		}
		c := put(keyOf(r, "k"), 20, "value")
		c.Item.CAS, c.Item.Flags, c.Item.Expires = 5, 6, epoch+7000
		return r, c
	}
	r, c := base()
	mustApply(t, r, c)
	digest := r.Digest()
	for name, change := range map[string]func(c *attune.Change){
		"version": func(c *attune.Change) { c.Item.Version++ },
		"stored":  func(c *attune.Change) { c.Item.Stored-- },
		"cas":     func(c *attune.Change) { c.Item.CAS++ },
		"flags":   func(c *attune.Change) { c.Item.Flags++ },
		"size":    func(c *attune.Change) { c.Item.Size++ },
		"expires": func(c *attune.Change) { c.Item.Expires++ },
		"stale":   func(c *attune.Change) { c.Item.Stale = true },
		"leased":  func(c *attune.Change) { c.Item.Leased = true },
		"hash":    func(c *attune.Change) { c.Key.Hash[1]++ },
		"key":     func(c *attune.Change) { c.Key.Text = append(c.Key.Text, 'x') },
	} {
		other, c := base()
		change(c)
		mustApply(t, other, c)
		if other.Digest() == digest {
			t.Errorf("another %s makes no difference", name)
		}
	}
	time.Sleep(2 * time.Millisecond) // so that the last access differs
	r.Peek(c.Key, true)
	if r.Digest() != digest {
		t.Error("a read makes a difference")
	}
	// What a flush killed counts no more, swept or not; the floor does.
	r.Flush(12)
	flushed := r.Digest()
	if flushed == digest {
		t.Error("a flush makes no difference")
	}
	for _, c := range r.Dead(0, 1000, nil) {
		c.Stamp(30)
		mustApply(t, r, &c)
	}
	if r.Len() != 1 || r.Digest() != flushed {
		t.Errorf("%d entries, digest %x; before the sweep %x", r.Len(), r.Digest(), flushed)
	}
}

func BenchmarkCut(b *testing.B) {
	r, _ := benchmarkKeys(b, 1_000_000)
	for b.Loop() {
		c, err := r.Cut()
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

func BenchmarkWriteTo(b *testing.B) {
	const n = 1_000_000
	r, _ := benchmarkKeys(b, n)
	for b.Loop() {
		c, _ := r.Cut()
		if _, err := c.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/entry")
}

func BenchmarkDigest(b *testing.B) {
	const n = 1_000_000
	r, _ := benchmarkKeys(b, n)
	for b.Loop() {
		r.Digest()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/entry")
}
