package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// small is a journal with a state and several segments behind it, of which the newest
// has a few records. It returns the views after each of these, and before.
func small(t testing.TB, dir string, s Sync) (views []string) {
	j := started(t, dir, s)
	n := 0
	add := func(count int) {
		var records []string
		for range count {
			n++
			records = append(records, fmt.Sprint("record ", n))
		}
		if err := put(j, records...); err != nil {
			t.Fatal(err)
		}
	}
	for range 9 {
		add(1)
	}
	if err := errors.Join(j.SetBound(5), save(j, "nine")); err != nil {
		t.Fatal(err)
	}
	add(3)
	if err := j.SetBound(6); err != nil {
		t.Fatal(err)
	}
	for len(j.closed) < 2 {
		views = []string{view(t, j)}
		add(2)
	}
	views = append(views, view(t, j))
	add(1)
	views = append(views, view(t, j))
	if err := j.SetBound(7); err != nil {
		t.Fatal(err)
	}
	views = append(views, view(t, j))
	kill(t, j)
	return views
}

// starts of the records in a file, and its end.
func starts(t testing.TB, path string) []int {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var at []int
	for i := 0; i < len(b); i += headLen + int(le.Uint32(b[i:])) {
		at = append(at, i)
	}
	return append(at, len(b))
}

func newest(t testing.TB, dir, prefix string) string {
	names, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil || len(names) == 0 {
		t.Fatal("no", prefix, err)
	}
	return names[len(names)-1]
}

