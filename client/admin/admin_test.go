package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve has a handler answer at the address that is returned.
func serve(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// What is said over a unix socket and over TCP, with a token and without, is the same.
func TestAsking(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		body, _ := io.ReadAll(r.Body)
		io.WriteString(w, `{"said": "`+strings.Join([]string{r.Method, r.URL.Path, r.Form.Encode(), string(body), r.Header.Get("Authorization")}, " ")+`"}`)
	})
	socket := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := http.Server{Handler: h}
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	defer func() { s.Close(); <-done }()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // it is for others
	var answer struct{ Said string }
	for _, at := range []*Client{{Addr: serve(t, h)}, {Addr: "unix:" + socket}, {Addr: "unix://" + socket, TokenFile: token}} {
		bearer := ""
		if at.TokenFile != "" {
			bearer = "Bearer s3cret"
		}
		form := url.Values{"k": {"a b"}}
		if _, err := at.GetJSON(t.Context(), "/p", form, &answer); err != nil || answer.Said != "GET /p k=a+b  "+bearer {
			t.Errorf("%+v: %v", answer, err)
		}
		if err := at.Send(t.Context(), http.MethodPut, "/p", form, &answer); err != nil || answer.Said != "PUT /p k=a+b  "+bearer {
			t.Errorf("%+v: %v", answer, err)
		}
		if err := at.Send(t.Context(), http.MethodPost, "/p", nil, nil); err != nil {
			t.Error(err)
		}
		if _, err := at.Post(t.Context(), "/p", []byte("raw"), &answer); err != nil || answer.Said != "POST /p  raw "+bearer {
			t.Errorf("%+v: %v", answer, err)
		}
	}
}

// Whatever goes wrong, the error says whom it is about, and what to look at.
func TestRefusals(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	says := func(status int, text string) string {
		return serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); io.WriteString(w, text) })
	}
	for name, c := range map[string]struct {
		at     Client
		status int
		want   string
	}{
		"a reason":   {Client{Addr: says(409, "not now\n")}, 409, "refuses: not now"},
		"tricks":     {Client{Addr: says(409, "not\x1b[2Jnow")}, 409, `refuses: "not\x1b[2Jnow"`},
		"no reason":  {Client{Addr: says(503, "")}, 503, "refuses: 503 Service Unavailable"},
		"older":      {Client{Addr: says(404, "404 page not found")}, 404, "does not know /p: it is of an older release"},
		"leads away": {Client{Addr: says(302, "")}, 302, "302 Found"},
		"no JSON":    {Client{Addr: says(200, "<html>")}, 0, "cannot be read"},
		"nobody":     {Client{Addr: free.Addr().String()}, 0, "attune show"},
		"no address": {Client{Addr: "a b"}, 0, `admin address "a b"`},
		"off":        {Client{Addr: "off"}, 0, "--admin host:port"},
		"no token":   {Client{Addr: says(200, "{}"), TokenFile: filepath.Join(t.TempDir(), "token")}, 0, "the admin token: open"},
	} {
		t.Run(name, func(t *testing.T) {
			var v struct{}
			_, err := c.at.GetJSON(t.Context(), "/p", url.Values{"k": {"v"}}, &v)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.at.Addr) && c.at.TokenFile == "" && c.at.Addr != "off" {
				t.Errorf("%v, want %s", err, c.want)
			}
			if refused, ok := errors.AsType[*Refused](err); ok != (c.status != 0) || ok && refused.Status != c.status {
				t.Errorf("%#v", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&Client{Addr: says(200, "")}).Get(ctx, "/", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of ctx: %v", err)
	}
}

func TestReach(t *testing.T) {
	for _, c := range []struct{ addr, server, want string }{
		{"10.0.0.1:9090", "10.0.0.1:8000", "10.0.0.1:9090"},
		{"admin.example:9090", "10.0.0.1:8000", "admin.example:9090"},
		{"127.0.0.1:9090", "127.0.0.1:8000", "127.0.0.1:9090"},
		{"127.0.0.1:9090", "localhost:8000", "127.0.0.1:9090"},
		{"127.0.0.1:9090", "unix:/run/a.sock", "127.0.0.1:9090"},
		{"127.0.0.1:9090", "10.0.0.1:8000", ""},
		{"[::1]:9090", "n1.example:8000", ""},
		{"[::]:9090", "10.0.0.1:8000", "10.0.0.1:9090"},
		{":9090", "n1.example:8000", "n1.example:9090"},
		{"0.0.0.0:9090", "/run/a.sock", "127.0.0.1:9090"},
		{"unix:/run/admin.sock", "10.0.0.1:8000", "unix:/run/admin.sock"},
		{"nonsense", "10.0.0.1:8000", ""},
	} {
		if got, err := Reach(c.addr, c.server, "n1"); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s at %s: %q, %v, want %q", c.addr, c.server, got, err, c.want)
		}
	}
}
