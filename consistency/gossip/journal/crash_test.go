//go:build unix

package journal

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

var story = []disktest.Step[*Journal]{
	{Name: "start", Nobody: true, Do: func(j *Journal) error { return j.Start(me) }},
	{Name: "first", Do: func(j *Journal) error { return put(j, "1", "2", "3") }},
	{Name: "bound", Do: func(j *Journal) error { return j.SetBound(10) }},
	{Name: "second", Do: func(j *Journal) error { return put(j, strings.Repeat("4", segmentBytes)) }},
	{Name: "behind the end of a segment", Do: func(j *Journal) error { return put(j, "5") }},
	{Name: "state", Do: func(j *Journal) error { return save(j, "five") }},
	{Name: "third", Do: func(j *Journal) error { return put(j, strings.Repeat("6", segmentBytes)) }},
	{Name: "state of the end of a segment", Do: func(j *Journal) error { return save(j, "six") }},
	{Name: "another segment", Do: func(j *Journal) error { return put(j, strings.Repeat("7", segmentBytes)) }},
	{Name: "and another", Do: func(j *Journal) error { return put(j, strings.Repeat("8", segmentBytes)) }},
	{Name: "again", Do: func(j *Journal) error { return put(j, "9") }},
	{Name: "larger state", Do: func(j *Journal) error { return save(j, strings.Repeat("x", chunkLen+9)) }},
	{Name: "same state", Do: func(j *Journal) error { return save(j, strings.Repeat("x", chunkLen+9)) }},
	{Name: "rename", Do: func(j *Journal) error { id := me; id.Cluster[0]++; return j.Rename(id) }},
	{Name: "higher bound", Do: func(j *Journal) error { return j.SetBound(20) }},
	{Name: "third segment", Do: func(j *Journal) error { return put(j, strings.Repeat("a", segmentBytes)) }},
	{Name: "fourth segment", Do: func(j *Journal) error { return put(j, "b") }},
	{Name: "someone else", Nobody: true, Do: func(j *Journal) error { id := me; id.ID++; return j.Start(id) }},
	{Name: "their first", Do: func(j *Journal) error { return put(j, "1") }},
	{Name: "their state", Do: func(j *Journal) error { return save(j, "one") }},
	{Name: "their end", Do: func(j *Journal) error { return j.Close() }},
}

func TestDeathAtAnyMoment(t *testing.T) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		for i, v := range journals.Death(t, s, story) {
			if (v == disktest.Nobody) != (i == 0) {
				t.Fatalf("the story does not go as told: step %d: %s", i, v)
			}
		}
	}
}

// A process that dies while it opens has lost nothing; nor has the machine.
func TestDeathWhileOpening(t *testing.T) {
	type opening struct {
		was, is disk.Sync
		closed  bool
	}
	for _, c := range []opening{{disk.OS, disk.OS, false}, {disk.OS, disk.OS, true}, {disk.OS, disk.Always, false}, {disk.Always, disk.OS, true}, {disk.Always, disk.Always, false}, {disk.Always, disk.Always, true}} {
		dir := disktest.NewDir(t)
		views := small(t, dir, c.was)
		want := views[len(views)-1]
		if c.closed {
			if err := openAt(t, dir, c.was).Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			// Something to clear away.
			file, _ := os.OpenFile(disktest.Newest(t, dir, "log-"), os.O_WRONLY|os.O_APPEND, 0)
			if _, err := file.Write([]byte("torn")); err != nil || file.Close() != nil {
				t.Fatal(err)
			}
			for _, name := range []string{disk.Segment(0), disk.State(1), "a.tmp"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("left"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		for k := 0; ; k++ {
			image := disktest.CopyDir(t, dir)
			j := taken(t, image, c.is)
			n, dead := 0, errors.New("dead")
			j.dir.Hook = func(op, name string) error {
				if n++; n > k {
					return dead
				}
				return nil
			}
			err := j.recover()
			kill(t, j)
			if got := journals.Reopened(t, image, c.is); got != want {
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
