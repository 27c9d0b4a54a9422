package faults

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

// Kill any one memcached: no lost key, no stale answer, no connection dropped. One
// that is back is full before the next one goes.
func TestKillAnyOneMemcached(t *testing.T) {
	for _, level := range []string{linearizable, causal, sequential, eventual}[:pick(2, 4)] {
		t.Run(level, func(t *testing.T) {
			s := start(t, attunetest.ClusterOptions{Level: level, Memcached: true, Args: []string{"--op-timeout", "3s"}})
			values := s.fill(s.Nodes[0], "kept", 100)
			for _, n := range s.Nodes {
				s.spread(n, values)
				s.holds(n.Memcached, values)
			}
			w := s.watch(level == linearizable)
			victims := s.Nodes
			if !long {
				i := rand.IntN(len(victims))
				victims = victims[i : i+1]
			}
			for _, n := range victims {
				t.Logf("the memcached of %s dies", n.Name)
				w.progress()
				n.Memcached.Kill()
				for _, m := range s.Nodes {
					s.reads(m, values)
				}
				w.progress()
				n.Memcached.Start()
				if long {
					s.holds(n.Memcached, values)
				}
				w.progress()
			}
			for _, n := range s.Nodes {
				s.reads(n, values)
			}
			w.end()
			t.Logf("%d answers, %d of them errors: %q", w.answers.Load(), len(w.errors.all), w.errors.all[:min(3, len(w.errors.all))])
			t.Run("no lost key", func(t *testing.T) { w.lost.judge(t) })
			t.Run("no stale answer", func(t *testing.T) { w.stale.judge(t) })
			t.Run("no connection dropped", func(t *testing.T) { w.dropped.judge(t) })
		})
	}
}

// watchers are clients with a connection each, that write a key of their own, count
// up, and read what they and the others wrote.
type watchers struct {
	s       *stage
	fresh   bool // a read shows what was acknowledged before it, by whomever
	stop    chan struct{}
	running sync.WaitGroup
	all     []*watcher

	answers              atomic.Int64
	lost, stale, dropped complaints
	errors               complaints
}

type watcher struct {
	*watchers
	key   string
	conn  net.Conn
	in    *bufio.Reader
	acked atomic.Int64 // of its key
	tried int64
	seen  []int64 // of each one's key, on this connection
}

// watchersEach is how many connections a controller has of them.
const watchersEach = 4

func (s *stage) watch(fresh bool) *watchers {
	s.t.Helper()
	ws := &watchers{s: s, fresh: fresh, stop: make(chan struct{})}
	for _, n := range s.Nodes {
		for range watchersEach {
			c, err := net.Dial("tcp", n.Listen)
			if err != nil {
				s.t.Fatal(err)
			}
			s.t.Cleanup(func() { c.Close() })
			ws.all = append(ws.all, &watcher{
				watchers: ws, key: fmt.Sprint("own-", n.Name, "-", len(ws.all)), conn: c, in: bufio.NewReader(c),
				seen: make([]int64, watchersEach*len(s.Nodes)),
			})
		}
	}
	for i, w := range ws.all {
		ws.running.Go(func() { w.run(i) })
	}
	return ws
}

// progress waits until the watchers had some more answers.
func (ws *watchers) progress() {
	ws.s.t.Helper()
	begin := ws.answers.Load()
	attunetest.Eventually(ws.s.t, "clients are answered", func() bool { return ws.answers.Load() >= begin+500 })
}

func (ws *watchers) end() {
	close(ws.stop)
	ws.running.Wait()
}

func (w *watcher) run(me int) {
	for i := 0; ; i++ {
		select {
		case <-w.stop:
			return
		case <-time.After(time.Duration(rand.IntN(4)) * time.Millisecond):
		}
		ok := true
		switch i % 3 {
		case 0:
			ok = w.set(me)
		case 1:
			ok = w.get(me)
		case 2:
			ok = w.get(rand.IntN(len(w.all)))
		}
		if !ok {
			return
		}
	}
}

// say sends a request and returns the first line of the answer. ok is false if the
// connection is of no use any more.
func (w *watcher) say(request string) (line string, ok bool) {
	_ = w.conn.SetDeadline(time.Now().Add(attunetest.Patience)) // fails if closed, as what follows then does
	_, err := io.WriteString(w.conn, request)
	if err == nil {
		line, err = w.in.ReadString('\n')
	}
	if err != nil {
		w.dropped.add("%s: %q: %v", w.key, request, err)
		return "", false
	}
	w.answers.Add(1)
	if strings.HasPrefix(line, "SERVER_ERROR") {
		w.errors.add("%s: %q: %s", w.key, request, line)
		if strings.Contains(line, "backend") { // the others have what one has not
			w.lost.add("%s: %q: %s", w.key, request, line)
		}
	}
	return strings.TrimSpace(line), true
}

func (w *watcher) set(me int) bool {
	w.tried++
	value := fmt.Sprintf("%010d", w.tried)
	line, ok := w.say(fmt.Sprintf("set %s 0 0 %d\r\n%s\r\n", w.key, len(value), value))
	if line == "STORED" {
		w.acked.Store(w.tried)
		w.seen[me] = w.tried
	}
	return ok
}

// get reads the key of one of them.
func (w *watcher) get(whose int) bool {
	other := w.all[whose]
	least := w.seen[whose]
	if w.fresh {
		least = max(least, other.acked.Load())
	}
	line, ok := w.say("get " + other.key + "\r\n")
	switch {
	case !ok:
		return false
	case strings.HasPrefix(line, "SERVER_ERROR"):
		return true
	case line == "END":
		if least > 0 {
			w.lost.add("%s reads no %s, which was %d", w.key, other.key, least)
		}
		return true
	}
	value, err := w.in.ReadString('\n')
	end := ""
	if err == nil {
		end, err = w.in.ReadString('\n')
	}
	n, bad := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
	switch {
	case err != nil || end != "END\r\n":
		w.dropped.add("%s: in the middle of an answer: %q %q %v", w.key, value, end, err)
		return false
	case bad != nil || n < least || other == w && n > w.tried:
		w.stale.add("%s reads %s as %q, at least %d", w.key, other.key, value, least)
		return true
	}
	w.seen[whose] = n
	return true
}

// complaints are what should not have been.
type complaints struct {
	mu  sync.Mutex
	all []string
}

func (c *complaints) add(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (c *complaints) judge(t *testing.T) {
	t.Helper()
	for i, what := range c.all {
		if i == 5 {
			t.Fatalf("%d in all", len(c.all))
		}
		t.Error(what)
	}
}
