package controller

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

// get asks the admin address of a node, and returns the whole answer.
func get(t *testing.T, n *Node, path string) (*http.Response, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get("http://" + n.AdminAddr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestWebFiles(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	n := start(t, cfg)
	for path, kind := range map[string]string{
		"/": "text/html", "/web/page.js": "text/javascript", "/web/charts.js": "text/javascript",
		"/web/page.css": "text/css", "/web/icon.svg": "image/svg+xml",
	} {
		resp, body := get(t, n, path)
		if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), kind) || len(body) < 100 {
			t.Errorf("GET %s: %s, %s, %d bytes", path, resp.Status, resp.Header.Get("Content-Type"), len(body))
		}
		if policy := resp.Header.Get("Content-Security-Policy"); policy != webPolicy || strings.Contains(policy, "unsafe") {
			t.Errorf("GET %s: policy %q", path, policy)
		}
		// Nothing comes from elsewhere, and nothing is written as markup.
		for _, not := range []string{"https://", "//cdn", "innerHTML", "insertAdjacentHTML", "document.write", "style=", "onclick="} {
			if strings.Contains(body, not) {
				t.Errorf("%s has %s", path, not)
			}
		}
	}
	for _, path := range []string{"/web/", "/web/index.html", "/web", "/index.html", "/web/../web.go"} {
		if resp, _ := get(t, n, path); resp.StatusCode != 404 {
			t.Errorf("GET %s: %s", path, resp.Status)
		}
	}
	if code, _ := httpDo(t, n, http.MethodPost, "/api/node", ""); code != http.StatusMethodNotAllowed {
		t.Errorf("POST /api/node: %d", code)
	}
}

func TestNodeView(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	n := start(t, cfg)
	dial(t, n).set("k", []byte("v"))
	resp, body := get(t, n, "/api/node")
	var v nodeView
	if err := json.Unmarshal([]byte(body), &v); err != nil || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatal(err, body)
	}
	if v.Name != cfg.Name || v.Level != "eventual" || v.Health != "" || v.Items != 1 || v.MemoryLimit != cfg.MemoryLimit || v.Members != nil || v.Backend != "embedded" {
		t.Errorf("%s", body)
	}
	if !slices.ContainsFunc(v.Events, func(e event) bool { return strings.HasPrefix(e.Text, "serving; level eventual") }) {
		t.Errorf("events %+v", v.Events)
	}
	_, body = get(t, n, "/api/cluster")
	var all clusterView
	if err := json.Unmarshal([]byte(body), &all); err != nil || all.Asked != cfg.Name || len(all.Nodes) != 1 || all.Nodes[0].View == nil {
		t.Errorf("%v: %s", err, body)
	}
}

// A view is a fraction of itself on its way, for who can read that.
func TestViewsAreCompressed(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	n := start(t, cfg)
	for i := range maxSamples { // a page that has been up for long
		at := time.Unix(int64(1_795_288_800+5*i), 0)
		f := figuresOf(&counted{at: at}, &counted{at: at.Add(5 * time.Second)})
		f[figureReads], f[figureReadP50] = figure(1000+i*i%97), figure(i%13)
		n.samples.add(at, f, nil)
		n.events.add(event{Time: at, Level: "info", Text: fmt.Sprint("raft state changed; term ", i)})
	}
	for _, path := range []string{"/api/node", "/api/cluster"} {
		size := func(accepts string) (int, []byte) {
			req, err := http.NewRequest(http.MethodGet, "http://"+n.AdminAddr()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Close = true
			req.Header.Set("Accept-Encoding", accepts) // set here, so nobody unpacks it
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			raw, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			body := raw
			if resp.Header.Get("Content-Encoding") == "gzip" {
				r, err := gzip.NewReader(bytes.NewReader(raw))
				if err != nil {
					t.Fatal(err)
				}
				if body, err = io.ReadAll(r); err != nil {
					t.Fatal(err)
				}
			}
			return len(raw), body
		}
		plain, _ := size("gzip;q=0, br")
		packed, body := size("br, gzip;q=0.8")
		if !json.Valid(body) || packed > plain/4 {
			t.Errorf("%s: %d bytes, compressed %d", path, plain, packed)
		}
		t.Logf("%s: %d bytes, compressed %d", path, plain, packed)
	}
	for header, want := range map[string]bool{"": false, "gzip": true, "br , gzip": true, "gzip; q=0": false, "gzip;q=0.0": false, "gzip;q=1.0": true, "gzip;q=0.01": true, "x-gzip": false} {
		if got := acceptsGzip(header); got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
}

// One that still looks for its cluster has a page, too.
func TestNodeViewBeforeItServes(t *testing.T) {
	cfg := clusterConfig(t, consistency.Linearizable)
	cfg.Expect, cfg.Admin = 3, attunetest.FreeAddr(t)
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(ended)
		if n, err := Open(ctx, cfg); err == nil {
			t.Error("it serves alone")
			closeAll(n)
		}
	}()
	attunetest.Eventually(t, "it shows what it waits for", func() bool {
		resp, err := http.Get("http://" + cfg.Admin + "/api/cluster")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var all clusterView
		return json.NewDecoder(resp.Body).Decode(&all) == nil && len(all.Nodes) == 1 && all.Nodes[0].View != nil &&
			strings.Contains(all.Nodes[0].View.Health, "other controllers") && len(all.Nodes[0].View.Members) == 1
	})
	cancel()
	<-ended
	http.DefaultClient.CloseIdleConnections()
}

func TestClusterView(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Linearizable, consistency.Causal} {
		t.Run(level.String(), func(t *testing.T) {
			nodes := startThree(t, level, func(_ int, cfg *Config) { cfg.Admin = attunetest.FreeAddr(t) })
			ask := func() (all clusterView) {
				_, body := get(t, nodes[0], "/api/cluster")
				if err := json.Unmarshal([]byte(body), &all); err != nil {
					t.Fatal(err, body)
				}
				return all
			}
			attunetest.Eventually(t, "all three tell that they are ready", func() bool {
				all := ask()
				for _, v := range all.Nodes {
					if v.View == nil || v.View.Name != v.Name || v.View.Health != "" || len(v.View.Members) != 3 {
						return false
					}
				}
				return all.Asked == "n1" && len(all.Nodes) == 3
			})
			for _, v := range ask().Nodes {
				if (v.View.Ordered != nil) != (level == consistency.Linearizable) || (v.View.Gossip != nil) == (v.View.Ordered != nil) {
					t.Errorf("%+v", v.View)
				}
			}
			closeAll(nodes[2])
			attunetest.Eventually(t, "the third one has left", func() bool {
				all := ask()
				return all.Nodes[2].View == nil && all.Nodes[2].Error == "it left" && all.Nodes[1].View != nil
			})
			attunetest.Eventually(t, "that is an event", func() bool {
				return slices.ContainsFunc(nodes[0].events.list(), func(e event) bool {
					return strings.HasPrefix(e.Text, "a controller has left; name n3") && e.Level == "info"
				})
			})
		})
	}
}

