//go:build unix

package raftlog

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

var story = []disktest.Step[*Log]{
	{Name: "start", Nobody: true, Do: func(l *Log) error { return l.Start(me) }},
	{Name: "first", Do: func(l *Log) error { return put(l, 1, 1, 3) }},
	{Name: "second", Do: func(l *Log) error { return put(l, 1, 4, 6) }},
	{Name: "third", Do: func(l *Log) error { return put(l, 1, 7, 9) }},
	{Name: "state", Do: func(l *Log) error { return saveState(l, 5, 1, "five") }},
	{Name: "conflict", Do: func(l *Log) error { return put(l, 2, 8, 12) }},
	{Name: "vote", Do: func(l *Log) error { return l.Save(hard{3, 9, 12}.state(), nil) }},
	{Name: "fourth", Do: func(l *Log) error { return put(l, 3, 13, 16) }},
	{Name: "again", Do: func(l *Log) error { return put(l, 3, 17, 18) }},
	{Name: "newer state", Do: func(l *Log) error { return saveState(l, 14, 3, strings.Repeat("x", 2*chunkLen)) }},
	{Name: "same state", Do: func(l *Log) error { return saveState(l, 14, 3, strings.Repeat("x", 2*chunkLen)) }},
	{Name: "rename", Do: func(l *Log) error { id := me; id.Cluster[0]++; return l.Rename(id) }},
	{Name: "install", Nobody: true, Do: func(l *Log) error { return l.Install(100, 4, metaAt(100, 4).GetConfState()) }},
	{Name: "behind it", Nobody: true, Do: func(l *Log) error { return put(l, 4, 101, 103) }},
	{Name: "and its state", Nobody: true, Do: func(l *Log) error { return saveState(l, 101, 4, "installed") }},
	{Name: "another", Do: func(l *Log) error { return put(l, 4, 104, 105) }},
	{Name: "someone else", Nobody: true, Do: func(l *Log) error { id := me; id.ID++; return l.Start(id) }},
	{Name: "their first", Do: func(l *Log) error { return put(l, 1, 1, 2) }},
}

func TestDeathAtAnyMoment(t *testing.T) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		views := logs.Death(t, s, story)
		if views[len(views)-1] == disktest.Nobody || views[13] != disktest.Nobody || views[15] == disktest.Nobody {
			t.Fatalf("the story does not go as told: %q", views)
		}
	}
}

func TestAlwaysSyncsEverySave(t *testing.T) {
	for _, s := range []disk.Sync{disk.OS, disk.Always} {
		l := openAt(t, disktest.NewDir(t), s)
		if err := l.Start(me); err != nil {
			t.Fatal(err)
		}
		var ops []string
		l.disk.Hook = func(op, name string) error { ops = append(ops, op); return nil }
		save(t, l, 1, 1, 0, entry(1, 1, "a"), entry(2, 1, "b"))
		save(t, l, 2, 1, 0)
		save(t, l, 2, 1, 2) // a commit goes with the next
		save(t, l, 2, 1, 2, entry(3, 2, "c"))
		want := "[write write write]"
		if s == disk.Always {
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
		l := openAt(t, disktest.NewDir(t), disk.Always)
		if err := l.Start(me); err != nil {
			t.Fatal(err)
		}
		broken := errors.New("broken")
		l.disk.Hook = func(op, name string) error {
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
		l.disk.Hook = func(op, name string) error { t.Errorf("%s of %s after a failure", op, name); return nil }
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

// What a directory that could not be synced has is not known, and another state that
// could be would remove the one before.
func TestNothingIsSavedWhenTheDirectoryCannotBeSynced(t *testing.T) {
	dir := disktest.NewDir(t)
	l := openAt(t, dir, disk.Always)
	if err := errors.Join(l.Start(me), put(l, 1, 1, 9), saveState(l, 4, 1, "four")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	l.disk.Hook = func(op, name string) error {
		if op == "syncdir" {
			return broken
		}
		return nil
	}
	if err := saveState(l, 6, 1, "six"); !errors.Is(err, broken) || !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	l.disk.Hook = func(op, name string) error { t.Errorf("%s of %s after a failure", op, name); return nil }
	for what, err := range map[string]error{
		"state": saveState(l, 6, 1, "six"), "save": put(l, 1, 10, 11), "vote": l.Save(hard{2, 1, 1}.state(), nil),
		"install": l.Install(20, 2, nil), "rename": l.Rename(me), "start": l.Start(me),
	} {
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if states := disktest.Named(t, dir, "state-"); len(states) != 2 {
		t.Errorf("states: %v", states)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
