package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// askAdmin sends a request to a controller's admin address, host:port or unix:/path,
// and returns its answer, of whatever status: the caller closes the body. form may be
// nil. A proxy that the environment names is for other traffic and not asked.
func askAdmin(ctx context.Context, method, admin, path string, form url.Values) (*http.Response, error) {
	network, address, host := "tcp", admin, admin
	if socket, ok := strings.CutPrefix(admin, "unix:"); ok {
		network, address, host = "unix", strings.TrimPrefix(socket, "//"), "attune"
	}
	if admin == "off" {
		return nil, errors.New("the admin address is off, so there is nobody to ask; start the controller with --admin host:port")
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	httpClient := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}
	return httpClient.Do(req)
}

// adminText is what a controller has to say in an answer that is not large.
func adminText(resp *http.Response) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return strings.TrimSpace(string(raw)), err
}
