package replica

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// Sentinel errors of a Save.
var (
	// ErrSaving is returned by Save while an earlier one is open. Close that
	// first, or try again later.
	ErrSaving = errors.New("the items are being saved already")
	// ErrSaveBehind is returned by Each when items were overwritten or deleted
	// faster than they were taken, so that more of them had to be kept than the
	// limit allows. Take them faster, or when less is written.
	ErrSaveBehind = errors.New("items are overwritten faster than they are saved")
	// ErrSaveReplaced is returned by Each when Install replaced the index. A new
	// Save can be.
	ErrSaveReplaced = errors.New("the index was replaced by that of another controller")
)

const (
	// saveItems and saveBytes are how much is copied under one hold of a
	// segment's lock: ten microseconds' work.
	saveItems = 32
	saveBytes = 64 << 10
	// touchCost is about what a hash in a part's set takes, in bytes.
	touchCost = 40
	// lostMost is how many items without their bytes are noted.
	lostMost = 1 << 16
)

// Save is all items as they were at one moment, bytes included, to be taken while
// they change.
//
// An item that is about to change, and was not taken yet, is put aside first: once,
// however often it changes. What is aside is taken before anything else, so memory
// is needed only for what the taker is behind. It is bounded: see
// [ErrSaveBehind].
//
// A [Cut] copies pages of the index and would leave the bytes to be fetched later,
// when they may be gone; and it is needed by engines, which should not wait for
// whoever is saving.
type Save struct {
	replica *Replica
	loader  kvadapter.Loader // nil if bytes are outside this process
	scanner kvadapter.Scanner
	now     uint64 // an entry's time: items that expired by then are none
	floor   uint64
	limit   int64
	parts   [segments]part

	indexed int64        // items there were, expired and flushed ones included
	over    atomic.Int64 // those of them that were met
	given   int64        // items that fn got; the taker's alone

	held   atomic.Int64 // bytes that what is aside takes, and the sets of parts
	failed atomic.Bool  // err is set

	mu    sync.Mutex // guards the rest; taken under the lock of a segment
	aside []saved
	lost  map[attune.KeyHash]attune.Item // items whose bytes are not here, some of them
	err   error
}

// saved is an item with its key.
type saved struct {
	text []byte
	item attune.Item
	buf  []byte // what both are in, to be used again
}

func (s *saved) bytes() int64 { return int64(len(s.text)+len(s.item.Value)) + 128 }

// part is a segment as a Save sees it, guarded by the segment's lock.
type part struct {
	save *Save
	// pos: entries at and above it were given out, or are in touched.
	pos uint32
	// touched are keys that changed since the moment, or that need not be given out
	// for another reason.
	touched map[attune.KeyHash]struct{}
	// owed are touched items whose bytes are still in the store, and are to be read
	// before others take their place. Only if the store is outside this process.
	owed map[attune.KeyHash]attune.Item
}

// Save marks this moment: every change that was applied before is in the Save, none
// that comes later is. now, in unix milliseconds, says what has expired. limit, in
// bytes, bounds what must be kept of items that change before they are taken. The
// caller must Close it. Errors: [ErrSaving], [ErrNoScan].
func (r *Replica) Save(now, limit int64) (*Save, error) {
	sv := &Save{replica: r, now: since(now), limit: limit}
	sv.loader, _ = r.memory.(kvadapter.Loader)
	sv.scanner, _ = r.backend.(kvadapter.Scanner)
	if r.memory != nil && sv.loader == nil || r.memory == nil && sv.scanner == nil {
		return nil, ErrNoScan
	}
	if !r.saving.CompareAndSwap(false, true) {
		return nil, ErrSaving
	}
	for i := range sv.parts {
		sv.parts[i] = part{save: sv, touched: make(map[attune.KeyHash]struct{})}
	}
	r.lockAll()
	defer r.unlockAll()
	sv.floor = r.floor.Load()
	sv.indexed = r.items.Load()
	for i := range r.segs {
		s, p := &r.segs[i], &sv.parts[i]
		p.pos, s.part = s.n, p
		// What is on its way to the store may arrive behind the back of a scan.
		for h, st := range s.stage {
			if e, _ := s.find(h); e != nil && !st.delete && st.rec.Stamp.Version == e.stored {
				p.leave(s, e)
			}
		}
	}
	return sv, nil
}

