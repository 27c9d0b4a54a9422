// Package memtest gives the tests of client and shell something to talk to: a
// small server that can be stopped, restarted on the same address, and made to
// misbehave.
package memtest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fake is a memcache server that knows gets, set, incr, version and stats, and
// does what a test tells it otherwise.
type Fake struct {
	Addr string

	t    testing.TB
	wg   sync.WaitGroup
	mu   sync.Mutex // guards the rest
	ln   net.Listener
	open map[net.Conn]bool
	data map[string]string

	seen int                          // requests received
	hook func(line string) (r string) // see Answer
}

// Serve starts a Fake on 127.0.0.1, or on a unix socket if path is not empty.
// The test's end stops it.
func Serve(t testing.TB, path string) *Fake {
	f := &Fake{t: t, Addr: "127.0.0.1:0", data: map[string]string{}, open: map[net.Conn]bool{}}
	if path != "" {
		f.Addr = path
	}
	f.Start()
	t.Cleanup(f.Stop)
	return f
}

// Start listens again after Stop, on the same address.
func (f *Fake) Start() {
	network := "tcp"
	if strings.Contains(f.Addr, "/") {
		network = "unix"
	}
	ln, err := net.Listen(network, f.Addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.ln, f.Addr = ln, ln.Addr().String()
	f.mu.Unlock()
	f.wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.open[nc] = true
			f.mu.Unlock()
			f.wg.Go(func() { f.serve(nc) })
		}
	})
}

// Stop refuses connections and closes those there are, as a killed process does.
func (f *Fake) Stop() {
	f.mu.Lock()
	f.ln.Close()
	for nc := range f.open {
		nc.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

// Answer lets hook reply to request lines: "" is the usual reply, "hang" no
// reply, "close" none and an end of file, anything else is sent with a line end.
func (f *Fake) Answer(hook func(line string) string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Seen returns how many requests were received.
func (f *Fake) Seen() int { f.mu.Lock(); defer f.mu.Unlock(); return f.seen }

// WaitConns waits until n connections are open: a client's close takes a moment
// to be noticed here.
func (f *Fake) WaitConns(n int) {
	f.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		open := len(f.open)
		f.mu.Unlock()
		if open == n {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("%d connections are open, want %d", open, n)
		}
	}
}

func (f *Fake) serve(nc net.Conn) {
	defer func() {
		nc.Close()
		f.mu.Lock()
		delete(f.open, nc)
		f.mu.Unlock()
	}()
	r := bufio.NewReader(nc)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		reply, err := f.reply(strings.Fields(line), r)
		if err != nil || reply == "close" {
			return
		}
		if reply != "hang" {
			io.WriteString(nc, reply+"\r\n")
		}
	}
}

func (f *Fake) reply(w []string, r io.Reader) (string, error) {
	var block []byte
	if len(w) >= 5 && w[0] == "set" {
		n, _ := strconv.Atoi(w[4])
		block = make([]byte, n+2)
		if _, err := io.ReadFull(r, block); err != nil {
			return "", err
		}
		block = block[:n]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen++
	if f.hook != nil {
		if s := f.hook(strings.Join(w, " ")); s != "" {
			return s, nil
		}
	}
	switch {
	case len(w) == 0:
		return "ERROR", nil
	case w[0] == "gets":
		var b strings.Builder
		for _, k := range w[1:] {
			if v, ok := f.data[k]; ok {
				fmt.Fprintf(&b, "VALUE %s 0 %d 1\r\n%s\r\n", k, len(v), v)
			}
		}
		return b.String() + "END", nil
	case block != nil:
		f.data[w[1]] = string(block)
		return "STORED", nil
	case w[0] == "incr":
		n, _ := strconv.Atoi(f.data[w[1]])
		f.data[w[1]] = strconv.Itoa(n + 1)
		return f.data[w[1]], nil
	case w[0] == "version":
		return "VERSION 1.6.0-fake", nil
	case w[0] == "stats":
		return "STAT pid 1\r\nSTAT version 1.6.0-fake\r\nEND", nil
	}
	return "ERROR", nil
}
