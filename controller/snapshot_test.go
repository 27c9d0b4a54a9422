package controller

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/snapshot"
)

// askSnapshot begins a save, of which nothing is read yet.
func askSnapshot(t testing.TB, n *Node) (*client, *http.Response) {
	t.Helper()
	c := dialAdmin(t, n)
	c.send("GET /snapshot HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, resp
}

// readSnapshot reads one to its end.
func readSnapshot(from io.Reader) (items map[string]snapshot.Record, in *snapshot.Reader, err error) {
	if in, err = snapshot.NewReader(from); err != nil {
		return nil, nil, err
	}
	items = make(map[string]snapshot.Record)
	for {
		var rec snapshot.Record
		if err := in.Next(&rec); err == io.EOF {
			return items, in, nil
		} else if err != nil {
			return items, in, err
		}
		rec.Value = bytes.Clone(rec.Value)
		items[string(rec.Key)] = rec
	}
}

func saved(t testing.TB, n *Node) (map[string]snapshot.Record, *snapshot.Reader) {
	t.Helper()
	c, resp := askSnapshot(t, n)
	defer c.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("/snapshot: %d %s", resp.StatusCode, body)
	}
	items, in, err := readSnapshot(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return items, in
}

// What one controller was told, another one saves, at every level.
func TestSnapshotHasEverything(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Sequential, consistency.Causal, consistency.Eventual} {
		t.Run(level.String(), func(t *testing.T) {
			nodes := startThree(t, level, func(_ int, cfg *Config) { cfg.WriteAcks = consistency.AllAcks })
			large := pattern(300_000, 1)
			c := dial(t, nodes[0])
			c.ask("set plain 4294967295 0 1\r\n1\r\n", "STORED\r\n")
			c.ask("set empty 0 0 0\r\n\r\n", "STORED\r\n")
			c.ask("set mortal 0 100 1\r\nm\r\n", "STORED\r\n")
			c.ask("set dead 0 -1 1\r\nd\r\n", "STORED\r\n")
			c.ask("set deleted 0 0 1\r\nd\r\ndelete deleted\r\n", "STORED\r\nDELETED\r\n")
			c.ask("ms AAEK/w== 3 b\r\nbin\r\n", "HD\r\n") // 00 01 0a ff
			c.ask("set old 0 0 1\r\no\r\nmd old I\r\n", "STORED\r\nHD\r\n")
			c.set("large", large)
			for i := range 60 {
				c.set(fmt.Sprint("k", i), pattern(i, i))
			}
			items, in := saved(t, nodes[1])
			if n := 6 + 60; len(items) != n || in.Summary() != (snapshot.Summary{Records: int64(n)}) {
				t.Errorf("%d items, %+v, want %d", len(items), in.Summary(), n)
			}
			h := in.Header
			if h.Node != "n2" || h.Level != level.String() || h.Software != "dev" || time.Since(time.UnixMilli(h.Time)) > patience {
				t.Errorf("%+v", h)
			}
			for key, want := range map[string]snapshot.Record{
				"plain": {Value: []byte("1"), Flags: 4294967295}, "empty": {}, "mortal": {Value: []byte("m")},
				"\x00\x01\n\xff": {Value: []byte("bin")}, "old": {Value: []byte("o"), Stale: true}, "large": {Value: large},
				"k57": {Value: pattern(57, 57)},
			} {
				got, ok := items[key]
				if !ok || !bytes.Equal(got.Value, want.Value) || got.Flags != want.Flags || got.Stale != want.Stale || got.Leased {
					t.Errorf("%q is saved (%v) as %.200v", key, ok, got)
				}
				if left := h.Left(&got, h.Time); key == "mortal" && (left <= 0 || left > 101_000) || key != "mortal" && got.Expires != 0 {
					t.Errorf("%q expires at %d, the clock is %d", key, got.Expires, h.Clock)
				}
			}
			if again, _ := saved(t, nodes[1]); len(again) != len(items) {
				t.Errorf("saved again: %d items", len(again))
			}
		})
	}
}

// One client writes the keys in turn, each time a greater number. At a moment of the
// cluster those behind the last one written have the number before; and what was
// acknowledged before the save began is in it, whoever saves.
func TestSnapshotIsOneMomentOfTheCluster(t *testing.T) {
	const keys = 60
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Causal} {
		t.Run(level.String(), func(t *testing.T) {
			nodes := startThree(t, level)
			c := dial(t, nodes[0])
			for i := range keys {
				c.set(fmt.Sprint("k", i), []byte("0"))
			}
			for i := range 3000 {
				c.send(fmt.Sprintf("set other%d 0 0 200 noreply\r\n%s\r\n", i, pattern(200, i)))
			}
			c.ask("mn\r\n", "MN\r\n")
			var acked atomic.Int64
			var stop atomic.Bool
			var writer sync.WaitGroup
			writer.Go(func() {
				for n := 1; !stop.Load(); n++ {
					for i := range keys {
						c.set(fmt.Sprint("k", i), []byte(strconv.Itoa(n)))
						acked.Store(int64((n-1)*keys + i + 1))
					}
				}
			})
			defer writer.Wait()
			defer stop.Store(true)
			for round := range 6 {
				from := nodes[round%3]
				if level == consistency.Causal && round < 3 { // has it begun to hear of them?
					attunetest.Eventually(t, "the writes are everywhere", func() bool {
						return string(dial(t, from).get("k0")) != "0"
					})
				}
				before := acked.Load()
				items, _ := saved(t, from)
				number := func(i int) int {
					n, err := strconv.Atoi(string(items[fmt.Sprint("k", i)].Value))
					if err != nil {
						t.Fatalf("k%d: %v", i, err)
					}
					return n
				}
				total := number(0)
				for i := 1; i < keys; i++ {
					a, b := number(i-1), number(i)
					if b != a && (b != a-1 || b != number(0)-1) {
						t.Errorf("round %d: k%d is %d, k%d is %d", round, i-1, a, i, b)
					}
					total += b
				}
				if level == consistency.Linearizable && int64(total) < before {
					t.Errorf("round %d: %d writes were acknowledged before, %d are in the snapshot", round, before, total)
				}
				if items["other2999"].Value == nil {
					t.Errorf("round %d: what did not change is missing", round)
				}
			}
		})
	}
}

