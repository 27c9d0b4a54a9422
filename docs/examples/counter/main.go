// Counter has workers, each at a controller of its own, count on one key, and
// compares what was counted with what is there.
//
//	go run ./docs/examples/counter -how incr    # or cas, or set
//
// The exit status is 1 if increments are missing, or two returned one number.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/attunekv/attune/client"
)

// errAgain: somebody else was faster, and nothing was done.
var errAgain = errors.New("again")

// The ways to add one to a key, which begins to exist with the first one. After an
// error other than errAgain it may have been done, or not.
var ways = map[string]func(c *client.Client, key string) (uint64, error){
	"incr": incr, "cas": cas, "set": set,
}

// incr leaves the counting to the cluster.
func incr(c *client.Client, key string) (uint64, error) {
	n, err := c.Increment(key, 1)
	if errors.Is(err, memcache.ErrCacheMiss) {
		return begin(c, key)
	}
	return n, err
}

// cas reads, counts here, and stores only if nobody else has since.
func cas(c *client.Client, key string) (uint64, error) {
	item, err := c.Get(key)
	if errors.Is(err, memcache.ErrCacheMiss) {
		return begin(c, key)
	}
	if err != nil {
		return 0, errAgain // a read: nothing was done
	}
	n := number(item) + 1
	item.Value = []byte(strconv.FormatUint(n, 10))
	err = c.CompareAndSwap(item)
	if errors.Is(err, memcache.ErrCASConflict) || errors.Is(err, memcache.ErrCacheMiss) {
		return 0, errAgain
	}
	return n, err
}

// set is how not to do it: what others store between its read and its write is lost.
func set(c *client.Client, key string) (uint64, error) {
	item, err := c.Get(key)
	if errors.Is(err, memcache.ErrCacheMiss) {
		return begin(c, key)
	}
	if err != nil {
		return 0, errAgain
	}
	n := number(item) + 1
	return n, c.Set(&memcache.Item{Key: key, Value: []byte(strconv.FormatUint(n, 10))})
}

// begin makes the counter, if nobody else does.
func begin(c *client.Client, key string) (uint64, error) {
	err := c.Add(&memcache.Item{Key: key, Value: []byte("1")})
	if errors.Is(err, memcache.ErrNotStored) {
		return 0, errAgain
	}
	return 1, err
}

func number(item *memcache.Item) uint64 {
	n, _ := strconv.ParseUint(string(item.Value), 10, 64) // only this program writes it
	return n
}

func main() {
	servers := flag.String("servers", "127.0.0.1:8000,127.0.0.1:8001,127.0.0.1:8002", "controllers; each has a worker")
	lasts := flag.Duration("for", time.Second, "how long to count")
	how := flag.String("how", "incr", "incr, cas, or set")
	flag.Parse()
	add := ways[*how]
	if add == nil {
		fmt.Fprintln(os.Stderr, "-how is incr, cas or set, not", *how)
		os.Exit(2)
	}

	key := fmt.Sprintf("counter:%d", time.Now().UnixNano())
	var counted, unknown atomic.Uint64
	var mu sync.Mutex
	given := make(map[uint64]int) // how often each number was returned; guarded by mu
	var workers sync.WaitGroup
	end := time.Now().Add(*lasts)
	list := strings.Split(*servers, ",")
	for _, server := range list {
		workers.Go(func() {
			c := client.New(server)
			defer c.Close()
			for time.Now().Before(end) {
				n, err := add(c, key)
				switch {
				case errors.Is(err, errAgain):
				case err != nil:
					unknown.Add(1)
				default:
					counted.Add(1)
					mu.Lock()
					given[n]++
					mu.Unlock()
				}
			}
		})
	}
	workers.Wait()

	twice := 0
	for _, times := range given {
		twice += times - 1
	}
	most := report(list, key)
	// What is unknown may have been counted, so that more may be there than counted.
	missing := uint64(0)
	if most < counted.Load() {
		missing = counted.Load() - most
	}
	fmt.Printf("%s: counted %d, missing %d, numbers given twice %d, unknown outcomes %d\n",
		*how, counted.Load(), missing, twice, unknown.Load())
	if missing > 0 || twice > 0 {
		os.Exit(1)
	}
}

// report prints what each controller says that the counter is, and returns the
// largest. It gives them a moment to tell each other.
func report(servers []string, key string) (most uint64) {
	time.Sleep(100 * time.Millisecond)
	for _, server := range servers {
		c := client.New(server)
		item, err := c.Get(key)
		c.Close()
		if err != nil {
			fmt.Printf("%s: %v\n", server, err)
			continue
		}
		fmt.Printf("%s: %d\n", server, number(item))
		most = max(most, number(item))
	}
	return most
}