// Whatever is at the admin address of a member, the page gets a reason, in time.
func TestAskingMembers(t *testing.T) {
	hang := make(chan struct{})
	page := http.NewServeMux()
	page.HandleFunc("/api/node", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"name":"n2","samples":{"reads":[null,1.5]}}`)
	})
	elsewhere := httptest.NewServer(page)
	defer elsewhere.Close()
	serve := func(f http.HandlerFunc) string {
		s := httptest.NewServer(f)
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	n := start(t, testConfig())
	p := newPeerViews(n)
	defer p.close()
	for name, c := range map[string]struct{ admin, want string }{
		"answers":       {elsewhere.Listener.Addr().String(), ""},
		"another one":   {serve(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"name":"n1"}`) }), `there is "n1", not "n2"`},
		"no controller": {serve(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }), "does not answer as a controller"},
		"odd":           {serve(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"name":"n2","events":7}`) }), "does not answer as a controller"},
		"older":         {serve(http.NotFound), "404 Not Found"},
		"leads away": {serve(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"/api/node", http.StatusFound)
		}), "302 Found"},
		"without end":    {serve(func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, endless{}) }), "does not answer as a controller"},
		"hangs":          {serve(func(_ http.ResponseWriter, r *http.Request) { <-hang }), "did not answer within 1s"},
		"refuses":        {attunetest.FreeAddr(t), "connection refused"},
		"none":           {"", "no admin address"},
		"a unix socket":  {"unix:/run/attune.sock", "unix socket"},
		"no address":     {"nonsense", "missing port"},
		"no port at all": {"127.0.0.1:99999", "invalid port"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), askTimeout)
			defer cancel()
			v, err := p.ask(ctx, cluster.Member{Name: "n2", Admin: c.admin, Peer: "127.0.0.1:1"})
			switch {
			case c.want == "" && (err != nil || v.Name != "n2" || !slices.Equal(v.Samples["reads"], []figure{none, 1.5})):
				t.Errorf("%+v, %v", v, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
	close(hang)
}

// endless is spaces.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

func TestAdminOf(t *testing.T) {
	for admin, want := range map[string]string{
		"10.0.0.2:9090": "10.0.0.2:9090", "0.0.0.0:9090": "10.0.0.9:9090", ":9090": "10.0.0.9:9090", "[::]:9090": "10.0.0.9:9090",
		"host.example:1": "host.example:1", "[fe80::1]:2": "[fe80::1]:2",
	} {
		if got, err := adminOf(cluster.Member{Admin: admin, Peer: "10.0.0.9:7400"}); got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", admin, got, err, want)
		}
	}
	if got, err := adminOf(cluster.Member{Admin: ":9090", Peer: "nonsense"}); err == nil {
		t.Errorf("with a peer address that is none: %s", got)
	}
}

// Many who look cost what one does.
func TestClusterViewIsShared(t *testing.T) {
	n := start(t, testConfig())
	p := newPeerViews(n)
	defer p.close()
	first := p.view()
	if second := p.view(); &first[0] != &second[0] {
		t.Error("made anew at once")
	}
	p.made = p.made.Add(-2 * viewAge)
	if third := p.view(); &first[0] == &third[0] {
		t.Error("shown again when it was old")
	}
}

func FuzzParseView(f *testing.F) {
	f.Add([]byte(`{"name":"n2","samples":{"reads":[null,1.5]},"events":[{"time":"2026-01-31T12:00:00Z","level":"warn","text":"x","times":2}]}`))
	f.Add([]byte(`{"name":"n2","ordered":{"leader":"n1"},"disks":[{"free":1}],"stores":[{"p50":1e3}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := parseView(body, "there", "n2")
		if err != nil {
			return
		}
		again, err := parseView(encode(v), "there", "n2")
		if err != nil || again.Name != "n2" || len(again.Events) != len(v.Events) || len(again.Samples) != len(v.Samples) {
			t.Errorf("%+v came back as %+v, %v", v, again, err)
		}
	})
}
