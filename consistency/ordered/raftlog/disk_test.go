package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var me = Identity{ID: 77, Cluster: [16]byte{1, 2, 3}, Gen: 4, Seed: 5, Name: "one"}

// segmentSize of tests: a few Saves.
const segmentSize = 250

type fataler interface {
	Helper()
	Fatal(...any)
}

func openAt(t fataler, dir string, s Sync) *Log {
	t.Helper()
	return openBoot(t, dir, s, "boot1")
}

func openBoot(t fataler, dir string, s Sync, boot string) *Log {
	t.Helper()
	l, err := Open(Options{Dir: dir, Sync: s, BootID: boot, SegmentSize: segmentSize})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// kill ends the use of l as the death of the process does: nothing is written.
func kill(t fataler, l *Log) {
	t.Helper()
	l.disk.hook = func(op, name string) error { return errors.New("dead") }
	l.behind = false
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func save(t fataler, l *Log, term, vote, commit uint64, ents ...*pb.Entry) {
	t.Helper()
	if err := l.Save(hard{term, vote, commit}.state(), ents); err != nil {
		t.Fatal(err)
	}
}

func metaAt(index, term uint64) *pb.SnapshotMetadata {
	return &pb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: &pb.ConfState{Voters: []uint64{77, index}}}
}

func saveState(l *Log, index, term uint64, data string) error {
	return l.SaveState(metaAt(index, term), func(w io.Writer) error {
		_, err := io.WriteString(w, data)
		return err
	})
}

// view is what a log knows, as text, save for the commit index, which is a lower bound.
func view(t fataler, l *Log) string {
	t.Helper()
	id, known := l.Identity()
	if !known {
		return "nobody"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%v term %d vote %d voters %v base %d/%d", id, l.hard.term, l.hard.vote, l.conf.GetVoters(), l.memory.base, l.memory.baseTerm)
	if l.hard.commit < l.memory.base || l.hard.commit > l.memory.last {
		t.Fatal("commit", l.hard.commit, "of a log", b.String(), "to", l.memory.last)
	}
	for i := l.memory.base + 1; i <= l.memory.last; i++ {
		e := l.memory.at(i).entry
		if e.GetIndex() != i {
			t.Fatal("entry", i, "is", e)
		}
		fmt.Fprintf(&b, " %d:%q", e.GetTerm(), e.GetData())
	}
	err := l.LoadState(func(meta *pb.SnapshotMetadata, r io.Reader) error {
		data, err := io.ReadAll(r)
		if len(data) > 100 {
			data = fmt.Appendf(nil, "%d bytes with sum %x", len(data), crc32.ChecksumIEEE(data))
		}
		fmt.Fprintf(&b, " state %d/%d %q", meta.GetIndex(), meta.GetTerm(), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// reopened is the view of what another process would find in dir.
func reopened(t fataler, dir string, s Sync) string {
	t.Helper()
	l := openAt(t, dir, s)
	v := view(t, l)
	kill(t, l)
	return v
}

func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(filepath.Join(to, "d"), os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(to, "d")
}

// Whatever is saved is there after the process died, at any moment between two calls.
func TestWhatWasSavedIsThereAgain(t *testing.T) {
	for _, s := range []Sync{OS, Always} {
		t.Run(s.String(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				dir, err := os.MkdirTemp("", "raftlog")
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = os.RemoveAll(dir) }()
				l := openAt(t, dir, s)
				defer func() { _ = l.Close() }()
				if l.Start(me) != nil {
					t.Fatal("not started")
				}
				term, state, n := uint64(1), uint64(0), 0
				t.Repeat(map[string]func(*rapid.T){
					"save": func(t *rapid.T) {
						from := l.memory.last + 1
						if rapid.IntRange(0, 3).Draw(t, "conflict") == 0 {
							term++
							from = rapid.Uint64Range(l.hard.commit+1, from).Draw(t, "from")
						}
						var ents []*pb.Entry
						for i := range rapid.Uint64Range(0, 4).Draw(t, "n") {
							n++
							ents = append(ents, entry(from+i, term, fmt.Sprint(n)))
						}
						commit := rapid.Uint64Range(l.hard.commit, from-1).Draw(t, "commit")
						save(t, l, term, rapid.Uint64Range(0, 2).Draw(t, "vote"), commit, ents...)
					},
					"commit": func(t *rapid.T) {
						save(t, l, term, l.hard.vote, l.memory.last)
					},
					"state": func(t *rapid.T) {
						state = rapid.Uint64Range(max(state, l.memory.base), l.memory.last).Draw(t, "at")
						save(t, l, term, l.hard.vote, max(l.hard.commit, state))
						at, _ := l.Term(state)
						if err := saveState(l, state, at, fmt.Sprint("state ", state)); err != nil {
							t.Fatal(err)
						}
						l.SetConfState(metaAt(state, 0).GetConfState())
					},
					"compact": func(t *rapid.T) {
						if state > 0 {
							l.Compact(rapid.Uint64Range(0, state).Draw(t, "to"))
						}
					},
					"install": func(t *rapid.T) {
						at := l.memory.last + rapid.Uint64Range(1, 5).Draw(t, "ahead")
						if err := l.Install(at, term, nil); err != nil {
							t.Fatal(err)
						}
						state = at
						if err := saveState(l, at, term, "installed"); err != nil {
							t.Fatal(err)
						}
						l.SetConfState(metaAt(at, 0).GetConfState())
					},
					"reopen": func(t *rapid.T) {
						// A restart has what is behind the state.
						l.Compact(state)
						want := view(t, l)
						if rapid.Bool().Draw(t, "kill") {
							kill(t, l)
						} else if commit := l.hard.commit; l.Close() == nil {
							defer func() {
								if l.hard.commit != max(commit, state) {
									t.Fatalf("closed with commit %d, opened with %d", commit, l.hard.commit)
								}
							}()
						}
						l = openAt(t, dir, s)
						if got := view(t, l); got != want {
							t.Fatalf("it was\n%s\nand is\n%s", want, got)
						}
					},
				})
			})
		})
	}
}

// small is a log of several segments, of which the newest has a few Saves. It
// returns the views after each Save that began in the newest.
func small(t testing.TB, dir string, s Sync) (views []string) {
	l := openAt(t, dir, s)
	if err := l.Start(me); err != nil {
		t.Fatal(err)
	}
	index := uint64(0)
	add := func(commit uint64, n int) {
		var ents []*pb.Entry
		for range n {
			index++
			ents = append(ents, entry(index, 3, fmt.Sprint("v", index)))
		}
		save(t, l, 3, 2, commit, ents...)
	}
	for range 9 {
		add(index, 1)
	}
	if err := saveState(l, 5, 3, "five"); err != nil {
		t.Fatal(err)
	}
	l.Compact(5)
	l.SetConfState(metaAt(5, 3).GetConfState())
	seq := l.disk.seq
	for l.disk.seq == seq {
		views = []string{view(t, l)}
		add(index, 2)
	}
	for _, n := range []int{1, 3} {
		views = append(views, view(t, l))
		add(index, n)
	}
	views = append(views, view(t, l))
	if len(l.disk.closed) == 0 || len(views) != 4 {
		t.Fatal("this should have several segments")
	}
	kill(t, l)
	return views
}

// starts of the records in a file.
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

// A Save that did not return is there or not. So is the newest segment.
func TestTornSaveIsDroppedWhereverItWasCut(t *testing.T) {
	for _, s := range []Sync{OS, Always} {
		dir := filepath.Join(t.TempDir(), "d")
		views := small(t, dir, s)
		name := newest(t, dir, logPrefix)
		whole, _ := os.ReadFile(name)
		at := starts(t, name)
		for size := len(whole); size >= 0; size-- {
			for _, zeros := range []int{0, 40} {
				if zeros > 0 && s == OS {
					continue // while the machine runs, nothing but a write makes a file longer
				}
				if err := os.WriteFile(name, append(bytes.Clone(whole[:size]), make([]byte, zeros)...), 0o600); err != nil {
					t.Fatal(err)
				}
				n := 0 // whole Saves
				for n+2 < len(at) && at[n+2] <= size {
					n++
				}
				if got := reopened(t, dir, s); got != views[n] {
					t.Fatalf("%v: cut at %d of %d, %d zeros:\n%s\nwant\n%s", s, size, len(whole), zeros, got, views[n])
				}
				// And it is appended to where it ends.
				l := openAt(t, dir, s)
				save(t, l, 4, 1, l.hard.commit, entry(l.memory.last+1, 4, "more"))
				want := view(t, l)
				kill(t, l)
				if got := reopened(t, dir, s); got != want {
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

// No damage goes unnoticed, or makes up an entry. With OS there is none that is
// excused; with Always there is that of the last Save, which looks like a torn one.
func TestDamageIsNoticed(t *testing.T) {
	for _, s := range []Sync{OS, Always} {
		dir := filepath.Join(t.TempDir(), "d")
		views := small(t, dir, s)
		last := newest(t, dir, logPrefix)
		at := starts(t, last)
		names, _ := os.ReadDir(dir)
		excused := 0
		for _, e := range names {
			if e.Name() == lockName {
				continue
			}
			name := filepath.Join(dir, e.Name())
			whole, _ := os.ReadFile(name)
			for i := range whole {
				damaged := bytes.Clone(whole)
				damaged[i] ^= []byte{1 << (i / 2 % 8), 0xff}[i%2]
				if err := os.WriteFile(name, damaged, 0o600); err != nil {
					t.Fatal(err)
				}
				got := reopened(t, dir, s)
				switch {
				case got == "nobody":
					aside, _ := filepath.Glob(filepath.Join(dir, asidePrefix+"*", "*"))
					if len(aside) != len(names)-1 {
						t.Fatalf("%v: damage at %d of %s: moved aside are %v", s, i, e.Name(), aside)
					}
					for _, was := range aside {
						if err := os.Rename(was, filepath.Join(dir, filepath.Base(was))); err != nil {
							t.Fatal(err)
						}
					}
				case s == Always && name == last && i >= at[len(at)-2] && got == views[2]:
					excused++
				default:
					t.Fatalf("%v: damage at %d of %s: %s", s, i, e.Name(), got)
				}
				if err := os.WriteFile(name, whole, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if s == Always && excused == 0 {
			t.Error("damage to the last Save is not taken for a torn one")
		}
	}
}

func TestMissingFilesAreNoticed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	small(t, dir, Always)
	names, _ := os.ReadDir(dir)
	for _, e := range names {
		if e.Name() == lockName || filepath.Join(dir, e.Name()) == newest(t, dir, logPrefix) {
			continue // without its newest segment a log is one that ends earlier
		}
		clone := copyDir(t, dir)
		_ = os.Remove(filepath.Join(clone, e.Name()))
		if got := reopened(t, clone, Always); got != "nobody" {
			t.Errorf("without %s: %s", e.Name(), got)
		}
	}
}

// Whole records are missing, and every checksum is right.
func TestMissingRecordsAreNoticed(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(l *Log) error
	}{
		{"a segment ends earlier than the next begins", func(l *Log) error {
			name := l.disk.path(numbered(logPrefix, l.disk.closed[1].seq))
			at := starts(t, name)
			return os.Truncate(name, int64(at[len(at)-2]))
		}},
		{"the log ends before its state", func(l *Log) error {
			if err := saveState(l, l.memory.last, 1, "state"); err != nil {
				return err
			}
			at := starts(t, l.disk.active.Name())
			return os.Truncate(l.disk.active.Name(), int64(at[len(at)-2]))
		}},
		{"the state is of another log", func(l *Log) error { return saveState(l, l.memory.last-1, 2, "state") }},
	} {
		dir := filepath.Join(t.TempDir(), "d")
		l := openAt(t, dir, OS)
		if err := l.Start(me); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(40) {
			save(t, l, 1, 1, 0, entry(i+1, 1, "v"))
		}
		if err := c.do(l); err != nil {
			t.Fatal(err)
		}
		kill(t, l)
		if got := reopened(t, dir, OS); got != "nobody" {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

// A vote that is the last in its segment says nothing of the entries there.
func TestSegmentIsKeptForItsHighestEntry(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	l := openAt(t, dir, OS)
	if err := l.Start(me); err != nil {
		t.Fatal(err)
	}
	save(t, l, 1, 1, 0, entries(1, 9, 1)...)
	l.disk.segSize = l.disk.size + 1
	save(t, l, 2, 1, 0)
	save(t, l, 2, 1, 3, entry(10, 2, "in another segment"))
	if err := saveState(l, 3, 1, "state"); err != nil {
		t.Fatal(err)
	}
	l.Compact(3)
	l.SetConfState(metaAt(3, 1).GetConfState())
	want := view(t, l)
	kill(t, l)
	if got := reopened(t, dir, OS); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestOneSetOfDamagedFilesIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	for range 3 {
		l := openAt(t, dir, OS)
		if err := l.Start(me); err != nil {
			t.Fatal(err)
		}
		kill(t, l)
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

func TestDamagedStateIsNotNeededIfTheLogIsWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	l := openAt(t, dir, Always)
	if err := l.Start(me); err != nil {
		t.Fatal(err)
	}
	save(t, l, 1, 1, 1, entry(1, 1, "a"), entry(2, 1, "b"))
	want := view(t, l)
	if err := saveState(l, 1, 1, "state"); err != nil {
		t.Fatal(err)
	}
	kill(t, l)
	if err := os.Truncate(newest(t, dir, statePrefix), 50); err != nil {
		t.Fatal(err)
	}
	if got := reopened(t, dir, Always); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestAnotherVersionsFilesAreLeftAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	small(t, dir, Always)
	name := filepath.Join(dir, identityName)
	b, _ := os.ReadFile(name)
	b[headLen]++
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
