package gossip

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
)

// overServers opens a node in front of n memcached servers.
func overServers(t *testing.T, n int, query string) (*node, []*attunetest.Memcached) {
	spec := "memcached://"
	servers := make([]*attunetest.Memcached, n)
	for i := range servers {
		servers[i] = attunetest.StartMemcached(t)
		if i > 0 {
			spec += ","
		}
		spec += servers[i].Addr
	}
	b, err := kvadapter.Open(spec + query)
	if err != nil {
		t.Fatal(err)
	}
	return open(t, b, 0), servers
}

// As long as nothing happens to them, memcached servers lose nothing.
func TestSoakMemcached(t *testing.T) {
	n, _ := overServers(t, 2, "?timeout=10s")
	s := &soak{node: n}
	if !s.run(time.Now().Add(soakTime(t))) {
		t.Fail()
	}
	s.tell()
	if gone := s.replica.Stats().Gone; gone != 0 {
		t.Errorf("the bytes of %d items were lost", gone)
	}
}

// Whatever happens to memcached servers, an old value is never seen again.
func TestSoakMemcachedWithFaults(t *testing.T) {
	n, servers := overServers(t, 2, "?timeout=40ms")
	s := &soak{node: n, lossy: true, hurry: true}
	end := time.Now().Add(2 * soakTime(t))
	var wait sync.WaitGroup
	wait.Go(func() {
		for time.Now().Before(end) {
			server := servers[rand.N(len(servers))]
			switch rand.N(2) {
			case 0:
				server.Kill()
				time.Sleep(rand.N(30 * time.Millisecond))
				server.Start()
			case 1:
				// What clients send meanwhile is read when it goes on, given up or not.
				server.Pause()
				time.Sleep(rand.N(100 * time.Millisecond))
				server.Resume()
			}
			time.Sleep(rand.N(100 * time.Millisecond))
		}
	})
	wait.Go(func() { s.meddle(servers, end) })
	if !s.run(end) {
		t.Fail()
	}
	wait.Wait()
	s.tell()
	st := n.replica.Stats()
	if st.Gone == 0 || st.Staged != 0 {
		t.Errorf("%+v", st)
	}
	// In the end it is as good as new.
	for i := range 20 {
		key := fmt.Sprint("after", i)
		for tries := 0; n.set(key, "v").Status != attune.Stored || n.get(key).Status != attune.Hit; tries++ {
			if tries == 100 {
				t.Fatalf("still fails: %v", n.set(key, "v").Err)
			}
			time.Sleep(20 * time.Millisecond) // a server that hung is tried again only now and then
		}
	}
}

// meddle is somebody else with access to the servers, who does to the items of
// the soak what one would rather not see.
func (s *soak) meddle(servers []*attunetest.Memcached, end time.Time) {
	var old *memcache.Item
	for time.Now().Before(end) {
		time.Sleep(rand.N(2 * time.Millisecond))
		c := memcache.New(servers[rand.N(len(servers))].Addr)
		c.Timeout = 20 * time.Millisecond
		key := s.text(rand.N(soakKeys))
		// Errors are the servers': they are being mistreated.
		switch rand.N(8) {
		case 0:
			_ = c.FlushAll()
		case 1:
			_ = c.Delete(key)
		case 2:
			_ = c.Set(&memcache.Item{Key: key, Value: []byte("12345")})
		case 3:
			_ = c.Append(&memcache.Item{Key: key, Value: []byte("9")})
		case 4, 5:
			if item, err := c.Get(key); err == nil {
				old = item
			}
		case 6, 7: // as if the server came back with what it held a while ago
			if old != nil {
				_ = c.Set(old)
			}
		}
		_ = c.Close()
	}
}
