package gossip

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/codec"
	"github.com/attunekv/attune/consistency/disk"
	"github.com/attunekv/attune/consistency/gossip/journal"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

// life is one life of a member with a data-dir, without its engine: what the engine's
// goroutines do, the test does.
type life struct {
	*core
	t    testing.TB
	j    *journal.Journal
	sent map[byte][][]byte // frames, by kind
}

func (l *life) send(_ uint64, _ cluster.Class, kind byte, body []byte) bool {
	l.sent[kind] = append(l.sent[kind], body)
	return true
}

func (l *life) stir() {}

// live begins a life in dir, with a clock that shows wall at first. It knows of
// another member, 2.
func live(t testing.TB, dir string, causal bool, wall int64) *life {
	t.Helper()
	b := embedded(t)
	t.Cleanup(func() { b.Close() })
	return liveOver(t, dir, causal, wall, b, func(*life) {})
}

// liveOver is live with another store; prepare has the core before it loads.
func liveOver(t testing.TB, dir string, causal bool, wall int64, b kvadapter.Backend, prepare func(*life)) *life {
	t.Helper()
	j, err := journal.Open(disk.Options{Dir: dir, Sync: disk.OS})
	if err != nil {
		t.Fatal(err)
	}
	if _, known := j.Identity(); !known {
		if err := j.Start(disk.Identity{ID: 1, Name: "one", Gen: 1, Seed: 1, Cluster: [16]byte{1}}); err != nil {
			t.Fatal(err)
		}
	}
	r := replica.Open(replica.Options{Backend: b, Seed: 1, Gen: 1, Tombstones: true})
	l := &life{t: t, j: j, sent: make(map[byte][][]byte)}
	start := time.Now()
	l.core = newCore(1, causal, r, newClock(1, wall, func() time.Duration { return time.Since(start) }), l, zap.NewNop())
	l.maxSkew, l.synced, l.disk.journal = 5*time.Second, true, j
	prepare(l)
	if err := errors.Join(l.load(t.Context()), l.renew()); err != nil {
		t.Fatal(err)
	}
	l.setMembers([]member{{2, "two", true}})
	t.Cleanup(l.end)
	return l
}

func (l *life) end() { l.j.Close() }

// set writes as the engine does, without waiting for the journal.
func (l *life) set(key, value string) attune.Version {
	c := attune.Change{Key: attune.Key{Text: []byte(key)}, Item: attune.Item{Value: []byte(value), Size: len(value)}, Prior: attune.AnyVersion}
	c.Key.Hash = l.replica.Hash(c.Key.Text)
	if applied, err := l.commit(&c, l.clock.now()); !applied || err != nil {
		l.t.Fatal(applied, err)
	}
	return c.Item.Version
}

func (l *life) get(key string) string {
	k := attune.Key{Text: []byte(key), Hash: l.replica.Hash([]byte(key))}
	it, err := l.replica.Get(context.Background(), k, nil, false)
	if err != nil {
		l.t.Error(err)
	}
	return string(it.Value)
}

// hear has it hear of the other, which has what was made here up to seq.
func (l *life) hear(seq uint64) {
	d := digest{flags: digestFull | digestReady, time: l.clock.now(), node: 2, hash: mix(1, seq), entries: []dependency{{1, seq}}}
	l.frame(2, frameDigest, d.append(nil))
}

func (l *life) persists() {
	l.t.Helper()
	if err := l.persist(); err != nil {
		l.t.Fatal(err)
	}
}

// crash gives the directory as it would be found if the process died now.
func (l *life) crash(dir string) string {
	l.t.Helper()
	names := func() string {
		list, err := os.ReadDir(dir)
		if err != nil {
			l.t.Fatal(err)
		}
		return fmt.Sprint(list)
	}
	for {
		to, before := l.t.TempDir(), names()
		err := os.CopyFS(to, os.DirFS(dir))
		if names() != before {
			continue // a state came or went meanwhile: that is of no one moment
		}
		if err != nil {
			l.t.Fatal(err)
		}
		return to
	}
}

