package journal

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

// small is a journal with a state and several segments behind it, of which the newest
// has a few records. It returns the views after each of these, and before.
func small(t testing.TB, dir string, s disk.Sync) (views []string) {
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

// An Append that did not return is there or not. So is the newest segment.
func TestTornAppendIsDroppedWhereverItWasCut(t *testing.T) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		dir := disktest.NewDir(t)
		journals.TornWrite(t, dir, s, small(t, dir, s))
	}
}

func TestDamageIsNoticed(t *testing.T) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		for _, closed := range []bool{false, true} {
			dir := disktest.NewDir(t)
			views := small(t, dir, s)
			if closed {
				if err := openAt(t, dir, s).Close(); err != nil {
					t.Fatal(err)
				}
			}
			journals.MissingFiles(t, dir, s, closed)
			journals.Damage(t, dir, s, closed, views[len(views)-2])
		}
	}
}

// Whole records are missing, and every checksum is right.
func TestMissingRecordsAreNoticed(t *testing.T) {
	for what, do := range map[string]func(t *testing.T, j *Journal, dir string){
		"a segment ends earlier than the next begins": func(t *testing.T, j *Journal, dir string) {
			disktest.CutLast(t, disktest.Named(t, dir, "log-")[1])
		},
		"the journal ends before its state": func(t *testing.T, j *Journal, dir string) {
			if err := save(j, "state"); err != nil {
				t.Fatal(err)
			}
			disktest.CutLast(t, disktest.Newest(t, dir, "log-"))
		},
		"the state is of no place": func(t *testing.T, j *Journal, dir string) {
			if err := saveAt(j, j.Mark()-1, "state"); err != nil {
				t.Fatal(err)
			}
		},
		"a segment of another life": func(t *testing.T, j *Journal, dir string) {
			other := disktest.NewDir(t)
			small(t, other, disk.OS)
			b, _ := os.ReadFile(disktest.Newest(t, other, "log-"))
			if err := os.WriteFile(disktest.Newest(t, dir, "log-"), b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		dir := disktest.NewDir(t)
		j := started(t, dir, disk.OS)
		for range 40 {
			if err := put(j, "a record"); err != nil {
				t.Fatal(err)
			}
		}
		do(t, j, dir)
		kill(t, j)
		if got := journals.Reopened(t, dir, disk.OS); got != disktest.Nobody {
			t.Errorf("%s: %s", what, got)
		}
	}
}

func TestDamagedStateIsNotNeededIfTheRecordsAreThere(t *testing.T) {
	dir := disktest.NewDir(t)
	j := started(t, dir, disk.Always)
	if err := put(j, "a", "b"); err != nil {
		t.Fatal(err)
	}
	want := view(t, j)
	if err := save(j, "state"); err != nil {
		t.Fatal(err)
	}
	kill(t, j)
	if err := os.Truncate(disktest.Newest(t, dir, "state-"), 50); err != nil {
		t.Fatal(err)
	}
	if got := journals.Reopened(t, dir, disk.Always); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestFilesOfAnotherEngineAreLeftAlone(t *testing.T) {
	disktest.AnotherEngine(t, disk.Raft, func(o disk.Options) error {
		_, err := Open(o)
		return err
	})
}
