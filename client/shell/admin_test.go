package shell

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const explained = `{"key": "user:7", "level": "causal", "controller": "n1", "shard": 1, "shards": 1, "home": "n2",
"copies": [
 {"controller": "n1", "state": "present", "version": "911854549826798484", "changed_ms": 1795288800123, "stored": "911854549826798484", "size": 5, "flags": 7, "expires_ms": 1795288900123, "ttl_ms": 99600, "bytes": "missing"},
 {"controller": "n2", "state": "deleted", "version": "911854549826798483", "changed_ms": 1795288800122, "size": 0, "flags": 0},
 {"controller": "n3", "error": "failed: the others \u001b[2J cannot reach it", "size": 0, "flags": 0}],
"get": "%s", "why": "version 911854549826798484 is here"}`

// adminOf runs a command against an admin address that answers with handler.
func adminOf(t *testing.T, handler http.HandlerFunc, args string) result {
	t.Helper()
	s := httptest.NewServer(handler)
	defer s.Close()
	var out, err strings.Builder
	code := Run(t.Context(), Options{
		Servers: []string{"127.0.0.1:1"}, Timeout: 10 * time.Second, Admin: strings.TrimPrefix(s.URL, "http://"),
		In: strings.NewReader(""), Out: &out, Err: &err,
	}, strings.Split(args, "|"))
	return result{code, out.String(), err.String()}
}

func want(t *testing.T, got result, code int, out, err string) {
	t.Helper()
	if got.code != code || got.out != out || !strings.Contains(got.err, err) || (err == "") != (got.err == "") {
		t.Errorf("code %d, err %q, out\n%s\nwant code %d, err %q, out\n%s", got.code, got.err, got.out, code, err, out)
	}
}

func TestExplainIsShown(t *testing.T) {
	answer := func(get string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/explain" || r.URL.Query().Get("key") != "user:7" || r.Method != "GET" {
				http.Error(w, r.URL.String(), http.StatusTeapot)
				return
			}
			fmt.Fprintf(w, explained, get)
		}
	}
	want(t, adminOf(t, answer("hit"), "explain|user:7"), ExitOK, `user:7: level causal, shard 1 of 1, home n2
a get at n1: hit: version 911854549826798484 is here

CONTROLLER   STATE     VERSION              CHANGED                    SIZE   FLAGS   TTL     BYTES
n1           present   911854549826798484   2026-11-21T19:20:00.123Z   5      7       1m40s   missing
n2           deleted   911854549826798483   2026-11-21T19:20:00.122Z   -      -       -       -
n3           "unknown: failed: the others \x1b[2J cannot reach it"
`, "")
	got := adminOf(t, answer("miss"), "explain|user:7|--json")
	want(t, got, ExitNo, fmt.Sprintf(explained, "miss"), "")
	want(t, adminOf(t, answer("hit"), "explain|k"), ExitError, "", "/explain?key=k")
	want(t, adminOf(t, answer("hit"), "explain"), ExitUsage, "", "usage: explain KEY [--json]")
	want(t, adminOf(t, http.NotFound, "explain|k"), ExitError, "", "older release")
	want(t, adminOf(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, "explain|k"), ExitError, "", "cannot be read")
}

func TestWatchIsShown(t *testing.T) {
	events := ": n1\n\n" +
		`data: {"time_ms":1795288800123,"verb":"set","key":"user:7","version":"12","by":"n2","size":5,"expires_ms":1795288900123,"ttl_ms":100000}` + "\n\n" +
		"event: lost\ndata: {\"lost\":3}\n\n:\n\n" +
		`data: {"time_ms":1795288801000,"verb":"delete","key_base64":"/wA=","version":"13","size":0}` + "\n\n" +
		`data: {"time_ms":1795288801001,"verb":"flush","version":"14","size":0}` + "\n\n"
	answer := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/watch" || r.URL.Query().Get("prefix") != "user:" {
			http.Error(w, r.URL.String(), http.StatusTeapot)
			return
		}
		io.WriteString(w, events)
	}
	want(t, adminOf(t, answer, "watch|user:"), ExitError, `19:20:00.123 set    user:7  size 5  ttl 1m40s  version 12  by n2
-- 3 events lost: they came faster than they were read
19:20:01.000 delete "\xff\x00"  version 13
19:20:01.001 flush  -  version 14
`, "ended the stream")
	got := adminOf(t, answer, "watch|user:|--json")
	lines := strings.Split(strings.TrimSpace(got.out), "\n")
	if len(lines) != 4 || lines[1] != `{"lost":3}` {
		t.Errorf("%q", got.out)
	}
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("%q is no JSON", line)
		}
	}
}

func TestTraceIsShown(t *testing.T) {
	answer := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		reply := map[string]string{
			"set k 7 60 1\r\nv\r\n": "STORED\r\n", "gets k\r\n": "END\r\n", "mg k v\r\nmn\r\n": "VA 1\r\nv\r\nMN\r\n",
		}[string(body)]
		if r.Method != "POST" || r.URL.Path != "/trace" || reply == "" {
			http.Error(w, fmt.Sprintf("%s %q", r.URL.Path, body), http.StatusBadRequest)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{
			"controller": "n2", "level": "sequential", "reply": reply, "not_measured": "what n1 does", "trace_id": "ab12",
			"steps": []map[string]any{{"at_us": 12, "step": "sent to n1, which leads"}, {"at_us": 150, "step": "answered"}},
		})
	}
	const steps = `
traced at n2, level sequential
US    TOOK   STEP
12    12     sent to n1, which leads
150   138    answered
not measured: what n1 does
at the collector, this is trace ab12
`
	want(t, adminOf(t, answer, "trace|set|k|v|--ttl|60|--flags=7"), ExitOK, "STORED\n"+steps, "")
	want(t, adminOf(t, answer, "trace|get|k"), ExitNo, steps, "NOT_FOUND k")
	want(t, adminOf(t, answer, "trace|mg|k|v"), ExitOK, "VA 1\nv\n"+steps, "")
	if got := adminOf(t, answer, "trace|set|k|v|--json|--ttl|60|--flags=7"); got.code != ExitOK || !json.Valid([]byte(got.out)) || got.err != "" {
		t.Errorf("%+v", got)
	}
	want(t, adminOf(t, answer, "trace|set|k|other"), ExitError, "", "/trace")
	want(t, adminOf(t, answer, "trace|watch|k"), ExitUsage, "", "cannot be traced")
	want(t, adminOf(t, answer, "trace|get"), ExitUsage, "", "usage: get KEY...")
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte(": n1\n\ndata: {\"verb\":\"set\"}\n\nevent: lost\ndata: {\"lost\":3}\r\n\r\n"))
	f.Add([]byte("data: \n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		var out bytes.Buffer
		sh := &shell{out: bufio.NewWriter(&out)}
		err := readEvents(bufio.NewReaderSize(bytes.NewReader(stream), maxEvent), func(data []byte) error {
			var ev watched
			if json.Unmarshal(data, &ev) == nil {
				sh.showEvent(&ev)
			}
			return nil
		}, sh.out.Flush)
		sh.out.Flush()
		if err == nil {
			t.Error("a stream that ends is an error")
		}
		if !printable(out.Bytes()) {
			t.Errorf("not fit for a terminal: %q", out.Bytes())
		}
	})
}
