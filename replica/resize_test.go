package replica

import (
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// The cache of hot values becomes larger and smaller with what is in it, and comes
// and goes.
func TestResize(t *testing.T) {
	r, _ := openHot(8 << 20)
	key := func(i int) attune.KeyHash { return attune.KeyHash{uint64(i), 1} }
	for i := range 64 {
		r.hot.Load().add(key(i), kvadapter.Record{Value: make([]byte, 64<<10)})
	}
	before := r.Stats().HotBytes
	if before < 2<<20 {
		t.Fatalf("%d bytes are hot, want some MiB", before)
	}
	r.Resize(0, 16<<20)
	if got := r.Stats().HotBytes; got != before {
		t.Errorf("larger, it has %d bytes, and had %d", got, before)
	}
	r.Resize(0, 1<<20)
	if got := r.Stats().HotBytes; got > 1<<20 {
		t.Errorf("smaller, it has %d bytes", got)
	}
	r.hot.Load().add(key(100), kvadapter.Record{Value: make([]byte, 64<<10)}) // more than its share
	if _, ok := r.hot.Load().get(key(100)); ok {
		t.Error("the share of one value has not changed")
	}
	r.Resize(0, 0)
	if got := r.Stats().HotBytes; got != 0 || r.hot.Load() != nil {
		t.Errorf("none, it has %d bytes", got)
	}
	r.Resize(1<<20, 1<<20)
	if r.hot.Load() == nil || r.Stats().Limit != 1<<20 {
		t.Error("it did not come back")
	}
}
