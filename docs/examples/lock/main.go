// Lock lets workers, each at a controller of its own, take one lock over and over,
// and counts how often two of them had it at once.
//
//	go run ./docs/examples/lock -servers 127.0.0.1:8000,127.0.0.1:8001,127.0.0.1:8002
//
// The exit status is 1 if that happened, or if a token went back.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune/client"
)

// A lock is a key that ms adds (mode E) if there is none. It has a TTL, for holders
// that die. Its cas unique is the holder's token: it grows from holder to holder.
type lock struct {
	c   *client.Client
	key string
	ttl time.Duration
}

// take returns the token if it got the lock, "" if another one has it. After an
// error nobody knows: whoever has it then, the TTL frees it.
func (l *lock) take() (token string, err error) {
	return l.do(fmt.Sprintf("ms %s 1 T%d ME c\r\nx\r\n", l.key, int(l.ttl.Seconds())))
}

// release deletes the lock only if its token is still this one. A plain delete
// would free somebody else's lock, if the TTL was over.
func (l *lock) release(token string) error {
	_, err := l.do(fmt.Sprintf("md %s C%s\r\n", l.key, token))
	return err
}

// do sends a meta command. It returns the cas unique if the answer is HD and has one.
func (l *lock) do(command string) (token string, err error) {
	err = l.c.Raw(context.Background(), []byte(command), func(line, _ []byte) bool {
		if rest, ok := strings.CutPrefix(string(line), "HD c"); ok {
			token = rest
		}
		return false
	})
	return token, err
}

func main() {
	servers := flag.String("servers", "127.0.0.1:8000,127.0.0.1:8001,127.0.0.1:8002", "controllers; each has a worker")
	lasts := flag.Duration("for", 3*time.Second, "how long to go on")
	ttl := flag.Duration("ttl", 2*time.Second, "TTL of the lock, whole seconds")
	flag.Parse()

	var inside, taken, twice, back, unknown atomic.Int64
	var guard resource
	key := fmt.Sprintf("lock:%d", time.Now().UnixNano())
	end := time.Now().Add(*lasts)
	var workers sync.WaitGroup
	for _, server := range strings.Split(*servers, ",") {
		workers.Go(func() {
			l := &lock{client.New(server), key, *ttl}
			defer l.c.Close()
			for time.Now().Before(end) {
				token, err := l.take()
				switch {
				case err != nil:
					unknown.Add(1)
				case token == "":
				default:
					taken.Add(1)
					if inside.Add(1) > 1 {
						twice.Add(1)
					}
					if !guard.use(token) {
						back.Add(1)
					}
					time.Sleep(2 * time.Millisecond) // the work that must not be done by two
					inside.Add(-1)
					if l.release(token) != nil {
						unknown.Add(1)
					}
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	workers.Wait()
	fmt.Printf("taken %d, by two at once %d, tokens that went back %d, unknown outcomes %d\n",
		taken.Load(), twice.Load(), back.Load(), unknown.Load())
	if twice.Load() > 0 || back.Load() > 0 {
		os.Exit(1)
	}
}

// resource is what the lock is for. It refuses a token older than one that it has
// seen: so a holder that slept through its TTL does no harm.
type resource struct {
	mu     sync.Mutex
	newest string
}

// use reports whether the token is newer than all before it.
func (r *resource) use(token string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(token) < len(r.newest) || len(token) == len(r.newest) && token <= r.newest {
		return false
	}
	r.newest = token
	return true
}
