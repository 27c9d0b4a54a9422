package repair_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/repair"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/replica"
)

// stager starts one that ends with the test.
func stager(t testing.TB, n node) *repair.Stager {
	t.Helper()
	s := repair.NewStager(n.Replica, zap.NewNop())
	t.Cleanup(s.Close)
	return s
}

// TestAKeyKeepsItsOrderOnTheWayToTheStore: versions may be skipped, as only the
// newest matters, and none comes after a newer one.
func TestAKeyKeepsItsOrderOnTheWayToTheStore(t *testing.T) {
	eachNode(t, testAKeyKeepsItsOrderOnTheWayToTheStore)
}

func testAKeyKeepsItsOrderOnTheWayToTheStore(t *testing.T, n node) {
	s := stager(t, n)
	const keys, versions = 8, 3000
	last := make(map[string]attune.Version)
	for v := range attune.Version(versions) {
		key := fmt.Sprint("k", rand.IntN(keys))
		ch := attune.Change{Key: n.key(key), Prior: attune.AnyVersion, Item: attune.Item{Value: []byte("v"), Size: 1}}
		if last[key] != 0 && rand.IntN(10) == 0 {
			ch.Item = attune.Item{Deleted: true}
		}
		if last[key] = v + 1; ch.Item.Deleted {
			last[key] = 0 // and nothing is to be left of it
		}
		s.Add(n.applied(t, ch, v+1))
	}
	for key, v := range last {
		attunetest.Eventually(t, fmt.Sprintf("the store has version %d of %s, and no other", v, key), func() bool {
			return n.store.has(key) == v
		})
	}
	n.store.mu.Lock()
	defer n.store.mu.Unlock()
	for key, puts := range n.store.puts {
		if !slices.IsSorted(puts) {
			t.Errorf("%s came to the store in the order %v", key, puts)
		}
	}
}

// TestValuesDepartTogether: those that come within 32 milliseconds share a round trip,
// and of a key that is written over and over the store gets what is newest then.
func TestValuesDepartTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newBatchingNode()
		departed := make(map[time.Time]bool)
		puts := make(map[string]int)
		var mu sync.Mutex
		n.store.before = func(_ context.Context, _, key string) error {
			mu.Lock()
			defer mu.Unlock()
			departed[time.Now()] = true
			puts[key]++
			return nil
		}
		s := repair.NewStager(n.Replica, zap.NewNop())
		defer s.Close()
		const writes = 200
		for i := range writes {
			s.Add(n.apply(t, fmt.Sprint("k", i), 1, "x"))
			s.Add(n.apply(t, "hot", attune.Version(i+1), "x"))
			time.Sleep(100 * time.Microsecond)
		}
		time.Sleep(50 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		if len(puts) != writes+1 || len(departed) > 2 {
			t.Errorf("%d keys of %d, written in 20 ms, left for the store at %d moments", len(puts), writes+1, len(departed))
		}
		if puts["hot"] > 2 || n.store.has("hot") != writes {
			t.Errorf("the store got %d values of a key, and has version %d of it", puts["hot"], n.store.has("hot"))
		}
	})
}

// TestAKeyThatTheStoreKeepsWaitingHoldsUpItsLaneOnly: many changes of one key
// wait for each other, and most other keys do not wait for them.
func TestAKeyThatTheStoreKeepsWaitingHoldsUpItsLaneOnly(t *testing.T) {
	n := newNode()
	n.store.before = func(ctx context.Context, _, key string) error {
		if key == "slow" {
			<-ctx.Done()
		}
		return ctx.Err()
	}
	s := stager(t, n)
	for v := range attune.Version(100) {
		s.Add(n.apply(t, "slow", v+1, "x"))
	}
	const others = 64
	for i := range others {
		s.Add(n.apply(t, fmt.Sprint("other", i), 1, "x"))
	}
	attunetest.Eventually(t, "most of the other keys are in the store", func() bool {
		there := 0
		for i := range others {
			there += int(n.store.has(fmt.Sprint("other", i)))
		}
		return there > others/2
	})
	if v := n.store.has("slow"); v != 0 {
		t.Errorf("the store took version %d of a key it does not take", v)
	}
}

