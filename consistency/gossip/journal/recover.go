package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"go.uber.org/zap"
)

// unproven is why a directory does not prove that it has a whole journal.
type unproven struct {
	reason  string
	damaged bool // and people should look at it
}

func (e *unproven) Error() string { return e.reason }

func damaged(format string, args ...any) error {
	return &unproven{fmt.Sprintf(format, args...), true}
}

// recovery is a directory being read.
type recovery struct {
	files   listing
	charter charter
	state   []Position // the newest that is whole, if there is one
	from    Position   // its, or 0
	met     bool       // a record begins there
	bound   int64
	run     []segment // of the journal, from the one that has from to the newest
}

// recover reads the directory, and makes it the journal. If it proves nothing, the
// error is an [unproven]; if there is nothing, known stays false.
func (j *Journal) recover() error {
	ls, err := j.list()
	if err != nil {
		return err
	}
	if !ls.identity {
		if len(ls.segments)+len(ls.states) > 0 {
			j.log.Warn("there is no identity file, so the other files here are not used", zap.String("dir", j.dir))
		}
		return nil
	}
	r := &recovery{files: ls}
	if err := j.read(r); err != nil {
		return err
	}
	return j.resume(r)
}

// read reads all that is needed.
func (j *Journal) read(r *recovery) error {
	var err error
	if r.charter, err = j.readCharter(); errors.Is(err, errBad) {
		return damaged("the identity file: %v", err)
	}
	if err != nil {
		return err
	}
	if c := &r.charter; c.sync == OS && !c.closed && c.boot != j.boot {
		return &unproven{reason: "the machine was started again since, and with sync=os what it had not written to disk by then is lost"}
	}

	for _, at := range slices.Backward(r.files.states) {
		head, err := j.verifyState(at, r.charter.nonce)
		if errors.Is(err, errBad) {
			j.log.Error("a state file is damaged", zap.String("file", named(statePrefix, at)), zap.Error(err))
			continue
		}
		if err != nil {
			return err
		}
		r.state, r.from, r.bound = []Position{at}, at, head.bound
		break
	}
	if err := j.readSegments(r); err != nil {
		return err
	}

	end := r.run[len(r.run)-1].end
	switch {
	case end < r.from:
		return damaged("the state is of position %d, and the journal ends at %d", r.from, end)
	case !r.met && end != r.from:
		return damaged("the state is of position %d, where no record begins", r.from)
	case r.charter.closed && end != r.charter.end:
		return damaged("the journal ends at %d, and was closed at %d", end, r.charter.end)
	}
	return nil
}

// readSegments finds r.run, which is not empty then.
func (j *Journal) readSegments(r *recovery) error {
	starts := r.files.segments
	if len(starts) == 0 {
		return damaged("there is an identity, and no segment")
	}
	newest, err := j.readSegment(r, starts[len(starts)-1], true)
	if err != nil {
		return err
	}
	if newest.end < newest.start {
		// Made when the process died: it never had anything.
		if starts = starts[:len(starts)-1]; len(starts) == 0 {
			return damaged("the only segment has no head")
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
		return damaged("what was appended from %d to %d is missing", r.from, starts[first])
	}
	for i, start := range starts[first:] {
		s := newest
		if first+i < len(starts)-1 {
			if s, err = j.readSegment(r, start, false); err != nil {
				return err
			}
		}
		if n := len(r.run); n > 0 && r.run[n-1].end != start {
			return damaged("a segment begins at %d, and the one before ends at %d", start, r.run[n-1].end)
		}
		r.run = append(r.run, s)
	}
	return nil
}

// readSegment reads the segment that begins at start. A bad record at the end of the
// newest is where it ends; if that is its head, its end is before its start.
func (j *Journal) readSegment(r *recovery, start Position, newest bool) (segment, error) {
	file, err := os.Open(j.path(named(logPrefix, start)))
	if err != nil {
		return segment{}, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return segment{}, err
	}
	s := segment{start, start + Position(info.Size()-segmentHead)}
	err = j.scan(r.charter.nonce, s, r.record)
	if err == nil && info.Size() == 0 {
		err = &badRecord{short: true}
	}
	if bad, ok := errors.AsType[*badRecord](err); ok && newest {
		torn := bad.short
		if !torn && r.charter.sync == Always {
			behind, err := headBehind(file, bad.at+1, info.Size(), seedOf(r.charter.nonce, 'l', start))
			if err != nil {
				return s, err
			}
			torn = !behind
		}
		if torn {
			s.end, err = start+Position(bad.at-segmentHead), nil
		}
	}
	if errors.Is(err, errBad) {
		return s, damaged("%v", err)
	}
	return s, err
}

// record takes a record of a segment. Errors: errBad.
func (r *recovery) record(at Position, typ byte, payload []byte) error {
	r.met = r.met || at == r.from
	switch {
	case typ == typeBatch:
		return eachRecord(payload, func([]byte) error { return nil })
	case typ == typeBound && len(payload) == 8:
		r.bound = max(r.bound, int64(le.Uint64(payload)))
		return nil
	}
	return errBad
}

// resume makes the directory as if nothing had happened to it: the newest segment
// is appended to where it is good; leftovers are deleted; and what was written under
// another Sync, or closed, is brought to this one before anything is appended.
func (j *Journal) resume(r *recovery) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := len(r.run) - 1
	newest := r.run[n]
	file, err := os.OpenFile(j.path(named(logPrefix, newest.start)), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	j.active, j.start, j.seed = file, newest.start, seedOf(r.charter.nonce, 'l', newest.start)
	j.closed, j.states, j.charter = r.run[:n:n], r.state, r.charter
	info, err := file.Stat()
	if err != nil {
		return err
	}
	size := segmentHead + int64(newest.end-newest.start)
	if cut := info.Size() - size; cut > 0 {
		j.log.Info("dropped the end of the journal, which was being written when the process ended", zap.Int64("bytes", cut))
		if err := j.truncate(file, size); err != nil {
			return err
		}
		if err := j.durable(file); err != nil { // Close relies on it
			return err
		}
	} else if _, err := file.Seek(size, io.SeekStart); err != nil {
		return err
	}
	needless := r.files.tmps
	for _, at := range r.files.states {
		if !slices.Contains(r.state, at) {
			needless = append(needless, named(statePrefix, at))
		}
	}
	for _, start := range r.files.segments {
		if !slices.ContainsFunc(r.run, func(s segment) bool { return s.start == start }) {
			needless = append(needless, named(logPrefix, start))
		}
	}
	for _, name := range needless {
		if err := j.remove(name); err != nil {
			return err
		}
	}
	j.end.Store(int64(newest.end))
	j.covered.Store(int64(r.from))
	j.bound.Store(r.bound)
	if c := &j.charter; c.closed || c.sync != j.syncs {
		if j.syncs == Always && c.sync == OS && !c.closed {
			if err := j.syncAllLocked(); err != nil {
				return err
			}
		}
		c.sync, c.boot, c.closed, c.end = j.syncs, j.boot, false, 0
		if err := j.writeCharter(c); err != nil {
			return err
		}
	}
	j.known = true
	return nil
}
