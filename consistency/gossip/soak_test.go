package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// soakTime is how long each soak lasts: ATTUNE_SOAK, a duration, or so.
func soakTime(t *testing.T) time.Duration {
	if s := os.Getenv("ATTUNE_SOAK"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("ATTUNE_SOAK: %v", err)
		}
		return d
	}
	return 1500 * time.Millisecond
}

const (
	soakClients = 8
	soakKeys    = 4
	soakOps     = 80 // of a client in a round; what is longer takes long to check
)

// soak has clients do everything at once to a few keys, in rounds with keys of
// their own, and checks that each key was a register.
type soak struct {
	*node
	lossy bool
	// hurry has a context end now and then before its op does.
	hurry bool
	// distort, if set, changes what reads show: a bug to be found.
	distort func(key string, it *attune.Item)

	began  time.Time
	round  atomic.Int64
	values atomic.Int64 // handed out; each leaves room for increments
	ops    [attune.Flush + 1]struct{ done, failed, missed atomic.Int64 }
}

// text is a key of this round.
func (s *soak) text(i int) string { return fmt.Sprint("round", s.round.Load(), "-", i) }

// run soaks until end, or until a round went wrong, which it reports.
func (s *soak) run(end time.Time) (ok bool) {
	s.began = time.Now()
	for ; time.Now().Before(end); s.round.Add(1) {
		keys := make([]string, soakKeys)
		for i := range keys {
			keys[i] = s.text(i)
		}
		clients := make([]*soaker, soakClients)
		var wait sync.WaitGroup
		for id := range clients {
			clients[id] = &soaker{soak: s, id: id, keys: keys, seen: map[string]attune.Item{}, did: map[string]history{}}
			wait.Go(func() { clients[id].run(end) })
		}
		wait.Wait()
		for _, key := range keys {
			var h history
			for _, c := range clients {
				h = append(h, c.did[key]...)
			}
			if !check(s.t, key, h, s.lossy) {
				return false
			}
		}
	}
	return true
}

// tell logs what the soak consisted of, and fails if it missed something.
func (s *soak) tell() {
	var b strings.Builder
	for verb := range s.ops {
		c := &s.ops[verb]
		fmt.Fprintf(&b, " %d/%d/%d", c.done.Load(), c.failed.Load(), c.missed.Load())
		if c.done.Load() == 0 && attune.Verb(verb) != attune.Append && attune.Verb(verb) != attune.Prepend && attune.Verb(verb) != attune.Decr {
			s.t.Errorf("verb %d was never tried", verb)
		}
	}
	s.t.Logf("done/failed/missed by verb:%s; %+v", b.String(), s.replica.Stats())
}

// soaker is one client.
type soaker struct {
	*soak
	id   int
	keys []string
	seen map[string]attune.Item // read last
	did  map[string]history
}

