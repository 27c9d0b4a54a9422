package ordered

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strconv"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/anishathalye/porcupine"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/ordered/raftlog"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// The whole engine but its goroutines, on a network, clocks and disks made of
// paper. Everything that happens follows from the seed.

const (
	simNodes    = 3
	simClients  = 5
	simKeys     = 3
	simDuration = 20 * time.Second // of its own time
	opTimeout   = time.Second
)

// broken is what a simulation does wrong on purpose.
type broken struct {
	staleReads   bool // reads pass no barrier
	reuseID      bool // a member that lost its memory comes back under its old id
	retryUnknown bool // an op whose outcome is unknown is sent again
}

type sim struct {
	t      testing.TB
	rng    *rand.Rand
	now    time.Duration
	events eventHeap
	seq    int
	broken broken

	nodes   []*simNode // by name
	nextID  uint64
	drop    float64
	dup     float64
	delay   time.Duration
	cut     map[[2]int]bool // from, to
	history []porcupine.Operation
	clients int // identities given out
	stopped bool
}

type event struct {
	at  time.Duration
	seq int
	fn  func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

// after has fn happen d from now.
func (s *sim) after(d time.Duration, fn func()) {
	s.seq++
	heap.Push(&s.events, event{s.now + d, s.seq, fn})
}

// run lets time pass until end.
func (s *sim) run(end time.Duration) {
	for len(s.events) > 0 && s.events[0].at <= end {
		e := heap.Pop(&s.events).(event)
		s.now = e.at
		e.fn()
	}
	s.now = end
}

// simNode is a controller, and what it has on disk.
type simNode struct {
	s       *sim
	slot    int
	id      uint64
	durable bool
	skew    time.Duration // of the wall clock
	core    *core         // nil while down
	rep     *replica.Replica
	life    int // counts restarts
	paused  bool
	in      inbox
	turning bool
	calls   map[*attune.Call]func(err error) // of clients, not answered

	store *raftlog.Log
	disk  *simState
}

// simState is a state file.
type simState struct {
	meta   *pb.SnapshotMetadata
	header []byte
	data   []byte // index and values
}

func newSim(t testing.TB, seed uint64, b broken) *sim {
	s := &sim{t: t, rng: rand.New(rand.NewPCG(seed, 1)), cut: make(map[[2]int]bool), broken: b, nextID: 1}
	for i := range simNodes {
		n := &simNode{s: s, slot: i, durable: s.rng.IntN(2) == 0 && !b.reuseID, skew: time.Duration(s.rng.IntN(7200)-3600) * time.Second}
		s.nodes = append(s.nodes, n)
	}
	s.nodes[0].boot(true)
	for _, n := range s.nodes[1:] {
		n.boot(false)
	}
	return s
}

func (n *simNode) name() string { return "n" + strconv.Itoa(n.slot+1) }

// boot starts a new member without memory.
func (n *simNode) boot(found bool) {
	s := n.s
	if n.id == 0 || !s.broken.reuseID {
		n.id = s.nextID
		s.nextID++
	}
	var err error
	if n.store, err = raftlog.Open(disk.Options{Log: zap.NewNop()}); err != nil {
		s.t.Fatal(err)
	}
	n.disk = nil
	n.open()
	if found {
		conf := &pb.ConfState{Voters: []uint64{n.id}}
		if err := n.store.Install(1, 1, conf); err != nil {
			s.t.Fatal(err)
		}
		n.core.st = state{applied: 1, term: 1, time: n.wall(), members: map[uint64]string{n.id: n.name()}}
		n.core.snaps.hydrated, n.core.snaps.wanted = true, true
	}
	n.start()
	if !found {
		n.join()
	}
}

// open makes a core of what is on disk.
func (n *simNode) open() {
	backend, err := kvadapter.Open("embedded")
	if err != nil {
		n.s.t.Fatal(err)
	}
	n.rep = replica.Open(replica.Options{Backend: backend, Gen: 1, Seed: 1})
	n.core = &core{
		id: n.id, name: n.name(), expect: simNodes, log: zap.NewNop(), replica: n.rep, store: n.store, world: n,
		ctx: context.Background(), durable: n.durable, logBudget: 4 << 10,
	}
	if os.Getenv("ATTUNE_SIM_LOG") != "" {
		n.core.log, _ = zap.NewDevelopment()
		n.core.log = n.core.log.With(zap.String("node", n.name()), zap.Uint64("id", n.id))
	}
}

func (n *simNode) start() {
	n.life++
	n.in, n.turning, n.calls = inbox{}, false, make(map[*attune.Call]func(error))
	n.core.now = n.s.now
	n.core.nextTick = n.s.now + time.Duration(n.s.rng.IntN(int(tickEvery)))
	if err := n.core.start(); err != nil {
		n.s.t.Fatal(err)
	}
	n.wake(0)
}

// wake has the node take a turn in d, unless one is due already.
func (n *simNode) wake(d time.Duration) {
	if n.turning {
		return
	}
	n.turning = true
	life := n.life
	n.s.after(d, func() {
		if n.life != life {
			return
		}
		n.turning = false
		n.turn()
	})
}

func (n *simNode) turn() {
	if n.core == nil || n.paused {
		return
	}
	in := n.in
	n.in = inbox{}
	n.core.turn(n.s.now, &in)
	if n.core.memb.removed && !n.core.memb.leaving {
		// Another incarnation of it took its place, or so it must be.
		n.crash(true)
		n.boot(false)
		return
	}
	life := n.life
	n.s.after(n.core.wait(), func() {
		if n.life == life {
			n.wake(0)
		}
	})
}

// post hands something to the node, some microseconds later.
func (n *simNode) post(fn func()) {
	n.in.tasks = append(n.in.tasks, fn)
	n.wake(time.Duration(n.s.rng.IntN(200)) * time.Microsecond)
}

// join asks whoever leads, again and again, until the node is a member.
func (n *simNode) join() {
	life := n.life
	n.s.after(300*time.Millisecond, func() {
		if n.life != life || n.core.member(n.id) {
			return
		}
		for _, o := range n.s.nodes {
			if o != n && o.core != nil && !o.paused && !n.s.cut[[2]int{n.slot, o.slot}] && o.core.leads() && !o.core.member(n.id) {
				o.core.memb.joins[n.id] = n.name()
			}
		}
		n.join()
	})
}

// crash ends the process. With forget it lost its memory, and its disk.
func (n *simNode) crash(forget bool) {
	n.life++
	n.core, n.paused = nil, false
	calls := n.calls
	n.calls = nil
	for _, c := range sortedCalls(calls) {
		calls[c](errUnknown)
	}
	if forget {
		n.disk = nil
	}
	id := n.id
	for _, o := range n.s.nodes { // whoever was connected sees the end of it
		if o != n && o.core != nil && !n.s.cut[[2]int{o.slot, n.slot}] {
			for _, class := range []cluster.Class{cluster.Control, cluster.Log, cluster.Calls} {
				o.post(func() { o.core.peerDown(id, class) })
			}
		}
	}
}

// sortedCalls are in the order of their deadlines, so that a run can be repeated.
func sortedCalls(calls map[*attune.Call]func(error)) []*attune.Call {
	var all []*attune.Call
	for c := range calls {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *attune.Call) int { return a.Deadline.Compare(b.Deadline) })
	return all
}

