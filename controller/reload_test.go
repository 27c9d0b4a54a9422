package controller

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency"
)

// Settings change under load, at every level and with either driver, and no command
// is lost: the race detector sees what else is wrong.
func TestReconfigureUnderLoad(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Eventual} {
		for _, goroutines := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v goroutines %v", level, goroutines), func(t *testing.T) {
				cfg := clusterConfig(t, level)
				cfg.goroutines, cfg.Admin = goroutines, "127.0.0.1:0"
				n := start(t, cfg)
				clients := make([]*client, 4)
				for i := range clients {
					clients[i] = dial(t, n)
				}
				var running sync.WaitGroup
				done := make(chan struct{})
				for i, c := range clients {
					running.Go(func() {
						for k := 0; ; k++ {
							select {
							case <-done:
								return
							default:
							}
							c.ask(fmt.Sprintf("set k%d-%d 0 0 3\r\nabc\r\nappend k%d-%d 0 0 1\r\nd\r\nget k%d-%d\r\n", i, k%10, i, k%10, i, k%10),
								fmt.Sprintf("STORED\r\nSTORED\r\nVALUE k%d-%d 0 4\r\nabcd\r\nEND\r\n", i, k%10))
						}
					})
				}
				for i := range 50 {
					next := cfg
					next.MemoryLimit, next.MaxItemSize = int64(64+i)<<20, (1+i)<<10
					next.IdleTimeout = time.Duration(i%2) * time.Minute
					next.MaxSkew, next.TombstoneMaxAge = time.Duration(1+i)*time.Second, time.Hour+time.Duration(i)
					next.RepairRate, next.MaxConns, next.DrainTimeout = int64(i), 100+i, 5*time.Second
					if err := n.Reconfigure(next); err != nil {
						t.Error(err)
					}
				}
				close(done)
				running.Wait()
				if got := n.inUse(); got.MaxItemSize != 50<<10 || got.Listen[0] != cfg.Listen[0] {
					t.Errorf("%+v", got)
				}
				if level == consistency.Eventual {
					if got := sample(t, metrics(t, n), "attune_gossip_max_skew_seconds").GetGauge().GetValue(); got != 50 {
						t.Errorf("max-skew is 50 s, and %v in the metrics", got)
					}
				}
			})
		}
	}
}

// What makes no sense with what cannot change is refused whole.
func TestReconfigureRefuses(t *testing.T) {
	cfg := testConfig()
	n := start(t, cfg)
	for _, change := range []func(*Config){
		func(c *Config) { c.WriteAcks, c.Expect = 2, 3 }, // it is alone until a restart
		func(c *Config) { c.MemoryLimit = 1 },
		func(c *Config) { c.MaxConns, c.Backend = 5, "memcached://127.0.0.1:1" },
		func(c *Config) { c.OpTimeout = -1 },
	} {
		next := cfg
		change(&next)
		if err := n.Reconfigure(next); err == nil || n.inUse() != &n.cfg {
			t.Errorf("%+v was taken: %v", next, err)
		}
	}
}
