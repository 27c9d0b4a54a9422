package controller

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/replica"
)

func explain(t *testing.T, n *Node, key string) *explanation {
	t.Helper()
	code, body := httpGet(t, n, "/explain?key="+url.QueryEscape(key))
	x := new(explanation)
	if err := json.Unmarshal([]byte(body), x); code != 200 || err != nil {
		t.Fatalf("%d %s: %v", code, body, err)
	}
	return x
}

// everywhere waits until all three have something of a key, in a state.
func everywhere(t *testing.T, n *Node, key string, state replica.State) (x *explanation) {
	t.Helper()
	attunetest.Eventually(t, key+" is "+string(state)+" on all", func() bool {
		x = explain(t, n, key)
		for _, c := range x.Copies {
			if c.State != state || c.Version != x.Copies[0].Version {
				return false
			}
		}
		return len(x.Copies) == 3
	})
	return x
}

func TestExplain(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Eventual} {
		t.Run(level.String(), func(t *testing.T) {
			nodes := startThree(t, level, func(_ int, cfg *Config) { cfg.MaxSkew = time.Minute })
			c := dial(t, nodes[0])
			c.ask("set k 7 100 5\r\nvalue\r\n", "STORED\r\n")
			x := everywhere(t, nodes[1], "k", replica.Present)
			if x.Get != "hit" || x.Controller != "n2" || x.Level != level.String() || x.Shard != 1 || x.Shards != 1 || !strings.Contains(x.Why, "in memory") {
				t.Errorf("%+v", x)
			}
			if gossips := level >= consistency.Causal; gossips == (x.Leader != "") || gossips == (x.Home == "") {
				t.Errorf("leader %q, home %q", x.Leader, x.Home)
			}
			for i, held := range x.Copies {
				if held.Controller != nodes[i].cfg.Name || held.Size != 5 || held.Flags != 7 || held.Bytes != replica.InMemory || held.Stored != held.Version ||
					held.TTL < 90_000 || held.TTL > 110_000 || time.Since(time.UnixMilli(held.Changed)).Abs() > time.Minute {
					t.Errorf("%+v", held)
				}
			}
			stored := x.Copies[0].Stored
			c.ask("touch k 1000\r\n", "TOUCHED\r\n")
			attunetest.Eventually(t, "all are touched", func() bool {
				x = everywhere(t, nodes[2], "k", replica.Present)
				return x.Copies[0].TTL > 900_000
			})
			if got := x.Copies[2]; got.Stored != stored || got.Version <= stored || x.Get != "hit" {
				t.Errorf("%+v after a touch of %d", x, stored)
			}
			c.ask("delete k\r\n", "DELETED\r\n")
			gone := replica.Absent
			if level >= consistency.Causal {
				gone = replica.Deleted
			}
			if x = everywhere(t, nodes[0], "k", gone); x.Get != "miss" {
				t.Errorf("%+v", x)
			}
			if x = explain(t, nodes[0], "with blank \x00"); x.Get != "miss" || x.Why == "" {
				t.Errorf("%+v", x)
			}

			// One that is gone is named.
			nodes[2].Close(context.Background())
			c.ask("set k 0 -1 1\r\nv\r\n", "STORED\r\n")
			attunetest.Eventually(t, "n3 is missed or has left", func() bool {
				x = explain(t, nodes[0], "k")
				return len(x.Copies) == 2 || x.Copies[2].Error != ""
			})
			if x.Get != "miss" {
				t.Errorf("%+v", x)
			}
			for path, want := range map[string]int{"/explain": 400, "/explain?key=" + strings.Repeat("k", 251): 400} {
				if code, body := httpGet(t, nodes[0], path); code != want {
					t.Errorf("%.20s: %d %s", path, code, body)
				}
			}
			if code, _ := httpDo(t, nodes[0], "POST", "/explain?key=k", ""); code != 405 {
				t.Errorf("POST: %d", code)
			}
		})
	}
}