// remembers reports whether it could come back: whether its log goes on where its
// state ends.
func (n *simNode) remembers() bool {
	if n.disk == nil {
		return false
	}
	first, _ := n.store.FirstIndex()
	return n.disk.meta.GetIndex()+1 >= first
}

// restart brings it back with what is on disk.
func (n *simNode) restart() {
	n.open()
	c := n.core
	if _, err := c.st.decode(n.disk.header); err != nil {
		n.s.t.Fatal(err)
	}
	c.st.applied, c.st.term = n.disk.meta.GetIndex(), n.disk.meta.GetTerm()
	n.store.SetConfState(n.disk.meta.GetConfState())
	rd := bytes.NewReader(n.disk.data)
	cut, err := n.rep.Prepare(rd)
	if err == nil {
		n.rep.Swap(cut)
		_, err = n.rep.Import(c.ctx, rd)
	}
	if err != nil {
		n.s.t.Fatal(err)
	}
	c.snaps.hydrated = true
	n.start()
}

// What follows is the core's world.

func (n *simNode) find(id uint64) *simNode {
	for _, o := range n.s.nodes {
		if o.id == id {
			return o
		}
	}
	return nil
}

func (n *simNode) send(to uint64, class cluster.Class, kind byte, body []byte) bool {
	s := n.s
	o := n.find(to)
	if o == nil || o == n {
		return false
	}
	if s.cut[[2]int{n.slot, o.slot}] || s.rng.Float64() < s.drop {
		return true // lost
	}
	copies := 1
	if s.rng.Float64() < s.dup {
		copies = 2
	}
	for range copies {
		delay := time.Duration(50+s.rng.IntN(300)) * time.Microsecond
		if s.delay > 0 {
			delay += time.Duration(s.rng.Int64N(int64(s.delay)))
		}
		from := n.id
		s.after(delay, func() {
			if o.core == nil || o.id != to {
				return
			}
			o.in.frames = append(o.in.frames, inFrame{from: from, kind: kind, body: body})
			o.wake(time.Duration(s.rng.IntN(100)) * time.Microsecond)
		})
	}
	return true
}

