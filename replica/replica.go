package replica

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/zeebo/xxh3"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/prefetch"
	"github.com/attunekv/attune/kvadapter"
)

// Sentinel errors of reads.
var (
	// ErrGone is returned by Get when the index has the item and the backend
	// does not have its bytes. The engine removes exactly the version in the
	// Item that came with the error, and the read is a miss.
	ErrGone = errors.New("bytes lost by the backend")
	// ErrBusy is returned by Get when the key was overwritten faster than its
	// bytes could be fetched, several times in a row. Nothing is wrong with it.
	ErrBusy = errors.New("key is being overwritten too fast to be read")
)

// Sentinel errors of what goes from replica to replica.
var (
	// ErrCutting is returned by Cut while an earlier Cut is open. Close that
	// first, or try again later.
	ErrCutting = errors.New("a cut of the index is open already")
	// ErrCutDone is returned by WriteTo when the Cut was closed, or written
	// before. A new Cut can be.
	ErrCutDone = errors.New("cut of the index is closed or was written already")
	// ErrCorrupt is returned by Install and Import for bytes that WriteTo and
	// Export did not write, or that changed on the way. They must be sent again.
	ErrCorrupt = errors.New("corrupt stream")
)

// maxReads is how many times Get fetches bytes that turn out to be of another
// version than the index names by then.
const maxReads = 8

// Options say what a Replica is made of.
type Options struct {
	// Backend keeps the bytes. Its owner closes it, after the replica's last use.
	Backend kvadapter.Backend
	// MemoryLimit is what Over compares with: the bytes of the index plus what a
	// [kvadapter.Memory] uses; 0 is no limit.
	MemoryLimit int64
	// Gen is the generation of the cluster's data, part of every stamp. Bytes of
	// another generation are as good as lost.
	Gen uint32
	// Seed keys the hash. It must be secret where strangers choose keys, and
	// equal on all nodes of a cluster.
	Seed uint64
	// HotCache is how many bytes of memory keep values that are read often, where
	// the backend is not in this process. They do not count against MemoryLimit; 0
	// keeps none.
	HotCache int64
	// Tombstones keeps entries of the dead until Collect drops them. Changes are
	// then made by Merge and MergeAll, which need it, and never by Apply.
	Tombstones bool
}

// Replica is one node's copy of a shard. Its methods may be called concurrently.
type Replica struct {
	backend kvadapter.Backend
	memory  kvadapter.Memory // backend, if it is one; else nil
	hot     *hot             // nil for none
	limit   int64
	gen     uint32
	seed    uint64
	tombs   bool // Options.Tombstones
	durable durable

	// start and began are one moment, so that the clock below is monotonic.
	start time.Time
	began int64

	floor    atomic.Uint64 // an entry whose version is not above it is dead
	index    atomic.Int64  // bytes the index takes
	items    atomic.Int64  // entries that have bytes
	bare     atomic.Int64  // entries that have none
	expiring atomic.Int64  // items with an expiry
	cutting  atomic.Bool   // a Cut is open
	saving   atomic.Bool   // a Save is

	collected atomic.Uint64 // the cut: what is not above it and not here is dead
	freed     atomic.Uint64 // the latest moment Free was told, an entry's time

	sweep   pass // of Dead and Free
	hunt    pass // of Victim, where live items are rare
	collect struct {
		pass
		cut attune.Version // that this pass is about
	}

	segs [segments]segment
}

// Open returns an empty Replica over o.Backend. It starts nothing.
func Open(o Options) *Replica {
	r := &Replica{
		backend: o.Backend, limit: o.MemoryLimit, gen: o.Gen, seed: o.Seed, tombs: o.Tombstones,
		start: time.Now(),
	}
	r.began = max(r.start.UnixMilli(), epoch)
	if r.memory, _ = o.Backend.(kvadapter.Memory); r.memory == nil {
		r.hot = newHot(o.HotCache)
	}
	r.durable.init(o.Backend)
	total := int64(unsafe.Sizeof(*r))
	for i := range r.segs {
		s := &r.segs[i]
		s.heads = make([]uint32, minHeads)
		s.stage = make(map[attune.KeyHash]*staged)
		s.counted = s.memory()
		total += s.counted
	}
	r.index.Store(total)
	r.sweep.pos = ^uint32(0)
	r.hunt.pos = ^uint32(0)
	return r
}

// Hash is the hash a key of this shard goes by.
func (r *Replica) Hash(text []byte) attune.KeyHash {
	h := xxh3.Hash128Seed(text, r.seed)
	return attune.KeyHash{h.Hi, h.Lo}
}

// Seed is what the hash is keyed by.
func (r *Replica) Seed() uint64 { return r.seed }

