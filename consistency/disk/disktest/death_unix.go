//go:build unix

package disktest

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/attunekv/attune/consistency/disk"
)

// Step changes what is on disk at once or not at all; but if Nobody, there may be
// nobody when it is interrupted.
type Step[M any] struct {
	Name   string
	Nobody bool
	Do     func(m M) error
}

// Death tells a story, whose process dies before any change of the directory, and
// the machine with it if everything is synced: what is there then is what was before
// the step that was interrupted, or after it. It returns the views of an empty
// directory, and after each step.
func (k Memory[M]) Death(t *testing.T, s disk.Sync, story []Step[M]) (views []string) {
	t.Helper()
	dir := NewDir(t)
	m := k.Open(t, dir, s)
	views = []string{Nobody}
	changes := 0
	k.Files(m).Hook = func(op, name string) error { changes++; return nil }
	for _, st := range story {
		if err := st.Do(m); err != nil {
			t.Fatal(st.Name, err)
		}
		views = append(views, k.Reopened(t, CopyDir(t, dir), s))
	}
	k.Kill(t, m)
	t.Logf("%v: %d changes", s, changes)
	for c := range changes {
		dir := NewDir(t)
		m := k.Open(t, dir, s)
		p := newPower(t, dir)
		n := 0
		k.Files(m).Hook = func(op, name string) error {
			p.see(op, name)
			if n++; n > c {
				p.last.op = ""
				return errors.New("dead")
			}
			return nil
		}
		i := 0
		for ; i < len(story) && story[i].Do(m) == nil; i++ {
		}
		if i == len(story) {
			t.Fatal("nobody died at change", c)
		}
		images := map[string]string{"as it is": dir}
		if s == disk.Always {
			maps.Copy(images, p.images(t))
		}
		k.Kill(t, m)
		for what, image := range images {
			got := k.Reopened(t, image, s)
			if got != views[i] && got != views[i+1] && !(story[i].Nobody && got == Nobody) {
				t.Fatalf("%v: died in step %q at change %d; %s:\n%.500s\nwant\n%.500s\nor\n%.500s", s, story[i].Name, c, what, got, views[i], views[i+1])
			}
			if again := k.Reopened(t, image, s); again != got {
				t.Fatalf("%v: died in step %q at change %d; %s: opened again it is\n%.500s\nand was\n%.500s", s, story[i].Name, c, what, again, got)
			}
		}
	}
	return views
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
		if e.Name() != "lock" {
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
	image := func(names map[string]uint64, zeros bool) string {
		dir := TempDir(t)
		for name, ino := range names {
			b := p.synced[ino]
			if more := lengths[ino] - int64(len(b)); zeros && more > 0 {
				b = append(b[:len(b):len(b)], make([]byte, more)...)
			}
			write(t, filepath.Join(dir, name), b)
		}
		return dir
	}
	images := map[string]string{
		"only what was synced":             image(p.names, false),
		"names were not synced, and are":   image(now, false),
		"lengths were not synced, and are": image(now, true),
		"what was removed is back":         image(union, false),
	}
	for name := range p.names {
		if now[name] == 0 {
			but := maps.Clone(union)
			delete(but, name)
			images["what was removed is back but "+name] = image(but, false)
		}
	}
	return images
}
