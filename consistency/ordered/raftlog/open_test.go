package raftlog

import (
	"errors"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

func entries(from, to, term uint64) []*pb.Entry {
	var ents []*pb.Entry
	for i := from; i <= to; i++ {
		ents = append(ents, entry(i, term, strings.Repeat("v", 20)))
	}
	return ents
}

// put saves entries, all before them committed.
func put(l *Log, term, from, to uint64) error {
	ents := entries(from, to, term)
	return l.Save(hard{term, 1, from - 1}.state(), ents)
}

func TestOptionsThatMeanNothingAreRefused(t *testing.T) {
	for _, o := range []disk.Options{{Sync: disk.OS}, {Sync: disk.Always}, {Dir: t.TempDir()}} {
		if l, err := Open(o); err == nil {
			t.Errorf("opened %+v", o)
			_ = l.Close()
		}
	}
}

func TestMemoryHasNobodyUntilStart(t *testing.T) {
	l, err := Open(disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, known := l.Identity(); known {
		t.Error("there is somebody")
	}
	if l.Start(disk.Identity{}) == nil || l.Start(disk.Identity{ID: 1, Name: strings.Repeat("n", 256)}) == nil {
		t.Error("that is no identity")
	}
	if err := errors.Join(l.Start(me), l.Save(nil, entries(1, 3, 1))); err != nil {
		t.Fatal(err)
	}
	if id, known := l.Identity(); id != me || !known {
		t.Error(id, known)
	}
	if err := l.SaveState(metaAt(1, 1), nil); err != nil {
		t.Error(err)
	}
	if err := l.LoadState(nil); err != nil {
		t.Error(err)
	}
	if err := l.Start(me); err != nil || l.memory.last != 0 {
		t.Error("Start does not forget", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestNothingIsSavedForNobody(t *testing.T) {
	l := openAt(t, disktest.NewDir(t), disk.OS)
	defer func() { _ = l.Close() }()
	if err := saveState(l, 0, 0, ""); !errors.Is(err, errNotStarted) {
		t.Error(err)
	}
	if err := l.Rename(me); !errors.Is(err, errNotStarted) {
		t.Error(err)
	}
	if err := l.Save(nil, entries(1, 1, 1)); !errors.Is(err, errNotStarted) {
		t.Error(err)
	}
}

// What was written without syncs is whole as long as the machine runs; from then
// on it must not be believed, by whatever Sync it is opened.
func TestAnotherBoot(t *testing.T) {
	for _, c := range []struct {
		name  string
		syncs []disk.Sync // of the boots in turn; each but the last saves
		boots []string
		known bool
	}{
		{"os, same boot", []disk.Sync{disk.OS, disk.OS}, []string{"a", "a"}, true},
		{"os, another boot", []disk.Sync{disk.OS, disk.OS}, []string{"a", "b"}, false},
		{"os, another boot, opened as always", []disk.Sync{disk.OS, disk.Always}, []string{"a", "b"}, false},
		{"always, another boot", []disk.Sync{disk.Always, disk.Always}, []string{"a", "b"}, true},
		{"always, another boot, opened as os", []disk.Sync{disk.Always, disk.OS}, []string{"a", "b"}, true},
		{"os made always", []disk.Sync{disk.OS, disk.Always, disk.Always}, []string{"a", "a", "b"}, true},
		{"always made os", []disk.Sync{disk.Always, disk.OS, disk.OS}, []string{"a", "a", "b"}, false},
		{"always made os, and always again", []disk.Sync{disk.Always, disk.OS, disk.Always}, []string{"a", "a", "b"}, false},
	} {
		dir := disktest.NewDir(t)
		for i, s := range c.syncs {
			l := openBoot(t, dir, s, c.boots[i])
			if i == 0 {
				if err := l.Start(me); err != nil {
					t.Fatal(err)
				}
			}
			_, known := l.Identity()
			if want := i < len(c.syncs)-1 || c.known; known != want {
				t.Errorf("%s: at open %d known %v", c.name, i, known)
			} else if known {
				if n := l.memory.last; n != uint64(i)*2 {
					t.Errorf("%s: the log goes to %d", c.name, n)
				}
				n := uint64(i) * 2
				if err := put(l, 1, n+1, n+2); err != nil {
					t.Fatal(err)
				}
			} else if err := l.Start(me); err != nil {
				t.Error(err)
			}
			kill(t, l)
		}
	}
}

// A log that becomes one for Always is synced before its identity file says so.
func TestWhatWasNotSyncedIsWhenItMustBe(t *testing.T) {
	dir := disktest.NewDir(t)
	small(t, dir, disk.OS)
	files, err := disk.Take(disk.Options{Dir: dir, Sync: disk.Always, BootID: "boot1"})
	if err != nil {
		t.Fatal(err)
	}
	d := &persisted{Files: files}
	var ops []string
	d.Hook = func(op, name string) error { ops = append(ops, op+" "+name); return nil }
	r, _, err := d.recover()
	if err != nil || r.last == 0 {
		t.Fatal(err)
	}
	all := strings.Join(ops, ", ")
	renamed := strings.Index(all, "rename identity")
	for _, e := range [][]string{{"sync", "log-"}, {"sync", "state-"}, {"syncdir", ""}} {
		names, _ := filepath.Glob(filepath.Join(dir, e[1]+"*"))
		for _, name := range names {
			at := strings.Index(all, e[0]+" "+filepath.Base(name))
			if e[1] == "" {
				at = strings.Index(all, "syncdir")
			}
			if at < 0 || at > renamed {
				t.Errorf("no %s of %s before the identity: %s", e[0], name, all)
			}
		}
	}
	if err := errors.Join(d.closeActive(), d.Release()); err != nil {
		t.Error(err)
	}
}

func TestStateThatFailsLeavesTheOneBefore(t *testing.T) {
	dir := disktest.NewDir(t)
	l := openAt(t, dir, disk.Always)
	if err := errors.Join(l.Start(me), put(l, 1, 1, 9), saveState(l, 4, 1, "four")); err != nil {
		t.Fatal(err)
	}
	want := logs.Reopened(t, disktest.CopyDir(t, dir), disk.Always)
	broken := errors.New("broken")
	err := l.SaveState(metaAt(6, 1), func(w io.Writer) error {
		if _, err := w.Write(make([]byte, 3*chunkLen+1)); err != nil {
			return err
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := saveState(l, 3, 1, "older"); err == nil {
		t.Error("an older state was saved")
	}
	if err := saveState(l, 10, 1, "ahead"); err == nil {
		t.Error("a state was saved of what the log does not have")
	}
	if tmps, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(tmps) > 0 {
		t.Errorf("left: %v", tmps)
	}
	kill(t, l)
	if got := logs.Reopened(t, dir, disk.Always); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestStateOfALogThatIsNoMore(t *testing.T) {
	for _, c := range []struct {
		end  func(l *Log) error
		want error
	}{
		{func(l *Log) error { return l.Start(me) }, errOther},
		{(*Log).Close, errClosed},
	} {
		for _, size := range []int{10, 2 * chunkLen} { // noticed at the end; in the middle
			dir := disktest.NewDir(t)
			l := openAt(t, dir, disk.OS)
			if err := errors.Join(l.Start(me), put(l, 1, 1, 9)); err != nil {
				t.Fatal(err)
			}
			err := l.SaveState(metaAt(6, 1), func(w io.Writer) error {
				if err := c.end(l); err != nil {
					t.Error(err)
				}
				_, err := w.Write(make([]byte, size))
				return err
			})
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if states, _ := filepath.Glob(filepath.Join(dir, "state-"+"*")); len(states) > 0 {
				t.Errorf("left: %v", states)
			}
			_ = l.Close()
		}
	}
}

// SaveState goes on beside Save, and what both leave is whole. The disk does not
// fill up.
func TestStatesAreSavedWhileTheLogGoesOn(t *testing.T) {
	dir := disktest.NewDir(t)
	l := openAt(t, dir, disk.OS)
	if err := l.Start(me); err != nil {
		t.Fatal(err)
	}
	const states = 50
	applied := make(chan uint64, 1)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(done)
		for range states {
			i := <-applied
			if err := saveState(l, i, 1, "state"); err != nil {
				t.Error(err)
			}
			l.DiskBytes()
		}
	})
	last := uint64(0)
	for going := true; going; {
		last++
		if err := put(l, 1, last, last); err != nil {
			t.Fatal(err)
		}
		select {
		case applied <- last:
		case <-done:
			going = false
		default:
		}
	}
	wg.Wait()
	if err := saveState(l, last, 1, "end"); err != nil {
		t.Fatal(err)
	}
	if n := l.DiskBytes(); n != 0 {
		t.Errorf("%d bytes are said to be needed behind a state of all", n)
	}
	if segs, _ := filepath.Glob(filepath.Join(dir, "log-"+"*")); len(segs) != 1 {
		t.Errorf("%d segments are left", len(segs))
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "state-"+"*")); len(files) != 1 {
		t.Errorf("%d states are left", len(files))
	}
	if err := put(l, 1, last+1, last+1); err != nil {
		t.Fatal(err)
	}
	needed := l.DiskBytes()
	kill(t, l)
	l = openAt(t, dir, disk.OS)
	if l.memory.base != last || l.memory.last != last+1 {
		t.Errorf("log from %d to %d, want %d to %d", l.memory.base, l.memory.last, last, last+1)
	}
	if l.DiskBytes() != needed {
		t.Errorf("%d bytes needed, %d when it was closed", l.DiskBytes(), needed)
	}
	kill(t, l)
}

// Raft itself on it: a member of one that is killed again and again.
func TestRaftGoesOnAfterRestarts(t *testing.T) {
	dir := disktest.NewDir(t)
	var applied []string
	for life := range 4 {
		l := openAt(t, dir, disk.OS)
		var node *raft.RawNode
		from := uint64(0)
		if life == 0 {
			if err := errors.Join(l.Start(me), l.Install(1, 1, &pb.ConfState{Voters: []uint64{me.ID}}), saveFounded(l)); err != nil {
				t.Fatal(err)
			}
		}
		err := l.LoadState(func(meta *pb.SnapshotMetadata, r io.Reader) error {
			from = meta.GetIndex()
			b, err := io.ReadAll(r)
			applied = strings.Fields(string(b))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		node, err = raft.NewRawNode(&raft.Config{
			ID: me.ID, ElectionTick: 10, HeartbeatTick: 1, Storage: l, Applied: from,
			MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 16, Logger: &raft.DefaultLogger{Logger: zap.NewStdLog(zap.NewNop())},
		})
		if err != nil {
			t.Fatal(err)
		}
		index, term := from, uint64(1)
		turn := func() {
			for node.HasReady() {
				rd := node.Ready()
				if err := l.Save(rd.HardState, rd.Entries); err != nil {
					t.Fatal(err)
				}
				for _, e := range rd.CommittedEntries {
					index, term = e.GetIndex(), e.GetTerm()
					if len(e.Data) > 0 {
						applied = append(applied, string(e.Data))
					}
				}
				node.Advance(rd)
			}
		}
		if err := node.Campaign(); err != nil {
			t.Fatal(err)
		}
		turn()
		for i := range 20 {
			if err := node.Propose([]byte{byte('a' + life), byte('a' + i)}); err != nil {
				t.Fatal(err)
			}
			turn()
			if i == 10 && life > 0 {
				meta := &pb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: &pb.ConfState{Voters: []uint64{me.ID}}}
				err := l.SaveState(meta, func(w io.Writer) error {
					_, err := io.WriteString(w, strings.Join(applied, " "))
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				l.Compact(index)
			}
		}
		if len(applied) != 20*(life+1) {
			t.Fatalf("life %d: applied %d: %v", life, len(applied), applied)
		}
		kill(t, l)
	}
}

func saveFounded(l *Log) error {
	meta := &pb.SnapshotMetadata{Index: new(uint64(1)), Term: new(uint64(1)), ConfState: &pb.ConfState{Voters: []uint64{me.ID}}}
	return l.SaveState(meta, func(io.Writer) error { return nil })
}
