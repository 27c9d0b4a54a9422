package controller

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

func TestLargeValues(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		c := dial(t, start(t, cfg))
		for i, size := range []int{32<<10 - 2, 32<<10 - 1, 32 << 10, 32<<10 + 1, inSize - 1, inSize, inSize + 1, 64 << 10, 1<<20 - 1, 1 << 20} {
			// Something small behind and before each, all in one write.
			key, v := fmt.Sprint("k", size), pattern(size, i)
			c.ask(fmt.Sprintf("set s 0 0 1\r\n%d\r\nset %s 3 0 %d\r\n%s\r\nget s\r\nget %s s %s\r\nmn\r\n", i, key, size, v, key, key),
				fmt.Sprintf("STORED\r\nSTORED\r\nVALUE s 0 1\r\n%d\r\nEND\r\nVALUE %s 3 %d\r\n%s\r\nVALUE s 0 1\r\n%d\r\nVALUE %s 3 %d\r\n%s\r\nEND\r\nMN\r\n",
					i, key, size, v, i, key, size, v))
		}
	})
}

// TestRepliesSurviveOverwriting: a large value that a reply refers to is not
// disturbed by what the same pipeline does to its key next.
func TestRepliesSurviveOverwriting(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		c := dial(t, start(t, cfg))
		var ask, reply bytes.Buffer
		for i := range 60 {
			v := pattern(32<<10+i%3*1000, i)
			small := pattern(100+i, i)
			fmt.Fprintf(&ask, "set k 0 0 %d\r\n%s\r\nget k\r\nset j 0 0 %d\r\n%s\r\nget j\r\n", len(v), v, len(small), small)
			fmt.Fprintf(&reply, "STORED\r\nVALUE k 0 %d\r\n%s\r\nEND\r\nSTORED\r\nVALUE j 0 %d\r\n%s\r\nEND\r\n", len(v), v, len(small), small)
			if i%4 == 3 {
				ask.WriteString("delete k\r\nget k\r\n")
				reply.WriteString("DELETED\r\nEND\r\n")
			}
		}
		go c.Write(ask.Bytes())
		c.want(reply.String())
	})
}

func TestTooLargeIsSwallowed(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		c := dial(t, start(t, cfg))
		const refusal = "SERVER_ERROR object too large for cache\r\n"
		over := strings.Repeat("get k\r\n", 1<<18) // would be commands, were it not swallowed
		c.set("k", []byte("old"))
		c.ask(fmt.Sprintf("add k 0 0 %d\r\n%s\r\nget k\r\n", len(over), over), refusal+"VALUE k 0 3\r\nold\r\nEND\r\n")
		c.ask(fmt.Sprintf("set k 0 0 %d\r\n%s\r\nget k\r\n", len(over), over), refusal+"END\r\n")
		c.set("k", []byte("old"))
		c.ask(fmt.Sprintf("ms k %d\r\n%s\r\nmg k v\r\n", len(over), over), refusal+"EN\r\n")
		c.ask(fmt.Sprintf("set k 0 0 %d\r\n%s\r\nget k\r\n", cfg.MaxItemSize, over[:cfg.MaxItemSize]),
			"STORED\r\n"+fmt.Sprintf("VALUE k 0 %d\r\n%s\r\nEND\r\n", cfg.MaxItemSize, over[:cfg.MaxItemSize]))
	})
}

// watchHeap samples the heap until the returned function is called, which says
// how far it rose above where it was.
func watchHeap() (rise func() uint64) {
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	runtime.GC()
	base := heap()
	var most atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			most.Store(max(most.Load(), heap()))
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-done
		return max(most.Load(), base) - base
	}
}

func TestHugeValueIsNotBufferedTwice(t *testing.T) {
	const size = 20 << 20
	for _, goroutines := range []bool{false, true} {
		t.Run(fmt.Sprint("goroutines=", goroutines), func(t *testing.T) {
			cfg := testConfig()
			cfg.MaxItemSize = 32 << 20
			cfg.goroutines = goroutines
			c := dial(t, start(t, cfg))
			piece := pattern(1<<20, 3)

			rise := watchHeap()
			c.send(fmt.Sprintf("set k 0 0 %d\r\n", size))
			for range size / len(piece) {
				if _, err := c.Write(piece); err != nil {
					t.Fatal(err)
				}
			}
			c.ask("\r\n", "STORED\r\n")
			if r := rise(); r > 2*size {
				t.Errorf("heap rose by %d MiB while %d MiB were stored", r>>20, size>>20)
			} else {
				t.Logf("heap rose by %.1f MiB while %d MiB were stored", float64(r)/(1<<20), size>>20)
			}

			rise = watchHeap()
			c.ask("get k\r\n", fmt.Sprintf("VALUE k 0 %d\r\n", size))
			got := make([]byte, len(piece))
			for i := range size / len(piece) {
				if _, err := io.ReadFull(c.r, got); err != nil || !bytes.Equal(got, piece) {
					t.Fatalf("MiB %d differs (%v)", i, err)
				}
			}
			c.want("\r\nEND\r\n")
			if r := rise(); r > size/2 {
				t.Errorf("heap rose by %d MiB while %d MiB were read", r>>20, size>>20)
			}
		})
	}
}

