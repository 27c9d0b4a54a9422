// Package room watches how much room is left on the file systems of directories,
// so that who writes there can refuse in time, and need not find out by a write that
// fails halfway: a log or a database that meets a full disk can only give up.
package room

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/dustin/go-humanize"
)

const (
	// Reserve is the least room in bytes that there should be: what was accepted
	// before somebody noticed must still fit.
	Reserve = 128 << 20
	// every is how often it is looked.
	every = 500 * time.Millisecond
)

// ErrFull is what [Watch.Err] is when there is too little room.
var ErrFull = errors.New("disk is full")

// Watch looks after some directories. Its methods may be called concurrently.
type Watch struct {
	dirs    []Reserved
	told    func(err error) // of run alone, after New
	full    atomic.Pointer[error]
	stop    chan struct{}
	once    sync.Once
	running sync.WaitGroup
}

// Reserved is a directory, and how many bytes are to be left free on its file system.
type Reserved struct {
	Dir     string
	Reserve uint64
}

// New begins to watch directories, which must be there. told is called when Err begins
// to be an error, and when it is none any more. It must be closed.
func New(told func(err error), dirs ...Reserved) *Watch {
	w := &Watch{dirs: dirs, told: told, stop: make(chan struct{})}
	w.look()
	w.running.Go(w.run)
	return w
}

// Err says which directory has too little room: an [ErrFull] with what to do about
// it. Nil if all have enough. It costs one load.
func (w *Watch) Err() error {
	if err := w.full.Load(); err != nil {
		return *err
	}
	return nil
}

// Disk is the room on the file system of a directory, in bytes.
type Disk struct {
	Dir         string
	Free, Total uint64
	Reserve     uint64 // with less than that free, Err is an error
}

// Disks looks at all directories now. A file system that does not tell is left out.
func (w *Watch) Disks() (all []Disk) {
	for _, d := range w.dirs {
		if u, err := vfs.Default.GetDiskUsage(d.Dir); err == nil {
			all = append(all, Disk{Dir: d.Dir, Free: u.AvailBytes, Total: u.TotalBytes, Reserve: d.Reserve})
		}
	}
	return all
}

// Close ends the watching.
func (w *Watch) Close() {
	w.once.Do(func() { close(w.stop) })
	w.running.Wait()
}

func (w *Watch) run() {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.look()
		case <-w.stop:
			return
		}
	}
}

// look looks once. A file system that does not tell is taken for one with room: a
// write will find out.
func (w *Watch) look() {
	for _, d := range w.dirs {
		u, err := vfs.Default.GetDiskUsage(d.Dir)
		if err != nil || u.AvailBytes >= d.Reserve {
			continue
		}
		err = fmt.Errorf("%w: %s has %s left, and writes need %s: make room there", ErrFull, d.Dir,
			humanize.IBytes(u.AvailBytes), humanize.IBytes(d.Reserve))
		if w.full.Swap(&err) == nil {
			w.told(err)
		}
		return
	}
	if w.full.Swap(nil) != nil {
		w.told(nil)
	}
}
