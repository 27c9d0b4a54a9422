package ordered

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// member is one controller's engine, on loopback.
type member struct {
	*Engine
	t       testing.TB
	o       Options
	gossip  string
	replica *replica.Replica
	backend kvadapter.Backend
	limit   int64
	ahead   time.Duration // its wall clock
	open    bool
}

// group is several of them.
type group struct {
	t       testing.TB
	members []*member
}

// newGroup opens n members, which have data directories if durable.
func newGroup(t testing.TB, n int, durable bool) *group {
	return newTunedGroup(t, n, durable, func(*member) {})
}

// newTunedGroup does, after tune has changed them.
func newTunedGroup(t testing.TB, n int, durable bool, tune func(m *member)) *group {
	g := &group{t: t}
	var join []string
	for range n {
		join = append(join, attunetest.FreeAddr(t))
	}
	for i := range n {
		m := &member{t: t, gossip: join[i]}
		m.o = Options{Name: "n" + strconv.Itoa(i+1), Expect: n, Log: zap.NewNop()}
		if testing.Verbose() {
			m.o.Log = zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel)).Named(m.o.Name)
		}
		if durable {
			m.o.DataDir, m.o.Sync = t.TempDir(), disk.OS
		}
		m.o.OpenCluster = func(id uint64) (*cluster.Cluster, error) {
			c, err := cluster.Open(cluster.Options{
				Name: m.o.Name, ID: id, Kind: "ordered", Expect: n, Peer: attunetest.FreeAddr(t),
				Gossip: m.gossip, Join: join, Log: m.o.Log,
			})
			if err == nil && m.ahead != 0 {
				_, err = c.Inject(cluster.Fault{Kind: cluster.FaultClock, Offset: m.ahead}, cluster.MaxFault)
			}
			return c, err
		}
		m.o.OpenReplica = func(o replica.Options) (*replica.Replica, error) {
			var err error
			if m.backend, err = kvadapter.Open("embedded"); err != nil {
				return nil, err
			}
			o.Backend, o.MemoryLimit = m.backend, m.limit
			m.replica = replica.Open(o)
			return m.replica, nil
		}
		tune(m)
		g.members = append(g.members, m)
	}
	g.start(g.members...)
	t.Cleanup(func() {
		var wait sync.WaitGroup
		for _, m := range g.members {
			if m.open {
				wait.Go(m.close)
			}
		}
		wait.Wait()
	})
	return g
}

// start opens members, and returns when they are ready.
func (g *group) start(members ...*member) {
	g.t.Helper()
	var wait sync.WaitGroup
	for _, m := range members {
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			e, err := Open(ctx, m.o)
			if err != nil {
				g.t.Error(m.o.Name, err)
				return
			}
			m.Engine, m.open = e, true
			select {
			case <-e.Ready():
			case <-ctx.Done():
				g.t.Errorf("%s is not ready: %v; %+v", m.o.Name, e.Health(), e.Status())
			}
		})
	}
	wait.Wait()
	if g.t.Failed() {
		g.t.FailNow()
	}
}

func (m *member) close() {
	m.open = false
	if err := m.Engine.Close(); err != nil {
		m.t.Error(err)
	}
	if err := m.backend.Close(); err != nil {
		m.t.Error(err)
	}
}

func (m *member) key(text string) attune.Key {
	k := attune.Key{Text: []byte(text)}
	k.Hash = m.replica.Hash(k.Text)
	return k
}

// do has ops executed and waits.
func (m *member) do(ops ...attune.Op) []attune.Result {
	c := &attune.Call{Deadline: time.Now().Add(5 * time.Second), Ops: ops, Res: make([]attune.Result, len(ops))}
	wait(c, m.Write)
	return c.Res
}

// wait makes a call and returns when it is answered.
func wait(c *attune.Call, fn func(*attune.Call) bool) {
	done := make(chan struct{})
	c.Ctx = context.Background()
	c.Done = func() { close(done) }
	if !fn(c) {
		<-done
	}
}

func (m *member) op(verb attune.Verb, key, value string) attune.Op {
	return attune.Op{Verb: verb, Key: m.key(key), Value: []byte(value), Delta: 1}
}

// get reads behind a barrier.
func (m *member) get(key string) (attune.Item, error) {
	c := &attune.Call{Deadline: time.Now().Add(5 * time.Second)}
	if wait(c, m.Barrier); c.Err != nil {
		return attune.Item{}, c.Err
	}
	it, err := m.replica.Get(context.Background(), m.key(key), nil, true)
	if errors.Is(err, replica.ErrGone) {
		c.Res = make([]attune.Result, 1)
		wait(c, func(c *attune.Call) bool { return m.Recover(c, m.key(key), it) })
		it, err = c.Res[0].Item, c.Err
	}
	if err == nil && !it.Live(m.Now()) {
		it = attune.Item{}
	}
	return it, err
}

