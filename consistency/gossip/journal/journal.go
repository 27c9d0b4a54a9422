package journal

import (
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
)

// Sync is what a Journal must survive.
type Sync uint8

const (
	// OS survives the death of the process, not of the machine: what is appended was
	// handed to the operating system.
	OS Sync = iota + 1
	// Always survives loss of power: what is appended was synced to disk.
	Always
)

// String is what ParseSync takes.
func (s Sync) String() string {
	switch s {
	case OS:
		return "os"
	case Always:
		return "always"
	}
	return fmt.Sprintf("Sync(%d)", uint8(s))
}

// ParseSync is the Sync of that name: os or always.
func ParseSync(name string) (Sync, error) {
	for _, s := range []Sync{OS, Always} {
		if s.String() == name {
			return s, nil
		}
	}
	return 0, fmt.Errorf("sync is %q: want os or always", name)
}

// Position is a place in a journal: the bytes of records that were appended before
// it, since Start. It only grows.
type Position int64

// Options say where a Journal is.
type Options struct {
	// Dir is the directory, made if it is not there. One process can use it.
	Dir string
	// Sync is what it must survive.
	Sync Sync
	// Log is told what Open finds; nil is nobody.
	Log *zap.Logger
	// BootID names this boot of the machine, for OS; "" asks Linux.
	BootID string
	// SegmentBytes is after how many another file is begun; 0 is 64 MiB.
	SegmentBytes int64
}

const (
	defaultSegmentBytes = 64 << 20
	// keepBuffer is what the encoding buffer may grow to and be kept.
	keepBuffer = 4 << 20
)

// Journal is the memory of one controller in one directory. Its methods may be
// called from any goroutine, save that those that take a function must not be called
// from within one. Append and SetBound wait for each other alone.
type Journal struct {
	files
	syncs    Sync
	boot     string
	segBytes int64
	log      *zap.Logger
	lock     *os.File

	end     atomic.Int64 // Position of the end; all before is as durable as syncs says
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
	charter charter
	known   bool // there is an identity, that of charter
	shut    bool // by Close
	closed  []segment
	active  *os.File // appended to; nil before Start
	start   Position // of active
	seed    uint32   // of active
	buf     []byte
	failed  error // what a write or sync failed with: nothing is written after it
}

var (
	errInUse      = errors.New("in use by another process: stop that, or give this one another directory")
	errNotStarted = errors.New("it has no identity: it was not started")
	errClosed     = errors.New("it is closed")
)

// Open opens the journal in o.Dir. It reads all the files, so it takes as long as
// that does. What does not prove that it is whole is not used: see
// [Journal.Identity]. Errors are those of the disk, which say nothing about what is
// on it; that another process uses the directory; that another version of attune
// wrote it, or another engine.
func Open(o Options) (*Journal, error) {
	switch {
	case o.Dir == "":
		return nil, errors.New("a journal needs a directory")
	case o.Sync != OS && o.Sync != Always:
		return nil, fmt.Errorf("journal with sync=%s: want os or always", o.Sync)
	case o.SegmentBytes < 0:
		return nil, fmt.Errorf("journal with segments of %d bytes", o.SegmentBytes)
	}
	j, err := open(o)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: this process must be allowed to read and write the directory and all files in it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("journal in %s: %w", o.Dir, err)
	}
	return j, nil
}

