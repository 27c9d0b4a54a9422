package repair

import (
	"context"
	"errors"
	"fmt"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/replica"
)

// Seek gives to fn what save lacks, if others have it: of exactly the versions of its
// moment. It asks each of them for all its keys, as the index here has none, and for the
// values one by one; so it may take long, and ends with ctx. found is how many there
// were. Errors: fn's, which end it; the cause of ctx; why others, or the store here, did
// not answer.
func (f *Fetcher) Seek(ctx context.Context, save *replica.Save, fn func(key []byte, it attune.Item) error) (found int64, failed error) {
	ms, _ := f.peers()
	for _, m := range ms {
		if save.Missing() == 0 {
			break
		}
		var gave error // by fn
		err := eachKeys(ctx, f.cluster, f.replica, m.ID, func(keys []attune.Key) error {
			lacking, items, err := save.Lacking(ctx, keys)
			for i, key := range lacking {
				a, err := f.Fetch(ctx, key, items[i])
				if err != nil {
					return err
				}
				if items[i].Value = a.Value; a.Value == nil {
					continue
				}
				if gave = save.Give(key, items[i], fn); gave != nil {
					return gave
				}
				found++
			}
			return err
		})
		if gave != nil || ctx.Err() != nil {
			return found, err
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", m.Name, err))
		}
	}
	return found, failed
}
