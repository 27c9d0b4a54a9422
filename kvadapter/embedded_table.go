package kvadapter

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"sync"
)

const (
	// numShards lets many cores in at once; an empty shard costs a kilobyte.
	numShards = 64

	// segment is how many buckets a shard's table grows and shrinks by.
	segment     = 256
	segmentCost = segment*4 + 16
)

// shard is a hash table over the records whose hash begins with the shard's
// number, and the lock over them: whoever holds mu may read and write their
// chunks, save for what offHash says.
//
// The table hashes linearly: it grows by one bucket, by splitting one, and
// shrinks the same way. So there is never a rehash to wait for, nor a table
// twice the size it need be.
type shard struct {
	mu sync.Mutex

	heads   []*[segment]handle // buckets, in segments
	buckets int
	mask    uint64 // least 2^k-1 that is no less than buckets-1
	count   int    // records

	// gen is the Stamp.Gen of every record without flagGen: that of the first
	// record put while the shard was empty. A store sees one generation in all
	// its life as a rule, so records do not pay for keeping it.
	gen uint32

	larges []large

	_ [40]byte // keeps neighbours' locks off this one's cache line
}

// large is a value kept by reference.
type large struct {
	value []byte
	at    handle // of its record, which knows its index in shard.larges
}

// shard is the one a hash belongs to: by its top bits, while buckets go by the
// low ones.
func (s *embedded) shard(hash uint64) *shard { return &s.shards[hash>>(64-6)] }

func (sh *shard) init() {
	sh.heads = []*[segment]handle{new([segment]handle)}
	sh.buckets = segment
	sh.mask = segment - 1
}

func (sh *shard) head(bucket uint64) *handle {
	return &sh.heads[bucket/segment][bucket%segment]
}

func (sh *shard) bucketLocked(hash uint64) uint64 {
	b := hash & sh.mask
	if b >= uint64(sh.buckets) {
		b &= sh.mask >> 1
	}
	return b
}

// depthLocked is how many low bits all hashes of a bucket have in common.
func (sh *shard) depthLocked(bucket uint64) int {
	half := (sh.mask + 1) / 2
	depth := bits.Len64(sh.mask)
	if bucket < half && bucket+half >= uint64(sh.buckets) {
		depth-- // not split yet
	}
	return depth
}

// findLocked finds the record of a key, and the one before it in its bucket (0
// if it is the first). Without a text the hash alone decides: 64 bits, so that
// of 10^8 records one is mistaken for another once in 10^11 such calls. Keeping
// a part of the hash costs 8 bytes a record; working it out from the text would
// tie the store to the seed its caller hashes with.
func (s *embedded) findLocked(sh *shard, hash uint64, text []byte) (h, prev handle) {
	for h = *sh.head(sh.bucketLocked(hash)); h != 0; {
		b := s.chunk(h)
		if chunkHash(b) == hash && (text == nil || bytes.Equal(b[offKey:offKey+int(b[offKind])], text)) {
			return h, prev
		}
		prev, h = h, next(b)
	}
	return 0, 0
}

// relinkLocked makes h take the place after prev in hash's bucket.
func (s *embedded) relinkLocked(sh *shard, hash uint64, prev, h handle) {
	if prev == 0 {
		*sh.head(sh.bucketLocked(hash)) = h
		return
	}
	setNext(s.chunk(prev), h)
}

// insertLocked adds a record that findLocked did not find.
func (s *embedded) insertLocked(sh *shard, hash uint64, h handle) {
	head := sh.head(sh.bucketLocked(hash))
	setNext(s.chunk(h), *head)
	*head = h
	sh.count++
	// One record to a bucket: 4 bytes a record for the table, and 1.5 chunks
	// looked at to find one. Two to a bucket would be 2 bytes and two chunks, and
	// every chunk looked at is a wait for memory.
	if sh.count > sh.buckets {
		s.splitLocked(sh)
	}
}

// removeLocked takes a record out of its bucket.
func (s *embedded) removeLocked(sh *shard, hash uint64, h, prev handle) {
	s.relinkLocked(sh, hash, prev, next(s.chunk(h)))
	sh.count--
	// Half as many records as buckets, at the most: a step below the point where
	// it grows, so that it does not go to and fro; two buckets at a time, so that
	// it keeps up.
	for n := 0; n < 2 && sh.count < sh.buckets/2 && sh.buckets > segment; n++ {
		s.mergeLocked(sh)
	}
}

// partner is the bucket that was split to make bucket, and takes it back.
func partner(bucket uint64) uint64 { return bucket &^ (1 << (bits.Len64(bucket) - 1)) }

func (s *embedded) splitLocked(sh *shard) {
	added := uint64(sh.buckets)
	if added%segment == 0 {
		sh.heads = append(sh.heads, new([segment]handle))
		s.used.Add(segmentCost)
		s.taken.Add(segmentCost)
	}
	sh.buckets++
	sh.mask = 1<<bits.Len64(added) - 1
	from, to := sh.head(partner(added)), sh.head(added)
	h := *from
	*from, *to = 0, 0
	for h != 0 {
		b := s.chunk(h)
		following := next(b)
		list := from
		if sh.bucketLocked(chunkHash(b)) == added {
			list = to
		}
		setNext(b, *list)
		*list = h
		h = following
	}
}

func (s *embedded) mergeLocked(sh *shard) {
	dropped := uint64(sh.buckets - 1)
	if first := *sh.head(dropped); first != 0 {
		into := sh.head(partner(dropped))
		last := s.chunk(first)
		for next(last) != 0 {
			last = s.chunk(next(last))
		}
		setNext(last, *into)
		*into = first
	}
	sh.buckets--
	sh.mask = 1<<bits.Len64(dropped-1) - 1
	if dropped%segment == 0 {
		end := len(sh.heads) - 1
		sh.heads[end] = nil
		sh.heads = sh.heads[:end]
		s.used.Add(-segmentCost)
		s.taken.Add(-segmentCost)
	}
}

// sweepLocked calls fn with the records of one bucket that lie at or after
// cursor, and returns where the next begins; 0 when that was the last.
//
// Cursors go through the hashes in the order of their reversed bits. There a
// bucket is one stretch, and splitting it cuts the stretch in two; so whatever
// the table does between calls, every record that stays is met exactly once.
func (s *embedded) sweepLocked(sh *shard, cursor uint64, fn func(b []byte)) uint64 {
	bucket := sh.bucketLocked(bits.Reverse64(cursor))
	for h := *sh.head(bucket); h != 0; {
		b := s.chunk(h)
		if bits.Reverse64(chunkHash(b)) >= cursor {
			fn(b)
		}
		h = next(b)
	}
	stretch := 64 - sh.depthLocked(bucket)
	return (cursor>>stretch + 1) << stretch
}

func next(b []byte) handle       { return handle(binary.LittleEndian.Uint32(b[offNext:])) }
func setNext(b []byte, h handle) { binary.LittleEndian.PutUint32(b[offNext:], uint32(h)) }
func chunkHash(b []byte) uint64  { return binary.LittleEndian.Uint64(b[offHash:]) }
