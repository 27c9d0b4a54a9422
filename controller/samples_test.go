package controller

import (
	"encoding/json"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// Quantiles of a histogram are as near to the true ones as its buckets allow: within
// the bucket in which the true one is.
func TestQuantiles(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		var l latencies
		all := make([]uint64, 1+r.IntN(300))
		for i := range all {
			all[i] = uint64(1) << r.IntN(23)
			all[i] += r.Uint64N(all[i])
			l[bits.Len64(all[i])]++
		}
		slices.Sort(all)
		for _, q := range []float64{.01, .5, .9, .99, 1} {
			rank := max(int(q*float64(len(all))+.999999), 1)
			exact := float64(all[rank-1])
			if got := 1000 * float64(l.quantile(q)); got < exact/2.01 || got > exact*2.01 {
				t.Fatalf("seed %d: the %v quantile of %d is %v us, the histogram says %v", seed, q, len(all), exact, got)
			}
		}
	}
	if got := (latencies{}).quantile(.5); got != none {
		t.Errorf("nothing was counted, and half of it took %v", got)
	}
	var l latencies
	l[latencyBuckets-1] = 1 // it took longer than can be told
	if got := l.quantile(.99); got != figure(1<<(latencyBuckets-2))/1000 {
		t.Errorf("beyond the last bucket: %v ms", got)
	}
}

func TestFiguresAreOfTheTimeBetween(t *testing.T) {
	began := time.Now()
	before, now := counted{at: began}, counted{at: began.Add(2 * time.Second)}
	before.totals.n[getHits], now.totals.n[getHits] = 1000, 1003
	before.totals.n[getMisses], now.totals.n[getMisses] = 10, 11
	now.totals.n[backendErrors] = 8
	before.reads[3], now.reads[3] = 100, 140
	now.writes[10] = 6
	f := figuresOf(&before, &now)
	for k, want := range map[int]figure{
		figureReads: 20, figureWrites: 3, figureFailed: 4, figureHits: .75, figureBehind: none, figureAhead: none, figureDiffering: none,
	} {
		if f[k] != want {
			t.Errorf("%s: %v, want %v", figureNames[k], f[k], want)
		}
	}
	if f[figureReadP50] < .004 || f[figureReadP999] > .008 || f[figureWriteP50] < .512 || f[figureWriteP999] > 1.024 {
		t.Errorf("latencies: %v", f)
	}
	f = figuresOf(&now, &counted{at: now.at, totals: now.totals, reads: now.reads, writes: now.writes})
	for _, k := range []int{figureHits, figureReadP50, figureWriteP99} {
		if f[k] != none {
			t.Errorf("%s is %v while nothing was asked", figureNames[k], f[k])
		}
	}
	if f[figureReads] != 0 {
		t.Errorf("%v reads per second while nothing was asked", f[figureReads])
	}
	// A server of the backend that was replaced counts from zero.
	if since, n := (latencies{1: 2}).since(latencies{1: 9}); n != 2 || since[1] != 2 {
		t.Errorf("%v", since)
	}
}

func TestSamplesAreBounded(t *testing.T) {
	var s samples
	for i := range 2*maxSamples + 7 {
		var f [numFigures]figure
		f[figureReads], f[figureHits] = figure(i), none
		s.add(time.UnixMilli(int64(i)), f, nil)
	}
	at, figures := s.columns()
	if len(at) != maxSamples || at[0] != int64(maxSamples+7) || at[maxSamples-1] != int64(2*maxSamples+6) || !slices.IsSorted(at) {
		t.Errorf("%d samples, from %d to %d", len(at), at[0], at[len(at)-1])
	}
	reads := figures["reads"]
	if len(figures) != int(numFigures) || reads[0] != figure(maxSamples+7) || reads[maxSamples-1] != figure(2*maxSamples+6) {
		t.Errorf("%v", figures)
	}
	if raw, err := json.Marshal([]figure{none, 0, 12345.678, .00012345}); err != nil || string(raw) != "[null,0,1.235e+04,0.0001234]" && string(raw) != "[null,0,1.235e+04,0.0001235]" {
		t.Errorf("%s, %v", raw, err)
	}
}

// A sample is taken of a cluster at either kind of level, and of one that is alone.
func TestSampleOfEachLevel(t *testing.T) {
	for _, cfg := range []Config{clusterConfig(t, consistency.Linearizable), clusterConfig(t, consistency.Eventual), testConfig()} {
		t.Run(cfg.Level.String(), func(t *testing.T) {
			n := start(t, cfg) // without an admin address nobody else takes samples
			c := dial(t, n)
			n.samples.before = n.count(time.Now())
			c.set("k", []byte("v"))
			c.get("k")
			c.get("none")
			attunetest.Eventually(t, "they are counted", func() bool {
				count := n.count(time.Now())
				_, reads := count.reads.since(latencies{})
				_, writes := count.writes.since(latencies{})
				return reads == 2 && writes == 1
			})
			n.takeSample(n.samples.before.at.Add(time.Second))
			_, f := n.samples.columns()
			if f["reads"][0] != 2 || f["writes"][0] != 1 || f["hits"][0] != .5 || f["failed"][0] != 0 || f["read_p50"][0] <= 0 {
				t.Errorf("%v", f)
			}
			if want := n.cluster.Load() != nil; (f["behind"][0] == 0) != want || (f["ahead"][0] >= 0) != want {
				t.Errorf("in a cluster %v: behind %v, ahead %v", want, f["behind"], f["ahead"])
			}
		})
	}
}
