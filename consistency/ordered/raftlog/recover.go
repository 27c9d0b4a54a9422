package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// unproven is why a directory does not prove that it has a whole log.
type unproven struct {
	reason  string
	damaged bool // and people should look at it
}

func (e *unproven) Error() string { return e.reason }

func damaged(format string, args ...any) error {
	return &unproven{fmt.Sprintf(format, args...), true}
}

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
		return fmt.Errorf("entry %d follows %d: %w", first, r.at.index, errBad)
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
		r.bytes += int64(headLen + len(payload))
	}
	return nil
}

// restart takes what one Install wrote.
func (r *replay) restart(payload []byte) error {
	if len(payload) != hardLen+16 {
		return errBad
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

// head takes the beginning of segment seq. The first that is read says where the
// log was; the others must agree with what was read before.
func (r *replay) head(payload []byte, nonce, seq uint64, first bool) error {
	if len(payload) != segmentLen || le.Uint64(payload) != nonce || le.Uint64(payload[8:]) != seq {
		return errBad
	}
	var at position
	at.hard.decode(payload[16:])
	at.index, at.term = le.Uint64(payload[16+hardLen:]), le.Uint64(payload[24+hardLen:])
	switch {
	case first && at.index > r.base:
		return fmt.Errorf("entries %d to %d are missing: %w", r.base+1, at.index, errBad)
	case first:
		if at.index == r.base {
			r.joint = at.term
		}
	case at.index != r.at.index || at.term != r.at.term ||
		at.hard.term != r.at.hard.term || at.hard.vote != r.at.hard.vote:
		return fmt.Errorf("it does not continue the one before: %w", errBad)
	}
	r.at = at
	return nil
}

// proves is the last check.
func (r *replay) proves(meta *pb.SnapshotMetadata) error {
	switch {
	case r.restarted > r.base:
		return &unproven{reason: fmt.Sprintf("the snapshot installed at %d was not on disk yet when the process ended", r.restarted)}
	case r.base > r.at.index:
		return damaged("the state is of entry %d, and the log ends at %d", r.base, r.at.index)
	case r.joint != 0 && r.joint != meta.GetTerm():
		return damaged("the state is of entry %d in term %d, which the log has in term %d", r.base, meta.GetTerm(), r.joint)
	case r.at.hard.commit > r.at.index:
		return damaged("entry %d is committed, and the log ends at %d", r.at.hard.commit, r.at.index)
	}
	// What is in the state was committed, even if no Save said so yet.
	r.at.hard.commit = max(r.at.hard.commit, r.base)
	return nil
}

// read reads segment seq into r. A bad record at the end of the newest segment is
// where it ends; size is how far it is good.
func (d *disk) read(r *replay, seq uint64, first, newest bool) (seg segment, size int64, err error) {
	file, err := os.Open(d.path(numbered(logPrefix, seq)))
	if err != nil {
		return seg, 0, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return seg, 0, err
	}
	seg.seq = seq
	seed := seedOf(d.charter.nonce, 'l', seq)
	recs := newRecords(file, info.Size(), seed, maxRecord)
	for recs.at < info.Size() {
		at := recs.at
		typ, payload, err := recs.next()
		if bad, ok := errors.AsType[*badRecord](err); ok && newest {
			torn := bad.short
			if !torn && d.charter.sync == Always {
				behind, err := headBehind(file, at+1, info.Size(), seed)
				if err != nil {
					return seg, 0, err
				}
				torn = !behind
			}
			if torn {
				return seg, at, nil
			}
		}
		if err == nil {
			switch {
			case (at == 0) != (typ == typeHead):
				err = errBad
			case typ == typeHead:
				err = r.head(payload, d.charter.nonce, seq, first)
			case typ == typeBatch:
				err = r.batch(payload)
			case typ == typeRestart:
				err = r.restart(payload)
			default:
				err = errBad
			}
			seg.max = max(seg.max, r.at.index)
		}
		if errors.Is(err, errBad) {
			return seg, 0, damaged("segment %d, offset %d: %v", seq, at, err)
		}
		if err != nil {
			return seg, 0, err
		}
	}
	return seg, recs.at, nil
}

// recover reads the directory. If it proves nothing, the error is an [unproven];
// if there is nothing, d.known stays false.
func (d *disk) recover() (*replay, *pb.SnapshotMetadata, error) {
	ls, err := d.list()
	if err != nil || !ls.identity {
		return nil, nil, err
	}
	d.charter, err = d.readCharter()
	if errors.Is(err, errBad) {
		return nil, nil, damaged("the identity file: %v", err)
	}
	if err != nil {
		return nil, nil, err
	}
	if d.charter.sync == OS && d.charter.boot != d.boot {
		return nil, nil, &unproven{reason: "the machine was started again since, and with sync=os what it had not written to disk by then is lost"}
	}

	// The newest state that is whole.
	var meta *pb.SnapshotMetadata
	r := new(replay)
	r.reset(0, 0)
	for _, index := range slices.Backward(ls.states) {
		m, err := d.verifyState(index, d.charter.nonce)
		if errors.Is(err, errBad) {
			d.log.Error("a state file is damaged", zap.Uint64("index", index), zap.Error(err))
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		meta = m
		d.states = []uint64{index}
		r.reset(index, m.GetTerm())
		break
	}

	// The segments without a gap up to the newest. Those before a gap were being
	// deleted, or are missed below.
	run := ls.segments
	for i := len(run) - 1; i > 0; i-- {
		if run[i-1]+1 != run[i] {
			run = run[i:]
			break
		}
	}
	var size int64
	for i, seq := range run {
		newest := i == len(run)-1
		seg, n, err := d.read(r, seq, i == 0, newest)
		if err != nil {
			return nil, nil, err
		}
		if n == 0 && newest {
			// Made when the process died: it never had anything.
			break
		}
		if n == 0 {
			return nil, nil, damaged("segment %d has no head", seq)
		}
		d.closed, size = append(d.closed, seg), n
	}
	if len(d.closed) == 0 {
		return nil, nil, damaged("there is an identity, and no log")
	}
	if err := r.proves(meta); err != nil {
		return nil, nil, err
	}
	return r, meta, d.resume(ls, r, size)
}

// resume makes the directory as if nothing had happened to it: the newest segment,
// good up to size, is appended to; leftovers are deleted; and what was written
// under another Sync is brought to this one.
func (d *disk) resume(ls listing, r *replay, size int64) error {
	newest := d.closed[len(d.closed)-1]
	d.closed = d.closed[:len(d.closed)-1]
	file, err := os.OpenFile(d.path(numbered(logPrefix, newest.seq)), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	d.active, d.seq, d.max, d.size = file, newest.seq, newest.max, size
	d.seed = seedOf(d.charter.nonce, 'l', newest.seq)
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if cut := info.Size() - size; cut > 0 {
		d.log.Info("dropped the end of the raft log, which was being written when the process ended", zap.Int64("bytes", cut))
		if err := d.truncate(file, size); err != nil {
			return err
		}
	} else if _, err := file.Seek(size, io.SeekStart); err != nil {
		return err
	}
	var needless []string
	for _, index := range ls.states {
		if !slices.Contains(d.states, index) {
			needless = append(needless, numbered(statePrefix, index))
		}
	}
	for _, seq := range ls.segments {
		if seq != d.seq && !slices.ContainsFunc(d.closed, func(s segment) bool { return s.seq == seq }) {
			needless = append(needless, numbered(logPrefix, seq))
		}
	}
	for _, name := range append(needless, ls.tmps...) {
		if err := d.remove(name); err != nil {
			return err
		}
	}
	if err := d.dropLocked(r.base); err != nil {
		return err
	}
	d.newest.Store(r.at.index)
	d.written.Store(r.bytes)
	d.known = true
	if d.charter.sync == d.sync {
		return nil
	}
	if d.sync == Always {
		if err := d.syncAll(); err != nil {
			return err
		}
	}
	d.charter.sync, d.charter.boot = d.sync, d.boot
	return d.writeCharter(&d.charter)
}

// syncAll syncs what was written without.
func (d *disk) syncAll() error {
	names := []string{numbered(logPrefix, d.seq)}
	for _, s := range d.closed {
		names = append(names, numbered(logPrefix, s.seq))
	}
	for _, index := range d.states {
		names = append(names, numbered(statePrefix, index))
	}
	for _, name := range names {
		if err := d.syncNamed(name); err != nil {
			return err
		}
	}
	return d.syncDir()
}

// setAside moves all files into a directory of their own, and removes an earlier one:
// one is enough to look at, and each may be large. It is not synced: if power is lost
// and files are back, they contradict themselves again.
func (d *disk) setAside() error {
	ls, err := d.list()
	if err != nil {
		return err
	}
	for _, name := range ls.asides {
		if err := os.RemoveAll(d.path(name)); err != nil {
			return err
		}
	}
	dir := asidePrefix + time.Now().UTC().Format("20060102T150405.000Z")
	if err := os.Mkdir(d.path(dir), 0o700); err != nil {
		return err
	}
	for _, name := range ls.names() {
		if err := d.rename(name, dir+string(os.PathSeparator)+name); err != nil {
			return err
		}
	}
	d.log.Error("the files of the raft log were moved aside", zap.String("to", d.path(dir)))
	return nil
}

// start deletes what there is and begins an empty log. As long as it is not done
// there is no identity file, or one whose log is empty.
func (d *disk) start(id Identity) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut {
		return errClosed
	}
	if d.failed != nil {
		return d.failed
	}
	d.known = false
	d.charter = charter{nonce: newNonce(), sync: d.sync, boot: d.boot, id: id}
	if err := d.remove(identityName); err != nil {
		return err
	}
	if err := d.syncDir(); err != nil {
		return err
	}
	ls, err := d.list()
	if err == nil {
		err = d.shutLocked()
	}
	if err != nil {
		return err
	}
	for _, name := range ls.names() {
		if err := d.remove(name); err != nil {
			return err
		}
	}
	d.closed, d.states = nil, nil
	d.written.Store(0)
	d.covered.Store(0)
	d.newest.Store(0)
	err = d.rollLocked(1, position{})
	if err == nil {
		err = d.writeCharter(&d.charter)
	}
	if err != nil {
		return errors.Join(err, d.shutLocked())
	}
	d.known = true
	return nil
}
