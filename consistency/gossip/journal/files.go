package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	lockName     = "lock"
	identityName = "identity"
	logPrefix    = "log-"
	statePrefix  = "state-"
	asidePrefix  = "corrupt-"
	tmpSuffix    = ".tmp"
)

// files is a directory, and all that changes in it. Tests watch it from hook,
// which is called before each change and by its error prevents it.
type files struct {
	dir  string
	hook func(op, name string) error
}

func (f *files) path(name string) string { return filepath.Join(f.dir, name) }

func (f *files) before(op, name string) error {
	if f.hook == nil {
		return nil
	}
	return f.hook(op, filepath.Base(name))
}

// create makes a file that must not exist.
func (f *files) create(name string) (*os.File, error) {
	if err := f.before("create", name); err != nil {
		return nil, err
	}
	return os.OpenFile(f.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// write is one write, if the system lets it be.
func (f *files) write(file *os.File, b []byte) error {
	if err := f.before("write", file.Name()); err != nil {
		return err
	}
	_, err := file.Write(b)
	return err
}

func (f *files) sync(file *os.File) error {
	if err := f.before("sync", file.Name()); err != nil {
		return err
	}
	return file.Sync()
}

// syncNamed is sync of a file that is not open.
func (f *files) syncNamed(name string) error {
	file, err := os.OpenFile(f.path(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.sync(file), file.Close())
}

// syncDir makes it last which files there are.
func (f *files) syncDir() error {
	if err := f.before("syncdir", ""); err != nil {
		return err
	}
	return syncDir(f.dir)
}

// truncate cuts file, and goes to its end.
func (f *files) truncate(file *os.File, size int64) error {
	if err := f.before("truncate", file.Name()); err != nil {
		return err
	}
	if err := file.Truncate(size); err != nil {
		return err
	}
	_, err := file.Seek(size, io.SeekStart)
	return err
}

func (f *files) rename(from, to string) error {
	if err := f.before("rename", to); err != nil {
		return err
	}
	return os.Rename(f.path(from), f.path(to))
}

// remove removes a file, if it is there.
func (f *files) remove(name string) error {
	if err := f.before("remove", name); err != nil {
		return err
	}
	if err := os.Remove(f.path(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// listing is what of ours is in the directory.
type listing struct {
	identity bool
	segments []Position // ascending
	states   []Position // ascending
	tmps     []string
	asides   []string
}

func (f *files) list() (listing, error) {
	var l listing
	entries, err := os.ReadDir(f.dir) // sorted by name, and so by position
	if err != nil {
		return l, err
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
		if at, ok := position(name, logPrefix); ok {
			l.segments = append(l.segments, at)
		} else if at, ok := position(name, statePrefix); ok {
			l.states = append(l.states, at)
		} else if name == identityName {
			l.identity = true
		} else if strings.HasSuffix(name, tmpSuffix) {
			l.tmps = append(l.tmps, name)
		}
	}
	return l, nil
}

// names are all the files but the lock.
func (l *listing) names() []string {
	var names []string
	if l.identity {
		names = append(names, identityName) // first: without it the others are nothing
	}
	for _, at := range l.segments {
		names = append(names, named(logPrefix, at))
	}
	for _, at := range l.states {
		names = append(names, named(statePrefix, at))
	}
	return append(names, l.tmps...)
}

// setAside moves all files into a directory of their own, and removes an earlier one:
// one is enough to look at, and each may be large. It is not synced: if power is lost
// and files are back, they contradict themselves again.
func (f *files) setAside() (to string, err error) {
	l, err := f.list()
	if err != nil {
		return "", err
	}
	for _, name := range l.asides {
		if err := os.RemoveAll(f.path(name)); err != nil {
			return "", err
		}
	}
	to = asidePrefix + time.Now().UTC().Format("20060102T150405.000Z")
	if err := os.Mkdir(f.path(to), 0o700); err != nil {
		return "", err
	}
	for _, name := range l.names() {
		if err := f.rename(name, filepath.Join(to, name)); err != nil {
			return "", err
		}
	}
	return f.path(to), nil
}

func named(prefix string, at Position) string { return fmt.Sprintf("%s%016x", prefix, int64(at)) }

func position(name, prefix string) (Position, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseInt(digits, 16, 64)
	return Position(n), err == nil && n >= 0 && named(prefix, Position(n)) == name
}
