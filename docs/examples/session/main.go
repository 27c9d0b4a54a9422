// Session logs users in at one controller, and sends each one's next request at once
// to the same controller, to another one over a connection that was open before, and
// to another one over a new connection. Then it logs them out, and asks again.
//
//	go run ./docs/examples/session -servers 127.0.0.1:8000,127.0.0.1:8001
//
// The exit status is 1 if a session was not found, or found after it had ended.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/attunekv/attune/client"
)

// A place is where the request after a login goes to.
type place struct {
	name string
	// open returns the client to ask with, and close is what to do with it after.
	open  func() *client.Client
	close func(*client.Client)
}

// patience is how long all controllers may take to hear of something.
const patience = 10 * time.Second

func main() {
	servers := flag.String("servers", "127.0.0.1:8000,127.0.0.1:8001,127.0.0.1:8002", "controllers: the first, and the last, are used")
	users := flag.Int("users", 500, "how many log in, for each place")
	flag.Parse()

	list := strings.Split(*servers, ",")
	here, there := list[0], list[len(list)-1]
	first, other := client.New(here), client.New(there)
	defer first.Close()
	defer other.Close()
	leave := func(*client.Client) {}
	places := []place{
		{"the same connection", func() *client.Client { return first }, leave},
		{"another controller", func() *client.Client { return other }, leave},
		{"another controller, new connection", func() *client.Client { return client.New(there) }, func(c *client.Client) { c.Close() }},
	}
	strange := false
	for i, p := range places {
		missed, ghosts := 0, 0
		for user := range *users {
			key := fmt.Sprintf("session:%d:%d:%d", time.Now().UnixNano(), i, user)
			check(first.Set(&memcache.Item{Key: key, Value: []byte("Ada"), Expiration: 60}))
			if !found(p, key) {
				missed++
			}
			// A user logs out later. By then everybody has heard of the login.
			for end := time.Now().Add(patience); !found(places[1], key); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					check(fmt.Errorf("%s does not hear of what %s was told", there, here))
				}
			}
			check(first.Delete(key))
			if found(p, key) {
				ghosts++
			}
		}
		fmt.Printf("%-36s logged in and not known %d, logged out and still known %d, of %d\n", p.name+":", missed, ghosts, *users)
		strange = strange || missed+ghosts > 0
	}
	if strange {
		os.Exit(1)
	}
}

// found asks for a session at a place.
func found(p place, key string) bool {
	c := p.open()
	defer p.close(c)
	_, err := c.Get(key)
	if errors.Is(err, memcache.ErrCacheMiss) {
		return false
	}
	check(err)
	return true
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
