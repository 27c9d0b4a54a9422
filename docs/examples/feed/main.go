// Feed has an author who posts at one controller, a friend who answers what he reads
// at another one, and a reader at a third, who looks for the post when he sees the
// answer. An answer to a post that is not there is an effect before its cause.
//
//	go run ./docs/examples/feed -servers 127.0.0.1:8000,127.0.0.1:8001,127.0.0.1:8002
//
// The exit status is 1 if that happened.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/attunekv/attune/client"
)

// patience is how long a post may take to its readers.
const patience = 10 * time.Second

func main() {
	servers := flag.String("servers", "127.0.0.1:8000,127.0.0.1:8001,127.0.0.1:8002", "three controllers: the author's, the friend's, the reader's")
	posts := flag.Int("posts", 500, "how many there are")
	flag.Parse()
	list := strings.Split(*servers, ",")
	if len(list) != 3 {
		fmt.Fprintln(os.Stderr, "-servers are three: the author's, the friend's and the reader's")
		os.Exit(2)
	}
	author, friend, reader := client.New(list[0]), client.New(list[1]), client.New(list[2])
	feed := fmt.Sprintf("feed:%d", time.Now().UnixNano())

	// The friend answers each post as soon as it is there.
	var people sync.WaitGroup
	people.Go(func() {
		for i := range *posts {
			post := await(friend, fmt.Sprintf("%s:post:%d", feed, i))
			write(friend, fmt.Sprintf("%s:answer:%d", feed, i), "to "+post)
		}
	})
	// The reader finds answers, and looks for what they answer.
	lost := 0
	people.Go(func() {
		for i := range *posts {
			await(reader, fmt.Sprintf("%s:answer:%d", feed, i))
			if _, ok := read(reader, fmt.Sprintf("%s:post:%d", feed, i)); !ok {
				lost++
			}
		}
	})
	for i := range *posts {
		write(author, fmt.Sprintf("%s:post:%d", feed, i), fmt.Sprint("post ", i))
		time.Sleep(time.Millisecond)
	}
	people.Wait()
	fmt.Printf("answers %d, without their post %d\n", *posts, lost)
	if lost > 0 {
		os.Exit(1)
	}
}

// await reads a key until it is there.
func await(c *client.Client, key string) string {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if value, ok := read(c, key); ok {
			return value
		}
	}
	check(fmt.Errorf("%s does not come to %s", key, c.Controller()))
	return ""
}

func read(c *client.Client, key string) (value string, ok bool) {
	item, err := c.Get(key)
	if errors.Is(err, memcache.ErrCacheMiss) {
		return "", false
	}
	check(err)
	return string(item.Value), true
}

func write(c *client.Client, key, value string) {
	check(c.Set(&memcache.Item{Key: key, Value: []byte(value), Expiration: 600}))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
