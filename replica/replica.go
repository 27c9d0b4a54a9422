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
const maxReads = 64

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
	// Start is when the time that Merge is told began; zero is now.
	Start time.Time
}

// Replica is one node's copy of a shard. Its methods may be called concurrently.
type Replica struct {
	backend kvadapter.Backend
	memory  kvadapter.Memory    // backend, if it is one; else nil
	hot     atomic.Pointer[hot] // nil for none
	limit   atomic.Int64
	gen     uint32
	seed    uint64
	tombs   bool // Options.Tombstones
	durable durable
	bounded kvadapter.Bounded     // backend, if it is one; else nil
	batches kvadapter.BatchWriter // the same

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
	passed    atomic.Uint64 // what Passed told; 0 nothing

	watches atomic.Pointer[[]*Watch] // nil while nobody watches

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
		backend: o.Backend, gen: o.Gen, seed: o.Seed, tombs: o.Tombstones,
		start: o.Start,
	}
	if r.start.IsZero() {
		r.start = time.Now()
	}
	r.began = max(r.start.UnixMilli(), epoch)
	r.memory, _ = o.Backend.(kvadapter.Memory)
	r.Resize(o.MemoryLimit, o.HotCache)
	r.durable.init(o.Backend)
	r.bounded, _ = o.Backend.(kvadapter.Bounded)
	r.batches, _ = o.Backend.(kvadapter.BatchWriter)
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
	return r.after(time.Since(r.start))
}

func (r *Replica) after(d time.Duration) uint64 { return since(r.began + d.Milliseconds()) }

// Passed tells how late it is, in unix milliseconds, where items expire by another clock
// than this machine's: else one that has expired would count as evicted.
func (r *Replica) Passed(now int64) { r.passed.Store(since(now)) }

// expired reports whether e has expired, for statistics: by what Passed told, or at now.
func (r *Replica) expired(e *entry, now uint64) bool {
	if told := r.passed.Load(); told != 0 {
		now = told
	}
	return e.expired(now)
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
	var got Got
	for range maxReads {
		it, ok, err := r.Here(key, &got, bump)
		if ok {
			n := len(it.Value)
			fetched := n > 0 && len(got.rec.Value) > 0 && &it.Value[0] == &got.rec.Value[0]
			if n > 0 && n < kvadapter.Large && !fetched {
				it.Value = append(buf[:0], it.Value...)
			}
			return it, err
		}
		got.ask(&it)
		got.rec, got.err = r.backend.Get(ctx, key, buf)
	}
	return attune.Item{}, ErrBusy
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
		s.lost(err == nil)
		err = ErrGone
	}
	if err == nil {
		it.Value = notNil(rec.Value)
	}
	return it, err
}

// Got is what a backend outside this process had of a key when Bring asked it, for
// the bytes that the index named before.
type Got struct {
	stored attune.Version // what the index named; 0: nothing was asked for
	size   int
	rec    kvadapter.Record
	err    error
}

// Size is how many bytes were, or are to be, asked for.
func (g *Got) Size() int { return g.size }

func (g *Got) ask(it *attune.Item) { *g = Got{stored: it.Stored, size: it.Size} }

// Fail says why nothing was asked.
func (g *Got) Fail(err error) { g.err = err }

// Here is Get for as much as can be said without waiting for a backend outside this
// process. ok says that this is the answer: key is absent, or its bytes are in the
// stage or among the hot ones, or they are what got has, or got says that they are
// lost, or why they could not be had. A Value is shared and must not be modified.
// If not ok, they must be fetched: the item does not count as read yet, and another
// Here with what was got then is the answer, unless the key was written meanwhile.
//
// So what is fetched is bytes and no more: which of them are an answer the index
// says when it is given, and reads that are answered in order see things in order.
func (r *Replica) Here(key attune.Key, got *Got, bump bool) (it attune.Item, ok bool, err error) {
	s := r.segment(key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := r.lookup(s, key.Hash)
	if e == nil {
		return attune.Item{}, true, nil
	}
	it = e.item()
	switch it.Value = s.value(&it, key.Hash); {
	case e.bare():
		it.Value = []byte{}
	case it.Value != nil:
	case r.isHot(&it, key.Hash):
		s.hotHits++
	case got.stored != 0 && got.err == nil && r.wrote(&it, &got.rec):
		it.Value = notNil(got.rec.Value)
		s.hotMisses++
		if h := r.hot.Load(); bump && (it.Fetched || h.roomy()) {
			h.add(key.Hash, got.rec)
		}
	case got.stored != it.Stored:
		return it, false, nil
	case got.err != nil && !errors.Is(got.err, kvadapter.ErrNotFound):
		return it, true, got.err
	default:
		s.lost(got.err == nil)
		err = ErrGone
	}
	if bump {
		r.bump(e)
	}
	return it, true, err
}

// isHot sets it's Value if it is among the hot ones.
func (r *Replica) isHot(it *attune.Item, h attune.KeyHash) bool {
	rec, ok := r.hot.Load().get(h)
	if ok = ok && r.wrote(it, &rec); ok {
		it.Value = notNil(rec.Value)
	}
	return ok
}

// Lacks reports whether the bytes of a key must be fetched before it can be read,
// and notes in got which.
func (r *Replica) Lacks(key attune.Key, got *Got) bool {
	s := r.segment(key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := r.lookup(s, key.Hash)
	if e == nil || e.bare() {
		return false
	}
	it := e.item()
	if s.value(&it, key.Hash) != nil || r.isHot(&it, key.Hash) {
		return false
	}
	got.ask(&it)
	return true
}

// Bring asks the backend for what [Replica.Lacks] noted in got, in one round trip
// if it can: *got[i] is of keys[i]. A Value may be shared with those of equal keys.
func (r *Replica) Bring(ctx context.Context, keys []attune.Key, got []*Got) {
	recs, errs := make([]kvadapter.Record, len(keys)), make([]error, len(keys))
	r.fetch(ctx, keys, recs, errs)
	for i := range keys {
		got[i].rec, got[i].err = recs[i], errs[i]
	}
}

// fetch gets what the backend has of keys, in one round trip if it can.
func (r *Replica) fetch(ctx context.Context, keys []attune.Key, recs []kvadapter.Record, errs []error) {
	if b, ok := r.backend.(kvadapter.Batcher); ok && len(keys) > 1 {
		b.GetMulti(ctx, keys, recs, errs)
		return
	}
	for i, key := range keys {
		recs[i], errs[i] = r.backend.Get(ctx, key, nil)
	}
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
