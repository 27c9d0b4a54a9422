package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReplies(t *testing.T) {
	for in, want := range map[string]reply{
		"+OK\r\n":           {line: "OK"},
		":2\r\n":            {number: 2},
		"$2\r\n\r\n\r\n":    {bulk: []byte("\r\n")},
		"$5\r\nhello\r\n+O": {bulk: []byte("hello")},
		"$-1\r\n":           {},
	} {
		got, err := readReply(bufio.NewReader(strings.NewReader(in)))
		if err != nil || got.line != want.line || got.number != want.number || !bytes.Equal(got.bulk, want.bulk) {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", "\n", "\r\n", "+OK\n", "+OK", ":\r\n", ":x\r\n", "$-2\r\n", "$99999999999\r\n", "$5\r\nhell", "$4\r\nhello\r\n",
		"*1\r\n", "END\r\n", "-ERR no\r\n", strings.Repeat("+", 8192),
	} {
		if got, err := readReply(bufio.NewReader(strings.NewReader(in))); err == nil {
			t.Errorf("%q was taken for %+v", in, got)
		}
	}
}

// Whatever bytes come, reading them ends, without a panic.
func TestRepliesOfRandomBytes(t *testing.T) {
	const alphabet = "+-:$*0123459\r\n\r\n\r\nOK"
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		b := make([]byte, rng.IntN(40))
		for i := range b {
			b[i] = alphabet[rng.IntN(len(alphabet))]
		}
		in := bufio.NewReader(bytes.NewReader(b))
		for range len(b) + 1 {
			if _, err := readReply(in); err != nil {
				break
			}
		}
	}
}

// fakeRedis answers SET, GET and WAIT, the last with replicas.
func fakeRedis(t *testing.T, replicas int) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards items
	items := map[string]string{}
	serve := func(c net.Conn) {
		defer c.Close()
		in, out := bufio.NewReader(c), bufio.NewWriter(c)
		for {
			var n int
			if _, err := fmt.Fscanf(in, "*%d\r\n", &n); err != nil {
				return
			}
			words := make([]string, n)
			for i := range words {
				r, err := readReply(in)
				if err != nil {
					return
				}
				words[i] = string(r.bulk)
			}
			mu.Lock()
			switch words[0] {
			case "INFO":
				fmt.Fprintf(out, "$25\r\n# Server\r\nredis_version:7\r\n")
			case "SET":
				items[words[1]] = words[2]
				fmt.Fprintf(out, "+OK\r\n")
			case "GET":
				fmt.Fprintf(out, "$%d\r\n%s\r\n", len(items[words[1]]), items[words[1]])
			case "WAIT":
				fmt.Fprintf(out, ":%d\r\n", replicas)
			}
			mu.Unlock()
			if in.Buffered() == 0 && out.Flush() != nil {
				return
			}
		}
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { serve(c) }) // ends when the load closes its end
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

func redisOptions(addr string) *options {
	return &options{
		system: "redis", servers: []string{addr}, pids: []int{os.Getpid()}, conns: 3, pipeline: 4, channels: 1,
		keys: 20, value: 10, duration: 50 * time.Millisecond, timeout: 5 * time.Second,
	}
}

func TestRedisLoad(t *testing.T) {
	o := redisOptions(fakeRedis(t, 1))
	p, err := open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	names := keyNames(o.keys)
	if err := fill(t.Context(), p, "set", names); err != nil {
		t.Fatal(err)
	}
	for _, kind := range p.kinds() {
		m, err := measure(t.Context(), p, o, kind, names)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if n := m.latency.TotalCount(); n == 0 || n%4 != 0 || m.elapsed < o.duration {
			t.Errorf("%s: %d requests in %s", kind, n, m.elapsed)
		}
		var b bytes.Buffer
		if err := m.write(&b, kind); err != nil || !strings.Contains(b.String(), "server CPU") || !strings.Contains(b.String(), "   "+kind+"  ") {
			t.Errorf("%v\n%s", err, &b)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := load(ctx, p, o, "get", names, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled load: %v", err)
	}
}

func TestRedisWithoutReplicaIsRefused(t *testing.T) {
	if _, err := open(t.Context(), redisOptions(fakeRedis(t, 0))); err == nil || !strings.Contains(err.Error(), "no replica") {
		t.Error(err)
	}
}

// A get that misses is not the load that was asked for.
func TestRedisGetOfAMissingKeyEndsTheLoad(t *testing.T) {
	o := redisOptions(fakeRedis(t, 1))
	p, err := open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if _, err := load(t.Context(), p, o, "get", keyNames(1), time.Hour); err == nil || !strings.Contains(err.Error(), "not the one stored") {
		t.Error(err)
	}
}

func TestOptionsAreBounded(t *testing.T) {
	for flag, bad := range map[string]func(*options){
		"--servers":  func(o *options) { o.servers = []string{"a:1", "b:1"} },
		"--conns":    func(o *options) { o.conns = 0 },
		"--pipeline": func(o *options) { o.pipeline = maxPipeline + 1 },
		"--channels": func(o *options) { o.channels = 0 },
		"--keys":     func(o *options) { o.keys = maxKeys + 1 },
		"--value":    func(o *options) { o.value = 0 },
		"--pids":     func(o *options) { o.pids = []int{0} },
		"--duration": func(o *options) { o.duration = 0 },
	} {
		o := redisOptions("127.0.0.1:1")
		if err := o.valid(); err != nil {
			t.Fatal(err)
		}
		bad(o)
		if err := o.valid(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}
