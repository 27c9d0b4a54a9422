package kvadapter

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
)

// BenchmarkPebbleReadsBesideCompaction measures how long reads of random keys take while
// nothing else goes on, and while values are overwritten: in the moments without and
// with a compaction. They take turns, so that what else the machine does meets all. It
// runs for its own time, whatever -benchtime says: once is enough.
func BenchmarkPebbleReadsBesideCompaction(b *testing.B) {
	const (
		keys, size = 500_000, 400
		rate       = 10 << 20 // bytes a second that are overwritten
		turns      = 6
		turn       = 5 * time.Second
	)
	o, err := parsePebble(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	s, err := openPebble(o, zap.NewNop())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	names := make([]attune.Key, keys)
	for i := range names {
		names[i] = testPebbleKey(fmt.Sprintf("key-%07d", i))
	}
	noise := make([]byte, 1<<20) // does not compress
	fill := rand.NewChaCha8([32]byte{})
	_, _ = fill.Read(noise)
	put := func(i int, v uint64) {
		at := rand.IntN(len(noise) - size)
		if err := s.Put(b.Context(), names[i], Record{Stamp{1, attune.Version(v)}, noise[at : at+size]}); err != nil {
			b.Error(err)
		}
	}
	for i := range names {
		put(i, 1)
	}
	if err := s.Sync(b.Context()); err != nil {
		b.Fatal(err)
	}

	var compacting atomic.Bool
	settle := func() {
		for {
			m := s.db.Metrics()
			if m.Compact.NumInProgress == 0 && m.Flush.NumInProgress == 0 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	var took [3][]time.Duration
	buf := make([]byte, 0, 1<<10)
	read := func(until time.Time, which func() int) {
		for began := time.Now(); began.Before(until); {
			kind := which()
			if _, err := s.Get(b.Context(), names[rand.IntN(keys)], buf); err != nil {
				b.Fatal(err)
			}
			now := time.Now()
			took[kind] = append(took[kind], now.Sub(began))
			began = now
		}
	}
	for n := range turns {
		settle()
		read(time.Now().Add(turn), func() int { return 0 })
		stop := make(chan struct{})
		var others sync.WaitGroup
		others.Go(func() {
			const each = 64
			due := time.Now()
			for {
				for range each {
					put(rand.IntN(keys), 2+uint64(n))
				}
				due = due.Add(each * (size + 40) * time.Second / rate)
				select {
				case <-time.After(time.Until(due)):
				case <-stop:
					return
				}
			}
		})
		others.Go(func() {
			for {
				compacting.Store(s.db.Metrics().Compact.NumInProgress > 0)
				select {
				case <-time.After(2 * time.Millisecond):
				case <-stop:
					return
				}
			}
		})
		read(time.Now().Add(2*turn), func() int {
			if compacting.Load() {
				return 2
			}
			return 1
		})
		close(stop)
		others.Wait()
	}
	for kind, name := range []string{"idle", "writes", "compacting"} {
		all := took[kind]
		if len(all) == 0 {
			b.Fatalf("no reads while %s", name)
		}
		slices.Sort(all)
		at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))].Nanoseconds()) / 1e3 }
		b.Logf("%-10s %8d reads: p50 %.1f us, p90 %.1f, p99 %.1f, p99.9 %.1f, longest %.1f", name, len(all), at(0.5), at(0.9), at(0.99), at(0.999), at(1))
		b.ReportMetric(at(0.5), name+"-p50-us")
		b.ReportMetric(at(0.99), name+"-p99-us")
	}
	m := s.db.Metrics()
	b.Logf("%d compactions, %d MiB on disk, %d files per read", m.Compact.Count, m.DiskSpaceUsage()>>20, m.ReadAmp())
}
