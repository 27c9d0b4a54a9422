package controller

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

func TestClientLeavesWhileParked(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		n, engine := open(cfg)
		files := openFiles(t)
		for i, leave := range []func(c *net.TCPConn){
			func(c *net.TCPConn) { c.Close() },
			func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
		} {
			c := dial(t, n)
			c.send(fmt.Sprintf("set k 0 0 1\r\n%d\r\nget k\r\nincr k 5\r\n", i))
			h := engine.next(t, "write")
			leave(c.Conn.(*net.TCPConn))
			time.Sleep(50 * time.Millisecond) // it gets there, and changes nothing
			if got := n.curConns.Load(); got != 1 {
				t.Fatalf("%d connections while the engine works for one", got)
			}
			h.answer()
			engine.next(t, "barrier").answer()
			engine.next(t, "write").answer() // it was sent, so it is done
			attunetest.Eventually(t, "the connection is gone", func() bool { return n.curConns.Load() == 0 })
			attunetest.Eventually(t, "its descriptor is closed", func() bool { return openFiles(t) <= files })
			c = dial(t, n)
			c.send("get k\r\n")
			engine.next(t, "barrier").answer()
			c.want(fmt.Sprintf("VALUE k 0 1\r\n%d\r\nEND\r\n", i+5))
			c.Close()
			attunetest.Eventually(t, "the other is gone", func() bool { return n.curConns.Load() == 0 })
		}
	})
}

// TestClientSendsMoreWhileParked: it is executed after, in order, and waiting
// for that takes no processor time.
func TestClientSendsMoreWhileParked(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		n, engine := open(cfg)
		c := dial(t, n)
		c.send("get k\r\nset k 0 0 1\r\n1\r\n")
		engine.next(t, "barrier").answer()
		h := engine.next(t, "write")
		for range 20 {
			c.send("get k\r\n")
			time.Sleep(time.Millisecond) // more than one packet
		}
		before, began := processorTime(t), time.Now()
		for time.Since(began) < 300*time.Millisecond {
			time.Sleep(10 * time.Millisecond)
		}
		if used := processorTime(t) - before; used > 150*time.Millisecond {
			t.Errorf("%v of processor time to wait %v", used, time.Since(began))
		}
		engine.quiet(t)
		h.answer()
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.want("END\r\nSTORED\r\n" + strings.Repeat("VALUE k 0 1\r\n1\r\nEND\r\n", 20) + "MN\r\n")
		}()
		c.send("mn\r\n")
		for {
			select {
			case h := <-engine.asked:
				if h.kind != "barrier" {
					t.Errorf("asked for a %s", h.kind)
				}
				h.answer()
				continue
			case <-done:
			}
			break
		}
	})
}

// processorTime is what this process has used.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestManyAreAnsweredTogether, from one goroutine, as an engine does that has
// applied a batch.
func TestManyAreAnsweredTogether(t *testing.T) {
	const clients, rounds = 100, 20
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		n, engine := open(cfg)
		stop := make(chan struct{})
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				var batch []*heldCall
				select {
				case h := <-engine.asked:
					batch = append(batch, h)
				case <-stop:
					return
				}
				for len(engine.asked) > 0 {
					batch = append(batch, <-engine.asked)
				}
				for _, h := range batch {
					h.answer()
				}
			}
		}()
		together(t, n, clients, func(i int, c *client) {
			for j := range rounds {
				c.tell("set k%d 0 0 3\r\n%03d\r\nget k%d\r\n", i, j, i)
				want := fmt.Sprintf("STORED\r\nVALUE k%d 0 3\r\n%03d\r\nEND\r\n", i, j)
				got := make([]byte, len(want))
				if _, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
					c.t.Errorf("%q, %v", got, err)
					return
				}
			}
		})
		close(stop)
		<-stopped
	})
}

func TestDrainWaitsForTheEngine(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		cfg.DrainTimeout = patience
		n, engine := open(cfg)
		idle, parked := dial(t, n), dial(t, n)
		idle.ask("mn\r\n", "MN\r\n")
		parked.send("set k 0 0 1\r\n1\r\n")
		h := engine.next(t, "write")
		closed := make(chan error, 1)
		go func() { closed <- n.Close(context.Background()) }()
		idle.end()
		select {
		case err := <-closed:
			t.Fatalf("closed (%v) with a write under way", err)
		default:
		}
		if err := h.c.Ctx.Err(); err != nil {
			t.Errorf("its context has ended: %v", err)
		}
		h.answer()
		parked.want("STORED\r\n")
		parked.end()
		if err := <-closed; err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

// TestCloseEndsWithoutTheEngine: one that answers only when it is closed, or not
// even then, keeps a node no longer than the drain.
func TestCloseEndsWithoutTheEngine(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		for _, mute := range []bool{false, true} {
			files := openFiles(t)
			cfg.DrainTimeout = 300 * time.Millisecond
			cfg.OpTimeout = 0
			n, engine := open(cfg)
			engine.mute = mute
			reader, writer, left := dial(t, n), dial(t, n), dial(t, n)
			var held []*heldCall
			reader.send("get k\r\n")
			held = append(held, engine.next(t, "barrier"))
			writer.send("set k 0 0 40000\r\n" + string(pattern(40_000, 1)) + "\r\n")
			held = append(held, engine.next(t, "write"))
			left.send("incr k 1\r\n")
			held = append(held, engine.next(t, "write"))
			left.Close()
			for _, h := range held {
				if !h.c.Deadline.IsZero() {
					t.Errorf("%s: a deadline, with no op timeout", h.kind)
				}
			}
			began := time.Now()
			err := n.Close(context.Background())
			if err == nil || !strings.Contains(err.Error(), "3 connections did not finish in time") {
				t.Errorf("close says %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("close took %v", took)
			}
			reader.end()
			writer.end()
			for _, h := range held {
				if h.c.Ctx.Err() == nil {
					t.Errorf("%s: nobody said that nobody waits", h.kind)
				}
				if len(h.c.Ops) == 1 && string(h.c.Ops[0].Key.Text) != "k" {
					t.Errorf("what the engine still has was changed: %+v", h.c.Ops)
				}
				if mute {
					h.c.Done() // long after: nobody is there
				}
			}
			reader.Close()
			writer.Close()
			attunetest.Eventually(t, "all descriptors are closed", func() bool { return openFiles(t) <= files })
		}
	})
}

// TestIdleTimeoutSparesTheParked: it is not the client that is slow.
func TestIdleTimeoutSparesTheParked(t *testing.T) {
	eachHeld(t, func(t *testing.T, cfg Config, open func(Config) (*Node, *held)) {
		cfg.IdleTimeout = 200 * time.Millisecond
		n, engine := open(cfg)
		parked := dial(t, n)
		parked.send("get k\r\n")
		h := engine.next(t, "barrier")
		idle := dial(t, n)
		idle.ask("mn\r\n", "MN\r\n")
		idle.end()
		time.Sleep(3 * cfg.IdleTimeout) // each loop looks at its own connections
		h.answer()
		parked.ask("mn\r\n", "END\r\nMN\r\n")
		parked.end() // idle, now
	})
}
