package raftlog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var me = disk.Identity{ID: 77, Cluster: [16]byte{1, 2, 3}, Gen: 4, Seed: 5, Name: "one"}

// segmentSize of tests: a few Saves.
const segmentSize = 250

// chunkLen is what a state is written in pieces of.
const chunkLen = 256 << 10

func openAt(t disktest.T, dir string, s disk.Sync) *Log {
	t.Helper()
	return openBoot(t, dir, s, "boot1")
}

func openBoot(t disktest.T, dir string, s disk.Sync, boot string) *Log {
	t.Helper()
	l, err := Open(disk.Options{Dir: dir, Sync: s, BootID: boot, SegmentBytes: segmentSize})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// kill ends the use of l as the death of the process does: nothing is written.
func kill(t disktest.T, l *Log) {
	t.Helper()
	l.disk.Hook = func(op, name string) error { return errors.New("dead") }
	l.behind = false
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func save(t disktest.T, l *Log, term, vote, commit uint64, ents ...*pb.Entry) {
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
func view(t disktest.T, l *Log) string {
	t.Helper()
	id, known := l.Identity()
	if !known {
		return disktest.Nobody
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

var logs = disktest.Memory[*Log]{
	Open: openAt, View: view, Kill: kill,
	Files: func(l *Log) *disk.Files { return l.disk.Files },
	Add: func(l *Log) error {
		return l.Save(hard{4, 1, l.hard.commit}.state(), []*pb.Entry{entry(l.memory.last+1, 4, "more")})
	},
}

// Whatever is saved is there after the process died, at any moment between two calls.
func TestWhatWasSavedIsThereAgain(t *testing.T) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		t.Run(s.String(), func(t *testing.T) {
			parent := disktest.TempDir(t)
			rapid.Check(t, func(t *rapid.T) {
				dir, err := os.MkdirTemp(parent, "")
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
func small(t testing.TB, dir string, s disk.Sync) (views []string) {
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
	seq := l.disk.active.Number
	for l.disk.active.Number == seq {
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

// A Save that did not return is there or not. So is the newest segment.
func TestTornSaveIsDroppedWhereverItWasCut(t *testing.T) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		dir := disktest.NewDir(t)
		logs.TornWrite(t, dir, s, small(t, dir, s))
	}
}

func TestDamageIsNoticed(t *testing.T) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		dir := disktest.NewDir(t)
		views := small(t, dir, s)
		logs.MissingFiles(t, dir, s, false)
		logs.Damage(t, dir, s, false, views[len(views)-2])
	}
}

// Whole records are missing, and every checksum is right.
func TestMissingRecordsAreNoticed(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(l *Log, dir string) error
	}{
		{"a segment ends earlier than the next begins", func(l *Log, dir string) error {
			disktest.CutLast(t, disktest.Named(t, dir, "log-")[1])
			return nil
		}},
		{"the log ends before its state", func(l *Log, dir string) error {
			err := saveState(l, l.memory.last, 1, "state")
			disktest.CutLast(t, disktest.Newest(t, dir, "log-"))
			return err
		}},
		{"more is committed than there is", func(l *Log, _ string) error {
			last := l.memory.last
			return l.Save(hard{1, 1, last + 1}.state(), []*pb.Entry{entry(last, 1, "v")})
		}},
		{"the state is of another log", func(l *Log, _ string) error { return saveState(l, l.memory.last-1, 2, "state") }},
	} {
		dir := disktest.NewDir(t)
		l := openAt(t, dir, disk.OS)
		if err := l.Start(me); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(40) {
			save(t, l, 1, 1, 0, entry(i+1, 1, "v"))
		}
		if err := c.do(l, dir); err != nil {
			t.Fatal(err)
		}
		kill(t, l)
		if got := logs.Reopened(t, dir, disk.OS); got != disktest.Nobody {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

// A vote that is the last in its segment says nothing of the entries there.
func TestSegmentIsKeptForItsHighestEntry(t *testing.T) {
	dir := disktest.NewDir(t)
	l := openAt(t, dir, disk.OS)
	if err := l.Start(me); err != nil {
		t.Fatal(err)
	}
	save(t, l, 1, 1, 0, entries(1, 9, 1)...)
	l.disk.SegmentBytes = l.disk.active.Size + 1
	save(t, l, 2, 1, 0)
	save(t, l, 2, 1, 3, entry(10, 2, "in another segment"))
	if err := saveState(l, 3, 1, "state"); err != nil {
		t.Fatal(err)
	}
	l.Compact(3)
	l.SetConfState(metaAt(3, 1).GetConfState())
	want := view(t, l)
	kill(t, l)
	if got := logs.Reopened(t, dir, disk.OS); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestDamagedStateIsNotNeededIfTheLogIsWhole(t *testing.T) {
	dir := disktest.NewDir(t)
	l := openAt(t, dir, disk.Always)
	if err := l.Start(me); err != nil {
		t.Fatal(err)
	}
	save(t, l, 1, 1, 1, entry(1, 1, "a"), entry(2, 1, "b"))
	want := view(t, l)
	if err := saveState(l, 1, 1, "state"); err != nil {
		t.Fatal(err)
	}
	kill(t, l)
	if err := os.Truncate(disktest.Newest(t, dir, "state-"), 50); err != nil {
		t.Fatal(err)
	}
	if got := logs.Reopened(t, dir, disk.Always); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestFilesOfAnotherEngineAreLeftAlone(t *testing.T) {
	disktest.AnotherEngine(t, disk.Journal, func(o disk.Options) error {
		_, err := Open(o)
		return err
	})
}
