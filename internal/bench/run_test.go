package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

// run fails the test on an error.
func run(t *testing.T, o Options) *Report {
	t.Helper()
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// checkSums checks what holds of every measure.
func checkSums(t *testing.T, m *Measure) {
	t.Helper()
	if m.Hits+m.Misses != m.Get.Count || m.Stored != m.Set.Count || m.Ops != m.Get.Count+m.Set.Count {
		t.Errorf("sums differ: %d ops, %d hits, %d misses, %d stored, %d get and %d set latencies",
			m.Ops, m.Hits, m.Misses, m.Stored, m.Get.Count, m.Set.Count)
	}
	for _, l := range []Latency{m.Get, m.Set} {
		if l.Count > 0 && !(0 < l.P50 && l.P50 <= l.P90 && l.P90 <= l.P99 && l.P99 <= l.P999 && l.P999 <= l.Max && l.Mean <= l.Max) {
			t.Errorf("percentiles out of order: %+v", l)
		}
	}
}

func TestEveryRequestIsCountedOnce(t *testing.T) {
	for name, d := range drivers {
		for _, protocol := range []string{"text", "meta", "binary"} {
			for _, rate := range []int{0, 20_000} {
				for _, pipeline := range []int{1, 16} {
					t.Run(fmt.Sprintf("%s/%s/rate=%d/pipeline=%d", name, protocol, rate, pipeline), func(t *testing.T) {
						t.Parallel()
						f := newFake(t, nil)
						o := small(f.addr)
						o.driver, o.Protocol, o.Rate, o.Pipeline = d, protocol, rate, pipeline
						o.Values, o.Verify = Sizes{0, 300}, true
						m := run(t, o).Targets[0].Total
						checkSums(t, m)
						if m.Ops != o.Ops || m.Errors != 0 || m.Unanswered != 0 || m.Misses != 0 {
							t.Errorf("got %d ops, %d errors (%s), %d unanswered, %d misses; want %d ops, the rest 0",
								m.Ops, m.Errors, m.FirstError, m.Unanswered, m.Misses, o.Ops)
						}
						if gets, sets := f.gets.Load(), f.sets.Load()-o.Keys; gets != m.Get.Count || sets != m.Set.Count {
							t.Errorf("the server saw %d gets and %d sets, the report says %d and %d", gets, sets, m.Get.Count, m.Set.Count)
						}
						// 1000 draws at 9:1: 10 standard deviations.
						if m.Set.Count < 5 || m.Set.Count > 195 {
							t.Errorf("%d sets of 1000 at 9:1", m.Set.Count)
						}
					})
				}
			}
		}
	}
}

func TestWithoutPrefillReadsMiss(t *testing.T) {
	o := small(newFake(t, nil).addr)
	o.Prefill, o.Ratio = false, Ratio{1, 0}
	if m := run(t, o).Targets[0].Total; m.Misses != o.Ops || m.Hits != 0 {
		t.Errorf("%d misses, %d hits; want %d misses", m.Misses, m.Hits, o.Ops)
	}
}

// One counter under all connections ends at the number of requests, which no
// refused, lost or doubly sent one would leave it at.
func TestIncrCountsEveryRequest(t *testing.T) {
	for name, d := range drivers {
		for _, protocol := range []string{"text", "meta", "binary"} {
			for _, pipeline := range []int{1, 16} {
				t.Run(fmt.Sprintf("%s/%s/pipeline=%d", name, protocol, pipeline), func(t *testing.T) {
					t.Parallel()
					f := newFake(t, nil)
					o := small(f.addr)
					o.driver, o.Protocol, o.Pipeline, o.Incr, o.Keys = d, protocol, pipeline, true, 1
					m := run(t, o).Targets[0].Total
					checkSums(t, m)
					f.mu.Lock()
					defer f.mu.Unlock()
					count := string(f.items["bench:00000000000000"])
					if m.Stored != o.Ops || m.Ops != o.Ops || m.Errors != 0 || f.sets.Load() != 1 || count != "1000" {
						t.Errorf("%d of %d ops counted, %d errors (%s), %d sets, the counter at %q",
							m.Stored, m.Ops, m.Errors, m.FirstError, f.sets.Load(), count)
					}
				})
			}
		}
	}
}

func TestIncrOfACounterThatIsMissing(t *testing.T) {
	for protocol, want := range map[string]string{"text": "NOT_FOUND", "meta": "NF", "binary": "Not found"} {
		o := small(newFake(t, nil).addr)
		o.Protocol, o.Incr, o.Prefill = protocol, true, false
		if m := run(t, o).Targets[0].Total; m.Errors != o.Ops || m.Ops != 0 || m.FirstError != want {
			t.Errorf("%s: %d errors, %d ops, first %q", protocol, m.Errors, m.Ops, m.FirstError)
		}
	}
}

func TestClusterSharesTheLoad(t *testing.T) {
	fakes := []*fake{newFake(t, nil), newFake(t, nil), newFake(t, nil)}
	var addrs []string
	for _, f := range fakes {
		addrs = append(addrs, f.addr)
	}
	o := small(strings.Join(addrs, ","))
	o.Prefill, o.Rate = false, 20_000 // an open loop, which deals requests out evenly
	r := run(t, o)
	var requests int64
	for i, f := range fakes {
		conns, n := f.conns.Load()-1, f.requests.Load() // one asked for the version
		if want := []int64{3, 2, 2}[i]; conns != want {
			t.Errorf("%d of 7 connections to server %d, want %d", conns, i, want)
		}
		if share := n * 7 / (f.conns.Load() - 1); share < 980 || share > 1020 {
			t.Errorf("%d of 1000 requests to server %d", n, i)
		}
		requests += n
	}
	if tg := r.Targets[0]; requests != o.Ops || tg.Total.Ops != o.Ops || tg.Server != o.Server || tg.Version != "1.2.3" {
		t.Errorf("%d requests arrived, %d ops of %s version %s", requests, tg.Total.Ops, tg.Server, tg.Version)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	o.Server += "," + nobody
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), nobody) {
		t.Errorf("a member that does not listen: %v", err)
	}
}

