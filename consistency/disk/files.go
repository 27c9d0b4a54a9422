package disk

import (
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"go.uber.org/zap"
)

// Sync is what a memory must survive.
type Sync uint8

const (
	// None is memory only.
	None Sync = iota
	// OS survives the death of the process, not of the machine: what is written was
	// handed to the operating system.
	OS
	// Always survives loss of power: what is written was synced to disk.
	Always
)

var syncNames = [...]string{None: "none", OS: "os", Always: "always"}

// String is what ParseSync takes.
func (s Sync) String() string {
	if int(s) < len(syncNames) {
		return syncNames[s]
	}
	return fmt.Sprintf("Sync(%d)", uint8(s))
}

// ParseSync is the Sync of that name: none, os or always.
func ParseSync(name string) (Sync, error) {
	for s, n := range syncNames {
		if n == name {
			return Sync(s), nil
		}
	}
	return None, fmt.Errorf("sync is %q: want none, os or always", name)
}

// Options say where a memory is.
type Options struct {
	// Dir is the directory, made if it is not there. One process can use it.
	Dir string
	// Sync is what it must survive: OS or Always.
	Sync Sync
	// Log is told what is found there; nil is nobody.
	Log *zap.Logger
	// BootID names this boot of the machine, for OS; "" asks Linux.
	BootID string
	// SegmentBytes is after how many another segment is begun; 0 is 64 MiB.
	SegmentBytes int64
}

const (
	defaultSegmentBytes = 64 << 20

	lockName      = "lock"
	identityName  = "identity"
	segmentPrefix = "log-"
	statePrefix   = "state-"
	asidePrefix   = "corrupt-"
	tmpSuffix     = ".tmp"
)

// Segment is the name of the segment with that number, which is below 1<<63.
func Segment(n uint64) string { return numbered(segmentPrefix, n) }

// State is the name of the state with that number, which is below 1<<63.
func State(n uint64) string { return numbered(statePrefix, n) }

func numbered(prefix string, n uint64) string { return fmt.Sprintf("%s%016x", prefix, n) }

func number(name, prefix string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 63)
	return n, err == nil && numbered(prefix, n) == name
}

// ErrInUse is what Take fails with while another process has the directory.
var ErrInUse = errors.New("in use by another process: stop that, or give this one another directory")

// Files is a directory that this process has taken, and all that changes in it.
type Files struct {
	Options
	// Hook is nil but in tests: it is called before each change, and by its error
	// prevents it.
	Hook func(op, name string) error
	lock *os.File
}

