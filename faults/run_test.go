package faults

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

const (
	linearizable = "linearizable"
	sequential   = "sequential"
	causal       = "causal"
	eventual     = "eventual"
)

// long says whether the whole matrix runs.
var long = os.Getenv("ATTUNE_FAULTS") == "long"

// onlyLong skips a row that the short matrix has no time for.
func onlyLong(t *testing.T) {
	t.Helper()
	if !long {
		t.Skip("set ATTUNE_FAULTS=long to run it")
	}
}

// pick returns what the matrix that runs wants.
func pick[T any](short, whole T) T {
	if long {
		return whole
	}
	return short
}

// levels are those that a row runs at: the short matrix takes the first.
func levels(t *testing.T, f func(t *testing.T, level string), names ...string) {
	for _, level := range names[:pick(1, len(names))] {
		t.Run(level, func(t *testing.T) { f(t, level) })
	}
}

// counterBegin is what the counter of a row that has one begins with.
const counterBegin = 1000

// scenario is a cluster, what clients do, and what happens to it meanwhile.
type scenario struct {
	attunetest.ClusterOptions
	workload history.Workload
	clients  int           // 0: 8
	pause    time.Duration // 0: 2 ms
	size     int
	hop      bool
	// prepare runs before the clients start.
	prepare func(s *stage)
	// faults run once commands are answered; when they return, the network is
	// healed, and the clients go on until they are answered again.
	faults func(s *stage)
	// keeps so many keys, which are spread before the faults (as stage.values), and are
	// at every controller after them.
	keeps int
	// unfailing says that every command is answered while the faults run.
	unfailing bool
	// outage is how long there may be, from then on, without any write answered; 0: as
	// long as it takes. See available.
	outage time.Duration
	// going says that while the faults run no controller has its clients wait. See
	// answering.
	going bool
	// sums says that the history is that of one counter, which began at counterBegin,
	// and not judged by search, for which it has too much at a time.
	sums bool
	// lossy rows may lose acknowledged sets: KeptSets is not asked.
	lossy bool
	// rules are those of the levels without a leader. See replicas_test.go.
	rules history.Rules
	// bounded counters may lose increments, and do none twice.
	bounded bool
}

// stage is a scenario under way.
type stage struct {
	*attunetest.Cluster
	t       *testing.T
	rec     *history.Recorder
	targets []history.Target
	losses  []history.Loss
	values  map[string]string // see scenario.keeps
}

// run runs a scenario and checks what its clients saw, which it returns.
func run(t *testing.T, sc scenario) (*stage, history.History) {
	t.Helper()
	seed := rand.Uint64()
	if v := os.Getenv("ATTUNE_FAULTS_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal("ATTUNE_FAULTS_SEED: ", err)
		}
	}
	t.Logf("ATTUNE_FAULTS_SEED=%d", seed)
	sc.Seed = seed
	s := &stage{Cluster: attunetest.StartCluster(t, sc.ClusterOptions), t: t}
	for _, n := range s.Nodes {
		s.targets = append(s.targets, target(n))
	}
	s.rec = &history.Recorder{
		Targets: s.targets, Clients: cmp.Or(sc.clients, 8), Workload: sc.workload, Size: sc.size, Hop: sc.hop,
		Pause: cmp.Or(sc.pause, 2*time.Millisecond), Seed: seed,
	}
	s.rec.Begin()
	if sc.prepare != nil {
		sc.prepare(s)
	}
	sets := &history.Recorder{Targets: s.targets, Clients: 2, Workload: history.UniqueSets, Pause: 10 * time.Millisecond, Seed: seed + 1}
	sets.Begin() // at about the same time, for those that look at both
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	go func() { s.rec.Run(ctx); done <- struct{}{} }()
	go func() { sets.Run(ctx); done <- struct{}{} }()
	stop := func() {
		cancel()
		<-done
		<-done
	}
	stopped := false
	defer func() {
		if !stopped {
			stop()
		}
	}()

	s.progress("before the fault")
	if sc.keeps > 0 {
		s.values = s.fill(s.Nodes[0], "before", sc.keeps)
		for _, n := range s.Nodes {
			s.spread(n, s.values)
		}
	}
	from := s.rec.Now()
	if sc.faults != nil {
		sc.faults(s)
	}
	to := s.rec.Now()
	if s.Net != nil {
		s.Net.HealAll()
	}
	s.progress("after the fault")
	stop()
	stopped = true

	h, unique := s.rec.History(), sets.History()
	t.Logf("%d commands, %d of them answered; %d unique sets", len(h), h.Answered(), len(unique))
	if history.Leaderless(sc.Level) {
		s.agree(unique.Keys())
		unique = slices.DeleteFunc(unique, s.mayLose)
	}
	s.check(sc, h)
	if !sc.lossy {
		s.kept(unique)
	}
	for _, n := range s.Nodes {
		s.reads(n, s.values)
	}
	if sc.unfailing {
		s.failed(h, from, to)
	}
	if sc.outage > 0 {
		s.available(h, from, sc.outage)
	}
	if sc.going {
		s.answering(h, from, to, busy)
	}
	return s, h
}

// progress waits until clients get answers.
func (s *stage) progress(when string) {
	s.t.Helper()
	begin := s.rec.Answered()
	attunetest.Eventually(s.t, "commands are answered "+when, func() bool { return s.rec.Answered() >= begin+50 })
}