func TestDurationEndsARound(t *testing.T) {
	for name, d := range drivers {
		for _, rate := range []int{0, 500} {
			t.Run(fmt.Sprintf("%s/rate=%d", name, rate), func(t *testing.T) {
				t.Parallel()
				o := small(newFake(t, nil).addr)
				o.driver, o.Ops, o.Rate = d, 0, rate
				o.Warmup, o.Duration = 50*time.Millisecond, 300*time.Millisecond
				m := run(t, o).Targets[0].Total
				checkSums(t, m)
				if m.Seconds < 0.3 {
					t.Errorf("measured %.3f s of 0.3 s", m.Seconds)
				}
				if rate > 0 && m.Ops != 150 {
					t.Errorf("%d ops in 0.3 s at 500/s, want exactly the 150 scheduled", m.Ops)
				}
				if m.Ops == 0 || m.Errors != 0 {
					t.Errorf("%d ops, %d errors (%s)", m.Ops, m.Errors, m.FirstError)
				}
			})
		}
	}
}

// A server that stops for 200 ms delays, at a constant rate over 500 ms, two
// requests in five, by 100 ms on average. A generator that waits for a reply
// before it counts the next request sees only one slow request per connection.
func TestOpenLoopChargesAStallToAllWhoWait(t *testing.T) {
	for name, d := range drivers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const pause = 200 * time.Millisecond
			var resume time.Time
			ready := make(chan struct{}) // closed once resume is set
			f := newFake(t, func(n int64, _ string) string {
				switch {
				case n == 300:
					resume = time.Now().Add(pause)
					close(ready)
					fallthrough
				case n > 300:
					<-ready
					time.Sleep(time.Until(resume))
				}
				return ""
			})
			o := small(f.addr)
			o.driver, o.Prefill = d, false
			o.Conns, o.Rate, o.Ops = 2, 2000, 1000
			m := run(t, o).Targets[0].Total
			if m.Ops != o.Ops {
				t.Fatalf("%d ops, want %d", m.Ops, o.Ops)
			}
			// Requests wait up to 200 ms, evenly: a quarter of all over 75 ms.
			if m.Get.P999 < 150_000 || m.Get.P90 < 75_000 {
				t.Errorf("the stall does not show: %+v", m.Get)
			}
		})
	}
}

