package journal

import (
	"errors"

	"github.com/attunekv/attune/consistency/disk"
)

// recovery is a directory being read.
type recovery struct {
	files   *disk.Listing
	charter disk.Charter
	state   []Position // the newest that is whole, if there is one
	from    Position   // its, or 0
	met     bool       // a record begins there
	bound   int64
	run     []segment // of the journal, from the one that has from to the newest
}

// recover reads the directory, and makes it the journal. If it proves nothing, the
// error is a [disk.Unproven]; if there is nothing, known stays false.
func (j *Journal) recover() error {
	c, ls, err := j.dir.Recover(disk.Journal)
	if err != nil || ls == nil {
		return err
	}
	r := &recovery{files: ls, charter: c}
	if err := j.read(r); err != nil {
		return err
	}
	return j.resume(r)
}

// read reads all that is needed.
func (j *Journal) read(r *recovery) error {
	at, found, err := j.dir.NewestState(r.charter.Nonce, r.files.States, func(n uint64, head []byte) error {
		if len(head) != 16 || le.Uint64(head) != n {
			return disk.ErrBad
		}
		r.bound = int64(le.Uint64(head[8:]))
		return nil
	})
	if err != nil {
		return err
	}
	if found {
		r.from = Position(at)
		r.state = []Position{r.from}
	}
	if err := j.readSegments(r); err != nil {
		return err
	}

	end := r.run[len(r.run)-1].end
	switch {
	case end < r.from:
		return disk.Damaged("the state is of position %d, and the journal ends at %d", r.from, end)
	case !r.met && end != r.from:
		return disk.Damaged("the state is of position %d, where no record begins", r.from)
	case r.charter.Closed && end != Position(r.charter.End):
		return disk.Damaged("the journal ends at %d, and was closed at %d", end, r.charter.End)
	}
	return nil
}

// readSegments finds r.run, which is not empty then.
func (j *Journal) readSegments(r *recovery) error {
	var starts []Position
	for _, n := range r.files.Segments {
		starts = append(starts, Position(n))
	}
	if len(starts) == 0 {
		return disk.Damaged("there is an identity, and no segment")
	}
	newest, err := j.readSegment(r, starts[len(starts)-1], true)
	if err != nil {
		return err
	}
	if newest.end < newest.start {
		// Made when the process died: it never had anything.
		if starts = starts[:len(starts)-1]; len(starts) == 0 {
			return disk.Damaged("the only segment has no head")
		}
		if newest, err = j.readSegment(r, starts[len(starts)-1], false); err != nil {
			return err
		}
	}
	// Those before the one that has from were being deleted.
	first := len(starts) - 1
	for first > 0 && starts[first] > r.from {
		first--
	}
	if starts[first] > r.from {
		return disk.Damaged("what was appended from %d to %d is missing", r.from, starts[first])
	}
	for i, start := range starts[first:] {
		s := newest
		if first+i < len(starts)-1 {
			if s, err = j.readSegment(r, start, false); err != nil {
				return err
			}
		}
		if n := len(r.run); n > 0 && r.run[n-1].end != start {
			return disk.Damaged("a segment begins at %d, and the one before ends at %d", start, r.run[n-1].end)
		}
		r.run = append(r.run, s)
	}
	return nil
}

// readSegment reads the segment that begins at start. A bad record at the end of the
// newest is where it ends; if that is its head, its end is before its start.
func (j *Journal) readSegment(r *recovery, start Position, newest bool) (segment, error) {
	size, err := j.dir.ReadSegment(&r.charter, uint64(start), newest, func(offset int64, typ byte, payload []byte) error {
		return r.record(positionIn(start, offset), typ, payload)
	})
	if errors.Is(err, disk.ErrBad) {
		err = disk.Damaged("%v", err)
	}
	return segment{start, positionIn(start, size)}, err
}

// record takes a record of a segment. Errors: disk.ErrBad.
func (r *recovery) record(at Position, typ byte, payload []byte) error {
	if typ == disk.TypeHead && len(payload) == 0 {
		return nil
	}
	r.met = r.met || at == r.from
	switch {
	case typ == disk.TypeBatch:
		return eachRecord(payload, func([]byte) error { return nil })
	case typ == typeBound && len(payload) == 8:
		r.bound = max(r.bound, int64(le.Uint64(payload)))
		return nil
	}
	return disk.ErrBad
}

// resume makes the directory as if nothing had happened to it: the newest segment
// is appended to where it is good; leftovers are deleted; and what was written under
// another Sync, or closed, is brought to this one before anything is appended.
func (j *Journal) resume(r *recovery) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := len(r.run) - 1
	newest := r.run[n]
	j.closed, j.states, j.charter = r.run[:n:n], r.state, r.charter
	var err error
	// Close relies on it that what is cut off is so for certain.
	j.active, err = j.dir.Resume(r.charter.Nonce, uint64(newest.start), disk.SegmentHead+int64(newest.end-newest.start))
	if err != nil {
		return err
	}
	var segments, states []uint64
	for _, s := range r.run {
		segments = append(segments, uint64(s.start))
	}
	for _, at := range r.state {
		states = append(states, uint64(at))
	}
	if err := j.dir.RemoveNeedless(r.files, segments, states); err != nil {
		return err
	}
	j.end.Store(int64(newest.end))
	j.covered.Store(int64(r.from))
	j.bound.Store(r.bound)
	if err := j.dir.Adopt(&j.charter); err != nil {
		return err
	}
	j.known = true
	return nil
}
