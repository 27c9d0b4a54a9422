package disk

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var me = Identity{ID: 77, Cluster: [16]byte{1, 2, 3}, Gen: 4, Seed: 5, Name: "one"}

func taken(t *testing.T, dir string, s Sync) *Files {
	t.Helper()
	f, err := Take(Options{Dir: dir, Sync: s, BootID: "boot1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Release() })
	return f
}

func TestParseSync(t *testing.T) {
	for _, s := range []Sync{None, OS, Always} {
		if got, err := ParseSync(s.String()); got != s || err != nil {
			t.Errorf("%v: %v, %v", s, got, err)
		}
	}
	for _, name := range []string{"", "interval", Sync(9).String()} {
		if _, err := ParseSync(name); err == nil {
			t.Error("there is no sync", name)
		}
	}
}

func TestOptionsThatMeanNothingAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{
		{}, {Sync: OS}, {Dir: t.TempDir()}, {Dir: t.TempDir(), Sync: Always + 1}, {Dir: file, Sync: OS},
		{Dir: t.TempDir(), Sync: OS, SegmentBytes: -1}, {Dir: t.TempDir(), Sync: OS, BootID: strings.Repeat("b", 256)},
	} {
		if f, err := Take(o); err == nil {
			t.Errorf("took %+v", o)
			_ = f.Release()
		}
	}
}

func TestOneMayUseADirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	f := taken(t, dir, OS)
	if _, err := Take(f.Options); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	if err := f.Release(); err != nil {
		t.Error(err)
	}
	taken(t, dir, OS)
}

func TestNoIdentity(t *testing.T) {
	for _, id := range []Identity{{}, {ID: 1, Name: strings.Repeat("n", 256)}} {
		if id.Validate() == nil {
			t.Errorf("%v is no identity", id)
		}
	}
}

// Data of the other engine, or of another version, can be read by somebody else.
func TestAnotherFormatIsNoDamage(t *testing.T) {
	for _, format := range []Format{Raft, Journal, Journal + 1} {
		f := taken(t, t.TempDir(), OS)
		c := f.Found(format, me)
		if err := f.WriteCharter(&c); err != nil {
			t.Fatal(err)
		}
		for _, as := range []Format{Raft, Journal} {
			got, l, err := f.Recover(as)
			if format != as {
				if !errors.Is(err, ErrFormat) {
					t.Errorf("%x as %x: %v", format, as, err)
				}
			} else if got != c || l == nil || err != nil {
				t.Errorf("%v, %v, want %v", got, err, c)
			}
		}
	}
}

func TestOneSetOfDamagedFilesIsKept(t *testing.T) {
	f := taken(t, t.TempDir(), OS)
	for range 3 {
		c := f.Found(Raft, me)
		if err := f.WriteCharter(&c); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f.path(identityName), 20); err != nil {
			t.Fatal(err)
		}
		_, _, err := f.Recover(Raft)
		if lost, ok := errors.AsType[*Unproven](err); !ok || !lost.Damaged {
			t.Fatal(err)
		}
		if err := f.Forsake(err); err != nil {
			t.Fatal(err)
		}
		if _, l, err := f.Recover(Raft); l != nil || err != nil {
			t.Error(l, err)
		}
		if aside, _ := filepath.Glob(f.path(asidePrefix + "*/" + identityName)); len(aside) != 1 {
			t.Errorf("kept: %v", aside)
		}
	}
	if err := f.Forsake(io.ErrUnexpectedEOF); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("not what is on disk:", err)
	}
}

func TestStateIsReadAsItWasWritten(t *testing.T) {
	f := taken(t, t.TempDir(), Always)
	for _, size := range []int{0, 1, chunkLen - 1, chunkLen, chunkLen + 1, 5*chunkLen + 7} {
		want := bytes.Repeat([]byte("0123456789a"), size/11+1)[:size]
		err := f.WriteState(1, 2, []byte("head"), func() error { return nil }, func(w io.Writer) error {
			for rest := want; len(rest) > 0; {
				n, err := w.Write(rest[:min(len(rest), 100_000)])
				if err != nil {
					return err
				}
				rest = rest[n:]
			}
			return nil
		})
		if err = errors.Join(err, f.PublishState(2)); err != nil {
			t.Fatal(err)
		}
		r, err := f.OpenState(1, 2)
		if err != nil {
			t.Fatal(err)
		}
		err = r.Use(func(in io.Reader) error {
			got, err := io.ReadAll(in)
			if !bytes.Equal(got, want) || string(r.Head) != "head" {
				t.Errorf("%d bytes came back as %d, behind %q", size, len(got), r.Head)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := f.OpenState(3, 2); !errors.Is(err, ErrBad) {
		t.Error("that of another memory is read:", err)
	}
}

// Damage is found also if the reader does not look at errors; and the state before
// is the newest then.
func TestStateThatIsDamaged(t *testing.T) {
	f := taken(t, t.TempDir(), OS)
	for n := range uint64(2) {
		err := f.WriteState(1, n, nil, func() error { return nil }, func(w io.Writer) error {
			_, err := io.WriteString(w, strings.Repeat("x", 3*chunkLen))
			return err
		})
		if err = errors.Join(err, f.PublishState(n)); err != nil {
			t.Fatal(err)
		}
	}
	b, _ := os.ReadFile(f.path(State(1)))
	b[2*chunkLen]++
	if err := os.WriteFile(f.path(State(1)), b, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := f.OpenState(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	err = r.Use(func(in io.Reader) error {
		_, _ = io.Copy(io.Discard, in)
		return nil
	})
	if !errors.Is(err, ErrBad) {
		t.Error(err)
	}
	n, found, err := f.NewestState(1, []uint64{0, 1}, func(uint64, []byte) error { return nil })
	if n != 0 || !found || err != nil {
		t.Error(n, found, err)
	}
}

// A directory that power takes with it keeps nothing, whoever made it, and made those
// that it is in.
func TestTheWayToADirectoryIsSynced(t *testing.T) {
	dir := t.TempDir()
	failed := errors.New("no")
	defer func() { syncAbove = syncDir }()
	for _, c := range []struct {
		fails string
		err   error
		want  error
	}{{want: nil}, {dir, failed, failed}, {filepath.Dir(dir), fs.ErrPermission, nil}, {"/", syscall.EINVAL, nil}} {
		var synced []string
		syncAbove = func(d string) error {
			synced = append(synced, d)
			if d == c.fails {
				return c.err
			}
			return nil
		}
		f, err := Take(Options{Dir: filepath.Join(dir, "a"), Sync: Always, BootID: "boot1"})
		if err == nil {
			err = f.Release()
		}
		var want []string
		for d := dir; ; d = filepath.Dir(d) {
			if want = append(want, d); d == c.fails || d == filepath.Dir(d) {
				break
			}
		}
		if !errors.Is(err, c.want) || !slices.Equal(synced, want) {
			t.Errorf("%s fails: %v, synced %q, want %q", c.fails, err, synced, want)
		}
	}
}