// With more than the server can do, what the schedule had until the end is
// either answered or reported.
func TestOverloadIsReported(t *testing.T) {
	for name, d := range drivers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, func(int64, string) string { time.Sleep(5 * time.Millisecond); return "" })
			o := small(f.addr)
			o.driver, o.Prefill = d, false
			o.Conns, o.Rate, o.Ops, o.Timeout = 2, 10_000, 2000, 300*time.Millisecond
			m := run(t, o).Targets[0].Total
			checkSums(t, m)
			if m.Unanswered == 0 || m.Ops == 0 || m.Ops+m.Unanswered+m.Errors != o.Ops {
				t.Errorf("%d ops, %d errors, %d unanswered do not make %d", m.Ops, m.Errors, m.Unanswered, o.Ops)
			}
		})
	}
}

func TestSilentServerIsGivenUp(t *testing.T) {
	for name, d := range drivers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, func(n int64, _ string) string {
				if n > 100 {
					return silent
				}
				return ""
			})
			o := small(f.addr)
			o.driver, o.Prefill, o.Timeout, o.Ops, o.Duration = d, false, 500*time.Millisecond, 0, time.Minute
			m := run(t, o).Targets[0].Total
			if m.Ops != 100 || m.Unanswered != int64(o.Conns) || !strings.Contains(m.FirstError, "no reply for 500ms") {
				t.Errorf("%d ops, %d unanswered, first error %q", m.Ops, m.Unanswered, m.FirstError)
			}
		})
	}
}

func TestErrorRepliesAreCountedAndShown(t *testing.T) {
	for name, d := range drivers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, func(n int64, _ string) string {
				if n%10 == 0 {
					return "SERVER_ERROR out of memory storing object\r\n"
				}
				return ""
			})
			o := small(f.addr)
			o.driver, o.Prefill = d, false
			r := run(t, o)
			m := r.Targets[0].Total
			checkSums(t, m)
			if m.Errors != 100 || m.Ops != 900 || m.ConnectionsLost != 0 {
				t.Errorf("%d errors, %d ops, %d lost; want 100, 900, 0", m.Errors, m.Ops, m.ConnectionsLost)
			}
			want := f.addr + ": 100 errors, 0 unanswered, 0 connections lost; the first: SERVER_ERROR out of memory storing object"
			if err := r.Failure(); err == nil || err.Error() != want {
				t.Errorf("failure: %v\n   want: %s", err, want)
			}
		})
	}
}

func TestNonsenseCostsTheConnection(t *testing.T) {
	for name, d := range drivers {
		for _, bad := range []string{hangup, "VALUE other 0 1\r\nx\r\nEND\r\n", "STORED\r\n", "END\r\nEND\r\n", "nonsense\r\n"} {
			t.Run(fmt.Sprintf("%s/%q", name, bad), func(t *testing.T) {
				t.Parallel()
				f := newFake(t, func(n int64, _ string) string {
					if n == 20 {
						return bad
					}
					return ""
				})
				o := small(f.addr)
				o.driver, o.Prefill, o.Rounds, o.Ratio = d, false, 2, Ratio{1, 0}
				r := run(t, o)
				m := r.Targets[0].Rounds[0]
				if m.ConnectionsLost != 1 || !strings.HasPrefix(m.FirstError, "connection ") {
					t.Errorf("%d lost, first %q; want 1 and its story", m.ConnectionsLost, m.FirstError)
				}
				if err := r.Failure(); err == nil || !strings.Contains(err.Error(), "1 connections lost; the first: connection ") {
					t.Errorf("failure: %v", err)
				}
				if m := r.Targets[0].Rounds[1]; m.ConnectionsLost != 0 || m.Ops != o.Ops {
					t.Errorf("the next round, reconnected: %d lost, %d ops", m.ConnectionsLost, m.Ops)
				}
			})
		}
	}
}

