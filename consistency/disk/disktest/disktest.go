// Package disktest holds a memory in a directory to what its users rely on: that
// whatever dies at whatever moment, and whatever becomes of the files, it is as it
// was, or nobody's.
package disktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/attunekv/attune/consistency/disk"
)

// T is of a test, or of a check within it.
type T interface {
	Helper()
	Fatal(...any)
}

// Nobody is how a memory that is nobody's looks.
const Nobody = "nobody"

// Memory is how to use the memories of one kind.
type Memory[M any] struct {
	Open  func(t T, dir string, s disk.Sync) M
	Files func(m M) *disk.Files
	View  func(t T, m M) string // all that it knows, or Nobody
	Kill  func(t T, m M)        // ends its use as the death of the process does
	Add   func(m M) error       // adds something to what it remembers
}

// Reopened is the view of what another process would find in dir.
func (k Memory[M]) Reopened(t T, dir string, s disk.Sync) string {
	t.Helper()
	m := k.Open(t, dir, s)
	v := k.View(t, m)
	k.Kill(t, m)
	return v
}

// TempDir is in memory, if it can be: these tests sync thousands of times, and what
// a disk does then is not what they are about.
func TempDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "attune")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// NewDir is a directory that is not there yet.
func NewDir(t testing.TB) string { return filepath.Join(TempDir(t), "d") }