func open(o Options) (*Journal, error) {
	j, err := take(o)
	if err != nil {
		return nil, err
	}
	err = j.recover()
	if lost, ok := errors.AsType[*unproven](err); ok {
		j.log.Error("what is on disk does not prove that it is the whole journal; this controller forgets it, and is a new one to its cluster",
			zap.String("dir", j.dir), zap.String("why", lost.reason))
		err = nil
		if lost.damaged {
			var to string
			if to, err = j.setAside(); err == nil {
				j.log.Error("the files of the journal were moved aside", zap.String("to", to))
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, j.shutLocked())
	}
	return j, nil
}

// take takes the directory.
func take(o Options) (*Journal, error) {
	j := &Journal{files: files{dir: o.Dir}, syncs: o.Sync, boot: o.BootID, segBytes: o.SegmentBytes, log: o.Log}
	if j.log == nil {
		j.log = zap.NewNop()
	}
	if j.segBytes == 0 {
		j.segBytes = defaultSegmentBytes
	}
	if j.boot == "" {
		var err error
		if j.boot, err = bootID(); err != nil && j.syncs == OS {
			return nil, err
		}
	}
	if len(j.boot) > 255 {
		return nil, fmt.Errorf("boot id of %d bytes", len(j.boot))
	}
	_, err := os.Stat(j.dir)
	made := errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, err
	}
	if made && j.syncs == Always {
		if err := syncDir(filepath.Dir(j.dir)); err != nil {
			return nil, err
		}
	}
	if j.lock, err = os.OpenFile(j.path(lockName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := lockFile(j.lock); err != nil {
		return nil, errors.Join(err, j.lock.Close())
	}
	return j, nil
}

// Identity is who this memory is: as found by Open, or given to Start. False is that
// there is nothing in the directory, or it cannot be proven to be the whole journal,
// for whatever reason: then the caller draws a new origin, and calls Start.
func (j *Journal) Identity() (Identity, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.known {
		return Identity{}, false
	}
	return j.charter.id, true
}

// Start forgets everything but the bound, and begins an empty journal under id, whose
// Origin must be new. When it returns that is on disk, synced. It waits for a
// Checkpoint that is under way. After an error the journal is that of nobody: nothing
// can be appended, and the caller exits, or tries again.
func (j *Journal) Start(id Identity) error {
	err := id.validate()
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
func (j *Journal) startLocked(id Identity) error {
	if j.shut {
		return errClosed
	}
	if j.failed != nil {
		return j.failed
	}
	j.known = false
	j.charter = charter{nonce: newNonce(), sync: j.syncs, boot: j.boot, id: id}
	if err := j.remove(identityName); err != nil {
		return err
	}
	if err := j.syncDir(); err != nil {
		return err
	}
	ls, err := j.list()
	if err != nil {
		return err
	}
	if err := j.closeActiveLocked(); err != nil {
		return err
	}
	for _, name := range ls.names() {
		if err := j.remove(name); err != nil {
			return err
		}
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
	if err := j.writeCharter(&j.charter); err != nil {
		return err
	}
	j.known = true
	return nil
}

// Rename gives the same memory another name, or another cluster: that is what making
// a new cluster of what one controller has comes to. The origin stays. When it
// returns that is on disk, synced. On an error nobody knows which of the two is there:
// the caller exits.
func (j *Journal) Rename(id Identity) error {
	if err := j.become(id); err != nil {
		return fmt.Errorf("rename the journal: %w", err)
	}
	return nil
}

func (j *Journal) become(id Identity) error {
	if err := id.validate(); err != nil {
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
	if c.id.Origin != id.Origin {
		return fmt.Errorf("origin %x cannot become %x: another origin is another memory, for Start", c.id.Origin, id.Origin)
	}
	c.id = id
	if err := j.writeCharter(&c); err != nil {
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
	if size > maxRecord {
		return fmt.Errorf("append to the journal: %d bytes at once: at most %d", size, maxRecord)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	rec := appendBatch(append(j.buf[:0], make([]byte, headLen)...), records)
	j.buf = nil
	if cap(rec) <= keepBuffer {
		j.buf = rec
	}
	if err := j.appendLocked(typeBatch, rec); err != nil {
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
	from, nonce := Position(j.covered.Load()), j.charter.nonce
	segs := append(j.closed[:len(j.closed):len(j.closed)], segment{j.start, j.Mark()})
	j.mu.Unlock()
	for _, s := range segs {
		err := j.scan(nonce, s, func(at Position, typ byte, payload []byte) error {
			if typ != typeBatch || at < from {
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
	if err = errors.Join(err, j.shutLocked()); err != nil {
		return fmt.Errorf("close the journal: %w", err)
	}
	return nil
}

// sealLocked writes down that the journal is whole, and where it ends.
func (j *Journal) sealLocked() error {
	if j.syncs == OS {
		if err := j.syncAllLocked(); err != nil {
			return err
		}
	}
	c := j.charter
	c.closed, c.end = true, j.Mark()
	return j.writeCharter(&c)
}

// shutLocked lets go of the files.
func (j *Journal) shutLocked() error { return errors.Join(j.closeActiveLocked(), j.lock.Close()) }

// newNonce tells journals apart that were in one directory.
func newNonce() uint64 {
	var b [8]byte
	_, _ = crand.Read(b[:]) // it never fails
	return le.Uint64(b[:])
}