func TestAllConnectionsLost(t *testing.T) {
	f := newFake(t, func(n int64, _ string) string {
		if n > 50 {
			return hangup
		}
		return ""
	})
	o := small(f.addr)
	o.Prefill = false
	r, err := Run(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "all connections to "+f.addr+" were lost") {
		t.Errorf("error %v", err)
	}
	if !r.Measured() || r.Targets[0].Total.Ops != 50 {
		t.Errorf("what was measured before is not in the report: %+v", r)
	}
}

func TestVerifySeesAWrongValue(t *testing.T) {
	f := newFake(t, nil)
	o := small(f.addr)
	o.Keys, o.Ratio = 1, Ratio{1, 0}
	run(t, o) // fills
	f.mu.Lock()
	for k, v := range f.items {
		wrong := []byte(string(v))
		wrong[len(wrong)-1] ^= 1
		f.items[k] = wrong
	}
	f.mu.Unlock()
	o.Prefill = false
	if m := run(t, o).Targets[0].Total; m.Errors != 0 {
		t.Errorf("%d errors without Verify", m.Errors)
	}
	o.Verify = true
	if m := run(t, o).Targets[0].Total; m.Errors != o.Ops || !strings.Contains(m.FirstError, "not the one stored") {
		t.Errorf("%d errors, first %q", m.Errors, m.FirstError)
	}
}

// Deep pipelines of large values must neither deadlock, though the server reads
// nothing while its replies are not taken, nor hold all of them in memory.
func TestLargeValuesInADeepPipeline(t *testing.T) {
	for name, d := range drivers {
		t.Run(name, func(t *testing.T) {
			o := small(newFake(t, nil).addr)
			o.driver, o.Verify = d, true
			o.Conns, o.Pipeline, o.Keys, o.Ratio, o.Ops = 3, 16, 4, Ratio{1, 1}, 200
			o.Values = Sizes{1 << 20, 1<<20 + 7}
			m := run(t, o).Targets[0].Total
			checkSums(t, m)
			if m.Ops != o.Ops || m.Errors != 0 {
				t.Errorf("%d ops, %d errors (%s)", m.Ops, m.Errors, m.FirstError)
			}
		})
	}
}

func TestCancelReportsWhatWasMeasured(t *testing.T) {
	for name, d := range drivers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, nil)
			ctx, cancel := context.WithCancel(t.Context())
			o := small(f.addr)
			o.driver, o.Ops, o.Duration = d, 0, time.Hour
			o.VS, o.Rounds = f.addr, 3
			o.Progress = func(p Progress) {
				if p.Stage == "B, round 1/3" && p.Rate > 0 {
					cancel()
				}
			}
			o.Duration = 300 * time.Millisecond
			r, err := Run(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			if !r.Interrupted || len(r.Targets[0].Rounds) != 1 || len(r.Targets[1].Rounds) != 1 || r.Targets[1].Total.Ops == 0 {
				t.Errorf("interrupted %v, %d and %d rounds", r.Interrupted, len(r.Targets[0].Rounds), len(r.Targets[1].Rounds))
			}
		})
	}
}

func TestProgressNamesItsStages(t *testing.T) {
	f := newFake(t, nil)
	o := small(f.addr)
	o.VS, o.Rounds, o.Warmup = f.addr, 2, 10*time.Millisecond
	var stages []string
	o.Progress = func(p Progress) {
		if p.Fraction < 0 || p.Fraction > 1 || p.Rate < 0 {
			t.Errorf("%+v", p)
		}
		if len(stages) == 0 || stages[len(stages)-1] != p.Stage {
			stages = append(stages, p.Stage)
		}
	}
	run(t, o)
	want := "prefill A; prefill B; warm-up A, round 1/2; A, round 1/2; warm-up B, round 1/2; B, round 1/2; " +
		"warm-up A, round 2/2; A, round 2/2; warm-up B, round 2/2; B, round 2/2"
	if got := strings.Join(stages, "; "); got != want {
		t.Errorf("stages %s\n  want %s", got, want)
	}
}