// One at a time; a client that hangs up, or never reads, holds up nobody for good.
func TestSnapshotsInEachOthersWay(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	cfg.MaxItemSize = 32 << 20
	n := start(t, cfg)
	dial(t, n).set("large", pattern(24<<20, 1)) // more than sockets take
	first, resp := askSnapshot(t, n)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	if code, text := httpGet(t, n, "/snapshot"); code != http.StatusConflict || !strings.Contains(text, "to somebody else") {
		t.Errorf("a second one: %d %s", code, text)
	}
	first.Close()
	attunetest.Eventually(t, "the first is missed", func() bool {
		c, resp := askSnapshot(t, n)
		defer c.Close()
		return resp.StatusCode == http.StatusOK
	})
	attunetest.Eventually(t, "that one, too", func() bool {
		c, resp := askSnapshot(t, n)
		if resp.StatusCode != http.StatusOK {
			c.Close()
			return false
		}
		t.Cleanup(func() { c.Close() })
		return true // and does not read while the node closes
	})
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A node that closes says so in what it is sending.
func TestSnapshotOfANodeThatCloses(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	cfg.MaxItemSize = 32 << 20
	n := start(t, cfg)
	c := dial(t, n)
	for i := range 4 {
		c.set(fmt.Sprint("large", i), pattern(8<<20, i))
	}
	c.Close()
	_, resp := askSnapshot(t, n)
	closed := make(chan error, 1)
	go func() { closed <- n.Close(t.Context()) }()
	attunetest.Eventually(t, "it closes", func() bool { return n.ctx.Err() != nil })
	items, _, err := readSnapshot(resp.Body)
	if err == nil {
		t.Errorf("%d items, and no word of the end", len(items))
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// Of a store that lists its keys, what it has is saved, and what it has lost counted.
func TestSnapshotOfStores(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (spec string, lose func(t *testing.T)){
		"memcached": func(t *testing.T) (string, func(t *testing.T)) {
			m := attunetest.StartMemcached(t)
			return "memcached://" + m.Addr, func(t *testing.T) {
				behind(t, m).ask("delete k7\r\ndelete k8\r\n", "DELETED\r\nDELETED\r\n")
			}
		},
		"pebble": func(t *testing.T) (string, func(t *testing.T)) {
			return "pebble://" + t.TempDir(), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := clusterConfig(t, consistency.Eventual)
			cfg.Admin, cfg.HotCache = "127.0.0.1:0", 0
			spec, lose := open(t)
			cfg.Backend = spec
			n := start(t, cfg)
			c := dial(t, n)
			for i := range 100 {
				c.set(fmt.Sprint("k", i), pattern(i, i))
			}
			c.set("large", pattern(300_000, 1))
			c.ask("delete k3\r\n", "DELETED\r\n")
			lost := map[int]bool{3: true}
			missing := int64(0)
			if lose != nil {
				attunetest.Eventually(t, "the store has taken all", func() bool { return n.replicaStats().Staged == 0 })
				lose(t)
				lost[7], lost[8], missing = true, true, 2
			}
			items, in := saved(t, n)
			if got := in.Summary().Missing; got != missing {
				t.Errorf("%d items are told to be missing, want %d", got, missing)
			}
			for i := range 100 {
				got, ok := items[fmt.Sprint("k", i)]
				if ok == lost[i] || ok && !bytes.Equal(got.Value, pattern(i, i)) {
					t.Errorf("k%d is saved (%v) as %.100q", i, ok, got.Value)
				}
			}
			if !bytes.Equal(items["large"].Value, pattern(300_000, 1)) {
				t.Error("the large one is not saved as it was")
			}
		})
	}
}

// What the store here has lost and others have is saved, too.
func TestSnapshotHasWhatOthersHave(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Eventual} {
		t.Run(level.String(), func(t *testing.T) {
			stores := [3]*attunetest.Memcached{}
			nodes := startThree(t, level, func(i int, cfg *Config) {
				stores[i] = attunetest.StartMemcached(t)
				cfg.Backend, cfg.HotCache, cfg.WriteAcks = "memcached://"+stores[i].Addr, 0, consistency.AllAcks
			})
			c := dial(t, nodes[0])
			for i := range 50 {
				c.set(fmt.Sprint("k", i), pattern(i, i))
			}
			for i, m := range stores { // k9 is nowhere
				direct := behind(t, m)
				lost := []string{"k9"}
				if i == 0 {
					lost = []string{"k7", "k8", "k9"}
				}
				for _, key := range lost {
					attunetest.Eventually(t, key+" is there to be lost", func() bool {
						direct.send("delete " + key + "\r\n")
						return direct.line() == "DELETED"
					})
				}
			}
			items, in := saved(t, nodes[0])
			if got := in.Summary().Missing; got != 1 || len(items) != 49 {
				t.Errorf("%d items, %d missing; want 49 and 1", len(items), got)
			}
			for _, i := range []int{7, 8} {
				if got := items[fmt.Sprint("k", i)]; !bytes.Equal(got.Value, pattern(i, i)) {
					t.Errorf("k%d is saved as %q", i, got.Value)
				}
			}
		})
	}
}
