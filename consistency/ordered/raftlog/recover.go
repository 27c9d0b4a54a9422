package raftlog

import (
	"bytes"
	"errors"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/attunekv/attune/consistency/disk"
)

// replay is a log being read from disk.
type replay struct {
	memory             // behind the state
	at        position // what was read reaches to here; commit is a lower bound
	joint     uint64   // term of the entry that the state ends with, if it was read; else 0
	restarted uint64   // the newest index that the log began again at
	bytes     int64    // of batches with entries behind the state
}

// batch takes what one Save wrote.
func (r *replay) batch(payload []byte) error {
	h, ents, err := decodeBatch(payload)
	if err != nil {
		return err
	}
	r.at.hard = h
	if len(ents) == 0 {
		return nil
	}
	first := ents[0].GetIndex()
	if first == 0 || first > r.at.index+1 {
		return fmt.Errorf("entry %d follows %d: %w", first, r.at.index, disk.ErrBad)
	}
	if r.last >= first {
		r.truncate(max(first, r.base+1))
	}
	if first <= r.base {
		r.joint = 0
	}
	for i, e := range ents {
		index := e.GetIndex()
		if index == r.base {
			r.joint = e.GetTerm()
		}
		if index > r.base {
			e.Data = bytes.Clone(e.Data) // not all of the batch for one of its entries
			r.put(ents[i : i+1])
		}
	}
	last := ents[len(ents)-1]
	r.at.index, r.at.term = last.GetIndex(), last.GetTerm()
	if r.at.index > r.base {
		r.bytes += int64(disk.HeadLen + len(payload))
	}
	return nil
}

// restart takes what one Install wrote.
func (r *replay) restart(payload []byte) error {
	if len(payload) != hardLen+16 {
		return disk.ErrBad
	}
	r.at.hard.decode(payload)
	r.at.index, r.at.term = le.Uint64(payload[hardLen:]), le.Uint64(payload[hardLen+8:])
	r.reset(r.base, r.baseTerm)
	r.restarted, r.joint, r.bytes = r.at.index, 0, 0
	if r.at.index == r.base {
		r.joint = r.at.term
	}
	return nil
}

// head takes the beginning of a segment. The first that is read says where the log
// was; the others must agree with what was read before.
func (r *replay) head(payload []byte, first bool) error {
	if len(payload) != hardLen+16 {
		return disk.ErrBad
	}
	var at position
	at.hard.decode(payload)
	at.index, at.term = le.Uint64(payload[hardLen:]), le.Uint64(payload[hardLen+8:])
	switch {
	case first && at.index > r.base:
		return fmt.Errorf("entries %d to %d are missing: %w", r.base+1, at.index, disk.ErrBad)
	case first:
		if at.index == r.base {
			r.joint = at.term
		}
	case at.index != r.at.index || at.term != r.at.term ||
		at.hard.term != r.at.hard.term || at.hard.vote != r.at.hard.vote:
		return fmt.Errorf("it does not continue the one before: %w", disk.ErrBad)
	}
	r.at = at
	return nil
}

// proves is the last check.
func (r *replay) proves(meta *pb.SnapshotMetadata) error {
	switch {
	case r.restarted > r.base:
		return &disk.Unproven{Reason: fmt.Sprintf("the snapshot installed at %d was not on disk yet when the process ended", r.restarted)}
	case r.base > r.at.index:
		return disk.Damaged("the state is of entry %d, and the log ends at %d", r.base, r.at.index)
	case r.joint != 0 && r.joint != meta.GetTerm():
		return disk.Damaged("the state is of entry %d in term %d, which the log has in term %d", r.base, meta.GetTerm(), r.joint)
	case r.at.hard.commit > r.at.index:
		return disk.Damaged("entry %d is committed, and the log ends at %d", r.at.hard.commit, r.at.index)
	}
	// What is in the state was committed, even if no Save said so yet.
	r.at.hard.commit = max(r.at.hard.commit, r.base)
	return nil
}