func TestServersThatCannotBeMeasured(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	o := small(nobody)
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nobody listens: %v", err)
	}

	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() {
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	o = small(other.Addr().String())
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "does not answer as a memcache server") {
		t.Errorf("another kind of server: %v", err)
	}

	f := newFake(t, func(int64, string) string { return "SERVER_ERROR full\r\n" })
	o = small(f.addr)
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "200 of 200 keys were not stored: SERVER_ERROR full") {
		t.Errorf("a server that stores nothing: %v", err)
	}

	o = small(newFake(t, nil).addr)
	o.PID = PIDs{os.Getpid(), 1 << 30}
	if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "CPU time of") {
		t.Errorf("no such process: %v", err)
	}
}

func TestServerCPU(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	f := newFake(t, nil)
	o := small(f.addr)
	o.PID, o.Ops, o.Duration = PIDs{os.Getpid()}, 0, 300*time.Millisecond
	m := run(t, o).Targets[0].Total
	// Server and generator are one process here: both clocks must agree, but for
	// the 10 ms that /proc counts in, twice.
	if m.ServerCPU == nil || m.OwnCPU.Seconds < 0.03 {
		t.Fatalf("own %+v, server %+v", m.OwnCPU, m.ServerCPU)
	}
	if d := m.ServerCPU.Seconds - m.OwnCPU.Seconds; d < -0.03 || d > 0.03 {
		t.Errorf("CPU of this process is %.3f s by getrusage, %.3f s by /proc", m.OwnCPU.Seconds, m.ServerCPU.Seconds)
	}
	if m.ServerCPU.PerOp <= 0 || m.ServerCPU.OpsPerSecond <= 0 {
		t.Errorf("%+v", m.ServerCPU)
	}
}

func TestServerCPUIsOfAllProcesses(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	parent, err := serverCPU(os.Getppid())
	if err != nil {
		t.Fatal(err)
	}
	own, err := serverCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	tg := &target{pids: PIDs{os.Getpid(), os.Getppid()}}
	// The go command that waits for this test may use a little meanwhile.
	if sum, err := tg.serverCPU(); err != nil || sum < own+parent || sum > own+parent+time.Second {
		t.Errorf("%s of two processes that used %s and %s: %v", sum, own, parent, err)
	}
}

// A real memcached, with what it alone can show: that its words are ours.
func TestMemcached(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "mc")
	attunetest.StartMemcached(t, "-s", socket)
	for name, d := range drivers {
		for _, protocol := range []string{"text", "meta", "binary"} {
			t.Run(name+"/"+protocol, func(t *testing.T) {
				o := small("unix:" + socket)
				o.driver, o.Protocol, o.Pipeline, o.Verify = d, protocol, 8, true
				o.Values, o.Dist = Sizes{0, 50_000}, "zipf"
				r := run(t, o)
				m := r.Targets[0].Total
				checkSums(t, m)
				if m.Ops != o.Ops || m.Errors != 0 || m.Misses != 0 || r.Targets[0].Version == "" {
					t.Errorf("%d ops, %d errors (%s), %d misses, version %q", m.Ops, m.Errors, m.FirstError, m.Misses, r.Targets[0].Version)
				}
				i := small("unix:" + socket)
				i.driver, i.Protocol, i.Pipeline, i.Incr, i.Keys = d, protocol, 8, true, 1
				if m := run(t, i).Targets[0].Total; m.Stored != i.Ops || m.Errors != 0 {
					t.Errorf("%d of %d incrs, %d errors (%s)", m.Stored, i.Ops, m.Errors, m.FirstError)
				}
				o.Values, o.Prefill = Sizes{2 << 20, 2 << 20}, false
				o.Ops, o.Ratio = 20, Ratio{0, 1}
				m = run(t, o).Targets[0].Total
				if m.Errors != o.Ops || !strings.Contains(strings.ToLower(m.FirstError), "too large") {
					t.Errorf("too large: %d errors, first %q", m.Errors, m.FirstError)
				}
			})
		}
	}
}
