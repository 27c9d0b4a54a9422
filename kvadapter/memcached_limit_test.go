package kvadapter_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
)

// limitOf is the largest value that b says it takes for a key.
func limitOf(b kvadapter.Backend, key attune.Key) int {
	low, high := 0, 64<<20
	for low < high {
		if mid := (low + high + 1) / 2; b.(kvadapter.Bounded).Takes(key, mid) == nil {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return low
}

// TestMemcachedTakesWhatItSays: a value that is said to be taken is, for keys of any
// length and kind, and one that is little larger is not.
func TestMemcachedTakesWhatItSays(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
	}{{"default", nil}, {"small", []string{"-I", "128k", "-o", "slab_chunk_max=65536"}}, {"large", []string{"-I", "4m"}}, {"without cas", []string{"-C"}}} {
		t.Run(test.name, func(t *testing.T) {
			addr := attunetest.StartMemcached(t, test.args...).Addr
			b := openMemcached(t, addr, "?timeout=5s")
			attunetest.Eventually(t, "it has said", func() bool {
				err := b.(kvadapter.Bounded).Takes(mkey("k"), 5<<20)
				return errors.Is(err, kvadapter.ErrTooLarge)
			})
			for _, key := range []string{"k", strings.Repeat("k", 250), "with space", strings.Repeat("\xff", 250)} {
				most := limitOf(b, mkey(key))
				rec := kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1, Version: 2}, Value: bytes.Repeat([]byte("v"), most)}
				if err := b.Put(t.Context(), mkey(key), rec); err != nil {
					t.Errorf("key of %d bytes: %d bytes are too many after all: %v", len(key), most, err)
				}
				rec.Value = append(rec.Value, make([]byte, 64)...)
				if err := b.Put(t.Context(), mkey(key), rec); !errors.Is(err, kvadapter.ErrTooLarge) {
					t.Errorf("key of %d bytes: %d bytes are taken, though %d would be refused: %v", len(key), len(rec.Value), most+1, err)
				}
			}
		})
	}
}

// TestMemcachedLimitChanges: a server that is another, at the same address, is asked
// anew; each of many has its own limit.
func TestMemcachedLimitChanges(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "one.sock")
	one, two := attunetest.StartMemcached(t, "-s", socket, "-I", "2m"), attunetest.StartMemcached(t)
	servers := []string{one.Addr, two.Addr}
	b := openMemcached(t, strings.Join(servers, ","), "?timeout=5s")
	large, small := mkey(on(t, servers, 0, 1)[0]), mkey(on(t, servers, 1, 1)[0])
	says := func(key attune.Key, size int, want error) {
		t.Helper()
		attunetest.Eventually(t, "it has said", func() bool { return errors.Is(b.(kvadapter.Bounded).Takes(key, size), want) })
	}
	says(large, 3<<19, nil)
	says(small, 3<<19, kvadapter.ErrTooLarge)
	mustPut(t, b, string(large.Text), mrec(1, "v"))
	one.Kill()
	says(large, 3<<19, nil) // who is away has not changed
	attunetest.StartMemcached(t, "-s", socket)
	attunetest.Eventually(t, "it is back", func() bool { return b.Put(t.Context(), large, mrec(1, "v")) == nil })
	says(large, 3<<19, kvadapter.ErrTooLarge)
}

// TestMemcachedThatIsAway: what none may take that was started without options is not
// taken for granted.
func TestMemcachedThatIsAway(t *testing.T) {
	addr := attunetest.FreeAddr(t)
	b := openMemcached(t, addr, "")
	if err := b.(kvadapter.Bounded).Takes(mkey("k"), 1000<<10); err != nil {
		t.Error(err)
	}
	mustFail(t, b.(kvadapter.Bounded).Takes(mkey("k"), 1<<20), kvadapter.ErrUnavailable, addr)
}

// TestMemcachedThatDoesNotSay takes what one without options does.
func TestMemcachedThatDoesNotSay(t *testing.T) {
	b := openMemcached(t, answering(t, "ERROR\r\n"), "?timeout=5s")
	if err := b.(kvadapter.Bounded).Takes(mkey("k"), 1000<<10); err != nil {
		t.Error(err)
	}
	attunetest.Eventually(t, "it has answered", func() bool {
		return errors.Is(b.(kvadapter.Bounded).Takes(mkey("k"), 1<<20), kvadapter.ErrTooLarge)
	})
}
