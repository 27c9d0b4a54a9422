//go:build unix

package raftlog

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A story in steps, each of which changes what is on disk at once or not at all;
// but after some there may be nobody.
var story = []struct {
	name   string
	nobody bool
	step   func(l *Log) error
}{
	{"start", true, func(l *Log) error { return l.Start(me) }},
	{"first", false, func(l *Log) error { return put(l, 1, 1, 3) }},
	{"second", false, func(l *Log) error { return put(l, 1, 4, 6) }},
	{"third", false, func(l *Log) error { return put(l, 1, 7, 9) }},
	{"state", false, func(l *Log) error { return saveState(l, 5, 1, "five") }},
	{"conflict", false, func(l *Log) error { return put(l, 2, 8, 12) }},
	{"vote", false, func(l *Log) error { return l.Save(hard{3, 9, 12}.state(), nil) }},
	{"fourth", false, func(l *Log) error { return put(l, 3, 13, 16) }},
	{"again", false, func(l *Log) error { return put(l, 3, 17, 18) }},
	{"newer state", false, func(l *Log) error { return saveState(l, 14, 3, strings.Repeat("x", 2*chunkLen)) }},
	{"same state", false, func(l *Log) error { return saveState(l, 14, 3, strings.Repeat("x", 2*chunkLen)) }},
	{"rename", false, func(l *Log) error { id := me; id.Cluster[0]++; return l.Rename(id) }},
	{"install", true, func(l *Log) error { return l.Install(100, 4, metaAt(100, 4).GetConfState()) }},
	{"behind it", true, func(l *Log) error { return put(l, 4, 101, 103) }},
	{"and its state", true, func(l *Log) error { return saveState(l, 101, 4, "installed") }},
	{"another", false, func(l *Log) error { return put(l, 4, 104, 105) }},
	{"someone else", true, func(l *Log) error { id := me; id.ID++; return l.Start(id) }},
	{"their first", false, func(l *Log) error { return put(l, 1, 1, 2) }},
}

// A process may die before any change of the directory, and the machine with it
// if everything is synced: what is there then is what was before the step that
// was interrupted, or after it.
func TestDeathAtAnyMoment(t *testing.T) {
	for _, s := range []Sync{OS, Always} {
		dir := filepath.Join(t.TempDir(), "d")
		l := openAt(t, dir, s)
		views := []string{"nobody"}
		steps := 0
		l.disk.hook = func(op, name string) error { steps++; return nil }
		for _, st := range story {
			if err := st.step(l); err != nil {
				t.Fatal(st.name, err)
			}
			views = append(views, reopened(t, copyDir(t, dir), s))
		}
		kill(t, l)
		t.Logf("%v: %d changes", s, steps)
		if views[len(views)-1] == "nobody" || views[13] != "nobody" || views[15] == "nobody" {
			t.Fatalf("the story does not go as told: %q", views)
		}
		for k := range steps {
			dir := filepath.Join(t.TempDir(), "d")
			l := openAt(t, dir, s)
			p := newPower(t, dir)
			n := 0
			l.disk.hook = func(op, name string) error {
				p.see(op, name)
				if n++; n > k {
					p.last.op = ""
					return errors.New("dead")
				}
				return nil
			}
			i := 0
			for ; i < len(story) && story[i].step(l) == nil; i++ {
			}
			if i == len(story) {
				t.Fatal("nobody died at change", k)
			}
			images := map[string]string{"as it is": dir}
			if s == Always {
				maps.Copy(images, p.images(t))
			}
			l.disk.hook = nil
			kill(t, l)
			for what, image := range images {
				got := reopened(t, image, s)
				if got != views[i] && got != views[i+1] && !(story[i].nobody && got == "nobody") {
					t.Fatalf("%v: died in step %q at change %d; %s:\n%.500s\nwant\n%.500s\nor\n%.500s", s, story[i].name, k, what, got, views[i], views[i+1])
				}
				if again := reopened(t, image, s); again != got {
					t.Fatalf("%v: died in step %q at change %d; %s: opened again it is\n%.500s\nand was\n%.500s", s, story[i].name, k, what, again, got)
				}
			}
		}
	}
}

// power is what a disk has for certain: of files what was there when they were
// synced, and of names what was there when the directory was.
type power struct {
	dir    string
	last   struct{ op, name string }
	synced map[uint64][]byte // by inode
	names  map[string]uint64
	held   []*os.File // all there ever were, so that no inode is used twice
}

