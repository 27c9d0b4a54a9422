package replica

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// Writers and readers of a few keys on a slow backend that fails now and then:
// no read ever sees a value of another version or key than the index says, and
// in the end the backend has, for every key, what the index says it has.
func TestConcurrentWritesNeverShowAWrongValue(t *testing.T) {
	for name, o := range map[string]Options{
		"memory":          {Backend: newMemory()},
		"slow":            {Backend: &remote{store: newStore(), delay: 200 * time.Microsecond}},
		"slow and faulty": {Backend: &remote{store: newStore(), delay: 200 * time.Microsecond, failOnce: 0.1}},
		"hot":             {Backend: &remote{store: newStore(), delay: 200 * time.Microsecond, failOnce: 0.1}, HotCache: 1 << 20},
		"hot, little":     {Backend: &remote{store: newStore(), delay: 200 * time.Microsecond}, HotCache: 6000},
	} {
		t.Run(name, func(t *testing.T) { stress(t, o) })
	}
}

func stress(t *testing.T, o Options) {
	o.Gen = 1
	r, backend := choosy(Open(o)), o.Backend
	var keys []attune.Key
	for _, text := range []string{"a", "b", "c"} {
		keys = append(keys, keyOf(r, text))
	}
	var clock atomic.Uint64
	next := func() attune.Version { return attune.Version(clock.Add(1)) }
	ctx := context.Background()
	began := time.Now()
	going := func() bool {
		switch took := time.Since(began); {
		case took < 300*time.Millisecond:
			return true
		case o.HotCache == 0 || took > 20*time.Second:
			return false
		}
		st := r.Stats() // on a busy machine it takes longer until something is hot
		return st.HotHits == 0 || st.HotMisses == 0
	}
	check := func(key attune.Key, it attune.Item) {
		want := string(key.Text) + " " + strconv.FormatUint(uint64(it.Stored), 10)
		if got := strings.TrimRight(string(it.Value), "."); got != want {
			t.Errorf("read %q, want %q", got, want)
		}
	}
	var wait sync.WaitGroup
	for range 6 {
		wait.Go(func() {
			var applied []*attune.Change
			settled := func() {
				for i, err := range settleAll(ctx, r, applied) {
					if err != nil {
						gone := removal(&entry{hash: applied[i].Key.Hash, version: applied[i].Item.Version})
						gone.Stamp(next())
						_, _ = r.Apply(&gone)
					}
				}
				applied = applied[:0]
			}
			defer settled()
			for going() {
				key := keys[rand.N(len(keys))]
				v := next()
				c := put(key, v, string(key.Text)+" "+strconv.FormatUint(uint64(v), 10)+strings.Repeat(".", rand.N(100)))
				switch rand.N(6) {
				case 0:
					c.Item = attune.Item{Deleted: true, Version: v}
				case 1:
					it := r.Peek(key, false)
					c.Item, c.Prior = it, it.Version
					c.Item.Version = v
					if it.Version == 0 {
						continue
					}
				}
				if ok, _ := r.Apply(c); ok {
					applied = append(applied, c)
				}
				if len(applied) == 4 || rand.N(2) == 0 {
					settled()
				}
			}
		})
		wait.Go(func() {
			buf := make([]byte, 0, 64)
			for going() {
				key := keys[rand.N(len(keys))]
				it, err := r.Get(ctx, key, buf, true)
				switch {
				case err == nil && it.Version != 0:
					check(key, it)
				case err != nil && !errors.Is(err, ErrGone) && !errors.Is(err, ErrBusy) && !errors.Is(err, kvadapter.ErrUnavailable):
					t.Error(err)
				}
				if it, here, err := r.Here(key, new(Got), true); here && err == nil && it.Version != 0 {
					check(key, it)
				}
				if rand.N(4) == 0 {
					items, errs := make([]attune.Item, len(keys)), make([]error, len(keys))
					r.getMulti(ctx, keys, items, errs, false)
					for i := range keys {
						if errs[i] == nil && items[i].Version != 0 {
							check(keys[i], items[i])
						}
					}
				}
			}
		})
	}
	wait.Wait()
	if b, ok := backend.(*remote); ok {
		b.failOnce = 0
	}
	if st := r.Stats(); o.HotCache > 0 && (st.HotHits == 0 || st.HotMisses == 0) {
		t.Errorf("%d reads were hot and %d were not: this tests nothing", st.HotHits, st.HotMisses)
	}
	for _, key := range keys {
		it, err := r.Get(ctx, key, nil, false)
		// An item that was touched before the Put of its bytes failed is not evicted
		// by that failure, which names the version it put.
		if errors.Is(err, ErrGone) && it.Version == it.Stored {
			t.Errorf("%s: version %d is indexed and its bytes are lost", key.Text, it.Version)
		}
		if err == nil && it.Version != 0 {
			check(key, it)
		}
	}
	if n := r.Stats().Staged; n != 0 {
		t.Errorf("%d keys still staged", n)
	}
}

// settleAll settles changes: one by one, or those that are staged together.
func settleAll(ctx context.Context, r *Replica, all []*attune.Change) []error {
	errs := make([]error, len(all))
	if !r.Batches() || rand.N(2) == 0 {
		for i, c := range all {
			errs[i] = r.Settle(ctx, c)
		}
		return errs
	}
	var staged []Unsettled
	var of []int
	for i, c := range all {
		if r.Stages(c) {
			staged, of = append(staged, Unsettled{c.Key.Hash, c.Item.Version}), append(of, i)
		}
	}
	outcomes := make([]error, len(staged))
	r.SettleAll(ctx, staged, outcomes)
	for i, err := range outcomes {
		errs[of[i]] = err
	}
	return errs
}
