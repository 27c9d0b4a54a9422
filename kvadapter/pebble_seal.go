package kvadapter

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble lists its files, and what each is for, in a log of changes, the manifest. It
// takes the first record there that is damaged for the end of it, as after a crash it
// mostly is; and what was listed behind is no more, without a word. So what a manifest
// has when everything in it was synced is noted in a file of our own: its name, its
// length, and the checksum of that. At the next start that must be there. What is behind
// is of later than the last Sync, and the engine's log has it.

const sealName = "attune-seal"

// errSeal is why a directory's files are not what they were when they were synced.
var errSeal = errors.New("the list of the store's files is damaged")

// seal is what is noted of a manifest: the first size bytes of it.
type seal struct {
	manifest string // without a directory
	size     int64
	crc      uint32
}

var sealTable = crc32.MakeTable(crc32.Castagnoli)

func (s *seal) encode() []byte {
	line := fmt.Sprintf("attune seal 1 %s %d %08x", s.manifest, s.size, s.crc)
	return fmt.Appendf(nil, "%s %08x\n", line, crc32.Checksum([]byte(line), sealTable))
}

// readSeal returns nil if there is none, or none that can be read: then nothing can be
// said, as of a store that was never sealed.
func readSeal(fs vfs.FS, dir string) (*seal, error) {
	f, err := fs.Open(fs.PathJoin(dir, sealName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	s, sum := new(seal), uint32(0)
	_, err = fmt.Sscanf(string(raw), "attune seal 1 %s %d %x %x\n", &s.manifest, &s.size, &s.crc, &sum)
	if err != nil || string(s.encode()) != string(raw) {
		return nil, nil
	}
	return s, nil
}

// write replaces the seal of a directory, or leaves it as it was, and syncs.
func (s *seal) write(fs vfs.FS, dir string) error {
	tmp := fs.PathJoin(dir, sealName+".tmp")
	f, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(s.encode())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, fs.PathJoin(dir, sealName)); err != nil {
		return err
	}
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// extend goes on to size bytes of f, the manifest.
func (s *seal) extend(f io.ReaderAt, size int64) error {
	b := make([]byte, min(max(size-s.size, 0), 64<<10))
	for s.size < size {
		n := min(int64(len(b)), size-s.size)
		if _, err := f.ReadAt(b[:n], s.size); err != nil {
			return err
		}
		s.crc, s.size = crc32.Update(s.crc, sealTable, b[:n]), s.size+n
	}
	return nil
}

// checkSeal locks a directory, if it is there, and compares its files with its seal.
// Errors: errSeal, those of reading, that another process has it. The lock is to be
// closed even so.
func checkSeal(fs vfs.FS, dir string) (*pebble.Lock, error) {
	if _, err := fs.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	lock, err := pebble.LockDirectory(dir, fs)
	if err == nil {
		err = compareSeal(fs, dir)
	}
	return lock, err
}

func compareSeal(fs vfs.FS, dir string) error {
	was, err := readSeal(fs, dir)
	if was == nil || err != nil {
		return err
	}
	now, err := pebble.Peek(dir, fs)
	if err != nil {
		return err
	}
	if !now.Exists {
		return fmt.Errorf("%w: nothing names %s any more", errSeal, was.manifest)
	}
	name := fs.PathBase(now.ManifestFilename)
	switch {
	case manifestNumber(name) > manifestNumber(was.manifest):
		return nil // a crash came before it was sealed
	case name != was.manifest:
		return fmt.Errorf("%w: it is %s, and was %s", errSeal, name, was.manifest)
	}
	f, err := fs.Open(now.ManifestFilename)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	is := seal{manifest: name}
	if err == nil {
		err = is.extend(f, min(info.Size(), was.size))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if is != *was {
		return fmt.Errorf("%w: the first %d bytes of %s are not those that were written", errSeal, was.size, name)
	}
	return nil
}

// manifestNumber counts the manifests of a store.
func manifestNumber(name string) (n int64) {
	_, _ = fmt.Sscanf(name, "MANIFEST-%d", &n) // Pebble has no others; 0 is less than any
	return n
}

// sealFiles notes what the manifest has by now, and syncs that.
func (s *pebbleStore) sealFiles() error {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	now, err := pebble.Peek(s.dir, s.fs)
	if err != nil {
		return err
	}
	is := s.sealed
	if name := s.fs.PathBase(now.ManifestFilename); name != is.manifest {
		is = seal{manifest: name}
	}
	// For writing, as some systems sync no other.
	f, err := s.fs.OpenReadWrite(now.ManifestFilename, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = is.extend(f, info.Size())
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil || is == s.sealed {
		return err
	}
	if err := is.write(s.fs, s.dir); err != nil {
		return err
	}
	s.sealed = is
	return nil
}
