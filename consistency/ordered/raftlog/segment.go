package raftlog

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

const (
	defaultSegmentSize = 64 << 20
	// keepBuffer is what an encoding buffer may grow to and be kept.
	keepBuffer = 4 << 20
	segmentLen = 8 + 8 + hardLen + 16 // of a segment's head, without the record's
)

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

// disk is the part of a Log that is in a directory.
type disk struct {
	files
	sync    Sync
	boot    string
	segSize int64
	log     *zap.Logger
	lock    *os.File

	// Of the goroutine that saves.
	active *os.File
	max    uint64 // as segment.max, of active
	size   int64  // of active
	seed   uint32 // of active
	buf    []byte
	failed error // what a write or sync failed with: nothing is written after it

	written atomic.Int64  // bytes of batches since Open
	covered atomic.Int64  // of these, or before: how many a state made needless
	newest  atomic.Uint64 // index of the last entry

	saving sync.Mutex // one SaveState at a time

	// mu guards what follows, and the directory's list of files. Nothing is
	// written under it except heads and the identity.
	mu      sync.Mutex
	shut    bool // by Close
	known   bool // there is an identity, that of charter
	charter charter
	seq     uint64    // of active
	closed  []segment // the others, ascending, without gaps
	states  []uint64  // state files, ascending; the last is valid
}

var (
	errInUse      = errors.New("in use by another process: stop that, or give this one another directory")
	errNotStarted = errors.New("raft log was not started: it has no identity")
	errClosed     = errors.New("raft log is closed")
	errOther      = errors.New("raft log was started again meanwhile")
)

// durable syncs file if that is what Sync asks for.
func (d *disk) durable(file *os.File) error {
	if d.sync != Always {
		return nil
	}
	return d.files.sync(file)
}

// rollLocked begins segment seq, behind p.
func (d *disk) rollLocked(seq uint64, p position) error {
	file, err := d.create(numbered(logPrefix, seq))
	if err != nil {
		return err
	}
	b := make([]byte, headLen, headLen+segmentLen)
	b = le.AppendUint64(b, d.charter.nonce)
	b = le.AppendUint64(b, seq)
	b = p.hard.append(b)
	b = le.AppendUint64(b, p.index)
	b = le.AppendUint64(b, p.term)
	seed := seedOf(d.charter.nonce, 'l', seq)
	seal(b, typeHead, seed, 0)
	if err = d.write(file, b); err == nil {
		err = d.durable(file)
	}
	if err == nil && d.sync == Always {
		err = d.syncDir()
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	if d.active != nil {
		if err := d.active.Close(); err != nil {
			return errors.Join(err, file.Close())
		}
		d.closed = append(d.closed, segment{d.seq, d.max})
	}
	d.active, d.seq, d.size, d.seed, d.max = file, seq, int64(len(b)), seed, 0
	return nil
}

// append writes the record that is in d.buf, behind headLen bytes of room. p is
// the position before it. Its failure is remembered.
func (d *disk) append(typ byte, p position, index uint64) error {
	if d.failed == nil {
		d.failed = d.tryAppend(typ, p, index)
	}
	if cap(d.buf) > keepBuffer {
		d.buf = nil
	}
	return d.failed
}

func (d *disk) tryAppend(typ byte, p position, index uint64) error {
	if d.active == nil {
		return errNotStarted
	}
	if len(d.buf)-headLen > maxRecord {
		return fmt.Errorf("%d bytes to be saved at once: at most %d", len(d.buf), maxRecord)
	}
	if d.size >= d.segSize {
		d.mu.Lock()
		err := d.rollLocked(d.seq+1, p)
		d.mu.Unlock()
		if err != nil {
			return fmt.Errorf("begin another segment of the raft log: %w", err)
		}
	}
	seal(d.buf, typ, d.seed, d.size)
	if err := d.write(d.active, d.buf); err != nil {
		return fmt.Errorf("write the raft log: %w", err)
	}
	if err := d.durable(d.active); err != nil {
		return fmt.Errorf("sync the raft log: %w", err)
	}
	d.size += int64(len(d.buf))
	d.max = max(d.max, index)
	return nil
}

// save writes a batch.
func (d *disk) save(h hard, ents []*pb.Entry, p position) error {
	d.buf = appendBatch(append(d.buf[:0], make([]byte, headLen)...), h, ents)
	n := int64(len(d.buf))
	var index uint64
	if len(ents) > 0 {
		index = ents[len(ents)-1].GetIndex()
	}
	if err := d.append(typeBatch, p, index); err != nil {
		return err
	}
	d.written.Add(n)
	if len(ents) > 0 {
		d.newest.Store(index)
	}
	return nil
}

// restart writes that the log begins again behind an entry.
func (d *disk) restart(index, term uint64, p position) error {
	d.buf = p.hard.append(append(d.buf[:0], make([]byte, headLen)...))
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
func (d *disk) dropLocked(index uint64) error {
	for len(d.states) > 0 && d.states[0] < index {
		if err := d.remove(numbered(statePrefix, d.states[0])); err != nil {
			return err
		}
		d.states = d.states[1:]
	}
	for len(d.closed) > 0 && d.closed[0].max <= index {
		if err := d.remove(numbered(logPrefix, d.closed[0].seq)); err != nil {
			return err
		}
		d.closed = d.closed[1:]
	}
	return nil
}

// shutLocked closes the log, so that nothing can be saved.
func (d *disk) shutLocked() error {
	if d.active == nil {
		return nil
	}
	err := d.active.Close()
	d.active = nil
	return err
}
