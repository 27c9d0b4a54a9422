package kvadapter_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/kvadapter/storetest"
)

// openPebble opens a store in dir, which the caller closes; logs gets what it
// logs.
func openPebble(t *testing.T, dir, query string) (s kvadapter.Backend, logs *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.WarnLevel)
	s, err := kvadapter.Open("pebble://"+dir+query, kvadapter.Log(zap.New(core)))
	if err != nil {
		t.Fatal(err)
	}
	return s, logs
}

// value is what the n-th record of a test holds.
func pebbleRecord(n, size int) kvadapter.Record {
	return kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1, Version: attune.Version(n + 1)}, Value: storetest.Value(size, uint64(n))}
}

func putPebble(t *testing.T, s kvadapter.Backend, from, to, size int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := s.Put(t.Context(), storetest.Key(fmt.Sprint("key", i)), pebbleRecord(i, size)); err != nil {
			t.Fatal(err)
		}
	}
}

// found is how many of the first n records are there; it fails on one with other
// bytes than were put.
func found(t *testing.T, s kvadapter.Backend, n, size int) (there int) {
	t.Helper()
	for i := range n {
		rec, err := s.Get(t.Context(), storetest.Key(fmt.Sprint("key", i)), nil)
		if errors.Is(err, kvadapter.ErrNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if want := pebbleRecord(i, size); rec.Stamp != want.Stamp || string(rec.Value) != string(want.Value) {
			t.Fatalf("key %d: %d bytes with stamp %v, want %d with %v", i, len(rec.Value), rec.Stamp, len(want.Value), want.Stamp)
		}
		there++
	}
	return there
}

func closed(t *testing.T, s kvadapter.Backend) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPebble(t *testing.T) {
	storetest.Run(t, func(t *testing.T) kvadapter.Backend {
		s, _ := openPebble(t, t.TempDir(), "")
		return s
	}, storetest.Options{MaxValue: 8 << 20})
}

func TestPebbleKeepsWhatItHadWhenItWasClosed(t *testing.T) {
	dir := t.TempDir()
	s, _ := openPebble(t, dir, "")
	putPebble(t, s, 0, 1000, 100)
	if err := s.Delete(t.Context(), attune.Key{Hash: storetest.Key("key7").Hash}); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	s, logs := openPebble(t, dir, "")
	defer closed(t, s)
	if n := found(t, s, 1000, 100); n != 999 {
		t.Errorf("%d records are there, want 999", n)
	}
	if logs.Len() != 0 {
		t.Errorf("it complains: %v", logs.All())
	}
}

func TestPebbleReadsItsURLStrictly(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct{ spec, want string }{
		{"pebble://", "absolute path"},
		{"pebble://relative/dir", "absolute path"},
		{"pebble://" + dir + "?cash=1MiB", `no option is called "cash"`},
		{"pebble://" + dir + "?cache=much", `cache: want a size such as 64MiB, have "much"`},
		{"pebble://" + dir + "?cache=", "cache: want a size"},
		{"pebble://" + dir + "?cache=1KiB", "at least 1MiB"},
		{"pebble://" + dir + "?cache=1MiB&cache=2MiB", "2 times"},
		{"pebble://" + dir + "?reserve=-1", "reserve: want a size"},
		{"pebble://" + dir + "?reserve=0", "reserve: want at least 16MiB"},
		{"pebble://" + dir + "?%zz", "invalid URL escape"},
	} {
		b, err := kvadapter.Open(test.spec)
		if err == nil {
			t.Errorf("%s is opened", test.spec)
			closed(t, b)
			continue
		}
		if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.spec) {
			t.Errorf("%s: %v; want it named, and %q", test.spec, err, test.want)
		}
	}
	for _, query := range []string{"", "?cache=1MiB", "?cache=1MiB&reserve=16MiB"} {
		s, _ := openPebble(t, dir, query)
		closed(t, s)
	}
}

func TestPebbleDirectoryIsUsedByOne(t *testing.T) {
	dir := t.TempDir()
	s, _ := openPebble(t, dir, "")
	defer closed(t, s)
	if b, err := kvadapter.Open("pebble://" + dir); err == nil {
		t.Error("two have it")
		closed(t, b)
	} else if !strings.Contains(err.Error(), "another process") {
		t.Errorf("%v: does not say that another has it", err)
	}
	if aside, _ := filepath.Glob(filepath.Join(dir, "corrupt-*")); len(aside) != 0 {
		t.Errorf("the files of the other were moved to %v", aside)
	}
}