// Take takes the directory, until [Files.Release]. Errors: ErrInUse; of options that
// mean nothing; those of the disk.
func Take(o Options) (*Files, error) {
	switch {
	case o.Dir == "":
		return nil, errors.New("it needs a directory")
	case o.Sync != OS && o.Sync != Always:
		return nil, fmt.Errorf("sync=%s and a directory: want os or always", o.Sync)
	case o.SegmentBytes < 0:
		return nil, fmt.Errorf("segments of %d bytes", o.SegmentBytes)
	}
	f := &Files{Options: o}
	if f.Log == nil {
		f.Log = zap.NewNop()
	}
	if f.SegmentBytes == 0 {
		f.SegmentBytes = defaultSegmentBytes
	}
	if f.BootID == "" {
		var err error
		if f.BootID, err = bootID(); err != nil && f.Sync == OS {
			return nil, err
		}
	}
	if len(f.BootID) > 255 {
		return nil, fmt.Errorf("boot id of %d bytes", len(f.BootID))
	}
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return nil, err
	}
	if f.Sync == Always {
		if err := syncWay(f.Dir); err != nil {
			return nil, err
		}
	}
	var err error
	// The lock file is opened for writing: that shows that this directory can be.
	if f.lock, err = os.OpenFile(f.path(lockName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := lockFile(f.lock); err != nil {
		return nil, errors.Join(err, f.lock.Close())
	}
	return f, nil
}

// syncAbove is syncDir but in tests.
var syncAbove = syncDir

// syncWay makes it last where a directory is, from the root on: somebody may have made
// it and those above a moment ago. One that this process may not read, or on a disk that is
// not written to, it has not made.
func syncWay(dir string) error {
	at, err := filepath.Abs(dir)
	for err == nil && at != filepath.Dir(at) {
		at = filepath.Dir(at)
		err = syncAbove(at)
	}
	for _, fine := range []error{fs.ErrPermission, errors.ErrUnsupported, syscall.EINVAL, syscall.EROFS} {
		if errors.Is(err, fine) {
			return nil
		}
	}
	if err != nil {
		err = fmt.Errorf("sync the directory %s: %w", at, err)
	}
	return err
}

// Release lets another process have the directory.
func (f *Files) Release() error { return f.lock.Close() }

// Advise adds to an error what the operator can do, where that is known.
func Advise(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: this process must be allowed to read and write the directory and all files in it", err)
	}
	return err
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("this system does not tell its boots apart, so sync=os cannot know what it lost: use sync=always: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// newNonce tells memories apart that were in one directory.
func newNonce() uint64 {
	var b [8]byte
	_, _ = crand.Read(b[:]) // it never fails
	return binary.LittleEndian.Uint64(b[:])
}

func (f *Files) path(name string) string { return filepath.Join(f.Dir, name) }

func (f *Files) before(op, name string) error {
	if f.Hook == nil {
		return nil
	}
	return f.Hook(op, filepath.Base(name))
}

// create makes a file that must not exist.
func (f *Files) create(name string) (*os.File, error) {
	if err := f.before("create", name); err != nil {
		return nil, err
	}
	return os.OpenFile(f.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// write is one write, if the system lets it be.
func (f *Files) write(file *os.File, b []byte) error {
	if err := f.before("write", file.Name()); err != nil {
		return err
	}
	_, err := file.Write(b)
	return err
}

// durable syncs a file if that is what Sync asks for.
func (f *Files) durable(file *os.File) error {
	if f.Sync != Always {
		return nil
	}
	return f.sync(file)
}

func (f *Files) sync(file *os.File) error {
	if err := f.before("sync", file.Name()); err != nil {
		return err
	}
	return file.Sync()
}

// DurableNames makes it last which files there are, if that is what Sync asks for.
// After an error nobody knows, and nobody would if another attempt succeeded.
func (f *Files) DurableNames() error {
	if f.Sync != Always {
		return nil
	}
	return f.syncDir()
}

func (f *Files) syncDir() error {
	if err := f.before("syncdir", ""); err != nil {
		return err
	}
	if err := syncDir(f.Dir); err != nil {
		return fmt.Errorf("sync the directory: %w", err)
	}
	return nil
}

// SyncAll syncs what was written without.
func (f *Files) SyncAll() error {
	l, err := f.list()
	if err != nil {
		return err
	}
	written := Listing{Segments: l.Segments, States: l.States}
	for _, name := range written.names() {
		file, err := os.OpenFile(f.path(name), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(f.sync(file), file.Close()); err != nil {
			return err
		}
	}
	return f.syncDir()
}

// truncate cuts file, and goes to its end.
func (f *Files) truncate(file *os.File, size int64) error {
	if err := f.before("truncate", file.Name()); err != nil {
		return err
	}
	if err := file.Truncate(size); err != nil {
		return err
	}
	_, err := file.Seek(size, io.SeekStart)
	return err
}

// rename gives a file another name.
func (f *Files) rename(from, to string) error {
	if err := f.before("rename", to); err != nil {
		return err
	}
	return os.Rename(f.path(from), f.path(to))
}

// Remove removes a file, if it is there.
func (f *Files) Remove(name string) error {
	if err := f.before("remove", name); err != nil {
		return err
	}
	if err := os.Remove(f.path(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Listing is what of ours is in a directory.
type Listing struct {
	Segments []uint64 // ascending
	States   []uint64 // ascending
	identity bool
	tmps     []string
	asides   []string
}

func (f *Files) list() (*Listing, error) {
	l := new(Listing)
	entries, err := os.ReadDir(f.Dir) // sorted by name, and so by number
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, asidePrefix) && e.IsDir() {
			l.asides = append(l.asides, name)
			continue
		}
		if !e.Type().IsRegular() {
			continue
		}
		if n, ok := number(name, segmentPrefix); ok {
			l.Segments = append(l.Segments, n)
		} else if n, ok := number(name, statePrefix); ok {
			l.States = append(l.States, n)
		} else if name == identityName {
			l.identity = true
		} else if strings.HasSuffix(name, tmpSuffix) {
			l.tmps = append(l.tmps, name)
		}
	}
	return l, nil
}

// names are all the files but the lock, in an order to remove them in: no state is
// left without the segments that belong behind it.
func (l *Listing) names() []string {
	var names []string
	if l.identity {
		names = append(names, identityName) // first: without it the others are nothing
	}
	for _, n := range l.States {
		names = append(names, State(n))
	}
	for _, n := range l.Segments {
		names = append(names, Segment(n))
	}
	return append(names, l.tmps...)
}
