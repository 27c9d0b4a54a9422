package controller

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/zap"
)

// exporterReads are the fields of `stats` that memcached_exporter reads; without
// the first row, or with a word for a number anywhere, it calls a server down.
var exporterReads = strings.Fields(`
	cmd_set cas_hits cas_misses cas_badval
	get_hits get_misses delete_hits delete_misses incr_hits incr_misses decr_hits decr_misses touch_hits touch_misses cmd_flush
	uptime time rusage_user rusage_system bytes limit_maxbytes curr_items total_items bytes_read bytes_written
	curr_connections total_connections rejected_connections conn_yields listen_disabled_num accepting_conns
	evictions reclaimed store_too_large store_no_memory`)

func TestStatsCountWhatHappened(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		c := dial(t, n)
		c.ask("set a 0 0 1\r\n1\r\nset b 0 0 1\r\n2\r\nadd a 0 0 1\r\nx\r\nset gone 0 -1 1\r\nx\r\nms m 1\r\nx\r\n", strings.Repeat("STORED\r\n", 2)+"NOT_STORED\r\nSTORED\r\nHD\r\n")
		c.ask("get a b none a\r\nmg m v\r\nmg none v\r\n", "VALUE a 0 1\r\n1\r\nVALUE b 0 1\r\n2\r\nVALUE a 0 1\r\n1\r\nEND\r\nVA 1\r\nx\r\nEN\r\n")
		c.ask("incr a 1\r\nincr none 1\r\nincr a 1\r\ndecr a 1\r\ndecr none 1\r\n", "2\r\nNOT_FOUND\r\n3\r\n2\r\nNOT_FOUND\r\n")
		c.ask("touch a 0\r\ntouch none 0\r\ngat 0 a none\r\n", "TOUCHED\r\nNOT_FOUND\r\nVALUE a 0 1\r\n2\r\nEND\r\n")
		c.ask("delete b\r\ndelete none\r\n", "DELETED\r\nNOT_FOUND\r\n")
		c.ask("cas a 0 0 1 1\r\nx\r\ncas none 0 0 1 1\r\nx\r\n", "EXISTS\r\nNOT_FOUND\r\n")
		c.send("gets a\r\n")
		unique := strings.Fields(c.line())[4]
		c.want("2\r\nEND\r\n")
		c.ask("cas a 0 0 1 "+unique+"\r\nx\r\n", "STORED\r\n")
		c.ask("set big 0 0 2000000 noreply\r\n"+strings.Repeat("x", 2000000)+"\r\n", "")
		st := c.stats("")
		for name, want := range map[string]string{
			// Nine stores, of which cas are three and refused for size is one.
			"cmd_set": "9", "cas_hits": "1", "cas_badval": "1", "cas_misses": "1", "store_too_large": "1",
			"cmd_get": "9", "get_hits": "6", "get_misses": "3",
			"cmd_touch": "4", "touch_hits": "2", "touch_misses": "2",
			"incr_hits": "2", "incr_misses": "1", "decr_hits": "1", "decr_misses": "1",
			"delete_hits": "1", "delete_misses": "1", "cmd_meta": "3", "cmd_flush": "0",
			"curr_connections": "1", "total_connections": "1", "accepting_conns": "1",
			"backend_errors": "0", "version": wireVersion, "attune_version": cfg.Version,
			"limit_maxbytes": fmt.Sprint(cfg.MemoryLimit), "pointer_size": "64",
		} {
			if st[name] != want {
				t.Errorf("%s %s, want %s", name, st[name], want)
			}
		}
		for _, name := range exporterReads {
			if _, err := strconv.ParseFloat(st[name], 64); err != nil {
				t.Errorf("memcached_exporter reads %s: %v", name, err)
			}
		}
		for _, name := range []string{"bytes_read", "bytes_written", "bytes", "curr_items", "total_items"} {
			if v, _ := strconv.ParseFloat(st[name], 64); v <= 0 {
				t.Errorf("%s %s after traffic", name, st[name])
			}
		}
		for _, name := range []string{"rusage_user", "rusage_system"} {
			if sec, micro, ok := strings.Cut(st[name], "."); !ok || sec == "" || len(micro) != 6 {
				t.Errorf("%s %s, want seconds.micros", name, st[name])
			}
		}

		c.ask("flush_all\r\n", "OK\r\n")
		if got := c.stats("")["cmd_flush"]; got != "1" {
			t.Errorf("cmd_flush %s, want 1", got)
		}
		c.ask("stats reset\r\n", "RESET\r\n")
		st = c.stats("")
		for _, name := range []string{"cmd_set", "cmd_get", "get_hits", "get_misses", "cas_hits", "cmd_meta", "incr_hits", "cmd_flush"} {
			if st[name] != "0" {
				t.Errorf("%s %s after a reset", name, st[name])
			}
		}
		c.ask("get none\r\n", "END\r\n")
		if got := c.stats("")["get_misses"]; got != "1" {
			t.Errorf("get_misses %s since the reset, want 1", got)
		}
	})
}