// TestPebbleGivesUpWhatADamagedFileHas: its range of keys is lost, and everything
// else goes on, writes to that range too.
func TestPebbleGivesUpWhatADamagedFileHas(t *testing.T) {
	for _, test := range []struct {
		what   string
		damage func(file string) error
	}{
		{"rubbish in the middle", scramble},
		{"too short", func(file string) error { return os.Truncate(file, 10) }},
		{"missing", os.Remove},
	} {
		t.Run(test.what, func(t *testing.T) {
			dir := t.TempDir()
			s, _ := openPebble(t, dir, "")
			putPebble(t, s, 0, 5000, 100)
			closed(t, s)
			files, err := filepath.Glob(filepath.Join(dir, "bytes", "*.sst"))
			if err != nil || len(files) == 0 {
				t.Fatalf("no files: %v", err)
			}
			for _, file := range files {
				if err := test.damage(file); err != nil {
					t.Fatal(err)
				}
			}
			s, logs := openPebble(t, dir, "")
			if n := found(t, s, 5000, 100); n == 5000 {
				t.Error("nothing was damaged")
			}
			if logs.FilterMessageSnippet("is damaged").Len() == 0 {
				t.Errorf("nobody is told: %v", logs.All())
			}
			// What comes back from others is kept, though the old file was in the way.
			attunetest.Eventually(t, "the file is given up", func() bool {
				putPebble(t, s, 0, 5000, 100)
				return found(t, s, 5000, 100) == 5000 && given(s) > 0
			})
			if n := s.(kvadapter.Mender).Damages(); n != given(s) {
				t.Errorf("%d damages, of %d files", n, given(s))
			}
			closed(t, s)
			s, _ = openPebble(t, dir, "")
			defer closed(t, s)
			if n := found(t, s, 5000, 100); n != 5000 {
				t.Errorf("%d records are there after they were put again, want 5000", n)
			}
		})
	}
}

// given is how many damaged files were given up.
func given(s kvadapter.Backend) (n int64) {
	for _, st := range s.(kvadapter.Statter).Stats() {
		if st.Name == "damaged_files_dropped" {
			n = st.Value
		}
	}
	return n
}

// scramble writes rubbish over a part of a file.
func scramble(file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for i := len(raw) / 4; i < len(raw)/2; i++ {
		raw[i] ^= 0x5a
	}
	return os.WriteFile(file, raw, 0o600)
}