// TestNobodyHearsOfWhatIsNotInTheJournal: neither by updates, nor by digests.
func TestNobodyHearsOfWhatIsNotInTheJournal(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		l := live(t, t.TempDir(), causal, simEpoch)
		l.hear(0)
		l.set("k", "v")
		l.frame(2, frameUpdates, frameOf(madeBy(77, 1, "theirs", "x")))
		told := func() (own, theirs uint64) {
			l.digests(0)
			all := l.sent[frameDigest]
			d, _ := parseDigest(all[len(all)-1])
			for _, e := range d.entries {
				if e.origin == 1 {
					own = e.seq
				} else if e.origin == 77 {
					theirs = e.seq
				}
			}
			return own, theirs
		}
		l.flush()
		if own, theirs := told(); own != 0 || theirs != 0 || len(l.sent[frameUpdates]) != 0 {
			t.Errorf("told %d and %d, sent %d frames", own, theirs, len(l.sent[frameUpdates]))
		}
		c := &attune.Call{Res: []attune.Result{{Status: attune.Stored}}}
		answered := false
		c.Done = func() { answered = true }
		if !l.await(c) || answered {
			t.Error("acknowledged")
		}
		l.persists()
		if !answered {
			t.Error("not acknowledged, though written")
		}
		if l.await(c) {
			t.Error("it waits for what is written")
		}
		l.flush()
		if own, theirs := told(); own != 1 || theirs != 1 || len(l.sent[frameUpdates]) != 1 {
			t.Errorf("told %d and %d, sent %d frames", own, theirs, len(l.sent[frameUpdates]))
		}
	})
}

// TestAWaitingPeerIsToldWhenItIsWritten, not a digest's time later.
func TestAWaitingPeerIsToldWhenItIsWritten(t *testing.T) {
	l := live(t, t.TempDir(), false, simEpoch)
	l.hear(0)
	l.sent = make(map[byte][][]byte)
	frame := frameOf(madeBy(2, 1, "k", "v"))
	frame[0] = wantDigest
	l.frame(2, frameUpdates, frame)
	if len(l.sent[frameDigest]) > 0 {
		t.Error("told before it was written")
	}
	l.persists()
	if len(l.sent[frameDigest]) != 1 {
		t.Error("not told")
	}
}

// TestNothingAcknowledgedIsMissingAfterACrash: whenever that comes, and whatever is
// being written then, what was acknowledged or told before is there; so no number is
// given twice, and no version.
func TestNothingAcknowledgedIsMissingAfterACrash(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		dir := t.TempDir()
		l := live(t, dir, causal, simEpoch)
		var acked, theirs atomic.Uint64 // changes, as if told
		var last atomic.Uint64          // version
		stop := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		var writing sync.Mutex
		var running sync.WaitGroup
		running.Go(func() { // a client, and a peer
			for i := uint64(1); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				v := l.set(fmt.Sprint("k", i), fmt.Sprint("v", i))
				l.set("same", fmt.Sprint(i))
				l.frame(2, frameUpdates, frameOf(madeBy(77, i, fmt.Sprint("t", i), "x", dependency{1, i})))
				if i%10 == 0 {
					l.mu.Lock()
					told, told77 := l.own.told, l.reach(77).told
					l.mu.Unlock()
					acked.Store(told)
					theirs.Store(told77)
					last.Store(uint64(v))
				}
			}
		})
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					writing.Lock()
					err := l.persist()
					if writing.Unlock(); err != nil {
						t.Error(err)
					}
				}
			}
		})
		running.Go(func() { // states, too
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
					if err := l.saveNow(ctx); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
				}
			}
		})
		type found struct {
			dir          string
			acked, their uint64
			version      attune.Version
		}
		var crashes []found
		for range 6 {
			time.Sleep(30 * time.Millisecond)
			f := found{"", acked.Load(), theirs.Load(), attune.Version(last.Load())}
			writing.Lock()
			f.dir = l.crash(dir)
			writing.Unlock()
			crashes = append(crashes, f)
		}
		close(stop)
		cancel()
		running.Wait()
		for _, f := range crashes {
			// Its wall clock is an hour behind, for good measure.
			next := live(t, f.dir, causal, simEpoch-3600_000)
			if next.own.seq < f.acked || next.seqOf(77) < f.their {
				t.Errorf("at %d and %d, and told were %d and %d", next.own.seq, next.seqOf(77), f.acked, f.their)
			}
			for i := uint64(1); i <= f.acked/2; i++ {
				if got := next.get(fmt.Sprint("k", i)); got != fmt.Sprint("v", i) {
					t.Fatalf("k%d is %q after a crash; acknowledged were %d changes", i, got, f.acked)
				}
			}
			for i := uint64(1); i <= f.their; i++ {
				if got := next.get(fmt.Sprint("t", i)); got != "x" {
					t.Fatalf("t%d is %q after a crash; told were %d changes", i, got, f.their)
				}
			}
			if v := next.set("same", "after"); v <= f.version {
				t.Errorf("version %d after %d", v, f.version)
			}
			checkSketch(t, next.core)
			next.end()
		}
	})
}

// checkSketch: it is that of the index.
func checkSketch(t *testing.T, k *core) {
	t.Helper()
	before := k.sketch.Total()
	if k.resketch(); k.sketch.Total() != before {
		t.Error("the sketch is not that of the index")
	}
}

