package controller

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// exchange sends a request as it stands to the admin address, and returns the status.
func exchange(t *testing.T, n *Node, request string) (status int, body string) {
	t.Helper()
	c, err := net.Dial("tcp", n.AdminAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	beginning := make([]byte, 200)
	size, _ := resp.Body.Read(beginning) // not to its end, and not closed, which reads to it: some have none
	return resp.StatusCode, string(beginning[:size])
}

// What a browser can be made to send by a site that is open in it changes nothing, and a
// site whose name was moved to this address reads nothing.
func TestAdminRefusesOtherSites(t *testing.T) {
	cfg := testConfig()
	cfg.Admin = "127.0.0.1:0"
	n := start(t, cfg)
	const form = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 21\r\n\r\nforce-new-cluster=yes"
	post := func(headers string) string { return "POST /recover HTTP/1.1\r\n" + headers + form }
	for request, want := range map[string]int{
		post("Host: 127.0.0.1:9090\r\n"):                                                      409, // level eventual has no quorum to lose
		post("Host: 127.0.0.1:9090\r\nSec-Fetch-Site: cross-site\r\n"):                        403,
		post("Host: 127.0.0.1:9090\r\nSec-Fetch-Site: same-origin\r\n"):                       403,
		post("Host: 127.0.0.1:9090\r\nOrigin: http://127.0.0.1:9090\r\n"):                     403,
		post("Host: 127.0.0.1:9090\r\nOrigin: null\r\n"):                                      403,
		post("Host: evil.example:9090\r\n"):                                                   403,
		"DELETE /fault HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n":    403,
		"PUT /loglevel HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-site\r\n\r\n":      403,
		"GET /api/cluster HTTP/1.1\r\nHost: evil.example\r\n\r\n":                             403,
		"GET /snapshot HTTP/1.1\r\nHost: localhost.evil.example:9090\r\n\r\n":                 403,
		"GET /api/cluster HTTP/1.1\r\nHost: localhost:9090\r\n\r\n":                           200,
		"GET /api/cluster HTTP/1.1\r\nHost: LocalHost.\r\n\r\n":                               200,
		"GET /api/cluster HTTP/1.1\r\nHost: n1.localhost:9090\r\n\r\n":                        200,
		"GET /api/cluster HTTP/1.1\r\nHost: [::1]:9090\r\n\r\n":                               200,
		"GET /api/cluster HTTP/1.1\r\nHost: [::1]\r\n\r\n":                                    200,
		"GET /api/cluster HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n\r\n": 200,
		"GET /readyz HTTP/1.0\r\n\r\n":                                                        200,
	} {
		if status, body := exchange(t, n, request); status != want {
			t.Errorf("%q: %d %s, want %d", request, status, body, want)
		}
	}
}

// Elsewhere than on a loopback address, names are the network's business.
func TestAdminAnswersToNames(t *testing.T) {
	n := start(t, testConfig())
	for address, want := range map[string]int{"10.0.0.1:9090": 200, "127.0.0.7:9090": 403, "[::1]:9090": 403} {
		at, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
		got := &recorder{header: http.Header{}, status: 200}
		req, err := http.NewRequest(http.MethodGet, "http://n1.example:9090/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		if n.guard(ok, at).ServeHTTP(got, req); got.status != want {
			t.Errorf("%s: %d, want %d", address, got.status, want)
		}
	}
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }
func (r *recorder) WriteHeader(status int)      { r.status = status }

// Who changes something, or is told keys or values, must say the token; figures are for all.
func TestAdminToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := testConfig()
	cfg.Admin, cfg.AdminTokenFile, cfg.Pprof = "127.0.0.1:0", file, true
	for _, bad := range []string{"", " \n", "two words\n", "gr\u00fc\u00df\n"} {
		if write(bad); cfg.Validate() == nil || !strings.HasPrefix(cfg.Validate().Error(), "admin-token-file: ") {
			t.Errorf("%q: %v", bad, cfg.Validate())
		}
	}
	write("s3cret\n")
	n := start(t, cfg)
	ask := func(line, token string) int {
		if token != "" {
			token = "Authorization: Bearer " + token + "\r\n"
		}
		status, _ := exchange(t, n, line+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"+token+"\r\n")
		return status
	}
	guarded := []string{
		"POST /recover", "POST /leave", "POST /join", "POST /leader/transfer", "POST /fault", "DELETE /fault", "PUT /loglevel", "POST /trace", "POST /nothing",
		"GET /snapshot", "HEAD /snapshot", "GET /explain?key=k", "GET /watch", "GET /debug/pprof/", "GET /debug/pprof/cmdline", "GET /debug/pprof/heap",
	}
	for _, line := range guarded {
		for _, token := range []string{"", "s3cre", "s3cretx", "Bearer"} {
			if status := ask(line, token); status != http.StatusUnauthorized {
				t.Errorf("%s with the token %q: %d", line, token, status)
			}
		}
		if status := ask(line, "s3cret"); status == http.StatusUnauthorized || status == http.StatusInternalServerError {
			t.Errorf("%s with the token: %d", line, status)
		}
	}
	for _, path := range []string{"/", "/web/page.js", "/api/cluster", "/api/node", "/metrics", "/healthz", "/readyz", "/config"} {
		if status := ask("GET "+path, ""); status != http.StatusOK {
			t.Errorf("GET %s: %d", path, status)
		}
	}
	write("other") // at once
	if was, is := ask("GET /snapshot", "s3cret"), ask("GET /snapshot", "other"); was != 401 || is != 200 {
		t.Errorf("with the token of before %d, with that of now %d", was, is)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if with, without := ask("GET /snapshot", "other"), ask("GET /snapshot", ""); with != 500 || without != 500 {
		t.Errorf("nobody knows the token, and it answers %d and %d", with, without)
	}
	next := *n.inUse()
	next.AdminTokenFile = ""
	if err := n.Reconfigure(next); err != nil {
		t.Fatal(err)
	}
	if status := ask("GET /snapshot", ""); status != 200 {
		t.Errorf("without a setting: %d", status)
	}
}
