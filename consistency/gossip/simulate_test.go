package gossip

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"
)

func TestSimulateMeasures(t *testing.T) {
	o := SimOptions{Nodes: 10, Writes: 200, Rate: 200, Value: 100, Delay: 20 * time.Millisecond, Seed: 1}
	r, err := Simulate(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	// In a full mesh without losses a write is sent to each once, and takes one frame
	// of at least half the mean delay.
	if r.Complete != o.Writes || r.Lost != 0 || !r.Agreed || r.Copies != 1 || r.Resent != 0 || r.Reconciles != 0 {
		t.Errorf("a calm cluster: %+v", r)
	}
	if r.ToEach.P50 < o.Delay/2 || r.ToEach.P50 > 3*o.Delay || r.ToAll.P50 < r.ToEach.P50 || r.ToAll.Max != r.ToEach.Max {
		t.Errorf("to each %v, to all %v, of a mean delay of %v", r.ToEach, r.ToAll, o.Delay)
	}
	if last := r.Reach[len(r.Reach)-1]; last.Share != 1 || last.After != r.ToEach.Max {
		t.Errorf("the curve ends at %+v", last)
	}
	// 9 peers are sent 20 writes per second of this one, of 100 bytes and a little.
	if b := r.Busy[0].Bytes; b < 9*20*100 || b > 9*20*200 {
		t.Errorf("%.0f bytes of updates per second", b)
	}
	again, err := Simulate(t.Context(), o)
	if err != nil || !reflect.DeepEqual(r, again) {
		t.Errorf("one seed, two runs (%v):\n%+v\n%+v", err, r, again)
	}
}

func TestSimulateTrouble(t *testing.T) {
	for _, causal := range []bool{false, true} {
		r, err := Simulate(t.Context(), SimOptions{
			Nodes: 12, Causal: causal, Writes: 600, Rate: 100, Value: 10, Delay: 10 * time.Millisecond,
			Loss: 0.02, Duplicate: 0.02, Reorder: 0.1, Churn: 0.5, Partition: 2 * time.Second, Skew: time.Second, Seed: 3,
		})
		if err != nil {
			t.Fatal(err)
		}
		if !r.Agreed || r.Complete+r.Lost != r.Writes || r.Lost > 5 || r.ToAll.Max < time.Second || r.Resent == 0 {
			t.Errorf("causal %v: %+v", causal, r)
		}
	}
}

func TestSimulateEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("over")
	o := SimOptions{Nodes: 3, Writes: 1000, Rate: 1, Progress: func(at time.Duration) {
		if at > 10*time.Second {
			cancel(over)
		}
	}}
	if _, err := Simulate(ctx, o); !errors.Is(err, over) {
		t.Errorf("error %v, want the cause of the context", err)
	}
}

func TestSimTimes(t *testing.T) {
	var s simTimes
	for i := range 1000 {
		s.add(time.Duration(i+1) * time.Millisecond)
	}
	q := s.quantiles()
	for _, c := range []struct{ got, want time.Duration }{
		{q.P50, 500 * time.Millisecond}, {q.P90, 900 * time.Millisecond}, {q.P99, 990 * time.Millisecond}, {q.Max, time.Second},
	} {
		if c.got < c.want || c.got > c.want+c.want/30 {
			t.Errorf("quantile %v, want %v and a little", c.got, c.want)
		}
	}
}
