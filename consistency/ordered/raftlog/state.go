package raftlog

import (
	"fmt"
	"io"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/attunekv/attune/consistency/disk"
)

// SaveState writes what write writes to disk, as the state of the state machine
// after meta.Index, which must have been saved, with meta.Term, and the members
// then. It returns when that is what a restart goes on from, and what it makes
// needless is deleted: older states, segments with nothing newer. On an error the
// last state stays what it was, and the caller may try again later, except after
// [ErrUnknown]. In memory it does nothing, and does not call write.
//
// It may be called from any goroutine; of several, one goes on at a time. Errors:
// write's, those of the disk; ErrUnknown; that the state is older than the one there;
// that the log was closed, or started again, meanwhile; what Save failed with.
func (l *Log) SaveState(meta *pb.SnapshotMetadata, write func(io.Writer) error) error {
	if l.disk == nil {
		return nil
	}
	l.disk.saving.Lock()
	defer l.disk.saving.Unlock()
	if err := l.disk.saveState(meta, write); err != nil {
		return fmt.Errorf("save the state at %d: %w", meta.GetIndex(), err)
	}
	return nil
}

func (d *persisted) saveState(meta *pb.SnapshotMetadata, write func(io.Writer) error) error {
	index := meta.GetIndex()
	head, err := proto.Marshal(meta)
	if err != nil {
		return err
	}
	d.mu.Lock()
	nonce := d.charter.Nonce
	d.mu.Unlock()
	may := func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.maySaveLocked(nonce, index)
	}
	if err := may(); err != nil {
		return err
	}
	// Of what is written from here on nothing may be in the state.
	mark := d.written.Load()
	if err := d.WriteState(nonce, index, head, may, write); err != nil {
		return err
	}
	return d.publish(nonce, index, mark)
}

// maySaveLocked is why a state at index of the log with that nonce cannot be saved.
func (d *persisted) maySaveLocked(nonce, index uint64) error {
	if !d.shut && d.charter.Nonce != nonce {
		return errOther
	}
	if err := d.usableLocked(); err != nil {
		return err
	}
	switch newest := d.newest.Load(); {
	case index > newest:
		return fmt.Errorf("the log ends at %d", newest)
	case len(d.states) > 0 && d.states[len(d.states)-1] > index:
		return fmt.Errorf("a newer one is there, at %d", d.states[len(d.states)-1])
	}
	return nil
}

// publish makes a written file the state.
func (d *persisted) publish(nonce, index uint64, mark int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.maySaveLocked(nonce, index); err != nil {
		d.DropState(index)
		return err
	}
	if err := d.PublishState(index); err != nil {
		return err
	}
	if n := len(d.states); n == 0 || d.states[n-1] != index {
		d.states = append(d.states, index)
	}
	if err := d.DurableNames(); err != nil {
		// If it succeeded the next time, that would prove nothing; and the state
		// before would be removed.
		d.failed = fmt.Errorf("%w: %w", ErrUnknown, err)
		return d.failed
	}
	d.covered.Store(mark)
	if err := d.dropLocked(index); err != nil {
		return fmt.Errorf("it is saved, but what it makes needless is not deleted: %w", err)
	}
	return nil
}

// LoadState calls read with the newest state, and a reader of exactly what write
// wrote; not at all if there is none. If the file is damaged, r says so at the
// latest at its end, and LoadState does; what was read then is worth nothing, and
// the caller exits, or goes on as a new member. Errors: read's, those of the disk.
func (l *Log) LoadState(read func(meta *pb.SnapshotMetadata, r io.Reader) error) error {
	d := l.disk
	if d == nil {
		return nil
	}
	d.mu.Lock()
	if len(d.states) == 0 {
		d.mu.Unlock()
		return nil
	}
	index := d.states[len(d.states)-1]
	r, err := d.OpenState(d.charter.Nonce, index) // under the lock, as the file may be replaced
	d.mu.Unlock()
	if err == nil {
		err = r.Use(func(in io.Reader) error {
			meta := new(pb.SnapshotMetadata)
			if err := decodeMeta(meta, index, r.Head); err != nil {
				return err
			}
			return read(meta, in)
		})
	}
	if err != nil {
		return fmt.Errorf("load the state at %d: %w", index, err)
	}
	return nil
}

// decodeMeta takes what saveState writes before a state. Errors: disk.ErrBad.
func decodeMeta(meta *pb.SnapshotMetadata, index uint64, head []byte) error {
	if proto.Unmarshal(head, meta) != nil || meta.GetIndex() != index {
		return disk.ErrBad
	}
	return nil
}