// TestWhatIsOverTheBoundIsGivenUpAndNotWaitedFor: while the store takes nothing,
// Add returns, what waits can be read, and sooner or later a change does not wait
// any more: its bytes are to be had from a peer. What waits arrives.
func TestWhatIsOverTheBoundIsGivenUpAndNotWaitedFor(t *testing.T) {
	eachNode(t, testWhatIsOverTheBoundIsGivenUpAndNotWaitedFor)
}

func testWhatIsOverTheBoundIsGivenUpAndNotWaitedFor(t *testing.T, n node) {
	open := make(chan struct{})
	release := sync.OnceFunc(func() { close(open) })
	n.store.before = func(_ context.Context, verb, _ string) error {
		if verb == "put" {
			<-open // longer than a store may take
		}
		return nil
	}
	s := repair.NewStager(n.Replica, zap.NewNop())
	defer returns(t, "Close returned", s.Close)
	defer release()

	const many = 1 << 18
	value := string(make([]byte, 4096))
	first, over := "", ""
	for i := 0; over == "" && i < many; i++ {
		key := fmt.Sprint("k", i)
		if n.key(key).Hash[1]%16 != 0 && !n.Batches() {
			continue // keys of one lane are enough
		}
		if first == "" {
			first = key
		}
		s.Add(n.apply(t, key, 1, value))
		switch got, err := n.get(t, key); {
		case errors.Is(err, replica.ErrGone):
			over = key
		case err != nil || got != value:
			t.Fatalf("what waits for the store reads %d bytes, %v", len(got), err)
		}
	}
	if over == "" {
		t.Fatalf("%d values wait for a store that takes none", many)
	}
	release()
	attunetest.Eventually(t, "what waited is in the store", func() bool { return n.store.has(first) == 1 })
	if n.store.has(over) != 0 {
		t.Errorf("%s was given up, and is in the store", over)
	}
	if _, err := n.get(t, over); !errors.Is(err, replica.ErrGone) {
		t.Errorf("what was given up reads %v, not %v", err, replica.ErrGone)
	}
}

// TestAStoreThatFailsLosesNothingButThatValue: the next change of the key, and
// other keys, go on as if nothing had been. Every call has its time.
func TestAStoreThatFailsLosesNothingButThatValue(t *testing.T) {
	eachNode(t, testAStoreThatFailsLosesNothingButThatValue)
}

func testAStoreThatFailsLosesNothingButThatValue(t *testing.T, n node) {
	var fail, untimed atomic.Bool
	fail.Store(true)
	n.store.before = func(ctx context.Context, verb, _ string) error {
		if _, ok := ctx.Deadline(); !ok && verb == "put" {
			untimed.Store(true)
		}
		if fail.Load() && verb == "put" {
			return errors.New("no")
		}
		return nil
	}
	s := stager(t, n)
	s.Add(n.apply(t, "k", 1, "old"))
	attunetest.Eventually(t, "the value is given up", func() bool {
		_, err := n.get(t, "k")
		return errors.Is(err, replica.ErrGone)
	})
	fail.Store(false)
	s.Add(n.apply(t, "k", 2, "new"))
	attunetest.Eventually(t, "the store has the next one", func() bool { return n.store.has("k") == 2 })
	if got, err := n.get(t, "k"); got != "new" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if untimed.Load() {
		t.Error("a store may take as long as it likes")
	}
}

// TestCloseGivesUpWhatIsOnItsWay: it does not wait for a store that takes nothing.
func TestCloseGivesUpWhatIsOnItsWay(t *testing.T) {
	eachNode(t, testCloseGivesUpWhatIsOnItsWay)
}