func TestStatsSections(t *testing.T) {
	n := start(t, testConfig())
	c := dial(t, n)
	if st := c.stats("items"); len(st) != 0 {
		t.Errorf("items of an empty store: %v", st)
	}
	if st := c.stats("sizes"); len(st) != 0 {
		t.Errorf("sizes of an empty store: %v", st)
	}
	if st := c.stats("slabs"); st["active_slabs"] != "0" {
		t.Errorf("slabs of an empty store: %v", st)
	}
	c.set("a", make([]byte, 30)) // 31 bytes with its key: up to 32
	c.set("b", make([]byte, 31)) // 32
	c.set("c", make([]byte, 32)) // 33
	if st := c.stats("items"); st["items:1:number"] != "3" || st["items:1:evicted"] != "0" {
		t.Errorf("items: %v", st)
	}
	for name, value := range c.stats("slabs") {
		if _, err := strconv.ParseFloat(value, 64); err != nil {
			t.Errorf("slabs: %s: %v", name, err)
		}
	}
	if st := c.stats("slabs"); st["1:used_chunks"] != "3" || st["1:cmd_set"] != "3" || st["active_slabs"] != "1" {
		t.Errorf("slabs: %v", st)
	}
	if st := c.stats("sizes"); len(st) != 2 || st["32"] != "2" || st["64"] != "1" {
		t.Errorf("sizes: %v", st)
	}
	if st := c.stats("settings"); st["maxconns"] != "10000" || st["item_size_max"] != "1048576" || st["inter"] != n.Addrs()[0] || st["flush_enabled"] != "yes" {
		t.Errorf("settings: %v", st)
	}
	second := dial(t, n)
	second.ask("mn\r\n", "MN\r\n")
	st := c.stats("conns")
	addrs := make(map[string]bool)
	for name, value := range st {
		if strings.HasSuffix(name, ":addr") {
			addrs[value] = true
		}
	}
	if len(addrs) != 2 || !addrs["tcp:"+c.LocalAddr().String()] || !addrs["tcp:"+second.LocalAddr().String()] {
		t.Errorf("conns: %v", st)
	}
	c.ask("stats nonsense\r\nstats detail dump\r\nstats detail on\r\nmn\r\n", "ERROR\r\nEND\r\nOK\r\nMN\r\n")
	c.ask("stats cachedump 1 1\r\n", "")
	if line := c.line(); !strings.HasPrefix(line, "ITEM ") || !strings.HasSuffix(line, " s]") {
		t.Errorf("cachedump: %q", line)
	}
	c.want("END\r\n")
	c.ask("stats cachedump 7 0\r\nmn\r\n", "END\r\nMN\r\n")
}

