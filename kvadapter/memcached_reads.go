package kvadapter

import (
	"context"
	"sync"

	"github.com/bradfitz/gomemcache/memcache"
)

// memcachedReads gets single records, all that wait for a server in one request
// (memcachedConvoy), so that many connections of clients cost the server's a few
// system calls. Two requests may be under way, for one of them may have large values.
type memcachedReads struct {
	memcachedConvoy[memcachedRead]
	server *memcachedServer
}

// memcachedRead is one key to get.
type memcachedRead struct {
	name string
	item *memcache.Item // nil with an error
}

type memcachedReadSeat = memcachedSeat[memcachedRead]

var memcachedReadSeats = sync.Pool{New: func() any { return &memcachedReadSeat{turn: make(chan bool, 1)} }}

const (
	// readLanes is how many requests may be under way to a server.
	readLanes = 2
	// readBatch is the most keys of one: they may all have large values.
	readBatch = 32
)

func (r *memcachedReads) open(s *memcachedServer, maxIdle int) {
	r.server, r.lanes, r.send = s, min(readLanes, maxIdle), r.getAll
	r.room = func(_ *memcachedReadSeat, queue []*memcachedReadSeat) int { return min(len(queue), readBatch-1) }
}

// get returns the item stored under a name. Others that asked for the same one may
// have it, too.
func (r *memcachedReads) get(ctx context.Context, name string) (*memcache.Item, error) {
	w := memcachedReadSeats.Get().(*memcachedReadSeat)
	defer memcachedReadSeats.Put(w)
	w.load = memcachedRead{name: name}
	r.do(ctx, w)
	item, err := w.load.item, w.err
	w.load = memcachedRead{} // a value should not stay for the seat's sake
	return item, err
}

func (r *memcachedReads) getAll(batch []*memcachedReadSeat) {
	s, first := r.server, &batch[0].load
	if len(batch) == 1 {
		batch[0].err = s.try(1, func() (err error) {
			first.item, err = s.client.Get(first.name)
			return err
		})
		return
	}
	names := make([]string, len(batch))
	for i, w := range batch {
		names[i] = w.load.name
	}
	var items map[string]*memcache.Item
	err := s.try(len(batch), func() (err error) {
		items, err = s.client.GetMulti(names)
		return err
	})
	// A call that failed has the items that came before it did.
	for _, w := range batch {
		switch w.load.item = items[w.load.name]; {
		case w.load.item != nil:
			w.err = nil
		case err != nil:
			w.err = err
		default:
			w.err = ErrNotFound
		}
	}
}
