package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/attunekv/attune/consistency/disk"
)

// Position is a place in a journal: the bytes of records that were appended before
// it, since Start. It only grows.
type Position int64

// keepBuffer is what the encoding buffer may grow to and be kept.
const keepBuffer = 4 << 20

// Journal is the memory of one controller in one directory. Its methods may be
// called from any goroutine, save that those that take a function must not be called
// from within one. Append and SetBound wait for each other alone.
type Journal struct {
	dir *disk.Files

	end     atomic.Int64 // Position of the end; all before is as durable as Sync says
	covered atomic.Int64 // Position of the newest state
	bound   atomic.Int64 // unix milliseconds, likewise durable
	closing atomic.Bool  // a Checkpoint that is under way shall end

	// one is held by what may take long: of Checkpoint, LoadState, Replay, Start,
	// Rename and Close there is one at a time. It guards states, and is taken before mu.
	one    sync.Mutex
	states []Position // state files, ascending; the last is valid

	// mu guards what follows, and the order of what is appended: it is held while
	// that is written. charter and known change under one as well.
	mu      sync.Mutex
	charter disk.Charter
	known   bool // there is an identity, that of charter
	shut    bool // by Close
	closed  []segment
	active  *disk.Active // nil before Start
	buf     []byte
	failed  error // what a write or sync failed with: nothing is written after it
}

var (
	errNotStarted = errors.New("it has no identity: it was not started")
	errClosed     = errors.New("it is closed")
)

// Open opens the journal in o.Dir. It reads all the files, so it takes as long as
// that does. What does not prove that it is whole is not used: see
// [Journal.Identity]. Errors are those of the disk, which say nothing about what is
// on it; [disk.ErrInUse]; [disk.ErrFormat].
func Open(o disk.Options) (*Journal, error) {
	j, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("journal in %s: %w", o.Dir, disk.Advise(err))
	}
	return j, nil
}

func open(o disk.Options) (*Journal, error) {
	files, err := disk.Take(o)
	if err != nil {
		return nil, err
	}
	j := &Journal{dir: files}
	if err := j.recover(); err != nil {
		err = errors.Join(j.active.Close(), j.dir.Forsake(err))
		j = &Journal{dir: files}
		if err != nil {
			return nil, errors.Join(err, files.Release())
		}
	}
	return j, nil
}

// Identity is who this memory is: as found by Open, or given to Start. False is that
// there is nothing in the directory, or it cannot be proven to be the whole journal,
// for whatever reason: then the caller draws a new origin, and calls Start.
func (j *Journal) Identity() (disk.Identity, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.known {
		return disk.Identity{}, false
	}
	return j.charter.ID, true
}

// Start forgets everything but the bound, and begins an empty journal under id, whose
// ID, the origin, must be new. When it returns that is on disk, synced. It waits for a
// Checkpoint that is under way. After an error the journal is that of nobody: nothing
// can be appended, and the caller exits, or tries again.
func (j *Journal) Start(id disk.Identity) error {
	err := id.Validate()
	if err == nil {
		j.one.Lock()
		defer j.one.Unlock()
		j.mu.Lock()
		defer j.mu.Unlock()
		err = j.startLocked(id)
	}
	if err != nil {
		return fmt.Errorf("start the journal: %w", err)
	}
	return nil
}

// startLocked deletes what there is and begins a journal. As long as it is not done
// there is no identity file.
func (j *Journal) startLocked(id disk.Identity) error {
	if j.shut {
		return errClosed
	}
	if j.failed != nil {
		return j.failed
	}
	j.known = false
	j.charter = j.dir.Found(disk.Journal, id)
	if err := errors.Join(j.closeActiveLocked(), j.dir.Clear()); err != nil {
		return err
	}
	j.closed, j.states = nil, nil
	j.end.Store(0)
	j.covered.Store(0)
	if err := j.rollLocked(); err != nil {
		return err
	}
	if ms := j.bound.Load(); ms > 0 {
		if err := j.writeLocked(typeBound, boundRecord(ms)); err != nil {
			return err
		}
	}
	if err := j.dir.WriteCharter(&j.charter); err != nil {
		return err
	}
	j.known = true
	return nil
}

// Rename gives the same memory another name, or another cluster: that is what making
// a new cluster of what one controller has comes to. The origin stays. When it
// returns that is on disk, synced. On an error nobody knows which of the two is there:
// the caller exits.
func (j *Journal) Rename(id disk.Identity) error {
	if err := j.become(id); err != nil {
		return fmt.Errorf("rename the journal: %w", err)
	}
	return nil
}