func (m *member) want(key, value string) {
	m.t.Helper()
	if it, err := m.get(key); err != nil || string(it.Value) != value {
		m.t.Errorf("%s: %s = %q %v, want %q", m.o.Name, key, it.Value, err, value)
	}
}

// equal waits until all replicas are the same.
func (g *group) equal() {
	g.t.Helper()
	eventually(g.t, func() error {
		first := g.members[0]
		for _, m := range g.members[1:] {
			if a, b := first.replica.Digest(), m.replica.Digest(); a != b {
				return fmt.Errorf("%s and %s differ: %x, %x; %+v %+v", first.o.Name, m.o.Name, a, b, first.Status(), m.Status())
			}
		}
		return nil
	})
}

// eventually waits until cond has no objection.
func eventually(t testing.TB, cond func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(attunetest.Patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func TestThreeAnswerAsOne(t *testing.T) {
	g := newGroup(t, 3, false)
	for i, m := range g.members {
		if res := m.do(m.op(attune.Set, "k", strconv.Itoa(i))); res[0].Status != attune.Stored {
			t.Fatal(res[0])
		}
		for _, o := range g.members {
			o.want("k", strconv.Itoa(i))
		}
	}
	m := g.members[1]
	res := m.do(m.op(attune.Set, "n", "10"), m.op(attune.Incr, "n", ""), m.op(attune.Append, "n", "0"), m.op(attune.Incr, "n", ""),
		m.op(attune.Add, "n", "x"), m.op(attune.Touch, "absent", ""), m.op(attune.Delete, "k", ""))
	for i, want := range []attune.Status{attune.Stored, attune.Counted, attune.Stored, attune.Counted, attune.NotStored, attune.NotFound, attune.Deleted} {
		if res[i].Status != want {
			t.Errorf("op %d: %+v, want status %d", i, res[i], want)
		}
	}
	if res[3].Number != 111 {
		t.Errorf("incr gave %d", res[3].Number)
	}
	g.members[2].want("n", "111")
	g.members[0].want("k", "")
	big := strings.Repeat("v", 3<<20)
	m.do(m.op(attune.Set, "big", big))
	for _, o := range g.members {
		o.want("big", big)
	}
	g.equal()
}

// Every increment counts once, and each has a result of its own.
func TestIncrFromEverywhere(t *testing.T) {
	g := newGroup(t, 3, false)
	g.members[0].do(g.members[0].op(attune.Set, "n", "0"))
	const workers, each = 30, 40
	var seen sync.Map
	var wg sync.WaitGroup
	for w := range workers {
		m := g.members[w%3]
		wg.Go(func() {
			for range each {
				res := m.do(m.op(attune.Incr, "n", ""))[0]
				if res.Status != attune.Counted {
					t.Error(res)
				} else if _, again := seen.LoadOrStore(res.Number, true); again {
					t.Errorf("%d was given twice", res.Number)
				}
			}
		})
	}
	wg.Wait()
	g.members[1].want("n", strconv.Itoa(workers*each))
	var proposals uint64
	for _, m := range g.members {
		proposals += m.Status().Proposals
	}
	t.Logf("%d increments took %d log entries", workers*each, proposals)
}

// A flush is ordered among writes; a delayed one comes when it is due, also for
// what was written after it was asked for.
func TestFlush(t *testing.T) {
	g := newGroup(t, 3, false)
	a, b := g.members[0], g.members[1]
	flush := attune.Op{Verb: attune.Flush}
	a.do(a.op(attune.Set, "k", "1"), flush, a.op(attune.Set, "l", "2"), a.op(attune.Add, "k", "3"))
	b.want("k", "3")
	b.want("l", "2")
	flush.Exptime = 1
	a.do(flush, a.op(attune.Set, "m", "4"))
	b.want("m", "4")
	eventually(t, func() error {
		if it, err := b.get("m"); err != nil || it.Version != 0 {
			return fmt.Errorf("m is still there: %+v %v", it, err)
		}
		return nil
	})
	g.equal()
}

// Items expire everywhere, though nobody writes, and count as expired, wherever the time
// of the log began.
func TestExpiry(t *testing.T) {
	g := newTunedGroup(t, 3, false, func(m *member) { m.ahead = time.Hour })
	a := g.members[0]
	op := a.op(attune.Set, "k", "v")
	op.Exptime = 1
	a.do(op)
	began := time.Now()
	for _, m := range g.members {
		m.want("k", "v")
	}
	for _, m := range g.members {
		eventually(t, func() error {
			if it, err := m.get("k"); err != nil || it.Version != 0 {
				return fmt.Errorf("k is still there: %v", err)
			}
			return nil
		})
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 2500*time.Millisecond {
		t.Errorf("one second took %v", took)
	}
	for _, m := range g.members {
		eventually(t, func() error {
			if st := m.replica.Stats(); st.Expired != 1 || st.Evicted != 0 {
				return fmt.Errorf("%s: %d expired, and %d were evicted", m.o.Name, st.Expired, st.Evicted)
			}
			return nil
		})
	}
}

// Under pressure all evict the same.
func TestMemoryLimit(t *testing.T) {
	const limit = 8 << 20
	g := newTunedGroup(t, 3, false, func(m *member) { m.limit = limit })
	value := strings.Repeat("v", 2000)
	var wg sync.WaitGroup
	for w := range 6 {
		m := g.members[w%3]
		wg.Go(func() {
			for i := range 100 {
				var ops []attune.Op
				for j := range 20 {
					ops = append(ops, m.op(attune.Set, fmt.Sprint("k", w, " ", i, " ", j), value))
				}
				for _, r := range m.do(ops...) {
					if r.Status != attune.Stored {
						t.Error(r)
					}
				}
				if used := m.replica.Stats().UsedBytes; used > limit+limit/8 {
					t.Errorf("%d bytes used of %d", used, limit)
				}
			}
		})
	}
	wg.Wait()
	g.equal()
	st := g.members[1].replica.Stats()
	t.Logf("%d items, %d evicted, %d bytes used", st.Items, st.Evicted, st.UsedBytes)
	if st.Evicted == 0 || st.Items < 1000 {
		t.Error("evicted too few, or too many")
	}
	if g.members[0].replica.Len() != g.members[1].replica.Len() {
		t.Error("they differ")
	}
}

// BenchmarkThree is three members in one process, and clients on all of them.
func BenchmarkThree(b *testing.B) {
	g := newGroup(b, 3, false)
	const clients = 256
	value := strings.Repeat("v", 100)
	run := func(name string, op func(m *member, i int) func()) {
		b.Run(name, func(b *testing.B) {
			var wg sync.WaitGroup
			var next atomic.Int64
			b.ReportAllocs()
			for i := range clients {
				m := g.members[i%3]
				step := op(m, i)
				wg.Go(func() {
					for next.Add(1) <= int64(b.N) {
						step()
					}
				})
			}
			wg.Wait()
		})
	}
	call := func(m *member, ops []attune.Op, fn func(*attune.Call) bool) func() {
		done := make(chan struct{}, 1)
		c := &attune.Call{Ctx: context.Background(), Ops: ops, Res: make([]attune.Result, len(ops)), Done: func() { done <- struct{}{} }}
		return func() {
			c.Deadline = time.Now().Add(time.Second)
			if !fn(c) {
				<-done
			}
			if c.Err != nil || len(ops) > 0 && c.Res[0].Status == attune.Failed {
				b.Error(c.Err, c.Res)
			}
		}
	}
	run("set", func(m *member, i int) func() {
		return call(m, []attune.Op{m.op(attune.Set, fmt.Sprint("k", i), value)}, m.Write)
	})
	run("set16", func(m *member, i int) func() {
		var ops []attune.Op
		for j := range 16 {
			ops = append(ops, m.op(attune.Set, fmt.Sprint("k", i, " ", j), value))
		}
		return call(m, ops, m.Write)
	})
	g.members[0].do(g.members[0].op(attune.Set, "n", "0"))
	run("incr", func(m *member, i int) func() { return call(m, []attune.Op{m.op(attune.Incr, "n", "")}, m.Write) })
	run("barrier", func(m *member, i int) func() { return call(m, nil, m.Barrier) })
}

// Health0 wants it to be bad.
func (m *member) Health0() error {
	if m.Health() == nil {
		return errors.New("still healthy")
	}
	return nil
}

// kill ends a member without a word to the others.
func (m *member) kill() {
	m.open = false
	m.Engine.closing.Do(m.Engine.end)
	if err := m.Engine.ended(); err != nil {
		m.t.Error(err)
	}
	if err := m.backend.Close(); err != nil {
		m.t.Error(err)
	}
}
