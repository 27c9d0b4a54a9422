package client

import (
	"errors"
	"strings"

	"github.com/bradfitz/gomemcache/memcache"
)

// Get returns the item of a key, or memcache.ErrCacheMiss. If the connection is
// lost, or the controller answers SERVER_ERROR, it asks the others before giving up.
func (c *Client) Get(key string) (item *memcache.Item, err error) {
	err = c.try(readAgain, func() error { item, err = c.Client.Get(key); return err })
	return item, err
}

// GetMulti returns the items found, by key. If the connection is lost, or
// the controller answers SERVER_ERROR, it asks the others before giving up.
func (c *Client) GetMulti(keys []string) (items map[string]*memcache.Item, err error) {
	err = c.try(readAgain, func() error { items, err = c.Client.GetMulti(keys); return err })
	return items, err
}

// GetAndTouch returns the item of a key and gives it a new expiration, or returns
// memcache.ErrCacheMiss.
func (c *Client) GetAndTouch(key string, expiration int32) (item *memcache.Item, err error) {
	err = c.try(refused, func() error { item, err = c.Client.GetAndTouch(key, expiration); return err })
	return item, err
}

// Set writes an item unconditionally.
func (c *Client) Set(item *memcache.Item) error {
	return c.try(refused, func() error { return c.Client.Set(item) })
}

// Add writes an item if its key has none; else it returns memcache.ErrNotStored.
func (c *Client) Add(item *memcache.Item) error {
	return c.try(refused, func() error { return c.Client.Add(item) })
}

// Replace writes an item if its key has one; else it returns memcache.ErrNotStored.
func (c *Client) Replace(item *memcache.Item) error {
	return c.try(refused, func() error { return c.Client.Replace(item) })
}

// Append adds to the end of a value, or returns memcache.ErrNotStored if there is
// none.
func (c *Client) Append(item *memcache.Item) error {
	return c.try(refused, func() error { return c.Client.Append(item) })
}

// Prepend adds to the front of a value, or returns memcache.ErrNotStored if there
// is none.
func (c *Client) Prepend(item *memcache.Item) error {
	return c.try(refused, func() error { return c.Client.Prepend(item) })
}

// CompareAndSwap writes an item that was read, if nobody has written it since. Else
// it returns memcache.ErrCASConflict, or memcache.ErrCacheMiss if it is gone.
func (c *Client) CompareAndSwap(item *memcache.Item) error {
	return c.try(refused, func() error { return c.Client.CompareAndSwap(item) })
}

// Touch gives a key a new expiration, or returns memcache.ErrCacheMiss.
func (c *Client) Touch(key string, seconds int32) error {
	return c.try(refused, func() error { return c.Client.Touch(key, seconds) })
}

// Delete deletes a key, or returns memcache.ErrCacheMiss.
func (c *Client) Delete(key string) error {
	return c.try(refused, func() error { return c.Client.Delete(key) })
}

// DeleteAll deletes everything.
func (c *Client) DeleteAll() error {
	return c.try(refused, c.Client.DeleteAll)
}

// FlushAll deletes everything.
func (c *Client) FlushAll() error {
	return c.try(refused, c.Client.FlushAll)
}

// Increment adds delta to a number and returns the result, or memcache.ErrCacheMiss.
// It wraps around at 64 bits.
func (c *Client) Increment(key string, delta uint64) (value uint64, err error) {
	err = c.try(refused, func() error { value, err = c.Client.Increment(key, delta); return err })
	return value, err
}

// Decrement subtracts delta from a number, down to 0, and returns the result, or
// memcache.ErrCacheMiss.
func (c *Client) Decrement(key string, delta uint64) (value uint64, err error) {
	err = c.try(refused, func() error { value, err = c.Client.Decrement(key, delta); return err })
	return value, err
}

// try carries out an operation, at most once per controller: again if it failed
// with an error that again allows.
func (c *Client) try(again func(error) bool, op func() error) error {
	for tries := len(c.controllers.addrs); ; tries-- {
		at := c.controllers.current.Load()
		err := op()
		if !again(err) {
			return err
		}
		if _, answered := ErrorLine(err); answered { // else conn has left it
			c.controllers.failed(at)
		}
		if tries <= 1 {
			return err
		}
	}
}

// refused reports whether a controller said that it did nothing, as it cannot serve
// now: it stops, or starts, has no quorum, or a wrong clock. Then any operation may
// be sent to another one. Not any SERVER_ERROR: most leave open what was done, and
// one that is busy is not helped by being asked again.
func refused(err error) bool {
	line, _ := ErrorLine(err)
	for _, why := range refusals {
		if strings.HasPrefix(line, why) {
			return true
		}
	}
	return false
}

var refusals = []string{"SERVER_ERROR not ready", "SERVER_ERROR no quorum", "SERVER_ERROR clock skew"}

// readAgain reports whether a read that failed with err may be sent again: if the
// connection was lost, or the controller could not serve it, for its memcached is
// away, say. Whether the request was executed is all the same for a read. Not
// ErrUnreachable: all controllers were tried. Writes are repeated only if they were
// refused (GetAndTouch is one): what is known not to have been sent was already sent
// elsewhere by connect.
func readAgain(err error) bool {
	var lost *LostError
	line, _ := ErrorLine(err)
	return errors.As(err, &lost) || strings.HasPrefix(line, "SERVER_ERROR")
}
