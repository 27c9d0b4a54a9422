package kvadapter_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// memcachedServer is a server that a test may mistreat: a real memcached where
// one is installed, else fakeMemcached.
type memcachedServer interface {
	start(t testing.TB)  // after stop: the same address, empty
	stop()               // gone, connections closed
	hang(t testing.TB)   // accepts and reads nothing any more
	resume(t testing.TB) // after hang
}

// startMemcached starts a server and returns it and its address. It ends with
// the test.
func startMemcached(t testing.TB) (memcachedServer, string) {
	t.Helper()
	addr := freeAddr(t)
	var server memcachedServer = &fakeMemcached{addr: addr}
	if path, err := exec.LookPath("memcached"); err == nil {
		_, port, _ := net.SplitHostPort(addr)
		server = &realMemcached{path: path, network: "tcp", addr: addr, args: []string{"-l", "127.0.0.1", "-p", port, "-U", "0"}}
	}
	server.start(t)
	t.Cleanup(server.stop)
	return server, addr
}

// freeAddr returns a loopback address that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

type realMemcached struct {
	path, network, addr string
	args                []string
	cmd                 *exec.Cmd // nil when stopped
}

func (r *realMemcached) start(t testing.TB) {
	t.Helper()
	args := r.args
	if os.Getuid() == 0 {
		args = append([]string{"-u", "root"}, args...) // memcached wants it said
	}
	r.cmd = exec.Command(r.path, args...)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if nc, err := net.Dial(r.network, r.addr); err == nil {
			nc.Close()
			return
		}
	}
	r.stop()
	t.Fatalf("memcached does not listen on %s", r.addr)
}

func (r *realMemcached) stop() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill() // Wait tells if it was gone already
	_ = r.cmd.Wait()
	r.cmd = nil
}

// hang returns once every thread has stopped: the signal alone leaves them time
// for an answer or two.
func (r *realMemcached) hang(t testing.TB) {
	t.Helper()
	r.signal(t, syscall.SIGSTOP)
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(r.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("memcached does not stop: %v, %v", status, err)
	}
}

func (r *realMemcached) resume(t testing.TB) { r.signal(t, syscall.SIGCONT) }

func (r *realMemcached) signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// fakeMemcached knows gets, set and delete, as far as the adapter does.
type fakeMemcached struct {
	addr string

	hanging sync.RWMutex // held for writing while the server hangs
	hung    bool         // the test holds hanging

	listener net.Listener
	sessions sync.WaitGroup

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]bool
	items map[string][]byte
}

func (f *fakeMemcached) start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
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

func (f *fakeMemcached) stop() {
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

func (f *fakeMemcached) hang(testing.TB)   { f.hanging.Lock(); f.hung = true }
func (f *fakeMemcached) resume(testing.TB) { f.hung = false; f.hanging.Unlock() }

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
	}
	return []byte("ERROR\r\n")
}

// TestFakeMemcached keeps the fake honest where the real one runs in its place.
func TestFakeMemcached(t *testing.T) {
	f := &fakeMemcached{addr: freeAddr(t)}
	f.start(t)
	t.Cleanup(f.stop)
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
	ask("delete a\r\n", "DELETED\r\n")
	ask("delete a\r\n", "NOT_FOUND\r\n")
	f.hang(t)
	if _, err := io.WriteString(nc, "gets a\r\n"); err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("hanging, it answers: %v", err)
	}
	f.resume(t)
	ask("", "END\r\n")
}