func testCloseGivesUpWhatIsOnItsWay(t *testing.T, n node) {
	entered := make(chan struct{}, 1)
	n.store.before = func(ctx context.Context, verb, _ string) error {
		if verb != "put" {
			return nil
		}
		select {
		case entered <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	s := repair.NewStager(n.Replica, zap.NewNop())
	const keys = 100
	for i := range keys {
		s.Add(n.apply(t, fmt.Sprint("k", i), 1, "x"))
	}
	<-entered
	returns(t, "Close returned", s.Close)
	for i := range keys {
		if _, err := n.get(t, fmt.Sprint("k", i)); !errors.Is(err, replica.ErrGone) {
			t.Fatalf("k%d is neither in the store nor given up: %v", i, err)
		}
	}
}

// TestWritersWaitForAStoreThatIsBehind: for a while if it is slow, until it is not any
// more if there is hardly any room left, and no longer than they have time.
func TestWritersWaitForAStoreThatIsBehind(t *testing.T) {
	eachNode(t, testWritersWaitForAStoreThatIsBehind)
}

func testWritersWaitForAStoreThatIsBehind(t *testing.T, n node) {
	open := make(chan struct{})
	n.store.before = func(_ context.Context, verb, _ string) error {
		if verb == "put" {
			<-open
		}
		return nil
	}
	s := repair.NewStager(n.Replica, zap.NewNop())
	defer s.Close()
	release := sync.OnceFunc(func() { close(open) })
	defer release()

	well := func() bool { return false }
	if s.Behind() || s.Await(t.Context(), well) != nil {
		t.Fatal("behind from the start")
	}
	value := string(make([]byte, 64<<10))
	add := func(until func() bool) {
		for i := 0; !until(); i++ {
			if i == 4096 {
				t.Fatal("it is never behind")
			}
			s.Add(n.apply(t, fmt.Sprint(rand.Uint64()), 1, value))
		}
	}
	add(s.Behind)
	if s.Full() || !s.Slow() {
		t.Errorf("behind; full: %t, slow: %t", s.Full(), s.Slow())
	}
	if err := s.Await(within(t), well); err != nil {
		t.Errorf("there was some room: %v", err)
	}
	add(s.Full)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Await(short, well); !errors.Is(err, repair.ErrBehind) {
		t.Errorf("there was no room: %v", err)
	}
	release()
	if err := s.Await(within(t), well); err != nil {
		t.Errorf("there was room again: %v", err)
	}
	asked := 0
	if err := s.Await(within(t), func() bool { asked++; return asked < 3 }); err != nil || asked < 2 {
		t.Errorf("others were behind: %v after %d questions", err, asked)
	}
	if err := s.Await(within(t), func() bool { return true }); err != nil {
		t.Errorf("others are behind for ever: %v", err)
	}
}

// TestOthersHearEarly: they are to write less before those who write here are to.
func TestOthersHearEarly(t *testing.T) {
	n := newBatchingNode()
	open := make(chan struct{})
	n.store.before = func(context.Context, string, string) error { <-open; return nil }
	s := repair.NewStager(n.Replica, zap.NewNop())
	defer s.Close()
	defer close(open)
	added := 0
	for ; !s.Slow(); added++ {
		s.Add(n.apply(t, fmt.Sprint("k", added), 1, "x"))
	}
	if added < 10_000 || s.Behind() {
		t.Errorf("slow with %d values; behind: %t", added, s.Behind())
	}
	if st := repair.StatusOf(s, new(repair.Fetcher), new(repair.Filler)); !st.Behind || st.Waiting == 0 {
		t.Errorf("people are told %+v", st)
	}
	for ; !s.Behind(); added++ {
		s.Add(n.apply(t, fmt.Sprint("k", added), 1, "x"))
	}
	if !s.Slow() || s.Full() {
		t.Errorf("with %d values; slow: %t, full: %t", added, s.Slow(), s.Full())
	}
}
