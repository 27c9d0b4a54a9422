package kvadapter

import (
	"bytes"
	"context"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/attunekv/attune"
)

var _ Bounded = (*memcached)(nil)

const (
	// memcachedItemSize is the largest item of a memcached that was started without -I.
	memcachedItemSize = 1 << 20
	// memcachedItemHead is what an item has besides key and record, at most: the
	// header, a cas, two ends, and 16 bytes of text in releases before 1.5.
	memcachedItemHead = 48 + 8 + 3 + 16
)

// memcachedLimit is how large an item a server takes, if somebody wants to know. Then
// it is asked whenever a connection to it is made, beside what the connection is for:
// it may be another by now, or the same with another -I.
type memcachedLimit struct {
	most   atomic.Int64 // bytes of an item, all included; 0: the server has not said
	wanted atomic.Bool
	asking atomic.Bool

	mu     sync.Mutex // held while something is added to asks, and by close
	ctx    context.Context
	cancel context.CancelFunc
	asks   sync.WaitGroup
}

func (l *memcachedLimit) open() { l.ctx, l.cancel = context.WithCancel(context.Background()) }

// close ends what learn began. Nothing is learned after it.
func (l *memcachedLimit) close() {
	l.mu.Lock()
	l.cancel()
	l.mu.Unlock()
	l.asks.Wait()
}

// fits reports whether an item of that size is surely no larger than may be: a server
// that has not said counts as one without -I.
func (l *memcachedLimit) fits(size int) bool {
	most := l.most.Load()
	return int64(size) <= most || most == 0 && size <= memcachedItemSize
}

// learn has a goroutine ask the server for its limit, unless one does.
func (s *memcachedServer) learn() {
	l := &s.limit
	if l.asking.Swap(true) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return
	}
	l.asks.Go(func() {
		defer l.asking.Store(false)
		most := int64(memcachedItemSize) // of one that answers, and does not say: a proxy
		err := s.ask(l.ctx, "stats settings", s.timeout, func(line []byte) (bool, error) {
			if digits, ok := bytes.CutPrefix(line, []byte("STAT item_size_max ")); ok {
				n, err := strconv.ParseInt(string(digits), 10, 64)
				if err != nil || n <= 0 {
					return false, s.nonsense(line)
				}
				most = n
			}
			return bytes.HasPrefix(line, []byte("STAT ")), nil
		})
		if err == nil {
			l.most.Store(most)
		}
	})
}

// wantLimit has the server asked, now if it has not said and may answer, and from
// then on.
func (s *memcachedServer) wantLimit() {
	if s.limit.most.Load() == 0 && s.health.down.Load() == nil {
		s.limit.wanted.Store(true)
		s.learn()
	}
}

// Takes implements Bounded.
func (m *memcached) Takes(key attune.Key, size int) error {
	name := len(key.Text)
	if !verbatim(key.Text) {
		name = len(memcachedKey(key))
	}
	item := memcachedItemHead + name + memcachedOverhead(key.Text) + size
	fleet := m.fleet.Load()
	for _, s := range fleet.servers {
		s.wantLimit()
		if !s.limit.fits(item) {
			return fleet.pick(memcachedKey(key)).takes(item)
		}
	}
	return nil
}

func (s *memcachedServer) takes(item int) error {
	switch {
	case s.limit.fits(item):
		return nil
	case s.limit.most.Load() != 0:
		return s.tooLarge()
	}
	return s.unavailable("it has not said yet how large an item it takes; try again")
}
