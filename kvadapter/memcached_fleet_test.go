package kvadapter_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/testbed"
)

// memcachedServer is a server that a test may mistreat: a real memcached where
// one is installed, else fakeMemcached.
type memcachedServer interface {
	Start()  // after Kill: the same address, empty
	Kill()   // gone, connections closed
	Pause()  // accepts and reads nothing any more
	Resume() // after Pause
}

// startMemcached starts a server, a real one with these arguments, and returns it
// and its address. It ends with the test.
func startMemcached(t testing.TB, args ...string) (memcachedServer, string) {
	t.Helper()
	if _, err := testbed.FindMemcached(); err == nil {
		m := attunetest.StartMemcached(t, args...)
		return m, m.Addr
	}
	f := startFake(t)
	return f, f.addr
}

func startFake(t testing.TB) *fakeMemcached {
	t.Helper()
	f := &fakeMemcached{t: t, addr: attunetest.FreeAddr(t)}
	f.Start()
	t.Cleanup(f.Kill)
	return f
}

// fakeMemcached knows gets, set, delete, stats and the listing of keys, as far as the
// adapter does.
type fakeMemcached struct {
	t    testing.TB
	addr string

	hanging sync.RWMutex // held for writing while the server hangs
	hung    bool         // the test holds hanging

	listener net.Listener
	sessions sync.WaitGroup

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]bool
	items map[string][]byte
}

func (f *fakeMemcached) Start() {
	f.t.Helper()
	l, err := net.Listen("tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.listener, f.conns, f.items = l, make(map[net.Conn]bool), make(map[string][]byte)
	f.sessions.Go(f.accept)
}

func (f *fakeMemcached) accept() {
	for {
		nc, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.conns[nc] = true
		f.mu.Unlock()
		f.sessions.Go(func() { f.serve(nc) })
	}
}

func (f *fakeMemcached) Kill() {
	if f.listener == nil {
		return
	}
	if f.hung {
		f.hung = false
		f.hanging.Unlock()
	}
	f.listener.Close()
	f.mu.Lock()
	for nc := range f.conns {
		nc.Close()
	}
	f.mu.Unlock()
	f.sessions.Wait()
	f.listener = nil
}

func (f *fakeMemcached) Pause()  { f.hanging.Lock(); f.hung = true }
func (f *fakeMemcached) Resume() { f.hung = false; f.hanging.Unlock() }

func (f *fakeMemcached) serve(nc net.Conn) {
	defer nc.Close()
	r := bufio.NewReader(nc)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.Fields(line)
		var block []byte
		if words[0] == "set" {
			size, _ := strconv.Atoi(words[4])
			block = make([]byte, size+2)
			if _, err := io.ReadFull(r, block); err != nil {
				return
			}
			block = block[:size]
		}
		f.hanging.RLock()
		reply := f.answer(words, block)
		f.hanging.RUnlock()
		if _, err := nc.Write(reply); err != nil {
			return
		}
	}
}

func (f *fakeMemcached) answer(words []string, block []byte) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch words[0] {
	case "set":
		if len(block) > 1<<20-512 {
			delete(f.items, words[1])
			return []byte("SERVER_ERROR object too large for cache\r\n")
		}
		f.items[words[1]] = block
		return []byte("STORED\r\n")
	case "gets":
		var reply bytes.Buffer
		for _, key := range words[1:] {
			if value, ok := f.items[key]; ok {
				fmt.Fprintf(&reply, "VALUE %s 0 %d 1\r\n%s\r\n", key, len(value), value)
			}
		}
		reply.WriteString("END\r\n")
		return reply.Bytes()
	case "delete":
		if _, ok := f.items[words[1]]; !ok {
			return []byte("NOT_FOUND\r\n")
		}
		delete(f.items, words[1])
		return []byte("DELETED\r\n")
	case "stats":
		return fmt.Appendf(nil, "STAT pid 1\r\nSTAT curr_items %d\r\nEND\r\n", len(f.items))
	case "lru_crawler":
		var reply bytes.Buffer
		for key, value := range f.items {
			quoted := strings.ReplaceAll(url.QueryEscape(key), "+", "%20")
			fmt.Fprintf(&reply, "key=%s exp=-1 la=1700000000 cas=1 fetch=no cls=1 size=%d\n", quoted, 48+len(key)+len(value))
		}
		reply.WriteString("END\r\n")
		return reply.Bytes()
	}
	return []byte("ERROR\r\n")
}

// TestFakeMemcached keeps the fake honest where the real one runs in its place.
func TestFakeMemcached(t *testing.T) {
	f := startFake(t)
	nc, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ask := func(request, want string) {
		t.Helper()
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(nc, request); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(nc, got); err != nil || string(got) != want {
			t.Fatalf("%q: got %q, %v; want %q", request, got, err, want)
		}
	}
	ask("set a 0 0 3\r\nabc\r\n", "STORED\r\n")
	ask("gets a b\r\n", "VALUE a 0 3 1\r\nabc\r\nEND\r\n")
	ask("stats\r\n", "STAT pid 1\r\nSTAT curr_items 1\r\nEND\r\n")
	ask("lru_crawler metadump hash\r\n", "key=a exp=-1 la=1700000000 cas=1 fetch=no cls=1 size=52\nEND\r\n")
	ask("delete a\r\n", "DELETED\r\n")
	ask("delete a\r\n", "NOT_FOUND\r\n")
	f.Pause()
	if _, err := io.WriteString(nc, "gets a\r\n"); err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("hanging, it answers: %v", err)
	}
	f.Resume()
	ask("", "END\r\n")
}