// An Append that did not return is there or not. So is the newest segment.
func TestTornAppendIsDroppedWhereverItWasCut(t *testing.T) {
	for _, s := range []Sync{OS, Always} {
		dir := newDir(t)
		views := small(t, dir, s)
		name := newest(t, dir, logPrefix)
		whole, _ := os.ReadFile(name)
		at := starts(t, name)
		if len(at) != len(views)+1 {
			t.Fatal(at, views)
		}
		for size := len(whole); size >= 0; size-- {
			for _, zeros := range []int{0, 40} {
				if zeros > 0 && s == OS {
					continue // while the machine runs, nothing but a write makes a file longer
				}
				cut := append(bytes.Clone(whole[:size]), make([]byte, zeros)...)
				if err := os.WriteFile(name, cut, 0o600); err != nil {
					t.Fatal(err)
				}
				n := 0 // whole records; zeros may be what was cut off
				for n+2 < len(at) && bytes.HasPrefix(cut, whole[:at[n+2]]) {
					n++
				}
				if got := reopened(t, dir, s); got != views[n] {
					t.Fatalf("%v: cut at %d of %d, %d zeros:\n%s\nwant\n%s", s, size, len(whole), zeros, got, views[n])
				}
				// And it is appended to where it ends.
				j := openAt(t, dir, s)
				if err := put(j, "more"); err != nil {
					t.Fatal(err)
				}
				want := view(t, j)
				kill(t, j)
				if got := reopened(t, dir, s); got != want || !strings.Contains(got, `"more"`) {
					t.Fatalf("%v: appended after a cut at %d:\n%s\nwant\n%s", s, size, got, want)
				}
				// For the next round, as it was.
				_ = os.Remove(newest(t, dir, logPrefix))
				if err := os.WriteFile(name, whole, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// No damage goes unnoticed, or makes up a record. With OS, and in a directory that
// was closed, there is none that is excused; with Always there is that of the last
// Append before a crash, which looks like a torn one.
func TestDamageIsNoticed(t *testing.T) {
	for _, c := range []struct {
		sync  Sync
		close bool
	}{{OS, false}, {OS, true}, {Always, false}, {Always, true}} {
		dir := newDir(t)
		views := small(t, dir, c.sync)
		if c.close {
			if err := openAt(t, dir, c.sync).Close(); err != nil {
				t.Fatal(err)
			}
		}
		last := newest(t, dir, logPrefix)
		at := starts(t, last)
		identity, _ := os.ReadFile(filepath.Join(dir, identityName))
		names, _ := os.ReadDir(dir)
		excused := 0
		for _, e := range names {
			name := filepath.Join(dir, e.Name())
			if e.Name() == lockName || c.close && name != last {
				continue // having been closed excuses nothing elsewhere
			}
			whole, _ := os.ReadFile(name)
			for i := range 2 * len(whole) {
				damaged := bytes.Clone(whole)
				if i < len(whole) {
					damaged[i] ^= []byte{1 << (i / 2 % 8), 0xff}[i%2]
				} else if damaged = damaged[:i-len(whole)]; name == last && !c.close {
					continue // that is a torn Append
				}
				if err := os.WriteFile(name, damaged, 0o600); err != nil {
					t.Fatal(err)
				}
				got := reopened(t, dir, c.sync)
				switch {
				case got == "nobody":
					aside, _ := filepath.Glob(filepath.Join(dir, asidePrefix+"*", "*"))
					if len(aside) != len(names)-1 {
						t.Fatalf("%v: damage at %d of %s: moved aside are %v", c, i, e.Name(), aside)
					}
					for _, was := range aside {
						if err := os.Rename(was, filepath.Join(dir, filepath.Base(was))); err != nil {
							t.Fatal(err)
						}
					}
				case c.sync == Always && !c.close && name == last && i >= at[len(at)-2] && got == views[len(views)-2]:
					excused++
				default:
					t.Fatalf("%v: damage at %d of %s: %s", c, i, e.Name(), got)
				}
				if os.WriteFile(filepath.Join(dir, identityName), identity, 0o600) != nil || os.WriteFile(name, whole, 0o600) != nil {
					t.Fatal("not restored")
				}
			}
		}
		if c.sync == Always && !c.close && excused == 0 {
			t.Error("damage to the last Append is not taken for a torn one")
		}
	}
}

func TestMissingFilesAreNoticed(t *testing.T) {
	for _, s := range []Sync{OS, Always} {
		for _, close := range []bool{false, true} {
			dir := newDir(t)
			small(t, dir, s)
			if close {
				if err := openAt(t, dir, s).Close(); err != nil {
					t.Fatal(err)
				}
			}
			names, _ := os.ReadDir(dir)
			for _, e := range names {
				if e.Name() == lockName || !close && filepath.Join(dir, e.Name()) == newest(t, dir, logPrefix) {
					continue // without its newest segment a journal is one that ends earlier
				}
				clone := copyDir(t, dir)
				_ = os.Remove(filepath.Join(clone, e.Name()))
				if got := reopened(t, clone, s); got != "nobody" {
					t.Errorf("%v, closed %v, without %s: %s", s, close, e.Name(), got)
				}
			}
		}
	}
}

// Whole records are missing, and every checksum is right.
func TestMissingRecordsAreNoticed(t *testing.T) {
	shorten := func(t *testing.T, name string) {
		at := starts(t, name)
		if err := os.Truncate(name, int64(at[len(at)-2])); err != nil {
			t.Fatal(err)
		}
	}
	for what, do := range map[string]func(t *testing.T, j *Journal){
		"a segment ends earlier than the next begins": func(t *testing.T, j *Journal) {
			shorten(t, j.path(named(logPrefix, j.closed[1].start)))
		},
		"the journal ends before its state": func(t *testing.T, j *Journal) {
			if err := save(j, "state"); err != nil {
				t.Fatal(err)
			}
			shorten(t, j.active.Name())
		},
		"the state is of no place": func(t *testing.T, j *Journal) {
			if err := saveAt(j, j.Mark()-1, "state"); err != nil {
				t.Fatal(err)
			}
		},
		"a segment of another life": func(t *testing.T, j *Journal) {
			other := newDir(t)
			small(t, other, OS)
			b, _ := os.ReadFile(newest(t, other, logPrefix))
			if err := os.WriteFile(j.active.Name(), b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		dir := newDir(t)
		j := started(t, dir, OS)
		for range 40 {
			if err := put(j, "a record"); err != nil {
				t.Fatal(err)
			}
		}
		do(t, j)
		kill(t, j)
		if got := reopened(t, dir, OS); got != "nobody" {
			t.Errorf("%s: %s", what, got)
		}
	}
}

func TestDamagedStateIsNotNeededIfTheRecordsAreThere(t *testing.T) {
	dir := newDir(t)
	j := started(t, dir, Always)
	if err := put(j, "a", "b"); err != nil {
		t.Fatal(err)
	}
	want := view(t, j)
	if err := save(j, "state"); err != nil {
		t.Fatal(err)
	}
	kill(t, j)
	if err := os.Truncate(newest(t, dir, statePrefix), 50); err != nil {
		t.Fatal(err)
	}
	if got := reopened(t, dir, Always); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestOneSetOfDamagedFilesIsKept(t *testing.T) {
	dir := newDir(t)
	for range 3 {
		kill(t, started(t, dir, OS))
		if err := os.Truncate(filepath.Join(dir, identityName), 20); err != nil {
			t.Fatal(err)
		}
		if got := reopened(t, dir, OS); got != "nobody" {
			t.Fatal(got)
		}
		if aside, _ := filepath.Glob(filepath.Join(dir, asidePrefix+"*")); len(aside) != 1 {
			t.Errorf("kept: %v", aside)
		}
	}
}

// Format 1 is a Raft log.
func TestFilesOfAnotherFormatAreLeftAlone(t *testing.T) {
	for _, format := range []byte{1, identityFormat + 1} {
		dir := newDir(t)
		small(t, dir, Always)
		name := filepath.Join(dir, identityName)
		b, _ := os.ReadFile(name)
		b[headLen] = format
		seal(b, typeIdentity, seedOf(0, 'i', 0), 0)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Dir: dir, Sync: Always}); !errors.Is(err, errFormat) {
			t.Error(err)
		}
		if now, _ := os.ReadFile(name); !bytes.Equal(now, b) {
			t.Error("the identity file changed")
		}
	}
}