func TestPebbleBeginsEmptyBesideFilesThatContradictThemselves(t *testing.T) {
	dir := t.TempDir()
	s, _ := openPebble(t, dir, "")
	putPebble(t, s, 0, 100, 100)
	closed(t, s)
	files, _ := filepath.Glob(filepath.Join(dir, "bytes", "MANIFEST-*"))
	if len(files) == 0 {
		t.Fatal("no such files")
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	s, logs := openPebble(t, dir, "")
	defer closed(t, s)
	if n := found(t, s, 100, 100); n != 0 {
		t.Errorf("%d records are there", n)
	}
	putPebble(t, s, 0, 100, 100)
	if aside, _ := filepath.Glob(filepath.Join(dir, "corrupt-*", "*.sst")); len(aside) == 0 {
		t.Error("the damaged files are gone")
	}
	if logs.FilterMessageSnippet("damaged").Len() != 1 {
		t.Errorf("nobody is told: %v", logs.All())
	}
}

// TestPebbleNoticesADamagedListOfItsFiles: Pebble takes damage there for its end, and
// what was listed behind would be gone without a word. Behind what was there at the last
// Sync there may be compactions; without them files are missing, which is told as well.
func TestPebbleNoticesADamagedListOfItsFiles(t *testing.T) {
	const n = 300
	for _, test := range []struct {
		what   string
		damage func(raw []byte, synced int) []byte
	}{
		{"half of it", func(raw []byte, synced int) []byte { return raw[:synced/2] }},
		{"but for its last byte", func(raw []byte, synced int) []byte { return raw[:synced-1] }},
		{"empty", func([]byte, int) []byte { return nil }},
		{"with a wrong bit at its begin", func(raw []byte, _ int) []byte { raw[9] ^= 1; return raw }},
		{"with a wrong bit at its end", func(raw []byte, synced int) []byte { raw[synced-1] ^= 128; return raw }},
	} {
		t.Run(test.what, func(t *testing.T) {
			dir := t.TempDir()
			s, _ := openPebble(t, dir, "")
			for i := range 3 {
				putPebble(t, s, i*n/3, (i+1)*n/3, 100)
				if err := s.(kvadapter.Syncer).Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := s.(kvadapter.Mender).Damages(); got != 0 {
				t.Errorf("%d damages before any", got)
			}
			closed(t, s)
			files, err := filepath.Glob(filepath.Join(dir, "bytes", "MANIFEST-*"))
			if err != nil || len(files) == 0 {
				t.Fatalf("no manifest: %v", err)
			}
			newest := files[len(files)-1]
			raw, err := os.ReadFile(newest)
			if err != nil {
				t.Fatal(err)
			}
			var name string
			var synced int
			seal, err := os.ReadFile(filepath.Join(dir, "bytes", "attune-seal"))
			if _, bad := fmt.Sscanf(string(seal), "attune seal 1 %s %d", &name, &synced); err != nil || bad != nil || name != filepath.Base(newest) || synced > len(raw) {
				t.Fatalf("%q for %d bytes of %s: %v, %v", seal, len(raw), newest, err, bad)
			}
			if err := os.WriteFile(newest, test.damage(raw, synced), 0o600); err != nil {
				t.Fatal(err)
			}
			s, logs := openPebble(t, dir, "")
			if there := found(t, s, n, 100); there != 0 {
				t.Errorf("%d records are there beside those that were set aside", there)
			}
			if logs.FilterMessageSnippet("files are damaged").Len() != 1 {
				t.Errorf("nobody is told: %v", logs.All())
			}
			if got := s.(kvadapter.Mender).Damages(); got != 1 {
				t.Errorf("%d damages, want 1", got)
			}
			putPebble(t, s, 0, n, 100)
			closed(t, s)
			s, logs = openPebble(t, dir, "")
			defer closed(t, s)
			if there := found(t, s, n, 100); there != n || logs.Len() != 0 {
				t.Errorf("%d of %d are there after they were put again: %v", there, n, logs.All())
			}
		})
	}
}

// TestPebbleSetsAsideOnce: of stores that were damaged one after the other the last is
// kept to be looked at.
func TestPebbleSetsAsideOnce(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		s, _ := openPebble(t, dir, "")
		putPebble(t, s, 0, 10, 100)
		closed(t, s)
		markers, _ := filepath.Glob(filepath.Join(dir, "bytes", "marker.manifest.*"))
		if len(markers) == 0 {
			t.Fatal("no file says which list is the newest")
		}
		for _, file := range markers {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, _ := openPebble(t, dir, "")
	defer closed(t, s)
	if there := found(t, s, 10, 100); there != 0 {
		t.Errorf("%d records are there", there)
	}
	if aside, _ := filepath.Glob(filepath.Join(dir, "corrupt-*")); len(aside) != 1 {
		t.Errorf("set aside: %v, want one", aside)
	}
}

// TestPebbleSealIsNoReasonToFail: a store without one, or with one that cannot be read,
// is opened as it is.
func TestPebbleSealIsNoReasonToFail(t *testing.T) {
	for what, damage := range map[string]func(file string) error{
		"none":     os.Remove,
		"rubbish":  scramble,
		"half":     func(file string) error { return os.Truncate(file, 20) },
		"an older": func(string) error { return nil },
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			s, _ := openPebble(t, dir, "")
			file := filepath.Join(dir, "bytes", "attune-seal")
			older, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			putPebble(t, s, 0, 10, 100)
			closed(t, s)
			if what == "an older" {
				err = os.WriteFile(file, older, 0o600)
			}
			if err = errors.Join(err, damage(file)); err != nil {
				t.Fatal(err)
			}
			s, logs := openPebble(t, dir, "")
			defer closed(t, s)
			if there := found(t, s, 10, 100); there != 10 || logs.Len() != 0 {
				t.Errorf("%d of 10 are there: %v", there, logs.All())
			}
		})
	}
}

func TestPebblePutsNothingWithoutRoom(t *testing.T) {
	dir := t.TempDir()
	s, _ := openPebble(t, dir, "")
	putPebble(t, s, 0, 10, 100)
	closed(t, s)
	s, _ = openPebble(t, dir, "?reserve=1PiB")
	err := s.Put(t.Context(), storetest.Key("more"), pebbleRecord(1, 10))
	if !errors.Is(err, kvadapter.ErrFull) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Put: %v, want ErrFull and the directory", err)
	}
	if n := found(t, s, 10, 100); n != 10 {
		t.Errorf("%d of 10 records are there", n)
	}
	if err := s.Delete(t.Context(), storetest.Key("key1")); err != nil {
		t.Errorf("Delete, which makes room: %v", err)
	}
	_ = s.Close() // it says that it could not write what is in memory
}

// TestPebbleWaitsForAFullDisk: what was put before others filled the disk is written
// when there is room again, and can be read meanwhile.
func TestPebbleWaitsForAFullDisk(t *testing.T) {
	disk := attunetest.SmallDisk(t, 64<<20)
	s, logs := openPebble(t, disk+"/store", "?reserve=16MiB")
	const n, size = 80, 100_000
	putPebble(t, s, 0, n, size)
	filler, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = filler.Write(chunk)
	}
	synced := make(chan error, 1)
	go func() { synced <- s.(kvadapter.Syncer).Sync(t.Context()) }()
	attunetest.Eventually(t, "the disk is found full", func() bool { return logs.FilterMessageSnippet("disk is full").Len() > 0 })
	if there := found(t, s, n, size); there != n {
		t.Errorf("%d of %d can be read meanwhile", there, n)
	}
	select {
	case err := <-synced:
		t.Errorf("synced to a full disk: %v", err)
	default:
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	filler.Close()
	if err := <-synced; err != nil {
		t.Error(err)
	}
	closed(t, s)
	s, _ = openPebble(t, disk+"/store", "?reserve=16MiB")
	defer closed(t, s)
	if there := found(t, s, n, size); there != n {
		t.Errorf("%d of %d are there", there, n)
	}
}