// TestStatesAreWrittenMeanwhile: while changes come a state is written, and with what
// was journaled since it is everything.
func TestStatesAreWrittenMeanwhile(t *testing.T) {
	dir := t.TempDir()
	l := live(t, dir, false, simEpoch)
	for i := range 2000 {
		l.set(fmt.Sprint("k", i), "before")
	}
	l.set("dead", "x")
	l.evict(l.replica.Hash([]byte("dead")), attune.AnyVersion)
	l.mu.Lock()
	l.collected(versionAt(simEpoch - 1000))
	l.mu.Unlock()
	l.persists()
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				l.set(fmt.Sprint("k", i%2000), fmt.Sprint("meanwhile", i/2000))
				if err := l.persist(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for n := range 5 {
		if err := l.saveNow(context.Background()); err != nil {
			t.Error(n, err)
		}
	}
	close(stop)
	running.Wait()
	l.persists()
	size := l.j.Size()
	next := live(t, l.crash(dir), false, simEpoch)
	if a, b := l.replica.Digest(), next.replica.Digest(); a != b || l.hash != next.hash {
		t.Errorf("digest %x, was %x; vector %s, was %s", b, a, vector(next.core), vector(l.core))
	}
	if next.replica.Collected() != versionAt(simEpoch-1000) {
		t.Error("the cut was forgotten")
	}
	for i := range 2000 {
		if a, b := l.get(fmt.Sprint("k", i)), next.get(fmt.Sprint("k", i)); a != b {
			t.Fatalf("k%d is %q, was %q", i, b, a)
		}
	}
	t.Logf("%d bytes to replay", size)
}

// TestTakenOverIsOnDisk: what came of a peer as a whole, records and vector, is there
// after a crash, with a cut and the updates that came behind it; or nothing of it is
// believed to be.
func TestTakenOverIsOnDisk(t *testing.T) {
	levels(t, func(t *testing.T, causal bool) {
		dir := t.TempDir()
		l := live(t, dir, causal, simEpoch)
		l.frame(2, frameUpdates, frameOf(madeBy(77, 1, "t1", "x")))
		l.persists()
		l.mu.Lock()
		u := madeBy(77, 90, "t90", "y")
		rec, _ := u.record()
		rec.Change.Key.Hash = l.replica.Hash(rec.Change.Key.Text)
		l.rec.pull = &pull{vector: []dependency{{77, 90}}, cut: versionAt(simEpoch - 1000), at: make(map[attune.KeyHash]int), finished: false, apart: causal}
		if causal {
			l.rec.pull.keep(&rec.Change)
			if !l.rec.install(0) {
				t.Fatal("not installed")
			}
		} else {
			l.rec.merge(&rec.Change, l.clock.mono())
			l.rec.reached(nil, 0)
		}
		l.rec.pull = nil
		l.mu.Unlock()
		before := l.crash(dir)
		l.frame(2, frameUpdates, frameOf(madeBy(77, 91, "t91", "z")))
		l.persists()
		next := live(t, before, causal, simEpoch)
		if next.seqOf(77) != 1 || next.replica.Collected() != 0 {
			t.Errorf("at %d, cut %d, and nothing was written", next.seqOf(77), next.replica.Collected())
		}
		next = live(t, l.crash(dir), causal, simEpoch)
		if next.seqOf(77) != 91 || next.get("t90") != "y" || next.get("t91") != "z" || next.replica.Collected() != versionAt(simEpoch-1000) {
			t.Errorf("at %d, %q %q, cut %d", next.seqOf(77), next.get("t90"), next.get("t91"), next.replica.Collected())
		}
		if next.ring.dropped[77] != 90 || next.ring.next()-next.ring.first != 2 {
			t.Errorf("the ring: dropped %d, has %d", next.ring.dropped[77], next.ring.next()-next.ring.first)
		}
		checkSketch(t, next.core)
	})
}

// TestNoVersionIsIssuedTwice: the next life's versions are above all that the last one
// may have issued, whatever its clock shows, and though nothing of them was written.
func TestNoVersionIsIssuedTwice(t *testing.T) {
	dir := t.TempDir()
	l := live(t, dir, false, simEpoch)
	left := l.crash(dir)
	v := l.set("k", "lost") // and perhaps seen, by way of a reconciliation
	// A process that was stopped for a while issues none beyond what it noted.
	l.clock.began += 60_000
	c := attune.Change{Key: attune.Key{Text: []byte("k"), Hash: l.replica.Hash([]byte("k"))}, Prior: attune.AnyVersion}
	if applied, err := l.commit(&c, l.clock.now()); applied || !errors.Is(err, errBound) {
		t.Errorf("issued a version beyond the bound: %v %v", applied, err)
	}
	if err := l.flushAll(l.clock.now()); !errors.Is(err, errBound) || l.replica.Floor() != 0 {
		t.Errorf("flushed beyond the bound: %v", err)
	}
	if err := l.renew(); err != nil {
		t.Fatal(err)
	}
	later := l.set("k", "lost")
	for _, dir := range []string{left, l.crash(dir)} {
		next := live(t, dir, false, simEpoch-60_000)
		was := v
		if dir != left {
			was = later
		}
		if is := next.set("k", "again"); is <= was {
			t.Errorf("version %x after %x", uint64(is), uint64(was))
		}
	}
}

// TestAFlushAfterARestartKillsAll: also what has a version far above this clock.
func TestAFlushAfterARestartKillsAll(t *testing.T) {
	dir := t.TempDir()
	l := live(t, dir, false, simEpoch)
	c := attune.Change{Key: attune.Key{Text: []byte("k")}, Item: attune.Item{Value: []byte("v"), Size: 1}, Prior: attune.AnyVersion}
	c.Stamp(versionAt(simEpoch + 3600_000))
	var b codec.Builder
	b.BeginBare()
	b.Change(&c)
	l.frame(2, frameUpdates, frameOf(update{77, 1, appendData(nil, nil, b.Raw())}))
	l.persists()
	if err := l.saveNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	next := live(t, l.crash(dir), false, simEpoch)
	if next.get("k") != "v" {
		t.Fatal("it is not there")
	}
	err := next.flushAll(next.clock.now())
	if errors.Is(err, errBound) {
		if err = next.renew(); err == nil {
			err = next.flushAll(next.clock.now())
		}
	}
	if err != nil || next.get("k") != "" {
		t.Errorf("flushed, and it is %q, %v", next.get("k"), err)
	}
}

// TestAJournalThatFails: nothing is acknowledged or told any more, and the process is
// told to stop.
func TestAJournalThatFails(t *testing.T) {
	t.Parallel()
	g := openSites(t, 3, durable)
	a := g.list[0]
	a.must(attune.Stored, a.op(attune.Set, "k", "v"))
	g.all("k", "v")
	// As after an error of the disk, of which there is no way to be sure here.
	if err := a.journal.Close(); err != nil {
		t.Fatal(err)
	}
	res := a.try(500*time.Millisecond, a.op(attune.Set, "k", "w"), a.op(attune.Set, "l", "w"))
	for _, r := range res {
		if r.Status != attune.Failed || r.Err == nil || !strings.Contains(r.Err.Error(), "data directory") {
			t.Errorf("%+v", r)
		}
	}
	select {
	case err := <-a.Fatal():
		t.Log(err)
	case <-time.After(5 * time.Second):
		t.Error("it goes on")
	}
	for _, s := range g.list[1:] {
		if err := errors.Join(s.has("k", "v"), s.has("l", "")); err != nil {
			t.Error(err)
		}
	}
	a.open = false
	if err := a.Engine.Close(); err == nil {
		t.Error("closed as if all had been written")
	}
	a.backend.Close()
	if _, err := os.Stat(a.o.DataDir); err != nil {
		t.Error(err)
	}
}

// TestWhatWaitsForTheJournalIsBounded: a journal that waits, as for a store without room,
// does not have changes of others gather in memory without end. What was not taken is
// when it is sent again.
func TestWhatWaitsForTheJournalIsBounded(t *testing.T) {
	defer func(n int) { unsavedMost = n }(unsavedMost)
	unsavedMost = 1 << 20
	l := live(t, t.TempDir(), false, simEpoch)
	l.ring.limit = 1 << 20
	const n, size = 100, 64 << 10
	value := strings.Repeat("v", size)
	send := func(from uint64) (next uint64) {
		for next = from; next <= n; next++ {
			l.frame(2, frameUpdates, frameOf(madeBy(77, next, fmt.Sprint("k", next%3), value)))
		}
		return l.seqOf(77) + 1
	}
	next := send(1)
	if most := l.ring.limit + unsavedMost + 2*size; l.ring.bytes > most || next > n || l.overflowed == 0 {
		t.Errorf("%d bytes wait for the journal, at most %d should; %d changes of %d were taken, %d not", l.ring.bytes, most, next-1, n, l.overflowed)
	}
	for last := uint64(0); next <= n && next > last; {
		last = next
		l.persists()
		next = send(next)
	}
	if next != n+1 {
		t.Errorf("%d changes of %d are here in the end", next-1, n)
	}
	// One that is larger than all that may wait is no reason to take nothing more.
	l.persists()
	l.ring.limit = size / 2
	l.frame(2, frameUpdates, frameOf(madeBy(77, n+1, "k", value)))
	l.persists()
	if l.swamped() {
		t.Error("swamped by what is in the journal")
	}
}
