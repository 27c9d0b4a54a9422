package journal

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/disk/disktest"
)

func TestCheckpointThatFailsLeavesTheOneBefore(t *testing.T) {
	dir := disktest.NewDir(t)
	j := started(t, dir, disk.Always)
	if err := errors.Join(put(j, "a"), put(j, "b"), save(j, "two"), put(j, "c")); err != nil {
		t.Fatal(err)
	}
	want := view(t, j)
	broken := errors.New("broken")
	err := j.Checkpoint(j.Mark(), func(w io.Writer) error {
		if _, err := w.Write(make([]byte, 3*chunkLen+1)); err != nil {
			return err
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	if saveAt(j, 1, "older") == nil || saveAt(j, j.Mark()+1, "ahead") == nil {
		t.Error("a state was written of where none can be")
	}
	for _, op := range []string{"create", "write", "sync", "rename"} {
		j.dir.Hook = func(did, name string) error {
			if did == op {
				return broken
			}
			return nil
		}
		if err := save(j, "three"); !errors.Is(err, broken) {
			t.Errorf("%s failed: %v", op, err)
		}
	}
	j.dir.Hook = nil
	if tmps, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(tmps) > 0 {
		t.Errorf("left: %v", tmps)
	}
	if got := view(t, j); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if got := journals.Reopened(t, disktest.CopyDir(t, dir), disk.Always); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if err := errors.Join(save(j, "three"), j.Close()); err != nil {
		t.Error("it does not go on:", err)
	}
}

// What a directory that could not be synced has is not known.
func TestDirectoryThatCannotBeSynced(t *testing.T) {
	dir := disktest.NewDir(t)
	j := started(t, dir, disk.Always)
	if err := errors.Join(put(j, "a"), save(j, "one"), put(j, "b")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	j.dir.Hook = func(op, name string) error {
		if op == "syncdir" {
			return broken
		}
		return nil
	}
	if err := save(j, "two"); !errors.Is(err, broken) {
		t.Error(err)
	}
	j.dir.Hook = nil
	if states, _ := filepath.Glob(filepath.Join(dir, "state-"+"*")); len(states) != 2 {
		t.Errorf("states: %v", states)
	}
	if err := errors.Join(save(j, "two"), put(j, "c"), j.SetBound(1)); !errors.Is(err, broken) {
		t.Error("it goes on:", err)
	}
	kill(t, j)
}

// Checkpoints, appends, bounds and questions go on beside each other; what they leave
// is whole, and the disk does not fill up.
func TestCheckpointsWhileAppendsGoOn(t *testing.T) {
	dir := disktest.NewDir(t)
	j := started(t, dir, disk.OS)
	var (
		wg   sync.WaitGroup
		done = make(chan struct{})
		mu   sync.Mutex
		n    int // the state: how many records were applied
	)
	wg.Go(func() {
		defer close(done)
		for range 50 {
			at := j.Mark()
			mu.Lock()
			cut := n
			mu.Unlock()
			if err := saveAt(j, at, fmt.Sprint(cut)); err != nil {
				t.Error(err)
			}
		}
	})
	// goesOn waits while checkpoints are far behind, or a busy machine would have
	// them delete files for ever.
	goesOn := func() bool {
		for {
			select {
			case <-done:
				return false
			default:
			}
			if j.Size() < 100*segmentBytes {
				return true
			}
			time.Sleep(time.Millisecond)
		}
	}
	wg.Go(func() {
		for ms := int64(1); goesOn(); ms++ {
			if err := j.SetBound(ms); err != nil || j.Bound() < ms || j.Size() < 0 {
				t.Error(err, j.Bound(), j.Size())
			}
			if _, known := j.Identity(); !known {
				t.Error("nobody")
			}
		}
	})
	for going := true; going; going = goesOn() {
		mu.Lock()
		n++
		next := n
		mu.Unlock()
		if err := put(j, fmt.Sprint(next)); err != nil {
			t.Error(err)
			break
		}
	}
	wg.Wait()
	kill(t, j)
	j = openAt(t, dir, disk.OS)
	got := 0
	err := errors.Join(j.LoadState(func(r io.Reader) error {
		_, err := fmt.Fscan(r, &got)
		return err
	}), j.Replay(func(r []byte) error {
		var i int
		if _, err := fmt.Sscan(string(r), &i); err != nil || i > got+1 {
			return fmt.Errorf("%q follows %d: %v", r, got, err)
		}
		got = max(got, i)
		return nil
	}))
	if err != nil || got != n {
		t.Errorf("%d of %d are there: %v", got, n, err)
	}
	if err := save(j, "end"); err != nil || j.Size() != 0 {
		t.Error(err, j.Size())
	}
	for _, prefix := range []string{"log-", "state-"} {
		if names, _ := filepath.Glob(filepath.Join(dir, prefix+"*")); len(names) != 1 {
			t.Errorf("left: %v", names)
		}
	}
	kill(t, j)
}

// Close does not wait for the rest of a state.
func TestCloseEndsACheckpoint(t *testing.T) {
	dir := disktest.NewDir(t)
	j := started(t, dir, disk.OS)
	if err := put(j, "a"); err != nil {
		t.Fatal(err)
	}
	want := view(t, j)
	writing := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := j.Checkpoint(j.Mark(), func(w io.Writer) error {
			close(writing)
			for {
				if _, err := w.Write(make([]byte, 1000)); err != nil {
					return err
				}
			}
		})
		if !errors.Is(err, errClosed) {
			t.Error(err)
		}
	})
	<-writing
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if got := journals.Reopened(t, dir, disk.OS); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