// segment of a hash: by the top of its first word; buckets use the second.
func (r *Replica) segment(h attune.KeyHash) *segment { return &r.segs[h[0]>>56] }

// now is this replica's own clock, for recency and statistics: an entry's time.
// What a client is told never depends on it.
func (r *Replica) now() uint64 {
	return since(r.began + time.Since(r.start).Milliseconds())
}

// lookup finds a key's entry, unless it is dead or a flush killed it.
func (r *Replica) lookup(s *segment, h attune.KeyHash) *entry {
	e, _ := s.find(h)
	if e == nil || uint64(e.version) <= r.floor.Load() || e.dead() {
		return nil
	}
	return e
}

func (r *Replica) bump(e *entry) {
	e.use(r.now())
	e.meta |= metaFetched
}

// Peek returns what the index knows of a key, without its Value: the zero Item
// if nothing. The item may be expired. With bump the item counts as read; the
// returned Item is as it was before.
func (r *Replica) Peek(key attune.Key, bump bool) attune.Item {
	s := r.segment(key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := r.lookup(s, key.Hash)
	if e == nil {
		return attune.Item{}
	}
	it := e.item()
	if bump {
		r.bump(e)
	}
	return it
}

// Get is Peek with the Value. One shorter than [kvadapter.Large] is appended to
// buf[:0], growing it if it must; a larger one is shared and must not be
// modified. An absent key is the zero Item and no error. Errors: [ErrGone], and
// those of the backend, with the Item as indexed; [ErrBusy].
func (r *Replica) Get(ctx context.Context, key attune.Key, buf []byte, bump bool) (attune.Item, error) {
	if r.memory != nil {
		return r.load(ctx, key, buf, bump)
	}
	it, here := r.find(key, bump, bump)
	if here {
		if n := len(it.Value); n > 0 && n < kvadapter.Large {
			it.Value = append(buf[:0], it.Value...)
		}
		return it, nil
	}
	rec, err := r.backend.Get(ctx, key, buf)
	return r.verify(ctx, key, it, rec, err, buf, bump)
}

// load is Get from memory in this process.
func (r *Replica) load(ctx context.Context, key attune.Key, buf []byte, bump bool) (attune.Item, error) {
	s := r.segment(key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := r.lookup(s, key.Hash)
	if e == nil {
		return attune.Item{}, nil
	}
	it := e.item()
	if bump {
		r.bump(e)
	}
	if e.bare() {
		it.Value = []byte{}
		return it, nil
	}
	rec, err := r.memory.Get(ctx, key, buf)
	if err == nil && !r.wrote(&it, &rec) || errors.Is(err, kvadapter.ErrNotFound) {
		s.gone++
		err = ErrGone
	}
	if err == nil {
		it.Value = notNil(rec.Value)
	}
	return it, err
}

// Here is Get for as much as can be said without asking a backend outside this
// process: it has its Value, which is shared and must not be modified, or the key
// is absent. If not ok, the bytes must be fetched; then the item does not count as
// read yet.
func (r *Replica) Here(key attune.Key, bump bool) (it attune.Item, ok bool) {
	return r.find(key, bump, false)
}

// find returns what the index knows of a key, and whether that is all that there
// is to say: its bytes, if it has any, are in the stage or the cache of hot ones.
// It counts as read then, if bump is set; and if the bytes are elsewhere, with
// fetch.
func (r *Replica) find(key attune.Key, bump, fetch bool) (it attune.Item, here bool) {
	s := r.segment(key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := r.lookup(s, key.Hash)
	if e == nil {
		return attune.Item{}, true
	}
	it = e.item()
	if e.bare() {
		it.Value = []byte{}
	} else {
		it.Value = r.near(s, &it, key.Hash)
	}
	here = it.Value != nil
	if here && bump || fetch {
		r.bump(e)
	}
	return it, here
}

// near returns it's bytes if they need not be fetched, else nil. They are shared.
func (r *Replica) near(s *segment, it *attune.Item, h attune.KeyHash) []byte {
	if v := s.value(it, h); v != nil {
		return v
	}
	if r.hot == nil {
		return nil
	}
	if rec, ok := r.hot.get(h); ok && r.wrote(it, &rec) {
		s.hotHits++
		return notNil(rec.Value)
	}
	s.hotMisses++
	return nil
}

// verify judges what a backend outside this process answered when it was asked
// for it's bytes, and asks again if that settles nothing: the index may have
// moved on meanwhile, so a stamp that differs proves nothing until it is compared
// with the entry as it is then.
//
// What is read again, read says whether it is, is kept among the hot.
func (r *Replica) verify(ctx context.Context, key attune.Key, it attune.Item, rec kvadapter.Record, err error, buf []byte, read bool) (attune.Item, error) {
	for range maxReads {
		found := err == nil
		if !found && !errors.Is(err, kvadapter.ErrNotFound) {
			return it, err
		}
		if found && r.wrote(&it, &rec) {
			it.Value = notNil(rec.Value)
			if read && it.Fetched {
				r.hot.add(key.Hash, rec)
			}
			return it, nil
		}
		if it, err = r.recheck(key, it.Stored, rec, found, buf); it.Value != nil || it.Version == 0 || err != nil {
			return it, err
		}
		rec, err = r.backend.Get(ctx, key, buf)
	}
	return attune.Item{}, ErrBusy
}

// recheck looks at the index again after the backend had other bytes for a key
// than those stored at was. It returns the item with its Value if that is at
// hand now, the zero Item if the key is gone, an Item without Value if the bytes
// must be fetched again, and ErrGone if they are lost.
func (r *Replica) recheck(key attune.Key, was attune.Version, rec kvadapter.Record, found bool, buf []byte) (attune.Item, error) {
	s := r.segment(key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := r.lookup(s, key.Hash)
	if e == nil {
		return attune.Item{}, nil
	}
	it := e.item()
	if e.bare() {
		it.Value = []byte{}
		return it, nil
	}
	if found && r.wrote(&it, &rec) {
		it.Value = notNil(rec.Value)
		return it, nil
	}
	if it.Stored == was {
		s.gone++
		return it, ErrGone
	}
	if v := s.value(&it, key.Hash); v != nil && len(v) < kvadapter.Large {
		it.Value = notNil(append(buf[:0], v...))
	} else {
		it.Value = v
	}
	return it, nil
}

// Prefetch has the processor fetch what a lookup of key will touch first. It is
// worth its locks when other lookups come in between.
func (r *Replica) Prefetch(key attune.Key) {
	s := r.segment(key.Hash)
	s.mu.Lock()
	if link := s.heads[s.bucket(key.Hash)]; link != 0 {
		prefetch.Line(unsafe.Pointer(s.at(link - 1)))
	}
	s.mu.Unlock()
	if r.memory != nil {
		r.memory.Prefetch(key)
	}
}

// GetMulti is Get for many keys, in one round trip if the backend can: items[i]
// and errs[i] answer keys[i]. Values may be shared, with the replica too, and must
// not be modified.
func (r *Replica) GetMulti(ctx context.Context, keys []attune.Key, items []attune.Item, errs []error, bump bool) {
	if _, ok := r.backend.(kvadapter.Batcher); !ok || r.memory != nil || len(keys) == 1 {
		for i, key := range keys {
			items[i], errs[i] = r.Get(ctx, key, nil, bump)
		}
		return
	}
	var missing []attune.Key
	var place []int
	for i, key := range keys {
		var here bool
		if items[i], here = r.find(key, bump, bump); !here {
			missing, place = append(missing, key), append(place, i)
		}
		errs[i] = nil
	}
	if len(missing) == 0 {
		return
	}
	recs, failed := make([]kvadapter.Record, len(missing)), make([]error, len(missing))
	r.fetch(ctx, missing, recs, failed)
	for j, i := range place {
		items[i], errs[i] = r.verify(ctx, keys[i], items[i], recs[j], failed[j], nil, bump)
	}
}

// fetch gets what the backend has of keys, in one round trip if it can.
func (r *Replica) fetch(ctx context.Context, keys []attune.Key, recs []kvadapter.Record, errs []error) {
	if b, ok := r.backend.(kvadapter.Batcher); ok {
		b.GetMulti(ctx, keys, recs, errs)
		return
	}
	for i, key := range keys {
		recs[i], errs[i] = r.backend.Get(ctx, key, nil)
	}
}

func (r *Replica) stamp(it *attune.Item) kvadapter.Stamp {
	return kvadapter.Stamp{Gen: r.gen, Version: it.Stored}
}

// wrote reports whether rec is what the change that stored it wrote. The size
// is compared because who appends to an item in a shared store, behind the
// replica's back, leaves the stamp alone.
func (r *Replica) wrote(it *attune.Item, rec *kvadapter.Record) bool {
	return rec.Stamp == r.stamp(it) && len(rec.Value) == it.Size
}

// notNil marks an empty value as found.
func notNil(v []byte) []byte {
	if v == nil {
		return []byte{}
	}
	return v
}

// Immediate reports whether the backend is in this process: then Settle never
// waits, and Get never fails for want of a server.
func (r *Replica) Immediate() bool { return r.memory != nil }