// TestSlowReadersAreBounded: clients that ask for much and read nothing cost
// their reply buffers and no more, and hold up nobody.
func TestSlowReadersAreBounded(t *testing.T) {
	const slow = 20
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		c := dial(t, n)
		var big, mixed strings.Builder // different keys: equal ones may share memory
		for i := range 32 {
			c.set(fmt.Sprint("big", i), pattern(1<<20, i))
			fmt.Fprintf(&big, "get big%d\r\n", i)
			fmt.Fprintf(&mixed, "mg big%d v\r\nget mid mid mid mid\r\n", i)
		}
		c.set("mid", pattern(10<<10, 2))
		before := heapInUse()
		var sent sinkCount
		for i := range slow {
			d := dial(t, n)
			d.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
			ask := strings.Repeat([]string{big.String(), "get mid\r\n", mixed.String()}[i%3], 5000)
			d.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
			sent.add(func() int { n, _ := io.WriteString(d, ask); return n })
		}
		for worst, i := time.Duration(0), 0; i < 200; i++ {
			began := time.Now()
			c.ask("get none\r\nset x 0 0 1\r\nx\r\n", "END\r\nSTORED\r\n")
			if worst = max(worst, time.Since(began)); worst > 5*time.Second {
				t.Fatalf("others waited %v", worst)
			}
		}
		sent.wait()
		time.Sleep(300 * time.Millisecond) // for the node to do its worst
		// Each may hold highWater of copied replies, one value by reference (or its
		// own copy, where it comes over a network) and a workspace.
		perClient := int64(3*highWater + inSize + 128<<10)
		if cfg.Backend != "embedded" {
			perClient += 1 << 20
		}
		grown := heapInUse() - before
		t.Logf("%d clients hold %.1f MiB of heap", slow, float64(grown)/(1<<20))
		if bound := slow * perClient; grown > bound {
			t.Errorf("%d clients hold %d MiB of heap, more than %d", slow, grown>>20, bound>>20)
		}
		if got := n.curConns.Load(); got != slow+1 {
			t.Errorf("%d connections, want %d: a slow one is no reason to close it", got, slow+1)
		}
	})
}

// sinkCount waits for writers that may block.
type sinkCount struct{ done []chan struct{} }

func (s *sinkCount) add(write func() int) {
	done := make(chan struct{})
	s.done = append(s.done, done)
	go func() { defer close(done); write() }()
}

func (s *sinkCount) wait() {
	for _, d := range s.done {
		<-d
	}
}

func TestIdleTimeout(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		cfg.IdleTimeout = 400 * time.Millisecond
		n := start(t, cfg)
		c := dial(t, n)
		c.set("big", pattern(1<<20, 1))
		deaf := dial(t, n) // asks, and does not read
		deaf.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		deaf.send(strings.Repeat("get big\r\n", 50))
		silent := dial(t, n)
		half := dial(t, n)
		half.send("set k 0 0 10\r\nhal")
		for range 10 { // in use, it outlives the timeout
			time.Sleep(100 * time.Millisecond)
			c.ask("get none\r\n", "END\r\n")
		}
		silent.end()
		half.end()
		attunetest.Eventually(t, "only the one in use is left", func() bool { return n.curConns.Load() == 1 })
		c.ask("get none\r\n", "END\r\n")
	})
}

// TestGreedyReaderHoldsUpNobody: a client that reads as fast as it is served
// gets its turn like everybody else.
func TestGreedyReaderHoldsUpNobody(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		c := dial(t, n)
		c.set("big", pattern(1<<20, 1))
		var greedy sinkCount
		for range 2 { // one for each loop of a small machine
			d := dial(t, n)
			ask := strings.Repeat("get big\r\n", 500)
			greedy.add(func() int { n, _ := io.WriteString(d, ask); return n })
			greedy.add(func() int { n, _ := io.CopyN(io.Discard, d, 1<<27); d.Close(); return int(n) })
		}
		worst := time.Duration(0)
		for range 50 {
			began := time.Now()
			c.ask("get none\r\n", "END\r\n")
			worst = max(worst, time.Since(began))
		}
		t.Logf("others waited %v at most", worst)
		if worst > time.Second {
			t.Errorf("others waited %v", worst)
		}
		greedy.wait()
	})
}
