package replica

import (
	"context"
	"errors"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// ErrNoCount is returned by Held when the backend does not count.
var ErrNoCount = errors.New("the backend does not tell how many records it has")

// ErrNoScan is returned by Scan when the backend cannot list its keys: the
// index knows hashes only.
var ErrNoScan = errors.New("the backend cannot list its keys")

// Scan calls fn for the items there are, without their Value, in no order and
// without a consistent cut, until fn returns false. Expired items that were not
// removed yet are among them. The key is valid during the call of fn. Errors:
// [ErrNoScan], the backend's.
func (r *Replica) Scan(ctx context.Context, fn func(key []byte, it attune.Item) bool) error {
	scanner, ok := r.backend.(kvadapter.Scanner)
	if !ok {
		return ErrNoScan
	}
	return scanner.Scan(ctx, func(text []byte, stamp kvadapter.Stamp, _ int) bool {
		it := r.Peek(attune.Key{Hash: r.Hash(text)}, false)
		if it.Version == 0 || stamp != r.stamp(&it) {
			return true
		}
		return fn(text, it)
	})
}

// Held is about how many records the backend has, those that the index does not name
// included. Errors: [ErrNoCount], the backend's.
func (r *Replica) Held(ctx context.Context) (int64, error) {
	if c, ok := r.backend.(kvadapter.Counter); ok {
		return c.Items(ctx)
	}
	return 0, ErrNoCount
}