func (c *soaker) run(end time.Time) {
	for range soakOps {
		if time.Now().After(end) {
			return
		}
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		if c.hurry && rand.N(4) == 0 {
			ctx, cancel = context.WithTimeout(ctx, rand.N(20*time.Millisecond))
		}
		key := c.keys[rand.N(len(c.keys))]
		op := c.op(attune.Set, key, "")
		switch n := rand.N(100); {
		case n < 1:
			c.write(ctx, c.keys, attune.Op{Verb: attune.Flush}, asked{verb: attune.Flush})
		case n < 25:
			c.write(ctx, []string{key}, op, c.fresh(&op))
		case n < 32:
			op.Verb = attune.Add
			c.write(ctx, []string{key}, op, c.fresh(&op))
		case n < 36:
			op.Verb = attune.Replace
			c.write(ctx, []string{key}, op, c.fresh(&op))
		case n < 44:
			if seen := c.seen[key]; seen.Version != 0 {
				in := c.fresh(&op)
				op.Mode, op.Compare = attune.IfCAS, seen.CAS
				in.compare, _ = number(seen.Value)
				c.write(ctx, []string{key}, op, in)
			}
		case n < 56:
			op.Verb, op.Delta = attune.Incr, 1
			c.write(ctx, []string{key}, op, asked{verb: op.Verb})
		case n < 61:
			op.Verb = attune.Delete
			c.write(ctx, []string{key}, op, asked{verb: op.Verb})
		case n < 66:
			op.Verb, op.Exptime = attune.Touch, 100
			c.write(ctx, []string{key}, op, asked{verb: op.Verb})
		case n < 72: // a read that the engine answers
			op.Verb, op.Mode, op.Exptime = attune.Get, attune.WantValue|attune.Retime, 200
			c.write(ctx, []string{key}, op, asked{})
		case n < 90:
			start := time.Since(c.began)
			it, err := c.replica.Get(ctx, c.key(key), nil, true)
			c.read(ctx, start, key, it, err)
		default:
			// As a session does: fetched together, and read in order.
			var keys []attune.Key
			var ask []*replica.Got
			got := make([]replica.Got, len(c.keys))
			start := time.Since(c.began)
			for i, text := range c.keys {
				if !c.replica.Immediate() && c.replica.Lacks(c.key(text), &got[i]) {
					keys, ask = append(keys, c.key(text)), append(ask, &got[i])
				}
			}
			c.replica.Bring(ctx, keys, ask)
			for i, text := range c.keys {
				var it attune.Item
				var err error
				ok := false
				if !c.replica.Immediate() {
					it, ok, err = c.replica.Here(c.key(text), &got[i], true)
				}
				if !ok { // written meanwhile, or in memory
					it, err = c.replica.Get(ctx, c.key(text), nil, true)
				}
				c.read(ctx, start, text, it, err)
			}
		}
		cancel()
	}
}

// fresh gives op a value that no other has: a number, and blanks to make it any
// length an item may have.
func (c *soaker) fresh(op *attune.Op) asked {
	n := c.values.Add(1) * 1e6
	size := []int{0, 0, 0, 0, 100, 3000, kvadapter.Large + 5000}[rand.N(7)]
	op.Value = fmt.Appendf(nil, "%-*d", size, n)
	return asked{verb: op.Verb, value: n}
}

func number(value []byte) (int64, error) {
	return strconv.ParseInt(string(bytes.TrimRight(value, " ")), 10, 64)
}

// write has the engine do op, which asks in of each of keys.
func (c *soaker) write(ctx context.Context, keys []string, op attune.Op, in asked) {
	res := make([]attune.Result, 1)
	start := time.Since(c.began)
	c.Write(ctx, []attune.Op{op}, res)
	out := answered{status: res[0].Status, value: int64(res[0].Number)}
	if op.Verb == attune.Get {
		out = c.show(keys[0], &res[0])
	}
	for _, key := range keys {
		c.note(start, key, in, out)
	}
}

// read ends a read of the replica as a session does.
func (c *soaker) read(ctx context.Context, start time.Duration, key string, it attune.Item, err error) {
	if errors.Is(err, replica.ErrGone) {
		it, err = c.Recover(ctx, c.key(key), it)
	}
	res := attune.Result{Status: attune.Failed, Err: err}
	if err == nil {
		op := c.op(attune.Get, key, "")
		op.Mode = attune.WantValue
		_, res = op.Decide(&it, c.Now(), nil)
	}
	c.note(start, key, asked{}, c.show(key, &res))
}

// show is what the client sees in the result of a read.
func (c *soaker) show(key string, res *attune.Result) answered {
	out := answered{status: res.Status}
	if res.Status != attune.Hit {
		return out
	}
	if c.distort != nil {
		c.distort(key, &res.Item)
	}
	var err error
	if out.value, err = number(res.Item.Value); err != nil || len(res.Item.Value) != res.Item.Size {
		c.t.Errorf("%s = %.40q, size %d", key, res.Item.Value, res.Item.Size)
	}
	c.seen[key] = res.Item
	return out
}

