package kvadapter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"
)

// What Pebble makes of trouble, and what is made of that here.
//
// A disk without room: a flush or compaction that meets it is tried again at once
// and for ever, and a manifest that meets it ends the process. So Put refuses while
// there still is some room, and should the disk fill up all the same, every write
// of Pebble's waits in awaitRoom until there is room again. Reads go on.
//
// A disk that cannot be written or read: a flush would be tried again for ever, and
// what a failed sync left is unknown. The process ends, and says why.
//
// A damaged file: a read that meets it finds nothing, and a compaction of it fails
// again and again. So what is in the file's range of keys is given up, and the file
// with it. To the replica these records are lost, and it fetches them from others.

// damage is a range of keys in a damaged file; both ends are in it.
type damage struct {
	first, last []byte
	path        string
}

// events are what Pebble tells.
func (s *pebbleStore) events() *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			switch {
			case pebble.IsCorruptionError(err), errors.Is(err, os.ErrNotExist):
				s.log.Debug("a damaged file is in the way", zap.Error(err))
			case s.isClosing():
				s.log.Warn("the store closes with an error", zap.Error(err))
			case errors.Is(err, syscall.ENOSPC):
				// Room was found, and taken by somebody else before the write was tried
				// again. Pebble begins anew, and waits for room anew.
				s.log.Warn("the disk is full again", zap.String("dir", s.dir), zap.Error(err))
			default:
				s.log.Fatal("the store's directory cannot be written or read; this controller stops, as nothing is known about what is on disk then. See to the disk, and start it again",
					zap.String("dir", s.dir), zap.Error(err))
			}
		},
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			s.corrupt.Add(1)
			select {
			case s.damages <- damage{bytes.Clone(info.Bounds.Start), bytes.Clone(info.Bounds.End.Key), info.Path}:
				s.log.Error("a file of the store is damaged; what is in it is given up, and comes back from other controllers that have it",
					zap.String("file", info.Path), zap.Error(info.Details))
			default: // it will be met again
			}
		},
		WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
			s.waits.Add(1)
			s.waitBegan.Store(time.Now().UnixNano())
			s.log.Debug("writes wait for the disk", zap.String("why", info.Reason))
		},
		WriteStallEnd: func() {
			s.waited.Add(time.Now().UnixNano() - s.waitBegan.Load())
		},
	}
}

func (s *pebbleStore) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// awaitRoom returns when the disk has room again, or the store closes: all writes
// wait for it, and the one that found the disk full is then tried once more.
func (s *pebbleStore) awaitRoom() {
	s.log.Error("the disk is full: the store waits until there is room", zap.String("dir", s.dir))
	const every = 100 * time.Millisecond
	for {
		select {
		case <-time.After(every):
			if s.room.Err() == nil {
				s.log.Info("the disk has room again", zap.String("dir", s.dir))
				return
			}
		case <-s.closing:
			return
		}
	}
}

// mend gives up what is in damaged files, one after the other, until Close.
func (s *pebbleStore) mend() {
	defer close(s.mended)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		select {
		case d := <-s.damages:
			// The end of what is excised is not part of it.
			span := pebble.KeyRange{Start: d.first, End: append(d.last, 0)}
			if err := s.db.Excise(ctx, span); err != nil {
				s.log.Error("a damaged file could not be given up: stop this controller, move the directory away, and start it again to have it filled by the others",
					zap.String("file", d.path), zap.String("dir", s.dir), zap.Error(err))
				continue
			}
			s.dropped.Add(1)
		case <-s.closing:
			return
		}
	}
}

// pebbleLogger passes on what Pebble logs. It reports much, and nothing that an
// operator must know but what [pebbleStore.events] and Fatalf are told.
type pebbleLogger struct{ s *pebbleStore }

func (l pebbleLogger) Infof(format string, args ...any)  { l.s.log.Debug(fmt.Sprintf(format, args...)) }
func (l pebbleLogger) Errorf(format string, args ...any) { l.s.log.Warn(fmt.Sprintf(format, args...)) }

// Fatalf is called when Pebble cannot go on, with locks held, and must not return.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	l.s.log.Fatal("the store cannot go on; this controller stops. See to the disk, and start it again: what was acknowledged is in its log",
		zap.String("dir", l.s.dir), zap.Error(fmt.Errorf(format, args...)))
}
