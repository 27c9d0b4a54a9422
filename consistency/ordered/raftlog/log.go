package raftlog

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/attunekv/attune/consistency/disk"
)

// Log is the log of one member of one Raft group. One goroutine uses it, save
// where a method says otherwise.
type Log struct {
	memory   memory
	hard     hard
	conf     *pb.ConfState
	snapshot func() (*pb.Snapshot, error)
	disk     *persisted // nil in memory
	behind   bool       // disk's commit is behind hard's

	// In memory only, else they are disk's.
	known bool
	id    disk.Identity
}

var _ raft.Storage = (*Log)(nil)

// Open opens the log in o.Dir, with all its entries behind the state there, or an
// empty one. Without a directory it is in memory only, and o.Sync is None. Open reads all
// the files, so it takes as long as that does. What does not prove that it is whole is
// not used: see [Log.Identity]. Errors are those of the disk, which say nothing about
// what is on it; [disk.ErrInUse]; [disk.ErrFormat].
func Open(o disk.Options) (*Log, error) {
	l := new(Log)
	l.memory.reset(0, 0)
	switch {
	case o.Dir == "" && o.Sync != disk.None:
		return nil, fmt.Errorf("sync=%s needs a directory", o.Sync)
	case o.Dir == "":
		return l, nil
	}
	if err := l.open(o); err != nil {
		return nil, fmt.Errorf("raft log in %s: %w", o.Dir, disk.Advise(err))
	}
	return l, nil
}

func (l *Log) open(o disk.Options) error {
	files, err := disk.Take(o)
	if err != nil {
		return err
	}
	l.disk = &persisted{Files: files}
	r, conf, err := l.disk.recover()
	if err != nil {
		err = errors.Join(l.disk.active.Close(), l.disk.Forsake(err))
		l.disk = &persisted{Files: files}
	}
	if err != nil {
		return errors.Join(err, files.Release())
	}
	if l.disk.known {
		l.memory, l.hard, l.conf = r.memory, r.at.hard, conf
	}
	return nil
}

// Identity is who this log belongs to: as found by Open, or given to Start. False is
// that there is no directory, or nothing in it, or what is in it cannot be proven
// to be the whole log, for whatever reason: then the caller is a new member, draws
// a new raft id, and calls Start.
func (l *Log) Identity() (disk.Identity, bool) {
	if l.disk == nil {
		return l.id, l.known
	}
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	if !l.disk.known {
		return disk.Identity{}, false
	}
	return l.disk.charter.ID, true
}

// Start forgets everything and begins an empty log under id, whose ID must be new.
// When it returns that is on disk, synced. After an error the log is that of
// nobody: nothing can be saved, and the caller exits, or tries again.
func (l *Log) Start(id disk.Identity) error {
	if err := id.Validate(); err != nil {
		return fmt.Errorf("start the raft log: %w", err)
	}
	l.memory.reset(0, 0)
	l.hard, l.conf, l.behind = hard{}, nil, false
	if l.disk == nil {
		l.id, l.known = id, true
		return nil
	}
	if err := l.disk.start(id); err != nil {
		return fmt.Errorf("start the raft log: %w", err)
	}
	return nil
}

// Rename gives the same log another identity, of another cluster: that is what
// making a new cluster of what one member has comes to. When it returns that is on
// disk, synced. On an error nobody knows which of the two is there: the caller exits.
func (l *Log) Rename(id disk.Identity) error {
	if err := id.Validate(); err != nil {
		return fmt.Errorf("rename the raft log: %w", err)
	}
	d := l.disk
	if d == nil {
		l.id, l.known = id, true
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usableLocked(); err != nil {
		return fmt.Errorf("rename the raft log: %w", err)
	}
	c := d.charter
	c.ID = id
	if err := d.WriteCharter(&c); err != nil {
		return fmt.Errorf("rename the raft log: %w", err)
	}
	d.charter = c
	return nil
}

// Save saves a hard state, if hs is neither nil nor empty, and entries, of which
// the first replaces the one of its index and all behind. With a directory it is
// one write, and with Always one sync: after a crash all of it is there, or nothing.
// A hard state that differs only in commit is not written by itself, but with the next
// entries, or by Close: Raft needs no more, and loses nothing but time by it. Entries
// are kept, not copied: nobody may modify them.
//
// After any error the caller must exit the process. What a failed write or sync left
// on disk is not known, not even to the kernel, and another attempt that succeeds
// would prove nothing; so there is none, and every later Save fails.
func (l *Log) Save(hs *pb.HardState, ents []*pb.Entry) error {
	h := l.hard
	if !raft.IsEmptyHardState(hs) {
		h = hardOf(hs)
	}
	for i, e := range ents {
		first := ents[0].GetIndex()
		if first <= l.memory.base || first > l.memory.last+1 || e.GetIndex() != first+uint64(i) {
			return fmt.Errorf("entry %d, number %d of a batch that begins with %d, does not fit a log from %d to %d",
				e.GetIndex(), i, first, l.memory.base+1, l.memory.last)
		}
	}
	if d := l.disk; d != nil {
		if err := d.broken(); err != nil {
			return err
		}
		if len(ents) > 0 || h.term != l.hard.term || h.vote != l.hard.vote {
			if err := d.save(h, ents, l.position()); err != nil {
				return err
			}
			l.behind = false
		} else if h.commit != l.hard.commit {
			l.behind = true
		}
	}
	l.hard = h
	l.memory.put(ents)
	return nil
}

// position is where the log is.
func (l *Log) position() position {
	return position{l.hard, l.memory.last, l.memory.term(l.memory.last)}
}

// Install empties the log: it goes on behind a snapshot that came from a peer, of the
// entry with that index and term, and with those members. On disk it waits for a
// state at least that new: if the process ends before the next SaveState returned,
// Open finds that what it has is not whole. So SaveState should follow at once, and
// where this member's acknowledgement decides, before that is given. Errors:
// [raft.ErrSnapOutOfDate] if the log begins there or later; those of Save, with the
// same consequence.
func (l *Log) Install(index, term uint64, cs *pb.ConfState) error {
	if index <= l.memory.base {
		return raft.ErrSnapOutOfDate
	}
	if l.disk != nil {
		if err := l.disk.restart(index, term, l.position()); err != nil {
			return err
		}
		l.behind = false
	}
	l.memory.reset(index, term)
	l.hard.commit = max(l.hard.commit, index) // or there would be no snapshot of it
	l.conf = cs
	return nil
}

// DiskBytes is the length of the log on disk that the newest state does not make
// needless, give or take what was saved while that was written: what grows until
// the next SaveState. It may be called from any goroutine.
func (l *Log) DiskBytes() int64 {
	if l.disk == nil {
		return 0
	}
	return l.disk.written.Load() - l.disk.covered.Load()
}

// Close ends the use of the log, also for a SaveState that is under way, and lets
// another process have the directory.
func (l *Log) Close() error {
	d := l.disk
	if d == nil {
		return nil
	}
	d.mu.Lock()
	usable, shut := d.usableLocked() == nil, d.shut
	d.mu.Unlock()
	if shut {
		return nil
	}
	var err error
	if l.behind && usable {
		err = d.save(l.hard, nil, l.position())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut = true
	return errors.Join(err, d.closeActive(), d.Release())
}
