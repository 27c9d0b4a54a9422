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

// given are the addresses that FreeAddr returned before.
var given sync.Map

// FreeAddr returns an address of host that nobody listens on, TCP nor UDP. It is
// below the ports that systems give to outgoing connections: one that is used
// again and again, by a process that is killed and started, must not be anybody's
// in between.
func FreeAddr(host string) (string, error) {
	var last error
	for range 200 {
		addr := net.JoinHostPort(host, fmt.Sprint(10_000+rand.IntN(20_000)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		p, err := net.ListenPacket("udp", addr)
		l.Close()
		if err != nil {
			last = err
			continue
		}
		p.Close()
		if _, again := given.LoadOrStore(addr, true); !again {
			return addr, nil
		}
	}
	return "", fmt.Errorf("no free port: %w", last)
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