func (n *simNode) wall() int64 {
	return 1_800_000_000_000 + (n.s.now + n.skew).Milliseconds()
}

func (n *simNode) nonce() uint64 { return n.s.rng.Uint64() }

var errSim = errors.New("lost in the simulation")

// transfer is a stream from another node, in the middle of which anything may
// happen. get runs on the other node's side.
func (n *simNode) transfer(from uint64, get func(o *simNode, w io.Writer) error, then func(data []byte, err error)) {
	s, life := n.s, n.life
	s.after(time.Duration(s.rng.IntN(20))*time.Millisecond, func() {
		if n.life != life {
			return
		}
		o := n.find(from)
		var buf bytes.Buffer
		err := errSim
		if o != nil && o.core != nil && !o.paused && !s.cut[[2]int{o.slot, n.slot}] && s.rng.Float64() >= s.drop/2 {
			err = get(o, &buf)
		}
		s.after(time.Duration(s.rng.IntN(20))*time.Millisecond, func() {
			if n.life == life {
				n.post(func() { then(buf.Bytes(), err) })
			}
		})
	})
}

func (n *simNode) fetchIndex(m *pb.Message) {
	number := binary.LittleEndian.Uint64(m.GetSnapshot().GetData())
	n.transfer(m.GetFrom(), func(o *simNode, w io.Writer) error {
		cut, err := o.core.takeCut(number)
		if err == nil {
			_, err = cut.WriteTo(w)
			o.core.closeCut(number)
		}
		return err
	}, func(data []byte, err error) {
		var cut *replica.Prepared
		if err == nil {
			cut, err = n.rep.Prepare(bytes.NewReader(data))
		}
		n.core.indexFetched(m, cut, err)
	})
}

func (n *simNode) hydrate() {
	from := n.core.soft.Lead
	n.transfer(from, func(o *simNode, w io.Writer) error {
		return o.rep.Export(o.core.ctx, w)
	}, func(data []byte, err error) {
		if err == nil {
			_, err = n.rep.Import(n.core.ctx, bytes.NewReader(data))
		}
		if err != nil {
			n.hydrate()
			return
		}
		n.core.bytesHere()
	})
}

func (n *simNode) saveState(snap *pb.Snapshot, cut *replica.Cut) {
	life := n.life
	var buf bytes.Buffer
	// What is written is what the cut is of, though it is written later.
	if _, err := cut.WriteTo(&buf); err != nil {
		n.s.t.Fatal(err)
	}
	cut.Close()
	n.s.after(time.Duration(n.s.rng.IntN(50))*time.Millisecond, func() {
		if n.life != life {
			return
		}
		if err := n.rep.Export(n.core.ctx, &buf); err != nil {
			n.s.t.Fatal(err)
		}
		n.disk = &simState{meta: snap.GetMetadata(), header: snap.GetData()[8:], data: buf.Bytes()}
		n.post(func() { n.core.stateSaved(int64(buf.Len()), nil) })
	})
}

// fetchBytes asks the leader, as the one that surely has them.
func (n *simNode) fetchBytes(r *request, wants []wanted) {
	life := n.life
	n.s.after(time.Millisecond, func() {
		if n.life != life {
			return
		}
		got := make(map[attune.KeyHash]fetched)
		for _, w := range wants {
			f := fetched{stored: w.item.Stored, err: errSim}
			for _, o := range n.s.nodes {
				if o.core == nil || o.paused || n.s.cut[[2]int{o.slot, n.slot}] {
					continue
				}
				if it, err := o.rep.Get(o.core.ctx, w.key, nil, false); err == nil && it.Stored == w.item.Stored {
					f.value, f.err = it.Value, nil
				}
			}
			got[w.key.Hash] = f
		}
		n.post(func() { n.core.bytesFetched(r, got) })
	})
}

