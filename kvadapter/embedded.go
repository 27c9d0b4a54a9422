package kvadapter

import (
	"context"
	"fmt"
	"slices"
	"unsafe"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/prefetch"
)

// maxKey is the longest key the memcache protocol has, in bytes.
const maxKey = 250

// embedded keeps records in the memory of this process: see the package
// comment. It forgets nothing by itself, neither evicts nor expires; whoever
// puts records watches Used and deletes.
//
// Locks are taken in this order: drainer, shard, class, pool.
type embedded struct {
	pool
	drain  drainer
	shards [numShards]shard
}

var (
	_ Memory  = (*embedded)(nil)
	_ Loader  = (*embedded)(nil)
	_ Scanner = (*embedded)(nil)
	_ Statter = (*embedded)(nil)
)

func newEmbedded() *embedded {
	s := new(embedded)
	s.pool.init()
	for i := range s.shards {
		s.shards[i].init()
	}
	return s
}

// Get implements Backend. It allocates only if buf is too short.
func (s *embedded) Get(ctx context.Context, key attune.Key, buf []byte) (Record, error) {
	if ctx.Err() != nil {
		return Record{}, context.Cause(ctx)
	}
	hash := key.Hash[1]
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	h, _ := s.findLocked(sh, hash, key.Text)
	if h == 0 {
		return Record{}, ErrNotFound
	}
	return s.readLocked(sh, s.chunk(h), buf), nil
}

// Load implements Loader. It allocates only if buf is too short.
func (s *embedded) Load(key attune.KeyHash, buf []byte) (text []byte, rec Record, ok bool) {
	hash := key[1]
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	h, _ := s.findLocked(sh, hash, nil)
	if h == 0 {
		return buf[:0], Record{}, false
	}
	b := s.chunk(h)
	n, size := int(b[offKind]), 0
	if b[offFlags]&flagLarge == 0 {
		size = sh.sizeLocked(b)
	}
	text = append(slices.Grow(buf[:0], n+size), b[offKey:offKey+n]...)
	return text, s.readLocked(sh, b, text[n:]), true
}

// Put implements Backend. A record that takes the same chunks as the one before
// it overwrites it in place.
func (s *embedded) Put(ctx context.Context, key attune.Key, rec Record) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if n := len(key.Text); n < 1 || n > maxKey {
		return fmt.Errorf("%w: key of %d bytes, not 1 to %d", ErrTooLarge, n, maxKey)
	}
	if err := s.put(key, rec); err != nil {
		return err
	}
	s.tidy()
	return nil
}

func (s *embedded) put(key attune.Key, rec Record) error {
	hash := key.Hash[1]
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.count == 0 {
		sh.gen = rec.Stamp.Gen
	}
	sp := s.shape(len(key.Text), len(rec.Value), rec.Stamp.Gen != sh.gen)
	old, prev := s.findLocked(sh, hash, key.Text)
	if old != 0 && s.shapeOf(s.chunk(old)) == sp {
		s.writeLocked(sh, old, rec)
		return nil
	}
	h := s.newRecordLocked(sh, sp, hash, key.Text)
	if h == 0 {
		return fmt.Errorf("%w: all %d GiB it can address are in use", ErrFull, pageSize<<(32-slotBits)>>30)
	}
	s.writeLocked(sh, h, rec)
	if old == 0 {
		s.insertLocked(sh, hash, h)
		return nil
	}
	setNext(s.chunk(h), next(s.chunk(old)))
	s.relinkLocked(sh, hash, prev, h)
	s.freeRecordLocked(sh, old)
	return nil
}

// Delete implements Backend. It needs only the key's hash.
func (s *embedded) Delete(ctx context.Context, key attune.Key) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.delete(key)
	s.tidy()
	return nil
}

func (s *embedded) delete(key attune.Key) {
	hash := key.Hash[1]
	sh := s.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if h, prev := s.findLocked(sh, hash, key.Text); h != 0 {
		s.removeLocked(sh, hash, h, prev)
		s.freeRecordLocked(sh, h)
	}
}

// Prefetch implements Memory: the first chunk of key's bucket, as far as a short
// record reaches.
func (s *embedded) Prefetch(key attune.Key) {
	hash := key.Hash[1]
	sh := s.shard(hash)
	sh.mu.Lock()
	if h := *sh.head(sh.bucketLocked(hash)); h != 0 {
		const line = 64
		b := s.chunk(h)
		for at := 0; at < min(len(b), 4*line); at += line {
			prefetch.Line(unsafe.Pointer(&b[at]))
		}
	}
	sh.mu.Unlock()
}

// Used implements Memory.
func (s *embedded) Used() int64 { return s.used.Load() }

// Scan implements Scanner. A record that is there throughout is listed once; fn
// may call the store, and may keep key only until it returns.
func (s *embedded) Scan(ctx context.Context, fn func(key []byte, stamp Stamp, size int) bool) error {
	const batch = 128 // records copied under one hold of a shard's lock, or a few more
	type entry struct {
		end   int // of the key in text
		stamp Stamp
		size  int
	}
	var entries []entry
	var text []byte
	for i := range s.shards {
		sh := &s.shards[i]
		for cursor := uint64(0); ; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			entries, text = entries[:0], text[:0]
			sh.mu.Lock()
			for ok := true; ok && len(entries) < batch; ok = cursor != 0 {
				cursor = s.sweepLocked(sh, cursor, func(b []byte) {
					text = append(text, b[offKey:offKey+int(b[offKind])]...)
					entries = append(entries, entry{len(text), sh.stampLocked(b), sh.sizeLocked(b)})
				})
			}
			sh.mu.Unlock()
			start := 0
			for _, e := range entries {
				if !fn(text[start:e.end:e.end], e.stamp, e.size) {
					return nil
				}
				start = e.end
			}
			if cursor == 0 {
				break
			}
		}
	}
	return nil
}

// Stats implements Statter.
func (s *embedded) Stats() []Stat {
	var records, larges int64
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		records += int64(sh.count)
		larges += int64(len(sh.larges))
		sh.mu.Unlock()
	}
	s.pool.mu.Lock()
	spare := int64(len(s.spare))
	s.pool.mu.Unlock()
	s.drain.mu.Lock()
	moved := s.drain.moved
	s.drain.mu.Unlock()
	return []Stat{
		{"records", records},
		{"large_records", larges},
		{"bytes_used", s.used.Load()},
		{"bytes_taken", s.taken.Load()},
		{"pages", s.pages.Load()},
		{"pages_spare", spare},
		{"chunks_moved", moved},
	}
}

// Close implements Backend. The memory goes with the last reference to it.
func (s *embedded) Close() error { return nil }
