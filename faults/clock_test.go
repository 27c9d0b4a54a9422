package faults

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// withClock has n believe a clock that is off, while what is called.
func (s *stage) withClock(n *attunetest.Controller, off time.Duration, what func()) {
	s.t.Helper()
	if err := n.Fault(url.Values{"kind": {"clock"}, "offset": {off.String()}, "for": {"1h"}}); err != nil {
		s.t.Fatal(err)
	}
	what()
	if err := n.Fault(nil); err != nil {
		s.t.Fatal(err)
	}
}

// The leader's clock is off. Where a log has the time nothing expires early or late.
func TestRow13ClockOfTheLeader(t *testing.T) {
	levels(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Args: []string{"--enable-faults"}},
			workload:       history.Expiring,
			faults: func(s *stage) {
				for _, off := range []time.Duration{time.Hour, -time.Hour} {
					leader := s.WaitLeader()
					if leader == nil {
						return
					}
					s.withClock(leader, off, func() { pause(s.t, (history.ExpiringTTL+1)*time.Second) })
				}
			},
		})
	}, linearizable, sequential)
}

// The clock of one that needs no leader is off. It says so, and writes no more, but it
// answers reads; the others go on. When the clock is right again it is one of them.
func TestRow13ClockOfAReplica(t *testing.T) {
	eachReplica(t, func(t *testing.T, level string) {
		run(t, scenario{
			ClusterOptions: attunetest.ClusterOptions{Level: level, Args: []string{"--enable-faults"}},
			workload:       chainedOr(level, history.Removals),
			keeps:          20,
			faults: func(s *stage) {
				n := s.Nodes[2]
				for _, off := range []time.Duration{-time.Hour, time.Hour}[:pick(1, 2)] {
					s.withClock(n, off, func() {
						attunetest.Eventually(s.t, n.Name+" notices", func() bool {
							err := n.Ready()
							return err != nil && strings.Contains(err.Error(), "clock skew")
						})
						if got := s.say(n, "set mine 0 0 1", "x"); !strings.HasPrefix(got, "SERVER_ERROR clock skew") {
							s.t.Errorf("a write with a wrong clock: %q", got)
						}
						s.reads(n, s.values)
						for _, other := range s.Others(n) {
							s.spread(n, s.fill(other, "by-"+other.Name, 20))
						}
					})
					if !s.WaitReady(n) {
						return
					}
				}
			},
		})
	})
}
