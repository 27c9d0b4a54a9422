package raftlog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/attunekv/attune/consistency/disk"
)

// keepBuffer is what an encoding buffer may grow to and be kept.
const keepBuffer = 4 << 20

// position is where the log is.
type position struct {
	hard  hard
	index uint64 // of the last entry
	term  uint64 // its term
}

// segment is a file of the log that is not written any more.
type segment struct {
	seq uint64
	max uint64 // the highest index of an entry, or of a restart, ever written in it
}

// persisted is the part of a Log that is in a directory.
type persisted struct {
	*disk.Files

	// Of the goroutine that saves.
	active *disk.Active // nil before Start
	max    uint64       // as segment.max, of active
	buf    []byte

	written atomic.Int64  // bytes of batches since Open
	covered atomic.Int64  // of these, or before: how many a state made needless
	newest  atomic.Uint64 // index of the last entry

	saving sync.Mutex // one SaveState at a time

	// mu guards what follows, and the directory's list of files. Nothing is
	// written under it except heads and the identity.
	mu      sync.Mutex
	shut    bool  // by Close
	failed  error // what a write or sync failed with: nothing is written after it
	known   bool  // there is an identity, that of charter
	charter disk.Charter
	closed  []segment // those before active, ascending, without gaps
	states  []uint64  // state files, ascending; the last is valid
}

// ErrUnknown is what SaveState fails with when nobody knows what is on disk any more:
// as after a Save that failed, the caller must exit the process.
var ErrUnknown = errors.New("what is on disk is not known any more")

var (
	errNotStarted = errors.New("raft log was not started: it has no identity")
	errClosed     = errors.New("raft log is closed")
	errOther      = errors.New("raft log was started again meanwhile")
)

// broken is what everything that writes fails with from now on, or nil.
func (d *persisted) broken() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed
}

// usableLocked is why nothing can be written.
func (d *persisted) usableLocked() error {
	switch {
	case d.shut:
		return errClosed
	case d.failed != nil:
		return d.failed
	case !d.known:
		return errNotStarted
	}
	return nil
}

// rollLocked begins segment seq, behind p.
func (d *persisted) rollLocked(seq uint64, p position) error {
	b := p.hard.append(nil)
	b = le.AppendUint64(b, p.index)
	b = le.AppendUint64(b, p.term)
	next, err := d.NewSegment(d.charter.Nonce, seq, b)
	if err != nil {
		return err
	}
	if d.active != nil {
		d.closed = append(d.closed, segment{d.active.Number, d.max})
		if err := d.active.Close(); err != nil {
			return errors.Join(err, next.Close())
		}
	}
	d.active, d.max = next, 0
	return nil
}

// append writes the record that is in d.buf, behind disk.HeadLen bytes of room. p is
// the position before it. Its failure is remembered.
func (d *persisted) append(typ byte, p position, index uint64) error {
	d.mu.Lock()
	err := d.usableLocked()
	if err == nil && d.active.Size >= d.SegmentBytes {
		if d.failed = d.rollLocked(d.active.Number+1, p); d.failed != nil {
			d.failed = fmt.Errorf("begin another segment of the raft log: %w", d.failed)
			err = d.failed
		}
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	err = d.tryAppend(typ)
	if cap(d.buf) > keepBuffer {
		d.buf = nil
	}
	if err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.failed = fmt.Errorf("write the raft log: %w", err)
		return d.failed
	}
	d.max = max(d.max, index)
	return nil
}

func (d *persisted) tryAppend(typ byte) error {
	if n := len(d.buf) - disk.HeadLen; n > disk.MaxRecord {
		return fmt.Errorf("%d bytes at once: at most %d", n, disk.MaxRecord)
	}
	return d.active.Append(typ, d.buf)
}

// save writes a batch.
func (d *persisted) save(h hard, ents []*pb.Entry, p position) error {
	d.buf = appendBatch(append(d.buf[:0], make([]byte, disk.HeadLen)...), h, ents)
	n := int64(len(d.buf))
	var index uint64
	if len(ents) > 0 {
		index = ents[len(ents)-1].GetIndex()
	}
	if err := d.append(disk.TypeBatch, p, index); err != nil {
		return err
	}
	d.written.Add(n)
	if len(ents) > 0 {
		d.newest.Store(index)
	}
	return nil
}

// restart writes that the log begins again behind an entry.
func (d *persisted) restart(index, term uint64, p position) error {
	d.buf = p.hard.append(append(d.buf[:0], make([]byte, disk.HeadLen)...))
	d.buf = le.AppendUint64(d.buf, index)
	d.buf = le.AppendUint64(d.buf, term)
	if err := d.append(typeRestart, p, index); err != nil {
		return err
	}
	d.newest.Store(index)
	return nil
}

// dropLocked removes what a state at index makes needless: older states, and the
// oldest segments, as far as they have nothing newer. What is left is always the
// log's end, without a gap, wherever this is interrupted: the states go first, or
// an old one could be left without the log that belongs to it.
func (d *persisted) dropLocked(index uint64) error {
	for len(d.states) > 0 && d.states[0] < index {
		if err := d.Remove(disk.State(d.states[0])); err != nil {
			return err
		}
		d.states = d.states[1:]
	}
	for len(d.closed) > 0 && d.closed[0].max <= index {
		if err := d.Remove(disk.Segment(d.closed[0].seq)); err != nil {
			return err
		}
		d.closed = d.closed[1:]
	}
	return nil
}

// closeActive lets go of the segment, so that nothing can be saved.
func (d *persisted) closeActive() error {
	err := d.active.Close()
	d.active = nil
	return err
}
