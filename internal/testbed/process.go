package testbed

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Patience is how long to wait for what should come at once: enough for a busy
// machine under the race detector.
const Patience = 30 * time.Second

// Launch starts cmd, which dies with this process on Linux and does not hear what a
// terminal tells its foreground, such as Ctrl-C. The channel is closed when it has
// ended; cmd.ProcessState is set then.
func Launch(cmd *exec.Cmd) (exited <-chan struct{}, err error) {
	setApart(cmd)
	started, done := make(chan error), make(chan struct{})
	go func() {
		defer close(done)
		// To Linux the parent is a thread: this one is kept as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // whoever cares looks at ProcessState
		}
	}()
	if err := <-started; err != nil {
		<-done
		return nil, err
	}
	return done, nil
}

// blockSize is how many ports this process takes at a time.
const blockSize = 100

// blocks are the ports that this process has for itself: of each block the first is
// listened on until it ends, which keeps others of its kind out.
var blocks struct {
	sync.Mutex
	guards    []net.Listener
	next, end int // ports of the last block that are not given away
}

// FreeAddr returns an address of host that nobody listens on; see [FreePorts].
func FreeAddr(host string) (string, error) {
	port, err := FreePorts(host, 1)
	return net.JoinHostPort(host, fmt.Sprint(port)), err
}

// FreePorts returns the first of n ports in a row, up to 99, on which nobody listens
// at host, TCP nor UDP. No other call returns them, in this process or in another
// that runs. They are below the ports that systems give to outgoing connections: one
// that is used again and again, by a process that is killed and started, must not be
// anybody's in between.
func FreePorts(host string, n int) (int, error) {
	blocks.Lock()
	defer blocks.Unlock()
	var last error
	free := 0 // how many before next are
	for range 1000 {
		if blocks.next+n-free > blocks.end {
			first := 10_000 + rand.IntN(20_000/blockSize)*blockSize
			guard, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(first)))
			if last = err; err == nil {
				blocks.guards = append(blocks.guards, guard)
				blocks.next, blocks.end, free = first+1, first+blockSize, 0
			}
			continue
		}
		blocks.next++
		if last = unused(net.JoinHostPort(host, fmt.Sprint(blocks.next-1))); last != nil {
			free = 0
		} else if free++; free == n {
			return blocks.next - n, nil
		}
	}
	return 0, fmt.Errorf("no free port: %w", last)
}

// unused says who listens on an address.
func unused(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	l.Close()
	p, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	return p.Close()
}

// Ready asks /readyz of an admin address and returns the reason if it is not 200.
func Ready(admin string) error {
	body, status, err := httpDo(http.MethodGet, "http://"+admin+"/readyz", nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return errors.New(strings.TrimSpace(body))
	}
	return nil
}

// Environment is that of this process without the settings of whoever started it.
func Environment() (env []string) {
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "ATTUNE_") {
			env = append(env, kv)
		}
	}
	return append(env, "GORACE=halt_on_error=1")
}

// httpDo sends a request and returns what is answered, up to 1 MiB of it.
func httpDo(method, at string, form url.Values) (body string, status int, err error) {
	req, err := http.NewRequest(method, at, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// Each on a connection of its own: one to a process that is killed is no use.
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return string(b), resp.StatusCode, err
}
