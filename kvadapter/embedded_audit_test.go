package kvadapter

import (
	"encoding/binary"
	"fmt"
)

// bound is what Memory.Used promises of the memory taken.
func (s *embedded) bound() int64 { return s.used.Load()*108/100 + 2<<20 }

// audit goes through the whole store and returns what does not add up.
func (s *embedded) audit() error {
	// What the records hold.
	held := map[handle]bool{}
	hold := func(h handle) error {
		if held[h] {
			return fmt.Errorf("chunk %#x is held twice", h)
		}
		held[h] = true
		return nil
	}
	var used, table, larges int64
	for i := range s.shards {
		sh := &s.shards[i]
		count, indexed := 0, 0
		for bucket := range uint64(sh.buckets) {
			for h := *sh.head(bucket); h != 0; h = next(s.chunk(h)) {
				b := s.chunk(h)
				count++
				if err := hold(h); err != nil {
					return err
				}
				hash := chunkHash(b)
				if s.shard(hash) != sh || sh.bucketLocked(hash) != bucket {
					return fmt.Errorf("chunk %#x is in another bucket than its hash", h)
				}
				if want := testKey(b[offKey : offKey+int(b[offKind])]).Hash[1]; hash != want {
					return fmt.Errorf("chunk %#x: hash %x, its text has %x", h, hash, want)
				}
				if b[offFlags]&flagLarge != 0 {
					indexed++
					if l := sh.larges[binary.LittleEndian.Uint32(body(b))]; l.at != h || len(l.value) < Large {
						return fmt.Errorf("chunk %#x: its large value belongs to %#x", h, l.at)
					} else {
						larges += largeCost(l.value)
					}
				}
				if b[offFlags]&flagParts == 0 {
					continue
				}
				parts := 0
				for p := handle(binary.LittleEndian.Uint32(body(b))); p != 0; p = next(s.chunk(p)) {
					parts++
					if err := hold(p); err != nil {
						return err
					}
					if pb := s.chunk(p); pb[offKind] != kindPart || chunkHash(pb) != hash {
						return fmt.Errorf("chunk %#x is not a part of %#x", p, h)
					}
				}
				if want := s.shapeOf(b).parts; parts != want {
					return fmt.Errorf("chunk %#x has %d parts, want %d", h, parts, want)
				}
			}
		}
		if count != sh.count || indexed != len(sh.larges) {
			return fmt.Errorf("shard %d: %d records, %d large; counted %d and %d", i, count, indexed, sh.count, len(sh.larges))
		}
		if count > 2*sh.buckets || len(sh.heads) != (sh.buckets+segment-1)/segment {
			return fmt.Errorf("shard %d: %d buckets in %d segments for %d records", i, sh.buckets, len(sh.heads), count)
		}
		table += int64(len(sh.heads)-1) * segmentCost
	}
	// What the pages say.
	var pages int64
	free := make([]int64, len(s.classes))
	perClass := make([]int64, len(s.classes))
	for i := range s.top {
		lf := s.top[i].Load()
		if lf == nil {
			continue
		}
		for j := range lf.pages {
			pg := &lf.pages[j]
			if pg.buf == nil {
				continue
			}
			pages++
			perClass[pg.class]++
			cl := &s.classes[pg.class]
			live := 0
			for slot := range cl.perPage {
				h := handle((i<<leafBits|j)<<slotBits | slot)
				if slot < int(pg.carved) && s.chunk(h)[offKind] != kindFree {
					live++
					used += cl.cost
					if !held[h] {
						return fmt.Errorf("chunk %#x is in use by no record", h)
					}
					delete(held, h)
				}
			}
			if live != int(pg.live) || live == 0 {
				return fmt.Errorf("page %d: %d chunks in use, counted %d", j, live, pg.live)
			}
			listed := 0
			for slot := pg.firstFree; slot != 0; listed++ {
				slot = binary.LittleEndian.Uint16(pg.buf[int(slot-1)*cl.size:])
			}
			if listed != int(pg.carved)-live {
				return fmt.Errorf("page %d: %d free chunks listed, want %d", j, listed, int(pg.carved)-live)
			}
			free[pg.class] += int64(cl.perPage - live)
		}
	}
	if len(held) != 0 {
		return fmt.Errorf("%d chunks of records are not in use", len(held))
	}
	for c := range s.classes {
		cl := &s.classes[c]
		if cl.free.Load() != free[c] || cl.pages.Load() != perClass[c] {
			return fmt.Errorf("class of %d: %d free in %d pages, counted %d and %d", cl.size, free[c], perClass[c], cl.free.Load(), cl.pages.Load())
		}
		for band, n := range cl.bands {
			if (n != 0) != (cl.nonEmpty>>band&1 == 1) {
				return fmt.Errorf("class of %d: band %d and its bit differ", cl.size, band)
			}
			for ; n != 0; n = s.page(n).next {
				pg := s.page(n)
				if int(pg.band) != band || pg.draining || cl.bandOf(pg.live) != pg.band {
					return fmt.Errorf("page %d with %d chunks is in band %d", n, pg.live, band)
				}
				free[c] -= int64(cl.perPage) - int64(pg.live)
			}
		}
		if free[c] != 0 {
			return fmt.Errorf("class of %d: %d free chunks are on no list", cl.size, free[c])
		}
	}
	pages += int64(len(s.spare))
	if pages != s.pages.Load() {
		return fmt.Errorf("%d pages, counted %d", pages, s.pages.Load())
	}
	if want := used + table + larges; s.used.Load() != want {
		return fmt.Errorf("%d bytes used, counted %d", want, s.used.Load())
	}
	if want := pages*pageCost + table + larges; s.taken.Load() != want {
		return fmt.Errorf("%d bytes taken, counted %d", want, s.taken.Load())
	}
	return nil
}