func (c *soaker) note(start time.Duration, key string, in asked, out answered) {
	count := &c.ops[in.verb]
	count.done.Add(1)
	switch out.status {
	case attune.Failed:
		count.failed.Add(1)
	case attune.Miss, attune.NotFound:
		count.missed.Add(1)
	}
	c.did[key] = append(c.did[key], porcupine.Operation{
		ClientId: c.id, Input: in, Output: out, Call: int64(start), Return: int64(time.Since(c.began)),
	})
}

func TestSoakEmbedded(t *testing.T) {
	s := &soak{node: open(t, embedded(t), 0)}
	if !s.run(time.Now().Add(soakTime(t))) {
		t.Fail()
	}
	s.tell()
}

// Under a memory limit items get lost, and nothing else happens.
func TestSoakEmbeddedFull(t *testing.T) {
	n := open(t, embedded(t), 6<<20)
	s := &soak{node: n, lossy: true}
	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() { // evicts them
		value := strings.Repeat("v", 20_000)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				n.set(fmt.Sprint("filler", i%1000), value)
			}
		}
	})
	if !s.run(time.Now().Add(soakTime(t))) {
		t.Fail()
	}
	close(stop)
	wait.Wait()
	s.tell()
	if n.replica.Stats().Evicted == 0 {
		t.Error("nothing was evicted")
	}
}

// A backend elsewhere that takes its time loses nothing.
func TestSoakSlowBackend(t *testing.T) {
	f := newRemote()
	f.delay = 100 * time.Microsecond
	s := &soak{node: open(t, f, 0)}
	if !s.run(time.Now().Add(soakTime(t))) {
		t.Fail()
	}
	s.tell()
	if st := s.replica.Stats(); st.Gone != 0 || st.Staged != 0 {
		t.Errorf("%+v", st)
	}
}

// late is a backend that fails now and then, and does what it was asked later,
// as a server does that was not heard from in time.
type late struct {
	*remote
	wait sync.WaitGroup
}

func (f *late) Put(ctx context.Context, key attune.Key, rec kvadapter.Record) error {
	rec.Value = bytes.Clone(rec.Value)
	return f.maybe(func() error { return f.remote.Put(ctx, key, rec) })
}

func (f *late) Delete(ctx context.Context, key attune.Key) error {
	return f.maybe(func() error { return f.remote.Delete(ctx, key) })
}

func (f *late) maybe(do func() error) error {
	switch rand.N(20) {
	case 0:
		return kvadapter.ErrUnavailable
	case 1:
		f.wait.Go(func() {
			time.Sleep(rand.N(5 * time.Millisecond))
			_ = do()
		})
		return kvadapter.ErrUnavailable
	}
	return do()
}

func (f *late) Close() error {
	f.wait.Wait()
	return nil
}

// What a backend does late costs items, and never brings back an old value.
func TestSoakLateBackend(t *testing.T) {
	f := &late{remote: newRemote()}
	f.delay = 200 * time.Microsecond
	s := &soak{node: open(t, f, 0), lossy: true, hurry: true}
	if !s.run(time.Now().Add(soakTime(t))) {
		t.Fail()
	}
	s.tell()
	if st := s.replica.Stats(); st.Gone == 0 || st.Staged != 0 {
		t.Errorf("%+v", st)
	}
}

// The soak finds an engine that now and then shows the value before the newest.
func TestSoakSeesStaleReads(t *testing.T) {
	quiet := &told{TB: t}
	n := open(t, embedded(t), 0)
	n.t = quiet
	var mu sync.Mutex
	last := map[string]attune.Item{}
	s := &soak{node: n, lossy: true, distort: func(key string, it *attune.Item) {
		mu.Lock()
		defer mu.Unlock()
		old := last[key]
		if last[key] = *it; old.Version != 0 && rand.N(50) == 0 {
			*it = old
		}
	}}
	if s.run(time.Now().Add(20 * time.Second)) {
		t.Error("nobody noticed stale reads")
	}
	if quiet.logged == 0 {
		t.Error("the history is not told")
	}
}

// told keeps to itself what is expected to go wrong.
type told struct {
	testing.TB
	logged int
}

func (q *told) Logf(string, ...any) { q.logged++ }