// check has the checkers of the level judge h.
func (s *stage) check(sc scenario, h history.History) {
	s.t.Helper()
	trial := history.Trial{
		Level: sc.Level, Workload: sc.workload, History: h, Patience: time.Minute, Dir: s.Dir(), Rules: sc.rules,
		Unsearched: sc.sums, Begin: counterBegin, Whole: sc.sums && !sc.bounded, Expiry: history.ExpiryRules{Slack: time.Second * slack},
	}
	if sc.hop {
		trial.Process = history.ByClient
	}
	if history.Leaderless(sc.Level) {
		trial.Rules.MayLose = s.mayLose
	}
	if history.Leaderless(sc.Level) || sc.sums {
		sv := s.agree(h.Keys())
		trial.Final = &sv
	}
	for _, f := range trial.Judge() {
		if f.Err != nil {
			s.t.Errorf("%s: %v", f.Check, f.Err)
		}
	}
}

// kept checks that what was acknowledged is there, wherever one asks.
func (s *stage) kept(h history.History) {
	s.t.Helper()
	keys := make(map[string]bool)
	for _, e := range h {
		if e.Op.Kind == history.Set {
			keys[e.Op.Key] = true
		}
	}
	asked := 0
	for _, n := range s.Nodes {
		if n.Ready() != nil {
			continue
		}
		asked++
		var final map[string]history.Outcome
		var err error
		// A command that hits a change of leader may fail, once or twice.
		for range 5 {
			if final, err = history.ReadAll(target(n), slices.Collect(maps.Keys(keys))); err == nil {
				break
			}
		}
		if err != nil {
			s.t.Error(err)
			continue
		}
		if _, err := history.KeptSets(h, final); err != nil {
			s.t.Errorf("asked at %s: %v", n.Name, err)
		}
	}
	if asked == 0 {
		s.t.Error("no controller is ready at the end")
	}
}

func target(n *attunetest.Controller) history.Target {
	return history.Target{Name: n.Name, Addr: n.Listen}
}

// outage is how long a change of leader may take, in which nothing is written. A
// machine that also runs the race detector, and the clients, gets more.
const outage = 3 * time.Second * slack

// available checks that since the moment from there was no longer time than most
// in which no write was answered.
func (s *stage) available(h history.History, from int64, most time.Duration) {
	s.t.Helper()
	to := int64(0)
	for _, e := range h {
		to = max(to, e.Call)
	}
	gap, at := h.Gap(from, to, func(e history.Event) bool { return e.Op.Kind != history.Get })
	since := s.rec.Time(at).Format("15:04:05.000") // as the logs have it
	s.t.Logf("the longest time without an answered write is %v, since %s", gap.Round(time.Millisecond), since)
	if gap > most {
		s.t.Errorf("no write was answered for %v since %s; at most %v is allowed", gap.Round(time.Millisecond), since, most)
	}
}

// term is the Raft term that a controller is in.
func (s *stage) term(n *attunetest.Controller) uint64 {
	s.t.Helper()
	stats, err := n.Stats("attune")
	if err != nil {
		s.t.Error(err)
		return 0
	}
	term, err := strconv.ParseUint(stats["term"], 10, 64)
	if err != nil {
		s.t.Errorf("stats attune of %s has no term: %v", n.Name, stats)
	}
	return term
}

// do executes one command, which must be answered within a few tries.
func (s *stage) do(n *attunetest.Controller, op history.Op) history.Outcome {
	s.t.Helper()
	var out history.Outcome
	for range 10 {
		if out = ask(n, op); out.Status != history.Unknown {
			return out
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.t.Errorf("%s does not answer: %v: %v", n.Name, op, out)
	return out
}

// ask executes one command, once.
func ask(n *attunetest.Controller, op history.Op) history.Outcome {
	c, err := history.Dial(n.Listen, false, 3*time.Second)
	if err != nil {
		return history.Outcome{Value: err.Error()}
	}
	defer c.Close()
	return c.Do(op, 0)
}

func get(key string) history.Op { return history.Op{Kind: history.Get, Key: key} }

func set(key, value string) history.Op {
	return history.Op{Kind: history.Set, Key: key, Value: value}
}

// fill sets keys and returns what they are.
func (s *stage) fill(n *attunetest.Controller, prefix string, count int) map[string]string {
	s.t.Helper()
	values := make(map[string]string)
	for i := range count {
		key, value := fmt.Sprintf("%s-%d", prefix, i), fmt.Sprintf("%s.%d;", prefix, i)
		if out := s.do(n, set(key, value)); out.Status != history.Stored {
			s.t.Fatalf("set %s: %v", key, out)
		}
		values[key] = value
	}
	return values
}

// reads checks what keys are at n; an empty value is a miss.
func (s *stage) reads(n *attunetest.Controller, values map[string]string) {
	s.t.Helper()
	for key, value := range values {
		out := s.do(n, get(key))
		if value == "" && out.Status != history.Miss || value != "" && (out.Status != history.Hit || out.Value != value) {
			s.t.Errorf("%s at %s: %v; want %q", key, n.Name, out, value)
			return
		}
	}
}

// gone are the keys of values, missing.
func gone(values map[string]string) map[string]string {
	missing := make(map[string]string)
	for key := range values {
		missing[key] = ""
	}
	return missing
}

// start starts a cluster without a workload.
func start(t *testing.T, o attunetest.ClusterOptions) *stage {
	t.Helper()
	s := &stage{Cluster: attunetest.StartCluster(t, o), t: t}
	for _, n := range s.Nodes {
		s.targets = append(s.targets, target(n))
	}
	return s
}
