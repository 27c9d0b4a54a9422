package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/zeebo/xxh3"

	"github.com/attunekv/attune"
)

// An index on its way to another replica, in little endian:
//
//	1   indexFormat
//	8   floor
//	    blocks: 4 count, 1 to blockLen; that many entries
//	4   0: the end
//	8   count of all entries
//	4   CRC-32C of everything before
//
//	entry: 16 hash  8 version  8 stored  8 cas  8 meta  4 flags  4 size  4 used
//
// Counts are of a block, so that a reader allocates for what it has read and
// never for what it is told. Nothing depends on how the index is divided.
const (
	indexFormat = 1
	entryLen    = 64 - 4 // without the link
	blockLen    = cutPages * pageLen

	// What Decide and the protocols let into an index at all.
	maxKey   = 250
	maxValue = 128 << 20
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func (e *entry) encode(b *[entryLen]byte) {
	le.PutUint64(b[0:], e.hash[0])
	le.PutUint64(b[8:], e.hash[1])
	le.PutUint64(b[16:], uint64(e.version))
	le.PutUint64(b[24:], uint64(e.stored))
	le.PutUint64(b[32:], e.cas)
	meta := e.meta &^ metaFetched
	if !e.dead() {
		meta &^= metaBare // freed here is not freed there
	}
	le.PutUint64(b[40:], meta)
	le.PutUint32(b[48:], e.flags)
	le.PutUint32(b[52:], e.size)
	le.PutUint32(b[56:], e.used)
}

// decode takes dead entries only if told that there may be some.
func (e *entry) decode(b *[entryLen]byte, tombs bool) error {
	*e = entry{
		hash:    attune.KeyHash{le.Uint64(b[0:]), le.Uint64(b[8:])},
		version: attune.Version(le.Uint64(b[16:])),
		stored:  attune.Version(le.Uint64(b[24:])),
		cas:     le.Uint64(b[32:]),
		meta:    le.Uint64(b[40:]),
		flags:   le.Uint32(b[48:]),
		size:    le.Uint32(b[52:]),
		used:    le.Uint32(b[56:]),
	}
	if tombs && e.bare() {
		buried := *e
		buried.bury(e.mark(0))
		if buried.use(e.usedAt()); *e != buried {
			return fmt.Errorf("%w: a dead entry that is not empty", ErrCorrupt)
		}
		if e.version == 0 {
			return fmt.Errorf("%w: a dead entry without a version", ErrCorrupt)
		}
		return nil
	}
	switch {
	case e.version == 0:
		return fmt.Errorf("%w: an entry without a version", ErrCorrupt)
	case e.meta&metaState&^(metaStale|metaLeased) != 0:
		return fmt.Errorf("%w: entry of unknown state %#x", ErrCorrupt, e.meta&metaState)
	case e.keyLen() > maxKey || e.size > maxValue:
		return fmt.Errorf("%w: entry with a key of %d and a value of %d bytes", ErrCorrupt, e.keyLen(), e.size)
	}
	return nil
}

// sumWriter and sumReader keep the checksum of what passed.
type sumWriter struct {
	w   io.Writer
	n   int64
	crc uint32
	buf [4]byte // as sumReader.sum
}

func (s *sumWriter) write(b []byte) error {
	s.crc = crc32.Update(s.crc, castagnoli, b)
	n, err := s.w.Write(b)
	s.n += int64(n)
	return err
}

// sum writes the checksum. It is no part of the next one, as the checksum of anything
// with its own checksum behind it is always the same.
func (s *sumWriter) sum() error {
	le.PutUint32(s.buf[:], s.crc)
	n, err := s.w.Write(s.buf[:])
	s.n += int64(n)
	return err
}

type sumReader struct {
	r   io.Reader
	crc uint32
	own bool    // checksums are part of the next: see recordFormatOwn
	sum [4]byte // here, for a slice of it on the stack would be one of the heap
}

// read fills b. An end of the stream is never expected.
func (s *sumReader) read(b []byte) error {
	if _, err := io.ReadFull(s.r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	s.crc = crc32.Update(s.crc, castagnoli, b)
	return nil
}

// check reads a checksum and compares it with that of everything before.
func (s *sumReader) check() error {
	want := s.crc
	if err := s.read(s.sum[:]); err != nil {
		return err
	}
	if !s.own {
		s.crc = want
	}
	if got := le.Uint32(s.sum[:]); got != want {
		return fmt.Errorf("%w: checksum %08x, want %08x", ErrCorrupt, got, want)
	}
	return nil
}

// Install replaces the whole index, and the floor, by what [Cut.WriteTo] wrote,
// and reads no byte more. To readers that is one moment, after all was read and
// verified; until then, and if it fails, nothing changes.
//
// The index must be newer than every change applied here: a log's snapshot is.
// Bytes stay, in the backend and on their way to it, and are answers where the
// new index names their version; Settle ends as it would have. A
// [kvadapter.Memory] loses those of keys that are no longer indexed, which
// nothing would ever remove. An open Cut stays what it is.
//
// Both indexes are in memory for a while. Errors: [ErrCorrupt], rd's;
// [io.ErrUnexpectedEOF] if it ended early.
func (r *Replica) Install(rd io.Reader) error {
	in, err := r.Prepare(rd)
	if err == nil {
		r.Swap(in)
	}
	return err
}

// Prepared is an index that was read and is not the replica's yet; afterwards,
// the one that was. Of its segments it uses what makes the index, and bytes.
type Prepared struct {
	segs     []segment
	tombs    bool // Options.Tombstones of who reads it
	floor    uint64
	items    int64
	bare     int64
	expiring int64
}

// Prepare is the part of Install that takes its time, and changes nothing.
func (r *Replica) Prepare(rd io.Reader) (*Prepared, error) {
	in, err := r.readIndex(rd)
	if err != nil {
		return nil, fmt.Errorf("index of a snapshot: %w", err)
	}
	return in, nil
}

func (r *Replica) readIndex(rd io.Reader) (*Prepared, error) {
	in := &Prepared{segs: make([]segment, segments), tombs: r.tombs}
	for i := range in.segs {
		in.segs[i].heads = make([]uint32, minHeads)
	}
	src := sumReader{r: rd}
	b := make([]byte, blockLen*entryLen)
	if err := src.read(b[:9]); err != nil {
		return nil, err
	}
	if b[0] != indexFormat {
		return nil, fmt.Errorf("%w: format %d, this version knows %d", ErrCorrupt, b[0], indexFormat)
	}
	in.floor = le.Uint64(b[1:])
	now := r.now()
	for {
		if err := src.read(b[:4]); err != nil {
			return nil, err
		}
		n := le.Uint32(b)
		if n == 0 {
			break
		}
		if n > blockLen {
			return nil, fmt.Errorf("%w: block of %d entries, at most %d are allowed", ErrCorrupt, n, blockLen)
		}
		if err := src.read(b[:n*entryLen]); err != nil {
			return nil, err
		}
		for i := range n {
			if err := in.add((*[entryLen]byte)(b[i*entryLen:]), now); err != nil {
				return nil, err
			}
		}
	}
	if err := src.read(b[:8]); err != nil {
		return nil, err
	}
	if have, n := uint64(in.items+in.bare), le.Uint64(b); n != have {
		return nil, fmt.Errorf("%w: %d entries, want %d", ErrCorrupt, have, n)
	}
	return in, src.check()
}

func (in *Prepared) add(b *[entryLen]byte, now uint64) error {
	var e entry
	if err := e.decode(b, in.tombs); err != nil {
		return err
	}
	s := &in.segs[e.hash[0]>>56]
	if old, _ := s.find(e.hash); old != nil {
		return fmt.Errorf("%w: two entries of hash %x", ErrCorrupt, e.hash)
	}
	// A peer's clock that is ahead would make its items the last to go for good.
	e.use(min(e.usedAt(), now))
	to := s.insert(e.hash)
	e.next = to.next
	*to = e
	s.bytes += e.bytes()
	if e.bare() {
		in.bare++
	} else {
		in.items++
	}
	if e.expires() != 0 {
		in.expiring++
	}
	return nil
}

// Swap is the rest of Install, once for an index. It is quick but for a
// [kvadapter.Memory] that has bytes of many keys to forget.
func (r *Replica) Swap(in *Prepared) {
	r.swap(in)
	if r.memory != nil {
		for i := range in.segs {
			r.forget(&r.segs[i], &in.segs[i])
		}
	}
	r.durable.missed.Store(true)
}

// swap exchanges the index with in.
func (r *Replica) swap(in *Prepared) {
	r.lockAll()
	defer r.unlockAll()
	for i := range r.segs {
		s, t := &r.segs[i], &in.segs[i]
		if s.part != nil {
			s.part.save.fail(ErrSaveReplaced)
		}
		if s.shadow != nil {
			for p, pg := range s.pages {
				s.shadow.keep(p, pg)
			}
		}
		s.heads, t.heads = t.heads, s.heads
		s.pages, t.pages = t.pages, s.pages
		s.n, t.n = t.n, s.n
		s.bytes, t.bytes = t.bytes, s.bytes
		r.account(s)
	}
	in.floor = r.floor.Swap(in.floor)
	in.items = r.items.Swap(in.items)
	in.bare = r.bare.Swap(in.bare)
	in.expiring = r.expiring.Swap(in.expiring)
}

// forget deletes the bytes of keys that old, the segment before, had and s does
// not, a page at a time.
func (r *Replica) forget(s, old *segment) {
	for at := uint32(0); at < old.n; at += pageLen {
		s.mu.Lock()
		for i := at; i < min(at+pageLen, old.n); i++ {
			key := attune.Key{Hash: old.at(i).hash}
			if e, _ := s.find(key.Hash); e == nil || e.dead() {
				// As in drop, it cannot fail.
				_ = r.memory.Delete(context.Background(), key)
			}
		}
		s.mu.Unlock()
	}
}

// Expiring is the number of entries that have an expiry, dead ones included.
func (r *Replica) Expiring() int64 { return r.expiring.Load() }

// Digest sums up all that is replicated: the floor, and of every entry above it
// everything but Fetched and Accessed, and with tombstones the key's length. It is equal on replicas that applied the
// same changes, in whatever order their indexes have them. It goes through the
// whole index, and means nothing if changes are applied meanwhile.
func (r *Replica) Digest() uint64 {
	var b [entryLen]byte
	floor := r.floor.Load()
	le.PutUint64(b[:], floor)
	sum := xxh3.Hash(b[:8])
	for i := range r.segs {
		s := &r.segs[i]
		for at := uint32(0); ; {
			s.mu.Lock()
			for end := min(at+sweepChunk, s.n); at < end; at++ {
				e := *s.at(at)
				if uint64(e.version) <= floor {
					continue
				}
				e.meta &^= usedMask << usedShift
				if r.tombs {
					e.meta &^= 0xff << keyShift // who has only heard of it does not know
				}
				e.encode(&b)
				sum += xxh3.Hash(b[:entryLen-4]) // used is last
			}
			last := at >= s.n
			s.mu.Unlock()
			if last {
				break
			}
		}
	}
	return sum
}