// TestStatsInBinary: a packet per figure, and an empty one at the end.
func TestStatsInBinary(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		c := dial(t, start(t, cfg))
		ask := func(section string) map[string]string {
			req := make([]byte, 24, 64)
			req[0], req[1] = 0x80, 0x10
			binary.BigEndian.PutUint16(req[2:], uint16(len(section)))
			binary.BigEndian.PutUint32(req[8:], uint32(len(section)))
			c.send(string(req) + section)
			st := make(map[string]string)
			for {
				var head [24]byte
				if _, err := io.ReadFull(c.r, head[:]); err != nil {
					t.Fatal(err)
				}
				body := make([]byte, binary.BigEndian.Uint32(head[8:]))
				if _, err := io.ReadFull(c.r, body); err != nil {
					t.Fatal(err)
				}
				if head[0] != 0x81 || head[1] != 0x10 || head[6] != 0 || head[7] != 0 {
					t.Fatalf("head % x", head)
				}
				key := binary.BigEndian.Uint16(head[2:])
				if key == 0 {
					return st
				}
				st[string(body[:key])] = string(body[key:])
			}
		}
		if st := ask(""); st["version"] != wireVersion || st["curr_connections"] != "1" {
			t.Errorf("stats: %v", st)
		}
		if st := ask("settings"); st["maxconns"] != "10000" {
			t.Errorf("settings: %v", st)
		}
	})
}

// TestDumpWhileOthersWork lists many items to a client that reads slowly.
func TestDumpWhileOthersWork(t *testing.T) {
	const items = 8000
	for _, goroutines := range []bool{false, true} {
		t.Run(fmt.Sprint("goroutines=", goroutines), func(t *testing.T) {
			cfg := testConfig()
			cfg.goroutines = goroutines
			n := start(t, cfg)
			c, other := dial(t, n), dial(t, n)
			var ask strings.Builder
			for i := range items {
				fmt.Fprintf(&ask, "set key-%d-and-a-long-name-so-that-it-is-much 0 0 1 noreply\r\nx\r\n", i)
			}
			c.ask(ask.String()+"mn\r\n", "MN\r\n")
			// Commands behind the dump wait for it, in their order.
			c.send("set %odd+key 0 100 1\r\nx\r\nlru_crawler metadump all\r\nget none\r\nmn\r\n")
			c.want("STORED\r\n")
			seen := make(map[string]bool)
			for {
				line := c.line()
				if line == "END" {
					break
				}
				words := strings.Fields(line)
				if len(words) != 7 || !strings.HasPrefix(words[0], "key=") || seen[words[0]] {
					t.Fatalf("metadump: %q (twice: %v)", line, seen[words[0]])
				}
				if seen[words[0]] = true; len(seen)%1000 == 0 {
					other.ask("get none\r\nset other 0 0 1\r\nx\r\n", "END\r\nSTORED\r\n")
				}
			}
			c.want("END\r\nMN\r\n")
			delete(seen, "key=other") // stored meanwhile: listed or not
			if len(seen) != items+1 || !seen["key=%25odd%2Bkey"] {
				t.Errorf("%d items listed, want %d", len(seen), items+1)
			}
			c.send("lru_crawler mgdump all\r\n")
			lines := 0
			for line := c.line(); line != "EN"; line = c.line() {
				if !strings.HasPrefix(line, "mg ") {
					t.Fatalf("mgdump: %q", line)
				}
				lines++
			}
			if lines != items+2 {
				t.Errorf("mgdump lists %d items, want %d", lines, items+2)
			}
		})
	}
}

