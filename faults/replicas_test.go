package faults

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// At the causal and eventual levels every controller answers for itself, cut off
// or not, and what they hold becomes the same when they hear each other. So the
// rows of these levels ask for three things: that no controller stops answering,
// that what clients saw is allowed meanwhile, and that all soon agree on the right
// thing afterwards.

// settling is how long controllers may disagree once nothing is written any more
// and the network is whole.
const settling = 5 * time.Second * slack

// lose kills a controller without a disk. What it said last, it may have said to
// its clients alone.
func (s *stage) lose(n *attunetest.Controller) {
	s.t.Helper()
	n.Kill()
	s.losses = append(s.losses, history.Loss{Node: n.Name, At: s.rec.Now()})
}

// kill kills a controller whose acknowledgements outlast it.
func (s *stage) kill(n *attunetest.Controller) {
	s.t.Helper()
	n.Kill()
	s.losses = append(s.losses, history.Loss{Node: n.Name, At: s.rec.Now(), Kept: true})
}

func (s *stage) mayLose(e history.Event) bool { return history.MayLose(s.losses, e) }

// agree waits until all controllers are ready and answer alike for keys, and returns
// what they answer.
func (s *stage) agree(keys []string) (sv history.Survey) {
	s.t.Helper()
	began := time.Now()
	var ready []history.Target
	for len(ready) < len(s.Nodes) && time.Since(began) < settling { // a fault may have ended a moment ago
		ready = nil
		for _, n := range s.Nodes {
			if n.Ready() == nil {
				ready = append(ready, target(n))
			}
		}
		time.Sleep(time.Millisecond)
	}
	if len(ready) != len(s.Nodes) {
		s.t.Errorf("%d of %d controllers are ready", len(ready), len(s.Nodes))
	}
	sv, err := s.settle(ready, keys, settling)
	if err != nil {
		s.describe() // who waits for what
		sv, err = s.settle(ready, keys, attunetest.Patience)
	}
	took := time.Since(began).Round(time.Millisecond)
	if err != nil {
		s.t.Errorf("not within %v: %v", took, err)
		return sv
	}
	s.t.Logf("%d controllers agree on %d keys after %v", len(ready), len(keys), took)
	if took > settling {
		s.t.Errorf("that is more than %v", settling)
	}
	return sv
}

// settle waits until targets agree on keys, for some time.
func (s *stage) settle(targets []history.Target, keys []string, patience time.Duration) (history.Survey, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	return s.recorder().Settle(ctx, targets, keys)
}

// recorder is the one of the run, or one that nobody else has.
func (s *stage) recorder() *history.Recorder {
	if s.rec == nil {
		s.rec = &history.Recorder{}
		s.rec.Begin()
	}
	return s.rec
}

// describe logs what the controllers know of each other.
func (s *stage) describe() {
	for _, n := range s.Nodes {
		stats, err := n.Stats("attune")
		s.t.Logf("%s: %v %v", n.Name, stats, err)
	}
}

// answering checks that from one moment to another no controller let its clients
// wait for longer than most, with commands that it needs nobody else for.
func (s *stage) answering(h history.History, from, to int64, most time.Duration) {
	s.t.Helper()
	for _, n := range s.Nodes {
		gap, at := h.Gap(from, to, func(e history.Event) bool {
			return e.Node == n.Name && (e.Op.Kind == history.Set || e.Op.Kind == history.Delete)
		})
		s.t.Logf("%s answered no write for %v at most", n.Name, gap.Round(time.Millisecond))
		if gap > most {
			s.t.Errorf("%s answered no write for %v since %s; at most %v is allowed", n.Name, gap, s.rec.Time(at).Format("15:04:05.000"), most)
		}
	}
}

// acquainted is how long controllers may take, after all are ready, to know that of
// each other: from then on they agree on who decides what.
const acquainted = time.Second * slack

// busy is how long a controller may take for what it needs nobody else for, on a
// machine that has much else to do.
const busy = 2 * time.Second * slack

// spread waits until n has values.
func (s *stage) spread(n *attunetest.Controller, values map[string]string) {
	s.t.Helper()
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	attunetest.Eventually(s.t, n.Name+" has what another was given", func() bool {
		read, err := history.ReadAll(target(n), keys)
		for key, value := range values {
			if out := read[key]; value == "" && out.Status != history.Miss || value != "" && out.Value != value {
				return false
			}
		}
		return err == nil
	})
}

// say sends lines to a controller and returns the first line of the answer, for
// what package history has no words for.
func (s *stage) say(n *attunetest.Controller, lines ...string) string {
	s.t.Helper()
	c, err := net.Dial("tcp", n.Listen)
	if err != nil {
		s.t.Error(err)
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(attunetest.Patience))
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n"); err != nil {
		s.t.Error(err)
		return ""
	}
	var answer []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			s.t.Error(err)
			return ""
		}
		if b[0] == '\n' {
			return strings.TrimSpace(string(answer))
		}
		answer = append(answer, b[0])
	}
}

// chainedOr is the workload that shows most: at the causal level that is Chained.
func chainedOr(level string, w history.Workload) history.Workload {
	if level == causal {
		return history.Chained
	}
	return w
}

// eachReplica runs a row at the levels that need no leader. The short matrix takes
// the first of them; causal is what more can be wrong with.
func eachReplica(t *testing.T, f func(t *testing.T, level string)) {
	levels(t, f, causal, eventual)
}

// eachReplicaToo does the same for rows that also tell something where changes take
// effect as they come.
func eachReplicaToo(t *testing.T, f func(t *testing.T, level string)) {
	levels(t, f, eventual, causal)
}