func (j *Journal) become(id disk.Identity) error {
	if err := id.Validate(); err != nil {
		return err
	}
	j.one.Lock()
	defer j.one.Unlock()
	j.mu.Lock()
	err := j.usableLocked()
	c := j.charter
	j.mu.Unlock()
	if err != nil {
		return err
	}
	if c.ID.ID != id.ID {
		return fmt.Errorf("origin %x cannot become %x: another origin is another memory, for Start", c.ID.ID, id.ID)
	}
	c.ID = id
	if err := j.dir.WriteCharter(&c); err != nil {
		return err
	}
	j.mu.Lock()
	j.charter = c
	j.mu.Unlock()
	return nil
}

// usableLocked is why nothing can be written.
func (j *Journal) usableLocked() error {
	switch {
	case j.shut:
		return errClosed
	case j.failed != nil:
		return j.failed
	case !j.known:
		return errNotStarted
	}
	return nil
}

// Append appends records, in this order. It is one write, and with Always one sync:
// after a crash all of them are there, or none. They may be modified when it returned.
//
// After any error the caller must exit the process. What a failed write or sync left
// on disk is not known, not even to the kernel, and another attempt that succeeds
// would prove nothing; so there is none, and everything that writes fails from then on.
func (j *Journal) Append(records [][]byte) error {
	if len(records) == 0 {
		return nil
	}
	size := 0
	for _, r := range records {
		size += binary.MaxVarintLen64 + len(r)
	}
	if size > disk.MaxRecord {
		return fmt.Errorf("append to the journal: %d bytes at once: at most %d", size, disk.MaxRecord)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	rec := appendBatch(append(j.buf[:0], make([]byte, disk.HeadLen)...), records)
	j.buf = nil
	if cap(rec) <= keepBuffer {
		j.buf = rec
	}
	if err := j.appendLocked(disk.TypeBatch, rec); err != nil {
		return fmt.Errorf("append to the journal: %w", err)
	}
	return nil
}

// SetBound promises that the clock issues no version of a millisecond above ms
// before it is called again: unix milliseconds. When it returns that is as durable as
// what is appended, and it may issue them. A bound that is not above the one before
// changes nothing. As each call writes, it should be set some seconds ahead. Errors:
// as of Append, with the same consequence.
func (j *Journal) SetBound(ms int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if ms <= j.bound.Load() {
		return nil
	}
	if err := j.appendLocked(typeBound, boundRecord(ms)); err != nil {
		return fmt.Errorf("write the clock's bound to the journal: %w", err)
	}
	j.bound.Store(ms)
	return nil
}

// Bound is the highest that SetBound was given, in this life or those before: where
// a clock goes on from. 0 is none.
func (j *Journal) Bound() int64 { return j.bound.Load() }

// Mark is where the journal ends: all that was appended is before. It waits for
// nothing.
func (j *Journal) Mark() Position { return Position(j.end.Load()) }

// Size is the bytes that were appended since the place of the newest state: what
// grows until the next Checkpoint, and what a restart has to replay.
func (j *Journal) Size() int64 { return j.end.Load() - j.covered.Load() }

// Replay calls fn with every record that was appended behind the newest state, in
// order, until it fails. A record is fn's until it returns. It is for between Open and
// the first Append. Errors: fn's, those of the disk.
func (j *Journal) Replay(fn func(record []byte) error) error {
	j.one.Lock()
	defer j.one.Unlock()
	j.mu.Lock()
	if !j.known {
		j.mu.Unlock()
		return nil
	}
	from, c := Position(j.covered.Load()), j.charter
	segs := append(j.closed[:len(j.closed):len(j.closed)], segment{start: j.start()})
	j.mu.Unlock()
	for _, s := range segs {
		_, err := j.dir.ReadSegment(&c, uint64(s.start), false, func(offset int64, typ byte, payload []byte) error {
			at := positionIn(s.start, offset)
			if typ != disk.TypeBatch || at < from {
				return nil
			}
			if err := eachRecord(payload, fn); err != nil {
				return fmt.Errorf("record at position %d: %w", at, err)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("replay the journal: %w", err)
		}
	}
	return nil
}

// Close ends the use of the journal, also for a Checkpoint that is under way, for
// which it waits, and lets another process have the directory. It syncs what is not
// synced, so it may take as long as the disk needs for that; a process that cannot wait
// may end without, and with OS loses nothing unless the machine ends, too.
func (j *Journal) Close() error {
	j.closing.Store(true)
	j.one.Lock()
	defer j.one.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.shut {
		return nil
	}
	var err error
	if j.usableLocked() == nil {
		err = j.sealLocked()
	}
	j.shut = true
	if err = errors.Join(err, j.closeActiveLocked(), j.dir.Release()); err != nil {
		return fmt.Errorf("close the journal: %w", err)
	}
	return nil
}

// sealLocked writes down that the journal is whole, and where it ends.
func (j *Journal) sealLocked() error {
	if j.dir.Sync == disk.OS {
		if err := j.dir.SyncAll(); err != nil {
			return err
		}
	}
	c := j.charter
	c.Closed, c.End = true, uint64(j.Mark())
	return j.dir.WriteCharter(&c)
}
