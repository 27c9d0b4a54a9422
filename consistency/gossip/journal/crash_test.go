//go:build unix

package journal

import (
	"errors"
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
	step   func(j *Journal) error
}{
	{"start", true, func(j *Journal) error { return j.Start(me) }},
	{"first", false, func(j *Journal) error { return put(j, "1", "2", "3") }},
	{"bound", false, func(j *Journal) error { return j.SetBound(10) }},
	{"second", false, func(j *Journal) error { return put(j, strings.Repeat("4", segmentBytes)) }},
	{"behind the end of a segment", false, func(j *Journal) error { return put(j, "5") }},
	{"state", false, func(j *Journal) error { return save(j, "five") }},
	{"third", false, func(j *Journal) error { return put(j, strings.Repeat("6", segmentBytes)) }},
	{"state of the end of a segment", false, func(j *Journal) error { return save(j, "six") }},
	{"another segment", false, func(j *Journal) error { return put(j, strings.Repeat("7", segmentBytes)) }},
	{"and another", false, func(j *Journal) error { return put(j, strings.Repeat("8", segmentBytes)) }},
	{"again", false, func(j *Journal) error { return put(j, "9") }},
	{"larger state", false, func(j *Journal) error { return save(j, strings.Repeat("x", chunkLen+9)) }},
	{"same state", false, func(j *Journal) error { return save(j, strings.Repeat("x", chunkLen+9)) }},
	{"rename", false, func(j *Journal) error { id := me; id.Cluster[0]++; return j.Rename(id) }},
	{"higher bound", false, func(j *Journal) error { return j.SetBound(20) }},
	{"third segment", false, func(j *Journal) error { return put(j, strings.Repeat("a", segmentBytes)) }},
	{"fourth segment", false, func(j *Journal) error { return put(j, "b") }},
	{"someone else", true, func(j *Journal) error { id := me; id.Origin++; return j.Start(id) }},
	{"their first", false, func(j *Journal) error { return put(j, "1") }},
	{"their state", false, func(j *Journal) error { return save(j, "one") }},
	{"their end", false, func(j *Journal) error { return j.Close() }},
}

// A process may die before any change of the directory, and the machine with it
// if everything is synced: what is there then is what was before the step that
// was interrupted, or after it.
func TestDeathAtAnyMoment(t *testing.T) {
	for _, s := range []Sync{OS, Always} {
		dir := newDir(t)
		j := openAt(t, dir, s)
		views := []string{"nobody"}
		steps := 0
		j.hook = func(op, name string) error { steps++; return nil }
		for _, st := range story {
			if err := st.step(j); err != nil {
				t.Fatal(st.name, err)
			}
			views = append(views, reopened(t, copyDir(t, dir), s))
		}
		t.Logf("%v: %d changes", s, steps)
		for i, v := range views {
			if (v == "nobody") != (i == 0) {
				t.Fatalf("the story does not go as told: %q", views)
			}
		}
		for k := range steps {
			dir := newDir(t)
			j := openAt(t, dir, s)
			p := newPower(t, dir)
			n := 0
			j.hook = func(op, name string) error {
				p.see(op, name)
				if n++; n > k {
					p.last.op = ""
					return errors.New("dead")
				}
				return nil
			}
			i := 0
			for ; i < len(story) && story[i].step(j) == nil; i++ {
			}
			if i == len(story) {
				t.Fatal("nobody died at change", k)
			}
			images := map[string]string{"as it is": dir}
			if s == Always {
				maps.Copy(images, p.images(t))
			}
			kill(t, j)
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

// A process that dies while it opens has lost nothing; nor has the machine.
func TestDeathWhileOpening(t *testing.T) {
	type opening struct {
		was, is Sync
		closed  bool
	}
	for _, c := range []opening{{OS, OS, false}, {OS, OS, true}, {OS, Always, false}, {Always, OS, true}, {Always, Always, false}, {Always, Always, true}} {
		dir := newDir(t)
		views := small(t, dir, c.was)
		want := views[len(views)-1]
		if c.closed {
			if err := openAt(t, dir, c.was).Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			// Something to clear away.
			file, _ := os.OpenFile(newest(t, dir, logPrefix), os.O_WRONLY|os.O_APPEND, 0)
			if _, err := file.Write([]byte("torn")); err != nil || file.Close() != nil {
				t.Fatal(err)
			}
			for _, name := range []string{named(logPrefix, 0), named(statePrefix, 1), "a.tmp"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("left"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		for k := 0; ; k++ {
			image := copyDir(t, dir)
			j, err := take(Options{Dir: image, Sync: c.is, BootID: "boot1"})
			if err != nil {
				t.Fatal(err)
			}
			n, dead := 0, errors.New("dead")
			j.hook = func(op, name string) error {
				if n++; n > k {
					return dead
				}
				return nil
			}
			err = j.recover()
			kill(t, j)
			if got := reopened(t, image, c.is); got != want {
				t.Fatalf("%v: died at change %d:\n%s\nwant\n%s", c, k, got, want)
			}
			if err == nil {
				break
			}
			if !errors.Is(err, dead) {
				t.Fatal(err)
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
		dir := tempDir(t)
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
