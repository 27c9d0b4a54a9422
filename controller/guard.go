package controller

import (
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"

	"go.uber.org/zap"
)

// Who asks the admin address may be a browser, and does what sites tell it that have
// nothing to do with this cluster: send requests here, or, having told it that their own
// name is at this address, read the answers. So browsers change nothing: the page that is
// served here does not, either. And an address that only this machine reaches answers
// to this machine's names alone.

// guard has next serve what may be served at all, on a listener at address.
func (n *Node) guard(next http.Handler, address net.Addr) http.Handler {
	tcp, _ := address.(*net.TCPAddr)
	local := tcp != nil && tcp.IP.IsLoopback()
	change := n.authorized(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case local && !n.localHost(r.Host):
			http.Error(w, fmt.Sprintf("this address is for this machine only, and not called %.100q: ask 127.0.0.1 or localhost, or have the proxy in front of it send that as Host", r.Host), http.StatusForbidden)
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
			next.ServeHTTP(w, r)
		case r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "":
			http.Error(w, "a browser changes nothing here: use attune, or curl", http.StatusForbidden)
		default:
			change.ServeHTTP(w, r)
		}
	})
}

// localHost reports whether a Host header says what no other site is called: an address,
// localhost, or the name that the operator gave. Programs of old send none.
func (n *Node) localHost(header string) bool {
	host, _, err := net.SplitHostPort(header)
	if err != nil {
		host = header
	}
	given, _, _ := net.SplitHostPort(n.cfg.Admin)
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	_, err = netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") || host == strings.ToLower(given)
}

// authorized has next serve who has the admin token, or everybody if there is none. It is
// read each time, so that it can be exchanged.
func (n *Node) authorized(next http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		file := n.inUse().AdminTokenFile
		if file == "" {
			next.ServeHTTP(w, r)
			return
		}
		token, err := readToken(file)
		if err != nil {
			n.log.Error("nobody is let in who must have the admin token", zap.Error(err))
			http.Error(w, "the admin token cannot be read here: see the log of this controller", http.StatusInternalServerError)
			return
		}
		given := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if subtle.ConstantTimeCompare([]byte(given), []byte(token)) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "this takes the admin token: attune --admin-token-file FILE, or curl -H \"Authorization: Bearer TOKEN\"", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// readToken reads the admin token: one word of ASCII.
func readToken(file string) (string, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(raw))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s must hold one word of ASCII, such as openssl rand -hex 32 makes", file)
	}
	return token, nil
}