// Close ends the Save: nothing is kept for it any more.
func (sv *Save) Close() {
	for i := range sv.parts {
		sv.end(i)
	}
	sv.replica.saving.Store(false)
}

// end says that no more is wanted of segment i.
func (sv *Save) end(i int) {
	s := &sv.replica.segs[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.part != nil {
		sv.held.Add(-touchCost * int64(len(s.part.touched)))
		s.part = nil
		sv.parts[i] = part{}
	}
}

// Missing is how many items were there at the moment, and not given to fn: nobody
// has brought their bytes to this replica yet, or the store has lost them. It is to
// be asked when Each has returned, and again when some of them were fetched.
func (sv *Save) Missing() int64 { return max(sv.indexed-sv.over.Load()-sv.given, 0) }

// Each calls fn for every item of the moment that has its bytes here, in no order.
// Of a store outside this process one may come more than once; it is the same
// then. Key and Value are valid until fn returns. Each ends with fn's error, and is
// called once. Errors: [ErrSaveBehind], [ErrSaveReplaced], the backend's, fn's.
func (sv *Save) Each(ctx context.Context, fn func(key []byte, it attune.Item) error) error {
	give := func(s *saved) error {
		sv.given++
		return fn(s.text, s.item)
	}
	var err error
	if sv.loader != nil {
		err = sv.walk(give)
	} else {
		err = sv.scan(ctx, give)
	}
	if err == nil {
		err = sv.giveAside(give)
	}
	return err
}

// Lacking returns those of keys whose item of the moment was not given to fn, as its
// bytes are not here, and these items without them: who can get the bytes elsewhere, of
// Stored, gives them to [Save.Give]. Each has returned. Errors: the backend's.
func (sv *Save) Lacking(ctx context.Context, keys []attune.Key) (lacking []attune.Key, items []attune.Item, err error) {
	for _, key := range keys {
		sv.mu.Lock()
		it, lost := sv.lost[key.Hash]
		sv.mu.Unlock()
		if !lost && sv.loader == nil {
			if it, lost = sv.wanted(key.Hash); lost {
				rec, err := sv.replica.backend.Get(ctx, key, nil)
				if err != nil && !errors.Is(err, kvadapter.ErrNotFound) {
					return lacking, items, err
				}
				lost = err != nil || !sv.replica.wrote(&it, &rec)
			}
		}
		if lost {
			lacking, items = append(lacking, key), append(items, it)
		}
	}
	return lacking, items, nil
}

// Give calls fn with an item of [Save.Lacking], as Each would have, once it has its
// bytes. Errors: fn's.
func (sv *Save) Give(key attune.Key, it attune.Item, fn func(key []byte, it attune.Item) error) error {
	s := sv.replica.segment(key.Hash)
	s.mu.Lock()
	if s.part != nil && s.part.save == sv {
		s.part.touch(key.Hash)
		delete(s.part.owed, key.Hash)
	}
	s.mu.Unlock()
	sv.mu.Lock()
	delete(sv.lost, key.Hash)
	sv.mu.Unlock()
	sv.given++
	return fn(key.Text, it)
}

// lose notes an item whose bytes were looked for, and are not here.
func (sv *Save) lose(h attune.KeyHash, it attune.Item) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.lost == nil {
		sv.lost = make(map[attune.KeyHash]attune.Item)
	}
	if len(sv.lost) < lostMost {
		sv.lost[h] = it
	}
}

// giveAside gives out what had to be put aside.
func (sv *Save) giveAside(give func(*saved) error) error {
	sv.mu.Lock()
	aside, err := sv.aside, sv.err
	sv.aside = nil
	sv.mu.Unlock()
	for i := range aside {
		if err != nil {
			return err
		}
		err = give(&aside[i])
		sv.held.Add(-aside[i].bytes())
		aside[i] = saved{}
	}
	return err
}

