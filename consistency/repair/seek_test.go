package repair_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
)

// TestSeekFindsWhatASaveLacks: of the versions of its moment, whoever has them, each
// once; and leaves missing what nobody has.
func TestSeekFindsWhatASaveLacks(t *testing.T) {
	all := peers(t, 3)
	a, b, c := all[0], all[1], all[2]
	keys := same(t, all, 300)
	for i, key := range keys[:10] {
		a.store.forget(key)
		switch {
		case i == 0: // nobody has it
			b.store.forget(key)
			c.store.forget(key)
		case i < 4:
			b.store.forget(key)
		case i < 8:
			c.store.forget(key)
		}
	}
	save, err := a.Save(0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer save.Close()
	// What comes after the moment is not asked for.
	a.put(t, "later", 1, "x")
	b.put(t, "later", 1, "x")
	saved := map[string]int{}
	add := func(key []byte, it attune.Item) error {
		saved[string(key)]++
		if string(it.Value) != strings.Repeat("v", it.Size) || it.Version == 0 {
			return fmt.Errorf("%s: %+v", key, it)
		}
		return nil
	}
	if err := save.Each(t.Context(), add); err != nil || save.Missing() != 10 {
		t.Fatalf("%d missing, %v", save.Missing(), err)
	}
	no := errors.New("no")
	found := int64(0)
	attunetest.Eventually(t, "it ends with an error of who is given the items", func() bool {
		more, err := a.fetcher.Seek(within(t), save, func(key []byte, it attune.Item) error {
			if err := add(key, it); err != nil {
				return err
			}
			if string(key) == keys[9] {
				return no
			}
			return nil
		})
		found += more
		return errors.Is(err, no)
	})
	// One that is too slow to answer in time is asked again.
	attunetest.Eventually(t, "all that somebody has is found", func() bool {
		more, err := a.fetcher.Seek(within(t), save, add)
		if err != nil {
			t.Fatal(err)
		}
		found += more
		return found+1 == 9
	})
	if save.Missing() != 1 {
		t.Errorf("%d are missing, want 1", save.Missing())
	}
	if len(saved) != 299 {
		t.Errorf("%d items of 299 are saved", len(saved))
	}
	for key, n := range saved {
		if n != 1 {
			t.Errorf("%s is saved %d times", key, n)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.fetcher.Seek(ended, save, add); !errors.Is(err, context.Canceled) {
		t.Errorf("it does not end with its context: %v", err)
	}
}