// A get without a quorum is refused, and who does not answer is named.
func TestExplainWithoutQuorum(t *testing.T) {
	nodes := startThree(t, consistency.Linearizable, func(i int, cfg *Config) {
		cfg.OpTimeout = 500 * time.Millisecond
		cfg.DataDir = t.TempDir() // else who leaves takes its vote along
	})
	closeAll(nodes[1:]...)
	attunetest.Eventually(t, "the leader is missed", func() bool { return nodes[0].Ready() != nil })
	x := explain(t, nodes[0], "k")
	if x.Get != "refused" || !strings.Contains(x.Why, "quorum") {
		t.Errorf("%+v", x)
	}
}

func TestExplainOfOneAlone(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	cfg.Level = consistency.Eventual
	n := start(t, cfg)
	dial(t, n).ask("set k 0 0 1\r\nv\r\n", "STORED\r\n")
	if x := explain(t, n, "k"); x.Get != "hit" || len(x.Copies) != 1 || x.Home != "" || x.Leader != "" {
		t.Errorf("%+v", x)
	}
}

func TestExplainBytesThatAreLost(t *testing.T) {
	m := attunetest.StartMemcached(t)
	cfg := testConfig()
	cfg.Admin, cfg.Backend, cfg.HotCache = "127.0.0.1:0", "memcached://"+m.Addr+"?timeout=200ms", 0
	n := start(t, cfg)
	dial(t, n).ask("set k 0 0 1\r\nv\r\n", "STORED\r\n")
	if x := explain(t, n, "k"); x.Get != "hit" || x.Copies[0].Bytes != replica.InStore {
		t.Errorf("%+v", x)
	}
	m.Kill()
	if x := explain(t, n, "k"); x.Get != "refused" || x.Copies[0].Bytes != replica.Unknown || x.Copies[0].StoreError == "" {
		t.Errorf("%+v", x)
	}
}

func TestJudge(t *testing.T) {
	expired := keyCopy{State: replica.Present, Bytes: replica.InMemory, Version: 9, Expires: 1, TTL: -1500}
	lacking := keyCopy{State: replica.Present, Bytes: replica.Lost, Version: 9, Stored: 9}
	silent := keyCopy{State: replica.Present, Bytes: replica.Unknown, Version: 9, Stored: 9, StoreError: "down"}
	has := keyCopy{State: replica.Present, Bytes: replica.InHot, Version: 9, Stored: 9}
	newer := keyCopy{State: replica.Present, Bytes: replica.InMemory, Version: 10, Stored: 10}
	for name, c := range map[string]struct {
		own, other keyCopy
		refused    error
		forgets    bool
		get, why   string
	}{
		"expired":             {own: expired, get: "miss", why: "expired 1.5s ago"},
		"lost":                {own: lacking, other: keyCopy{State: replica.Absent}, get: "miss", why: "nobody else has them"},
		"lost, one is silent": {own: lacking, other: keyCopy{Error: "no answer"}, get: "refused", why: "n2 may have them"},
		"the same of a cache": {own: lacking, other: keyCopy{Error: "no answer"}, forgets: true, get: "miss", why: "n2 may have them"},
		"lost here":           {own: lacking, other: has, get: "hit", why: "come from n2"},
		"out of reach":        {own: silent, other: newer, get: "refused", why: "down"},
		"out of reach here":   {own: silent, other: has, get: "hit", why: "come from n2"},
		"behind":              {own: has, other: newer, get: "hit", why: "n2 has a newer version"},
		"not there yet":       {own: keyCopy{State: replica.Absent}, other: newer, get: "miss", why: "n2 has a newer version"},
		"evicted":             {own: keyCopy{State: replica.Evicted, Version: 9}, get: "miss", why: "evicted"},
		"flushed":             {own: keyCopy{State: replica.Flushed, Version: 9}, get: "miss", why: "flush_all"},
		"freed":               {own: keyCopy{State: replica.Freed, Version: 9}, get: "miss", why: "expired"},
		"no quorum":           {own: has, refused: errors.New("no quorum"), get: "refused", why: "no quorum"},
		"staged":              {own: keyCopy{State: replica.Present, Bytes: replica.Staged}, get: "hit", why: "on its way"},
	} {
		c.own.Controller, c.other.Controller = "n1", "n2"
		x := explanation{Controller: "n1", Copies: []keyCopy{c.own, c.other}, forgets: c.forgets}
		if x.judge(c.refused); x.Get != c.get || !strings.Contains(x.Why, c.why) {
			t.Errorf("%s: %s, %q", name, x.Get, x.Why)
		}
	}
}