// read reads segment seq into r. size is how far it is good.
func (d *persisted) read(r *replay, seq uint64, first, newest bool) (seg segment, size int64, err error) {
	seg.seq = seq
	size, err = d.ReadSegment(&d.charter, seq, newest, func(at int64, typ byte, payload []byte) error {
		var err error
		switch typ {
		case disk.TypeHead:
			err = r.head(payload, first)
		case disk.TypeBatch:
			err = r.batch(payload)
		case typeRestart:
			err = r.restart(payload)
		default:
			err = disk.ErrBad
		}
		seg.max = max(seg.max, r.at.index)
		return err
	})
	if errors.Is(err, disk.ErrBad) {
		err = disk.Damaged("%v", err)
	}
	return seg, size, err
}

// recover reads the directory, and makes it the log. If it proves nothing, the error
// is a [disk.Unproven]; if there is nothing, d.known stays false.
func (d *persisted) recover() (*replay, *pb.ConfState, error) {
	c, ls, err := d.Recover(disk.Raft)
	if err != nil || ls == nil {
		return nil, nil, err
	}
	d.charter = c
	meta := new(pb.SnapshotMetadata)
	r := new(replay)
	r.reset(0, 0)
	index, found, err := d.NewestState(c.Nonce, ls.States, func(n uint64, head []byte) error { return decodeMeta(meta, n, head) })
	if err != nil {
		return nil, nil, err
	}
	if found {
		d.states = []uint64{index}
		r.reset(index, meta.GetTerm())
	} else {
		meta = nil
	}

	// The segments without a gap up to the newest. Those before a gap were being
	// deleted, or are missed below.
	run := ls.Segments
	for i := len(run) - 1; i > 0; i-- {
		if run[i-1]+1 != run[i] {
			run = run[i:]
			break
		}
	}
	var size int64
	for i, seq := range run {
		seg, n, err := d.read(r, seq, i == 0, i == len(run)-1)
		if err != nil {
			return nil, nil, err
		}
		if n == 0 {
			// Made when the process died: it never had anything.
			run = run[:i]
			break
		}
		d.closed, size = append(d.closed, seg), n
	}
	if len(run) == 0 {
		return nil, nil, disk.Damaged("there is an identity, and no log")
	}
	if err := r.proves(meta); err != nil {
		return nil, nil, err
	}
	if err := d.resume(size); err != nil {
		return nil, nil, err
	}
	d.newest.Store(r.at.index)
	d.written.Store(r.bytes)
	err = d.RemoveNeedless(ls, run, d.states)
	if err == nil {
		err = d.dropLocked(r.base)
	}
	if err == nil {
		err = d.Adopt(&d.charter)
	}
	d.known = err == nil
	return r, meta.GetConfState(), err
}

// resume appends to the newest segment, which is good up to size.
func (d *persisted) resume(size int64) (err error) {
	n := len(d.closed) - 1
	newest := d.closed[n]
	d.closed, d.max = d.closed[:n], newest.max
	d.active, err = d.Resume(d.charter.Nonce, newest.seq, size)
	return err
}

// start deletes what there is and begins an empty log. As long as it is not done
// there is no identity file, or one whose log is empty.
func (d *persisted) start(id disk.Identity) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut {
		return errClosed
	}
	if d.failed != nil {
		return d.failed
	}
	d.known = false
	d.charter = d.Found(disk.Raft, id)
	if err := errors.Join(d.closeActive(), d.Clear()); err != nil {
		return err
	}
	d.closed, d.states = nil, nil
	d.written.Store(0)
	d.covered.Store(0)
	d.newest.Store(0)
	if err := d.rollLocked(1, position{}); err != nil {
		return err
	}
	if err := d.WriteCharter(&d.charter); err != nil {
		return err
	}
	d.known = true
	return nil
}