// walk goes through the index, as the store finds bytes by a hash.
func (sv *Save) walk(give func(*saved) error) error {
	var batch [saveItems]saved
	for i := range sv.parts {
		for more := true; more; {
			if err := sv.giveAside(give); err != nil {
				return err
			}
			var n int
			n, more = sv.take(i, &batch)
			for j := range n {
				if err := give(&batch[j]); err != nil {
					return err
				}
			}
		}
		sv.end(i)
	}
	return nil
}

// take copies the next items of segment i. Downwards, because a removal fills the
// hole with the last entry.
func (sv *Save) take(i int, batch *[saveItems]saved) (n int, more bool) {
	s := &sv.replica.segs[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.part
	if sv.failed.Load() {
		return 0, false
	}
	p.pos = min(p.pos, s.n)
	size := 0
	for looked := 0; p.pos > 0 && n < saveItems && size < saveBytes && looked < 4*saveItems; looked++ {
		p.pos--
		e := s.at(p.pos)
		if _, touched := p.touched[e.hash]; touched {
			continue
		}
		if sv.gone(e) {
			continue
		}
		b := &batch[n]
		if !sv.load(e, b) {
			sv.lose(e.hash, e.full())
			continue
		}
		size += len(b.text) + len(b.item.Value)
		n++
	}
	return n, p.pos > 0
}

// gone reports whether e was no item any more at the moment, and counts it.
func (sv *Save) gone(e *entry) bool {
	switch {
	case e.bare():
		return true
	case e.expired(sv.now), uint64(e.version) <= sv.floor:
		sv.over.Add(1)
		return true
	}
	return false
}

// load copies an item of a store in this process.
func (sv *Save) load(e *entry, to *saved) bool {
	text, rec, ok := sv.loader.Load(e.hash, to.buf)
	if text != nil {
		to.buf = text[:0]
	}
	it := e.full()
	if !ok || !sv.replica.wrote(&it, &rec) {
		return false
	}
	it.Value = notNil(rec.Value)
	to.text, to.item = text, it
	return true
}

// scan goes through a store outside this process, as the index has no key's text.
func (sv *Save) scan(ctx context.Context, give func(*saved) error) error {
	var to saved
	var failed error
	err := sv.scanner.Scan(ctx, func(text []byte, stamp kvadapter.Stamp, _ int) bool {
		if failed = sv.giveAside(give); failed != nil {
			return false
		}
		key := attune.Key{Text: text, Hash: sv.replica.Hash(text)}
		it, ok := sv.wanted(key.Hash)
		if !ok || stamp != sv.replica.stamp(&it) {
			return true
		}
		rec, err := sv.replica.backend.Get(ctx, key, to.buf)
		if errors.Is(err, kvadapter.ErrNotFound) || err == nil && !sv.replica.wrote(&it, &rec) {
			return true // others took their place, after these were put aside
		}
		if failed = err; failed != nil {
			return false
		}
		if len(rec.Value) < kvadapter.Large {
			to.buf = rec.Value[:0]
		}
		it.Value = notNil(rec.Value)
		to.text, to.item = text, it
		sv.paid(key.Hash)
		failed = give(&to)
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// wanted returns the item of the moment, if its bytes are still to be read.
func (sv *Save) wanted(h attune.KeyHash) (it attune.Item, ok bool) {
	s := sv.replica.segment(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if it, ok = s.part.owed[h]; ok {
		return it, true
	}
	if _, touched := s.part.touched[h]; touched {
		return it, false
	}
	e, _ := s.find(h)
	if e == nil {
		return it, false
	}
	if sv.gone(e) {
		s.part.touch(h) // once is enough
		return it, false
	}
	return e.full(), true
}

// paid says that the bytes of an item were read.
func (sv *Save) paid(h attune.KeyHash) {
	s := sv.replica.segment(h)
	s.mu.Lock()
	delete(s.part.owed, h)
	s.mu.Unlock()
}

// put puts an item aside. A lock of a segment is held.
func (sv *Save) put(it saved) {
	sv.held.Add(it.bytes())
	sv.mu.Lock()
	sv.aside = append(sv.aside, it)
	sv.mu.Unlock()
}

// fail ends the Save for a reason: the first counts.
func (sv *Save) fail(err error) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.err == nil {
		sv.err, sv.aside = err, nil
		sv.failed.Store(true)
	}
}

// leaves is called before e changes in what is replicated, is removed, or loses its
// bytes.
func (s *segment) leaves(e *entry) {
	if s.part != nil {
		s.part.leave(s, e)
	}
}

// leave puts the item aside, the first time.
func (p *part) leave(s *segment, e *entry) {
	sv := p.save
	if sv.failed.Load() {
		return
	}
	if _, touched := p.touched[e.hash]; touched {
		return
	}
	if here, i := s.find(e.hash); here == nil || i >= p.pos {
		return // given out; or unlinked already, and looked at before that
	}
	p.touch(e.hash)
	if sv.gone(e) {
		return
	}
	var aside saved
	switch {
	case sv.loader != nil:
		if !sv.load(e, &aside) {
			sv.lose(e.hash, e.full())
			return
		}
	default:
		it := e.full()
		value := s.value(&it, e.hash)
		if value == nil {
			if p.owed == nil {
				p.owed = make(map[attune.KeyHash]attune.Item)
			}
			p.owed[e.hash] = it
			return
		}
		it.Value = value
		aside = saved{text: s.stage[e.hash].key.Text, item: it}
	}
	sv.put(aside)
}

// touch says that a key is not to be given out from the index any more.
func (p *part) touch(h attune.KeyHash) {
	if _, touched := p.touched[h]; touched {
		return
	}
	p.touched[h] = struct{}{}
	if p.save.held.Add(touchCost) > p.save.limit {
		p.save.fail(ErrSaveBehind)
	}
}

// enters is called when a hash gets an entry.
func (s *segment) enters(h attune.KeyHash) {
	if s.part != nil && !s.part.save.failed.Load() {
		s.part.touch(h)
	}
}

// moves is called before the entry at position i is removed, and the last one takes
// its place.
func (s *segment) moves(i uint32) {
	p := s.part
	if p == nil || p.save.failed.Load() {
		return
	}
	p.leave(s, s.at(i))
	if last := s.n - 1; i < p.pos && last >= p.pos {
		p.touch(s.at(last).hash)
	}
}

// owing returns what a Save wants of the bytes that the store has for st's key,
// before st replaces or deletes them.
func (s *segment) owing(st *staged) (sv *Save, it attune.Item, ok bool) {
	if s.part == nil {
		return nil, it, false
	}
	it, ok = s.part.owed[st.key.Hash]
	return s.part.save, it, ok && (st.delete || st.rec.Stamp.Version != it.Stored)
}

// rescue puts aside, for a Save, bytes that are about to be replaced in the store, after
// they departed and before they are sent. If the store does not have them, or does not
// answer, nobody has them here. No lock is held.
func (r *Replica) rescue(ctx context.Context, out []sending) {
	var keys []attune.Key
	var of []*sending
	for i := range out {
		if o := &out[i]; o.save != nil {
			keys, of = append(keys, o.write.Key), append(of, o)
		}
	}
	if len(of) == 0 {
		return
	}
	recs, errs := make([]kvadapter.Record, len(keys)), make([]error, len(keys))
	r.fetch(ctx, keys, recs, errs)
	for i, o := range of {
		if errs[i] != nil {
			recs[i] = kvadapter.Record{}
		}
		s := r.segment(o.write.Key.Hash)
		s.mu.Lock()
		o.save.rescued(s, o.write.Key, o.old, recs[i])
		s.mu.Unlock()
	}
}

// rescued puts aside rec, what the store has, if it is what an owed item wrote. The
// lock of s is held.
func (sv *Save) rescued(s *segment, key attune.Key, it attune.Item, rec kvadapter.Record) {
	if s.part == nil || s.part.save != sv {
		return
	}
	if sv.replica.wrote(&it, &rec) {
		it.Value = notNil(rec.Value)
		sv.put(saved{text: key.Text, item: it})
	} else {
		sv.lose(key.Hash, it)
	}
	delete(s.part.owed, key.Hash)
}
