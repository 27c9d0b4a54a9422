package replica

import (
	"context"
	"errors"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// State is what the index has of a key.
type State string

// States of a key.
const (
	Absent  State = "absent"  // no entry
	Present State = "present" // an item, which may be expired
	Freed   State = "freed"   // an expired item whose bytes were given back
	Deleted State = "deleted" // the entry of a deletion, kept until all have heard of it
	Evicted State = "evicted" // the same of an eviction
	Flushed State = "flushed" // an entry that a flush killed
)

// Where says where the bytes of an item are.
type Where string

// Places of bytes.
const (
	Nowhere  Where = ""         // there are none to look for
	InMemory Where = "memory"   // in this process
	Staged   Where = "staged"   // in this process, on their way to the store
	InHot    Where = "hot"      // in the cache of what is read often
	InStore  Where = "store"    // in the store outside this process, which was asked
	Lost     Where = "missing"  // the store has none, or those of another version
	Unknown  Where = "no reply" // the store did not say
)

// Look is what a replica has of a key, for people.
type Look struct {
	Item  attune.Item // as indexed, without Value; with Present and Freed all of it, else the Version at most
	State State
	Bytes Where
	Err   error // why Bytes is Unknown
}

// Look tells what this replica has of a key. It counts as no read. A backend outside
// this process is asked, for as long as ctx lasts, if that has the bytes.
func (r *Replica) Look(ctx context.Context, key attune.Key) Look {
	l := r.glance(key)
	if l.State != Present || l.Bytes != Nowhere {
		return l
	}
	rec, err := r.backend.Get(ctx, key, nil)
	switch {
	case err == nil && r.wrote(&l.Item, &rec):
		l.Bytes = InStore
		if r.memory != nil {
			l.Bytes = InMemory
		}
	case err == nil || errors.Is(err, kvadapter.ErrNotFound):
		l.Bytes = Lost
	default:
		l.Bytes, l.Err = Unknown, err
	}
	return l
}

// glance is Look as far as it can be said without the backend.
func (r *Replica) glance(key attune.Key) Look {
	s := r.segment(key.Hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, _ := s.find(key.Hash)
	switch {
	case e == nil:
		return Look{State: Absent}
	case e.version <= r.Floor():
		return Look{State: Flushed, Item: attune.Item{Version: e.version}}
	case e.dead():
		l := Look{State: Deleted, Item: attune.Item{Version: e.version}}
		if e.flags == evicted {
			l.State = Evicted
		}
		return l
	case e.bare():
		return Look{State: Freed, Item: e.full()}
	}
	l := Look{State: Present, Item: e.full()}
	switch {
	case s.value(&l.Item, key.Hash) != nil:
		l.Bytes = Staged
	case r.isHot(&l.Item, key.Hash):
		l.Bytes = InHot
	}
	l.Item.Value = nil
	return l
}