func newPower(t *testing.T, dir string) *power {
	p := &power{dir: dir, synced: map[uint64][]byte{}, names: map[string]uint64{}}
	t.Cleanup(func() {
		for _, f := range p.held {
			_ = f.Close()
		}
	})
	return p
}

// see is told of a change before it is made; what was announced before is done.
func (p *power) see(op, name string) {
	switch path := filepath.Join(p.dir, p.last.name); p.last.op {
	case "create":
		if f, err := os.Open(path); err == nil {
			p.held = append(p.held, f)
		}
	case "sync":
		p.synced[inode(path)], _ = os.ReadFile(path)
	case "syncdir":
		p.names = p.current()
	}
	p.last.op, p.last.name = op, name
}

func (p *power) current() map[string]uint64 {
	names := map[string]uint64{}
	entries, _ := os.ReadDir(p.dir)
	for _, e := range entries {
		if e.Name() != lockName {
			names[e.Name()] = inode(filepath.Join(p.dir, e.Name()))
		}
	}
	return names
}

func inode(path string) uint64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// images are directories that a loss of power could leave.
func (p *power) images(t *testing.T) map[string]string {
	now := p.current()
	union := maps.Clone(now)
	maps.Copy(union, p.names)
	lengths := map[uint64]int64{}
	for name, ino := range now {
		if info, err := os.Stat(filepath.Join(p.dir, name)); err == nil {
			lengths[ino] = info.Size()
		}
	}
	write := func(names map[string]uint64, zeros bool) string {
		dir := t.TempDir()
		for name, ino := range names {
			b := p.synced[ino]
			if more := lengths[ino] - int64(len(b)); zeros && more > 0 {
				b = append(b[:len(b):len(b)], make([]byte, more)...)
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	images := map[string]string{
		"only what was synced":             write(p.names, false),
		"names were not synced, and are":   write(now, false),
		"lengths were not synced, and are": write(now, true),
		"what was removed is back":         write(union, false),
	}
	for name := range p.names {
		if now[name] == 0 {
			but := maps.Clone(union)
			delete(but, name)
			images["what was removed is back but "+name] = write(but, false)
		}
	}
	return images
}

func TestAlwaysSyncsEverySave(t *testing.T) {
	for _, s := range []Sync{OS, Always} {
		l := openAt(t, filepath.Join(t.TempDir(), "d"), s)
		if err := l.Start(me); err != nil {
			t.Fatal(err)
		}
		var ops []string
		l.disk.hook = func(op, name string) error { ops = append(ops, op); return nil }
		save(t, l, 1, 1, 0, entry(1, 1, "a"), entry(2, 1, "b"))
		save(t, l, 2, 1, 0)
		save(t, l, 2, 1, 2) // a commit goes with the next
		save(t, l, 2, 1, 2, entry(3, 2, "c"))
		want := "[write write write]"
		if s == Always {
			want = "[write sync write sync write sync]"
		}
		if got := fmt.Sprint(ops); got != want {
			t.Errorf("%v: %s, want %s", s, got, want)
		}
		kill(t, l)
	}
}

// After a failed sync nothing that is done to the file means anything.
func TestNothingIsSavedAfterAFailure(t *testing.T) {
	for _, failing := range []string{"write", "sync"} {
		l := openAt(t, filepath.Join(t.TempDir(), "d"), Always)
		if err := l.Start(me); err != nil {
			t.Fatal(err)
		}
		broken := errors.New("broken")
		l.disk.hook = func(op, name string) error {
			if op == failing {
				return broken
			}
			return nil
		}
		if err := put(l, 1, 1, 2); !errors.Is(err, broken) {
			t.Errorf("%s failed, Save did not: %v", failing, err)
		}
		if last, _ := l.LastIndex(); last != 0 {
			t.Errorf("the log goes to %d, and was not saved", last)
		}
		l.disk.hook = func(op, name string) error { t.Errorf("%s of %s after a failure", op, name); return nil }
		if err := put(l, 1, 1, 2); !errors.Is(err, broken) {
			t.Errorf("saved after a failed %s: %v", failing, err)
		}
		if err := l.Save(hard{1, 0, 0}.state(), nil); !errors.Is(err, broken) {
			t.Errorf("saved after a failed %s: %v", failing, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
