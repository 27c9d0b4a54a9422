package journal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

func TestMain(m *testing.M) {
	if os.Getenv(childDir) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

var me = disk.Identity{ID: 77, Cluster: [16]byte{1, 2, 3}, Gen: 4, Seed: 5, Name: "one"}

// segmentBytes of tests: a few Appends.
const segmentBytes = 150

// chunkLen is what a state is written in pieces of.
const chunkLen = 256 << 10

func openAt(t disktest.T, dir string, s disk.Sync) *Journal {
	t.Helper()
	return openBoot(t, dir, s, "boot1")
}

func openBoot(t disktest.T, dir string, s disk.Sync, boot string) *Journal {
	t.Helper()
	j, err := Open(disk.Options{Dir: dir, Sync: s, BootID: boot, SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func started(t disktest.T, dir string, s disk.Sync) *Journal {
	t.Helper()
	j := openAt(t, dir, s)
	if err := j.Start(me); err != nil {
		t.Fatal(err)
	}
	return j
}

// taken is a Journal before recover.
func taken(t disktest.T, dir string, s disk.Sync) *Journal {
	t.Helper()
	files, err := disk.Take(disk.Options{Dir: dir, Sync: s, BootID: "boot1"})
	if err != nil {
		t.Fatal(err)
	}
	return &Journal{dir: files}
}

var journals = disktest.Memory[*Journal]{
	Open: openAt, View: view, Kill: kill,
	Files: func(j *Journal) *disk.Files { return j.dir },
	Add:   func(j *Journal) error { return put(j, "more") },
}

// kill ends the use of j as the death of the process does: nothing is written.
func kill(t disktest.T, j *Journal) {
	t.Helper()
	dead := errors.New("dead")
	j.dir.Hook = func(op, name string) error { return dead }
	if err := j.Close(); err != nil && !errors.Is(err, dead) {
		t.Fatal(err)
	}
}

func put(j *Journal, records ...string) error {
	var b [][]byte
	for _, r := range records {
		b = append(b, []byte(r))
	}
	return j.Append(b)
}

// save is a Checkpoint of now.
func save(j *Journal, data string) error { return saveAt(j, j.Mark(), data) }

func saveAt(j *Journal, at Position, data string) error {
	return j.Checkpoint(at, func(w io.Writer) error {
		_, err := io.WriteString(w, data)
		return err
	})
}

// view is what a journal knows, as text.
func view(t disktest.T, j *Journal) string {
	t.Helper()
	id, known := j.Identity()
	if !known {
		if j.Bound() != 0 || j.Size() != 0 || j.Mark() != 0 {
			t.Fatal("nobody has something")
		}
		return disktest.Nobody
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%v bound %d size %d end %d", id, j.Bound(), j.Size(), j.Mark())
	err := j.LoadState(func(r io.Reader) error {
		data, err := io.ReadAll(r)
		if len(data) > 100 {
			data = fmt.Appendf(nil, "%d bytes with sum %x", len(data), crc32.ChecksumIEEE(data))
		}
		fmt.Fprintf(&b, " state %q", data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = j.Replay(func(r []byte) error {
		fmt.Fprintf(&b, " %q", r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Whatever was appended is there after the process died or closed, at any moment
// between two calls; the model is a list of records and a state.
func TestWhatWasAppendedIsThereAgain(t *testing.T) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		t.Run(s.String(), func(t *testing.T) {
			parent := disktest.TempDir(t)
			rapid.Check(t, func(t *rapid.T) {
				dir, err := os.MkdirTemp(parent, "")
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = os.RemoveAll(dir) }()
				j := started(t, dir, s)
				defer func() { kill(t, j) }()
				type mark struct {
					at Position
					n  int // records before it
				}
				var (
					all   []string
					marks = []mark{{}}
					state = -1 // of marks; -1 none
					bound int64
					boot  = 1
				)
				t.Repeat(map[string]func(*rapid.T){
					"append": func(t *rapid.T) {
						records := rapid.SliceOfN(rapid.StringN(0, 40, 40), 0, 5).Draw(t, "records")
						if err := put(j, records...); err != nil {
							t.Fatal(err)
						}
						all = append(all, records...)
					},
					"mark": func(t *rapid.T) { marks = append(marks, mark{j.Mark(), len(all)}) },
					"bound": func(t *rapid.T) {
						ms := rapid.Int64Range(1, 1000).Draw(t, "ms")
						if err := j.SetBound(ms); err != nil {
							t.Fatal(err)
						}
						bound = max(bound, ms)
					},
					"checkpoint": func(t *rapid.T) {
						i := rapid.IntRange(max(state, 0), len(marks)-1).Draw(t, "mark")
						if err := saveAt(j, marks[i].at, fmt.Sprint("state ", i)); err != nil {
							t.Fatal(err)
						}
						state = i
					},
					"restart": func(t *rapid.T) {
						if rapid.Bool().Draw(t, "kill") {
							kill(t, j)
						} else {
							if err := j.Close(); err != nil {
								t.Fatal(err)
							}
							boot++
						}
						j = openBoot(t, dir, s, fmt.Sprint("boot", boot))
					},
					"": func(t *rapid.T) {
						var want, got []string
						from := mark{}
						if state >= 0 {
							from, want = marks[state], []string{fmt.Sprint("state ", state)}
						}
						want = append(want, all[from.n:]...)
						if id, known := j.Identity(); id != me || !known || j.Bound() != bound {
							t.Fatal(id, known, j.Bound())
						}
						err := errors.Join(j.LoadState(func(r io.Reader) error {
							b, err := io.ReadAll(r)
							got = append(got, string(b))
							return err
						}), j.Replay(func(r []byte) error {
							got = append(got, string(r))
							return nil
						}))
						if err != nil || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
							t.Fatalf("%q, %v, want %q", got, err, want)
						}
						if n := int64(j.Mark() - from.at); j.Size() != n {
							t.Fatalf("size is %d, want %d", j.Size(), n)
						}
					},
				})
			})
		})
	}
}

func TestNothingIsWrittenForNobody(t *testing.T) {
	j := openAt(t, disktest.NewDir(t), disk.OS)
	for what, err := range map[string]error{
		"append": put(j, "a"), "bound": j.SetBound(1), "checkpoint": save(j, ""), "rename": j.Rename(me),
	} {
		if !errors.Is(err, errNotStarted) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if j.Start(disk.Identity{}) == nil || j.Start(disk.Identity{ID: 1, Name: strings.Repeat("n", 256)}) == nil {
		t.Error("that is no identity")
	}
	if err := errors.Join(j.Start(me), put(j, "a"), j.Close(), j.Close()); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"append": put(j, "a"), "bound": j.SetBound(1), "checkpoint": save(j, ""), "rename": j.Rename(me), "start": j.Start(me),
	} {
		if !errors.Is(err, errClosed) {
			t.Errorf("%s when closed: %v", what, err)
		}
	}
}

func TestStartForgetsAllButTheBound(t *testing.T) {
	dir := disktest.NewDir(t)
	j := started(t, dir, disk.OS)
	if err := errors.Join(put(j, "a"), j.SetBound(9), save(j, "state"), put(j, "b")); err != nil {
		t.Fatal(err)
	}
	other := me
	other.ID++
	if err := j.Start(other); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%v bound 9 size 21 end 21", other)
	if got := view(t, j); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	kill(t, j)
	if got := journals.Reopened(t, dir, disk.OS); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestRenameKeepsTheOrigin(t *testing.T) {
	dir := disktest.NewDir(t)
	j := started(t, dir, disk.OS)
	other := me
	other.Name, other.Cluster[0], other.Gen = "two", 9, 9
	if err := errors.Join(put(j, "a"), j.Rename(other)); err != nil {
		t.Fatal(err)
	}
	if id, known := j.Identity(); id != other || !known {
		t.Error(id, known)
	}
	kill(t, j)
	j = openAt(t, dir, disk.OS)
	if id, known := j.Identity(); id != other || !known {
		t.Error(id, known)
	}
	other.ID++
	if err := j.Rename(other); err == nil {
		t.Error("renamed to another origin")
	}
	kill(t, j)
}

// What was written without syncs is whole as long as the machine runs, or if it was
// closed; else it must not be believed from then on, by whatever Sync it is opened.
func TestAnotherBoot(t *testing.T) {
	for _, c := range []struct {
		name  string
		syncs []disk.Sync // of the boots in turn; each but the last appends
		boots string      // a letter each
		close bool        // instead of dying
		known bool
	}{
		{"os, same boot", []disk.Sync{disk.OS, disk.OS}, "aa", false, true},
		{"os, another boot", []disk.Sync{disk.OS, disk.OS}, "ab", false, false},
		{"os, closed, another boot", []disk.Sync{disk.OS, disk.OS}, "ab", true, true},
		{"os, closed, two other boots", []disk.Sync{disk.OS, disk.OS, disk.OS}, "abc", true, true},
		{"os, another boot, opened as always", []disk.Sync{disk.OS, disk.Always}, "ab", false, false},
		{"os, closed, another boot, opened as always", []disk.Sync{disk.OS, disk.Always}, "ab", true, true},
		{"always, another boot", []disk.Sync{disk.Always, disk.Always}, "ab", false, true},
		{"always, another boot, opened as os", []disk.Sync{disk.Always, disk.OS}, "ab", false, true},
		{"os made always", []disk.Sync{disk.OS, disk.Always, disk.Always}, "aab", false, true},
		{"always made os", []disk.Sync{disk.Always, disk.OS, disk.OS}, "aab", false, false},
		{"always made os, and always again", []disk.Sync{disk.Always, disk.OS, disk.Always}, "aab", false, false},
	} {
		dir := disktest.NewDir(t)
		var want []string
		for i, s := range c.syncs {
			j := openBoot(t, dir, s, c.boots[i:i+1])
			if i == 0 {
				if err := j.Start(me); err != nil {
					t.Fatal(err)
				}
			}
			_, known := j.Identity()
			if expect := i < len(c.syncs)-1 || c.known; known != expect {
				t.Errorf("%s: at open %d known %v", c.name, i, known)
			} else if known {
				var got []string
				err := j.Replay(func(r []byte) error { got = append(got, string(r)); return nil })
				if err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
					t.Errorf("%s: %q, %v, want %q", c.name, got, err, want)
				}
				want = append(want, fmt.Sprint("record", i))
				if err := put(j, want[i]); err != nil {
					t.Fatal(err)
				}
			} else if err := j.Start(me); err != nil {
				t.Error(err)
			}
			if !c.close {
				kill(t, j)
			} else if err := j.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A directory that was closed with OS survives the machine only until it is opened.
func TestOpenEndsWhatCloseProved(t *testing.T) {
	dir := disktest.NewDir(t)
	j := started(t, dir, disk.OS)
	if err := errors.Join(put(j, "a"), j.Close()); err != nil {
		t.Fatal(err)
	}
	j = openAt(t, dir, disk.OS)
	if err := put(j, "b"); err != nil {
		t.Fatal(err)
	}
	kill(t, j)
	j = openBoot(t, dir, disk.OS, "boot2")
	if got := view(t, j); got != disktest.Nobody {
		t.Error(got)
	}
	kill(t, j)
}

// With OS everything is synced before the identity file says that it survives more.
func TestWhatWasNotSyncedIsWhenItMustBe(t *testing.T) {
	for what, last := range map[string]func(dir string) []string{
		"close": func(dir string) (ops []string) {
			j := openAt(t, dir, disk.OS)
			j.dir.Hook = func(op, name string) error { ops = append(ops, op+" "+name); return nil }
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			return ops
		},
		"open as always": func(dir string) (ops []string) {
			j := taken(t, dir, disk.Always)
			j.dir.Hook = func(op, name string) error { ops = append(ops, op+" "+name); return nil }
			if err := j.recover(); err != nil || !j.known {
				t.Fatal(err)
			}
			renamed := ops
			kill(t, j)
			return renamed
		},
	} {
		dir := disktest.NewDir(t)
		small(t, dir, disk.OS)
		all := strings.Join(last(dir), ", ") + ","
		renamed := strings.Index(all, "rename identity,")
		want := []string{"syncdir"}
		for _, prefix := range []string{"log-", "state-"} {
			names, _ := filepath.Glob(filepath.Join(dir, prefix+"*"))
			for _, name := range names {
				want = append(want, "sync "+filepath.Base(name)+",")
			}
		}
		if len(want) < 4 {
			t.Fatal("there should be a state and several segments")
		}
		for _, op := range want {
			if at := strings.Index(all, op); at < 0 || at > renamed {
				t.Errorf("%s: no %s before the identity: %s", what, op, all)
			}
		}
	}
}

// Close relies on it that with Always nothing is left to sync.
func TestCutOfATornAppendIsSynced(t *testing.T) {
	dir := disktest.NewDir(t)
	small(t, dir, disk.Always)
	name := disktest.Newest(t, dir, "log-")
	info, err := os.Stat(name)
	if err != nil || os.Truncate(name, info.Size()-1) != nil {
		t.Fatal(err)
	}
	j := taken(t, dir, disk.Always)
	var ops []string
	j.dir.Hook = func(op, name string) error { ops = append(ops, op); return nil }
	if err := j.recover(); err != nil || fmt.Sprint(ops) != "[truncate sync]" {
		t.Error(ops, err)
	}
	kill(t, j)
}

// After a failed write or sync nothing that is done to the files means anything.
func TestNothingIsWrittenAfterAFailure(t *testing.T) {
	for _, failing := range []string{"write", "sync", "create"} {
		j := started(t, disktest.NewDir(t), disk.Always)
		for j.Size() < segmentBytes {
			if err := put(j, "before"); err != nil {
				t.Fatal(err)
			}
		}
		end, broken := j.Mark(), errors.New("broken")
		j.dir.Hook = func(op, name string) error {
			if op == failing {
				return broken
			}
			return nil
		}
		if err := put(j, "a"); !errors.Is(err, broken) {
			t.Errorf("%s failed, Append did not: %v", failing, err)
		}
		if j.Mark() != end {
			t.Error("what failed counts")
		}
		j.dir.Hook = func(op, name string) error { t.Errorf("%s of %s after a failure", op, name); return nil }
		for what, err := range map[string]error{
			"append": put(j, "a"), "bound": j.SetBound(1), "checkpoint": save(j, ""), "rename": j.Rename(me), "start": j.Start(me),
		} {
			if !errors.Is(err, broken) {
				t.Errorf("%s after a failed %s: %v", what, failing, err)
			}
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAlwaysSyncsEveryAppend(t *testing.T) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		j := started(t, disktest.NewDir(t), s)
		var ops []string
		j.dir.Hook = func(op, name string) error { ops = append(ops, op); return nil }
		if err := errors.Join(put(j, "a", "b"), put(j), put(j, "c"), j.SetBound(5), j.SetBound(5), j.SetBound(4)); err != nil {
			t.Fatal(err)
		}
		want := "[write write write]"
		if s == disk.Always {
			want = "[write sync write sync write sync]"
		}
		if got := fmt.Sprint(ops); got != want {
			t.Errorf("%v: %s, want %s", s, got, want)
		}
		kill(t, j)
	}
}

// Damage that comes after Open is found while reading, also by a reader that does
// not look at errors.
func TestDamageThatComesLater(t *testing.T) {
	dir := disktest.NewDir(t)
	j := started(t, dir, disk.OS)
	defer kill(t, j)
	if err := errors.Join(put(j, "a"), save(j, strings.Repeat("x", 3*chunkLen)), put(j, strings.Repeat("y", 100))); err != nil {
		t.Fatal(err)
	}
	for prefix, at := range map[string]int{"state-": 2 * chunkLen, "log-": 100} {
		name := disktest.Newest(t, dir, prefix)
		b, _ := os.ReadFile(name)
		b[at]++
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := j.LoadState(func(r io.Reader) error {
		_, _ = io.Copy(io.Discard, r)
		return nil
	})
	if !errors.Is(err, disk.ErrBad) {
		t.Error(err)
	}
	if err := j.Replay(func([]byte) error { return nil }); !errors.Is(err, disk.ErrBad) {
		t.Error(err)
	}
}

func TestReplayEndsWithItsCallersError(t *testing.T) {
	j := started(t, disktest.NewDir(t), disk.OS)
	defer kill(t, j)
	if err := put(j, "a", "b", "c"); err != nil {
		t.Fatal(err)
	}
	n, broken := 0, errors.New("broken")
	err := j.Replay(func(r []byte) error {
		if n++; string(r) == "b" {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || n != 2 {
		t.Error(n, err)
	}
}

// A batch that is too large says so, and does no harm.
func TestBatchThatIsTooLarge(t *testing.T) {
	j := started(t, disktest.NewDir(t), disk.OS)
	defer kill(t, j)
	part := make([]byte, 64<<20)
	var batch [][]byte
	for range disk.MaxRecord / len(part) {
		batch = append(batch, part)
	}
	if err := j.Append(batch); err == nil || j.Mark() != 0 {
		t.Error("it was appended")
	}
	if err := put(j, "a"); err != nil {
		t.Error(err)
	}
}