func (n *simNode) stageChange(attune.Change) {}

// Clients.

type simInput struct {
	verb  attune.Verb
	read  bool
	key   string
	value string
}

type simOutput struct {
	unknown bool
	status  attune.Status
	value   string
	number  uint64
	unique  uint64
}

// client does one op after the other at any node, until the simulation stops.
// After an op whose outcome is unknown it goes on as another client.
func (s *sim) client(id int) {
	if s.stopped {
		return
	}
	var up []*simNode
	for _, n := range s.nodes {
		if n.core != nil && n.core.st.formed {
			up = append(up, n)
		}
	}
	again := func(id int) {
		s.after(time.Duration(s.rng.IntN(30))*time.Millisecond, func() { s.client(id) })
	}
	if len(up) == 0 {
		again(id)
		return
	}
	n := up[s.rng.IntN(len(up))]
	in := simInput{key: "k" + strconv.Itoa(s.rng.IntN(simKeys))}
	switch s.rng.IntN(8) {
	case 0, 1, 2:
		in.read = true
	case 3:
		in.verb, in.value = attune.Set, strconv.Itoa(s.rng.IntN(1000))
	case 4:
		in.verb, in.value = attune.Add, strconv.Itoa(s.rng.IntN(1000))
	case 5:
		in.verb = attune.Delete
	default:
		in.verb = attune.Incr
	}
	called := s.now
	record := func(out simOutput) {
		end := int64(s.now)
		if out.unknown {
			if in.read {
				return // it has no effect
			}
			end = math.MaxInt64
		}
		s.history = append(s.history, porcupine.Operation{ClientId: id, Input: in, Call: int64(called), Output: out, Return: end})
	}
	n.do(in, func(out simOutput) {
		if out.unknown && s.broken.retryUnknown && !in.read && n.core != nil {
			n.do(in, func(out simOutput) {
				record(out)
				s.clients++
				again(s.clients)
			})
			return
		}
		record(out)
		if out.unknown {
			s.clients++
			id = s.clients
		}
		again(id)
	})
}

// do has the node carry out an op.
func (n *simNode) do(in simInput, then func(simOutput)) {
	s := n.s
	key := attune.Key{Text: []byte(in.key)}
	key.Hash = n.rep.Hash(key.Text)
	call := &attune.Call{Ctx: context.Background(), Deadline: time.Time{}.Add(s.now + opTimeout)}
	local := localCall{call: call, deadline: s.now + opTimeout, kind: kindWrite}
	if in.read {
		local.kind = kindBarrier
	} else {
		call.Ops = []attune.Op{{Verb: in.verb, Key: key, Value: []byte(in.value), Delta: 1}}
		call.Res = make([]attune.Result, 1)
	}
	finish := func(err error) {
		if n.calls != nil {
			delete(n.calls, call)
		}
		var out simOutput
		switch {
		case err != nil || call.Err != nil:
			out.unknown = true
		case in.read:
			it, err := n.rep.Get(context.Background(), key, nil, false)
			switch {
			case errors.Is(err, replica.ErrGone):
				out.unknown = true // the engine would fetch it
			case err != nil:
				s.t.Fatal(err)
			case !it.Live(n.core.clock.Load()):
				out.status = attune.Miss
			default:
				out.status, out.value, out.unique = attune.Hit, string(it.Value), it.CAS
			}
		case call.Res[0].Status == attune.Failed:
			out.unknown = true
		default:
			out.status, out.number = call.Res[0].Status, call.Res[0].Number
		}
		then(out)
	}
	if in.read && s.broken.staleReads {
		finish(nil)
		return
	}
	n.calls[call] = finish
	call.Done = func() {
		s.after(0, func() { // the reader runs a moment later
			if f := n.calls[call]; f != nil {
				f(nil)
			}
		})
	}
	n.in.calls = append(n.in.calls, local)
	n.wake(time.Duration(s.rng.IntN(50)) * time.Microsecond)
}

