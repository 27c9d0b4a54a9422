package replica

import (
	"errors"
	"io"
	"sync/atomic"

	"github.com/attunekv/attune"
)

// cutPages is how many pages WriteTo takes down under one hold of a segment's
// lock: ten microseconds' work.
const cutPages = 8

// Cut is the index as it was at one moment, to be written out while it changes.
//
// It costs nothing until it must: a page of the index is copied when it is about
// to change and was not written out yet. Pages, and not whole segments: a
// segment of a large index is megabytes, and the copy is made between a client
// and its answer.
type Cut struct {
	replica *Replica
	floor   attune.Version
	shadows [segments]shadow
	taken   atomic.Bool // by WriteTo
	closed  atomic.Bool
}

// shadow is a segment as a Cut sees it, guarded by the segment's lock. It is
// the segment's as long as pages are wanted of it.
type shadow struct {
	n    uint32 // entries at the cut
	done uint32 // pages before it are written out

	// saved are pages as they were at the cut, by number; where it is nil or too
	// short the segment's own page still is. The links in both mean nothing.
	saved []*page
}

// pages is how many pages there were at the cut.
func (sh *shadow) pages() uint32 { return (sh.n + pageLen - 1) / pageLen }

// wants reports whether page p would be missed if it changed.
func (sh *shadow) wants(p uint32) bool {
	return sh.done <= p && p < sh.pages() && (sh.saved == nil || sh.saved[p] == nil)
}

// keep takes over a page that nobody will change any more.
func (sh *shadow) keep(p int, pg *page) {
	if !sh.wants(uint32(p)) {
		return
	}
	if sh.saved == nil {
		sh.saved = make([]*page, sh.pages())
	}
	sh.saved[p] = pg
}

// save is called before the entry at position i changes in what is replicated,
// or is replaced.
func (s *segment) save(i uint32) {
	if i < s.n {
		s.leaves(s.at(i))
	}
	if s.shadow == nil || i >= s.shadow.n {
		return
	}
	if p := i / pageLen; s.shadow.wants(p) {
		pg := *s.pages[p]
		s.shadow.keep(int(p), &pg)
	}
}

// lockAll stops everything: what happens until unlockAll is one moment to
// readers and writers of all keys. Nobody else ever holds two of the locks.
func (r *Replica) lockAll() {
	for i := range r.segs {
		r.segs[i].mu.Lock()
	}
}

func (r *Replica) unlockAll() {
	for i := range r.segs {
		r.segs[i].mu.Unlock()
	}
}

// Cut marks this moment: every Apply and Flush that returned is in the Cut, none
// that begins later is. It takes some ten microseconds, whatever the index holds.
// The caller must Close it. Errors: [ErrCutting].
func (r *Replica) Cut() (*Cut, error) {
	if !r.cutting.CompareAndSwap(false, true) {
		return nil, ErrCutting
	}
	c := &Cut{replica: r}
	r.lockAll()
	defer r.unlockAll()
	c.floor = r.Floor()
	for i := range r.segs {
		s := &r.segs[i]
		c.shadows[i].n = s.n
		s.shadow = &c.shadows[i]
	}
	return c, nil
}

// WriteTo writes the index as [Replica.Install] reads it, once, from any
// goroutine, while the replica is used. It implements [io.WriterTo]. Of what one
// replica alone remembers the last access goes along, so that a new one knows
// what to evict first. Errors: [ErrCutDone], w's.
func (c *Cut) WriteTo(w io.Writer) (int64, error) {
	if c.taken.Swap(true) {
		return 0, ErrCutDone
	}
	out := sumWriter{w: w}
	b := append(make([]byte, 0, 4+blockLen*entryLen), indexFormat)
	b = le.AppendUint64(b, uint64(c.floor))
	if err := out.write(b); err != nil {
		return out.n, err
	}
	var total uint64
	for i := range c.shadows {
		for {
			n, err := c.block(i, b[:cap(b)])
			if err != nil {
				return out.n, err
			}
			if n == 0 {
				break
			}
			total += uint64(n)
			if err := out.write(b[:4+n*entryLen]); err != nil {
				return out.n, err
			}
		}
	}
	b = le.AppendUint32(b[:0], 0)
	err := errors.Join(out.write(le.AppendUint64(b, total)), out.sum())
	return out.n, err
}

// block puts the next entries of segment i into b, in the order and with the
// count of the format, and returns their number: 0 if there are no more.
func (c *Cut) block(i int, b []byte) (int, error) {
	s, sh := &c.replica.segs[i], &c.shadows[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.closed.Load() {
		return 0, ErrCutDone
	}
	n := 0
	for end := min(sh.done+cutPages, sh.pages()); sh.done < end; sh.done++ {
		var pg *page
		if sh.saved != nil {
			pg, sh.saved[sh.done] = sh.saved[sh.done], nil
		}
		if pg == nil {
			pg = s.pages[sh.done]
		}
		for j := range min(pageLen, sh.n-sh.done*pageLen) {
			pg[j].encode((*[entryLen]byte)(b[4+n*entryLen:]))
			n++
		}
	}
	le.PutUint32(b, uint32(n))
	return n, nil
}

// Close ends the Cut: nothing is copied for it any more, and a WriteTo under way
// fails. Closing it again does nothing.
func (c *Cut) Close() {
	if c.closed.Swap(true) {
		return
	}
	for i := range c.shadows {
		s := &c.replica.segs[i]
		s.mu.Lock()
		s.shadow = nil
		c.shadows[i].saved = nil
		s.mu.Unlock()
	}
	c.replica.cutting.Store(false)
}