// CopyDir is a directory like from.
func CopyDir(t testing.TB, from string) string {
	t.Helper()
	to := NewDir(t)
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// Named are the paths of the files whose names begin with prefix, ascending.
func Named(t testing.TB, dir, prefix string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Newest is the path of the last of them.
func Newest(t testing.TB, dir, prefix string) string {
	t.Helper()
	names := Named(t, dir, prefix)
	if len(names) == 0 {
		t.Fatal("no file is named", prefix)
	}
	return names[len(names)-1]
}

// Starts are the offsets of the records in a file, and its end.
func Starts(t testing.TB, path string) []int {
	t.Helper()
	b := read(t, path)
	var at []int
	for i := 0; i < len(b); i += disk.HeadLen + int(binary.LittleEndian.Uint32(b[i:])) {
		at = append(at, i)
	}
	return append(at, len(b))
}

// CutLast takes the last record off a file.
func CutLast(t testing.TB, path string) {
	t.Helper()
	at := Starts(t, path)
	if err := os.Truncate(path, int64(at[len(at)-2])); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// files are the paths of all files but the lock.
func files(t testing.TB, dir string) []string {
	t.Helper()
	return append(append(Named(t, dir, "identity"), Named(t, dir, "log-")...), Named(t, dir, "state-")...)
}

// TornWrite cuts the newest segment everywhere: a write that did not return is there
// or not, and so is the segment. Views are those before each of its records but the
// head, and at its end.
func (k Memory[M]) TornWrite(t *testing.T, dir string, s disk.Sync, views []string) {
	t.Helper()
	name := Newest(t, dir, "log-")
	whole, at := read(t, name), Starts(t, name)
	if len(at) != len(views)+1 {
		t.Fatal(at, views)
	}
	for size := len(whole); size >= 0; size-- {
		for _, zeros := range []int{0, 40} {
			if zeros > 0 && s == disk.OS {
				continue // while the machine runs, nothing but a write makes a file longer
			}
			cut := append(bytes.Clone(whole[:size]), make([]byte, zeros)...)
			write(t, name, cut)
			n := 0 // whole records; zeros may be what was cut off
			for n+2 < len(at) && bytes.HasPrefix(cut, whole[:at[n+2]]) {
				n++
			}
			if got := k.Reopened(t, dir, s); got != views[n] {
				t.Fatalf("%v: cut at %d of %d, %d zeros:\n%s\nwant\n%s", s, size, len(whole), zeros, got, views[n])
			}
			// And it is appended to where it ends.
			m := k.Open(t, dir, s)
			if err := k.Add(m); err != nil {
				t.Fatal(err)
			}
			want := k.View(t, m)
			k.Kill(t, m)
			if got := k.Reopened(t, dir, s); got != want || got == views[n] {
				t.Fatalf("%v: appended after a cut at %d:\n%s\nwant\n%s", s, size, got, want)
			}
			// For the next round, as it was.
			_ = os.Remove(Newest(t, dir, "log-"))
			write(t, name, whole)
		}
	}
}

// Damage damages every byte, and cuts files everywhere: nothing goes unnoticed, or
// makes up something. With OS, and in a directory that was closed, no damage is
// excused. With Always that of the last write before a crash is, which looks like a
// torn one; before is the view without that.
func (k Memory[M]) Damage(t *testing.T, dir string, s disk.Sync, closed bool, before string) {
	t.Helper()
	last := Newest(t, dir, "log-")
	at := Starts(t, last)
	identity := filepath.Join(dir, "identity")
	charter := read(t, identity)
	names := files(t, dir)
	excused := 0
	for _, name := range names {
		if closed && name != last {
			continue // having been closed excuses nothing elsewhere
		}
		whole := read(t, name)
		for i := range 2 * len(whole) {
			damaged := bytes.Clone(whole)
			if i < len(whole) {
				damaged[i] ^= []byte{1 << (i / 2 % 8), 0xff}[i%2]
			} else if damaged = damaged[:i-len(whole)]; name == last && !closed {
				continue // that is a torn write
			}
			write(t, name, damaged)
			got := k.Reopened(t, dir, s)
			switch {
			case got == Nobody:
				aside := Named(t, dir, "corrupt-*/")
				if len(aside) != len(names) {
					t.Fatalf("%v: damage at %d of %s: moved aside are %v", s, i, name, aside)
				}
				for _, was := range aside {
					if err := os.Rename(was, filepath.Join(dir, filepath.Base(was))); err != nil {
						t.Fatal(err)
					}
				}
			case s == disk.Always && !closed && name == last && i >= at[len(at)-2] && got == before:
				excused++
			default:
				t.Fatalf("%v: damage at %d of %s: %s", s, i, name, got)
			}
			write(t, identity, charter)
			write(t, name, whole)
		}
	}
	if s == disk.Always && !closed && excused == 0 {
		t.Error("damage to the last write is not taken for a torn one")
	}
}

// MissingFiles takes each file away: that is noticed, but for the newest segment of a
// memory that was not closed, which without is one that ends earlier.
func (k Memory[M]) MissingFiles(t *testing.T, dir string, s disk.Sync, closed bool) {
	t.Helper()
	for _, name := range files(t, dir) {
		if !closed && name == Newest(t, dir, "log-") {
			continue
		}
		clone := CopyDir(t, dir)
		_ = os.Remove(filepath.Join(clone, filepath.Base(name)))
		if got := k.Reopened(t, clone, s); got != Nobody {
			t.Errorf("%v, closed %v, without %s: %s", s, closed, filepath.Base(name), got)
		}
	}
}

// Golden reads testdata/name, which an earlier version wrote, and compares with how it
// saw that.
func (k Memory[M]) Golden(t *testing.T, name string, s disk.Sync) {
	t.Helper()
	path := filepath.Join("testdata", name)
	want := string(read(t, path+".txt"))
	if got := k.Reopened(t, CopyDir(t, path), s) + "\n"; got != want {
		t.Errorf("%s is read as\n%sand was\n%s", name, got, want)
	}
}

// AnotherEngine has a directory of that format, which is not that of open: that says
// so, and leaves it alone.
func AnotherEngine(t *testing.T, format disk.Format, open func(disk.Options) error) {
	t.Helper()
	o := disk.Options{Dir: TempDir(t), Sync: disk.OS, BootID: "boot1"}
	f, err := disk.Take(o)
	if err != nil {
		t.Fatal(err)
	}
	c := f.Found(format, disk.Identity{ID: 1})
	if err := errors.Join(f.WriteCharter(&c), f.Release()); err != nil {
		t.Fatal(err)
	}
	was := read(t, Newest(t, o.Dir, "identity"))
	if err := open(o); !errors.Is(err, disk.ErrFormat) {
		t.Error(err)
	}
	if !bytes.Equal(read(t, Newest(t, o.Dir, "identity")), was) {
		t.Error("the identity file changed")
	}
}