// simModel is one key of a memcached.
var simModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, simKeys)
		for _, op := range history {
			k := op.Input.(simInput).key[1] - '0'
			parts[k] = append(parts[k], op)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(st, input, output any) (bool, any) {
		cur, in, out := st.(string), input.(simInput), output.(simOutput)
		next, want := cur, simOutput{}
		switch {
		case in.read && cur == "":
			want.status = attune.Miss
		case in.read:
			want.status, want.value = attune.Hit, cur
		case in.verb == attune.Set, in.verb == attune.Add && cur == "":
			want.status, next = attune.Stored, in.value
		case in.verb == attune.Add:
			want.status = attune.NotStored
		case cur == "":
			want.status = attune.NotFound
		case in.verb == attune.Delete:
			want.status, next = attune.Deleted, ""
		default:
			n, _ := strconv.ParseUint(cur, 10, 64)
			want.status, want.number = attune.Counted, n+1
			next = strconv.FormatUint(n+1, 10)
			for len(next) < len(cur) {
				next += " "
			}
		}
		if out.unknown {
			return true, next
		}
		return out.status == want.status && out.value == want.value && out.number == want.number, next
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
}

// Faults.

// whole reports whether every node is up, complete and a voter: then one may
// lose its memory, and not otherwise.
func (s *sim) whole() bool {
	for _, n := range s.nodes {
		if n.core == nil || n.paused || !n.core.serving() || !n.core.voter(n.id) {
			return false
		}
		if len(n.core.conf.GetVoters()) != simNodes || len(n.core.conf.GetVotersOutgoing()) > 0 {
			return false
		}
	}
	return true
}

// fault does one, and has it end some time later.
func (s *sim) fault() {
	if s.stopped {
		return
	}
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	lasts := time.Duration(s.rng.IntN(3000)) * time.Millisecond
	switch s.rng.IntN(7) {
	case 0:
		if n.core != nil && !n.paused {
			n.paused = true
			life := n.life
			s.after(lasts, func() {
				if n.life == life {
					n.paused = false
					n.wake(0)
				}
			})
		}
	case 1:
		if n.core != nil && n.remembers() {
			n.crash(false)
			s.after(lasts, func() { n.restart() })
		}
	case 2:
		if s.whole() && !n.remembers() {
			n.crash(true)
			s.after(lasts, func() { n.boot(false) })
		}
	case 3: // isolate, both ways or one
		way := s.rng.IntN(3)
		for _, o := range s.nodes {
			if o != n {
				s.cut[[2]int{n.slot, o.slot}] = way != 1
				s.cut[[2]int{o.slot, n.slot}] = way != 2
			}
		}
		s.after(lasts, func() { clear(s.cut) })
	case 4: // a bridge
		o := s.nodes[(n.slot+1)%len(s.nodes)]
		s.cut[[2]int{n.slot, o.slot}], s.cut[[2]int{o.slot, n.slot}] = true, true
		s.after(lasts, func() { clear(s.cut) })
	case 5:
		s.drop, s.dup, s.delay = s.rng.Float64()*0.4, s.rng.Float64()*0.4, time.Duration(1+s.rng.IntN(200))*time.Millisecond
		s.after(lasts, func() { s.drop, s.dup, s.delay = 0, 0, 0 })
	case 6:
		n.skew += time.Duration(s.rng.IntN(7200)-3600) * time.Second
		if n.core != nil && n.core.soft.Lead == n.id {
			n.core.handOver()
		}
	}
	s.after(time.Duration(200+s.rng.IntN(1500))*time.Millisecond, s.fault)
}

// simulate runs one seed, and returns what is wrong.
func simulate(t testing.TB, seed uint64, b broken) error {
	s := newSim(t, seed, b)
	for end := s.now + 30*time.Second; !s.whole() || !s.nodes[0].core.st.formed; {
		if s.now > end {
			return errors.New("no cluster was formed")
		}
		s.run(s.now + 100*time.Millisecond)
	}
	for i := range simClients {
		s.clients++
		s.after(time.Duration(i)*time.Millisecond, func() { s.client(i + 1) })
	}
	s.after(time.Second, s.fault)
	s.run(s.now + simDuration)
	// Everything heals, and then everything must work.
	s.stopped = true
	clear(s.cut)
	s.drop, s.dup, s.delay = 0, 0, 0
	for end := s.now + 60*time.Second; !s.whole() || !s.equal() || !s.led(); {
		if s.now > end {
			return errors.New("the cluster did not heal: " + s.describe())
		}
		s.run(s.now + 100*time.Millisecond)
	}
	for _, n := range s.nodes {
		if r := n.core.counts.refused.Load(); r != 0 {
			return fmt.Errorf("%s: %d changes did not hold when they were applied", n.name(), r)
		}
		var got *simOutput
		n.do(simInput{verb: attune.Set, key: "healed", value: "1"}, func(out simOutput) { got = &out })
		s.run(s.now + 2*time.Second)
		if got == nil || got.status != attune.Stored {
			return fmt.Errorf("%s: a write after healing came to %+v: %s", n.name(), got, s.describe())
		}
		for call := range n.calls {
			return fmt.Errorf("%s: a call was never answered: %+v", n.name(), call)
		}
	}
	res := porcupine.CheckOperationsTimeout(simModel, s.history, 20*time.Second)
	if res == porcupine.Illegal {
		return errors.New("the history is not linearizable:" + s.story())
	}
	if res == porcupine.Unknown {
		t.Logf("seed %d: %d operations were too many to check", seed, len(s.history))
	}
	return nil
}

// led reports whether all follow one leader, who decides.
func (s *sim) led() bool {
	leader := s.nodes[0].core.soft.Lead
	for _, n := range s.nodes {
		if n.core.soft.Lead != leader || n.id == leader && !n.core.leads() {
			return false
		}
	}
	return leader != 0
}

// story tells the end of the shortest beginning of a key's history that is not
// linearizable.
func (s *sim) story() string {
	for _, part := range simModel.Partition(s.history) {
		if porcupine.CheckOperationsTimeout(simModel, part, 20*time.Second) != porcupine.Illegal {
			continue
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
		n := sort.Search(len(part), func(n int) bool {
			begun := slices.Clone(part[:n+1])
			for _, op := range part[n+1:] {
				if op.Call < part[n].Return { // under way then
					out := op.Output.(simOutput)
					out.unknown = true
					op.Output, op.Return = out, math.MaxInt64
					if !op.Input.(simInput).read {
						begun = append(begun, op)
					}
				}
			}
			return porcupine.CheckOperationsTimeout(simModel, begun, 20*time.Second) == porcupine.Illegal
		})
		text := ""
		for i, op := range part {
			if i > n-12 && i <= n || i > n && op.Call < part[min(n, len(part)-1)].Return {
				text += fmt.Sprintf("\n  %v to %v client %d: %s", time.Duration(op.Call), time.Duration(op.Return), op.ClientId, simModel.DescribeOperation(op.Input, op.Output))
			}
		}
		return text
	}
	return " and yet it is, key by key"
}

// equal reports whether all replicas are the same.
func (s *sim) equal() bool {
	for _, n := range s.nodes[1:] {
		if n.core.st.applied != s.nodes[0].core.st.applied || n.rep.Digest() != s.nodes[0].rep.Digest() {
			return false
		}
	}
	return true
}

func (s *sim) describe() string {
	text := ""
	for _, n := range s.nodes {
		if n.core == nil {
			text += n.name() + " down; "
			continue
		}
		d := n.core.describe()
		text += fmt.Sprintf("%s (%d) %s of %q, term %d, applied %d of %d, voters %v learners %v, paused %v hydrated %v digest %x; ",
			n.name(), n.id, d.Role, d.Leader, d.Term, d.Applied, d.Last, n.core.conf.GetVoters(), n.core.conf.GetLearners(), n.paused, n.core.snaps.hydrated, n.rep.Digest())
	}
	return text
}

// simSeeds is how many seeds a test runs: ATTUNE_SIM_SEEDS, else few.
func simSeeds(t testing.TB, few int) (first, count uint64) {
	if v := os.Getenv("ATTUNE_TEST_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n, 1
	}
	if v := os.Getenv("ATTUNE_SIM_SEEDS"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return 1, n
	}
	return 1, uint64(few)
}

// Whatever the network, the clocks and the processes do, every history is
// linearizable, every replica ends up the same, and the cluster works when the
// faults end. ATTUNE_TEST_SEED repeats one run.
func TestSimulation(t *testing.T) {
	first, count := simSeeds(t, 30)
	for seed := first; seed < first+count; seed++ {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, seed) // Raft draws its election timeouts from it
			if err := simulate(t, seed, broken{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// The simulation finds what is wrong if something is.
func TestSimulationFindsWhatIsBroken(t *testing.T) {
	for name, b := range map[string]broken{
		"a read without a barrier":                           {staleReads: true},
		"a raft id used again after memory was lost":         {reuseID: true},
		"an op of unknown outcome that is carried out again": {retryUnknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= 40; seed++ {
				cryptotest.SetGlobalRandom(t, seed)
				if err := mayPanic(func() error { return simulate(t, seed, b) }); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Error("not found")
		})
	}
}

// mayPanic returns Raft's panics as errors.
func mayPanic(fn func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return fn()
}
