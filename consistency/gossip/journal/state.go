package journal

import (
	"fmt"
	"io"

	"github.com/attunekv/attune/consistency/disk"
)

// Checkpoint writes what write writes to disk, as a state that has all that was
// appended before at, which Mark gave. It returns when that is what a restart goes on
// from, and what it makes needless is deleted: older states, segments with nothing
// later. Appends go on meanwhile, and all of them are replayed behind it. On an error
// the last state stays what it was, and the caller may try again later; except that
// if the directory could not be synced, nothing can be written any more. Errors:
// write's, those of the disk; that a newer state is there; what Append fails with.
func (j *Journal) Checkpoint(at Position, write func(io.Writer) error) error {
	j.one.Lock()
	defer j.one.Unlock()
	if err := j.checkpoint(at, write); err != nil {
		return fmt.Errorf("write a state of position %d: %w", at, err)
	}
	return nil
}

func (j *Journal) checkpoint(at Position, write func(io.Writer) error) error {
	// The bound of now is that of at, or higher: one that is before at is set when
	// mu is free.
	j.mu.Lock()
	err, nonce, bound := j.usableLocked(), j.charter.Nonce, j.bound.Load()
	j.mu.Unlock()
	switch {
	case err != nil:
		return err
	case at > j.Mark():
		return fmt.Errorf("the journal ends at %d", j.Mark())
	case int64(at) < j.covered.Load():
		return fmt.Errorf("a newer one is there, of %d", j.covered.Load())
	}
	head := le.AppendUint64(le.AppendUint64(nil, uint64(at)), uint64(bound))
	may := func() error {
		if j.closing.Load() {
			return errClosed
		}
		return nil
	}
	if err := j.dir.WriteState(nonce, uint64(at), head, may, write); err != nil {
		return err
	}
	if err := j.dir.PublishState(uint64(at)); err != nil {
		return err
	}
	if n := len(j.states); n == 0 || j.states[n-1] != at {
		j.states = append(j.states, at)
	}
	if err := j.dir.DurableNames(); err != nil {
		// If it succeeded the next time, that would prove nothing.
		j.mu.Lock()
		j.failed = err
		j.mu.Unlock()
		return err
	}
	j.covered.Store(int64(at))
	if err := j.drop(at); err != nil {
		return fmt.Errorf("it is there, but what it makes needless is not deleted: %w", err)
	}
	return nil
}

// drop removes what the state at makes needless. The older states go first, or one
// could be left without the records that belong behind it.
func (j *Journal) drop(at Position) error {
	for len(j.states) > 0 && j.states[0] < at {
		if err := j.dir.Remove(disk.State(uint64(j.states[0]))); err != nil {
			return err
		}
		j.states = j.states[1:]
	}
	for {
		j.mu.Lock()
		if len(j.closed) == 0 || j.closed[0].end > at {
			j.mu.Unlock()
			return nil
		}
		oldest := j.closed[0].start
		j.closed = j.closed[1:]
		j.mu.Unlock()
		// Not under mu: to remove a large file takes a while. One that stays is
		// removed by the next Open.
		if err := j.dir.Remove(disk.Segment(uint64(oldest))); err != nil {
			return err
		}
	}
}

// LoadState calls read with a reader of exactly what write wrote for the newest
// state; not at all if there is none. If the file is damaged, the reader says so at the
// latest at its end, and LoadState does; what was read then is worth nothing, and the
// caller exits, or calls Start. Errors: read's, those of the disk.
func (j *Journal) LoadState(read func(io.Reader) error) error {
	j.one.Lock()
	defer j.one.Unlock()
	if len(j.states) == 0 {
		return nil
	}
	at := j.states[len(j.states)-1]
	r, err := j.dir.OpenState(j.charter.Nonce, uint64(at))
	if err == nil {
		err = r.Use(read)
	}
	if err != nil {
		return fmt.Errorf("load the state of position %d: %w", at, err)
	}
	return nil
}
