package controller

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// watch opens an event stream that has begun, and returns what reads the next
// event's data.
func watch(t *testing.T, n *Node, prefix string) (next func() (ev watchEvent)) {
	t.Helper()
	c := dialAdmin(t, n)
	c.send("GET /watch?prefix=" + prefix + " HTTP/1.1\r\nHost: localhost\r\n\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%v, %v", resp, err)
	}
	r := bufio.NewReader(resp.Body)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, ":") {
		t.Fatalf("it begins with %q, %v", line, err)
	}
	return func() (ev watchEvent) {
		t.Helper()
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				if err := json.Unmarshal([]byte(data), &ev); err != nil {
					t.Fatalf("%q: %v", data, err)
				}
				return ev
			}
		}
	}
}

// What is written through one controller is seen on another.
func TestWatch(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Sequential, consistency.Causal} {
		t.Run(level.String(), func(t *testing.T) {
			nodes := startThree(t, level)
			var leader string
			if g, ok := nodes[0].group(); ok {
				leader = g.Status().Leader
			}
			next, other := watch(t, nodes[2], "user:"), watch(t, nodes[1], "")
			c := dial(t, nodes[0])
			c.ask("set page 0 0 1\r\nv\r\n", "STORED\r\n")
			for _, step := range []struct{ command, answer, want string }{
				{"set user:1 0 100 5\r\nvalue\r\n", "STORED\r\n", "set user:1 5"},
				{"touch user:1 1000\r\n", "TOUCHED\r\n", "touch user:1 5"},
				{"append user:1 0 0 1\r\n!\r\n", "STORED\r\n", "set user:1 6"},
				{"delete user:1\r\n", "DELETED\r\n", "delete user:1 0"},
				{"flush_all\r\n", "OK\r\n", "flush  0"},
			} {
				c.ask(step.command, step.answer)
				ev := next()
				if got := fmt.Sprint(ev.Verb, " ", ev.Key, " ", ev.Size); got != step.want || ev.Version == 0 {
					t.Errorf("%q: %+v, want %s", step.command, ev, step.want)
				}
				if ev.Verb == "touch" && (ev.TTL < 900_000 || ev.TTL > 1_100_000) {
					t.Errorf("TTL %d", ev.TTL)
				}
				// A touch and an append are decided by their key's home, where there is one.
				if leader != "" && ev.By != leader || leader == "" && ev.By == "" || leader == "" && ev.Verb == "delete" && ev.By != "n1" {
					t.Errorf("%+v was decided by somebody else", ev)
				}
			}
			if ev := other(); ev.Key != "page" || time.Since(time.UnixMilli(ev.Time)).Abs() > time.Minute {
				t.Errorf("%+v", ev)
			}
		})
	}
}

// Who does not read holds nobody up, and is told what it missed.
func TestWatchOfWhoDoesNotRead(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	n := start(t, cfg)
	slow := dialAdmin(t, n)
	slow.send("GET /watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
	attunetest.Eventually(t, "it watches", func() bool { return n.watches.Load() == 1 })
	c := dial(t, n)
	// More than the kernel and the events that are kept have room for.
	pipeline := strings.Repeat("set "+strings.Repeat("k", 200)+" 0 0 1 noreply\r\nv\r\n", 1000)
	for range 60 {
		c.send(pipeline)
		c.ask("mn\r\n", "MN\r\n")
	}
	// While it reads, another key is written again and again: when that shows, all
	// before it is told or counted.
	wait := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(wait)
		for i := 1; ; i++ {
			c.set("end", []byte(strings.Repeat("v", i)))
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	resp, err := http.ReadResponse(slow.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	all, lost := 60_000, 0
	for told, r := 0, bufio.NewScanner(resp.Body); r.Scan(); {
		data, ok := strings.CutPrefix(r.Text(), "data: ")
		if !ok {
			continue
		}
		var ev struct {
			Key        string
			Size, Lost int
		}
		if err := json.Unmarshal([]byte(data), &ev); err != nil {
			t.Fatal(err)
		}
		if lost += ev.Lost; ev.Lost == 0 {
			told++
		}
		if ev.Key == "end" {
			if all += ev.Size; told+lost != all {
				t.Errorf("%d told, %d lost, want %d together", told, lost, all)
			}
			break
		}
	}
	if lost == 0 || all == 60_000 {
		t.Errorf("%d lost of %d", lost, all)
	}
	close(stop)
	<-wait
}

func TestWatchesAreBounded(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	n := start(t, cfg)
	var wait sync.WaitGroup
	codes := make([]int, maxWatches+1)
	for i := range codes {
		c := dialAdmin(t, n)
		c.send("GET /watch?prefix=x HTTP/1.1\r\nHost: localhost\r\n\r\n")
		wait.Go(func() {
			if resp, err := http.ReadResponse(c.r, nil); err == nil {
				codes[i] = resp.StatusCode
			}
		})
	}
	wait.Wait()
	slices.Sort(codes)
	if codes[0] != 200 || codes[maxWatches-1] != 200 || codes[maxWatches] != 503 {
		t.Errorf("%d", codes)
	}
	// They do not hold up the end.
	began := time.Now()
	if err := n.Close(t.Context()); err != nil || time.Since(began) > patience {
		t.Errorf("closed after %v: %v", time.Since(began), err)
	}
}
