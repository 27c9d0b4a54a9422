package shell

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
	"strings"
	"time"
)

// adminPatience is how long a controller may take to answer what is no stream. It may
// have to ask the others.
const adminPatience = 15 * time.Second

// errAdmin is what a controller's admin address answered instead of what was wanted.
type errAdmin string

func (e errAdmin) Error() string { return string(e) }

// admin is the admin address of the controller that is talked to: as given, or as the
// controller says.
func (sh *shell) admin() (network, address string, err error) {
	addr := sh.adminAddr
	if addr == "" {
		if addr, err = sh.toldAdmin(); err != nil {
			return "", "", err
		}
	}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return "unix", strings.TrimPrefix(path, "//"), nil
	}
	return "tcp", addr, nil
}

// toldAdmin asks the controller for its admin address.
func (sh *shell) toldAdmin() (string, error) {
	var name, addr string
	err := sh.lines("stats", []word{{text: "attune"}}, func(line string) bool {
		if v, ok := strings.CutPrefix(line, "STAT name "); ok {
			name = v
		}
		if v, ok := strings.CutPrefix(line, "STAT admin "); ok {
			addr = v
		}
		return strings.HasPrefix(line, "STAT ")
	})
	switch {
	case err != nil && name == "":
		return "", fmt.Errorf("%s is asked for its admin address: %w", sh.client.Controller(), err)
	case name == "":
		return "", fmt.Errorf("%s is not a controller of attune", sh.client.Controller())
	case addr == "" || addr == "-":
		return "", fmt.Errorf("%s has no admin address: start it with one (see admin)", name)
	}
	return reach(addr, sh.client.Controller(), name)
}

// reach is addr as it is dialled from here, given that the controller called name is
// reached at server.
func reach(addr, server, name string) (string, error) {
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

// ask sends a request to the admin address, and returns the body of the answer, which
// the caller closes. Errors: [errAdmin], those of the network.
func (sh *shell) ask(ctx context.Context, method, path string, query url.Values, body []byte) (io.ReadCloser, error) {
	network, address, err := sh.admin()
	if err != nil {
		return nil, err
	}
	host := address
	if network == "unix" {
		host = "unix"
	}
	u := url.URL{Scheme: "http", Host: host, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	// One connection for one request: it is hung up with the command.
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return sh.dial(ctx, network, address)
	}}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("admin address %s: %w", address, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, errAdmin(fmt.Sprintf("%s does not know %s: it is of an older release", address, path))
	}
	return nil, errAdmin(clean(strings.TrimSpace(string(text))))
}

// askJSON is ask for an answer that is JSON, which it returns as it came and reads
// into v.
func (sh *shell) askJSON(method, path string, query url.Values, body []byte, v any) (raw []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(sh.ctx, adminPatience, errors.New("the controller takes too long"))
	defer cancel()
	answer, err := sh.ask(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	if raw, err = io.ReadAll(io.LimitReader(answer, 64<<20)); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("the answer of the controller cannot be read: %w", err)
	}
	return raw, nil
}

// clean is text that plays no tricks on a terminal.
func clean(s string) string {
	if printable([]byte(s)) && !strings.ContainsAny(s, "\n\t") {
		return s
	}
	return fmt.Sprintf("%q", s)
}
