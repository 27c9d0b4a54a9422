package kvadapter

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestMemcachedConvoy has many callers come, with one call or two, and give up at random.
// Each call that was not given up is sent once and has its own outcome; no more batches
// are under way than lanes; and at the end nobody is left.
func TestMemcachedConvoy(t *testing.T) {
	for _, lanes := range []int{1, 3} {
		const most = 5
		var sending, sent, gaveUp, batches atomic.Int64
		outcomes := make([]error, 64)
		for i := range outcomes {
			outcomes[i] = errors.New("an outcome")
		}
		c := memcachedConvoy[int]{
			lanes: lanes,
			room:  func(_ *memcachedSeat[int], queue []*memcachedSeat[int]) int { return min(len(queue), most-1) },
			send: func(batch []*memcachedSeat[int]) {
				if n := sending.Add(1); n > int64(lanes) || len(batch) > most || len(batch) == 0 {
					t.Errorf("%d batches are under way, this one of %d", n, len(batch))
				}
				batches.Add(1)
				time.Sleep(time.Duration(rand.IntN(100)) * time.Microsecond)
				for _, w := range batch {
					w.err = outcomes[w.load]
					sent.Add(1)
				}
				sending.Add(-1)
			},
		}
		var wg sync.WaitGroup
		for g := range outcomes {
			wg.Go(func() {
				w, also := &memcachedSeat[int]{load: g, turn: make(chan bool, 1)}, &memcachedSeat[int]{load: g, turn: make(chan bool, 1)}
				for i := range 100 {
					ctx, cancel := context.WithCancel(t.Context())
					if (g+i)%3 == 0 {
						go func() {
							time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
							cancel()
						}()
					}
					w.err, also.err = nil, nil
					ws := []*memcachedSeat[int]{w, also}[:1+g%2]
					c.do(ctx, ws...)
					for _, w := range ws {
						switch {
						case errors.Is(w.err, context.Canceled):
							gaveUp.Add(1)
						case w.err != outcomes[g]:
							t.Errorf("%v is another's outcome", w.err)
						}
					}
					cancel()
				}
			})
		}
		wg.Wait()
		if n := sent.Load() + gaveUp.Load(); n != int64(150*len(outcomes)) || len(c.queue) != 0 || c.sending != 0 {
			t.Errorf("%d sent and %d given up of %d; %d are queued, %d lanes in use", sent.Load(), gaveUp.Load(), 150*len(outcomes), len(c.queue), c.sending)
		}
		if batches.Load() == sent.Load() || gaveUp.Load() == 0 {
			t.Errorf("%d batches of %d calls, %d given up: nothing is tested", batches.Load(), sent.Load(), gaveUp.Load())
		}
		idle := 0
		c.retire(func() { idle++ })
		if c.do(t.Context(), &memcachedSeat[int]{turn: make(chan bool, 1)}); idle != 2 {
			t.Errorf("told %d times that nobody sends, want 2", idle)
		}
	}
}
