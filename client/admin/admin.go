// Package admin asks a controller what only its HTTP side answers: its admin address.
// The command line and the shell go through it; programs that only watch can as well use
// any HTTP client.
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unicode"
)

const (
	// maxText is the most bytes of an answer for people, maxJSON of one for programs.
	maxText = 64 << 10
	maxJSON = 64 << 20
)

// Client asks one controller. Each request has a connection of its own, and goes to Addr
// alone: proxies that the environment names are for other traffic.
type Client struct {
	Addr string // host:port or unix:/path, as the setting admin has it
	// TokenFile is a file with the admin token, which is read for each request; empty if
	// the controller asks for none.
	TokenFile string
	// DialContext, if set, connects.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Refused is an answer that is not what was asked for, with the reason.
type Refused struct {
	Addr   string
	Status int    // of HTTP
	Text   string // fit for a terminal
}

func (r *Refused) Error() string { return r.Addr + " refuses: " + r.Text }

// Get asks for path and returns the body of the answer, which the caller closes. Errors:
// [Refused], those of the network and of ctx.
func (c *Client) Get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return c.do(ctx, http.MethodGet, path, "", nil)
}

// GetJSON is Get for an answer that is JSON: it is read into v, and returned as it came.
func (c *Client) GetJSON(ctx context.Context, path string, query url.Values, v any) ([]byte, error) {
	body, err := c.Get(ctx, path, query)
	return c.decode(body, err, v)
}

// Send has the controller do something: POST, PUT or DELETE path, with a form. The answer
// is JSON, and read into v unless that is nil.
func (c *Client) Send(ctx context.Context, method, path string, form url.Values, v any) error {
	body, err := c.do(ctx, method, path, "application/x-www-form-urlencoded", strings.NewReader(form.Encode()))
	if v == nil && err == nil {
		return body.Close()
	}
	_, err = c.decode(body, err, v)
	return err
}

// Post has the controller carry out what body says. The answer is JSON: it is read into
// v, and returned as it came.
func (c *Client) Post(ctx context.Context, path string, body []byte, v any) ([]byte, error) {
	answer, err := c.do(ctx, http.MethodPost, path, "application/octet-stream", bytes.NewReader(body))
	return c.decode(answer, err, v)
}

func (c *Client) decode(body io.ReadCloser, err error, v any) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, maxJSON))
	if err != nil {
		return nil, fmt.Errorf("admin address %s: %w", c.Addr, err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("the answer of %s cannot be read: is it the admin address of a controller of this release? %w", c.Addr, err)
	}
	return raw, nil
}

// do sends a request. The answer is 200, or there is an error.
func (c *Client) do(ctx context.Context, method, path, kind string, body io.Reader) (io.ReadCloser, error) {
	if c.Addr == "off" {
		return nil, errors.New("the admin address is off, so there is nobody to ask; start the controller with --admin host:port")
	}
	network, address, host := "tcp", c.Addr, c.Addr
	if socket, ok := strings.CutPrefix(c.Addr, "unix:"); ok {
		network, address, host = "unix", strings.TrimPrefix(socket, "//"), "localhost"
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, body)
	if err != nil {
		return nil, fmt.Errorf("admin address %q: %w", c.Addr, err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	if c.TokenFile != "" {
		token, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("the admin token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	dial := c.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dial(ctx, network, address)
	}}
	resp, err := transport.RoundTrip(req)
	if err != nil && errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("admin address %s: %w: no controller has it; attune show lists those there are", c.Addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("admin address %s: %w", c.Addr, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxText))
	if err != nil {
		return nil, fmt.Errorf("admin address %s: %w", c.Addr, err)
	}
	refused := &Refused{Addr: c.Addr, Status: resp.StatusCode, Text: clean(strings.TrimSpace(string(text)))}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		before, _, _ := strings.Cut(path, "?")
		refused.Text = fmt.Sprintf("it does not know %s: it is of an older release, or no controller", before)
	case refused.Text == "":
		refused.Text = resp.Status
	}
	return nil, refused
}

// Reach is the admin address addr of the controller called name, as it is dialled from
// here, given that its clients reach it at server.
func Reach(addr, server, name string) (string, error) {
	if strings.HasPrefix(addr, "unix:") {
		return addr, nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("%s says that its admin address is %q: %w", name, addr, err)
	}
	ip, err := netip.ParseAddr(host)
	if host != "" && (err != nil || !ip.IsUnspecified() && !ip.IsLoopback()) {
		return addr, nil
	}
	serverHost, _, err := net.SplitHostPort(server)
	if err != nil || strings.Contains(server, "/") { // a unix socket: it is on this machine
		serverHost = "127.0.0.1"
	}
	if host == "" || ip.IsUnspecified() {
		return net.JoinHostPort(serverHost, port), nil
	}
	// Its own loopback is another one than ours, unless it is on this machine.
	if at, err := netip.ParseAddr(serverHost); serverHost != "localhost" && (err != nil || !at.IsLoopback()) {
		return "", fmt.Errorf("the admin address of %s, %s, is on its own machine only: run this there, or say with --admin how to get to it", name, addr)
	}
	return addr, nil
}

// clean is text that plays no tricks on a terminal.
func clean(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