// metrics scrapes and parses /metrics.
func metrics(t *testing.T, n *Node) map[string]*dto.MetricFamily {
	t.Helper()
	code, body := httpGet(t, n, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics: %d", code)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// sample finds the one with a label's value, or the only one.
func sample(t *testing.T, families map[string]*dto.MetricFamily, name string, labels ...string) *dto.Metric {
	t.Helper()
next:
	for _, m := range families[name].GetMetric() {
		for i, l := range m.GetLabel() {
			if i < len(labels) && l.GetValue() != labels[i] {
				continue next
			}
		}
		return m
	}
	t.Fatalf("no %s%v", name, labels)
	return nil
}

func TestMetrics(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		cfg.Admin = "127.0.0.1:0"
		n := start(t, cfg)
		c := dial(t, n)
		c.ask("set a 0 0 1\r\n1\r\nset a 0 0 1\r\n1\r\nget a a none\r\nincr a 1\r\ndelete a\r\ntouch a 0\r\nflush_all\r\n",
			"STORED\r\nSTORED\r\nVALUE a 0 1\r\n1\r\nVALUE a 0 1\r\n1\r\nEND\r\n2\r\nDELETED\r\nNOT_FOUND\r\nOK\r\n")
		// The session tells its counters just after its replies.
		attunetest.Eventually(t, "the last command is counted", func() bool { return n.totals().n[cmdFlush] == 1 })
		attunetest.Eventually(t, "its latency too", func() bool {
			return sample(t, metrics(t, n), "attune_command_duration_seconds", "flush").GetHistogram().GetSampleCount() == 1
		})
		m := metrics(t, n)
		for verb, want := range map[string]uint64{"get": 3, "store": 2, "arithmetic": 1, "delete": 1, "touch": 1, "flush": 1} {
			h := sample(t, m, "attune_command_duration_seconds", verb).GetHistogram()
			if h.GetSampleCount() != want {
				t.Errorf("%s: %d in the histogram, want %d", verb, h.GetSampleCount(), want)
			}
			last := uint64(0)
			for _, b := range h.GetBucket() {
				if b.GetCumulativeCount() < last {
					t.Errorf("%s: buckets fall", verb)
				}
				last = b.GetCumulativeCount()
			}
			if sum := h.GetSampleSum(); sum <= 0 || sum > 10 {
				t.Errorf("%s: took %v seconds", verb, sum)
			}
		}
		for _, want := range []struct {
			name   string
			value  float64
			labels []string
		}{
			{"attune_commands_total", 2, []string{"set"}},
			{"attune_commands_total", 3, []string{"get"}},
			{"attune_results_total", 2, []string{"get", "hit"}},
			{"attune_results_total", 1, []string{"get", "miss"}},
			{"attune_connections", 1, nil},
			{"attune_connections_limit", 10000, nil},
			{"attune_ready", 1, nil},
			{"attune_failed_total", 0, nil},
			{"attune_memory_limit_bytes", float64(cfg.MemoryLimit), nil},
		} {
			s := sample(t, m, want.name, want.labels...)
			if got := s.GetCounter().GetValue() + s.GetGauge().GetValue(); got != want.value {
				t.Errorf("%s%v %v, want %v", want.name, want.labels, got, want.value)
			}
		}
		for _, name := range []string{"go_goroutines", "process_open_fds", "attune_info", "attune_memory_bytes", "attune_client_bytes_total"} {
			sample(t, m, name)
		}
	})
}

func TestAdmin(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	level := zap.NewAtomicLevelAt(zap.InfoLevel)
	cfg.LogLevel = &level
	n := start(t, cfg)
	for path, want := range map[string]int{
		"/": 200, "/healthz": 200, "/readyz": 200, "/metrics": 200, "/loglevel": 200,
		"/debug/pprof/": 404, "/debug/pprof/cmdline": 404, "/nonsense": 404,
	} {
		if code, _ := httpGet(t, n, path); code != want {
			t.Errorf("GET %s: %d, want %d", path, code, want)
		}
	}
	if code, _ := httpDo(t, n, http.MethodPost, "/healthz", ""); code != http.StatusMethodNotAllowed {
		t.Errorf("POST /healthz: %d", code)
	}
	if code, body := httpDo(t, n, http.MethodPut, "/loglevel", `{"level":"debug"}`); code != 200 || level.Level() != zap.DebugLevel {
		t.Errorf("PUT /loglevel: %d %s, level is %v", code, body, level.Level())
	}
	if code, _ := httpDo(t, n, http.MethodPut, "/loglevel", `{"level":"loud"}`); code != 400 || level.Level() != zap.DebugLevel {
		t.Errorf("PUT of a bad level: %d, level is %v", code, level.Level())
	}
	var got struct{ Level string }
	if _, body := httpGet(t, n, "/loglevel"); json.Unmarshal([]byte(body), &got) != nil || got.Level != "debug" {
		t.Errorf("GET /loglevel: %s", body)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	cfg.Pprof = true
	n = start(t, cfg)
	if code, _ := httpGet(t, n, "/debug/pprof/goroutine?debug=1"); code != 200 {
		t.Errorf("pprof: %d", code)
	}
	// A scrape that never ends does not hold up the close for long.
	began := time.Now()
	go func() {
		time.Sleep(100 * time.Millisecond)
		n.Close(t.Context())
	}()
	c := dialAdmin(t, n)
	c.send("GET /debug/pprof/profile?seconds=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	io.Copy(io.Discard, c.r)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("close took %v", took)
	}
}
